"""Small stand-ins for the gateway's peers, over real gRPC: a solver that plans nothing and an agent that obeys."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from gateway.service import Addresses, Gateway
from protos import wire
from protos.outbox import Outbox
from protos.qlm.v1 import gateway_session_service_pb2 as session_pb
from protos.qlm.v1 import gateway_session_service_pb2_grpc as session_grpc
from protos.qlm.v1 import types_pb2
from protos.qlm.v1 import work_service_pb2_grpc as work_grpc
from qlm_core import messages as m
from qlm_core.config import Config
from qlm_core.model import AgentId, Estimate, GatewayId, ModelName, Phase, RequestId

WAIT_S = 5.0


async def soon(truth: Callable[[], object]) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(WAIT_S):
        while not truth():  # noqa: ASYNC110 (the truth lies in another process's words)
            await asyncio.sleep(0.002)


def config(**gateway: Any) -> Config:
    section: dict[str, Any] = {
        "http_listen": "127.0.0.1:0",
        "grpc_listen": "127.0.0.1:0",
        "agents_listen": "127.0.0.1:0",
        "solver": "127.0.0.1:1",
        "drain_s": 0.2,
        "store": {"kind": "memory"},
        # The solver here says nothing of batches by itself, so there is nothing to wait for.
        "batches": {"finish_wait_s_max": 0.0} | gateway.pop("batches", {}),
    }
    return Config.from_mapping(
        {
            "models": {"tiny": {"max_model_len": 1000}, "other": {}},
            "agents": [],
            "gateway": section | gateway,
        }
    )


@contextlib.asynccontextmanager
async def running(config: Config) -> AsyncIterator[tuple[Gateway, Addresses]]:
    gateway = Gateway(config)
    try:
        yield gateway, await gateway.start()
    finally:
        await gateway.stop()


class Solver(session_grpc.GatewaySessionServiceServicer):
    """Remembers what it hears and sends what the test says."""

    def __init__(self) -> None:
        self.facts: list[m.GatewayFact] = []
        self.orders: Outbox[m.GatewayOrder] = Outbox(limit=100_000)
        self.estimate = Estimate(mean_s=1.5, p50_s=1.0, p90_s=2.0, p99_s=3.0)
        self.forecast: m.BatchForecast | None = m.BatchForecast(
            self.estimate, True, 60.0, 90.0, "3 lines left"
        )
        self.estimates = False
        self.asked: list[Any] = []
        self.on_arrival: Callable[[RequestId], None] = lambda id: None

    async def GatewaySession(
        self, request_iterator: AsyncIterator[session_pb.GatewaySessionRequest], context: Any
    ) -> AsyncIterator[session_pb.GatewaySessionResponse]:
        self.orders = Outbox(limit=100_000)
        self.orders.put(m.Fleet((ModelName("tiny"), ModelName("elsewhere"))))
        reader = asyncio.create_task(self._read(request_iterator))
        try:
            while orders := await self.orders.take():
                yield wire.gateway_orders_to_wire(orders)
        finally:
            reader.cancel()

    async def _read(self, messages: AsyncIterator[session_pb.GatewaySessionRequest]) -> None:
        loop = asyncio.get_running_loop()
        async for message in messages:
            for fact in wire.facts_from_wire(message, GatewayId("gateway-0"), loop.time()):
                self.facts.append(fact)
                if isinstance(fact, m.Arrived):
                    if self.estimates:
                        self.orders.put(m.EstimateGiven(fact.request.id, self.estimate))
                    self.on_arrival(fact.request.id)

    async def View(self, request: Any, context: Any) -> session_pb.ViewResponse:
        return session_pb.ViewResponse(view_json=b'{"queues": []}')

    async def Explain(self, request: Any, context: Any) -> session_pb.ExplainResponse:
        body = json.dumps({"id": request.id, "why": "test"}).encode()
        return session_pb.ExplainResponse(explanation_json=body)

    async def WhatIf(self, request: Any, context: Any) -> session_pb.WhatIfResponse:
        changes = dict(request.changes)
        if "nope" in changes:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "changes: no such GPU. Use a100.")
        return session_pb.WhatIfResponse(answer_json=json.dumps({"changes": changes}).encode())

    async def Estimate(self, request: Any, context: Any) -> session_pb.EstimateResponse:
        self.asked.append(request)
        given = types_pb2.WaitEstimate(mean_s=1, p50_s=1, p90_s=2, p99_s=3)
        return session_pb.EstimateResponse(estimate=given)

    async def EstimateBatch(self, request: Any, context: Any) -> Any:
        question = wire.batch_question_from_wire(request)
        self.asked.append(question)
        if self.forecast is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "model: nobody serves it")
        return wire.batch_forecast_to_wire(self.forecast)

    def heard(self, kind: type) -> list[Any]:
        return [fact for fact in self.facts if isinstance(fact, kind)]


@contextlib.asynccontextmanager
async def solving(solver: Solver, address: str = "127.0.0.1:0") -> AsyncIterator[str]:
    server = grpc.aio.server()
    session_grpc.add_GatewaySessionServiceServicer_to_server(solver, server)
    port = server.add_insecure_port(address)
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


class Agent:
    """One agent's work stream, by hand or answering by itself."""

    def __init__(self, address: str, name: str = "agent-0") -> None:
        self.name = AgentId(name)
        self._address = address
        self._events: Outbox[m.WorkEvent] = Outbox(limit=100_000)
        self.orders: list[m.WorkOrder] = []
        self.joined: list[m.Joined] = []
        self.on_payload: Callable[[m.Payload], None] | None = None
        self.status: grpc.StatusCode | None = None
        self.running: tuple[m.Attempt, ...] = ()

    async def __aenter__(self) -> Agent:
        self._channel = grpc.aio.insecure_channel(self._address)
        self.send(m.WorkHello(self.name, self.running))
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        await self._channel.close(None)

    def send(self, *events: m.WorkEvent) -> None:
        for event in events:
            self._events.put(event)

    def pull(self, id: str) -> None:
        self.send(m.Pull((RequestId(id),)))

    async def payload(self, index: int = 0) -> m.Payload:
        await soon(lambda: len(self.payloads) > index)
        return self.payloads[index]

    @property
    def payloads(self) -> list[m.Payload]:
        return [order for order in self.orders if isinstance(order, m.Payload)]

    def say(self, payload: m.Payload, *texts: str, finish: str | None = None) -> None:
        """Send chunks of text, one token each."""
        for text in texts:
            self.send(m.Chunk(payload.id, payload.attempt, chunk(payload, text), 1))
        if finish is not None:
            tokens = len(texts)
            self.send(m.AttemptEnded(payload.id, payload.attempt, finish, 7, tokens))

    def answer(self, *texts: str) -> None:
        """From now on answer every payload with these texts."""
        self.on_payload = lambda payload: self.say(payload, *texts, finish="stop")

    async def _run(self) -> None:
        call = work_grpc.WorkServiceStub(self._channel).Work(self._messages())
        try:
            async for message in call:
                for order in wire.work_orders_from_wire(message):
                    if isinstance(order, m.Joined):
                        self.joined.append(order)
                        continue
                    self.orders.append(order)
                    if self.on_payload is not None and isinstance(order, m.Payload):
                        self.on_payload(order)
        except grpc.aio.AioRpcError as error:
            self.status = error.code()

    async def _messages(self) -> AsyncIterator[Any]:
        while events := await self._events.take():
            yield wire.work_to_wire(events)


def chunk(payload: m.Payload, text: str, finish: str | None = None) -> bytes:
    """An engine's chunk, with a head of its own that the gateway must replace."""
    if payload.chat:
        choice: dict[str, Any] = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    else:
        choice = {"index": 0, "text": text, "finish_reason": finish}
    return json.dumps({"model": "engine-name", "created": 1, "choices": [choice]}).encode()


class Fleet:
    """A gateway with a solver and one agent that pulls whatever arrives."""

    def __init__(self, gateway: Gateway, addresses: Addresses, solver: Solver, agent: Agent):
        self.gateway, self.addresses, self.solver, self.agent = gateway, addresses, solver, agent

    @property
    def url(self) -> str:
        return f"http://{self.addresses.http}"


@contextlib.asynccontextmanager
async def fleet(*, pulls: bool = True, **gateway: Any) -> AsyncIterator[Fleet]:
    solver = Solver()
    async with (
        solving(solver) as address,
        running(config(solver=address, **gateway)) as (made, at),
        Agent(at.agents) as agent,
    ):
        if pulls:
            solver.on_arrival = agent.pull
        await soon(lambda: solver.heard(m.AnnounceDone))
        yield Fleet(made, at, solver, agent)


def ended(solver: Solver) -> list[Phase]:
    return [fact.phase for fact in solver.heard(m.Ended)]
