"""A first look: a few interactive prompts amid a hundred batch prompts, each with its waiting time.

The counterpart of the basic test in the QLM paper's repository. It starts a fleet of its own with simulated GPUs, or
uses a gateway that runs: `python benchmarks/basic_test.py [--url http://127.0.0.1:7400]`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from qlm import fleet

INTERACTIVE = [
    "What is the capital of France?",
    "Write a haiku about queues.",
    "Explain eviction in one sentence.",
    "How do I reverse a list in Python?",
    "Name three uses of a virtual queue.",
]
BATCH = [f"Summarise the minutes of meeting number {number}." for number in range(1, 101)]
MODEL = "mistral-7b"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one prompt got: seconds to its first token and to its end, and its tokens."""

    slo_class: str
    ttft_s: float
    e2e_s: float
    output_tokens: int


async def ask(session: aiohttp.ClientSession, url: str, prompt: str, tier: str) -> Answer:
    """Send one prompt and read its stream. Raises aiohttp.ClientError when it is refused."""
    loop = asyncio.get_running_loop()
    started_s = loop.time()
    first_s = None
    tokens = 0
    body = {
        "model": MODEL,
        "prompt": prompt,
        "max_tokens": 256,
        "stream": True,
        "service_tier": tier,
        "stream_options": {"include_usage": True},
    }
    async with session.post(f"{url}/v1/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.content:
            if not line.startswith(b"data: {"):
                continue
            first_s = first_s or loop.time()
            usage = json.loads(line[6:]).get("usage")
            if usage:
                tokens = usage["completion_tokens"]
    ended_s = loop.time()
    return Answer(
        slo_class="interactive" if tier == "default" else "batch-1",
        ttft_s=(first_s or ended_s) - started_s,
        e2e_s=ended_s - started_s,
        output_tokens=tokens,
    )


async def main(url: str) -> list[Answer]:
    """Send the batch, then the interactive prompts; returns all answers."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        batch = [asyncio.create_task(ask(session, url, prompt, "flex")) for prompt in BATCH]
        await asyncio.sleep(1.0)
        chats = [asyncio.create_task(ask(session, url, p, "default")) for p in INTERACTIVE]
        for prompt, chat in zip(INTERACTIVE, chats, strict=True):
            answer = await chat
            print(f"{answer.ttft_s:6.2f} s  {answer.output_tokens:4d} tokens  {prompt}")
        return [*[chat.result() for chat in chats], *await asyncio.gather(*batch)]


async def with_own_fleet() -> list[Answer]:
    """The same against a fleet that lives as long as the test."""
    with tempfile.TemporaryDirectory(prefix="qlm-basic-") as name:
        folder = Path(name)
        async with fleet.running(fleet.temporary_config(folder), folder) as running:
            return await main(running.url)


def report(answers: list[Answer]) -> None:
    """Print the waiting times by class."""
    for name in ("interactive", "batch-1"):
        waits = sorted(answer.ttft_s for answer in answers if answer.slo_class == name)
        middle, last = waits[len(waits) // 2], waits[-1]
        print(
            f"{name:<12} {len(waits):4d} answered; TTFT median {middle:.2f} s, worst {last:.2f} s"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", help="a gateway that runs; without it a fleet is started")
    url = parser.parse_args().url
    report(asyncio.run(main(url) if url else with_own_fleet()))
