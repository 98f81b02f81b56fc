"""The daemon over real gRPC: it serves, survives its peers, and leaves in good order."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import grpc
import pytest

from agents import serve, streams
from agents.engines.sim import token_text
from agents.streams import Backoff
from protos import pulse
from qlm_core.config import Config
from qlm_core.errors import QlmError
from qlm_core.messages import Gateways, ReturnReason
from qlm_core.model import GatewayId
from tests.agents.fake_vllm import FakeServer
from tests.agents.harness import free_ports, serving
from tests.agents.peers import WAIT_S, Peers
from tests.agents.scripted import DROP, ScriptedServer


def config_for(peers: Peers, **agent: object) -> Config:
    section = {
        "name": "a0",
        "models": ["mistral-7b"],
        "solver": peers.address("solver"),
        "report_interval_s": 0.05,
        "reconnect_s_max": 0.2,
        "engine": {"kind": "sim", "sim": {"time_scale": 20.0, "stream_interval_s": 0.01}},
    } | agent
    return Config.from_mapping({"agents": [section]})


@asynccontextmanager
async def agent(config: Config) -> AsyncIterator[asyncio.Task[None]]:
    ready = asyncio.Event()
    task = asyncio.create_task(serve(config, config.agents[0], ready=ready.set))
    waiting = asyncio.create_task(ready.wait())
    await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task], timeout=10)
        assert task.done()


@pytest.fixture
async def peers() -> AsyncIterator[Peers]:
    made = Peers()
    await made.start("solver")
    await made.start("gateway")
    yield made
    await made.close()


def expected(id: str, tokens: int) -> str:
    return "".join(token_text(id, index) for index in range(tokens))


async def begin(peers: Peers, *ids: str, tokens: int = 10) -> None:
    """Let the agent join, and give it so much to do."""
    await peers.solver.until(lambda: peers.solver.hellos)
    peers.introduce()
    for id in ids:
        peers.gateway.add(id, tokens)
    peers.queue(*ids)


async def test_serves_a_queue_to_its_end(peers: Peers):
    ids = [f"r{index}" for index in range(40)]
    async with agent(config_for(peers)):
        await begin(peers, *ids)
        await peers.gateway.until(lambda: len(peers.gateway.ended) == 40)
    assert {end.output_tokens for end in peers.gateway.ended.values()} == {10}
    assert all(peers.gateway.text(id) == expected(id, 10) for id in ids)
    hello = peers.solver.hellos[0]
    assert hello.agent == "a0"
    assert [profile.model for profile in hello.profiles] == ["mistral-7b"]
    assert hello.state.ready
    # Everything came in batches, not one by one.
    assert len(peers.gateway.pulls) < 10
    assert peers.gateway.messages < 200


async def test_reports_what_runs(peers: Peers):
    async with agent(config_for(peers)):
        await begin(peers, "r", tokens=400)
        solver = peers.solver
        await solver.until(lambda: any(report.running for report in solver.reports))
        running = next(report.running for report in solver.reports if report.running)
        assert [one.id for one in running] == ["r"]
        await solver.until(lambda: any(report.tokens_per_s > 0 for report in solver.reports))


async def test_goes_on_without_a_solver_and_says_hello_again(peers: Peers):
    async with agent(config_for(peers)):
        ids = [f"r{index}" for index in range(30)]
        await begin(peers, *ids, tokens=60)
        await peers.gateway.until(lambda: len(peers.gateway.ended) >= 1)
        await peers.stop("solver")
        await peers.gateway.until(lambda: len(peers.gateway.ended) == 30)
        await peers.start("solver")
        await peers.solver.until(lambda: len(peers.solver.hellos) == 2)
    assert peers.solver.hellos[1].epoch == 1


async def test_peers_that_do_not_answer_are_named_once(
    peers: Peers, caplog: pytest.LogCaptureFixture
):
    def told(event: str) -> list[str]:
        return [r.address for r in caplog.records if r.getMessage() == event]  # type: ignore[attr-defined]

    async def until_told(event: str) -> None:
        async with asyncio.timeout(10):
            while not told(event):  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    solver, gateway = peers.address("solver"), peers.address("gateway")
    await peers.stop("solver")
    await peers.stop("gateway")
    async with agent(config_for(peers, reconnect_s_max=0.1)):
        await until_told("cannot join the solver; trying on")
        await peers.start("solver")
        await begin(peers, "r")
        await until_told("cannot join the gateway; trying on")
        await peers.start("gateway")
        await peers.gateway.until(lambda: "r" in peers.gateway.ended)
    assert told("cannot join the solver; trying on") == [solver]
    assert told("cannot join the gateway; trying on") == [gateway]


@pytest.mark.parametrize(
    ("ending", "patient"),
    [(grpc.StatusCode.UNAVAILABLE, False), (grpc.StatusCode.ABORTED, True)],
)
async def test_only_an_agent_whose_name_was_taken_over_grows_patient(
    peers: Peers, ending: grpc.StatusCode, patient: bool, monkeypatch: pytest.MonkeyPatch
):
    resets = []

    def note(backoff: Backoff) -> None:
        resets.append(backoff)

    monkeypatch.setattr(Backoff, "reset", note)
    async with agent(config_for(peers)):
        await begin(peers)
        peers.solver.ending = ending
        for count in (2, 3):
            peers.introduce()
            await peers.solver.until(lambda: len(peers.solver.hellos) == count)  # noqa: B023
        assert (resets == []) is patient


async def test_a_broken_gateway_stream_loses_and_repeats_nothing(peers: Peers):
    async with agent(config_for(peers)):
        await begin(peers, "r", tokens=300)
        gateway = peers.gateway
        await gateway.until(lambda: gateway.tokens("r") >= 20)
        await peers.stop("gateway")
        await peers.start("gateway")
        await gateway.until(lambda: len(gateway.hellos) == 2)
        [back] = gateway.hellos[1].running
        assert (back.id, back.attempt) == ("r", 1)
        await gateway.until(lambda: "r" in gateway.ended)
        assert gateway.text("r") == expected("r", 300)


async def test_chunks_that_a_break_swallowed_are_sent_again(peers: Peers):
    async with agent(config_for(peers)):
        await begin(peers, "r", tokens=300)
        gateway = peers.gateway
        await gateway.until(lambda: gateway.tokens("r") >= 20)
        await peers.stop("gateway")
        del gateway.chunks["r"][5:]
        await peers.start("gateway")
        await gateway.until(lambda: "r" in gateway.ended)
        assert gateway.text("r") == expected("r", 300)
        assert gateway.attempt["r"] == 1


async def test_an_end_that_a_break_may_have_swallowed_is_repeated(peers: Peers):
    async with agent(config_for(peers)):
        await begin(peers, "r", tokens=5)
        gateway = peers.gateway
        await gateway.until(lambda: "r" in gateway.ended)
        del gateway.ended["r"]
        await peers.stop("gateway")
        await peers.start("gateway")
        await gateway.until(lambda: "r" in gateway.ended)
        assert gateway.hellos[1].running[0].chunks == len(gateway.chunks["r"])


@pytest.mark.parametrize("peer", ["solver", "gateway"])
async def test_a_peer_that_falls_silent_is_dialled_again(
    peers: Peers, peer: str, monkeypatch: pytest.MonkeyPatch
):
    """Nothing ends the stream: the other end is frozen, or a wire is cut."""
    monkeypatch.setattr(pulse, "PULSE_S", 0.02)
    async with agent(config_for(peers)):
        await begin(peers, "r", tokens=300)
        await peers.gateway.until(lambda: peers.gateway.tokens("r") >= 20)
        silent = peers.solver if peer == "solver" else peers.gateway
        silent.mute = True
        await silent.until(lambda: len(silent.hellos) >= 2)
        silent.mute = False
        await peers.gateway.until(lambda: "r" in peers.gateway.ended)
        assert peers.gateway.text("r") == expected("r", 300)


@pytest.mark.parametrize("peer", ["solver", "gateway"])
async def test_a_peer_that_takes_connections_and_no_calls_is_dialled_again(
    peers: Peers, peer: str, monkeypatch: pytest.MonkeyPatch
):
    """It is frozen from before the agent dials: its host answers for it, and nobody else does."""
    monkeypatch.setattr(streams, "SILENCE_S", 0.2)
    connections: list[asyncio.StreamWriter] = []
    third = asyncio.Event()

    def take(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        if len(connections) == 3:
            third.set()

    await peers.stop(peer)
    host, _, port = peers.address(peer).rpartition(":")
    frozen = await asyncio.start_server(take, host, int(port))
    async with agent(config_for(peers)):
        if peer == "gateway":
            await begin(peers)
        async with asyncio.timeout(WAIT_S):
            await third.wait()
        frozen.close()
        for writer in connections:
            writer.transport.abort()
        await peers.start(peer)
        await begin(peers, "r")
        await peers.gateway.until(lambda: "r" in peers.gateway.ended)


async def test_attempts_of_a_gateway_that_stays_away_are_given_up(peers: Peers):
    async with agent(config_for(peers, gateway_grace_s=0.1)):
        await begin(peers, "r", tokens=5000)
        gateway = peers.gateway
        await gateway.until(lambda: gateway.tokens("r") >= 20)
        await peers.stop("gateway")
        await peers.solver.until(peers.solver.idle)
        await peers.start("gateway")
        await gateway.until(lambda: len(gateway.hellos) == 2)
        assert gateway.hellos[1].running == ()


async def until_reported(peers: Peers) -> None:
    """Wait until the solver has heard that something runs."""
    await peers.solver.until(lambda: any(report.running for report in peers.solver.reports))


def linked() -> list[str]:
    """The gateways to which links are alive."""
    names = [task.get_name() for task in asyncio.all_tasks()]
    return sorted(name for name in names if name.startswith("gateway "))


async def until_linked(*expected: str) -> None:
    async with asyncio.timeout(10):
        while linked() != [f"gateway {id}" for id in expected]:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("first", ["unnamed", "away"])
async def test_a_gateway_that_is_gone_is_dialled_no_more(peers: Peers, first: str):
    async with agent(config_for(peers, gateway_grace_s=0.1)):
        await begin(peers, "r", tokens=5000)
        gateway = peers.gateway
        await until_reported(peers)
        if first == "unnamed":
            peers.disown()
            await peers.stop("gateway")
        else:
            await peers.stop("gateway")
            # It has been away too long once its attempts are given up.
            await peers.solver.until(peers.solver.idle)
            assert linked() == ["gateway gw"]
            peers.disown()
        await until_linked()
        await peers.solver.until(peers.solver.idle)
        await peers.start("gateway")
        peers.introduce()
        gateway.add("s")
        peers.queue("s", epoch=2)
        await gateway.until(lambda: "s" in gateway.ended)
        assert [hello.running for hello in gateway.hellos] == [(), ()]


async def test_a_gateway_that_was_never_reached_is_dialled_no_more_once_it_is_unnamed(peers: Peers):
    await peers.stop("gateway")
    async with agent(config_for(peers)):
        await begin(peers)
        await until_linked("gw")
        peers.disown()
        await until_linked()


async def test_a_gateway_that_a_new_solver_does_not_know_yet_is_served_on(peers: Peers):
    async with agent(config_for(peers)):
        await begin(peers, "r", tokens=300)
        gateway = peers.gateway
        await gateway.until(lambda: gateway.tokens("r") >= 20)
        peers.disown()
        await peers.stop("gateway")
        await peers.start("gateway")
        await gateway.until(lambda: len(gateway.hellos) == 2)
        assert [attempt.id for attempt in gateway.hellos[1].running] == ["r"]


async def test_a_renamed_gateway_has_one_link(peers: Peers):
    async with agent(config_for(peers)):
        await begin(peers, "r", tokens=20_000)
        gateway = peers.gateway
        await until_reported(peers)
        gateway.id = GatewayId("renamed")
        peers.introduce("gw")
        await gateway.until(lambda: len(gateway.hellos) == 2 and gateway.streams == 1)
        await until_linked("renamed")
        # What ran for the old one is over.
        assert gateway.hellos[1].running == ()
        await peers.solver.until(peers.solver.idle)
        # The solver goes on to name the old one until its lease is over.
        peers.introduce("gw")
        gateway.add("s")
        peers.queue("s", epoch=2)
        await gateway.until(lambda: "s" in gateway.ended)
        assert linked() == ["gateway renamed"]
        assert len(gateway.hellos) == 2


async def test_gateways_that_exchange_their_addresses_are_told_apart_by_who_came_last(peers: Peers):
    async with agent(config_for(peers)):
        await begin(peers, "r")
        gateway, here = peers.gateway, peers.address("gateway")
        await gateway.until(lambda: "r" in gateway.ended)
        other, there = GatewayId("other"), f"127.0.0.1:{free_ports(1)}"
        peers.solver.tell(Gateways(((gateway.id, here), (other, there))))
        await until_linked("gw", "other")
        # The first to move is named first, as before.
        peers.solver.tell(Gateways(((gateway.id, there), (other, there))))
        await until_linked("gw")
        peers.solver.tell(Gateways(((gateway.id, there), (other, here))))
        await until_linked("gw", "other")
        gateway.id = other
        gateway.add("s")
        peers.queue("s", epoch=2)
        await gateway.until(lambda: "s" in gateway.ended)


async def test_a_revoked_attempt_stops(peers: Peers):
    async with agent(config_for(peers)):
        await begin(peers, "r", "s", tokens=400)
        gateway = peers.gateway
        await gateway.until(lambda: gateway.tokens("r") >= 20)
        gateway.revoke("r")
        await gateway.until(lambda: "s" in gateway.ended)
        assert "r" not in gateway.ended
        await peers.solver.until(peers.solver.idle)


async def test_a_drain_finishes_what_runs(peers: Peers):
    async with agent(config_for(peers)) as task:
        await begin(peers, "r", tokens=300)
        gateway = peers.gateway
        await gateway.until(lambda: gateway.tokens("r") >= 20)
        task.cancel()
        await gateway.until(lambda: "r" in gateway.ended)
        assert gateway.text("r") == expected("r", 300)
        await asyncio.wait([task], timeout=10)
        assert task.done()


async def test_a_drain_that_takes_too_long_returns_the_rest(peers: Peers):
    async with agent(config_for(peers, drain_s=0.1)) as task:
        await begin(peers, "r", tokens=20_000)
        gateway = peers.gateway
        await gateway.until(lambda: gateway.tokens("r") >= 20)
        task.cancel()
        await gateway.until(lambda: gateway.returned)
        assert gateway.returned[0].reason.value == "draining"


async def test_serves_metrics_and_never_logs_prompts(
    peers: Peers, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.DEBUG)
    port = free_ports(1)
    async with agent(config_for(peers, metrics_listen=f"127.0.0.1:{port}")):
        await begin(peers, "r")
        await peers.gateway.until(lambda: "r" in peers.gateway.ended)
        async with (
            aiohttp.ClientSession() as http,
            http.get(f"http://127.0.0.1:{port}/metrics") as response,
        ):
            text = await response.text()
    assert "qlm_agent_finished_total 1.0" in text
    assert 'qlm_agent_state{state="serving"} 1.0' in text
    assert "hello" not in "".join(record.getMessage() for record in caplog.records)


async def test_an_agent_whose_server_comes_later_joins_at_once_and_serves_then(
    peers: Peers, caplog: pytest.LogCaptureFixture
):
    port = free_ports(1)
    engine = {"kind": "openai", "openai": {"base_url": f"http://127.0.0.1:{port}"}}
    async with agent(config_for(peers, engine=engine)):
        await begin(peers, "r", "s", tokens=20)
        assert not peers.solver.hellos[0].state.ready
        assert peers.solver.hellos[0].state.awake_model is None
        runner, _ = await serving(FakeServer("mistral-7b"), port)
        try:
            await peers.gateway.until(lambda: len(peers.gateway.ended) == 2)
        finally:
            await runner.cleanup()
    assert {end.output_tokens for end in peers.gateway.ended.values()} == {20}
    [told] = [record for record in caplog.records if record.getMessage() == "engine down"]
    assert "agents.a0.engine.openai.base_url: no server answers at" in told.reason  # type: ignore[attr-defined]


async def test_a_request_that_a_server_always_drops_holds_up_no_other(peers: Peers):
    server = ScriptedServer([DROP])
    runner, port = await serving(server)
    engine = {"kind": "openai", "openai": {"base_url": f"http://127.0.0.1:{port}"}}
    ids = [f"r{index}" for index in range(12)]
    try:
        async with agent(config_for(peers, engine=engine)):
            # One at a time, as they would be at a low rate, each second one bad.
            await begin(peers)
            await peers.solver.until(lambda: any(report.ready for report in peers.solver.reports))
            gateway = peers.gateway
            for number, id in enumerate(ids):
                bad = number % 2
                gateway.add(id, 3, **({"prompt": "script"} if bad else {}))
                peers.queue(id, epoch=number + 2)
                await gateway.until(
                    lambda id=id: id in gateway.ended or any(r.id == id for r in gateway.returned)
                )
            ready = [report.ready for report in peers.solver.reports]
    finally:
        await runner.cleanup()
    assert list(gateway.ended) == ids[::2]
    assert [one.id for one in gateway.returned] == ids[1::2]
    assert {one.reason for one in gateway.returned} == {ReturnReason.ENGINE_ERROR}
    # The engine was counted on all the while.
    assert all(ready[ready.index(True) :])


async def test_an_engine_that_can_never_serve_is_a_clear_error(peers: Peers):
    runner, port = await serving(FakeServer("another"))
    engine = {"kind": "openai", "openai": {"base_url": f"http://127.0.0.1:{port}"}}
    config = config_for(peers, engine=engine)
    try:
        with pytest.raises(QlmError, match=r"models\.mistral-7b\.path: .*it serves: another"):
            await serve(config, config.agents[0])
    finally:
        await runner.cleanup()
