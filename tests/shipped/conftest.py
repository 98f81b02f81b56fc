"""The metrics of a real fleet: what its gateway, its solver and an agent answer after some requests of each kind."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import aiohttp
import pytest
import uvloop

from qlm import fleet
from qlm_core.config import Config

PARTS = ("gateway", "solver", "agent")
WAIT_S = 30.0
_REQUESTS = 40
# Nobody listens there, which is for the metrics to say.
_WEBHOOK = (
    "gateway.webhooks=[{url: 'http://127.0.0.1:9/', networks: [127.0.0.0/8], "
    "secret: whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3}]"
)


async def _scraped(folder: Path) -> dict[str, str]:
    overrides = ["agents.*.engine.sim.time_scale=20", "solver.replan.bound_period_s=0.5"]
    overrides += ["solver.replan.period_s=0.2", _WEBHOOK]
    config = fleet.temporary_config(folder, overrides)
    async with fleet.running(config, folder) as running, aiohttp.ClientSession() as session:
        asked = [_ask(session, running.url, number) for number in range(_REQUESTS)]
        await asyncio.gather(*asked)
        return {part: await _read(session, config, part) for part in PARTS}


async def _ask(session: aiohttp.ClientSession, url: str, number: int) -> None:
    """One request, of which the last is for a model that nobody has."""
    body = {
        "model": ("mistral-7b", "vicuna-13b")[number % 2] if number else "nothing",
        "prompt": "x" * 300,
        "max_tokens": 400,
        "service_tier": ("default", "flex", "background")[number % 3],
    }
    async with session.post(f"{url}/v1/completions", json=body) as answer:
        await answer.read()
        assert answer.status == (200 if number else 404)


async def _read(session: aiohttp.ClientSession, config: Config, part: str) -> str:
    address = {
        "gateway": config.gateway.http_listen,
        "solver": config.solver.metrics_listen,
        "agent": config.agents[0].metrics_listen,
    }[part]
    async with session.get(f"http://{address}/metrics") as answer:
        assert answer.status == 200
        return await answer.text()


@pytest.fixture(scope="session")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """What each part answers at /metrics, in Prometheus' text format."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_scraped(tmp_path_factory.mktemp("fleet")))
