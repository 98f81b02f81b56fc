"""How soon a gateway and a solver serve again with thousands of requests waiting.

A store is filled, and then real processes are started on it: a gateway alone, until it answers `/health` and takes a new
durable request; and a solver, killed beside a gateway and agents that go on, until it has all that waits in the queues of
its agents again. All times are from the start of the process, the interpreter's own included, which the same gateway
shows with an empty store. The processor time of the process by then is printed too, since it does not depend on what
else the machine does.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import grpc
import msgspec

from benchmarks.figures import Figure, show, to_json
from gateway.store import SqliteStore, StoredRequest
from protos.qlm.v1 import client_service_pb2 as pb
from protos.qlm.v1 import client_service_pb2_grpc as rpc
from protos.qlm.v1 import types_pb2
from qlm import config_file, fleet
from qlm_core.config import Config
from qlm_core.endpoint import Endpoint
from qlm_core.model import ModelName, RequestId

WAITING = 20_000
AGENTS = 4
MODEL = "mistral-7b"
PROMPT = "A question to the fleet, of the length that questions have. " * 16
# A question costs a process a few milliseconds.
POLL_S = 0.05
PATIENCE_S = 120.0
GATEWAY_S = 1.0
SOLVER_S = 2.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; status 1 when a target is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.restart", description=__doc__)
    parser.add_argument("--waiting", type=int, default=WAITING, help="requests in the store")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        figures = asyncio.run(measure(Path(folder), args.waiting))
    print(to_json(figures) if args.json else show(figures))
    return 1 if any(figure.met is False for figure in figures) else 0


async def measure(folder: Path, waiting: int) -> list[Figure]:
    """All figures, with that many requests waiting."""
    config = fleet.temporary_config(folder, [_agents(), "gateway.drain_s=0"])
    file = folder / "config.yaml"
    file.write_text(config_file.to_yaml(config, redact=False))
    async with aiohttp.ClientSession() as session:
        empty, _ = await _gateway(session, config, file)
        await fill(config, waiting)
        health, served = await _gateway(session, config, file)
        solver = await _solver(session, config, file, waiting)
    return [
        Figure(name="gateway, empty store: /health", value=empty.wall_s, unit="s"),
        Figure(name="gateway: /health", value=health.wall_s, unit="s", most=GATEWAY_S),
        Figure(
            name="gateway: a new request accepted", value=served.wall_s, unit="s", most=GATEWAY_S
        ),
        Figure(name="gateway: processor time by then", value=served.cpu_s, unit="s"),
        Figure(name="solver: plans all that waits", value=solver.wall_s, unit="s", most=SOLVER_S),
        Figure(name="solver: processor time by then", value=solver.cpu_s, unit="s"),
    ]


def _agents() -> str:
    agents = [f"{{name: a{i}, gpu: a100, models: [{MODEL}]}}" for i in range(AGENTS)]
    return f"agents=[{', '.join(agents)}]"


async def fill(config: Config, waiting: int) -> None:
    """Put that many requests of all classes into the gateway's store."""
    store = SqliteStore(config.gateway.store.path)
    await store.open()
    names = list(config.slo_classes)

    def request(index: int) -> StoredRequest:
        name = names[index % len(names)]
        return StoredRequest(
            id=RequestId(f"cmpl-{index:024x}"),
            endpoint=Endpoint.COMPLETIONS,
            model=ModelName(MODEL),
            slo_class=name,
            slo=config.slo_class(name).slo,
            prompt_tokens=256,
            max_output_tokens=512,
            tenant="",
            service_tier="default",
            body=_body(),
            arrived_at=time.time(),
            expires_at=time.time() + config.gateway.request_ttl_s,
            idempotency_key=f"key-{index}",
        )

    await asyncio.gather(*(store.add(request(index)) for index in range(waiting)))
    await store.close()


def _body() -> bytes:
    return msgspec.json.encode({"prompt": PROMPT, "max_tokens": 512})


async def _gateway(
    session: aiohttp.ClientSession, config: Config, file: Path
) -> tuple[_Spent, _Spent]:
    """What it takes until a gateway answers, and until it has accepted a request."""

    async def healthy() -> bool:
        async with session.get(f"http://{config.gateway.http_listen}/health") as answer:
            return answer.status == 200

    with _process(file, "gateway") as process:
        await _until(healthy)
        health = process.spent()
        async with grpc.aio.insecure_channel(config.gateway.grpc_listen) as channel:
            stub = rpc.ClientServiceStub(channel)
            new = pb.NewRequest(
                model=MODEL, body_json=_body(), endpoint=types_pb2.ENDPOINT_COMPLETIONS
            )
            await stub.Enqueue(pb.EnqueueRequest(request=new), wait_for_ready=True)
            return health, process.spent()


async def _solver(
    session: aiohttp.ClientSession, config: Config, file: Path, waiting: int
) -> _Spent:
    """What it takes until a solver that starts anew has what waits in its queues."""

    async def plans() -> bool:
        return await _plans(session, config, waiting)

    with contextlib.ExitStack() as others:
        others.enter_context(_process(file, "gateway"))
        for agent in config.agents:
            others.enter_context(_process(file, "agent", "--name", agent.name))
        with _process(file, "solver"):
            await _until(plans)
        with _process(file, "solver") as process:
            await _until(plans)
            return process.spent()


async def _plans(session: aiohttp.ClientSession, config: Config, waiting: int) -> bool:
    """Whether a plan is in force that has all agents and, but for what they run, all that waits."""
    async with session.get(f"http://{config.solver.metrics_listen}/metrics") as answer:
        text = await answer.text()

    def total(name: str) -> float:
        found = re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, flags=re.MULTILINE)
        return sum(map(float, found))

    planned = total("qlm_waiting_requests") >= 0.9 * waiting and total("qlm_epoch") > 0
    return planned and total("qlm_agents") == len(config.agents)


async def _until(reached: Callable[[], Awaitable[bool]]) -> None:
    """Ask until something is so."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                if await reached():
                    return
            await asyncio.sleep(POLL_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Spent:
    """What a process has taken since its start."""

    wall_s: float
    cpu_s: float


class _Process:
    """A part of the fleet."""

    def __init__(self, file: Path, command: Sequence[str]) -> None:
        self._started_s = time.monotonic()
        self.child = subprocess.Popen(
            [sys.executable, "-m", "qlm", *command, "--config", str(file)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def spent(self) -> _Spent:
        wall_s = time.monotonic() - self._started_s
        fields = Path(f"/proc/{self.child.pid}/stat").read_text().rpartition(")")[2].split()
        ticks = int(fields[11]) + int(fields[12])
        return _Spent(wall_s=wall_s, cpu_s=ticks / os.sysconf("SC_CLK_TCK"))


@contextlib.contextmanager
def _process(file: Path, *command: str) -> Iterator[_Process]:
    """A part of the fleet while the block runs, killed at its end."""
    process = _Process(file, command)
    try:
        yield process
    finally:
        process.child.kill()
        process.child.wait()


if __name__ == "__main__":
    sys.exit(main())
