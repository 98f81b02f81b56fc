"""What the book of batches wants done, in order."""

from __future__ import annotations

from dataclasses import dataclass

from qlm_core.batches.states import BatchStatus, Unrun, Usage
from qlm_core.model import BatchId


@dataclass(frozen=True, slots=True)
class Validate:
    """Read the file of a batch; `Accepted` or `Refused` follows."""

    batch: BatchId


@dataclass(frozen=True, slots=True)
class StopValidating:
    """Nobody wants to know any more whether the file is sound."""

    batch: BatchId


@dataclass(frozen=True, slots=True)
class Release:
    """Make a line a request; `LineEnded` or `LineReturned` follows, whatever becomes of it.

    Attributes:
        restored: it may have been released in an earlier life of the gateway.
    """

    batch: BatchId
    line: int
    restored: bool = False


@dataclass(frozen=True, slots=True)
class Drop:
    """End a released line, of which nobody wants an answer any more; `LineEnded` or `LineReturned` follows as ever."""

    batch: BatchId
    line: int


@dataclass(frozen=True, slots=True)
class Write:
    """Write the files of a batch; `Written` follows. Lines without a record go into the error file as `unrun`."""

    batch: BatchId
    unrun: Unrun | None


@dataclass(frozen=True, slots=True)
class Changed:
    """The state of a batch has changed and is to be stored.

    Attributes:
        unrun: why some of its lines will have no record, once that is decided.
    """

    batch: BatchId
    status: BatchStatus
    unrun: Unrun | None


@dataclass(frozen=True, slots=True)
class Close:
    """A batch is over; the book has forgotten it.

    Attributes:
        completed, failed: lines in its output file and in its error file.
    """

    batch: BatchId
    status: BatchStatus
    completed: int
    failed: int
    usage: Usage


Effect = Validate | StopValidating | Release | Drop | Write | Changed | Close
