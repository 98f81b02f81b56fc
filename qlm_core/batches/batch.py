"""One batch that is not over: its state, and where each of its lines stands.

A line costs a byte here, and four more where the file asks for several models.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Sequence
from enum import IntEnum

from qlm_core.batches.states import NO_USAGE, TRANSITIONS, BatchStatus, Step, Unrun, Usage
from qlm_core.model import BatchId, ModelName


class LineState(IntEnum):
    """Where a line stands.

    Released and taken lines are requests of the ledger; those that are done or failed have their record.
    """

    WAITING = 0
    RELEASED = 1
    TAKEN = 2
    DONE = 3
    FAILED = 4


_OPEN = (LineState.RELEASED, LineState.TAKEN)


class Part:
    """The lines of a batch that ask for one model, in the order of the file.

    Attributes:
        begun: how many lines, from the first on, have been released at least once.
        rest_until_s: none is released before then.
    """

    __slots__ = ("_again", "begun", "lines", "model", "rest_until_s")

    def __init__(self, model: ModelName, lines: Sequence[int]) -> None:
        self.model = model
        self.lines = lines
        self.begun = 0
        self.rest_until_s = float("-inf")
        self._again: deque[int] = deque()

    @property
    def waiting(self) -> int:
        """Lines that are to be released, now or later."""
        return len(self.lines) - self.begun + len(self._again)

    def ready(self, now_s: float) -> bool:
        """Whether a line may be released now."""
        return self.waiting > 0 and self.rest_until_s <= now_s

    def take(self) -> int:
        """The line that is released next; there is one that is `ready`."""
        if self._again:
            return self._again.popleft()
        self.begun += 1
        return self.lines[self.begun - 1]

    def taken_up(self, begun: int, ended: Callable[[int], bool]) -> list[int]:
        """Go on where the last life of the gateway ended; returns the lines that may have been released and have no record.

        Args:
            begun: how many were released at least; what ended after that was noted tells of more.
        """
        last = next((n for n in range(len(self.lines), begun, -1) if ended(self.lines[n - 1])), 0)
        self.begun = max(begun, last)
        return [line for line in self.lines[: self.begun] if not ended(line)]

    def put_back(self, line: int, until_s: float) -> None:
        """A line is to be released once more, and none before then: what kept it from running keeps others too."""
        self._again.append(line)
        self.rest_until_s = max(self.rest_until_s, until_s)

    def clear(self) -> None:
        """Nothing more is released."""
        self.begun = len(self.lines)
        self._again.clear()


class Batch:
    """One batch.

    Attributes:
        number: one more than that of the batch before it.
        unrun: why lines have no record, once it is decided that not all will have one.
        open: lines that are requests of the ledger.
        writing: whether its files are being written.
    """

    __slots__ = (
        "_model_of",
        "_states",
        "completed",
        "due_s",
        "failed",
        "id",
        "number",
        "open",
        "parts",
        "status",
        "tenant",
        "unrun",
        "usage",
        "writing",
    )

    def __init__(self, id: BatchId, *, tenant: str, due_s: float, number: int) -> None:
        self.id = id
        self.tenant = tenant
        self.due_s = due_s
        self.number = number
        self.status = BatchStatus.VALIDATING
        self.unrun: Unrun | None = None
        self.parts: tuple[Part, ...] = ()
        self.completed = self.failed = self.open = 0
        self.usage = NO_USAGE
        self.writing = False
        self._states = bytearray()
        self._model_of: Sequence[int] = ()

    # ---------------------------------------------------------------- the batch

    @property
    def order(self) -> tuple[float, int]:
        """Which batch of a tenant goes first: the one that is due first, then the one that came first."""
        return self.due_s, self.number

    @property
    def total(self) -> int:
        """How many lines it has; 0 before they are known."""
        return len(self._states)

    @property
    def ended(self) -> int:
        """Lines that have a record."""
        return self.completed + self.failed

    def move(self, step: Step) -> bool:
        """Take a step; False if that is not possible now."""
        status = TRANSITIONS.get((self.status, step))
        if status is None:
            return False
        if status is BatchStatus.COMPLETED and self.unrun is Unrun.EXPIRED:
            status = BatchStatus.EXPIRED
        self.status = status
        return True

    def stop(self, unrun: Unrun | None) -> list[int]:
        """Release nothing more; returns the lines that are out."""
        self.unrun = unrun
        for part in self.parts:
            part.clear()
        return [line for line, state in enumerate(self._states) if state in _OPEN]

    # ---------------------------------------------------------------- its lines

    def fill(self, models: tuple[ModelName, ...], model_of: Sequence[int]) -> None:
        """The lines are known: for each the place of its model among `models`."""
        total = len(model_of)
        self._states = bytearray(total)
        if len(models) == 1:
            self.parts = (Part(models[0], range(total)),)
            return
        lines = [array("I") for _ in models]
        for line, place in enumerate(model_of):
            lines[place].append(line)
        self._model_of = model_of
        self.parts = tuple(Part(*pair) for pair in zip(models, lines, strict=True))

    def part_of(self, line: int) -> Part:
        """The part that a line belongs to."""
        return self.parts[self._model_of[line] if self._model_of else 0]

    def state(self, line: int) -> int:
        """Where a line stands."""
        return self._states[line]

    def has_record(self, line: int) -> bool:
        """Whether a line is done or failed."""
        return self._states[line] >= LineState.DONE

    def is_open(self, line: int) -> bool:
        """Whether a line is a request of the ledger."""
        return self._states[line] in _OPEN

    def release(self, line: int) -> None:
        """A waiting line becomes a request."""
        self._states[line] = LineState.RELEASED
        self.open += 1

    def taken(self, line: int) -> None:
        """A released line is held by an agent."""
        self._states[line] = LineState.TAKEN

    def returned(self, line: int) -> None:
        """An open line is none any more, and has no record."""
        self._states[line] = LineState.WAITING
        self.open -= 1

    def end(self, line: int, *, failed: bool, usage: Usage = NO_USAGE) -> None:
        """A line that is not open any more has a record."""
        self._states[line] = LineState.FAILED if failed else LineState.DONE
        self.completed += not failed
        self.failed += failed
        self.usage = self.usage + usage
