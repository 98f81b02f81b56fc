"""The whole fidelity corpus against a stand-in with all of vLLM's structure: nothing may get lost between processes.

With a real vLLM, `make fidelity` does the same (benchmarks/fidelity.py).
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from benchmarks import fidelity
from benchmarks.fidelity_corpus import PLAIN, THINKER, corpus
from qlm import fleet, ports
from qlm_core.config import Config
from tests.fidelity.stand_in import StandIn

pytestmark = pytest.mark.processes
PROGRAM = str(Path(__file__).with_name("stand_in.py"))


def started(direct: dict[str, str]) -> Config:
    """Agents that start the stand-in as they would start vLLM."""
    agents = [
        {
            "name": f"agent-{model}",
            "gpu": "cpu",
            "models": [model],
            "engine": {
                "kind": "vllm",
                "vllm": {
                    "command": [sys.executable, PROGRAM, "serve"],
                    "port_base": int(url.rsplit(":", 1)[1]),
                },
            },
        }
        for model, url in direct.items()
    ]
    models = {model: {"path": "", "max_model_len": 2048} for model in direct}
    return Config.from_mapping({"models": models, "agents": agents})


@contextlib.asynccontextmanager
async def stand_ins(kind: str) -> AsyncIterator[tuple[dict[str, str], Config]]:
    """Stand-ins by model, and a configuration with agents of a kind for them."""
    addresses = ports.free_addresses(2)
    direct = {m: f"http://{a}" for m, a in zip((PLAIN, THINKER), addresses, strict=True)}
    if kind == "vllm":
        yield direct, started(direct)
        return
    runners = []
    for model, address in zip(direct, addresses, strict=True):
        runner = web.AppRunner(StandIn(model).app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        host, port = address.rsplit(":", 1)
        await web.TCPSite(runner, host, int(port)).start()
        runners.append(runner)
    try:
        yield direct, fidelity.attached(direct)
    finally:
        for runner in runners:
            await runner.cleanup()


@pytest.mark.parametrize("kind", ["openai", "vllm"])
async def test_no_answer_differs(kind: str, tmp_path: Path):
    async with stand_ins(kind) as (direct, base):
        overrides = ["log.level=warning", "agents.*.engine.vllm.sleep_mode=false"]
        config = fleet.temporary_config(tmp_path, overrides, base=base)
        async with fleet.running(config, tmp_path) as running:
            results = await fidelity.compare_all(corpus(), direct=direct, through=running.url)
    found = [f"{r.case.name}  {one}" for r in results for one in r.differences]
    assert [f"{r.case.name}  {one}" for r in results for one in r.unrepeatable] == []
    assert found == [], f"{len(found)} differences"
