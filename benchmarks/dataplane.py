"""Costs of the data plane: requests and tokens through gateway, agent and a zero-delay engine, as real processes.

Run by `qlm bench dataplane`. This process is the load; the CPU time of gateway, solver and agent is read from the
system, so a slow load makes throughput look worse, never the cost of a request better.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import msgspec
import uvloop

from benchmarks.figures import Figure
from qlm import fleet
from qlm.report import quantile

MODEL = "mistral-7b"
AGENT = "bench-0"
CONCURRENCY = 64
STREAMS = 32
STREAM_TOKENS = 512
LATENCY_RATE_RPS = 100.0
PROMPT = "A prompt of some forty tokens, as a short question to an assistant would have it. " * 2
OVERRIDES = (
    f"agents=[{{name: {AGENT}, gpu: a100, models: [{MODEL}], "
    "engine: {sim: {zero_delay: true}}}]",
    "log.level=warning",
)


@dataclass(frozen=True, slots=True)
class Load:
    """What a phase of load did: answers, tokens and chunks received, and its duration."""

    requests: int
    tokens: int
    chunks: int
    seconds: float


def measure(*, seconds: float = 8.0) -> list[Figure]:
    """All figures of the data plane, from phases of `seconds` each."""
    with (
        tempfile.TemporaryDirectory(prefix="qlm-bench-") as name,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        return runner.run(_measure(Path(name), seconds))


async def _measure(folder: Path, seconds: float) -> list[Figure]:
    config = fleet.temporary_config(folder, OVERRIDES)
    async with (
        fleet.running(config, folder) as running,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
    ):
        url = f"{running.url}/v1/completions"
        await _closed(session, url, 1.0)
        figures = []
        before_s = _cpu_s(running)
        load = await _closed(session, url, seconds)
        cpu_s = {name: spent - before_s[name] for name, spent in _cpu_s(running).items()}
        figures += _request_figures(load, cpu_s)
        waits_s = await _paced(session, url, seconds)
        figures += _latency_figures(waits_s)
        before_s = _cpu_s(running)
        load = await _streams(session, url, seconds)
        cpu_s = {name: spent - before_s[name] for name, spent in _cpu_s(running).items()}
        return figures + _stream_figures(load, cpu_s)


def _request_figures(load: Load, cpu_s: dict[str, float]) -> list[Figure]:
    figures = [
        Figure(
            name="non-streaming, throughput",
            value=load.requests / load.seconds,
            unit="requests/s",
            least=300.0,
        ),
        Figure(
            name="non-streaming, CPU of all three",
            value=sum(cpu_s.values()) / load.requests * 1e3,
            unit="ms/request",
            most=2.5,
        ),
    ]
    for name, spent in cpu_s.items():
        figures.append(
            Figure(
                name=f"non-streaming, CPU of {name}",
                value=spent / load.requests * 1e3,
                unit="ms/request",
            )
        )
    return figures


def _latency_figures(waits_s: list[float]) -> list[Figure]:
    ascending = sorted(waits_s)
    return [
        Figure(
            name=f"added latency at {LATENCY_RATE_RPS:g} requests/s, {name}",
            value=(quantile(ascending, share) or 0.0) * 1e3,
            unit="ms",
            most=most,
        )
        for name, share, most in (("p50", 0.5, 5.0), ("p99", 0.99, 25.0))
    ]


def _stream_figures(load: Load, cpu_s: dict[str, float]) -> list[Figure]:
    return [
        Figure(
            name="streaming, throughput",
            value=load.tokens / load.seconds,
            unit="tokens/s",
            least=20_000.0,
        ),
        Figure(name="streaming, tokens per chunk", value=load.tokens / load.chunks, unit=""),
        Figure(
            name="streaming, CPU of all three",
            value=sum(cpu_s.values()) / load.chunks * 1e3,
            unit="ms/chunk",
            most=0.12,
        ),
        *(
            Figure(
                name=f"streaming, CPU of {name}", value=spent / load.chunks * 1e3, unit="ms/chunk"
            )
            for name, spent in cpu_s.items()
        ),
    ]


def _body(*, stream: bool, tokens: int) -> bytes:
    fields: dict[str, object] = {
        "model": MODEL,
        "prompt": PROMPT,
        "max_tokens": tokens,
        "qlm_sim": {"output_tokens": tokens},
    }
    if stream:
        fields |= {"stream": True, "stream_options": {"include_usage": True}}
    return msgspec.json.encode(fields)


_HEADERS = {"content-type": "application/json"}


async def _once(session: aiohttp.ClientSession, url: str, body: bytes) -> float:
    """One non-streaming request; returns its latency in seconds."""
    loop = asyncio.get_running_loop()
    started_s = loop.time()
    async with session.post(url, data=body, headers=_HEADERS) as response:
        await response.read()
        response.raise_for_status()
    return loop.time() - started_s


async def _closed(session: aiohttp.ClientSession, url: str, seconds: float) -> Load:
    """As many requests as go through with a fixed number open at a time."""
    loop = asyncio.get_running_loop()
    started_s = loop.time()
    body = _body(stream=False, tokens=1)

    async def client() -> int:
        done = 0
        while loop.time() - started_s < seconds:
            await _once(session, url, body)
            done += 1
        return done

    requests = sum(await asyncio.gather(*(client() for _ in range(CONCURRENCY))))
    return Load(requests, requests, requests, loop.time() - started_s)


async def _paced(session: aiohttp.ClientSession, url: str, seconds: float) -> list[float]:
    """Requests at a constant rate, whatever the answers; returns their latencies."""
    loop = asyncio.get_running_loop()
    started_s = loop.time()
    body = _body(stream=False, tokens=1)
    tasks = []
    for number in range(int(seconds * LATENCY_RATE_RPS)):
        await asyncio.sleep(max(0.0, started_s + number / LATENCY_RATE_RPS - loop.time()))
        tasks.append(asyncio.create_task(_once(session, url, body)))
    return list(await asyncio.gather(*tasks))


async def _streams(session: aiohttp.ClientSession, url: str, seconds: float) -> Load:
    """As many streamed tokens as go through with a fixed number of streams open at a time."""
    loop = asyncio.get_running_loop()
    started_s = loop.time()
    body = _body(stream=True, tokens=STREAM_TOKENS)

    async def client() -> tuple[int, int]:
        requests = chunks = 0
        while loop.time() - started_s < seconds:
            async with session.post(url, data=body, headers=_HEADERS) as response:
                response.raise_for_status()
                async for block in response.content.iter_any():
                    chunks += block.count(b"data: {")
            requests += 1
        return requests, chunks

    done = await asyncio.gather(*(client() for _ in range(STREAMS)))
    requests = sum(count for count, _ in done)
    # The last chunk of a stream carries usage, not a token.
    chunks = sum(count for _, count in done) - requests
    return Load(requests, requests * STREAM_TOKENS, chunks, loop.time() - started_s)


def _cpu_s(running: fleet.Running) -> dict[str, float]:
    """User and system seconds that each of the three processes has spent."""
    spent = {}
    for label, child in (("gateway", "gateway"), ("solver", "solver"), ("agent", AGENT)):
        pid = running.supervisor.pid(child)
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        spent[label] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return spent
