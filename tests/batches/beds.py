"""Batches through a real gateway, over HTTP with OpenAI's client, and an agent that answers by a script."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from openai import AsyncOpenAI
from openai.types import Batch

from qlm_core import messages as m
from tests.gateway.peers import Agent, Fleet, fleet

CHAT, PLAIN, EMBED = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
RESPOND = "/v1/responses"
PATIENCE_S = 20.0
OVER = ("completed", "failed", "expired", "cancelled")

Json = dict[str, Any]


def chat(id: str, *, model: str = "tiny", **more: Any) -> Json:
    """A line that asks for a chat; the agent knows it by what its user says."""
    body = {"model": model, "messages": [{"role": "user", "content": id}]} | more
    return {"custom_id": id, "method": "POST", "url": CHAT, "body": body}


def plain(id: str, *, model: str = "tiny", **more: Any) -> Json:
    """A line that asks for a completion."""
    body = {"model": model, "prompt": id} | more
    return {"custom_id": id, "method": "POST", "url": PLAIN, "body": body}


def chats(count: int, **more: Any) -> list[Json]:
    return [chat(f"line-{number}", **more) for number in range(count)]


def said_by(payload: m.Payload) -> str:
    """What the user of a request says."""
    body = json.loads(payload.body)
    return str(body["messages"][0]["content"] if payload.chat else body["prompt"])


class Bed:
    """A fleet and a client of it."""

    def __init__(self, fleet: Fleet, client: AsyncOpenAI) -> None:
        self.fleet = fleet
        self.client = client

    @property
    def agent(self) -> Agent:
        return self.fleet.agent

    def answer(self, script: Callable[[m.Payload, str], str | None] | None = None) -> None:
        """Answer whatever was and will be asked with what a script says to it; nothing where it says None."""

        def on_payload(payload: m.Payload) -> None:
            said = said_by(payload)
            text = f"to {said}" if script is None else script(payload, said)
            if text is not None:
                self.agent.say(payload, text, finish="stop")

        if self.agent.on_payload is None:
            for payload in self.agent.payloads:
                on_payload(payload)
        self.agent.on_payload = on_payload

    async def upload(self, lines: list[Json] | bytes, purpose: str = "batch") -> str:
        data = lines if isinstance(lines, bytes) else jsonl(lines)
        file = await self.client.files.create(file=("in.jsonl", data), purpose=purpose)  # type: ignore[arg-type]
        return file.id

    async def create(
        self, lines: list[Json] | bytes, *, endpoint: str = CHAT, window: str = "24h", **more: Any
    ) -> Batch:
        return await self.client.batches.create(
            input_file_id=await self.upload(lines),
            endpoint=endpoint,  # type: ignore[arg-type]
            completion_window=window,  # type: ignore[arg-type]
            **more,
        )

    async def until(self, batch: Batch, *statuses: str) -> Batch:
        async with asyncio.timeout(PATIENCE_S):
            while batch.status not in (statuses or OVER):
                await asyncio.sleep(0.01)
                batch = await self.client.batches.retrieve(batch.id)
        return batch

    async def lines(self, file_id: str | None) -> list[Json]:
        """The lines of a file; none of one that is not there."""
        if file_id is None:
            return []
        text = (await self.client.files.content(file_id)).text
        assert text.endswith("\n")
        return [json.loads(line) for line in text.splitlines()]

    async def results(self, batch: Batch) -> tuple[dict[str, Json], dict[str, Json]]:
        """Output and errors by custom_id, after checking that each line is there once and is counted as what it is."""
        output = await self.lines(batch.output_file_id)
        errors = await self.lines(batch.error_file_id)
        counts = batch.request_counts
        assert counts is not None
        assert (counts.completed, counts.failed) == (len(output), len(errors))
        assert counts.total == len(output) + len(errors)
        ids = [line["custom_id"] for line in output + errors]
        assert len(dict.fromkeys(ids)) == len(ids)
        assert len(dict.fromkeys(line["id"] for line in output + errors)) == len(ids)
        return named(output), named(errors)


def named(lines: list[Json]) -> dict[str, Json]:
    return {line["custom_id"]: line for line in lines}


def jsonl(lines: list[Json]) -> bytes:
    return "\n".join(json.dumps(line) for line in lines).encode()


@contextlib.asynccontextmanager
async def bed(**gateway: Any) -> AsyncIterator[Bed]:
    async with fleet(**gateway) as made, client_of(made.url) as client:
        yield Bed(made, client)


@contextlib.asynccontextmanager
async def client_of(url: str, key: str = "unused") -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key=key, timeout=PATIENCE_S) as client:
        yield client
