"""The book of all batches of one gateway that are not over, and its rules.

A batch is validated as a whole before any of its lines is released. Then, of each model, so many lines are out as wait for an
engine at a time; whenever one is taken by an agent the next is released. Tenants share that room: whoever has the fewest lines
of the model waiting for an engine goes next, with the batch that is due first. Of a batch lines go in the order of its file.
A line that comes back without having run lets the others of its batch and model rest as well, or all of them would be tried in
vain, one after the other.

Nothing is written before no line is out, so a line has its record or none, and is written once. When the window is over, or on
cancel, nothing more is released and what is out is dropped; lines that end all the same count.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from qlm_core.batches import events as ev
from qlm_core.batches.batch import Batch, LineState, Part
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
from qlm_core.batches.states import BatchStatus, Step, Unrun, Usage
from qlm_core.model import BatchId, ModelName


class Waiting(NamedTuple):
    """Lines of a batch and a model that are no requests yet; `begun` is how many, from the first on, ever were."""

    model: ModelName
    lines: int
    begun: int


class Standing(NamedTuple):
    """Where a batch stands. `total` is 0 before its lines are known, `open` counts those that are requests."""

    status: BatchStatus
    total: int
    completed: int
    failed: int
    open: int
    usage: Usage
    unrun: Unrun | None


class Book:
    """The batches of one gateway.

    Args:
        waiting_lines_max: of one model so many released lines may wait for an engine at a time.
    """

    def __init__(self, *, waiting_lines_max: int) -> None:
        self._waiting_lines_max = max(1, waiting_lines_max)
        self._batches: dict[BatchId, Batch] = {}
        self._numbers = 0
        self._now_s = float("-inf")
        # Of each model: batches with lines to release by tenant, the one that goes first at the front.
        self._queues: dict[ModelName, dict[str, list[Batch]]] = {}
        # Of each model and tenant: lines that wait for an engine.
        self._released: dict[ModelName, dict[str, int]] = {}
        self._handlers: dict[type, Callable[[Any], list[Effect]]] = {
            ev.Opened: self._opened,
            ev.Accepted: self._accepted,
            ev.Refused: self._refused,
            ev.LineTaken: self._line_taken,
            ev.LineEnded: self._line_ended,
            ev.LineReturned: self._line_returned,
            ev.CancelAsked: self._cancel_asked,
            ev.Written: self._written,
            ev.Restored: self._restored,
            ev.Woken: self._woken,
        }

    # ---------------------------------------------------------------- what a driver needs

    def handle(self, event: ev.Event, *, now_s: float) -> list[Effect]:
        """Take one event to completion and say what to do, in order. Time never goes back."""
        assert now_s >= self._now_s, f"time went back from {self._now_s} to {now_s}"
        self._now_s = now_s
        return self._handlers[type(event)](event)

    @property
    def wakeup_s(self) -> float | None:
        """When to send `Woken`, if ever."""
        due = [
            batch.due_s
            for batch in self._batches.values()
            if batch.status is BatchStatus.IN_PROGRESS
        ]
        due += [
            part.rest_until_s
            for batch in self._batches.values()
            for part in batch.parts
            if part.rest_until_s > self._now_s and part.waiting
        ]
        return min(due, default=None)

    def standing(self, id: BatchId) -> Standing | None:
        """Where a batch stands; None once it is over."""
        batch = self._batches.get(id)
        if batch is None:
            return None
        return Standing(
            status=batch.status,
            total=batch.total,
            completed=batch.completed,
            failed=batch.failed,
            open=batch.open,
            usage=batch.usage,
            unrun=batch.unrun,
        )

    def waiting(self, id: BatchId) -> tuple[Waiting, ...]:
        """What of a batch is still to be released, by model; empty once nothing can be."""
        batch = self._batches.get(id)
        if batch is None:
            return ()
        return tuple(Waiting(part.model, part.waiting, part.begun) for part in batch.parts)

    def __iter__(self) -> Iterator[BatchId]:
        return iter(tuple(self._batches))

    def __len__(self) -> int:
        return len(self._batches)

    # ---------------------------------------------------------------- a batch

    def _opened(self, event: ev.Opened) -> list[Effect]:
        self._enter(event.batch, event.tenant, event.due_s)
        return [Validate(event.batch)]

    def _accepted(self, event: ev.Accepted) -> list[Effect]:
        batch = self._batches.get(event.batch)
        if batch is None or not batch.move(Step.ACCEPT):
            return []
        batch.fill(event.models, event.model_of)
        self._queue(batch)
        changed: list[Effect] = [_changed(batch)]
        if batch.due_s <= self._now_s:
            return changed + self._stop(batch, Step.EXPIRE, Unrun.EXPIRED)
        return changed + self._fill()

    def _refused(self, event: ev.Refused) -> list[Effect]:
        batch = self._batches.get(event.batch)
        if batch is None or not batch.move(Step.REFUSE):
            return []
        return [self._close(batch)]

    def _cancel_asked(self, event: ev.CancelAsked) -> list[Effect]:
        batch = self._batches.get(event.batch)
        if batch is None:
            return []
        if batch.status is not BatchStatus.VALIDATING:
            return self._stop(batch, Step.CANCEL, Unrun.CANCELLED)
        batch.move(Step.CANCEL)
        changed = _changed(batch)
        batch.move(Step.FINISH)
        # Nobody knows how many lines there are, and none was run: nothing is written.
        return [changed, StopValidating(batch.id), self._close(batch)]

    def _written(self, event: ev.Written) -> list[Effect]:
        batch = self._batches.get(event.batch)
        if batch is None or not batch.writing or not batch.move(Step.FINISH):
            return []
        batch.failed = batch.total - batch.completed
        return [self._close(batch)]

    def _woken(self, event: ev.Woken) -> list[Effect]:  # noqa: ARG002
        effects: list[Effect] = []
        for batch in list(self._batches.values()):
            if batch.status is BatchStatus.IN_PROGRESS and batch.due_s <= self._now_s:
                effects += self._stop(batch, Step.EXPIRE, Unrun.EXPIRED)
        return effects + self._fill()

    # ---------------------------------------------------------------- a line

    def _line_taken(self, event: ev.LineTaken) -> list[Effect]:
        batch = self._batches.get(event.batch)
        if batch is None or batch.state(event.line) != LineState.RELEASED:
            return []
        self._count(batch, event.line, -1)
        batch.taken(event.line)
        return self._fill(batch.part_of(event.line).model)

    def _line_ended(self, event: ev.LineEnded) -> list[Effect]:
        batch = self._leave(event.batch, event.line)
        if batch is None:
            return []
        batch.end(event.line, failed=event.failed, usage=event.usage)
        return self._left(batch, event.line)

    def _line_returned(self, event: ev.LineReturned) -> list[Effect]:
        batch = self._leave(event.batch, event.line)
        if batch is None:
            return []
        if batch.status is BatchStatus.IN_PROGRESS:
            batch.part_of(event.line).put_back(event.line, self._now_s + event.rest_s)
            self._queue(batch)
        return self._left(batch, event.line)

    def _leave(self, id: BatchId, line: int) -> Batch | None:
        """The batch of an open line, which is open no longer; None if it is not open."""
        batch = self._batches.get(id)
        if batch is None or not batch.is_open(line):
            return None
        if batch.state(line) == LineState.RELEASED:
            self._count(batch, line, -1)
        batch.returned(line)
        return batch

    def _left(self, batch: Batch, line: int) -> list[Effect]:
        """What follows from a line that is not open any more."""
        return self._drained(batch) + self._fill(batch.part_of(line).model)

    def _drained(self, batch: Batch) -> list[Effect]:
        """What follows if no line is left to be run, or none is out of a batch that is stopped."""
        effects: list[Effect] = []
        if batch.ended == batch.total and batch.move(Step.DRAIN):
            effects.append(_changed(batch))
        return effects + self._write(batch)

    # ---------------------------------------------------------------- after a restart

    def _restored(self, event: ev.Restored) -> list[Effect]:
        effects: list[Effect] = []
        for stored in event.batches:
            effects += self._restore(stored)
        return [*effects, *self._woken(ev.Woken())]

    def _restore(self, stored: ev.RestoredBatch) -> list[Effect]:
        batch = self._enter(stored.batch, stored.tenant, stored.due_s)
        batch.status, batch.unrun = stored.status, stored.unrun
        if stored.status is BatchStatus.VALIDATING:
            return [Validate(batch.id)]
        if not stored.models:
            # It was cancelled before it was accepted.
            batch.move(Step.FINISH)
            return [self._close(batch)]
        batch.fill(stored.models, stored.model_of)
        for line, failed in stored.ended:
            batch.end(line, failed=failed)
        batch.usage = stored.usage
        if stored.status is BatchStatus.IN_PROGRESS:
            return self._take_up(batch, stored)
        batch.stop(stored.unrun)
        return self._write(batch)

    def _take_up(self, batch: Batch, stored: ev.RestoredBatch) -> list[Effect]:
        effects: list[Effect] = []
        released = stored.released or (0,) * len(batch.parts)
        for part, begun in zip(batch.parts, released, strict=True):
            lines = part.taken_up(begun, batch.has_record)
            effects += [self._release(batch, line, restored=True) for line in lines]
        self._queue(batch)
        return effects + self._drained(batch)

    # ---------------------------------------------------------------- shared steps

    def _enter(self, id: BatchId, tenant: str, due_s: float) -> Batch:
        self._numbers += 1
        batch = Batch(id, tenant=tenant, due_s=due_s, number=self._numbers)
        self._batches[id] = batch
        return batch

    def _stop(self, batch: Batch, step: Step, unrun: Unrun) -> list[Effect]:
        """Release nothing more of a batch and drop what is out, if the step is possible."""
        finalizing = batch.status is BatchStatus.FINALIZING
        if not batch.move(step):
            return []
        if finalizing:
            # Nothing waits, what is out was dropped, and what is being written is right whoever asked for it.
            return [_changed(batch)]
        out = batch.stop(unrun)
        self._unqueue(batch)
        return [_changed(batch), *(Drop(batch.id, line) for line in out), *self._write(batch)]

    def _write(self, batch: Batch) -> list[Effect]:
        """Have the files written as soon as nothing is out."""
        over = batch.status in (BatchStatus.FINALIZING, BatchStatus.CANCELLING)
        if not over or batch.open or batch.writing:
            return []
        batch.writing = True
        return [Write(batch.id, batch.unrun)]

    def _close(self, batch: Batch) -> Close:
        del self._batches[batch.id]
        return Close(batch.id, batch.status, batch.completed, batch.failed, batch.usage)

    def _count(self, batch: Batch, line: int, more: int) -> None:
        """So many lines more of this one's model and tenant wait for an engine."""
        of_model = self._released.setdefault(batch.part_of(line).model, {})
        of_model[batch.tenant] = of_model.get(batch.tenant, 0) + more
        if not of_model[batch.tenant]:
            del of_model[batch.tenant]

    def _release(self, batch: Batch, line: int, *, restored: bool = False) -> Release:
        batch.release(line)
        self._count(batch, line, 1)
        return Release(batch.id, line, restored)

    # ---------------------------------------------------------------- what is released next

    def _queue(self, batch: Batch) -> None:
        """Let a batch take its turn wherever it has lines to release."""
        for part in batch.parts:
            if part.waiting:
                of_tenant = self._queues.setdefault(part.model, {}).setdefault(batch.tenant, [])
                if batch not in of_tenant:
                    bisect.insort(of_tenant, batch, key=lambda one: one.order)

    def _unqueue(self, batch: Batch) -> None:
        for part in batch.parts:
            self._leave_queue(batch, part.model)

    def _leave_queue(self, batch: Batch, model: ModelName) -> None:
        of_model = self._queues.get(model, {})
        of_tenant = of_model.get(batch.tenant, [])
        if batch in of_tenant:
            of_tenant.remove(batch)
            if not of_tenant:
                del of_model[batch.tenant]
            if not of_model:
                del self._queues[model]

    def _fill(self, model: ModelName | None = None) -> list[Effect]:
        """Release lines wherever there is room, or of one model alone."""
        effects: list[Effect] = []
        for name in list(self._queues) if model is None else [model]:
            room = self._waiting_lines_max - sum(self._released.get(name, {}).values())
            while room > 0:
                found = self._next(name)
                if found is None:
                    break
                batch, part = found
                effects.append(self._release(batch, part.take()))
                room -= 1
                if not part.waiting:
                    self._leave_queue(batch, name)
        return effects

    def _next(self, model: ModelName) -> tuple[Batch, Part] | None:
        """Whose line of a model goes next: of the tenant with the fewest waiting, the batch that is due first."""
        released = self._released.get(model, {})
        best: tuple[tuple[int, float, int], Batch, Part] | None = None
        for tenant, batches in self._queues.get(model, {}).items():
            for batch in batches:
                part = next(part for part in batch.parts if part.model == model)
                if part.ready(self._now_s):
                    rank = (released.get(tenant, 0), *batch.order)
                    if best is None or rank < best[0]:
                        best = rank, batch, part
                    break
        return None if best is None else best[1:]


def _changed(batch: Batch) -> Changed:
    return Changed(batch.id, batch.status, batch.unrun)
