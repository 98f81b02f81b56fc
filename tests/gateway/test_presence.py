"""Peers that come, fall silent, break the rules or are new: who is told what, and what survives the gateway's own restart."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path

import grpc
import pytest

from gateway import solver_link
from protos import pulse
from protos.qlm.v1 import client_service_pb2 as pb
from protos.qlm.v1 import work_service_pb2 as work_pb
from protos.qlm.v1 import work_service_pb2_grpc as work_grpc
from qlm_core import ledger as lg
from qlm_core import messages as m
from qlm_core.model import Phase, RequestId
from qlm_core.presence import PULSE_S
from tests.gateway.peers import (
    Agent,
    Solver,
    config,
    ended,
    fleet,
    running,
    solving,
    soon,
)
from tests.gateway.test_grpc import Client, collect, new, text_of
from tests.gateway.test_http import CHAT, post


async def test_a_newer_stream_of_an_agent_takes_over() -> None:
    async with fleet() as it, Agent(it.addresses.agents) as newer:
        await soon(lambda: it.agent.status is grpc.StatusCode.ABORTED)
        it.solver.on_arrival = newer.pull
        newer.answer("x")
        assert (await post(f"{it.url}/v1/chat/completions", CHAT))[0] == 200


@pytest.mark.parametrize(
    ("events", "code"),
    [
        ([work_pb.WorkEvent(pull=work_pb.Pull(ids=["x"]))], grpc.StatusCode.FAILED_PRECONDITION),
        ([work_pb.WorkEvent(hello=work_pb.WorkHello())], grpc.StatusCode.INVALID_ARGUMENT),
        ([work_pb.WorkEvent()], grpc.StatusCode.INVALID_ARGUMENT),
        (
            [work_pb.WorkEvent(hello=work_pb.WorkHello(agent_id="a"))] * 2,
            grpc.StatusCode.FAILED_PRECONDITION,
        ),
    ],
)
async def test_a_stream_that_breaks_the_protocol_is_ended(
    events: list[work_pb.WorkEvent], code: grpc.StatusCode
) -> None:
    async with running(config()) as (_, at), grpc.aio.insecure_channel(at.agents) as channel:
        call = work_grpc.WorkServiceStub(channel).Work()
        await call.write(work_pb.WorkRequest(events=events))
        with contextlib.suppress(grpc.aio.AioRpcError):
            async for _ in call:
                pass
        assert await call.code() is code


async def test_a_silent_agent_is_left_and_its_work_goes_on_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with fleet(agent_grace_s=0.05) as it:
        asked = asyncio.create_task(post(f"{it.url}/v1/chat/completions", CHAT))
        payload = await it.agent.payload()
        it.agent.say(payload, "before ")
        monkeypatch.setattr(pulse, "PULSE_S", 0.02)
        await soon(lambda: it.agent.status is grpc.StatusCode.UNAVAILABLE)
        await soon(lambda: it.solver.heard(m.Returned))
        monkeypatch.undo()
        async with Agent(it.addresses.agents, "agent-1") as other:
            other.pull(payload.id)
            other.say(await other.payload(), "after", finish="stop")
            _, answer, _ = await asked
        assert answer["choices"][0]["message"]["content"] == "before after"


async def test_a_silent_solver_is_dialled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    solver = Solver()
    monkeypatch.setattr(pulse, "PULSE_S", 0.02)
    async with solving(solver) as address, running(config(solver=address)):
        await soon(lambda: len(solver.heard(m.AnnounceDone)) >= 2)


async def test_a_new_solver_hears_everything() -> None:
    solver = Solver()
    async with (
        solving(solver) as address,
        running(config(solver=address)) as (_, at),
        Client(at.grpc) as stub,
        Agent(at.agents) as agent,
    ):
        ids = []
        for _ in range(2):
            reply = await stub.Enqueue(pb.EnqueueRequest(request=new()))
            ids.append(reply.accepted.id)
        await soon(lambda: len(solver.heard(m.Arrived)) == 2)
        agent.pull(ids[1])
        await agent.payload()
        solver.orders.close()  # the session ends, as when a solver restarts
        await soon(lambda: len(solver.heard(m.AnnounceDone)) == 2)
        told = solver.facts[-5:]
    assert [type(fact) for fact in told] == [
        m.GatewayHello,
        m.Arrived,
        m.Arrived,
        m.Pulled,
        m.AnnounceDone,
    ]
    assert told[3] == m.Pulled(RequestId(ids[1]), agent.name)


async def test_a_solver_that_does_not_answer_is_named_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(solver_link, "UNREACHED_S", 0.05)

    def told() -> list[str]:
        return [one.address for one in caplog.records if "no solver answers" in one.getMessage()]  # type: ignore[attr-defined]

    async with solving(Solver()) as address:
        pass
    async with running(config(solver=address)):
        await soon(told)
        solver = Solver()
        async with solving(solver, address):
            await soon(lambda: solver.heard(m.GatewayHello))
            assert told() == [address]


async def test_a_solvers_address_that_is_another_door_is_recognised(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(solver_link, "UNREACHED_S", 0.05)

    def found() -> list[str]:
        return [one.found for one in caplog.records if "no solver answers" in one.getMessage()]  # type: ignore[attr-defined]

    async with running(config()) as (_, at), running(config(id="gateway-1", solver=at.http)):
        await soon(lambda: len(found()) == 2)
    assert sorted(found()) == [
        "is not reached from here",
        "speaks HTTP, where gRPC is wanted",
    ]


@pytest.mark.parametrize(("advertise", "warned"), [("0.0.0.0:9", True), ("", False)])
async def test_a_wildcard_that_agents_are_told_to_dial_is_warned_of(
    advertise: str, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(config(advertise=advertise)):
        said = [one for one in caplog.records if "cannot find this gateway" in one.getMessage()]
    assert bool(said) is warned


@pytest.mark.parametrize("continued", [False, True])
async def test_durable_requests_survive_a_restart(tmp_path: Path, continued: bool) -> None:
    """The attempt that runs goes on, unless some of its output was lost with the gateway."""
    store = {"kind": "sqlite", "path": str(tmp_path / "q.sqlite")}
    async with (
        running(config(store=store)) as (_, at),
        Client(at.grpc) as stub,
        Agent(at.agents) as agent,
    ):
        done = (await stub.Enqueue(pb.EnqueueRequest(request=new()))).accepted.id
        agent.pull(done)
        agent.say(await agent.payload(), "done", finish="stop")
        await collect(stub.WatchRequest(pb.WatchRequestRequest(id=done)))
        half = (await stub.Enqueue(pb.EnqueueRequest(request=new()))).accepted.id
        agent.pull(half)
        old = await agent.payload(1)
        agent.say(old, "half")
    solver = Solver()
    async with solving(solver) as address:
        async with running(config(store=store, solver=address)) as (_, at):
            survivor = Agent(at.agents)
            survivor.running = (m.Attempt(old.id, old.attempt, 1, 0, continued),)
            async with Client(at.grpc) as stub, survivor:
                await soon(lambda: survivor.joined and solver.heard(m.Arrived))
                assert [fact.request.id for fact in solver.heard(m.Arrived)] == [half]
                if continued:
                    assert survivor.orders == [m.Revoked(old.id, old.attempt)]
                    survivor.pull(half)
                    again = await survivor.payload()
                    assert again.attempt > old.attempt
                    assert (again.resume_text, again.body) == ("", old.body)
                    survivor.say(again, "half", "whole", finish="stop")
                else:
                    assert survivor.joined == [m.Joined((m.Attempt(old.id, old.attempt, 0),))]
                    survivor.say(old, "half", "whole", finish="stop")
                watch = pb.WatchRequestRequest(id=half)
                assert text_of(await collect(stub.WatchRequest(watch))) == "halfwhole"
                got = await stub.GetRequest(pb.GetRequestRequest(id=done))
                assert json.loads(got.response_json)["choices"][0]["message"]["content"] == "done"
        await soon(lambda: ended(solver) == [Phase.FINISHED])


async def test_no_grace_runs_while_the_gateway_sleeps() -> None:
    async with fleet(agent_grace_s=5.0) as it:
        asked = asyncio.create_task(post(f"{it.url}/v1/chat/completions", CHAT))
        await it.agent.payload()
        await it.agent.__aexit__()
        driver = it.gateway.driver
        await soon(lambda: not driver._agents)
        grace_ends_s = driver.ledger.wakeup_s
        assert grace_ends_s is not None
        # Its last look at the clock was this much longer ago than a pulse.
        driver._alarm._watch.slept_s(asyncio.get_running_loop().time() - 40.0 - PULSE_S)
        driver.handle(lg.Woken())
        assert driver.ledger.wakeup_s == pytest.approx(grace_ends_s + 40.0, abs=0.5)
        asked.cancel()
