"""The OpenAI-compatible front door, as a plain ASGI application.

Checks who calls and finds the route. What has a resource of its own (`gateway.resources`) is answered by that. Of a
request to a model the body is read and submitted, and an `Exchange` answers it; what GET asks for elsewhere is looked up.
A request to /v1/responses becomes one to a model (`gateway.responses`).
Every error is an OpenAI error body. A client that hangs up cancels its request, unless that is durable. Headers and
routes are described in docs/api.md.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

from gateway import access, openai, routes
from gateway import headers as hd
from gateway.asgi import JSON, RawHeaders, Receive, Scope, Send, answer, telling
from gateway.bodies import Bodies
from gateway.call import Call
from gateway.connections import Connections
from gateway.cors import Cors
from gateway.desk import Desk
from gateway.exchange import SSE, run
from gateway.intake import Draft
from gateway.keys import Caller
from gateway.later import acknowledge
from gateway.metrics import CONTENT_TYPE
from gateway.problems import UNAUTHORIZED, Problem, problem_of, problem_of_end
from gateway.refusing import refuse
from gateway.resources import resources
from gateway.responses.door import Responses, exchange_of
from gateway.routes import Route
from gateway.shapes import chunk_of
from gateway.store import Found
from gateway.uploads import Uploads
from qlm_core.config_doors import is_loopback
from qlm_core.errors import NotFound, QlmError, QueueFull
from qlm_core.model import RequestId

log = logging.getLogger(__name__)

# What there is to ask is no secret.
_OPEN = ("openapi", "docs", "ui")
# Who asks for what is told to everybody; no request is theirs.
_NOBODY = Caller(tenant="")


class HttpApp:
    """Answers HTTP for one gateway."""

    def __init__(self, desk: Desk, connections: Connections, uploads: Uploads) -> None:
        self._desk = desk
        self._connections = connections
        self._bodies = Bodies(desk.config.gateway.limits, uploads)
        self._resources = resources(desk, uploads)
        self._heartbeat_s = desk.config.gateway.heartbeat_s
        self._keys = desk.keys
        # Beyond loopback they are for who runs the fleet; Prometheus on the same machine needs no key.
        self._metrics_open = is_loopback(desk.config.gateway.http_listen)
        self._responses = Responses(desk)
        self._cors = Cors(desk.config.gateway.cors_origins, exposed=hd.EXPOSED)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = hd.read(scope["headers"])
        if self._cors:
            if scope["method"] == "OPTIONS":
                told = self._cors.preflight(headers)
                if told is not None:
                    await self._preflight(self._cors.admits(headers[b"origin"]), told, send)
                    return
            if b"origin" in headers:
                send = self._cors.sending(send, headers[b"origin"])
        try:
            await self._route(scope, headers, receive, send)
        except QlmError as error:
            await self._refuse(problem_of(error), send, headers)
        except asyncio.CancelledError:
            raise
        except Exception:  # the edge: whatever went wrong, the client gets a proper answer
            log.exception("request handler failed", extra={"path": scope["path"]})
            error_500 = QlmError("the gateway failed to handle this; its log says why")
            await self._refuse(problem_of(error_500), send, headers)

    async def _route(self, scope: Scope, headers: hd.Headers, receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["path"]
        route = routes.find(path)
        caller = _NOBODY
        if route is None or route.name not in ("health", "ready"):
            # Who watches over the gateway is answered even when it is full.
            if self._connections.full:
                await self._turn_away(headers, send)
                return
            if route is None or not self._is_open(route):
                known = self._keys.caller(*hd.every(scope["headers"], b"authorization"))
                if known is None:
                    self._turned_away(scope)
                    await self._refuse(UNAUTHORIZED, send, headers)
                    return
                caller = known
        if route is None:
            raise NotFound(routes.nothing_at(path))
        resource = self._resources.get(route.name)
        if method not in route.methods:
            await self._refuse(_method_problem(method, path, route), send, headers)
        elif resource is not None:
            call = Call(
                route=route,
                method=method,
                query=scope["query_string"],
                headers=headers,
                caller=caller,
                receive=receive,
                send=send,
            )
            await resource.answer(call)
        elif method == "POST":
            await self._run(route, caller, headers, receive, send)
        else:
            status, body, kind = await self._look(route, caller)
            await answer(send, status, body, [(b"content-type", kind)])

    def _is_open(self, route: Route) -> bool:
        """Whether it is told to everybody."""
        return route.name in _OPEN or (route.name == "metrics" and self._metrics_open)

    def _turned_away(self, scope: Scope) -> None:
        client = scope.get("client") or ("", 0)
        peer = f"{client[0]}:{client[1]}"
        self._desk.rejections.note("http", "key", peer=peer, asked=scope["path"])

    async def _look(self, route: Route, caller: Caller) -> tuple[int, bytes, bytes]:
        """Status, body and type of what a GET finds. Raises NotFound, Unavailable, UnknownModel, Forbidden."""
        desk = self._desk
        status, kind = 200, JSON[1]
        match route.name:
            case "health":
                draining = desk.driver.draining
                status = 503 if draining else 200
                said = "draining" if draining else "ok"
                body = openai.encode({"status": said, "solver": desk.solver.connected})
            case "ready":
                reason = desk.unready()
                status = 503 if reason else 200
                body = openai.encode({"status": "unready" if reason else "ready", "reason": reason})
            case "metrics":
                if not self._metrics_open:
                    caller.require_operator()
                body, kind = desk.metrics.render(), CONTENT_TYPE.encode()
            case "models":
                body = desk.models(caller)
            case "model":
                body = desk.model(route.arg, caller)
            case "queue":
                body = await desk.queues(caller)
            case _:
                body = await desk.explain(RequestId(route.arg), caller)
        return status, body, kind

    async def _preflight(self, admitted: bool, told: RawHeaders, send: Send) -> None:
        """Answer a browser that asks, before a page's request, whether that may be sent."""
        if admitted:
            await answer(send, 200, b"", told)
            return
        problem = Problem(
            status=403,
            message="origin: pages from there may not use this gateway. Add it to gateway.cors_origins.",
            type="invalid_request_error",
            code="origin_not_allowed",
        )
        self._desk.metrics.refused(problem.code)
        await answer(send, problem.status, problem.body(), [JSON, *told])

    # ---------------------------------------------------------------- generation

    async def _run(
        self, route: Route, caller: Caller, headers: hd.Headers, receive: Receive, send: Send
    ) -> None:
        body = await self._bodies.read(headers, receive)
        key = hd.key(headers)
        wish, keyed = hd.wish(headers), bool(key)
        if route.endpoint is None:
            draft = await self._desk.responses.draft(body, wish=wish, caller=caller, keyed=keyed)
        else:
            draft = self._desk.intake.draft(
                body, route.endpoint, wish=wish, caller=caller, keyed=keyed
            )
        # A response in the background has an acknowledgement of its own.
        at_once = hd.wants_async(headers) and not draft.background
        durable = hd.flag(headers, b"x-qlm-durable") or keyed or at_once or draft.background
        send = telling(send, hd.clamped(draft.clamped))
        patience_s = hd.patience_s(headers)
        driver = self._desk.driver
        if at_once:
            id = await driver.submit_durable(draft, key=key, watched=False)
            access.note(driver.live(id))
            await acknowledge(self._desk, id, caller, headers, send)
            return
        if durable:
            id = await driver.submit_durable(
                draft,
                key=key,
                watched=draft.stream,
                connections=self._connections.seats,
            )
            live = driver.live(id)
            if live is None:
                await self._answer_from_store(id, draft, headers, send)
                return
        else:
            if patience_s is not None and draft.stream and 0 < self._heartbeat_s < patience_s:
                patience_s = None
            if patience_s is not None and not draft.stream and patience_s < draft.ttl_s:
                # Its client hangs up then; work beyond that would be for nobody.
                draft = replace(draft, ttl_s=patience_s)
            live = driver.submit(draft, watched=draft.stream, connections=self._connections.seats)
        access.note(live)
        if live.request.asked and draft.background and not draft.stream:
            await self._responses.accepted(live, headers, send)
            return
        exchange = exchange_of(live, stream=draft.stream)(
            self._desk,
            live,
            headers,
            send,
            include_usage=draft.include_usage,
            patience_s=patience_s,
        )
        await run(exchange, receive)

    async def _turn_away(self, headers: hd.Headers, send: Send) -> None:
        """Answer that there are too many connections, and close this one."""
        retry_after_s = self._desk.driver.retry_after_s
        error = QueueFull(
            "gateway.limits.connections_max", self._connections.seats.limit, retry_after_s
        )
        extra = [*hd.echoed(headers), (b"connection", b"close")]
        await self._refuse(problem_of(error), send, headers, extra)

    async def _answer_from_store(
        self, id: RequestId, draft: Draft, headers: hd.Headers, send: Send
    ) -> None:
        """The answer to a repeated submission of a request that has ended."""
        request, end = await self._desk.sight.ended(id, draft.caller)
        retry_after_s = self._desk.driver.retry_after_s
        problem = problem_of_end(end.record, retry_after_s, request.endpoint)
        extra = hd.answered(headers, id, end.record)
        if request.asked and (problem is None or draft.background):
            found = Found(request, end)
            await self._responses.tell_ended(found, headers, send, stream=draft.stream)
        elif problem is not None:
            await self._refuse(problem, send, headers, extra)
        elif draft.stream:
            chunk = openai.event(chunk_of(end.answer, request.endpoint))
            await answer(send, 200, chunk + openai.DONE_EVENT, [*SSE, *extra])
        else:
            await answer(send, 200, end.answer, [JSON, *extra])

    async def _refuse(
        self,
        problem: Problem,
        send: Send,
        headers: hd.Headers,
        extra: RawHeaders | None = None,
    ) -> None:
        await refuse(self._desk.metrics, problem, send, headers, extra)


def _method_problem(method: str, path: str, route: Route) -> Problem:
    return Problem(
        status=405,
        message=f"{method[:16]} is not possible on {path[:128]}. Use {' or '.join(route.methods)}.",
        type="invalid_request_error",
        code="method_not_allowed",
        allow=route.allow,
    )
