"""The gateway's session with a solver that misbehaves: left, said, and opened again, whatever it was."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from gateway import solver_link
from protos.qlm.v1 import gateway_session_service_pb2 as pb
from protos.qlm.v1 import types_pb2
from tests.gateway.peers import Solver, config, running, solving, soon

DESCENDING = types_pb2.WaitEstimate(mean_s=1, p50_s=3, p90_s=2, p99_s=1)
ODD = {
    "bytes that are no message": b"\xff",
    "an estimate that descends": pb.GatewaySessionResponse(
        orders=[pb.GatewayOrder(estimate=pb.EstimateGiven(id="r", estimate=DESCENDING))]
    ).SerializeToString(),
    "an order without a kind": pb.GatewaySessionResponse(
        orders=[pb.GatewayOrder()]
    ).SerializeToString(),
}


@pytest.mark.parametrize("odd", ODD)
async def test_a_solver_that_says_what_cannot_be_read_is_dialled_again(odd: str) -> None:
    sessions: list[object] = []

    async def session(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        sessions.append(context)
        yield ODD[odd]
        async for _ in requests:
            yield b""

    handler = grpc.stream_stream_rpc_method_handler(session)
    methods = grpc.method_handlers_generic_handler(
        "qlm.v1.GatewaySessionService", {"GatewaySession": handler}
    )
    server = grpc.aio.server()
    server.add_generic_rpc_handlers([methods])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with running(config(solver=f"127.0.0.1:{port}")):
        await soon(lambda: len(sessions) > 2)
    await server.stop(None)


async def test_an_order_that_cannot_be_carried_out_costs_the_session_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    obey = solver_link.SolverLink._obey
    orders: list[object] = []

    def once(self: solver_link.SolverLink, order: Any, handle: solver_link.Handle) -> None:
        orders.append(order)
        if len(orders) == 1:
            raise KeyError("a prompt that nobody may see")
        obey(self, order, handle)

    monkeypatch.setattr(solver_link.SolverLink, "_obey", once)
    solver = Solver()
    async with solving(solver) as address, running(config(solver=address)) as (gateway, _):
        await soon(lambda: len(orders) > 1)
        await soon(gateway._solver.models)
    errors = [record for record in caplog.records if record.levelname == "ERROR"]
    assert [record.getMessage() for record in errors] == [
        "the link to the solver failed; dialling again"
    ]
    assert "prompt" not in caplog.text


class NearlyReady:
    """Doors to a solver that begins to listen when the test says so."""

    metadata = ()
    version = 0

    def __init__(self) -> None:
        self.listens = asyncio.Event()

    def channel(self, address: str, to: object, options: object) -> grpc.aio.Channel:
        channel = grpc.aio.insecure_channel(address)
        channel.channel_ready = self.listens.wait  # type: ignore[method-assign,assignment]
        return channel


@pytest.mark.parametrize("steps", range(14))
async def test_a_stop_as_the_solver_begins_to_listen_is_not_lost(steps: int) -> None:
    """It comes as the channel becomes ready, or as the call begins, where gRPC makes another error of it."""
    for _ in range(10):
        doors: Any = NearlyReady()
        link = solver_link.SolverLink(
            config().gateway, work_address=lambda: "127.0.0.1:1", doors=doors, rng=random.Random(0)
        )
        running = asyncio.create_task(link.run(lambda event: None))
        await asyncio.sleep(0.01)
        doors.listens.set()
        for _ in range(steps):
            await asyncio.sleep(0)
        running.cancel()
        done, _ = await asyncio.wait([running], timeout=5.0)
        assert done
        assert running.cancelled()
        await link.close()
