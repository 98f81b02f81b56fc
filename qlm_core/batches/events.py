"""What can happen to the batches of a gateway. Lines are counted from 0, in the order of the file, without blank ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qlm_core.batches.states import NO_USAGE, BatchStatus, Unrun, Usage
from qlm_core.model import BatchId, ModelName


@dataclass(frozen=True, slots=True)
class Opened:
    """A batch was created and is stored.

    Attributes:
        due_s: when its completion window is over, on the book's clock.
    """

    batch: BatchId
    tenant: str
    due_s: float


@dataclass(frozen=True, slots=True)
class Accepted:
    """Every line of the file is sound.

    Attributes:
        models: those that are asked for.
        model_of: for each line the place of its model among these.
    """

    batch: BatchId
    models: tuple[ModelName, ...]
    model_of: Sequence[int]


@dataclass(frozen=True, slots=True)
class Refused:
    """The file is not there, or a line of it is not sound."""

    batch: BatchId


@dataclass(frozen=True, slots=True)
class LineTaken:
    """An engine's agent holds a released line."""

    batch: BatchId
    line: int


@dataclass(frozen=True, slots=True)
class LineEnded:
    """A released line has its record, which is stored.

    Attributes:
        failed: whether it belongs into the error file.
        usage: of a line that has not failed.
    """

    batch: BatchId
    line: int
    failed: bool
    usage: Usage = NO_USAGE


@dataclass(frozen=True, slots=True)
class LineReturned:
    """A released line is back without a record, and may be released anew after `rest_s`."""

    batch: BatchId
    line: int
    rest_s: float = 0.0


@dataclass(frozen=True, slots=True)
class CancelAsked:
    """Somebody gives a batch up."""

    batch: BatchId


@dataclass(frozen=True, slots=True)
class Written:
    """The files of a batch are written: each line is in one of them, once."""

    batch: BatchId


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoredBatch:
    """A batch as the store has it.

    Attributes:
        models, model_of: as in `Accepted`; none of a batch that was not accepted yet.
        ended: lines that have a record, each with whether it failed.
        released: of each model how many of its lines, from the first on, may have been released before. Those without a
            record are released at once, for an agent may still run them.
        unrun: of a batch that is being finalised, why some lines may have no record.
    """

    batch: BatchId
    tenant: str
    due_s: float
    status: BatchStatus
    models: tuple[ModelName, ...] = ()
    model_of: Sequence[int] = ()
    ended: Iterable[tuple[int, bool]] = ()
    usage: Usage = NO_USAGE
    released: tuple[int, ...] = ()
    unrun: Unrun | None = None


@dataclass(frozen=True, slots=True)
class Restored:
    """The gateway has started again; these batches are not over."""

    batches: tuple[RestoredBatch, ...]


@dataclass(frozen=True, slots=True)
class Woken:
    """The time asked for in `wakeup_s` has come. Early or repeated ones are harmless."""


Event = (
    Opened
    | Accepted
    | Refused
    | LineTaken
    | LineEnded
    | LineReturned
    | CancelAsked
    | Written
    | Restored
    | Woken
)
