"""Chats in bursts beside batch work that fills a server's slots: how soon they start, and what that costs the batch.

Run by `qlm bench slots`. Gateway, solver and agent run as `qlm up` runs them, in front of a stand-in for one vLLM with 32
slots (`benchmarks.slots_server`). The same load goes through four ways: the chats alone; the server itself, first come first
served; the server itself with vLLM's priorities, which order its queue and preempt nobody for a slot; and QLM. The one by
priorities keeps nothing free and throws nothing away, so its batch time is the least.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import aiohttp
import msgspec
import uvloop

from benchmarks.dataplane import stand_in
from benchmarks.figures import Figure
from benchmarks.slots_server import GPU, MODEL, SLOTS, Stats
from qlm import fleet
from qlm.report import quantile

AGENT = "bench-0"
KV_TOKENS = 463_232
BATCH_REQUESTS, QUICK_BATCH_REQUESTS = 600, 150
BURST_S, PAUSE_S, BURST_RPS = 5.0, 5.0, 6.0
CHAT_TOKENS = 100
PROMPT_WORDS = (40, 160)
BATCH_TOKENS = (100, 600)
_HEADERS = {"content-type": "application/json"}


@dataclass(frozen=True, slots=True)
class Ask:
    """A request: when it is sent, and what it asks for."""

    at_s: float
    name: str
    chat: bool
    words: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one way made of the load: seconds from sending to the first token of each chat, and until the last batch answer."""

    ttft_s: list[float]
    batch_s: float
    stats: Stats


def load(batch_requests: int, *, seed: int) -> list[Ask]:
    """Batch requests at the start; then, while these run at full speed, bursts of chats with random gaps."""
    rng = random.Random(seed)
    asks = [
        Ask(0.0, f"b{seed}-{n}", False, rng.randint(*PROMPT_WORDS), rng.randint(*BATCH_TOKENS))
        for n in range(batch_requests)
    ]
    # A second of the server completes 2,500 tokens; bursts end before the batch does.
    last_s = 0.9 * batch_requests * sum(BATCH_TOKENS) / 2 / 2500.0
    start_s, number = PAUSE_S, 0
    while start_s < last_s:
        at_s = start_s + rng.expovariate(BURST_RPS)
        while at_s < start_s + BURST_S:
            words = rng.randint(*PROMPT_WORDS)
            asks.append(Ask(at_s, f"c{seed}-{number}", True, words, CHAT_TOKENS))
            number += 1
            at_s += rng.expovariate(BURST_RPS)
        start_s += BURST_S + PAUSE_S
    return asks


def measure(*, quick: bool = False, repetitions: int = 1, ttft_s: float = 1.0) -> list[Figure]:
    """All figures, medians over the repetitions.

    Args:
        ttft_s: what chats are promised.
    """
    requests = QUICK_BATCH_REQUESTS if quick else BATCH_REQUESTS
    with (
        tempfile.TemporaryDirectory(prefix="qlm-bench-") as name,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        return runner.run(_measure(Path(name), requests, repetitions, ttft_s))


def overrides(server: str, ttft_s: float) -> tuple[str, ...]:
    """One agent attached to `server`; chats that are promised a first token, and batch work that has an hour."""
    return (
        f"agents=[{{name: {AGENT}, gpu: {GPU}, models: [{MODEL}], engine: {{kind: openai, "
        f"openai: {{base_url: 'http://{server}', max_num_seqs: {SLOTS}, "
        f"kv_cache_tokens: {KV_TOKENS}}}}}}}]",
        f"slo_classes={{chat: {{ttft_s: {ttft_s}, tpot_s: 0.05, weight: 4, "
        "service_tiers: [auto, default, priority]}, "
        "batch: {ttft_s: 3600, weight: 1, service_tiers: [flex]}}",
        "default_slo_class=chat",
        "log.level=warning",
    )


async def _measure(
    folder: Path, batch_requests: int, repetitions: int, ttft_s: float
) -> list[Figure]:
    ways: dict[str, list[Outcome]] = {}
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(stand_in("benchmarks.slots_server"))
        config = fleet.temporary_config(folder, overrides(server, ttft_s))
        running = await stack.enter_async_context(fleet.running(config, folder))
        session = await stack.enter_async_context(
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None)
            )
        )

        async def go(way: str, url: str, asks: Sequence[Ask], **how: bool) -> None:
            await _stats(session, server)
            ways.setdefault(way, []).append(await _run(session, url, server, asks, **how))

        direct, ours = f"http://{server}/v1/completions", f"{running.url}/v1/completions"
        for seed in range(repetitions):
            asks = load(batch_requests, seed=seed)
            chats = [ask for ask in asks if ask.chat]
            await go("chats alone, server", direct, chats)
            await go("chats alone, QLM", ours, chats)
            await go("first come first served", direct, asks)
            await go("vLLM's priorities", direct, asks, priorities=True)
            await go("QLM", ours, asks)
    return _figures(ways)


async def _run(
    session: aiohttp.ClientSession,
    url: str,
    server: str,
    asks: Sequence[Ask],
    *,
    priorities: bool = False,
) -> Outcome:
    started_s = time.perf_counter()
    firsts = await asyncio.gather(*(_ask(session, url, ask, started_s, priorities) for ask in asks))
    ended = [end_s for ask, (_, end_s) in zip(asks, firsts, strict=True) if not ask.chat]
    return Outcome(
        ttft_s=[first_s for ask, (first_s, _) in zip(asks, firsts, strict=True) if ask.chat],
        batch_s=max(ended, default=started_s) - started_s,
        stats=await _stats(session, server),
    )


async def _ask(
    session: aiohttp.ClientSession, url: str, ask: Ask, started_s: float, priorities: bool
) -> tuple[float, float]:
    """Send a request when its time comes; seconds to its first token, and when it ended."""
    await asyncio.sleep(max(0.0, started_s + ask.at_s - time.perf_counter()))
    fields: dict[str, object] = {
        "model": MODEL,
        "prompt": " ".join([ask.name, *["word"] * (ask.words - 1)]),
        "max_tokens": ask.tokens,
        "service_tier": "priority" if ask.chat else "flex",
        "stream": True,
    }
    if priorities:
        fields["priority"] = 0 if ask.chat else 1
    sent_s, first_s, tokens = time.perf_counter(), 0.0, 0
    async with session.post(url, data=msgspec.json.encode(fields), headers=_HEADERS) as response:
        response.raise_for_status()
        async for block in response.content.iter_any():
            found = block.count(b" token")
            if found and not tokens:
                first_s = time.perf_counter() - sent_s
            tokens += found
    if tokens != ask.tokens:
        raise RuntimeError(f"{ask.name}: {tokens} tokens instead of {ask.tokens}")
    return first_s, time.perf_counter()


async def _stats(session: aiohttp.ClientSession, server: str) -> Stats:
    async with session.get(f"http://{server}/stats") as response:
        return msgspec.json.decode(await response.read(), type=Stats)


def _figures(ways: dict[str, list[Outcome]]) -> list[Figure]:
    def ttft_ms(way: str, share: float) -> float:
        return 1e3 * median(quantile(sorted(one.ttft_s), share) or 0.0 for one in ways[way])

    def batch_s(way: str) -> float:
        return median(one.batch_s for one in ways[way])

    def at_server_ms(way: str, share: float) -> float:
        """From a chat's coming to the server: what does not depend on how busy this machine is."""
        return median(
            quantile(
                sorted(ms for name, ms in one.stats.first_ms.items() if name.startswith("c")), share
            )
            or 0.0
            for one in ways[way]
        )

    figures = []
    for way, outcomes in ways.items():
        for share in (0.5, 0.95, 0.99):
            name = f"{way}: first token of a chat, p{100 * share:g}"
            figures.append(Figure(name=name, value=ttft_ms(way, share), unit="ms"))
        name = f"{way}: the same from the server on, p95"
        figures.append(Figure(name=name, value=at_server_ms(way, 0.95), unit="ms"))
        if outcomes[0].batch_s:
            figures.append(Figure(name=f"{way}: batch done", value=batch_s(way), unit="s"))
    ours = [one.stats for one in ways["QLM"]]
    freed_ms = sorted(value for one in ours for value in one.freed_ms)
    return [
        *figures,
        Figure(name="QLM: evictions", value=median(one.aborted for one in ours), unit=""),
        Figure(
            name="QLM: tokens of evicted requests, given again",
            value=median(one.resumed_tokens for one in ours),
            unit="",
        ),
        Figure(
            name="QLM: of these computed again",
            value=median(one.recomputed_tokens for one in ours),
            unit="",
        ),
        Figure(name="hang-up to free slot, p50", value=quantile(freed_ms, 0.5) or 0.0, unit="ms"),
        Figure(
            name="first tokens, p95, QLM over alone",
            value=ttft_ms("QLM", 0.95) / ttft_ms("chats alone, QLM", 0.95),
            unit="",
            most=1.3,
        ),
        Figure(
            name="the same from the server on, QLM over alone",
            value=at_server_ms("QLM", 0.95) / at_server_ms("chats alone, QLM", 0.95),
            unit="",
            most=1.3,
        ),
        Figure(
            name="batch done, QLM over vLLM's priorities",
            value=batch_s("QLM") / batch_s("vLLM's priorities"),
            unit="",
            most=1.05,
        ),
    ]
