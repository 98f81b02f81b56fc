"""A solver and gateways of a few lines each, over real gRPC on loopback, for tests of the agent daemon.

The gateway keeps a strict account: what it granted, each attempt's chunks in order, and exactly one end per
request.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import msgspec

from protos import wire
from protos.outbox import Outbox
from protos.pulse import Pulse
from protos.qlm.v1 import agent_session_service_pb2_grpc as agent_grpc
from protos.qlm.v1 import work_service_pb2_grpc as work_grpc
from qlm_core.messages import (
    AgentHello,
    AgentOrder,
    Alive,
    Attempt,
    AttemptEnded,
    AttemptReturned,
    Chunk,
    Gateways,
    Joined,
    Payload,
    Pull,
    QueueUpdate,
    Refused,
    Revoked,
    WorkHello,
    WorkOrder,
)
from qlm_core.model import (
    GatewayId,
    GroupId,
    InstanceState,
    ModelName,
    QueuedGroup,
    RequestId,
    RequestRef,
)
from qlm_core.outcome import PullRefusal
from tests.endpoints import generating

WAIT_S = 20.0


def _nothing() -> None:
    """Peers of tests do not mind silence."""


class Changing:
    """Something that tests wait on."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()

    def changed(self) -> None:
        self._changed.set()

    async def until(self, condition: Any) -> None:
        async with asyncio.timeout(WAIT_S):
            while not condition():
                self._changed.clear()
                await self._changed.wait()


class Solver(Changing, agent_grpc.AgentSessionServiceServicer):
    """Takes hellos and reports; tells the agent what the test says."""

    def __init__(self) -> None:
        super().__init__()
        self.hellos: list[AgentHello] = []
        self.reports: list[InstanceState] = []
        self.ending: grpc.StatusCode | None = None
        self.mute = False
        self._outbox: Outbox[AgentOrder] = Outbox(limit=10_000)

    def idle(self) -> bool:
        """Whether the agent ran something once and runs nothing by its latest report."""
        ran = any(report.running for report in self.reports)
        return ran and not self.reports[-1].running

    def tell(self, order: AgentOrder) -> None:
        self._outbox.put(order)

    async def AgentSession(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:
        outbox = self._outbox = Outbox(limit=10_000)
        reader = asyncio.create_task(self._read(request_iterator))
        pulse = Pulse(lambda: self.mute or outbox.put(Alive()), on_silence=_nothing)
        pulse.start()
        try:
            while orders := await outbox.take():
                for order in orders:
                    yield wire.agent_order_to_wire(order, 0.0)
                if self.ending is not None:
                    await context.abort(self.ending, "as the test says")
        finally:
            pulse.stop()
            reader.cancel()

    async def _read(self, incoming: Any) -> None:
        async for message in incoming:
            heard = wire.agent_message_from_wire(message)
            if isinstance(heard, AgentHello):
                self.hellos.append(heard)
            else:
                self.reports.append(heard)
            self.changed()


class Gateway(Changing, work_grpc.WorkServiceServicer):
    """Grants what it holds; counts what comes."""

    def __init__(self, id: str = "gw") -> None:
        super().__init__()
        self.id = GatewayId(id)
        self.bodies: dict[str, bytes] = {}
        self.chat: dict[str, bool] = {}
        self.model = ModelName("mistral-7b")
        self.hellos: list[WorkHello] = []
        self.pulls: list[tuple[str, ...]] = []
        self.attempt: dict[str, int] = {}
        self.chunks: dict[str, list[Chunk]] = {}
        self.ended: dict[str, AttemptEnded] = {}
        self.returned: list[AttemptReturned] = []
        self.stale = 0
        self.messages = 0
        self.streams = 0
        self.mute = False
        self._outbox: Outbox[WorkOrder] = Outbox(limit=100_000)
        self._calls: list[asyncio.Task[None]] = []

    def add(self, id: str, tokens: int = 10, **fields: object) -> None:
        body = {"prompt": "hello", "max_tokens": tokens, "ignore_eos": True} | fields
        self.bodies[id] = msgspec.json.encode(body)

    def revoke(self, id: str) -> None:
        self._outbox.put(Revoked(RequestId(id), self.attempt[id]))
        self.attempt[id] += 1

    def text(self, id: str) -> str:
        parts = [msgspec.json.decode(chunk.data) for chunk in self.chunks[id]]
        return "".join(part["choices"][0]["text"] for part in parts)

    def tokens(self, id: str) -> int:
        return sum(chunk.tokens for chunk in self.chunks.get(id, ()))

    async def Work(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:
        outbox = self._outbox = Outbox(limit=100_000)
        reader = asyncio.create_task(self._read(request_iterator, outbox))
        pulse = Pulse(lambda: self.mute or outbox.put(Alive()), on_silence=_nothing)
        pulse.start()
        self.streams += 1
        try:
            while orders := await outbox.take():
                if not self.mute:
                    yield wire.work_orders_to_wire(orders)
        finally:
            pulse.stop()
            reader.cancel()
            self.streams -= 1
            self.changed()

    async def _read(self, incoming: Any, outbox: Outbox[WorkOrder]) -> None:
        async for message in incoming:
            self.messages += 1
            for event in wire.work_from_wire(message):
                self._take(event)
            self.changed()
        outbox.close()

    def _take(self, event: Any) -> None:
        match event:
            case WorkHello(_, running):
                self.hellos.append(event)
                self._outbox.put(Joined(tuple(filter(None, map(self._going_on, running)))))
            case Pull(ids):
                self.pulls.append(ids)
                for id in ids:
                    self._grant(id)
            case _ if event.attempt != self.attempt.get(event.id):
                self.stale += 1
            case Chunk(id):
                assert id not in self.ended, "output after the end"
                self.chunks.setdefault(id, []).append(event)
            case AttemptEnded(id):
                assert id not in self.ended, "ended twice"
                self.ended[id] = event
            case AttemptReturned():
                self.returned.append(event)

    def _going_on(self, run: Attempt) -> Attempt | None:
        if run.attempt != self.attempt.get(run.id) or run.id in self.ended:
            return None
        chunks = self.chunks.get(run.id, ())
        return Attempt(run.id, run.attempt, sum(one.attempt == run.attempt for one in chunks))

    def _grant(self, id: str) -> None:
        if id not in self.bodies or id in self.ended:
            self._outbox.put(Refused(RequestId(id), PullRefusal.UNKNOWN))
            return
        self.attempt[id] = attempt = self.attempt.get(id, 0) + 1
        chat = self.chat.get(id, False)
        produced = self.tokens(id)
        resume = self.text(id) if produced else ""
        self._outbox.put(
            Payload(
                RequestId(id),
                attempt,
                self.model,
                generating(chat),
                self.bodies[id],
                resume,
                produced,
            )
        )


class Peers:
    """Servers that can be stopped and started again on the same port."""

    def __init__(self) -> None:
        self.solver = Solver()
        self.gateway = Gateway()
        self._servers: dict[str, tuple[grpc.aio.Server, int]] = {}

    async def start(self, name: str) -> str:
        """Serve the `solver` or the `gateway`; returns its address."""
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        if name == "solver":
            agent_grpc.add_AgentSessionServiceServicer_to_server(self.solver, server)
        else:
            work_grpc.add_WorkServiceServicer_to_server(self.gateway, server)
        known = self._servers.get(name)
        port = server.add_insecure_port(f"127.0.0.1:{known[1] if known else 0}")
        await server.start()
        self._servers[name] = (server, port)
        return f"127.0.0.1:{port}"

    async def stop(self, name: str) -> None:
        await self._servers[name][0].stop(0)

    async def close(self) -> None:
        for server, _ in self._servers.values():
            await server.stop(0)

    def address(self, name: str) -> str:
        return f"127.0.0.1:{self._servers[name][1]}"

    def introduce(self, *others: str) -> None:
        """Tell the agent where the gateway is, and that others have been there before."""
        ids = (*map(GatewayId, others), self.gateway.id)
        self.solver.tell(Gateways(tuple((id, self.address("gateway")) for id in ids)))

    def disown(self) -> None:
        """Tell the agent that there is no gateway."""
        self.solver.tell(Gateways(()))

    def queue(self, *ids: str, epoch: int = 1, snapshot: bool = True) -> None:
        """Put requests of the gateway into the agent's queue, as one group."""
        refs = tuple(
            RequestRef(RequestId(id), self.gateway.id, GroupId(1), 10, 500, 100, 0, 60.0)
            for id in ids
        )
        group = QueuedGroup(GroupId(1), self.gateway.model, "batch-1")
        self.solver.tell(QueueUpdate(epoch=epoch, snapshot=snapshot, order=(group,), add=refs))
