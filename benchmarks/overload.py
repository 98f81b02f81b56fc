"""Several times as many requests as a fleet can serve, for minutes: what is refused, what is kept, and what it costs.

Solver, gateway and agents with sim engines run as processes, with the default limits; this process is the load. It first
finds out how much the fleet serves, then sends so many times as much at random moments, streamed over HTTP. Who is refused
comes back when told, with some probability, and says the same. When the load stops, all that was accepted is waited for.
`python -m benchmarks.overload --help` lists what can be varied.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import uvloop

from qlm import fleet

MODEL = "mistral-7b"
CLASSES = {"interactive": 0.3, "batch-1": 0.3, "batch-2": 0.4}
# One engine and long answers, so that the load does not need more of the machine than the fleet.
AGENT = f"agents=[{{name: bench-0, gpu: a100, models: [{MODEL}]}}]"
OUTPUT_TOKENS = 400
WARM_UP_S = 30.0
WARM_UP_OPEN = 200
SAMPLE_S = 10.0
TRUE_FACTOR = 2.0


@dataclass(slots=True)
class Asked:
    """One client's request, from its first try to its end.

    Attributes:
        told_s: what the first refusal said; 0.0 if there was none.
        accepted_s: when the try was sent that was not refused; None if there was none.
        ttft_s: from then to the first output.
    """

    slo_class: str
    body: bytes
    first_s: float
    told_s: float = 0.0
    comes_back: bool = False
    accepted_s: float | None = None
    ttft_s: float | None = None
    outcome: str = ""


@dataclass
class Load:
    """Sends requests and notes what becomes of them."""

    url: str
    session: aiohttp.ClientSession
    comes_back: float
    draw: random.Random
    asked: list[Asked] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)
    stopped: asyncio.Event = field(default_factory=asyncio.Event)
    _number: int = 0

    def new(self, slo_class: str) -> Asked:
        """A request that nobody has sent yet."""
        self._number += 1
        prompt = f"Request {self._number} of an overload. " * 12
        body: dict[str, Any] = {"model": MODEL, "prompt": prompt, "max_tokens": 2 * OUTPUT_TOKENS}
        length = 1 + int(self.draw.expovariate(1.0 / OUTPUT_TOKENS))
        body |= {"stream": True, "qlm_sim": {"output_tokens": min(length, 2 * OUTPUT_TOKENS)}}
        comes_back = self.draw.random() < self.comes_back
        asked = Asked(slo_class, msgspec.json.encode(body), time.monotonic(), comes_back=comes_back)
        self.asked.append(asked)
        return asked

    async def follow(self, asked: Asked) -> None:
        """Send a request, again whenever it is told to, until it ends."""
        while not asked.outcome:
            wait_s = await self._try(asked)
            if wait_s is None:
                return
            asked.told_s = asked.told_s or wait_s
            if self.stopped.is_set() or not asked.comes_back:
                asked.outcome = "refused"
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self.stopped.wait()
                asked.outcome = "refused"

    async def _try(self, asked: Asked) -> float | None:
        """One try; how long to wait before the next if it was refused."""
        sent_s = time.monotonic()
        headers = {"x-qlm-slo-class": asked.slo_class}
        try:
            async with self.session.post(self.url, data=asked.body, headers=headers) as answer:
                self.answers[str(answer.status)] += 1
                if answer.status == 429:
                    return float(answer.headers["retry-after"])
                last = b""
                async for line in answer.content:
                    if asked.ttft_s is None:
                        asked.ttft_s = time.monotonic() - sent_s
                    last = line if line.strip() else last
                whole = answer.status == 200 and b"[DONE]" in last
                asked.outcome = "finished" if whole else f"HTTP {answer.status}"
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            self.answers["reset"] += 1
            asked.outcome = type(error).__name__
        asked.accepted_s = sent_s
        return None


@dataclass
class Watch:
    """Memory and open files of the fleet's processes, now and then."""

    running: fleet.Running
    highest: dict[str, float] = field(default_factory=dict)

    def sample(self) -> dict[str, float]:
        """MB and files of gateway and solver now."""
        found = {}
        for name in ("gateway", "solver"):
            pid = self.running.supervisor.pid(name)
            with contextlib.suppress(OSError):
                pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
                found[f"{name} MB"] = pages * resource.getpagesize() / 1e6
                found[f"{name} files"] = float(len(list(Path(f"/proc/{pid}/fd").iterdir())))
        for key, value in found.items():
            self.highest[key] = max(value, self.highest.get(key, 0.0))
        return found


async def measure(options: argparse.Namespace, folder: Path) -> None:
    """Run it all, and print what is found."""
    config = fleet.temporary_config(folder, (AGENT, "log.level=warning", *options.set))
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=None)
    async with (
        fleet.running(config, folder) as running,
        aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
    ):
        url = f"{running.url}/v1/completions"
        draw = random.Random(options.seed)
        capacity_rps = await _capacity(Load(url, session, 0.0, draw))
        print(
            f"the fleet serves about {capacity_rps:.1f} requests/s; offered {options.times:g} times as many"
        )
        load = Load(url, session, options.comes_back, draw)
        watch = Watch(running)
        tasks = await _offer(load, watch, options.times * capacity_rps, 60.0 * options.minutes)
        stopped_s = time.monotonic()
        await _drain(load, watch, tasks, options.drain_minutes * 60.0)
        _report(load, watch, config.slo_classes, time.monotonic() - stopped_s)


async def _capacity(load: Load) -> float:
    """Requests a second with as many open as keep all engines busy; the first quarter of the time does not count."""
    names, shares = list(CLASSES), list(CLASSES.values())
    counted = 0
    began_s = time.monotonic()

    async def again_and_again() -> None:
        nonlocal counted
        while time.monotonic() < began_s + WARM_UP_S:
            await load.follow(load.new(load.draw.choices(names, shares)[0]))
            counted += began_s + WARM_UP_S / 4 < time.monotonic() < began_s + WARM_UP_S

    await asyncio.gather(*(again_and_again() for _ in range(WARM_UP_OPEN)))
    return counted / (0.75 * WARM_UP_S)


async def _offer(
    load: Load, watch: Watch, rate_rps: float, seconds: float
) -> list[asyncio.Task[None]]:
    names, shares = list(CLASSES), list(CLASSES.values())
    tasks = []
    began_s = next_s = sample_s = time.monotonic()
    while next_s < began_s + seconds:
        now_s = time.monotonic()
        if now_s >= sample_s:
            sample_s += SAMPLE_S
            _say(load, watch, now_s - began_s)
        if next_s > now_s:
            await asyncio.sleep(next_s - now_s)
        next_s += load.draw.expovariate(rate_rps)
        asked = load.new(load.draw.choices(names, shares)[0])
        tasks.append(asyncio.create_task(load.follow(asked)))
    load.stopped.set()
    return tasks


async def _drain(
    load: Load, watch: Watch, tasks: Sequence[asyncio.Task[None]], seconds: float
) -> None:
    began_s = time.monotonic()
    waiting = [task for task in tasks if not task.done()]
    while waiting and time.monotonic() < began_s + seconds:
        await asyncio.wait(waiting, timeout=SAMPLE_S)
        waiting = [task for task in waiting if not task.done()]
        _say(load, watch, time.monotonic() - began_s, "after the load")
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


def _say(load: Load, watch: Watch, at_s: float, after: str = "") -> None:
    found = watch.sample()
    still = sum(not asked.outcome for asked in load.asked)
    told = ", ".join(f"{key} {value:.0f}" for key, value in found.items())
    print(f"{at_s:5.0f} s {after} {told}; open {still}, answers {dict(load.answers)}", flush=True)


def _report(load: Load, watch: Watch, classes: Any, drained_s: float) -> None:
    print("\nclass         offered  accepted  finished  in time, of accepted")
    for name in CLASSES:
        asked = [one for one in load.asked if one.slo_class == name]
        accepted = [one for one in asked if one.accepted_s is not None]
        finished = [one for one in accepted if one.outcome == "finished"]
        limit_s = classes[name].ttft_s
        in_time = sum(one.ttft_s is not None and one.ttft_s <= limit_s for one in finished)
        share = in_time / max(1, len(accepted))
        print(f"{name:12}{len(asked):9}{len(accepted):10}{len(finished):10}{share:10.1%}")
    answers = sum(load.answers.values())
    shares = ", ".join(
        f"{key} {count / answers:.1%}" for key, count in sorted(load.answers.items())
    )
    print(f"answers       {answers}: {shares}")
    truth = list(_truth(load))
    true = sum(1 / TRUE_FACTOR <= one <= TRUE_FACTOR for one in truth)
    print(
        f"Retry-After   true within a factor of {TRUE_FACTOR:g} for {true / max(1, len(truth)):.1%} of {len(truth)}"
    )
    print(
        "highest       " + ", ".join(f"{key} {value:.0f}" for key, value in watch.highest.items())
    )
    odd = Counter(one.outcome for one in load.asked if one.outcome not in ("finished", "refused"))
    print(f"drained       {drained_s:.0f} s after the load; not finished: {dict(odd)}")


def _truth(load: Load) -> Iterator[float]:
    """Of each client that came back, when it was accepted over when it was told to come back.

    Who was not accepted by the end of the load counts if it had been told less than half of that time.
    """
    end_s = max(one.first_s for one in load.asked)
    for one in load.asked:
        if not one.told_s or not one.comes_back:
            continue
        if one.accepted_s is not None:
            yield (one.accepted_s - one.first_s) / one.told_s
        elif end_s - one.first_s > TRUE_FACTOR * one.told_s:
            yield float("inf")


def main() -> None:
    """Measure as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overload", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long the load lasts")
    parser.add_argument("--times", type=float, default=5.0, help="of what the fleet serves")
    parser.add_argument("--comes-back", type=float, default=0.8, help="share of the refused")
    parser.add_argument(
        "--drain-minutes", type=float, default=30.0, help="to be drained in, at most"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], help="a key of the configuration")
    options = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with (
        tempfile.TemporaryDirectory(prefix="qlm-bench-") as name,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        runner.run(measure(options, Path(name)))


if __name__ == "__main__":
    main()
