"""The batches of a gateway: the book of the service, its lines and its store, driven as the service drives them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import inf
from typing import TYPE_CHECKING

from qlm_core import batches as bt
from qlm_core import ledger as lg
from qlm_core.batches import BatchStatus
from qlm_core.messages import BulkWaiting
from qlm_core.model import BatchId, ModelName, Phase, Slo
from qlm_core.outcome import ShedReason
from qlm_core.sim.faults.batch_lines import Line
from qlm_core.sim.faults.schedule import BatchAsk
from qlm_core.sim.faults.store import Stored, StoredBatch, StoredFiles, StoredLine
from qlm_core.sim.faults.tokens import Text

if TYPE_CHECKING:
    from qlm_core.sim.faults.gateway_part import GatewayPart

_WAITING_LINES_MAX = 4
_VALIDATING_S = (0.02, 0.5)
_READING_S = 0.005
_STORE_RETRY_S = 0.5
_TELL_S = 0.1
_NOTE_S = 1.0
_REST_S_MIN, _REST_S_MAX = 1.0, 30.0
_COME_BACK = (ShedReason.SATURATED.value, ShedReason.NO_ENDPOINTS.value, ShedReason.LATE.value)

_Key = tuple[BatchId, int]


@dataclass(slots=True, eq=False)
class _Open:
    """A batch that is not over.

    Attributes:
        saved: what waits until nothing of it is being stored. over: what waits for its end.
    """

    stored: StoredBatch
    dirty: bool = False
    saving: bool = False
    saved: list[Callable[[], None]] = field(default_factory=list)
    over: list[Callable[[], None]] = field(default_factory=list)


class BatchPart:
    """The batches of one gateway. Its state is that of the gateway's present life."""

    def __init__(self, gateway: GatewayPart):
        self._gateway = gateway
        self._process = gateway.process
        self._store = gateway.store
        self._numbers = 0
        self._open: dict[BatchId, _Open] = {}

    @property
    def open(self) -> list[BatchId]:
        """Batches that are not over."""
        return list(self._open)

    def start(self) -> None:
        """Begin a life: take up what the store holds."""
        self._book = bt.Book(waiting_lines_max=_WAITING_LINES_MAX)
        # None of a line that is still being read.
        self._out: dict[_Key, Line | None] = {}
        self._tries: dict[_Key, int] = {}
        self._events: deque[bt.Event] = deque()
        self._handling = False
        self._wake_s = inf
        self._told: dict[BatchId, tuple[int, ...]] = {}
        self._telling: dict[BatchId, None] = {}
        found = [one for one in self._store.batches.values() if not one.status.terminal]
        self._open = {one.id: _Open(one) for one in found}
        self._process.after(_NOTE_S, self._note_released)
        if found:
            self.handle(bt.Restored(tuple(map(self._restored, found))))

    def _restored(self, stored: StoredBatch) -> bt.RestoredBatch:
        lines = self._store.lines.get(stored.id, {})
        return bt.RestoredBatch(
            batch=stored.id,
            tenant="",
            due_s=stored.due_at,
            status=stored.status,
            models=stored.ask.model_names if stored.accepted else (),
            model_of=stored.ask.model_of if stored.accepted else (),
            ended=sorted((line, one.answer is None) for line, one in lines.items()),
            released=stored.released,
            unrun=stored.unrun,
        )

    # ------------------------------------------------------------------ what clients want

    def create(self, ask: BatchAsk, told: Callable[[BatchId | None], None]) -> None:
        """Store a batch and begin it; `told` hears its id, or None if it could not be stored."""
        self._numbers += 1
        id = BatchId(f"{self._gateway.id}/batch-{self._numbers}")
        stored = StoredBatch(id=id, ask=ask, due_at=self._process.now_s + ask.window_s)

        def settled(kept: str | None) -> None:
            if kept is not None:
                self._open[id] = _Open(stored)
                self.handle(bt.Opened(id, "", stored.due_at))
            told(None if kept is None else id)

        self._store.write(stored, settled)

    def status(self, id: BatchId) -> BatchStatus | None:
        """Where a batch stands; None of an unknown one."""
        if id in self._open:
            return self._open[id].stored.status
        stored = self._store.batches.get(id)
        return None if stored is None else stored.status

    def cancel(self, id: BatchId, told: Callable[[], None]) -> None:
        """Give a batch up; `told` once that is stored, or the batch is over."""
        one = self._open.get(id)
        if one is None:
            told()
            return
        self.handle(bt.CancelAsked(id))

        def saved() -> None:
            if self._book.standing(id) is None and id in self._open:
                one.over.append(told)
            else:
                told()

        self._when_saved(one, saved)

    # ------------------------------------------------------------------ the book

    def handle(self, event: bt.Event) -> None:
        """Give the book an event and carry out what it wants, before anything else happens."""
        self._events.append(event)
        if self._handling:
            return
        self._handling = True
        while self._events:
            one = self._events.popleft()
            effects = self._book.handle(one, now_s=self._process.now_s)
            self._process.trace.event(self._process.name, one, effects)
            for effect in effects:
                self._apply(effect)
        self._handling = False
        due_s = self._book.wakeup_s
        if due_s is not None and due_s < self._wake_s:
            self._wake_s = due_s
            self._process.at(max(due_s, self._process.now_s), self._wake, due_s)

    def _wake(self, due_s: float) -> None:
        if due_s == self._wake_s:
            self._wake_s = inf
            self.handle(bt.Woken())

    def _apply(self, effect: bt.Effect) -> None:
        match effect:
            case bt.Validate(id):
                self._process.after(self._gateway.rng.uniform(*_VALIDATING_S), self._accept, id)
            case bt.Release(id, line, restored):
                self._release(id, line, restored=restored)
            case bt.Drop(id, line):
                self._drop(id, line)
            case bt.Changed(id, status, unrun):
                one = self._open[id]
                one.stored = replace(one.stored, status=status, unrun=unrun)
                self._tell_soon(id)
                self._save(one)
            case bt.Write(id, unrun):
                one = self._open[id]
                self._when_saved(one, lambda: self._write(id, unrun))
            case bt.Close():
                self._when_saved(self._open[effect.batch], lambda: self._close(effect))
            case bt.StopValidating():
                pass

    def _accept(self, id: BatchId) -> None:
        one = self._open.get(id)
        if one is None or one.stored.status is not BatchStatus.VALIDATING:
            return
        ask = one.stored.ask
        one.stored = replace(one.stored, accepted=True)
        self.handle(bt.Accepted(id, ask.model_names, ask.model_of))

    # ------------------------------------------------------------------ lines

    def _release(self, id: BatchId, line: int, *, restored: bool) -> None:
        self._out[id, line] = None
        self._tell_soon(id)
        if restored:
            # Before any agent comes that may still run it.
            self._enter(id, line, restored=True)
        else:
            self._process.after(_READING_S, self._read, id, line)

    def _read(self, id: BatchId, line: int) -> None:
        if (id, line) in self._out and self._out[id, line] is None:
            self._enter(id, line, restored=False)

    def _enter(self, id: BatchId, number: int, *, restored: bool) -> None:
        tries = self._tries.get((id, number), 0)
        line = Line(self, id, number, tries)
        self._out[id, number] = line
        self._gateway.enter_line(line, self._open[id].stored, restored=restored)

    def _drop(self, id: BatchId, number: int) -> None:
        line = self._out[id, number]
        if line is None:
            self._give_back(id, number, _REST_S_MIN)
            return
        line.dropped = True
        self._gateway.handle(lg.CancelAsked(line.request_id))

    def line_ended(
        self, line: Line, record: lg.EndRecord, answer: Text, done: Callable[[], None]
    ) -> None:
        """How a request ended that was a line; `done` once nothing is to be done about that any more."""
        finished = record.phase is Phase.FINISHED
        if not finished and (line.dropped or record.reason == ShedReason.TTL_EXPIRED.value):
            self._give_back(line.batch, line.number, _REST_S_MIN)
            done()
        elif record.phase is Phase.SHED and record.reason in _COME_BACK:
            key = (line.batch, line.number)
            self._tries[key] = self._tries.get(key, 0) + 1
            rest_s = min(max(_REST_S_MIN, record.retry_after_s), _REST_S_MAX)
            self._give_back(line.batch, line.number, rest_s)
            done()
        else:
            result = StoredLine(
                batch=line.batch,
                line=line.number,
                request=line.request_id,
                answer=answer if finished else None,
            )

            def stored() -> None:
                del self._out[line.batch, line.number]
                self.handle(bt.LineEnded(line.batch, line.number, failed=not finished))
                done()

            self._insist(result, stored)

    def _give_back(self, id: BatchId, number: int, rest_s: float) -> None:
        del self._out[id, number]
        self.handle(bt.LineReturned(id, number, rest_s))
        self._tell_soon(id)

    # ------------------------------------------------------------------ storing

    def _insist(self, what: Stored, then: Callable[[], None]) -> None:
        """Store something, however long it takes."""

        def settled(kept: str | None) -> None:
            if kept is None:
                self._process.after(_STORE_RETRY_S, self._insist, what, then)
            else:
                then()

        self._store.write(what, settled)

    def _save(self, one: _Open) -> None:
        one.dirty = True
        if not one.saving:
            one.saving = True
            self._save_all(one)

    def _save_all(self, one: _Open) -> None:
        if one.dirty:
            one.dirty = False
            one.stored = replace(one.stored, released=self._begun(one.stored.id))
            self._insist(one.stored, lambda: self._save_all(one))
            return
        one.saving = False
        waiting, one.saved = one.saved, []
        for action in waiting:
            action()

    def _when_saved(self, one: _Open, action: Callable[[], None]) -> None:
        if one.saving:
            one.saved.append(action)
        else:
            action()

    def _begun(self, id: BatchId) -> tuple[int, ...]:
        return tuple(part.begun for part in self._book.waiting(id))

    def _note_released(self) -> None:
        self._process.after(_NOTE_S, self._note_released)
        for id, one in self._open.items():
            begun = self._begun(id)
            if begun and begun != one.stored.released:
                self._save(one)

    def _write(self, id: BatchId, unrun: bt.Unrun | None) -> None:
        """Write the files, from what is stored alone."""
        lines = self._store.lines.get(id, {})
        output, errors = [], []
        for line in range(self._open[id].stored.ask.lines):
            result = lines.get(line)
            if result is not None and result.answer is not None:
                output.append(line)
            elif result is not None or unrun is not None:
                errors.append(line)
        files = StoredFiles(batch=id, output=tuple(output), errors=tuple(errors))
        self._insist(files, lambda: self.handle(bt.Written(id)))

    def _close(self, close: bt.Close) -> None:
        one = self._open[close.batch]
        ended = replace(
            one.stored,
            status=close.status,
            completed=close.completed,
            failed=close.failed,
            released=(),
        )

        def stored() -> None:
            del self._open[close.batch]
            self._tell_left(close.batch)
            for action in one.over:
                action()

        self._insist(ended, stored)

    # ------------------------------------------------------------------ what the solver hears

    def announce(self) -> None:
        """A solver has come, which knows nothing yet."""
        self._told.clear()
        for id in self._open:
            self._tell_left(id)

    def _tell_soon(self, id: BatchId) -> None:
        if id not in self._telling:
            self._telling[id] = None
            self._process.after(_TELL_S, self._tell_left, id)

    def _tell_left(self, id: BatchId) -> None:
        self._telling.pop(id, None)
        stored = self._open[id].stored if id in self._open else self._store.batches[id]
        ask = stored.ask
        lines = tuple(part.lines for part in self._book.waiting(id))
        lines = lines or (0,) * len(ask.model_names)
        told = self._told.get(id, (0,) * len(lines))
        self._told[id] = lines
        for model, count, before in zip(ask.model_names, lines, told, strict=True):
            if count or before:
                self._gateway.tell_solver(
                    BulkWaiting(
                        batch=id,
                        model=ModelName(model),
                        slo_class=ask.slo_class,
                        slo=Slo(ttft_s=ask.window_s, e2e_s=ask.window_s),
                        lines=count,
                        prompt_tokens_mean=float(ask.prompt_tokens),
                        max_output_tokens=ask.max_output_tokens,
                        arrival_s=stored.due_at - ask.window_s,
                        tenant="",
                    )
                )
