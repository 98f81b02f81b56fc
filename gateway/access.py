"""The access log: a line for each call at the clients' doors, by what was asked, how it went and what it took.

A call about a request to a model also tells model, class, how it ended, its waits and its tokens; never a word of a prompt or an
answer, and no key. `log.access` turns it on. Who asks whether the gateway lives, or reads its metrics, is told of at level debug.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextvars import ContextVar
from typing import Any

import grpc

from gateway import routes
from gateway.asgi import Receive, Scope, Send
from gateway.live import Live
from qlm_core.ledger import EndRecord

log = logging.getLogger("qlm.access")

# As other servers log a client that hung up before it was answered.
HUNG_UP = 499
_QUIET = ("health", "ready", "metrics")
_NAMES = {code.value[0]: code.name for code in grpc.StatusCode}

App = Callable[[Scope, Receive, Send], Awaitable[None]]


class _Entry:
    """What is known of the call under way."""

    __slots__ = ("began_s", "live")

    def __init__(self) -> None:
        self.began_s = time.monotonic()
        self.live: Live | None = None


_under_way: ContextVar[_Entry | None] = ContextVar("access", default=None)


def note(live: Live | None) -> None:
    """Say which request the call under way is about."""
    entry = _under_way.get()
    if entry is not None and live is not None:
        entry.live = live


class HttpAccess:
    """An ASGI application that logs the calls of another one."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = HUNG_UP

        async def told(message: dict[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        entry = _Entry()
        token = _under_way.set(entry)
        try:
            await self._app(scope, receive, told)
        finally:
            _under_way.reset(token)
            quiet, where = _route_of(scope["path"])
            said = {"method": scope["method"], "route": where, "status": status}
            _tell("http request", said, entry, quiet=quiet)


class GrpcAccess(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs only
    """Logs the calls of one gRPC service."""

    def __init__(self, service: str) -> None:
        self._prefix = f"/{service}/"

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Put the log around a method."""
        handler: Any = await continuation(handler_call_details)
        method = str(handler_call_details.method)
        if handler is None or not method.startswith(self._prefix):
            return handler
        return _logged(handler, method.removeprefix(self._prefix))


def _logged(handler: Any, method: str) -> Any:
    async def one_to_one(request: Any, context: Any) -> Any:
        with _call(method, context):
            return await handler.unary_unary(request, context)

    async def one_to_many(request: Any, context: Any) -> AsyncIterator[Any]:
        with _call(method, context):
            async with contextlib.aclosing(handler.unary_stream(request, context)) as replies:
                async for reply in replies:
                    yield reply

    if handler.response_streaming:
        return grpc.unary_stream_rpc_method_handler(
            one_to_many, handler.request_deserializer, handler.response_serializer
        )
    return grpc.unary_unary_rpc_method_handler(
        one_to_one, handler.request_deserializer, handler.response_serializer
    )


@contextlib.contextmanager
def _call(method: str, context: Any) -> Iterator[None]:
    entry = _Entry()
    _under_way.set(entry)
    status = "OK"
    try:
        yield
    except (asyncio.CancelledError, GeneratorExit):
        status = "CANCELLED"
        raise
    except BaseException:
        code = context.code()
        status = getattr(code, "name", None) or _NAMES.get(code) or "UNKNOWN"
        raise
    finally:
        _under_way.set(None)
        _tell("grpc call", {"method": method, "status": status}, entry, quiet=False)


def _route_of(path: str) -> tuple[bool, str]:
    """Whether calls there are of little interest, and the path without what names a single thing."""
    route = routes.find(path)
    if route is None:
        # What strangers ask for has no end.
        return False, "-"
    text = routes.tidy(path)
    return route.name in _QUIET, text.replace(route.arg, "{id}", 1) if route.arg else text


def _tell(event: str, said: dict[str, Any], entry: _Entry, *, quiet: bool) -> None:
    said["took_s"] = round(time.monotonic() - entry.began_s, 4)
    live = entry.live
    if live is not None:
        request = live.request
        said |= {"request": request.id, "model": request.model, "slo_class": request.slo_class}
        if live.record is not None:
            said |= _ended(live.record)
    log.log(logging.DEBUG if quiet else logging.INFO, event, extra=said)


def _ended(record: EndRecord) -> dict[str, Any]:
    said = {
        "outcome": record.phase.value,
        "waited_s": record.queue_s,
        "estimated_s": None if record.estimate is None else record.estimate.mean_s,
        "ttft_s": record.ttft_s,
        "e2e_s": record.e2e_s,
        "prompt_tokens": record.prompt_tokens,
        "output_tokens": record.output_tokens,
        "evictions": record.evictions,
    }
    return {
        name: round(value, 4) if isinstance(value, float) else value
        for name, value in said.items()
        if value is not None
    }
