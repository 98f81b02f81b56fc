"""One request and its answer over HTTP: as one JSON object, or as server-sent events.

What happens to the request meanwhile is the driver's; here it is waited for, put into words and sent. A client that said
how long it waits is told at once when that is too short, by the solver's own estimate.
"""

from __future__ import annotations

import asyncio
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator

from gateway import headers as hd
from gateway import openai
from gateway.asgi import JSON, RawHeaders, Receive, Send, answer, hung_up
from gateway.desk import Desk
from gateway.live import Follower, Live, Output
from gateway.problems import Problem, problem_of, problem_of_end
from protos.wire import SECONDS_MAX
from qlm_core.errors import TooLate, Unavailable
from qlm_core.ledger import EndRecord
from qlm_core.model import Phase

SSE: RawHeaders = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
# A comment, which clients of server-sent events skip.
WAITING = b": waiting\n\n"
# Estimates that come more than this long after the request are ignored; by then it is better to let it wait.
JUDGED_S = 1.0


class Exchange(ABC):
    """One request and its answer over HTTP.

    Args:
        patience_s: how long the client waits for the next byte, where it said so and nothing else keeps it.
    """

    def __init__(
        self,
        desk: Desk,
        live: Live,
        headers: hd.Headers,
        send: Send,
        *,
        include_usage: bool,
        patience_s: float | None,
    ) -> None:
        self._desk = desk
        self._live = live
        self._headers = headers
        self._send = send
        self._include_usage = include_usage
        self._too_late: TooLate | None = None
        if patience_s is not None and not live.durable:
            self._judge_by(patience_s)

    def hang_up(self, gone: asyncio.Task[None]) -> None:
        """The client is gone."""
        if not gone.cancelled() and not self._live.durable:
            self._desk.driver.client_left(self._live)

    @abstractmethod
    async def run(self) -> None:
        """Send the answer."""

    def _judge_by(self, patience_s: float) -> None:
        """Turn the request away as soon as the solver says that it will not begin in time; hold nothing up for that."""
        live = self._live
        came_s = self._desk.now_s

        def judge(_: asyncio.Future[None]) -> None:
            wait_s = math.nan if live.estimate is None else live.estimate.p50_s
            # What has no end, as far as the solver knows, is nothing to go by.
            in_time = not wait_s < SECONDS_MAX or wait_s <= patience_s
            if in_time or live.record is not None or self._desk.now_s - came_s > JUDGED_S:
                return
            # Before, since turning away wakes who waits for the end.
            self._too_late = TooLate(wait_s, patience_s)
            if not self._desk.driver.turn_away(live.request.id, self._too_late.retry_after_s):
                self._too_late = None

        if live.estimated is None:
            live.estimated = asyncio.get_running_loop().create_future()
        live.estimated.add_done_callback(judge)

    async def _fail(self, problem: Problem, record: EndRecord) -> None:
        extra = hd.answered(self._headers, self._live.request.id, record)
        told = [JSON, *extra, *hd.problem(problem)]
        await answer(self._send, problem.status, problem.body(), told)

    def _problem(self, record: EndRecord) -> Problem | None:
        if self._too_late is not None and record.phase is Phase.SHED:
            return problem_of(self._too_late)
        retry_after_s = self._desk.driver.retry_after_s
        return problem_of_end(record, retry_after_s, self._live.request.endpoint)


class Whole(Exchange):
    """The answer as one JSON object."""

    async def run(self) -> None:
        record = await asyncio.shield(self._live.ended)
        problem = self._problem(record)
        if problem is not None:
            await self._fail(problem, record)
            return
        extra = hd.answered(self._headers, self._live.request.id, record)
        await answer(self._send, 200, self._body(record), [JSON, *extra])

    def _body(self, record: EndRecord) -> bytes:
        return self._live.response(record)


class Streamed(Exchange):
    """The answer as server-sent events, many chunks to a write where the client reads slowly."""

    async def run(self) -> None:
        follower = self._live.follow()
        try:
            await self._pass_on(follower)
        finally:
            self._live.unfollow(follower)

    async def _pass_on(self, follower: Follower) -> None:
        outputs = await self._first(follower)
        if outputs is None:
            return
        while outputs:
            for events in self._framed(outputs):
                await self._write(events)
            outputs = await self._awaited(follower)
        last = self._left() if follower.overrun else await self._last()
        await self._send({"type": "http.response.body", "body": last})

    async def _first(self, follower: Follower) -> list[Output] | None:
        """Begin the answer, and give what comes first; None if it ended without a word, which has been said."""
        outputs = await self._next(follower)
        if outputs is None:
            # Whatever comes of the request, the status line is out from here on.
            await self._begin()
            await self._write(WAITING)
            return await self._awaited(follower)
        if not outputs and not follower.overrun:
            # It ended without a word, so the status line can still say how.
            record = await asyncio.shield(self._live.ended)
            problem = self._problem(record)
            if problem is not None:
                await self._fail(problem, record)
                return None
        await self._begin()
        return outputs

    def _framed(self, outputs: list[Output]) -> Iterator[bytes]:
        """Output as events, in pieces that are written one after the other."""
        yield b"".join([openai.event(output.data) for output in outputs])

    async def _next(self, follower: Follower) -> list[Output] | None:
        """What comes next, [] after the last; None if nothing came for as long as a client is left without a sign."""
        silence_s = self._desk.config.gateway.heartbeat_s
        if not silence_s:
            return await follower.take()
        try:
            async with asyncio.timeout(silence_s):
                return await follower.take()
        except TimeoutError:
            return None

    async def _awaited(self, follower: Follower) -> list[Output]:
        """What comes next, with a sign of life wherever that takes long."""
        while (outputs := await self._next(follower)) is None:
            await self._write(WAITING)
        return outputs

    async def _begin(self) -> None:
        row = self._desk.driver.ledger.row(self._live.request.id)
        queue_s = None
        if row is not None and row.pulled_s is not None:
            queue_s = row.pulled_s - row.meta.arrival_s
        extra = hd.answering(self._headers, self._live.request.id, queue_s, self._live.estimate)
        await self._send({"type": "http.response.start", "status": 200, "headers": [*SSE, *extra]})

    async def _write(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    def _left(self) -> bytes:
        """What is said, if it ever reads that, to a client that was left because it read too slowly."""
        live = self._live
        if not live.durable:
            self._desk.driver.client_left(live)
        problem = Problem(
            status=503,
            message=f"The stream was read too slowly to be kept (gateway.limits). {self._remedy()}",
            type="server_error",
            code="read_too_slowly",
        )
        self._desk.metrics.refused(problem.code)
        return self._farewell(problem)

    def _remedy(self) -> str:
        """What a client can do that was left."""
        if self._live.durable:
            return f"Its answer can be fetched at /v1/requests/{self._live.request.id}."
        return "Read faster, or send it durably and fetch the answer."

    async def _last(self) -> bytes:
        """What follows the output."""
        try:
            record = await asyncio.shield(self._live.ended)
        except Unavailable as error:
            # The status line is long out, so that this gateway stops can only be said here.
            return self._farewell(problem_of(error))
        return self._ending(record, self._problem(record))

    def _ending(self, record: EndRecord, problem: Problem | None) -> bytes:
        """The end of a stream: an error, or the usage where it was asked for, or nothing."""
        if problem is not None:
            return self._farewell(problem)
        usage = self._live.usage_chunk(record) if self._include_usage else b""
        return (openai.event(usage) if usage else b"") + openai.DONE_EVENT

    def _farewell(self, problem: Problem) -> bytes:
        """The end of a stream that ends with an error."""
        return openai.event(problem.body()) + openai.DONE_EVENT


async def run(exchange: Exchange, receive: Receive) -> None:
    """Have a request answered, and notice if its client hangs up meanwhile."""
    gone = asyncio.create_task(hung_up(receive))
    gone.add_done_callback(exchange.hang_up)
    try:
        await exchange.run()
    finally:
        gone.cancel()
