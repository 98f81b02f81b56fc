"""kill -9 of each process in the middle of the work: nothing is lost, nothing comes twice."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

import failpoints
from protos.qlm.v1 import client_service_pb2 as pb
from protos.qlm.v1 import types_pb2 as types
from qlm import config_file, fleet
from qlm.supervisor import Supervisor
from qlm_core.config import Config
from tests.processes.conftest import PATIENCE_S, Client, assert_whole, new_request

REQUESTS = 24
CLASSES = ("interactive", "batch-1", "batch-2")
AGENTS = (
    "agents=[{name: one, gpu: a100, models: [mistral-7b]}, "
    "{name: two, gpu: a100, models: [mistral-7b]}]"
)


def workload() -> list[pb.NewRequest]:
    """Answers of 60 to 290 tokens: some have ended and some have not begun when a process dies."""
    return [
        new_request(number, 60 + 10 * number, CLASSES[number % 3]) for number in range(REQUESTS)
    ]


@pytest.mark.parametrize("victim", ["one", "solver", "gateway"])
async def test_every_request_ends_once_when_a_process_is_killed(
    victim: str, tmp_path: Path, connect: Callable[[str], Client]
) -> None:
    config = fleet.temporary_config(tmp_path, [AGENTS])
    async with fleet.running(config, tmp_path) as running:
        client = connect(config.gateway.grpc_listen)
        load = asyncio.create_task(client.run(workload()))
        await client.until_chunks(300)
        pid = running.supervisor.pid(victim)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await load
        for answer in client.answers:
            assert_whole(answer)
            # The store tells the same as the stream did.
            stored = await client.get(answer.id)
            assert stored.ended.phase == types.PHASE_FINISHED
            text = msgspec.json.decode(stored.response_json)["choices"][0]["text"]
            assert text == answer.text
        assert len({answer.id for answer in client.answers}) == REQUESTS
        async with asyncio.timeout(PATIENCE_S):
            await running.supervisor.until_ready(victim)
        assert running.supervisor.restarts(victim) == 1


async def test_streams_go_on_when_their_agent_is_killed(
    tmp_path: Path, connect: Callable[[str], Client]
) -> None:
    """The client of a killed agent notices nothing but a pause: its one stream has every token."""
    config = fleet.temporary_config(tmp_path, [AGENTS])
    async with fleet.running(config, tmp_path) as running:
        client = connect(config.gateway.grpc_listen)
        load = asyncio.create_task(client.run([new_request(n, 200) for n in range(16)]))
        await client.until_chunks(16 * 20)
        for victim in ("one", "two"):
            pid = running.supervisor.pid(victim)
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
        await load
        for answer in client.answers:
            assert_whole(answer)
            assert (answer.streams, answer.breaks) == (1, [])


async def test_requests_of_both_models_end_when_their_agent_dies_in_a_swap(
    tmp_path: Path, connect: Callable[[str], Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    agents = "agents=[{name: one, gpu: a100, models: [mistral-7b, vicuna-13b]}]"
    config = fleet.temporary_config(tmp_path, [agents, "agents.*.engine.sim.time_scale=10"])
    monkeypatch.setenv(failpoints.VARIABLE, "agents.driver.swapping=kill")
    async with fleet.running(config, tmp_path) as running:
        # The agent that is started next lives on.
        monkeypatch.delenv(failpoints.VARIABLE)
        client = connect(config.gateway.grpc_listen)
        requests = [new_request(number, 30) for number in range(8)]
        for request in requests[::2]:
            request.model = "vicuna-13b"
        await client.run(requests)
        for answer in client.answers:
            assert_whole(answer)
        assert running.supervisor.restarts("one") == 1


def parts(config: Config, folder: Path) -> tuple[Supervisor, Supervisor]:
    """The solver, and all the others, under supervisors of their own."""
    file = folder / "config.yaml"
    file.write_text(config_file.to_yaml(config, redact=False))
    specs = fleet.children(config, ["--config", str(file)])

    log = fleet.PrefixedLog(len("gateway"))
    return Supervisor(specs[:1], log=log), Supervisor(specs[1:], log=log)


async def test_windows_are_worked_off_while_the_solver_is_away(
    tmp_path: Path, connect: Callable[[str], Client]
) -> None:
    config = fleet.temporary_config(tmp_path, [AGENTS])
    solver, others = parts(config, tmp_path)
    async with others:
        client = connect(config.gateway.grpc_listen)
        async with solver:
            load = asyncio.create_task(client.run(workload()))
            await client.until_chunks(100)
            pid = solver.pid("solver")
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
        # Nobody plans any more, and all that was in the windows ends.
        await load
        for answer in client.answers:
            assert_whole(answer)
        late = connect(config.gateway.grpc_listen)
        waiting = asyncio.create_task(late.run([new_request(REQUESTS, 20)]))
        await late.until(lambda: bool(late.answers and late.answers[0].id))
        assert not waiting.done()
        async with parts(config, tmp_path)[0]:
            await waiting
        assert_whole(late.answers[0])
