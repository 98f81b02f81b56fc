"""The gRPC edges of the solver: one stream per gateway, one per agent, and the questions.

A session turns messages into events for the driver and orders into messages. It owns nothing: when a stream ends,
for whatever reason, the Manager is told and its leases decide what that means.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import msgspec

from protos import wire
from protos.outbox import Outbox
from protos.qlm.v1 import agent_session_service_pb2 as agent_pb
from protos.qlm.v1 import agent_session_service_pb2_grpc as agent_grpc
from protos.qlm.v1 import gateway_session_service_pb2 as gateway_pb
from protos.qlm.v1 import gateway_session_service_pb2_grpc as gateway_grpc
from qlm_core.config import SolverLimits
from qlm_core.manager import views
from qlm_core.manager.events import (
    AgentJoined,
    AgentLeft,
    AgentReported,
    GatewayJoined,
    GatewayLeft,
    GatewaySaid,
)
from qlm_core.messages import AgentHello, AgentOrder, GatewayHello, GatewayOrder
from qlm_core.model import GatewayId, RequestId
from solver.driver import Driver

log = logging.getLogger("qlm.solver")

_OUTBOX_LIMIT = 200_000


class GatewaySessions(gateway_grpc.GatewaySessionServiceServicer):
    """Serves gateways."""

    def __init__(self, driver: Driver, limits: SolverLimits):
        self._driver = driver
        self._limits = limits
        self._open: dict[GatewayId, Callable[[], None]] = {}

    async def GatewaySession(
        self,
        request_iterator: AsyncIterator[gateway_pb.GatewaySessionRequest],
        context: grpc.aio.ServicerContext[
            gateway_pb.GatewaySessionRequest, gateway_pb.GatewaySessionResponse
        ],
    ) -> AsyncIterator[gateway_pb.GatewaySessionResponse]:
        """One gateway's stream; see the protocol file."""
        outbox: Outbox[GatewayOrder] = Outbox(limit=_OUTBOX_LIMIT)
        reader = asyncio.create_task(self._read(request_iterator, outbox))
        try:
            while orders := await outbox.take():
                yield wire.gateway_orders_to_wire(orders)
        finally:
            reader.cancel()
            (outcome,) = await asyncio.gather(reader, return_exceptions=True)
        await _abort_if_failed(outcome, context)

    async def _read(
        self,
        incoming: AsyncIterator[gateway_pb.GatewaySessionRequest],
        outbox: Outbox[GatewayOrder],
    ) -> None:
        gateway: GatewayId | None = None
        send = outbox.put
        replaced = False

        def replace() -> None:
            nonlocal replaced
            replaced = True
            outbox.close()

        try:
            async for message in incoming:
                if replaced:
                    raise SessionError(grpc.StatusCode.ABORTED, "a newer session took over")
                now_s = self._driver.now_s()
                for fact in wire.facts_from_wire(message, gateway or GatewayId(""), now_s):
                    if isinstance(fact, GatewayHello):
                        gateway = self._open_session(fact, gateway, send, replace)
                    elif gateway is None:
                        raise SessionError(
                            grpc.StatusCode.FAILED_PRECONDITION, "the first fact must be hello"
                        )
                    else:
                        self._driver.post(GatewaySaid(gateway, fact))
        finally:
            outbox.close()
            if gateway is not None and self._driver.detach_gateway(gateway, send):
                self._open.pop(gateway, None)
                self._driver.post(GatewayLeft(gateway))
                log.info("gateway left", extra={"gateway": gateway})

    def _open_session(
        self,
        hello: GatewayHello,
        current: GatewayId | None,
        send: Callable[[GatewayOrder], None],
        replace: Callable[[], None],
    ) -> GatewayId:
        if current is not None:
            raise SessionError(grpc.StatusCode.FAILED_PRECONDITION, "hello came twice")
        if not hello.gateway:
            raise SessionError(grpc.StatusCode.INVALID_ARGUMENT, "hello.gateway_id: empty")
        older = self._open.get(hello.gateway)
        if older is not None:
            older()
        elif len(self._open) >= self._limits.gateways_max:
            raise SessionError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"the limit of {self._limits.gateways_max} gateways is reached",
            )
        self._open[hello.gateway] = replace
        self._driver.attach_gateway(hello.gateway, send)
        self._driver.post(GatewayJoined(hello))
        log.info("gateway joined", extra={"gateway": hello.gateway, "address": hello.work_address})
        return hello.gateway

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
                grpc.StatusCode.NOT_FOUND, f"id: {request.id!r} is not waiting here"
            )
        return gateway_pb.ExplainResponse(explanation_json=msgspec.json.encode(answer))

    async def View(
        self,
        _request: gateway_pb.ViewRequest,
        _context: grpc.aio.ServicerContext[gateway_pb.ViewRequest, gateway_pb.ViewResponse],
    ) -> gateway_pb.ViewResponse:
        """The whole fleet."""
        answer = views.view(self._driver.manager, now_s=self._driver.now_s())
        return gateway_pb.ViewResponse(view_json=msgspec.json.encode(answer))

    async def Estimate(
        self,
        request: gateway_pb.EstimateRequest,
        context: grpc.aio.ServicerContext[gateway_pb.EstimateRequest, gateway_pb.EstimateResponse],
    ) -> gateway_pb.EstimateResponse:
        """The wait of a request that is not submitted."""
        now_s = self._driver.now_s()
        meta = wire.meta_from_wire(request.request, GatewayId(""), now_s)
        estimate = self._driver.manager.estimate(meta, now_s=now_s)
        if estimate is None:
            await context.abort(
                grpc.StatusCode.NOT_FOUND, f"model: no connected agent serves {meta.model!r}"
            )
        return gateway_pb.EstimateResponse(estimate=wire.estimate_to_wire(estimate))


class AgentSessions(agent_grpc.AgentSessionServiceServicer):
    """Serves agents."""

    def __init__(self, driver: Driver, limits: SolverLimits):
        self._driver = driver
        self._limits = limits
        self._open: dict[str, Callable[[], None]] = {}

    async def AgentSession(
        self,
        request_iterator: AsyncIterator[agent_pb.AgentSessionRequest],
        context: grpc.aio.ServicerContext[
            agent_pb.AgentSessionRequest, agent_pb.AgentSessionResponse
        ],
    ) -> AsyncIterator[agent_pb.AgentSessionResponse]:
        """One agent's stream; see the protocol file."""
        outbox: Outbox[AgentOrder] = Outbox(limit=_OUTBOX_LIMIT)
        reader = asyncio.create_task(self._read(request_iterator, outbox))
        try:
            while orders := await outbox.take():
                now_s = self._driver.now_s()
                for order in orders:
                    yield wire.agent_order_to_wire(order, now_s)
        finally:
            reader.cancel()
            (outcome,) = await asyncio.gather(reader, return_exceptions=True)
        await _abort_if_failed(outcome, context)

    async def _read(
        self,
        incoming: AsyncIterator[agent_pb.AgentSessionRequest],
        outbox: Outbox[AgentOrder],
    ) -> None:
        hello: AgentHello | None = None
        send = outbox.put
        replaced = False

        def replace() -> None:
            nonlocal replaced
            replaced = True
            outbox.close()

        try:
            async for message in incoming:
                if replaced:
                    raise SessionError(grpc.StatusCode.ABORTED, "a newer session took over")
                said = wire.agent_message_from_wire(message)
                if isinstance(said, AgentHello):
                    if hello is not None:
                        raise SessionError(grpc.StatusCode.FAILED_PRECONDITION, "hello came twice")
                    self._open_session(said, send, replace)
                    hello = said
                elif hello is None:
                    raise SessionError(
                        grpc.StatusCode.FAILED_PRECONDITION, "the first message must be hello"
                    )
                else:
                    self._driver.post(AgentReported(hello.agent, said))
        finally:
            outbox.close()
            if hello is not None and self._driver.detach_agent(hello.agent, send):
                self._open.pop(hello.agent, None)
                self._driver.post(AgentLeft(hello.agent))
                log.info("agent left", extra={"agent": hello.agent})

    def _open_session(
        self,
        hello: AgentHello,
        send: Callable[[AgentOrder], None],
        replace: Callable[[], None],
    ) -> None:
        if not hello.agent:
            raise SessionError(grpc.StatusCode.INVALID_ARGUMENT, "hello.agent_id: empty")
        if not hello.profiles:
            raise SessionError(grpc.StatusCode.INVALID_ARGUMENT, "hello.models: empty")
        older = self._open.get(hello.agent)
        if older is not None:
            older()
        elif len(self._open) >= self._limits.agents_max:
            raise SessionError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"the limit of {self._limits.agents_max} agents is reached",
            )
        self._open[hello.agent] = replace
        self._driver.attach_agent(hello.agent, send)
        self._driver.post(AgentJoined(hello))
        models = [profile.model for profile in hello.profiles]
        log.info("agent joined", extra={"agent": hello.agent, "gpu": hello.gpu, "models": models})


class SessionError(Exception):
    """A peer broke the rules of its session; carries the status code that says how."""

    def __init__(self, code: grpc.StatusCode, message: str):
        super().__init__(message)
        self.code = code


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
