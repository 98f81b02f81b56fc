"""A real Prometheus beside a fleet as the compose file has it: all is scraped, and each query of a dashboard is answered."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from qlm import fleet, ports
from tests.shipped.test_images import container_config
from tests.shipped.test_monitoring import DASHBOARDS, RULES, dashboard_queries

PROMETHEUS = shutil.which("prometheus")
pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(PROMETHEUS is None, reason="no prometheus: `apt-get install prometheus`"),
]
WAIT_S = 60.0


def rewritten(folder: Path, where: dict[str, str]) -> Path:
    """Prometheus' own files as they are shipped, with targets where they are here and now, and asked for often."""
    text = RULES.with_name("prometheus.yml").read_text()
    for target, address in where.items():
        text = text.replace(f'"{target}"', f'"{address}"')
    assert "qlm:" not in text
    file = folder / "prometheus.yml"
    file.write_text(re.sub(r"(scrape|evaluation)_interval: \d+s", r"\1_interval: 1s", text))
    shutil.copy(RULES, folder / RULES.name)
    return file


@contextlib.asynccontextmanager
async def prometheus(folder: Path, file: Path) -> AsyncIterator[str]:
    [address] = ports.free_addresses(1)
    assert PROMETHEUS is not None
    program = await asyncio.create_subprocess_exec(
        PROMETHEUS,
        f"--config.file={file}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield f"http://{address}"
    finally:
        program.terminate()
        await program.wait()


async def asked(session: aiohttp.ClientSession, path: str, **query: str) -> Any:
    async with session.get(path, params=query) as answer:
        told = await answer.json()
        assert told["status"] == "success", (query, told)
        return told["data"]


async def up(session: aiohttp.ClientSession, targets: int) -> None:
    """Wait until every target has been read, twice so that there are rates."""
    query = "count(count_over_time(up[1m]) > 1 and up == 1)"
    async with asyncio.timeout(WAIT_S):
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                found = await asked(session, "/api/v1/query", query=query)
                if found["result"] and found["result"][0]["value"][1] == str(targets):
                    return
            await asyncio.sleep(0.2)


async def test_everything_is_scraped_and_every_query_is_answered(tmp_path: Path) -> None:
    shipped = container_config()
    config = fleet.temporary_config(tmp_path, ["log.level=warning"], base=shipped)
    told = [shipped.gateway.http_listen, shipped.solver.metrics_listen]
    told += [agent.metrics_listen for agent in shipped.agents]
    here = [config.gateway.http_listen, config.solver.metrics_listen]
    here += [agent.metrics_listen for agent in config.agents]
    where = {
        f"qlm:{shown.rpartition(':')[2]}": real for shown, real in zip(told, here, strict=True)
    }
    file = rewritten(tmp_path, where)
    async with (
        fleet.running(config, tmp_path) as running,
        prometheus(tmp_path, file) as url,
        aiohttp.ClientSession(url) as session,
    ):
        body = {"model": "mistral-7b", "prompt": "x", "max_tokens": 4}
        async with session.post(f"{running.url}/v1/completions", json=body) as answer:
            assert answer.status == 200
        await up(session, len(where))
        for dashboard in DASHBOARDS:
            for query in dashboard_queries(dashboard):
                if query.startswith("label_values("):
                    continue
                plain = query.replace("$__rate_interval", "1m").replace("$model", ".*")
                await asked(session, "/api/v1/query", query=plain.replace("$slo_class", ".*"))
        [waiting] = (await asked(session, "/api/v1/query", query="sum(qlm_agents)"))["result"]
        assert waiting["value"][1] == "3"
        groups = (await asked(session, "/api/v1/rules"))["groups"]
        rules = [rule for group in groups for rule in group["rules"]]
        assert len(rules) > 10
        assert [rule["lastError"] for rule in rules if rule.get("lastError")] == []
