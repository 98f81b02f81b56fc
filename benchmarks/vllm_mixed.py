"""`make bench-vllm`: interactive bursts beside batch work on a real vLLM, with and without QLM before it.

One run has the same load on four set-ups, in turn and several times: the interactive requests alone; with the batch on a
vLLM that serves first come, first served; on one that goes by priority; and through QLM, whose agent starts the same
server. Then the time from the decision to evict to the slot's next token is measured through the agents' own engine.
Figures are medians over the repetitions. Absolute ones are of tiny models on a CPU; the ratios are what to look at.

    python -m benchmarks.vllm_mixed [--repetitions N] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from agents.engines import make_engine
from benchmarks import vllm_load, vllm_servers
from benchmarks.figures import Figure, show, to_json
from benchmarks.vllm_load import Got, Send
from benchmarks.vllm_servers import Zygote
from qlm import fleet, ports
from qlm.report import quantile
from qlm_core.config import Config
from qlm_core.endpoint import Endpoint
from qlm_core.executor import JobOutput
from qlm_core.executor.events import EngineEvent
from qlm_core.messages import Payload
from qlm_core.model import ModelName, RequestId

MODEL = "tiny-llama"
SLOTS = 8
BATCH, BATCH_TOKENS = 40, 1200
BURSTS, BURST, PERIOD_S, CHAT_TOKENS = 6, 8, 2.0, 32
EVICTIONS = 20
# An interactive request is due so soon that QLM makes room as soon as there is none.
TTFT_S = 0.5
COUNTERS = {
    "generated": "vllm:generation_tokens_total",
    "asked": "vllm:prefix_cache_queries_total",
    "found": "vllm:prefix_cache_hits_total",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """Where a load goes, what its requests say of themselves, and the server that computes it."""

    name: str
    url: str
    server: str
    interactive: Mapping[str, Any] = field(default_factory=dict)
    batch: Mapping[str, Any] = field(default_factory=dict)
    has_batch: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One run of the load: its answers and the tokens that the server computed."""

    got: Sequence[Got]
    computed_tokens: float
    evictions: float

    def ttft_s(self, share: float, *, onset: bool = False) -> float:
        """A quantile of the interactive times to the first token; of those at the onset of bursts alone if so asked."""
        chats = (got for got in self.got if got.send.interactive)
        return _quantile([got.ttft_s for got in chats if got.send.onset or not onset], share)

    @property
    def batch_s(self) -> float:
        """When the last batch output was there."""
        return max((got.ended_s for got in self.got if not got.send.interactive), default=0.0)

    @property
    def lost_share(self) -> float:
        """Tokens computed beyond those that were asked for and answered, over these."""
        needed = sum(got.prompt_tokens + got.output_tokens for got in self.got)
        return max(0.0, self.computed_tokens - needed) / needed


async def measure(zygote: Zygote, *, repetitions: int) -> list[Figure]:
    """All figures."""
    first_come = zygote.start(MODEL, f"--max-num-seqs={SLOTS}", "--scheduling-policy=fcfs").url
    by_priority = zygote.start(MODEL, f"--max-num-seqs={SLOTS}", "--scheduling-policy=priority").url
    async with before_qlm() as (gateway, own):
        setups = [
            Setup(name="alone", url=first_come, server=first_come, has_batch=False),
            Setup(name="FCFS", url=first_come, server=first_come),
            Setup(
                name="vLLM priority",
                url=by_priority,
                server=by_priority,
                interactive={"priority": 0},
                batch={"priority": 1000},
            ),
            Setup(
                name="QLM",
                url=gateway,
                server=own,
                interactive={"service_tier": "default"},
                batch={"service_tier": "flex"},
            ),
        ]
        outcomes: dict[str, list[Outcome]] = {setup.name: [] for setup in setups}
        for repetition in range(repetitions):
            for setup in setups:
                outcomes[setup.name].append(await run(setup, salt=f"{setup.name} {repetition}"))
                print(
                    f"repetition {repetition + 1} of {repetitions}: {setup.name}", file=sys.stderr
                )
    frees = await slot_frees(zygote)
    return figures(outcomes, frees)


@contextlib.asynccontextmanager
async def before_qlm() -> AsyncIterator[tuple[str, str]]:
    """A fleet of one agent that starts its vLLM: the gateway's address and the server's."""
    address = ports.free_addresses(1)[0]
    engine = vllm_servers.engine_section(int(address.rsplit(":", 1)[1]), SLOTS)
    config = Config.from_mapping(
        {
            "models": {MODEL: {"path": str(vllm_servers.MODELS / MODEL), "max_model_len": 2048}},
            "slo_classes": {
                "interactive": {"ttft_s": TTFT_S, "weight": 20.0, "service_tiers": ["auto", "default"]},
                "batch-1": {"ttft_s": 600.0, "weight": 1.0, "service_tiers": ["flex"]},
            },
            "agents": [{"name": "agent", "gpu": "cpu", "models": [MODEL], "engine": engine}],
        }
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="qlm-bench-vllm-") as name:
        folder = Path(name)
        chosen = fleet.temporary_config(folder, ["log.level=warning"], base=config)
        async with fleet.running(chosen, folder) as running:
            yield running.url, f"http://{address}"


async def run(setup: Setup, *, salt: str) -> Outcome:
    """The load once, on one set-up."""
    sends: list[Send] = vllm_load.interactive(
        MODEL, bursts=BURSTS, burst=BURST, period_s=PERIOD_S, tokens=CHAT_TOKENS, salt=salt
    )
    if setup.has_batch:
        sends = vllm_load.batch(MODEL, requests=BATCH, tokens=BATCH_TOKENS, salt=salt) + sends
    evictions = "qlm_request_evictions_total"
    before = await asyncio.to_thread(_counters, setup.server)
    evicted = await asyncio.to_thread(vllm_servers.metric, setup.url, evictions)
    got = await vllm_load.run(setup.url, sends, interactive=setup.interactive, batch=setup.batch)
    # Counters lag behind the last token by an iteration or two.
    await asyncio.sleep(0.5)
    after = await asyncio.to_thread(_counters, setup.server)
    return Outcome(
        got=got,
        computed_tokens=after - before,
        evictions=await asyncio.to_thread(vllm_servers.metric, setup.url, evictions) - evicted,
    )


def _counters(server: str) -> float:
    """Tokens that a server has computed so far: generated ones, and those of prompts that no cache held."""
    values = {key: vllm_servers.metric(server, name) for key, name in COUNTERS.items()}
    return values["generated"] + values["asked"] - values["found"]


async def slot_frees(zygote: Zygote) -> list[float]:
    """Seconds from the order to abort to the first token of what waited for the slot, less that token's own time."""
    server = zygote.start(MODEL, "--max-num-seqs=1")
    config = Config.from_mapping(
        {
            "models": {MODEL: {"max_model_len": 2048}},
            "agents": [
                {
                    "name": "agent",
                    "gpu": "cpu",
                    "models": [MODEL],
                    "engine": {"kind": "openai", "openai": {"base_url": server.url}},
                }
            ],
        }
    )
    engine = make_engine(config, config.agents[0])
    begun: dict[str, asyncio.Event] = {}

    def listen(event: EngineEvent) -> None:
        if isinstance(event, JobOutput) and event.id in begun:
            begun[event.id].set()

    def submit(name: str, tokens: int) -> asyncio.Event:
        begun[name] = asyncio.Event()
        body = {"prompt": name, "max_tokens": tokens, "ignore_eos": True, "temperature": 0}
        said = msgspec.json.encode(body)
        engine.submit(Payload(RequestId(name), 1, ModelName(MODEL), Endpoint.COMPLETIONS, said), 0)
        return begun[name]

    await engine.start(listen)
    frees, alone = [], []
    try:
        for number in range(EVICTIONS):
            asked_s = time.monotonic()
            await submit(f"alone {number}", 1).wait()
            alone.append(time.monotonic() - asked_s)
            await submit(f"lax {number}", 2000).wait()
            urgent = submit(f"urgent {number}", 1)
            await asyncio.sleep(0.1)
            decided_s = time.monotonic()
            engine.abort(RequestId(f"lax {number}"), 1)
            await urgent.wait()
            frees.append(time.monotonic() - decided_s)
    finally:
        await engine.stop()
        await asyncio.to_thread(server.stop)
    usual_s = statistics.median(alone)
    return [max(0.0, one - usual_s) for one in frees]


def figures(outcomes: Mapping[str, Sequence[Outcome]], frees: Sequence[float]) -> list[Figure]:
    """Medians over repetitions, and ratios to the interactive requests alone and to FCFS."""
    found: list[Figure] = []
    medians: dict[tuple[str, str], float] = {}
    for name, runs in outcomes.items():
        for label, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
            value = statistics.median(1000 * one.ttft_s(share) for one in runs)
            medians[name, label] = value
            found.append(Figure(name=f"{name}: interactive TTFT {label}", value=value, unit="ms"))
        onset = statistics.median(1000 * one.ttft_s(0.95, onset=True) for one in runs)
        found.append(Figure(name=f"{name}: the same at burst onset, p95", value=onset, unit="ms"))
        if name != "alone":
            medians[name, "batch"] = statistics.median(one.batch_s for one in runs)
            lost = statistics.median(100 * one.lost_share for one in runs)
            found.append(Figure(name=f"{name}: batch time", value=medians[name, "batch"], unit="s"))
            found.append(Figure(name=f"{name}: work lost", value=lost, unit="% of tokens"))
    evictions = statistics.median(one.evictions for one in outcomes["QLM"])
    found.append(Figure(name="QLM: evictions", value=evictions, unit=""))
    for name in ("FCFS", "vLLM priority", "QLM"):
        for label in ("p50", "p99"):
            ratio = medians[name, label] / medians["alone", label]
            found.append(Figure(name=f"TTFT {label}, {name} over alone", value=ratio, unit="times"))
    for name in ("vLLM priority", "QLM"):
        ratio = medians[name, "batch"] / medians["FCFS", "batch"]
        found.append(Figure(name=f"batch time, {name} over FCFS", value=ratio, unit="times"))
    for label, share in (("p50", 0.5), ("p95", 0.95)):
        value = 1000 * _quantile(frees, share)
        found.append(Figure(name=f"eviction decided to slot free, {label}", value=value, unit="ms"))
    return found


def _quantile(values: Sequence[float], share: float) -> float:
    found = quantile(sorted(values), share)
    assert found is not None
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)  # fmt: skip
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="machine-readable figures")
    options = parser.parse_args(arguments)
    try:
        with vllm_servers.zygote() as zygote:
            found = asyncio.run(measure(zygote, repetitions=options.repetitions))
    except vllm_servers.NoVllm as reason:
        print(reason, file=sys.stderr)
        return 2
    print(to_json(found) if options.json else show(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
