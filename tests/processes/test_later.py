"""kill -9 of a gateway around an answer of 202: what was acknowledged runs and is fetched, under its id and under its key."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import aiohttp
import pytest

import failpoints
from qlm import fleet
from tests.processes.conftest import MODEL, PATIENCE_S
from tests.processes.test_responses import AGENTS, TOKENS, text_of

BODY = {
    "model": MODEL,
    "prompt": "Good night. " * 8,
    "max_tokens": 2 * TOKENS,
    "qlm_sim": {"output_tokens": TOKENS},
}
HEADERS = {"prefer": "respond-async", "idempotency-key": "tonight"}
Json = dict[str, Any]


async def asked(session: aiohttp.ClientSession, method: str, path: str, **more: Any) -> Json:
    """The answer, however often the gateway cannot be reached meanwhile."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                async with session.request(method, path, **more) as answer:
                    assert answer.status in (200, 202)
                    said: Json = await answer.json()
                    return said
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.1)


async def ended(session: aiohttp.ClientSession, path: str) -> Json:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            said = await asked(session, "GET", path)
            if said.get("response"):
                return said
            await asyncio.sleep(0.1)


@pytest.mark.parametrize("moment", ["gateway.driver.request_stored", "gateway.driver.granted", ""])
async def test_what_is_to_be_fetched_later_survives_the_gateway(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if moment:
        monkeypatch.setenv(failpoints.VARIABLE, f"{moment}=kill")
    config = fleet.temporary_config(tmp_path, [AGENTS])
    async with (
        fleet.running(config, tmp_path) as running,
        aiohttp.ClientSession(f"http://{config.gateway.http_listen}") as session,
    ):
        monkeypatch.delenv(failpoints.VARIABLE, raising=False)
        post = {"json": BODY, "headers": HEADERS}
        id = (await asked(session, "POST", "/v1/completions", **post))["id"]
        if not moment:
            pid = running.supervisor.pid("gateway")
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
        said = await ended(session, f"/v1/requests/{id}")
        assert said["response"]["choices"][0]["text"] == text_of(id)
        again = await asked(session, "GET", "/v1/requests?idempotency_key=tonight")
        assert again["id"] == id
        listed = await asked(session, "GET", "/v1/requests?status=ended")
        assert [one["id"] for one in listed["data"]] == [id]
        assert running.supervisor.restarts("gateway") == 1
