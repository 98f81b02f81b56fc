"""Costs of the data plane: requests and tokens through gateway, agent and engine, as real processes.

Run by `qlm bench dataplane`. Most figures are with a zero-delay engine inside the agent. The last ones are with a
server that streams at an engine's pace, so that little can be batched (`benchmarks.stand_in`). This process is the
load; the CPU time of gateway, solver and agent is read from the system, so a slow load makes throughput look worse,
never the cost of a request better.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import msgspec
import uvloop

from benchmarks.figures import Figure
from qlm import fleet
from qlm.client import AsyncClient
from qlm.report import quantile

MODEL, AGENT = "mistral-7b", "bench-0"
PACED_MODEL, PACED_AGENT = "vicuna-13b", "bench-1"
CONCURRENCY = 64
STREAMS = 32
STREAM_TOKENS = 512
LATENCY_RATE_RPS = 100.0
PACED_STREAMS = 64
PACED_TICK_S = 0.02
PROMPT = "A prompt of some forty tokens, as a short question to an assistant would have it. " * 2


def overrides(server: str) -> tuple[str, ...]:
    """A fleet of one agent with a zero-delay engine and one attached to `server`."""
    return (
        f"agents=[{{name: {AGENT}, gpu: a100, models: [{MODEL}], "
        "engine: {sim: {zero_delay: true}}}, "
        f"{{name: {PACED_AGENT}, gpu: a100, models: [{PACED_MODEL}], "
        f"engine: {{kind: openai, openai: {{base_url: 'http://{server}', "
        f"max_num_seqs: {PACED_STREAMS}}}}}}}]",
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
    async with stand_in("benchmarks.stand_in", "--tick-s", str(PACED_TICK_S)) as server:
        config = fleet.temporary_config(folder, overrides(server))
        async with (
            fleet.running(config, folder) as running,
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
        ):
            return await _phases(running, session, seconds)


async def _phases(
    running: fleet.Running, session: aiohttp.ClientSession, seconds: float
) -> list[Figure]:
    url = f"{running.url}/v1/completions"
    await _closed(session, url, 1.0)
    spent = _Spent(running)
    load = await _closed(session, url, seconds)
    figures = _request_figures(load, spent.since_last_s())
    load = await _durable(running.config.gateway.grpc_listen, seconds)
    figures += _durable_figures(load, spent.since_last_s())
    waits_s = await _paced(session, url, seconds)
    figures += _latency_figures(waits_s, spent.since_last_s())
    load = await _streams(session, url, seconds, model=MODEL, streams=STREAMS)
    figures += _stream_figures(load, spent.since_last_s(), "streaming", tokens_s_least=20_000.0)
    load = await _streams(session, url, seconds, model=PACED_MODEL, streams=PACED_STREAMS)
    return figures + _stream_figures(load, spent.since_last_s(), "streaming at an engine's pace")


@contextlib.asynccontextmanager
async def stand_in(module: str, *arguments: str) -> AsyncIterator[str]:
    """A process with a stand-in for a model server; its address."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield (await process.stdout.readline()).decode().strip()
    finally:
        process.stdin.close()
        await process.wait()


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


def _durable_figures(load: Load, cpu_s: dict[str, float]) -> list[Figure]:
    return [
        Figure(
            name="durable over gRPC, throughput",
            value=load.requests / load.seconds,
            unit="requests/s",
        ),
        Figure(
            name="durable over gRPC, CPU of all three",
            value=sum(cpu_s.values()) / load.requests * 1e3,
            unit="ms/request",
        ),
    ]


def _latency_figures(waits_s: list[float], cpu_s: dict[str, float]) -> list[Figure]:
    ascending = sorted(waits_s)
    figures = [
        Figure(
            name=f"added latency at {LATENCY_RATE_RPS:g} requests/s, {name}",
            value=(quantile(ascending, share) or 0.0) * 1e3,
            unit="ms",
            most=most,
        )
        for name, share, most in (("p50", 0.5, 5.0), ("p99", 0.99, 25.0))
    ]
    figures.append(
        Figure(
            name=f"CPU of all three at {LATENCY_RATE_RPS:g} requests/s",
            value=sum(cpu_s.values()) / len(waits_s) * 1e3,
            unit="ms/request",
        )
    )
    return figures


def _stream_figures(
    load: Load, cpu_s: dict[str, float], name: str, *, tokens_s_least: float | None = None
) -> list[Figure]:
    return [
        Figure(
            name=f"{name}, throughput",
            value=load.tokens / load.seconds,
            unit="tokens/s",
            least=tokens_s_least,
        ),
        Figure(name=f"{name}, tokens per chunk", value=load.tokens / load.chunks, unit=""),
        Figure(
            name=f"{name}, CPU of all three",
            value=sum(cpu_s.values()) / load.chunks * 1e3,
            unit="ms/chunk",
            most=0.12,
        ),
        *(
            Figure(
                name=f"{name}, CPU of {process}", value=spent / load.chunks * 1e3, unit="ms/chunk"
            )
            for process, spent in cpu_s.items()
        ),
    ]


def _body(*, stream: bool, tokens: int, model: str = MODEL) -> bytes:
    fields: dict[str, object] = {
        "model": model,
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
    # The loop's own clock counts whole milliseconds.
    started_s = time.perf_counter()
    async with session.post(url, data=body, headers=_HEADERS) as response:
        await response.read()
        response.raise_for_status()
    return time.perf_counter() - started_s


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


async def _durable(address: str, seconds: float) -> Load:
    """As many requests as go through over gRPC, each stored before it runs and again at its end."""
    started_s = time.perf_counter()
    body = {"model": MODEL, "prompt": PROMPT, "max_tokens": 1}

    async with AsyncClient(address) as gateway:

        async def client() -> int:
            done = 0
            while time.perf_counter() - started_s < seconds:
                async for _ in gateway.submit(body):
                    continue
                done += 1
            return done

        requests = sum(await asyncio.gather(*(client() for _ in range(CONCURRENCY))))
    return Load(requests, requests, requests, time.perf_counter() - started_s)


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


async def _streams(
    session: aiohttp.ClientSession, url: str, seconds: float, *, model: str, streams: int
) -> Load:
    """As many streamed tokens as go through with a fixed number of streams open at a time."""
    loop = asyncio.get_running_loop()
    started_s = loop.time()
    body = _body(stream=True, tokens=STREAM_TOKENS, model=model)

    async def client() -> tuple[int, int]:
        requests = chunks = 0
        while loop.time() - started_s < seconds:
            async with session.post(url, data=body, headers=_HEADERS) as response:
                response.raise_for_status()
                async for block in response.content.iter_any():
                    chunks += block.count(b"data: {")
            requests += 1
        return requests, chunks

    done = await asyncio.gather(*(client() for _ in range(streams)))
    requests = sum(count for count, _ in done)
    # The last chunk of a stream carries usage, not a token.
    chunks = sum(count for _, count in done) - requests
    return Load(requests, requests * STREAM_TOKENS, chunks, loop.time() - started_s)


class _Spent:
    """User and system seconds of gateway, solver and agents."""

    def __init__(self, running: fleet.Running) -> None:
        supervisor = running.supervisor
        self._pids = {
            "gateway": (supervisor.pid("gateway"),),
            "solver": (supervisor.pid("solver"),),
            "agent": (supervisor.pid(AGENT), supervisor.pid(PACED_AGENT)),
        }
        self._last_s = self._now_s()

    def since_last_s(self) -> dict[str, float]:
        """What each has spent since this was last asked."""
        last_s, self._last_s = self._last_s, self._now_s()
        return {name: spent - last_s[name] for name, spent in self._last_s.items()}

    def _now_s(self) -> dict[str, float]:
        return {name: sum(map(_cpu_s, pids)) for name, pids in self._pids.items()}


def _cpu_s(pid: int | None) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
