"""Makes lines requests: reads them from the input file, has them admitted, and gives them to the ledger's driver.

A line that ends is told to its batch once its result is stored. What could not be run, because there was no room or it was
dropped, is given back without a record.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from msgspec.structs import replace

import failpoints
from gateway.batches import drafting, results
from gateway.batches.drafting import Drafter
from gateway.batches.opened import OpenBatch
from gateway.batches.results import UnreadableLineError
from gateway.batches.rows import Result
from gateway.batches.stored import line_id
from gateway.driver import Driver
from gateway.intake import Draft
from gateway.problems import Problem, problem_of
from gateway.store import StoredEnd, StoredRequest
from qlm_core import batches as bt
from qlm_core import ledger as lg
from qlm_core.batches import Usage
from qlm_core.errors import QlmError, QueueFull, ShedLate, Unavailable, UnknownModel
from qlm_core.model import BatchId, Phase, RequestId, Slo
from qlm_core.outcome import ShedReason

log = logging.getLogger(__name__)

# Lines are read so many at a time, up to so many bytes, and so many become requests before others get their turn.
_READ_LINES, _READ_BYTES, _TURN_LINES = 64, 1_048_576, 8
# How long a line rests for which there was no room, at least and at most, and one that could not be read or whose model is gone.
_REST_S_MIN, _REST_S_MAX = 1.0, 30.0
_GONE_REST_S = 5.0
# A line that was shed for one of these may be in time later.
_COME_BACK = (ShedReason.SATURATED.value, ShedReason.NO_ENDPOINTS.value, ShedReason.LATE.value)

Keep = Callable[[OpenBatch, Result, Usage], Awaitable[None]]
Handle = Callable[[bt.Event], None]


@dataclass(slots=True, eq=False)
class _Asked:
    """A line that is to become a request.

    Attributes:
        dropped: nobody wants that any more.
        refused: it becomes none, and its result is being stored.
    """

    batch: OpenBatch
    line: int
    restored: bool
    dropped: bool = False
    refused: bool = False


class Releaser:
    """The lines of all batches of one gateway that are requests, or about to be.

    Args:
        keep: stores a result, however long that takes.
        handle: tells the book.
        released: is told of a batch some of whose lines became requests, or are none any more.
        spawn: runs something beside everything else.
        bytes_max: so many bytes of lines are held at a time; one line always is.
    """

    def __init__(
        self,
        driver: Driver,
        drafter: Drafter,
        *,
        keep: Keep,
        handle: Handle,
        released: Callable[[OpenBatch], None],
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        bytes_max: int,
    ) -> None:
        self._driver = driver
        self._drafter = drafter
        self._keep = keep
        self._handle = handle
        self._released = released
        self._spawn = spawn
        self._bytes_max = bytes_max
        self._asked: deque[_Asked] = deque()
        self._out: dict[tuple[BatchId, int], _Asked | Line] = {}
        self._tries: dict[tuple[BatchId, int], int] = {}
        self._held_bytes = 0
        self._moved, self._idle = asyncio.Event(), asyncio.Event()

    @property
    def held_bytes(self) -> int:
        """Bytes of lines that are requests, and of answers that are being stored."""
        return self._held_bytes

    async def caught_up(self) -> None:
        """Wait until nothing that can become a request is still to become one."""
        await self._idle.wait()

    def release(self, batch: OpenBatch, line: int, *, restored: bool) -> None:
        """Make a line a request, as soon as may be."""
        asked = self._out[batch.stored.id, line] = _Asked(batch, line, restored)
        batch.count(line, -1)
        self._asked.append(asked)
        self._idle.clear()
        self._moved.set()

    def drop(self, batch: OpenBatch, line: int) -> None:
        """End a line, wherever it stands."""
        out = self._out.get((batch.stored.id, line))
        if isinstance(out, Line):
            out.dropped = True
            self._driver.handle(lg.CancelAsked(out.request.id))
        elif out is not None and not out.refused:
            out.dropped = True
            self._give_back(batch, line)

    def forget(self, batch: BatchId) -> None:
        """A batch is over."""
        for key in [key for key in self._tries if key[0] == batch]:
            del self._tries[key]

    async def run(self) -> None:
        """Work for ever."""
        while True:
            chunk = self._next()
            if not chunk:
                self._moved.clear()
                self._idle.set()
                await self._moved.wait()
                continue
            await self._enter_all(chunk)

    # ---------------------------------------------------------------- what lines say

    async def keep_end(self, line: Line, end: StoredEnd) -> StoredEnd:
        """Store how a request ended that was a line, unless it is to be run again or never."""
        # While the store takes nothing, what waits for it counts; no more lines are made requests than there is room for.
        self._held_bytes += len(end.answer)
        try:
            await self._ended(line, end)
        finally:
            self._held_bytes -= line.size + len(end.answer)
            self._moved.set()
        return end

    async def _ended(self, line: Line, end: StoredEnd) -> None:
        record = end.record
        finished = record.phase is Phase.FINISHED
        late = record.phase is Phase.SHED
        if not finished and (line.dropped or record.reason == ShedReason.TTL_EXPIRED.value):
            self._give_back(line.batch, line.number)
        elif late and record.reason in _COME_BACK:
            self._try_again(line.batch, line.number, record.retry_after_s)
        elif finished:
            data = results.answered(
                line.batch.stored.id,
                line.number,
                line.custom_id,
                end.id,
                drafting.answer_of(line.request, end),
            )
            await self._keep_result(line.batch, line.number, data, results.usage_of(end.answer))
        else:
            problem = drafting.problem_of(line.request, record)
            assert problem is not None, "only what finished has no problem"
            data = results.refused(
                line.batch.stored.id, line.number, line.custom_id, end.id, problem
            )
            await self._keep_result(line.batch, line.number, data, None)

    def taken(self, line: Line) -> None:
        """An agent holds a line."""
        self._handle(bt.LineTaken(line.batch.stored.id, line.number))

    # ---------------------------------------------------------------- from the file to the ledger

    def _next(self) -> list[_Asked]:
        """What is read next, lines of one batch; nothing while there is no room."""
        while self._asked and self._asked[0].dropped:
            self._asked.popleft()
        room = min(self._bytes_max - self._held_bytes, _READ_BYTES)
        chunk: list[_Asked] = []
        for asked in islice(self._asked, _READ_LINES):
            size = asked.batch.index.sizes[asked.line]
            fits = size <= room or not (chunk or self._held_bytes)
            if asked.batch is not self._asked[0].batch or not fits:
                break
            room -= size
            chunk.append(asked)
        for _ in chunk:
            self._asked.popleft()
        return chunk

    async def _enter_all(self, chunk: list[_Asked]) -> None:
        batch = chunk[0].batch
        index = batch.index
        places = [(index.offsets[one.line], index.sizes[one.line]) for one in chunk]
        try:
            lines = await asyncio.to_thread(_read, batch.input, places)
        except OSError as error:
            said = {"batch": batch.stored.id, "error": error.strerror}
            log.error("cannot read lines of a batch; trying again", extra=said)
            for asked in chunk:
                if not asked.dropped:
                    self._try_again(batch, asked.line, _GONE_REST_S)
            return
        failpoints.at("gateway.batches.lines_read")
        for place, (asked, data) in enumerate(zip(chunk, lines, strict=True), 1):
            if not asked.dropped:
                await self._enter(asked, data)
            if not place % _TURN_LINES:
                await asyncio.sleep(0)
        self._released(batch)

    async def _enter(self, asked: _Asked, data: bytes) -> None:
        id = self._request_id(asked.batch.stored.id, asked.line)
        try:
            line = results.read(data)
        except UnreadableLineError as error:
            self._refuse(asked, id, results.name_of(data), problem_of(error))
            return
        drafted: Draft | QlmError
        try:
            drafted = await self._drafter.draft(asked.batch, line)
        except QlmError as error:
            drafted = error
        if asked.dropped:  # meanwhile
            return
        if isinstance(drafted, Draft) and not asked.restored:
            try:
                self._driver.admit(drafted, None)
            except QlmError as error:
                drafted = error
        if isinstance(drafted, Draft):
            self._enter_draft(asked, id, line.custom_id, drafted)
        else:
            self._turn_away(asked, id, line.custom_id, drafted)

    def _turn_away(self, asked: _Asked, id: RequestId, custom_id: str, error: QlmError) -> None:
        """A line becomes no request, at least for now."""
        match error:
            case UnknownModel():
                # Agents announced it when the batch was accepted; they may come back.
                self._try_again(asked.batch, asked.line, _GONE_REST_S)
            case QueueFull() | ShedLate():
                self._try_again(asked.batch, asked.line, error.retry_after_s)
            case Unavailable():
                self._try_again(asked.batch, asked.line, _REST_S_MIN)
            case _:
                self._refuse(asked, id, custom_id, problem_of(error))

    def _enter_draft(self, asked: _Asked, id: RequestId, custom_id: str, draft: Draft) -> None:
        batch, stored = asked.batch, asked.batch.stored
        # All lines of a batch arrived with it and are due with it: they are planned as one.
        request = replace(
            draft.accepted(stored.arrived_at),
            id=id,
            slo=Slo(ttft_s=stored.window_s, e2e_s=stored.window_s),
            expires_at=stored.due_at,
            batch=stored.id,
        )
        # One that goes on from a conversation is as large as that.
        size = max(batch.index.sizes[asked.line], request.held_bytes)
        line = Line(self, batch, asked.line, request=request, custom_id=custom_id, size=size)
        self._out[stored.id, asked.line] = line
        self._held_bytes += size
        self._driver.enter_line(request, draft.resume, line, restored=asked.restored)

    # ---------------------------------------------------------------- back to the book

    def _refuse(self, asked: _Asked, id: RequestId, custom_id: str, problem: Problem) -> None:
        """A line becomes no request, and its result says why."""
        asked.refused = True
        data = results.refused(asked.batch.stored.id, asked.line, custom_id, id, problem)
        self._spawn(self._keep_result(asked.batch, asked.line, data, None))

    async def _keep_result(
        self, batch: OpenBatch, line: int, data: bytes, usage: Usage | None
    ) -> None:
        """Store a result and tell the book; one without usage failed."""
        failed, used = usage is None, usage or Usage()
        failpoints.at("gateway.batches.line_ended")
        await self._keep(batch, Result(line, failed, data), used)
        failpoints.at("gateway.batches.line_stored")
        del self._out[batch.stored.id, line]
        self._handle(bt.LineEnded(batch.stored.id, line, failed, used))

    def _try_again(self, batch: OpenBatch, line: int, rest_s: float) -> None:
        """Give a line back that may be run later."""
        key = (batch.stored.id, line)
        self._tries[key] = self._tries.get(key, 0) + 1
        self._give_back(batch, line, min(max(_REST_S_MIN, rest_s), _REST_S_MAX))

    def _give_back(self, batch: OpenBatch, line: int, rest_s: float = _REST_S_MIN) -> None:
        del self._out[batch.stored.id, line]
        batch.count(line, 1)
        self._handle(bt.LineReturned(batch.stored.id, line, rest_s))
        self._released(batch)

    def _request_id(self, batch: BatchId, line: int) -> RequestId:
        """The ledger takes an id once, so a line that is tried again gets another one."""
        tries = self._tries.get((batch, line), 0)
        return RequestId(f"{line_id(batch, line)}_{tries}" if tries else line_id(batch, line))


class Line:
    """A line that is a request.

    Attributes:
        request: that it is.
        size: bytes that it takes in memory.
        dropped: whether its batch does not want its answer any more.
    """

    __slots__ = ("_releaser", "batch", "custom_id", "dropped", "number", "request", "size")

    def __init__(
        self,
        releaser: Releaser,
        batch: OpenBatch,
        number: int,
        *,
        request: StoredRequest,
        custom_id: str,
        size: int,
    ) -> None:
        self._releaser = releaser
        self.batch = batch
        self.number = number
        self.request = request
        self.custom_id = custom_id
        self.size = size
        self.dropped = False

    def taken(self) -> None:
        """As `Origin.taken`."""
        self._releaser.taken(self)

    async def keep_end(self, end: StoredEnd) -> StoredEnd:
        """As `Origin.keep_end`."""
        return await self._releaser.keep_end(self, end)


def _read(path: Path, places: list[tuple[int, int]]) -> list[bytes]:
    """Lines of a file by offset and size. Blocks; raises OSError."""
    with path.open("rb", buffering=0) as file:
        lines = []
        for offset, size in places:
            file.seek(offset)
            lines.append(file.read(size))
        return lines
