"""A line of a batch that is a request: who keeps its end."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from qlm_core.batches import LineTaken
from qlm_core.ledger import EndRecord
from qlm_core.model import BatchId, RequestId
from qlm_core.sim.faults.tokens import Text

if TYPE_CHECKING:
    from qlm_core.sim.faults.batch_part import BatchPart


class Line:
    """One line.

    Attributes:
        tries: how often it was a request before, in this life of the gateway.
        dropped: whether its batch does not want its answer any more.
    """

    __slots__ = ("_part", "batch", "dropped", "number", "request_id")

    def __init__(self, part: BatchPart, batch: BatchId, number: int, tries: int):
        self._part = part
        self.batch = batch
        self.number = number
        self.request_id = RequestId(f"{batch}/{number}" + (f"/{tries}" if tries else ""))
        self.dropped = False

    def taken(self) -> None:
        """An agent holds it."""
        self._part.handle(LineTaken(self.batch, self.number))

    def keep_end(self, record: EndRecord, answer: Text, done: Callable[[], None]) -> None:
        """It has ended; `done` once nothing is to be done about that any more."""
        self._part.line_ended(self, record, answer, done)
