"""Batches of a gateway: which of their lines are released when, and when a batch is over."""

from qlm_core.batches.book import Book, Standing, Waiting
from qlm_core.batches.effects import (
    Changed,
    Close,
    Drop,
    Effect,
    Release,
    StopValidating,
    Validate,
    Write,
)
from qlm_core.batches.events import (
    Accepted,
    CancelAsked,
    Event,
    LineEnded,
    LineReturned,
    LineTaken,
    Opened,
    Refused,
    Restored,
    RestoredBatch,
    Woken,
    Written,
)
from qlm_core.batches.states import TRANSITIONS, BatchStatus, Step, Unrun, Usage

__all__ = [
    "TRANSITIONS",
    "Accepted",
    "BatchStatus",
    "Book",
    "CancelAsked",
    "Changed",
    "Close",
    "Drop",
    "Effect",
    "Event",
    "LineEnded",
    "LineReturned",
    "LineTaken",
    "Opened",
    "Refused",
    "Release",
    "Restored",
    "RestoredBatch",
    "Standing",
    "Step",
    "StopValidating",
    "Unrun",
    "Usage",
    "Validate",
    "Waiting",
    "Woken",
    "Write",
    "Written",
]
