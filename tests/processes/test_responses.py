"""kill -9 of a gateway while responses wait and run in its background: they complete, and streams go on where they were left."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import openai
import pytest

from agents.engines.sim import token_text
from qlm import fleet
from tests.processes.conftest import PATIENCE_S

AGENTS = "agents=[{name: one, gpu: a100, models: [mistral-7b]}]"
TOKENS = 200
ASKED: Any = {
    "model": "mistral-7b",
    "input": "Say something.",
    "background": True,
    "extra_body": {"qlm_sim": {"output_tokens": TOKENS}},
}


def text_of(id: str) -> str:
    """What the sim engine answers to a request of this id."""
    return "".join(token_text(id, index) for index in range(TOKENS))


async def ended(api: openai.AsyncOpenAI, id: str) -> Any:
    """The response once it has ended, however often the gateway cannot be reached meanwhile."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                found = await api.responses.retrieve(id)
            except openai.APIConnectionError:
                found = None
            if found is not None and found.status not in ("queued", "in_progress"):
                return found
            await asyncio.sleep(0.1)


async def resumed(api: openai.AsyncOpenAI, id: str, after: int) -> list[Any]:
    """All events after a number, however often the stream breaks."""
    found: list[Any] = []
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                last = after + len(found)
                place: Any = {"starting_after": last} if last >= 0 else {}
                stream = await api.responses.retrieve(id, stream=True, **place)
                async for event in stream:
                    if event.type == "error":
                        break
                    found.append(event)
                    if event.type == "response.completed":
                        return found
            except (openai.APIConnectionError, openai.InternalServerError):
                await asyncio.sleep(0.1)


@pytest.mark.parametrize("agent", ["goes on", "dies as well"])
async def test_responses_in_the_background_survive_the_gateway(agent: str, tmp_path: Path) -> None:
    config = fleet.temporary_config(tmp_path, [AGENTS])
    url = f"http://{config.gateway.http_listen}/v1"
    async with (
        fleet.running(config, tmp_path) as running,
        openai.AsyncOpenAI(base_url=url, api_key="x", max_retries=0) as api,
    ):
        stream = await api.responses.create(**ASKED, stream=True)
        seen: list[Any] = []
        async with asyncio.timeout(PATIENCE_S):
            async for event in stream:
                seen.append(event)
                if len(seen) == 40:
                    break
        await stream.close()
        id = seen[0].response.id
        pids = {name: running.supervisor.pid(name) for name in ("one", "gateway")}
        assert pids["one"] is not None
        assert pids["gateway"] is not None
        # While its agent sleeps, nothing that comes is taken up.
        os.kill(pids["one"], signal.SIGSTOP)
        waiting = [(await api.responses.create(**ASKED)).id for _ in range(3)]
        assert [(await api.responses.retrieve(one)).status for one in waiting] == ["queued"] * 3
        os.kill(pids["gateway"], signal.SIGKILL)
        os.kill(pids["one"], signal.SIGCONT if agent == "goes on" else signal.SIGKILL)
        rest = await resumed(api, id, seen[-1].sequence_number)
        whole = [event.to_dict() for event in seen + rest]
        assert [event["sequence_number"] for event in whole] == list(range(len(whole)))
        deltas = [event["delta"] for event in whole if event["type"].endswith(".delta")]
        assert "".join(deltas) == text_of(id)
        assert [event.to_dict() for event in await resumed(api, id, -1)] == whole
        for one in (id, *waiting):
            found = await ended(api, one)
            assert (found.status, found.output_text) == ("completed", text_of(one))
            assert found.usage.output_tokens == TOKENS
        assert running.supervisor.restarts("gateway") == 1
