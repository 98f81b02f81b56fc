"""Batches in any order of events and with restarts: each line is written once, and counts are those of the files."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from qlm_core import batches as bt
from qlm_core.batches import BatchStatus, Unrun
from qlm_core.model import BatchId, ModelName

MODELS = tuple(map(ModelName, ("x", "y", "z")))
ROOM = 3


@dataclass
class Stored:
    """A batch as a store has it, and what of it waits to be committed, in order."""

    tenant: str
    due_s: float
    models: tuple[ModelName, ...]
    model_of: list[int]
    status: BatchStatus = BatchStatus.VALIDATING
    unrun: Unrun | None = None
    accepted: bool = False
    released: tuple[int, ...] = ()
    records: dict[int, bool] = field(default_factory=dict)
    closed: bt.Close | None = None


@dataclass
class Head:
    """A state of a batch that is to be committed."""

    batch: BatchId
    status: BatchStatus
    unrun: Unrun | None
    accepted: bool
    released: tuple[int, ...]


@dataclass
class Record:
    """A record that is to be committed."""

    batch: BatchId
    line: int
    failed: bool


class BookMachine(RuleBasedStateMachine):
    """A book, a store that is behind, and a gateway that dies now and then."""

    def __init__(self) -> None:
        super().__init__()
        self.book = bt.Book(waiting_lines_max=ROOM)
        self.now_s = 0.0
        self.stored: dict[BatchId, Stored] = {}
        self.pending: list[Head | Record] = []
        # Lines that are out, with whether an agent has them; and what the driver owes the book.
        self.out: dict[tuple[BatchId, int], bool] = {}
        self.ending: dict[tuple[BatchId, int], None] = {}
        self.validating: dict[BatchId, None] = {}
        self.writing: dict[BatchId, Unrun | None] = {}
        # Until when a batch and model rest.
        self.rests: dict[tuple[BatchId, ModelName], float] = {}

    # ------------------------------------------------------------ what the driver does

    def send(self, event: bt.Event) -> None:
        for effect in self.book.handle(event, now_s=self.now_s):
            match effect:
                case bt.Validate(batch):
                    self.validating[batch] = None
                case bt.StopValidating(batch):
                    self.validating.pop(batch, None)
                case bt.Release(batch, line):
                    assert (batch, line) not in self.out, "a line is out once"
                    assert line not in self.stored[batch].records, "what has a record is not run"
                    assert batch not in self.writing
                    self.out[batch, line] = False
                case bt.Drop(batch, line):
                    assert (batch, line) in self.out
                case bt.Write(batch, unrun):
                    assert not any(one == batch for one, _ in self.out), "nothing is out"
                    assert batch not in self.writing
                    self.writing[batch] = unrun
                case bt.Changed(batch, status, unrun):
                    self.note(batch, status, unrun)
                case bt.Close():
                    self.close(effect)

    def model_of(self, batch: BatchId, line: int) -> ModelName:
        stored = self.stored[batch]
        return stored.models[stored.model_of[line]]

    def note(self, batch: BatchId, status: BatchStatus, unrun: Unrun | None) -> None:
        released = tuple(part.begun for part in self.book.waiting(batch))
        self.pending.append(Head(batch, status, unrun, bool(released), released))

    def close(self, close: bt.Close) -> None:
        """The last word is committed before anybody hears of it, and all that came before with it."""
        self.commit(len(self.pending))
        stored = self.stored[close.batch]
        assert stored.closed is None, "a batch ends once"
        stored.closed = close
        assert not any(batch == close.batch for batch, _ in self.out)
        if close.status is BatchStatus.FAILED or not stored.accepted:
            assert not stored.records
            assert (close.completed, close.failed) == (0, 0)
            return
        total = len(stored.model_of)
        good = sum(not failed for failed in stored.records.values())
        assert (close.completed, close.failed) == (good, total - good)
        if close.status is BatchStatus.COMPLETED:
            assert len(stored.records) == total

    def commit(self, count: int, *, told: bool = True) -> None:
        done, self.pending = self.pending[:count], self.pending[count:]
        for one in done:
            stored = self.stored[one.batch]
            if isinstance(one, Head):
                stored.status, stored.unrun = one.status, one.unrun
                stored.accepted, stored.released = one.accepted, one.released
                continue
            assert one.line not in stored.records, "one record a line"
            stored.records[one.line] = one.failed
            if told:
                del self.out[one.batch, one.line], self.ending[one.batch, one.line]
                self.send(bt.LineEnded(one.batch, one.line, failed=one.failed))

    # ------------------------------------------------------------ what happens

    @rule(
        lines=st.lists(st.integers(0, 2), min_size=1, max_size=9),
        tenant=st.sampled_from("ab"),
        window_s=st.integers(1, 30),
    )
    def open(self, lines: list[int], tenant: str, window_s: int) -> None:
        places = sorted(set(lines))
        batch = BatchId(f"b{len(self.stored)}")
        self.stored[batch] = Stored(
            tenant=tenant,
            due_s=self.now_s + window_s,
            models=tuple(MODELS[place] for place in places),
            model_of=[places.index(place) for place in lines],
        )
        self.send(bt.Opened(batch, tenant, self.now_s + window_s))

    @precondition(lambda self: self.validating)
    @rule(data=st.data(), sound=st.integers(0, 4))
    def validated(self, data: st.DataObject, sound: int) -> None:
        batch = data.draw(st.sampled_from(list(self.validating)))
        del self.validating[batch]
        stored = self.stored[batch]
        if sound:
            self.send(bt.Accepted(batch, stored.models, stored.model_of))
        else:
            self.send(bt.Refused(batch))

    @precondition(lambda self: self.out)
    @rule(data=st.data(), action=st.sampled_from(["take", "take", "end", "end", "fail", "return"]))
    def line(self, data: st.DataObject, action: str) -> None:
        batch, line = data.draw(st.sampled_from(list(self.out)))
        if (batch, line) in self.ending:
            return
        if action == "take":
            self.out[batch, line] = True
            self.send(bt.LineTaken(batch, line))
        elif action == "return":
            del self.out[batch, line]
            self.rests[batch, self.model_of(batch, line)] = self.now_s + 2.0
            self.send(bt.LineReturned(batch, line, rest_s=2.0))
        else:
            self.ending[batch, line] = None
            self.pending.append(Record(batch, line, action == "fail"))

    @precondition(lambda self: self.pending)
    @rule(count=st.integers(1, 4))
    def committed(self, count: int) -> None:
        self.commit(count)

    @precondition(lambda self: self.stored)
    @rule(data=st.data())
    def noted(self, data: st.DataObject) -> None:
        """How many lines were released is stored now and then."""
        batch = data.draw(st.sampled_from(list(self.stored)))
        standing = self.book.standing(batch)
        if standing is not None:
            self.note(batch, standing.status, standing.unrun)

    @precondition(lambda self: self.stored)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.send(bt.CancelAsked(data.draw(st.sampled_from(list(self.stored)))))

    @precondition(lambda self: self.writing)
    @rule(data=st.data())
    def written(self, data: st.DataObject) -> None:
        batch = data.draw(st.sampled_from(list(self.writing)))
        unrun = self.writing.pop(batch)
        stored = self.stored[batch]
        assert unrun is not None or len(stored.records) == len(stored.model_of)
        self.send(bt.Written(batch))

    @rule(seconds=st.integers(1, 12))
    def time_passes(self, seconds: int) -> None:
        self.now_s += seconds
        self.send(bt.Woken())

    @rule(count=st.integers(0, 4))
    def die(self, count: int) -> None:
        """The gateway is killed: some of what was to be committed is, and the book is made anew from the store."""
        self.commit(count, told=False)
        self.pending = []
        self.out, self.ending, self.validating, self.writing, self.rests = {}, {}, {}, {}, {}
        self.book = bt.Book(waiting_lines_max=ROOM)
        self.send(
            bt.Restored(
                tuple(
                    bt.RestoredBatch(
                        batch=batch,
                        tenant=one.tenant,
                        due_s=one.due_s,
                        status=one.status,
                        models=one.models if one.accepted else (),
                        model_of=one.model_of if one.accepted else (),
                        ended=list(one.records.items()),
                        released=one.released,
                        unrun=one.unrun,
                    )
                    for batch, one in self.stored.items()
                    if one.closed is None
                )
            )
        )

    # ------------------------------------------------------------ what always holds

    @invariant()
    def counts_are_those_of_the_lines(self) -> None:
        for batch, stored in self.stored.items():
            standing = self.book.standing(batch)
            assert (standing is None) == (stored.closed is not None)
            if standing is None or not standing.total:
                continue
            open_lines = sum(one == batch for one, _ in self.out)
            waiting = sum(part.lines for part in self.book.waiting(batch))
            assert standing.open == open_lines
            known = standing.completed + standing.failed + open_lines
            if standing.status is BatchStatus.IN_PROGRESS:
                assert known + waiting == standing.total
            else:
                assert waiting == 0
                assert known <= standing.total

    @invariant()
    def no_engine_waits_for_lines_while_there_are_some(self) -> None:
        for model in MODELS:
            idle = sum(
                not taken
                for (batch, line), taken in self.out.items()
                if self.model_of(batch, line) == model
            )
            ready = [
                batch
                for batch, stored in self.stored.items()
                if stored.closed is None
                for part in self.book.waiting(batch)
                if part.model == model and part.lines
                if self.rests.get((batch, model), 0.0) <= self.now_s
            ]
            assert not ready or idle >= ROOM

    def teardown(self) -> None:
        """Every batch comes to its end, and all of its lines with it."""
        for _ in range(1_000):
            if all(one.closed is not None for one in self.stored.values()):
                return
            for batch in list(self.validating):
                del self.validating[batch]
                self.send(
                    bt.Accepted(batch, self.stored[batch].models, self.stored[batch].model_of)
                )
            for batch, line in list(self.out):
                if (batch, line) not in self.ending:
                    self.ending[batch, line] = None
                    self.pending.append(Record(batch, line, False))
            self.commit(len(self.pending))
            for batch in list(self.writing):
                del self.writing[batch]
                self.send(bt.Written(batch))
            self.now_s += 1.0
            self.send(bt.Woken())
        raise AssertionError("a batch does not end")


TestBook = BookMachine.TestCase
TestBook.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
