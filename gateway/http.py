"""The OpenAI-compatible front door, as a plain ASGI application.

Reads requests, follows them in the driver and writes answers, as one JSON object or as server-sent events. Every error
is an OpenAI error body. A client that hangs up cancels its request, unless that is durable. Headers and routes are
described in docs/api.md.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from gateway import headers as hd
from gateway import openai
from gateway.desk import Desk
from gateway.live import Follower, Live
from gateway.metrics import CONTENT_TYPE
from gateway.openai import Problem
from qlm_core.errors import InvalidRequest, NotFound, QlmError, Unavailable
from qlm_core.ledger import EndRecord
from qlm_core.model import RequestId

log = logging.getLogger(__name__)

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
RawHeaders = list[tuple[bytes, bytes]]

_JSON = (b"content-type", b"application/json")
_SSE = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
_GENERATE = {"/v1/completions": False, "/v1/chat/completions": True}
_LOOKED_AT = ("/v1/models", "/v1/queue", "/v1/requests")


class HttpApp:
    """Answers HTTP for one gateway.

    Args:
        connections: how many connections are open now.
    """

    def __init__(self, desk: Desk, *, connections: Callable[[], int]) -> None:
        self._desk = desk
        self._connections = connections
        self._limits = desk.config.gateway.limits
        self._keys = frozenset(f"Bearer {key}".encode() for key in desk.config.gateway.api_keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = hd.read(scope["headers"])
        try:
            await self._route(scope["method"], scope["path"], headers, receive, send)
        except QlmError as error:
            await self._refuse(openai.problem_of(error), send, headers)
        except asyncio.CancelledError:
            raise
        except Exception:  # the edge: whatever went wrong, the client gets a proper answer
            log.exception("request handler failed", extra={"path": scope["path"]})
            error_500 = QlmError("the gateway failed to handle this; its log says why")
            await self._refuse(openai.problem_of(error_500), send, headers)

    async def _route(
        self, method: str, path: str, headers: hd.Headers, receive: Receive, send: Send
    ) -> None:
        if path in ("/health", "/healthz", "/readyz"):
            await self._health(send)
            return
        if self._connections() > self._limits.connections_max:
            raise Unavailable("gateway.limits.connections_max is reached; try again later")
        if path == "/metrics":
            rendered = self._desk.metrics.render()
            await _answer(send, 200, rendered, [(b"content-type", CONTENT_TYPE.encode())])
            return
        if self._keys and headers.get(b"authorization") not in self._keys:
            await self._refuse(_UNAUTHORIZED, send, headers)
            return
        chat = _GENERATE.get(path)
        if chat is not None:
            if method != "POST":
                await self._refuse(_method_problem(method, path, "POST"), send, headers)
                return
            await self._generate(chat, headers, receive, send)
            return
        if method == "DELETE" and path.startswith("/v1/requests/"):
            phase = await self._desk.driver.cancel(RequestId(path.removeprefix("/v1/requests/")))
            await _answer(send, 200, openai.encode({"phase": phase.value}), [_JSON])
            return
        if method not in ("GET", "HEAD") and path.startswith(_LOOKED_AT):
            await self._refuse(_method_problem(method, path, "GET"), send, headers)
            return
        await _answer(send, 200, await self._look(path), [_JSON])

    async def _look(self, path: str) -> bytes:
        """The JSON behind a GET. Raises NotFound."""
        desk = self._desk
        if path == "/v1/models":
            return desk.models()
        if path == "/v1/queue":
            return await desk.solver.view()
        if path == "/v1/requests":
            return desk.listing()
        if path.startswith("/v1/models/"):
            return desk.model(path.removeprefix("/v1/models/"))
        if path.startswith("/v1/queue/"):
            return await desk.explain(RequestId(path.removeprefix("/v1/queue/")))
        if path.startswith("/v1/requests/"):
            return await desk.standing(RequestId(path.removeprefix("/v1/requests/")))
        raise NotFound(f"path: there is nothing at {path[:128]}; docs/api.md lists what there is")

    async def _health(self, send: Send) -> None:
        draining = self._desk.driver.draining
        state = {"status": "draining" if draining else "ok", "solver": self._desk.solver.connected}
        await _answer(send, 503 if draining else 200, openai.encode(state), [_JSON])

    # ---------------------------------------------------------------- generation

    async def _generate(
        self, chat: bool, headers: hd.Headers, receive: Receive, send: Send
    ) -> None:
        body = await self._body(headers, receive)
        draft = self._desk.intake.draft(body, chat=chat, wish=hd.wish(headers))
        key = hd.text(headers, b"idempotency-key")
        durable = hd.flag(headers, b"x-qlm-durable") or bool(key)
        driver = self._desk.driver
        if durable:
            id = await driver.submit_durable(draft, key=key, watched=draft.stream)
            live = driver.live(id)
            if live is None:
                await self._answer_from_store(id, draft.stream, headers, send)
                return
        else:
            live = driver.submit(draft, watched=draft.stream)
        answer = _Streamed if draft.stream else _Whole
        exchange = answer(self._desk, live, headers, send, include_usage=draft.include_usage)
        gone = asyncio.create_task(_hung_up(receive))
        gone.add_done_callback(exchange.hang_up)
        try:
            await exchange.run()
        finally:
            gone.cancel()

    async def _body(self, headers: hd.Headers, receive: Receive) -> bytes:
        limit_s = self._limits.body_s_max
        try:
            async with asyncio.timeout(limit_s):
                return await _read_body(receive, headers, self._limits.body_bytes_max)
        except TimeoutError:
            raise InvalidRequest(
                "body",
                f"it had not arrived after {limit_s:g} s",
                "Send it faster or raise gateway.limits.body_s_max.",
                code="body_too_slow",
            ) from None

    async def _answer_from_store(
        self, id: RequestId, stream: bool, headers: hd.Headers, send: Send
    ) -> None:
        """The answer to a repeated submission of a request that has ended."""
        request, end = await self._desk.driver.ended(id)
        problem = openai.problem_of_end(end.record, self._desk.driver.retry_after_s)
        extra = hd.answered(headers, id, end.record)
        if problem is not None:
            await self._refuse(problem, send, headers, extra)
        elif stream:
            chunk = openai.event(openai.chunk_of(end.answer, chat=request.chat))
            await _answer(send, 200, chunk + openai.DONE_EVENT, [*_SSE, *extra])
        else:
            await _answer(send, 200, end.answer, [_JSON, *extra])

    async def _refuse(
        self,
        problem: Problem,
        send: Send,
        headers: hd.Headers,
        extra: RawHeaders | None = None,
    ) -> None:
        self._desk.metrics.refused(problem.code)
        told = hd.echoed(headers) if extra is None else extra
        await _answer(send, problem.status, problem.body(), [_JSON, *told, *hd.problem(problem)])


class _Exchange:
    """One request and its answer over HTTP."""

    def __init__(
        self,
        desk: Desk,
        live: Live,
        headers: hd.Headers,
        send: Send,
        *,
        include_usage: bool,
    ) -> None:
        self._desk = desk
        self._live = live
        self._headers = headers
        self._send = send
        self._include_usage = include_usage

    def hang_up(self, gone: asyncio.Task[None]) -> None:
        """The client is gone."""
        if not gone.cancelled() and not self._live.durable:
            self._desk.driver.abandon(self._live)

    async def run(self) -> None:
        raise NotImplementedError

    async def _fail(self, problem: Problem, record: EndRecord) -> None:
        extra = hd.answered(self._headers, self._live.request.id, record)
        told = [_JSON, *extra, *hd.problem(problem)]
        await _answer(self._send, problem.status, problem.body(), told)

    def _problem(self, record: EndRecord) -> Problem | None:
        return openai.problem_of_end(record, self._desk.driver.retry_after_s)


class _Whole(_Exchange):
    """The answer as one JSON object."""

    async def run(self) -> None:
        record = await asyncio.shield(self._live.ended)
        problem = self._problem(record)
        if problem is not None:
            await self._fail(problem, record)
            return
        extra = hd.answered(self._headers, self._live.request.id, record)
        await _answer(self._send, 200, self._live.response(record), [_JSON, *extra])


class _Streamed(_Exchange):
    """The answer as server-sent events, many chunks to a write where the client reads slowly."""

    async def run(self) -> None:
        follower = self._live.follow()
        try:
            await self._pass_on(follower)
        finally:
            self._live.unfollow(follower)

    async def _pass_on(self, follower: Follower) -> None:
        outputs = await follower.take()
        if not outputs:
            # It ended without a word, so the status line can still say how.
            record = await asyncio.shield(self._live.ended)
            problem = self._problem(record)
            if problem is not None:
                await self._fail(problem, record)
                return
        row = self._desk.driver.ledger.row(self._live.request.id)
        queue_s = None
        if row is not None and row.pulled_s is not None:
            queue_s = row.pulled_s - row.meta.arrival_s
        extra = hd.answering(self._headers, self._live.request.id, queue_s, self._live.estimate)
        await self._send({"type": "http.response.start", "status": 200, "headers": [*_SSE, *extra]})
        while outputs:
            events = b"".join([openai.event(output.data) for output in outputs])
            await self._send({"type": "http.response.body", "body": events, "more_body": True})
            outputs = await follower.take()
        last = await self._last()
        await self._send({"type": "http.response.body", "body": last + openai.DONE_EVENT})

    async def _last(self) -> bytes:
        """What follows the output: an error, or the usage where it was asked for, or nothing."""
        try:
            record = await asyncio.shield(self._live.ended)
        except Unavailable as error:
            # The status line is long out, so that this gateway stops can only be said here.
            return openai.event(openai.problem_of(error).body())
        problem = self._problem(record)
        if problem is not None:
            return openai.event(problem.body())
        return openai.event(self._live.usage_chunk(record)) if self._include_usage else b""


# --------------------------------------------------------------------------- HTTP in small

_UNAUTHORIZED = Problem(
    status=401,
    message="Missing or unknown API key. Send the header Authorization: Bearer <key>.",
    type="authentication_error",
    code="invalid_api_key",
)


def _method_problem(method: str, path: str, allowed: str) -> Problem:
    return Problem(
        status=405,
        message=f"{method} is not possible on {path[:128]}. Use {allowed}.",
        type="invalid_request_error",
        code="method_not_allowed",
    )


async def _answer(send: Send, status: int, body: bytes, headers: RawHeaders) -> None:
    length = (b"content-length", b"%d" % len(body))
    await send({"type": "http.response.start", "status": status, "headers": [length, *headers]})
    await send({"type": "http.response.body", "body": body})


async def _read_body(receive: Receive, headers: hd.Headers, bytes_max: int) -> bytes:
    """The request's body. Raises InvalidRequest as soon as it is known to be too long."""
    announced = headers.get(b"content-length", b"0")
    parts: list[bytes] = []
    size = int(announced) if announced.isdigit() else 0
    if size <= bytes_max:
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Unavailable("the client hung up")
            parts.append(message["body"])
            size += len(message["body"])
            if size > bytes_max or not message.get("more_body"):
                break
    if size > bytes_max:
        raise InvalidRequest(
            "body",
            f"more than {bytes_max} bytes",
            "Send a shorter prompt or raise gateway.limits.body_bytes_max.",
            code="body_too_large",
        )
    return b"".join(parts)


async def _hung_up(receive: Receive) -> None:
    """Return when the client disconnects."""
    while (await receive())["type"] != "http.disconnect":
        pass
