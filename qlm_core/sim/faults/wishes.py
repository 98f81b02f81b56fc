"""What clients and gateways say to each other in a simulated run."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from qlm_core.batches import BatchStatus
from qlm_core.ledger import EndRecord
from qlm_core.model import BatchId, RequestId
from qlm_core.sim.faults.schedule import Ask, BatchAsk
from qlm_core.sim.faults.tokens import Span, Text


@dataclass(frozen=True, slots=True)
class SubmitAsk:
    """Take this request."""

    ask: Ask


@dataclass(frozen=True, slots=True)
class WatchOutput:
    """Send all output of a request from the beginning, and its end."""

    id: RequestId


@dataclass(frozen=True, slots=True)
class CancelRequest:
    """Give a request up."""

    id: RequestId


@dataclass(frozen=True, slots=True)
class SubmitBatch:
    """Take this batch."""

    ask: BatchAsk


@dataclass(frozen=True, slots=True)
class LookAtBatch:
    """Say where a batch stands."""

    id: BatchId


@dataclass(frozen=True, slots=True)
class CancelBatch:
    """Give a batch up."""

    id: BatchId


Wish = SubmitAsk | WatchOutput | CancelRequest | SubmitBatch | LookAtBatch | CancelBatch


class Refusal(Enum):
    """Why a wish is not granted."""

    UNAVAILABLE = "unavailable"
    KEY_REUSED = "key reused"
    NOT_FOUND = "not found"


@dataclass(frozen=True, slots=True)
class Accepted:
    """The request is taken: from now on it is not lost, if it is durable."""

    id: RequestId


@dataclass(frozen=True, slots=True)
class Denied:
    """The wish is not granted."""

    refusal: Refusal


@dataclass(frozen=True, slots=True)
class Shown:
    """Output, in order."""

    span: Span


@dataclass(frozen=True, slots=True)
class Over:
    """The request has ended."""

    id: RequestId
    record: EndRecord
    answer: Text


@dataclass(frozen=True, slots=True)
class BatchTaken:
    """The batch is stored: from now on it is not lost."""

    id: BatchId


@dataclass(frozen=True, slots=True)
class BatchSeen:
    """Where a batch stands."""

    id: BatchId
    status: BatchStatus


BatchReply = BatchTaken | BatchSeen | Denied
Reply = Accepted | Denied | Shown | Over | BatchTaken | BatchSeen
