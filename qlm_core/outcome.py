"""Results as low-cardinality values: why a request left the queue, why a swap or pull did not happen.

A metric label or a wire enum is one of these; details travel beside it as text.
"""

from enum import Enum


class FinishReason(Enum):
    """Why a request's stream ended, in OpenAI's words plus our own."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    CONTENT_FILTER = "content_filter"
    CANCELLED = "cancelled"
    SHED = "shed"
    ERROR = "error"


class ShedReason(Enum):
    """Why a waiting request was dropped. Values follow llm-d's dropped-reason header."""

    SATURATED = "rejected-saturated"
    TTL_EXPIRED = "rejected-ttl-expired"
    NO_ENDPOINTS = "rejected-no-endpoints"
    LATE = "rejected-late"


class PullRefusal(Enum):
    """Why the ledger did not hand a request out."""

    UNKNOWN = "unknown"
    TAKEN = "taken"
    DONE = "done"
