"""The book's driver: tells it what happens to batches and carries out what it wants.

A batch is stored before its client hears of it, and ends once that is stored; each change in between is stored as soon as may be.
Everything that is decided again after a crash is the same then: lines have the places of their file, a place has one result,
files have ids that were noted before they were written. So a batch goes on from wherever its gateway died.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

from msgspec.structs import replace

import failpoints
from gateway.batches import restoring, rows
from gateway.batches.bulk import Bulk
from gateway.batches.drafting import Drafter
from gateway.batches.enqueued import too_much
from gateway.batches.index import Fault, Index, Scan
from gateway.batches.opened import OpenBatch
from gateway.batches.releasing import Releaser
from gateway.batches.rows import Numbered, Result
from gateway.batches.scan import Limits
from gateway.batches.stored import Forecast, Moment, StoredBatch, Totals
from gateway.batches.validating import Validator
from gateway.batches.writing import Writer
from gateway.driver import Driver
from gateway.files import FileStore
from gateway.files.checks import LINE_REST_BYTES
from gateway.intake import Intake
from gateway.keys import ApiKeys
from gateway.metrics import Gauge, Metrics
from gateway.responses.drafting import ResponseIntake
from gateway.solver_link import SolverLink
from gateway.store import Database, Store, StoreError
from gateway.webhooks.driver import Webhooks
from qlm_core import batches as bt
from qlm_core.batches import BatchStatus, Standing, Usage
from qlm_core.config import Config, ModelConfig
from qlm_core.errors import QlmError, kind_and_place
from qlm_core.messages import BulkEstimate
from qlm_core.model import BatchId, ModelName

log = logging.getLogger(__name__)

# Where lines are read from and files are written, among the files.
FOLDER = "batches"
RETRY_S = 1.0
# Files are written anew from their beginning, so that is tried less often each time, up to this.
WRITE_RETRY_S_MAX = 30.0
# How often it is noted how many lines were released, for agents that still run some of them after a crash.
_NOTE_S = 1.0
_SWEEP_PERIOD_S = 60.0
# How long a start waits at most for lines that may still run to be requests again.
_TAKEN_UP_S = 2.0

Outcome = TypeVar("Outcome")


class Batches:
    """The batches of one gateway that are not over. `open` comes after its files' and its driver's, `close` before theirs.

    Args:
        time_s: the store's time.
    """

    def __init__(
        self,
        config: Config,
        *,
        store: Store,
        files: FileStore,
        driver: Driver,
        intake: Intake,
        responses: ResponseIntake,
        keys: ApiKeys,
        solver: SolverLink,
        metrics: Metrics,
        webhooks: Webhooks,
        time_s: Callable[[], float],
    ) -> None:
        self.config = config
        self.files = files
        self.keys = keys
        self.time_s = time_s
        self._limits = config.gateway.batches
        self._store = store
        self._intake = intake
        self._metrics = metrics
        self._webhooks = webhooks
        self._loop = asyncio.get_running_loop()
        self._book = bt.Book(waiting_lines_max=self._limits.waiting_lines_max)
        self._open: dict[BatchId, OpenBatch] = {}
        self._events: deque[bt.Event] = deque()
        self._handling = self._failing = self._closed = False
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self._solver = solver
        self._bulk = Bulk(solver.tell, self._book.waiting, time_s)
        limits = Limits(
            lines_max=self._limits.lines_max,
            inputs_max=self._limits.embedding_inputs_max,
            line_bytes_max=config.gateway.limits.body_bytes_max + LINE_REST_BYTES,
            faults_max=self._limits.faults_max,
        )
        self._validator = Validator(limits, lambda: solver.connected and bool(solver.models()))
        self._releaser = Releaser(
            driver,
            Drafter(intake, responses),
            keep=self._keep,
            handle=self.handle,
            released=self._bulk.changed,
            spawn=self._spawn,
            bytes_max=self._limits.open_bytes_max,
        )
        self._releasing: asyncio.Task[None] | None = None
        self._appliers: dict[type, Callable[[Any], object]] = {
            bt.Validate: lambda effect: self._begin_validating(self._open[effect.batch]),
            bt.StopValidating: lambda effect: self._stop_validating(self._open[effect.batch]),
            bt.Release: self._release,
            bt.Drop: lambda effect: self._releaser.drop(self._open[effect.batch], effect.line),
            bt.Write: lambda effect: self._spawn(
                self._write(self._open[effect.batch], effect.unrun)
            ),
            bt.Changed: self._changed,
            bt.Close: lambda effect: self._spawn(self._close(self._open[effect.batch], effect)),
        }

    # ---------------------------------------------------------------- life of the gateway

    async def open(self) -> None:
        """Take up what the store still holds. Raises QlmError."""
        self._database = self._store.database
        found = await restoring.read(self._database, self.config)
        try:
            self._folder = self.files.workspace(FOLDER)
            await asyncio.to_thread(restoring.tidy, self._folder, [one.stored.id for one in found])
        except OSError as error:
            raise QlmError(
                f"gateway.store.files: the folder {FOLDER} in it cannot be used: {error.strerror}. "
                "Give a folder that this user can write."
            ) from None
        self._writer = Writer(self._database, self.files, self._folder)
        for one in found:
            self._enter(one.number, one.stored)
            if one.index is not None:
                batch = self._open[one.stored.id]
                self._know(batch, one.index)
                for line, _ in one.records.lines:
                    batch.count(line, -1)
        self._releasing = self._spawn(self._releaser.run())
        for work in (self._bulk.run(), self._sweep(), self._note_released()):
            self._spawn(work)
        for number in await self._database.read(rows.uncleared):
            self._spawn(self._clear(number))
        if found:
            log.info("batches restored", extra={"batches": len(found)})
            self.handle(bt.Restored(tuple(one.event(self.due_s(one.stored)) for one in found)))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TAKEN_UP_S):
                    await self._releaser.caught_up()

    def stop_releasing(self) -> None:
        """Make no more lines requests: the gateway drains."""
        if self._releasing is not None:
            self._releasing.cancel()

    async def close(self) -> None:
        """Release everything. Batches wait in the store for the next start."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def gauges(self) -> Iterator[Gauge]:
        """What metrics read from here."""
        counts = {status.value: 0.0 for status in BatchStatus if not status.terminal}
        waiting = requests = 0
        for id in self._book:
            standing = self._book.standing(id)
            assert standing is not None, "the book has it"
            counts[standing.status.value] += 1
            requests += standing.open
            waiting += sum(part.lines for part in self._book.waiting(id))
        yield "qlm_batches_open", "Batches that are not over, by status.", ("status", counts)
        lines = {"waiting": float(waiting), "requests": float(requests)}
        yield (
            "qlm_batch_lines",
            "Lines of open batches without a result, by state.",
            ("state", lines),
        )

    # ---------------------------------------------------------------- what others ask

    @property
    def database(self) -> Database:
        """The tables of batches."""
        return self._database

    @property
    def folder(self) -> Path:
        """Where the inputs of batches that are not over lie."""
        return self._folder

    def __iter__(self) -> Iterator[OpenBatch]:
        return iter(tuple(self._open.values()))

    def get(self, id: BatchId) -> OpenBatch | None:
        """A batch that is not over."""
        return self._open.get(id)

    def standing(self, batch: OpenBatch) -> Standing | None:
        """What the book knows of a batch."""
        return self._book.standing(batch.stored.id)

    def due_s(self, stored: StoredBatch) -> float:
        """When the window of a batch is over, on the loop's clock."""
        return self._loop.time() + stored.due_at - self.time_s()

    def begin(self, numbered: Numbered) -> OpenBatch:
        """Take a batch that was just stored."""
        batch = self._enter(*numbered)
        self.handle(bt.Opened(batch.stored.id, batch.stored.owner, self.due_s(batch.stored)))
        return batch

    async def cancel(self, batch: OpenBatch) -> None:
        """Give a batch up; returns once that is stored, or the batch is over."""
        self.handle(bt.CancelAsked(batch.stored.id))
        while batch.saving is not None:
            await asyncio.shield(batch.saving)
        failpoints.at("gateway.batches.cancelling")
        if self._book.standing(batch.stored.id) is None:
            await batch.over.wait()

    async def foretold(self, batch: OpenBatch) -> None:
        """Wait until it is known when a batch will be done, but not for long, nor while there is no solver to say so."""
        if self._solver.connected:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._limits.finish_wait_s_max):
                    await batch.foretold.wait()

    async def read(self, path: Path, endpoint: str, *, file_id: str, owner: str) -> Scan:
        """What is in an input file that was uploaded under an id, or all that is wrong with it and its models."""
        served = partial(self._served, owner)
        return await self._validator.read(path, endpoint, file_id=file_id, served=served)

    def too_much(self, index: Index, models: Sequence[str], owner: str) -> tuple[Fault, ...]:
        """What is wrong with such lines beside those of the tenant's batches that are not over."""
        theirs = [batch for batch in self if batch.stored.owner == owner]
        return too_much(index, models, theirs, tokens_max=self._limits.tenant_tokens_max)

    def lengths(self, models: Sequence[str], owner: str) -> list[int]:
        """Tokens of the longest sequence of each of a tenant's models."""
        known, unknown = self._served(owner), ModelConfig().max_model_len
        return [known.get(model, unknown) for model in models]

    def announce(self) -> None:
        """A solver has come, which knows nothing yet."""
        self._bulk.announce(self._open.values())

    def estimated(self, said: BulkEstimate) -> None:
        """The solver says when a batch will be done."""
        batch = self._open.get(said.batch)
        if batch is not None:
            self._bulk.estimated(batch, said)

    # ---------------------------------------------------------------- the machine

    def handle(self, event: bt.Event) -> None:
        """Give the book an event and carry out what it wants, before anything else happens."""
        self._events.append(event)
        if self._handling or self._closed:
            return
        self._handling = True
        try:
            while self._events:
                now_s = self._loop.time()
                for effect in self._book.handle(self._events.popleft(), now_s=now_s):
                    self._appliers[type(effect)](effect)
        finally:
            self._handling = False
        if type(event) not in (bt.LineTaken, bt.LineEnded):
            self._arm()

    def _arm(self) -> None:
        """See to it that the book is woken in time; an early wake-up does no harm."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due_s = self._book.wakeup_s
        if due_s is not None:
            self._timer = self._loop.call_at(due_s, self.handle, bt.Woken())

    def _release(self, effect: bt.Release) -> None:
        batch = self._open[effect.batch]
        self._releaser.release(batch, effect.line, restored=effect.restored)

    def _changed(self, effect: bt.Changed) -> None:
        batch = self._open[effect.batch]
        stored = batch.stored
        if effect.status is not stored.status:
            stored = _moved(stored, effect.status)
        if effect.status not in (BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS):
            batch.foretold.set()
        if effect.status is BatchStatus.FINALIZING and effect.unrun is not None:
            failpoints.at("gateway.batches.expiring")
        batch.stored = replace(stored, unrun=effect.unrun)
        self._bulk.changed(batch)
        self._save(batch)

    # ---------------------------------------------------------------- storing

    async def _stored(self, work: Callable[..., Outcome]) -> Outcome:
        """The result of a change, once that is stored, however long it takes."""
        while True:
            try:
                outcome = await self._database.write(work)
            except StoreError as error:
                if not self._failing:
                    self._failing = True
                    log.error("the store takes nothing of batches", extra={"error": str(error)})
                await asyncio.sleep(RETRY_S)
            else:
                self._failing = False
                return outcome

    def _save(self, batch: OpenBatch) -> asyncio.Task[None]:
        """Store a batch as it is, soon; what changes meanwhile is stored after that."""
        batch.dirty = True
        if batch.saving is None:
            batch.saving = self._spawn(self._save_all(batch))
        return batch.saving

    async def _save_all(self, batch: OpenBatch) -> None:
        try:
            while batch.dirty:
                batch.dirty = False
                begun = tuple(part.begun for part in self._book.waiting(batch.stored.id))
                batch.stored = replace(batch.stored, released=begun)
                work = partial(rows.update, number=batch.number, batch=batch.stored, ended_at=None)
                await self._stored(work)
        finally:
            batch.saving = None

    async def _keep(self, batch: OpenBatch, result: Result, usage: Usage) -> None:
        work = partial(rows.end, number=batch.number, result=result, usage=usage)
        await self._stored(work)

    async def _note_released(self) -> None:
        """Store now and then how many lines were released."""
        while True:
            await asyncio.sleep(_NOTE_S)
            for batch in self:
                begun = tuple(part.begun for part in self._book.waiting(batch.stored.id))
                if begun and begun != batch.stored.released:
                    self._save(batch)

    # ---------------------------------------------------------------- validating

    def _begin_validating(self, batch: OpenBatch) -> None:
        batch.validating = self._spawn(self._validate(batch))

    def _stop_validating(self, batch: OpenBatch) -> None:
        if batch.validating is not None:
            batch.validating.cancel()

    async def _validate(self, batch: OpenBatch) -> None:
        id, stored = batch.stored.id, batch.stored
        scan = await self.read(
            batch.input, stored.endpoint, file_id=stored.input_file_id, owner=stored.owner
        )
        failpoints.at("gateway.batches.validated")
        if scan.faults:
            batch.stored = replace(batch.stored, faults=scan.faults)
            self.handle(bt.Refused(id))
            return
        await self._stored(partial(rows.keep_index, number=batch.number, lines=scan.index))
        failpoints.at("gateway.batches.indexed")
        models, index = (
            tuple(ModelName(model.name) for model in scan.models),
            Index.unpack(scan.index),
        )
        # From here on nothing else happens until the batch counts itself.
        if faults := self.too_much(index, models, batch.stored.owner):
            batch.stored = replace(batch.stored, faults=faults)
            self.handle(bt.Refused(id))
            return
        batch.stored = replace(batch.stored, models=models)
        self._know(batch, index)
        self.handle(bt.Accepted(id, models, batch.index.model_of))

    def _know(self, batch: OpenBatch, index: Index) -> None:
        batch.know(index, self.lengths(batch.stored.models, batch.stored.owner))

    # ---------------------------------------------------------------- the end

    async def _write(self, batch: OpenBatch, unrun: bt.Unrun | None) -> None:
        if not any(batch.stored.file_ids):
            ids = (self.files.new_id(), self.files.new_id())
            batch.stored = replace(batch.stored, file_ids=ids)
            self._save(batch)
        while batch.saving is not None:
            await asyncio.shield(batch.saving)
        pause_s = RETRY_S
        while True:
            try:
                await self._writer.write(batch, unrun)
                break
            except (QlmError, OSError) as error:
                said = {"batch": batch.stored.id, "error": str(error)}
                log.error("cannot write the files of a batch; trying again", extra=said)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, WRITE_RETRY_S_MAX)
        failpoints.at("gateway.batches.written")
        self.handle(bt.Written(batch.stored.id))

    async def _close(self, batch: OpenBatch, close: bt.Close) -> None:
        while batch.saving is not None:
            await asyncio.shield(batch.saving)
        totals = Totals.of(close.completed, close.failed, close.usage)
        ended = replace(_moved(batch.stored, close.status), totals=totals, released=())
        at = ended.moments[cast(Moment, ended.status.value)]
        told = self._webhooks.deliveries(f"batch.{ended.status.value}", ended.id, at)
        work = partial(rows.close, number=batch.number, batch=ended, at=self.time_s(), told=told)
        await self._stored(work)
        failpoints.at("gateway.batches.closed")
        self._webhooks.kept(told)
        batch.stored = ended
        del self._open[ended.id]
        batch.over.set()
        batch.foretold.set()
        self._bulk.ended(batch)
        self._releaser.forget(ended.id)
        self._metrics.batch_ended(ended.status.value)
        said = {"batch": ended.id, "status": ended.status.value, "lines": totals.total}
        log.info("batch ended", extra=said)
        parts = (batch.input, *self._writer.parts(batch))
        await asyncio.to_thread(restoring.remove, parts)
        await self._clear(batch.number)

    async def _clear(self, number: int) -> None:
        """Forget the lines of a batch that is over, some at a time."""
        more = True
        while more:
            more = await self._stored(partial(rows.clear, number=number))
            await asyncio.sleep(0.01)

    async def _sweep(self) -> None:
        """Forget batches that ended long ago, for ever."""
        while True:
            before = self.time_s() - self._limits.keep_ended_s
            swept = await self._stored(partial(rows.sweep, ended_before=before))
            await asyncio.sleep(0.1 if swept else _SWEEP_PERIOD_S)

    # ---------------------------------------------------------------- parts

    def _served(self, owner: str) -> Mapping[str, int]:
        return self._intake.models(self.keys.tenant(owner))

    def _enter(self, number: int, stored: StoredBatch) -> OpenBatch:
        batch = OpenBatch(number, stored, self._folder / f"{stored.id}.jsonl", Forecast())
        self._open[stored.id] = batch
        return batch

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = self._loop.create_task(work)
        self._tasks[task] = None
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(task, None)
        error = None if task.cancelled() else task.exception()
        if error is not None and isinstance(error, Exception):
            log.error("a task of batches failed", extra={"reason": kind_and_place(error)})


def _moved(stored: StoredBatch, status: BatchStatus) -> StoredBatch:
    """A batch that has come into another state."""
    moments = stored.moments | {cast(Moment, status.value): int(time.time())}
    return replace(stored, status=status, moments=moments)
