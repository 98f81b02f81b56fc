"""A fleet of real processes in front of real vLLM servers, and clients that keep what they are answered.

Answers are of the fields that must not depend on what happens to a request on its way: text, ends, usage, logprobs'
tokens. Everything is asked for by HTTP, as OpenAI's clients do.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks import vllm_servers
from qlm import fleet
from qlm.scrape import samples, total
from qlm_core.config import Config

Json = dict[str, Any]

PATIENCE_S = 240.0
LLAMA, QWEN = "tiny-llama", "tiny-qwen"
# Of `interactive`, so short that a request which finds no slot is already late: others are evicted at once.
URGENT = {"ttft_s": 0.5, "weight": 20.0, "service_tiers": ["auto", "default"]}
CLASSES = {
    "interactive": URGENT,
    "batch-1": {"ttft_s": 600.0, "weight": 2.0, "service_tiers": ["flex"]},
    "batch-2": {"ttft_s": 3600.0, "weight": 1.0, "service_tiers": ["background"]},
}


def agent(name: str, model: str, url: str, *, slots: int) -> Json:
    """An agent beside a server that runs already."""
    section = {"base_url": url, "max_num_seqs": slots}
    engine = {"kind": "openai", "openai": section}
    return {"name": name, "gpu": "cpu", "models": [model], "engine": engine}


def config(agents: Sequence[Json], **more: Any) -> Config:
    """The configuration of a fleet; its models are those of deploy/vllm-cpu/prepare.py."""
    kinds = {one["engine"]["kind"] for one in agents}
    models: dict[str, Json] = {name: {"max_model_len": 2048} for name in (LLAMA, QWEN)}
    if "vllm" in kinds:
        for name, model in models.items():
            model["path"] = str(vllm_servers.MODELS / name)
    sections = {"models": models, "slo_classes": CLASSES, "agents": list(agents)} | more
    return Config.from_mapping(sections)


@contextlib.asynccontextmanager
async def running(base: Config, folder: Path, *overrides: str) -> AsyncIterator[fleet.Running]:
    """The processes of a fleet while the block runs."""
    chosen = fleet.temporary_config(folder, ["log.level=info", *overrides], base=base)
    async with fleet.running(chosen, folder) as started:
        yield started


@dataclass
class Answer:
    """What a client got: folded from a stream, or whole."""

    id: str = ""
    status: int = 0
    texts: dict[int, str] = field(default_factory=dict)
    ends: dict[int, list[str]] = field(default_factory=dict)
    usage: Json = field(default_factory=dict)
    tokens: dict[int, list[str]] = field(default_factory=dict)
    error: str = ""
    model: str = ""
    begun: asyncio.Event = field(default_factory=asyncio.Event, repr=False, compare=False)

    def same(self) -> Json:
        """What must be equal however the request fared."""
        return {
            "status": self.status,
            "texts": self.texts,
            "ends": self.ends,
            "usage": {
                k: self.usage.get(k) for k in ("prompt_tokens", "completion_tokens", "total_tokens")
            },
            "tokens": self.tokens,
            "error": self.error,
        }

    def take(self, chunk: Json) -> None:
        """Fold a chunk, or a whole answer, into it."""
        if chunk.get("error"):
            self.error = str(chunk["error"].get("message"))
        self.model = chunk.get("model") or self.model
        self.usage = chunk.get("usage") or self.usage
        for choice in chunk.get("choices", ()):
            index = choice["index"]
            part = choice.get("delta") or choice.get("message") or choice
            self.texts[index] = self.texts.get(index, "") + (
                part.get("content") or part.get("text") or ""
            )
            if choice.get("finish_reason"):
                self.ends.setdefault(index, []).append(choice["finish_reason"])
            logprobs = choice.get("logprobs") or {}
            said = logprobs.get("tokens") or [one["token"] for one in logprobs.get("content") or ()]
            if said:
                self.tokens.setdefault(index, []).extend(said)
            if self.texts[index]:
                self.begun.set()


async def ask(
    session: aiohttp.ClientSession,
    url: str,
    body: Mapping[str, Any],
    *,
    tier: str = "",
    answer: Answer | None = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """Send a body to the endpoint it is meant for, and take in all that comes."""
    answer = answer or Answer()
    path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    sent = dict(body) | ({"service_tier": tier} if tier else {})
    async with session.post(url + path, json=sent, headers=headers) as response:
        answer.status = response.status
        answer.id = response.headers.get("x-qlm-request-id", "")
        if response.content_type != "text/event-stream":
            answer.take(json.loads(await response.read()))
            return answer
        async for line in response.content:
            if line.startswith(b"data:") and line[5:].strip() != b"[DONE]":
                answer.take(json.loads(line[5:]))
    return answer


def session() -> aiohttp.ClientSession:
    """A client that may open as many connections as it likes, and is patient."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=PATIENCE_S),
        read_bufsize=2**20,
    )


async def one_by_one(url: str, bodies: Sequence[Json]) -> list[Answer]:
    """The undisturbed answers of a server."""
    async with session() as client:
        return [await ask(client, url, body) for body in bodies]


async def sample(client: aiohttp.ClientSession, url: str, name: str) -> float:
    """The sum over all series of a metric, 0 if there are none."""
    async with client.get(f"{url}/metrics") as response:
        return total(samples(await response.text()), name) or 0.0


async def until_sample(client: aiohttp.ClientSession, url: str, name: str, wanted: float) -> None:
    """Wait until a metric has a value."""
    async with asyncio.timeout(PATIENCE_S):
        while await sample(client, url, name) != wanted:  # noqa: ASYNC110 (another process)
            await asyncio.sleep(0.1)
