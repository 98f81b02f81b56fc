"""Where a batch stands, by which steps it moves, and what is counted of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class BatchStatus(Enum):
    """OpenAI's states of a batch."""

    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        """Whether nothing can follow."""
        return self in _TERMINAL


_TERMINAL = (
    BatchStatus.FAILED,
    BatchStatus.COMPLETED,
    BatchStatus.EXPIRED,
    BatchStatus.CANCELLED,
)


class Step(Enum):
    """What moves a batch from one state to the next."""

    ACCEPT = "every line is sound"
    REFUSE = "a line is not, there is no file, or it would be too much"
    DRAIN = "every line has ended"
    EXPIRE = "the completion window is over"
    CANCEL = "cancel"
    FINISH = "files written"


S = BatchStatus
TRANSITIONS: dict[tuple[BatchStatus, Step], BatchStatus] = {
    (S.VALIDATING, Step.ACCEPT): S.IN_PROGRESS,
    (S.VALIDATING, Step.REFUSE): S.FAILED,
    (S.VALIDATING, Step.CANCEL): S.CANCELLING,
    (S.IN_PROGRESS, Step.DRAIN): S.FINALIZING,
    (S.IN_PROGRESS, Step.EXPIRE): S.FINALIZING,
    (S.IN_PROGRESS, Step.CANCEL): S.CANCELLING,
    (S.FINALIZING, Step.CANCEL): S.CANCELLING,
    # Expired instead where the window was over before every line had ended.
    (S.FINALIZING, Step.FINISH): S.COMPLETED,
    (S.CANCELLING, Step.FINISH): S.CANCELLED,
}
"""Every legal step; whatever is not here changes nothing."""


class Unrun(Enum):
    """Why lines of a batch that is over were never run to their end. Values are the codes in its error file."""

    EXPIRED = "batch_expired"
    CANCELLED = "batch_cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens of the answers of a batch."""

    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Input and output together."""
        return self.input_tokens + self.output_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            input_tokens=self.input_tokens + other.input_tokens,
            cached_tokens=self.cached_tokens + other.cached_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            reasoning_tokens=self.reasoning_tokens + other.reasoning_tokens,
        )


NO_USAGE = Usage()
