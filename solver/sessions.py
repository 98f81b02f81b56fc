"""The gRPC edges of the solver: one stream per gateway, one per agent, and the questions.

A session turns messages into events for the driver and orders into messages. It owns nothing: when a stream ends,
for whatever reason, the Manager is told and its leases decide what that means.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from math import inf
from typing import Any, Generic, TypeVar

import grpc
import msgspec

import failpoints
from protos import wire
from protos.doors import Claims, Rejections
from protos.outbox import Outbox, batches
from protos.pulse import Pulse
from protos.qlm.v1 import agent_session_service_pb2 as agent_pb
from protos.qlm.v1 import agent_session_service_pb2_grpc as agent_grpc
from protos.qlm.v1 import gateway_session_service_pb2 as gateway_pb
from protos.qlm.v1 import gateway_session_service_pb2_grpc as gateway_grpc
from qlm_core.config import SolverLimits
from qlm_core.errors import InvalidRequest
from qlm_core.manager import views, whatif
from qlm_core.manager.asking import forecast
from qlm_core.manager.events import (
    AgentJoined,
    AgentLeft,
    AgentReported,
    GatewayJoined,
    GatewayLeft,
    GatewaySaid,
)
from qlm_core.messages import (
    AgentHello,
    AgentOrder,
    Alive,
    GatewayFact,
    GatewayHello,
    GatewayOrder,
    QueueUpdate,
)
from qlm_core.model import AgentId, GatewayId, RequestId
from qlm_core.presence import SILENCE_S
from solver.driver import Driver

log = logging.getLogger("qlm.solver")

_OUTBOX_LIMIT = 200_000
# A message is closed when it reaches this size, or this share of its limit.
_MESSAGE_BYTES_MAX = 1_048_576
_MESSAGE_SHARE = 0.5
# More than a reference to a request takes in a message.
_REF_BYTES = 512
_READ_END_S = 0.1
_TAKEN_OVER = "a newer session of this name took over; names must be unique"

Order = TypeVar("Order", GatewayOrder, AgentOrder)


class SessionError(Exception):
    """A peer broke the rules of its session; carries the status code that says how."""

    def __init__(self, code: grpc.StatusCode, message: str):
        super().__init__(message)
        self.code = code


class _Session(Generic[Order]):
    """One open stream: what is to be sent, its pulse, and with which status it ends.

    Args:
        alive: a message without content.
        silence_s: how long the peer may say nothing.
    """

    def __init__(self, alive: Order, *, silence_s: float = SILENCE_S):
        self.outbox: Outbox[Order] = Outbox(limit=_OUTBOX_LIMIT)
        self.error: SessionError | None = None
        self.pulse = Pulse(lambda: self.send(alive), on_silence=self._silence, silence_s=silence_s)

    def send(self, order: Order) -> None:
        """Send an order, in order."""
        self.outbox.put(order)

    def part(self, reason: str) -> None:
        """End the session; its peer may join anew at once."""
        self.end(SessionError(grpc.StatusCode.UNAVAILABLE, reason))

    def end(self, error: SessionError) -> None:
        """End the session with a status."""
        if self.error is None:
            self.error = error
        self.outbox.close()

    def _silence(self) -> None:
        self.part(f"nothing was heard for {SILENCE_S:g} s; join again")


class _OpenSessions:
    """At most one open session per peer, and not too many peers."""

    def __init__(self, what: str, limit: int):
        self._what = what
        self._limit = limit
        self._open: dict[str, _Session[Any]] = {}

    def enter(self, peer: str, session: _Session[Any]) -> None:
        """The newest session of a peer takes over. Raises SessionError above the limit."""
        older = self._open.get(peer)
        if older is not None:
            older.end(SessionError(grpc.StatusCode.ABORTED, _TAKEN_OVER))
        elif len(self._open) >= self._limit:
            raise SessionError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"the limit of {self._limit} {self._what} is reached",
            )
        self._open[peer] = session

    def leave(self, peer: str, session: _Session[Any]) -> bool:
        """A session ended; False if a newer one had taken over."""
        if self._open.get(peer) is not session:
            return False
        del self._open[peer]
        return True


def _refuse(message: str) -> SessionError:
    return SessionError(grpc.StatusCode.FAILED_PRECONDITION, message)


def _invalid(message: str) -> SessionError:
    return SessionError(grpc.StatusCode.INVALID_ARGUMENT, message)


def _require(claims: Claims, name: str) -> None:
    """Raise SessionError where a peer's certificate has another name than its hello."""
    wrong = claims.wrong(name)
    if wrong:
        raise SessionError(grpc.StatusCode.PERMISSION_DENIED, wrong)


class GatewaySessions(gateway_grpc.GatewaySessionServiceServicer):
    """Serves gateways."""

    def __init__(self, driver: Driver, limits: SolverLimits, rejections: Rejections):
        self._driver = driver
        self._open = _OpenSessions("gateways", limits.gateways_max)
        # By the address at which agents reach it: who is connected.
        self._at: dict[str, GatewayId] = {}
        self._rejections = rejections
        self._bytes_max = _bytes_max(limits)
        self._wondering = asyncio.Lock()

    async def GatewaySession(
        self,
        request_iterator: AsyncIterator[gateway_pb.GatewaySessionRequest],
        context: grpc.aio.ServicerContext[
            gateway_pb.GatewaySessionRequest, gateway_pb.GatewaySessionResponse
        ],
    ) -> AsyncIterator[gateway_pb.GatewaySessionResponse]:
        """One gateway's stream; see the protocol file."""
        claims = Claims(context, "solver", self._rejections)
        session: _Session[GatewayOrder] = _Session(Alive())
        reader = asyncio.create_task(self._read(request_iterator, session, claims))
        session.pulse.start()
        try:
            while orders := await session.outbox.take():
                for part in batches(orders, wire.order_bytes, self._bytes_max):
                    yield wire.gateway_orders_to_wire(part)
        finally:
            outcome = await _end(session, reader)
        await _abort_if_failed(outcome, context)

    async def _read(
        self,
        incoming: AsyncIterator[gateway_pb.GatewaySessionRequest],
        session: _Session[GatewayOrder],
        claims: Claims,
    ) -> None:
        gateway: GatewayId | None = None
        try:
            async for message in incoming:
                session.pulse.heard()
                now_s = self._driver.now_s()
                for fact in wire.facts_from_wire(message, gateway or GatewayId(""), now_s):
                    if isinstance(fact, GatewayHello):
                        if gateway is not None:
                            raise _refuse("hello came twice")
                        _require(claims, fact.gateway)
                        self._join(fact, session)
                        gateway = fact.gateway
                    elif gateway is None:
                        raise _refuse("the first fact must be hello")
                    elif self._is_anothers(gateway, fact):
                        claims.note("foreign", f"{type(fact).__name__} of another gateway")
                    else:
                        self._driver.post(GatewaySaid(gateway, fact))
                failpoints.at("solver.sessions.gateway_announcing")
        finally:
            session.outbox.close()
            if gateway is not None and self._open.leave(gateway, session):
                self._forget_address(gateway)
                self._driver.detach_gateway(gateway)
                self._driver.post(GatewayLeft(gateway))
                log.info("gateway left", extra={"gateway": gateway})

    def _is_anothers(self, gateway: GatewayId, fact: GatewayFact) -> bool:
        """Whether a fact is about a request that another gateway announced, of which only that one knows."""
        id = getattr(fact, "id", None)
        held = None if id is None else self._driver.manager.book.get(id)
        return held is not None and held.request.gateway != gateway

    def _forget_address(self, gateway: GatewayId) -> None:
        self._at = {address: one for address, one in self._at.items() if one != gateway}

    def _join(self, hello: GatewayHello, session: _Session[GatewayOrder]) -> None:
        if not hello.gateway:
            raise _invalid("hello.gateway_id: empty")
        holder = self._at.get(hello.work_address, hello.gateway)
        if holder != hello.gateway:
            # Agents would leave the one for the other, and nobody would run what the first one has.
            raise _refuse(
                f"hello.work_address: {hello.work_address[:64]!r} is that of gateway {holder!r}, which is connected; "
                "give each gateway its own gateway.agents_listen or gateway.advertise"
            )
        self._open.enter(hello.gateway, session)
        self._forget_address(hello.gateway)
        self._at[hello.work_address] = hello.gateway
        self._driver.attach_gateway(hello.gateway, session)
        self._driver.post(GatewayJoined(hello))
        log.info("gateway joined", extra={"gateway": hello.gateway, "address": hello.work_address})

    async def Explain(
        self,
        request: gateway_pb.ExplainRequest,
        context: grpc.aio.ServicerContext[gateway_pb.ExplainRequest, gateway_pb.ExplainResponse],
    ) -> gateway_pb.ExplainResponse:
        """Why a request stands where it stands."""
        driver = self._driver
        answer = views.explain(driver.manager, RequestId(request.id), now_s=driver.now_s())
        if answer is None:
            await context.abort(
                grpc.StatusCode.NOT_FOUND, f"id: {request.id[:64]!r} is not waiting here"
            )
        return gateway_pb.ExplainResponse(explanation_json=msgspec.json.encode(answer))

    async def View(
        self,
        request: gateway_pb.ViewRequest,
        _context: grpc.aio.ServicerContext[gateway_pb.ViewRequest, gateway_pb.ViewResponse],
    ) -> gateway_pb.ViewResponse:
        """The whole fleet."""
        manager, now_s = self._driver.manager, self._driver.now_s()
        answer = views.view(manager, now_s=now_s, groups_max=request.groups_max)
        return gateway_pb.ViewResponse(view_json=msgspec.json.encode(answer))

    async def Estimate(
        self,
        request: gateway_pb.EstimateRequest,
        context: grpc.aio.ServicerContext[gateway_pb.EstimateRequest, gateway_pb.EstimateResponse],
    ) -> gateway_pb.EstimateResponse:
        """The wait of a request that is not submitted."""
        now_s = self._driver.now_s()
        try:
            meta = wire.meta_from_wire(request.request, GatewayId(""), now_s)
        except wire.WireError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        estimate = views.estimate(self._driver.manager, meta, now_s=now_s)
        if estimate is None:
            await context.abort(
                grpc.StatusCode.NOT_FOUND, f"model: no connected agent serves {meta.model!r}"
            )
        return gateway_pb.EstimateResponse(estimate=wire.estimate_to_wire(estimate))

    async def EstimateBatch(
        self,
        request: gateway_pb.EstimateBatchRequest,
        context: grpc.aio.ServicerContext[
            gateway_pb.EstimateBatchRequest, gateway_pb.EstimateBatchResponse
        ],
    ) -> gateway_pb.EstimateBatchResponse:
        """When a batch would be done that is not submitted."""
        try:
            question = wire.batch_question_from_wire(request)
        except wire.WireError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        answer = forecast(self._driver.manager, question, now_s=self._driver.now_s())
        if isinstance(answer, str):
            await context.abort(
                grpc.StatusCode.NOT_FOUND, f"model: no connected agent serves {answer!r}"
            )
        return wire.batch_forecast_to_wire(answer)

    async def WhatIf(
        self,
        request: gateway_pb.WhatIfRequest,
        context: grpc.aio.ServicerContext[gateway_pb.WhatIfRequest, gateway_pb.WhatIfResponse],
    ) -> gateway_pb.WhatIfResponse:
        """What would change with more or fewer instances."""
        # One after the other, and beside everything else: planning twice takes its time.
        async with self._wondering:
            now_s = self._driver.now_s()
            try:
                asked = whatif.question(self._driver.manager, request.changes, now_s=now_s)
            except InvalidRequest as error:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            answer = await asyncio.to_thread(asked.answer)
        return gateway_pb.WhatIfResponse(answer_json=msgspec.json.encode(answer))


class AgentSessions(agent_grpc.AgentSessionServiceServicer):
    """Serves agents."""

    def __init__(self, driver: Driver, limits: SolverLimits, rejections: Rejections):
        self._driver = driver
        self._open = _OpenSessions("agents", limits.agents_max)
        self._rejections = rejections
        self._refs_max = max(1, _bytes_max(limits) // _REF_BYTES)

    async def AgentSession(
        self,
        request_iterator: AsyncIterator[agent_pb.AgentSessionRequest],
        context: grpc.aio.ServicerContext[
            agent_pb.AgentSessionRequest, agent_pb.AgentSessionResponse
        ],
    ) -> AsyncIterator[agent_pb.AgentSessionResponse]:
        """One agent's stream; see the protocol file."""
        claims = Claims(context, "solver", self._rejections)
        # Its lease, which the Manager keeps, says how long it may be silent.
        session: _Session[AgentOrder] = _Session(Alive(), silence_s=inf)
        reader = asyncio.create_task(self._read(request_iterator, session, claims))
        session.pulse.start()
        try:
            while orders := await session.outbox.take():
                now_s = self._driver.now_s()
                failpoints.at("solver.sessions.window_leaving")
                for order in merged(orders):
                    for part in parts(order, self._refs_max):
                        yield wire.agent_order_to_wire(part, now_s)
        finally:
            outcome = await _end(session, reader)
        await _abort_if_failed(outcome, context)

    async def _read(
        self,
        incoming: AsyncIterator[agent_pb.AgentSessionRequest],
        session: _Session[AgentOrder],
        claims: Claims,
    ) -> None:
        agent: AgentId | None = None
        try:
            async for message in incoming:
                session.pulse.heard()
                said = wire.agent_message_from_wire(message)
                if isinstance(said, AgentHello):
                    if agent is not None:
                        raise _refuse("hello came twice")
                    _require(claims, said.agent)
                    self._join(said, session)
                    agent = said.agent
                elif agent is None:
                    raise _refuse("the first message must be hello")
                else:
                    self._driver.post(AgentReported(agent, said))
        finally:
            session.outbox.close()
            if agent is not None and self._open.leave(agent, session):
                self._driver.detach_agent(agent)
                self._driver.post(AgentLeft(agent))
                log.info("agent left", extra={"agent": agent})

    def _join(self, hello: AgentHello, session: _Session[AgentOrder]) -> None:
        if not hello.agent:
            raise _invalid("hello.agent_id: empty")
        if not hello.profiles:
            raise _invalid("hello.models: empty")
        self._open.enter(hello.agent, session)
        failpoints.at("solver.sessions.agent_joining")
        self._driver.attach_agent(hello.agent, session)
        self._driver.post(AgentJoined(hello))
        models = [profile.model for profile in hello.profiles]
        log.info("agent joined", extra={"agent": hello.agent, "gpu": hello.gpu, "models": models})


def merged(orders: list[AgentOrder]) -> list[AgentOrder]:
    """The same orders with runs of plain additions joined into one."""
    result: list[AgentOrder] = []
    for order in orders:
        last = result[-1] if result else None
        if (
            isinstance(order, QueueUpdate)
            and isinstance(last, QueueUpdate)
            and last.epoch == order.epoch
            and not (order.snapshot or order.remove or order.order is not None)
        ):
            result[-1] = replace(last, add=last.add + order.add)
        else:
            result.append(order)
    return result


def parts(order: AgentOrder, refs_max: int) -> list[AgentOrder]:
    """The same order as several, none of which names more than so many requests.

    Removals come with the first, like a new order of groups: what is added and was there before must have gone.
    """
    if not isinstance(order, QueueUpdate) or len(order.add) + len(order.remove) <= refs_max:
        return [order]
    removals = [
        QueueUpdate(epoch=order.epoch, remove=order.remove[start : start + refs_max])
        for start in range(0, len(order.remove), refs_max)
    ]
    additions = [
        QueueUpdate(epoch=order.epoch, add=order.add[start : start + refs_max])
        for start in range(0, len(order.add), refs_max)
    ]
    first, *rest = [*removals, *additions]
    return [replace(first, snapshot=order.snapshot, order=order.order, wake=order.wake), *rest]


def _bytes_max(limits: SolverLimits) -> int:
    return min(_MESSAGE_BYTES_MAX, int(limits.message_bytes_max * _MESSAGE_SHARE))


async def _end(session: _Session[Any], reader: asyncio.Task[None]) -> BaseException | None:
    """Stop reading; say why the session ended, if anything was wrong."""
    session.pulse.stop()
    if session.error is not None:
        reader.cancel()
    # Else the outbox is closed because reading ended, or because the peer is gone.
    await asyncio.wait([reader], timeout=_READ_END_S)
    reader.cancel()
    (outcome,) = await asyncio.gather(reader, return_exceptions=True)
    return session.error or outcome


async def _abort_if_failed(
    outcome: BaseException | None, context: grpc.aio.ServicerContext[Any, Any]
) -> None:
    """End the stream with the status that says what its peer did wrong, if it did."""
    if isinstance(outcome, SessionError):
        await context.abort(outcome.code, str(outcome))
    if isinstance(outcome, wire.WireError):
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(outcome))
    if isinstance(outcome, Exception):
        log.error("session failed", exc_info=outcome)
        await context.abort(grpc.StatusCode.INTERNAL, "the session failed; see the solver's log")
