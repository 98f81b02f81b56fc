"""Rogue clients, agents and gateways, over real gRPC, where doors ask for a secret, for certificates, or for both."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest

from gateway.listeners import CLIENT_SERVICE, WORK_SERVICE
from protos import wire
from protos.identity import SOLVER, Part
from protos.qlm.v1 import client_service_pb2 as client_pb
from protos.qlm.v1 import client_service_pb2_grpc as client_grpc
from protos.qlm.v1 import gateway_session_service_pb2 as gateway_pb
from protos.qlm.v1 import gateway_session_service_pb2_grpc as gateway_grpc
from protos.qlm.v1 import types_pb2
from protos.qlm.v1 import work_service_pb2_grpc as work_grpc
from qlm_core import messages as m
from qlm_core.model import AgentId, GatewayId, Phase, RequestId
from tests.doors import beds
from tests.doors.beds import AGENT, ALICE, GATEWAY, OTHER, SECRET, Bed, call
from tests.gateway.peers import soon

UNAUTHENTICATED, DENIED = grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED
UNREACHED = grpc.StatusCode.UNAVAILABLE
# What calls of `beds.call` end with whose status was lost; the counts tell that they were refused.
TORN = grpc.StatusCode.UNKNOWN
# More than a line has that says who was turned away; a traceback is longer.
LINE_CHARS_MAX = 400


@pytest.fixture(params=["secret", "certificates", "both"])
async def bed(request: pytest.FixtureRequest, certificates: Path) -> AsyncIterator[Bed]:
    """A fleet behind doors of one kind."""
    kind = request.param
    async with beds.shut(
        secret=kind != "certificates", certificates=None if kind == "secret" else certificates
    ) as made:
        yield made


@pytest.fixture
async def named(certificates: Path) -> AsyncIterator[Bed]:
    """A fleet whose parts have certificates."""
    async with beds.shut(secret=False, certificates=certificates) as made:
        yield made


def stranger(bed: Bed) -> contextlib.AbstractAsyncContextManager[grpc.aio.Channel]:
    """Somebody at the solver's port who has nothing to show."""
    return grpc.aio.insecure_channel(bed.config.solver.listen)


async def test_parts_with_what_they_need_come_in(bed: Bed) -> None:
    await soon(lambda: bed.gateway._solver.connected)
    async with (
        bed.dial(bed.at.agents, AGENT, GATEWAY) as channel,
        bed.dial(bed.config.solver.listen, GATEWAY, SOLVER) as asking,
    ):
        metadata = beds.told(SECRET) if bed.secret else ()
        stream = work_grpc.WorkServiceStub(channel).Work(metadata=metadata)
        await stream.write(beds.work_hello(AGENT.name))
        await soon(lambda: bed.gateway.driver._agents)
        stub = gateway_grpc.GatewaySessionServiceStub(asking)
        assert (await stub.View(gateway_pb.ViewRequest(), metadata=metadata)).view_json
        stream.cancel()
    assert bed.rejected == 0


async def test_a_stranger_calls_no_method_of_any_part(
    bed: Bed, caplog: pytest.LogCaptureFixture
) -> None:
    at_solver = [*beds.methods_of(beds.GATEWAY_SESSIONS, beds.AGENT_SESSIONS)]
    at_agents = [*beds.methods_of(beds.WORK)]
    more = [(f"/{beds.HEALTH}/Check", False), (f"/{beds.REFLECTION}/ServerReflectionInfo", True)]
    asked = 0
    with caplog.at_level(logging.DEBUG):
        for address, methods in (
            (bed.config.solver.listen, at_solver + more),
            (bed.at.agents, at_agents + more),
        ):
            async with grpc.aio.insecure_channel(address) as channel:
                for path, streams in methods:
                    for body in (b"", b"\xff" * 64):
                        for metadata in (
                            (),
                            beds.told("wrong"),
                            beds.told(ALICE),
                            beds.bearing(ALICE),
                            beds.bearing(SECRET),
                        ):
                            code = await call(
                                channel, path, streams=streams, body=body, metadata=metadata
                            )
                            wanted = UNREACHED if bed.certificates else UNAUTHENTICATED
                            assert code in (wanted, TORN), path
                            asked += 1
    # Without TLS a guard sees each of them, and says so at most once a while.
    assert bed.rejected == (0 if bed.certificates else asked)
    lines = [one for one in caplog.records if one.getMessage() == "turned away"]
    assert len(lines) <= 2
    assert_no_traceback(caplog)
    assert not bed.driver.manager.agents
    assert not bed.gateway.driver._agents


def assert_no_traceback(caplog: pytest.LogCaptureFixture) -> None:
    for record in caplog.records:
        assert record.exc_info is None, record.getMessage()
        assert len(record.getMessage()) < LINE_CHARS_MAX
        for canary in (SECRET, ALICE):
            assert canary not in str(vars(record))


async def test_an_agent_is_nobody_at_the_clients_listener(bed: Bed) -> None:
    tells = beds.told(SECRET)
    async with grpc.aio.insecure_channel(bed.at.grpc) as channel:
        for metadata in ((), tells, beds.bearing(ALICE)):
            code = await call(channel, f"/{WORK_SERVICE}/Work", streams=True, metadata=metadata)
            assert code is grpc.StatusCode.UNIMPLEMENTED
    async with bed.dial(bed.at.agents, AGENT, GATEWAY) as channel:
        for path, streams in beds.methods_of(beds.CLIENTS):
            code = await call(channel, path, streams=streams, metadata=tells)
            assert code is grpc.StatusCode.UNIMPLEMENTED


async def test_a_client_without_a_key_calls_no_method(
    bed: Bed, caplog: pytest.LogCaptureFixture
) -> None:
    methods = [*beds.methods_of(beds.CLIENTS), (f"/{beds.REFLECTION}/ServerReflectionInfo", True)]
    async with grpc.aio.insecure_channel(bed.at.grpc) as channel:
        for path, streams in methods:
            for body in (b"", b"\xff" * 64):
                for metadata in (
                    (),
                    beds.bearing("wrong"),
                    beds.told(SECRET),
                    beds.bearing(SECRET),
                ):
                    code = await call(channel, path, streams=streams, body=body, metadata=metadata)
                    assert code in (UNAUTHENTICATED, TORN), path
        # It may ask whether the gateway is there, and send what cannot be read once it has a key.
        assert await call(channel, f"/{beds.HEALTH}/Check") is grpc.StatusCode.OK
        path = f"/{CLIENT_SERVICE}/GetRequest"
        code = await call(channel, path, body=b"\xff" * 64, metadata=beds.bearing(ALICE))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert bed.rejected == 8 * len(methods)
    assert_no_traceback(caplog)


async def test_a_certificate_without_the_secret_is_not_enough(certificates: Path) -> None:
    async with beds.shut(secret=True, certificates=certificates) as bed:
        without = beds.without_secret(bed.config)
        async with bed.dial(bed.at.agents, AGENT, GATEWAY, config=without) as channel:
            for metadata in ((), beds.told("wrong"), beds.told(ALICE)):
                code = await call(channel, f"/{WORK_SERVICE}/Work", streams=True, metadata=metadata)
                assert code in (UNAUTHENTICATED, TORN)


async def test_the_certificate_of_another_role_opens_nothing(named: Bed) -> None:
    async with named.dial(named.config.solver.listen, AGENT, SOLVER) as channel:
        for path, streams in beds.methods_of(beds.GATEWAY_SESSIONS):
            assert await call(channel, path, streams=streams) in (DENIED, TORN), path
    async with named.dial(named.config.solver.listen, GATEWAY, SOLVER) as channel:
        for path, streams in beds.methods_of(beds.AGENT_SESSIONS):
            assert await call(channel, path, streams=streams) in (DENIED, TORN), path
    async with named.dial(named.at.agents, GATEWAY, GATEWAY) as channel:
        code = await call(channel, f"/{WORK_SERVICE}/Work", streams=True)
        assert code in (DENIED, TORN)
    methods = [*beds.methods_of(beds.GATEWAY_SESSIONS, beds.AGENT_SESSIONS)]
    counts = named.rejections.counts | named.gateway._desk.rejections.counts
    assert counts == {("solver", "role"): len(methods), ("agents", "role"): 1}


async def test_a_certificate_of_another_ca_opens_nothing(named: Bed, tmp_path: Path) -> None:
    beds.make_certificates(tmp_path / "forged", "new")
    forged = beds.config_of(False, tmp_path / "forged")
    for address, who, to in (
        (named.config.solver.listen, GATEWAY, SOLVER),
        (named.at.agents, AGENT, GATEWAY),
    ):
        async with named.dial(address, who, to, config=forged) as channel:
            assert await call(channel, f"/{beds.HEALTH}/Check") is UNREACHED


async def test_the_certificate_for_clients_is_no_parts(named: Bed) -> None:
    posing = Part(AGENT.role, "x")
    certs = named.certificates
    assert certs is not None
    clients = beds.config_of(False, certs, tls={})
    tls = msgspec.structs.replace(
        clients.tls, cert=f"{certs}/clients.crt", key=f"{certs}/clients.key"
    )
    clients = msgspec.structs.replace(clients, tls=tls)
    async with named.dial(named.at.agents, posing, GATEWAY, config=clients) as channel:
        code = await call(channel, f"/{WORK_SERVICE}/Work", streams=True)
        assert code in (UNREACHED, DENIED)


async def test_no_part_passes_for_another_that_is_dialled(named: Bed) -> None:
    """Whoever dials asks for a part by name: what listens elsewhere is not it."""
    elsewhere = Part(GATEWAY.role, "gateway-1")
    for address, to in (
        (named.at.agents, elsewhere),
        (named.at.agents, SOLVER),
        (named.config.solver.listen, GATEWAY),
    ):
        async with named.dial(address, AGENT, to) as channel:
            assert await call(channel, f"/{beds.HEALTH}/Check") is UNREACHED


async def hello_of(channel: grpc.aio.Channel, bed: Bed, *messages: Any) -> grpc.StatusCode:
    """How a work stream ends that says these hellos."""
    metadata = beds.told(SECRET) if bed.secret else ()
    stream = work_grpc.WorkServiceStub(channel).Work(metadata=metadata)
    for message in messages:
        await stream.write(message)
    async with asyncio.timeout(beds.WAIT_S):
        # Its status comes after what was sent before.
        with contextlib.suppress(grpc.aio.AioRpcError):
            async for _ in stream:
                continue
        return await stream.code()


async def test_a_real_agents_name_cannot_be_taken(named: Bed) -> None:
    async with (
        named.dial(named.at.agents, AGENT, GATEWAY) as real,
        named.dial(named.at.agents, OTHER, GATEWAY) as rogue,
        named.dial(named.config.solver.listen, OTHER, SOLVER) as at_solver,
    ):
        stream = work_grpc.WorkServiceStub(real).Work()
        await stream.write(beds.work_hello(AGENT.name))
        await soon(lambda: named.gateway.driver._agents)
        assert await hello_of(rogue, named, beds.work_hello(AGENT.name)) is DENIED
        assert list(named.gateway.driver._agents) == [AGENT.name]
        assert not stream.done()
        path = f"/{beds.AGENT_SESSIONS.full_name}/AgentSession"
        body = beds.agent_hello(AGENT.name).SerializeToString()
        assert await call(at_solver, path, streams=True, body=body) is DENIED
        assert not named.driver.manager.agents
        stream.cancel()
    counts = named.rejections.counts | named.gateway._desk.rejections.counts
    assert counts == {("solver", "name"): 1, ("agents", "name"): 1}


async def test_a_gateways_name_cannot_be_taken(named: Bed, certificates: Path) -> None:
    await soon(lambda: named.driver.manager.gateways)
    beds.make_certificates(certificates, "new", "--set", "gateway.id=gateway-1")
    rogue = Part(GATEWAY.role, "gateway-1")
    hello = wire.facts_to_wire([m.GatewayHello(GatewayId(GATEWAY.name), "127.0.0.1:1")], 0.0)
    async with named.dial(named.config.solver.listen, rogue, SOLVER) as channel:
        path = f"/{beds.GATEWAY_SESSIONS.full_name}/GatewaySession"
        body = hello.SerializeToString()
        assert await call(channel, path, streams=True, body=body) is DENIED
    assert named.driver.manager.gateways == {GatewayId(GATEWAY.name): named.at.agents}


async def test_a_gateway_ends_no_request_of_anothers(named: Bed, certificates: Path) -> None:
    id = await enqueued(named)
    beds.make_certificates(certificates, "new", "--set", "gateway.id=gateway-1")
    rogue = Part(GATEWAY.role, "gateway-1")
    said = [
        m.GatewayHello(GatewayId(rogue.name), "127.0.0.1:1"),
        m.Ended(id, Phase.CANCELLED, 0, 0),
        m.Pulled(id, AgentId(AGENT.name)),
        m.AnnounceDone(),
    ]
    async with named.dial(named.config.solver.listen, rogue, SOLVER) as channel:
        stream = gateway_grpc.GatewaySessionServiceStub(channel).GatewaySession()
        await stream.write(wire.facts_to_wire(said, 0.0))
        await soon(lambda: named.rejections.counts == {("solver", "foreign"): 2})
        held = named.driver.manager.book.get(id)
        assert held is not None
        assert held.agent is None
        stream.cancel()


async def enqueued(bed: Bed) -> RequestId:
    """A client's request, once the solver knows of it."""
    request = client_pb.NewRequest(
        model="tiny", body_json=b'{"prompt": "canary"}', endpoint=types_pb2.ENDPOINT_COMPLETIONS
    )
    async with grpc.aio.insecure_channel(bed.at.grpc) as channel:
        stub = client_grpc.ClientServiceStub(channel)
        enqueue = client_pb.EnqueueRequest(request=request)
        taken = await stub.Enqueue(enqueue, metadata=beds.bearing(ALICE))
    id = RequestId(taken.accepted.id)
    await soon(lambda: bed.driver.manager.book.get(id))
    return id


async def test_a_hello_that_comes_twice_ends_its_stream(bed: Bed) -> None:
    twice = [beds.work_hello(AGENT.name)] * 2
    async with bed.dial(bed.at.agents, AGENT, GATEWAY) as channel:
        code = await hello_of(channel, bed, *twice)
        assert code is grpc.StatusCode.FAILED_PRECONDITION
    await soon(lambda: not bed.gateway.driver._agents)


async def test_an_epoch_from_outside_stops_nobody(bed: Bed) -> None:
    metadata = beds.told(SECRET) if bed.secret else ()
    path = f"/{beds.AGENT_SESSIONS.full_name}/AgentSession"
    async with bed.dial(bed.config.solver.listen, AGENT, SOLVER) as channel:
        body = beds.agent_hello(AGENT.name, epoch=2**64 - 1).SerializeToString()
        code = await call(channel, path, streams=True, body=body, metadata=metadata)
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert not bed.driver.manager.agents
    async with bed.dial(bed.config.solver.listen, OTHER, SOLVER) as channel:
        body = beds.agent_hello(OTHER.name, epoch=7).SerializeToString()
        assert (
            await call(channel, path, streams=True, body=body, metadata=metadata)
            is grpc.StatusCode.OK
        )


async def test_a_revoked_certificate_opens_nothing_from_then_on(tmp_path: Path) -> None:
    folder = tmp_path / "certs"
    beds.make_certificates(folder, "new")
    async with (
        beds.shut(secret=False, certificates=folder) as bed,
        bed.dial(bed.at.agents, OTHER, GATEWAY) as channel,
    ):
        check = f"/{beds.HEALTH}/Check"
        assert await call(channel, check) is grpc.StatusCode.OK
        beds.make_certificates(folder, "revoke", "agent-agent-1")
        assert await call(channel, check) is DENIED
        (folder / "revoked.txt").rename(folder / "away")
        assert await call(channel, check) is DENIED
        (folder / "away").rename(folder / "revoked.txt")
        beds.make_certificates(folder, "renew", "agent-agent-1")
        async with bed.dial(bed.at.agents, OTHER, GATEWAY) as renewed:
            assert await call(renewed, check) is grpc.StatusCode.OK


async def test_a_stranger_with_the_solvers_port_gets_no_prompt(bed: Bed) -> None:
    """The whole way of the rogue that pulled others' prompts: ask the solver what waits, and pull that as an agent."""
    id = await enqueued(bed)
    async with stranger(bed) as channel:
        path = f"/{beds.GATEWAY_SESSIONS.full_name}/View"
        assert await call(channel, path) in (UNREACHED, UNAUTHENTICATED)
    pull = wire.work_to_wire([m.WorkHello(AgentId("rogue"), ()), m.Pull((id,))])
    async with grpc.aio.insecure_channel(bed.at.agents) as channel:
        body = pull.SerializeToString()
        code = await call(channel, f"/{WORK_SERVICE}/Work", streams=True, body=body)
        assert code in (UNREACHED, UNAUTHENTICATED)
    row = bed.gateway.driver.ledger.row(id)
    assert row is not None
    assert row.agent is None
