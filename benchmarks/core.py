"""Costs of the core: an arrival and a waiting request at the Manager, a first plan, imports.

Run by `qlm bench core`. One process, no network; each figure stands beside its target. What only computes is measured in
CPU time, so that other work on the machine does not count.
"""

from __future__ import annotations

import asyncio
import gc
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import numpy as np

from benchmarks.figures import Figure
from qlm_core.config import Config
from qlm_core.manager import Manager
from qlm_core.manager.events import (
    AgentJoined,
    AgentReported,
    Event,
    GatewayJoined,
    GatewaySaid,
    Wakeup,
)
from qlm_core.messages import AgentHello, AnnounceDone, Arrived, BulkWaiting, GatewayHello
from qlm_core.model import (
    AgentId,
    BatchId,
    GatewayId,
    InstanceState,
    ModelName,
    RequestId,
    RequestMeta,
    Slo,
)
from qlm_core.planning import Plan, Problem, evaluate, greedy
from qlm_core.profile_catalog import find_profile
from solver.pool import Pool

WAITING = 100_000
MEASURED = 5_000
AGENTS = 10
STEP_S = 1e-3
REPORT_EVERY, REPORT_EVERY_BESIDE = 1_000, 50
BATCHES, LINES = 20, 50_000
BESIDE_STEP_S = 0.02
"""A request every so often, in the measurement beside batches."""

MODELS = ("mistral-7b", "vicuna-13b")
GATEWAY = GatewayId("gateway-0")


def measure() -> list[Figure]:
    """All figures of the core."""
    return [
        *_manager(),
        *_beside_batches(),
        *_first_plan(),
        *asyncio.run(_improvement()),
        *_imports(),
    ]


class _Bench:
    """A Manager with a fleet and a gateway, and what it is told."""

    def __init__(self) -> None:
        config = Config()
        self._classes = tuple(config.slo_class(name) for name in config.slo_classes)
        self.manager = Manager(config.solver, self._classes, now_s=0.0)
        self._tell(GatewayJoined(GatewayHello(GATEWAY, "127.0.0.1:1")), 0.0)
        for number in range(AGENTS):
            profiles = tuple(find_profile(model, "a100") for model in MODELS)
            hello = AgentHello(
                agent=AgentId(f"agent-{number}"),
                gpu="a100",
                profiles=profiles,
                epoch=0,
                state=InstanceState(ready=True, awake_model=ModelName(MODELS[number % 2])),
            )
            self._tell(AgentJoined(hello), 0.0)
        self._tell(GatewaySaid(GATEWAY, AnnounceDone()), 0.0)
        self._rng = Random(0)

    def arrive(self, number: int, now_s: float) -> float:
        """A request arrives; returns the CPU seconds that it took."""
        slo_class = self._classes[self._rng.choices(range(3), (0.3, 0.3, 0.4))[0]]
        request = RequestMeta(
            id=RequestId(f"req-{number:016d}"),
            gateway=GATEWAY,
            model=ModelName(MODELS[self._rng.random() < 0.4]),
            slo_class=slo_class.name,
            slo=slo_class.slo,
            prompt_tokens=self._rng.randint(20, 2_000),
            max_output_tokens=1_024,
            arrival_s=now_s,
        )
        return self._tell(GatewaySaid(GATEWAY, Arrived(request)), now_s)

    def renew_leases(self, now_s: float) -> None:
        """Agents say that they are there."""
        for number in range(AGENTS):
            state = InstanceState(ready=True, awake_model=ModelName(MODELS[number % 2]))
            self._tell(AgentReported(AgentId(f"agent-{number}"), state), now_s)

    def pass_time(self, now_s: float) -> float:
        """It is woken if it wants to be; returns the CPU seconds that this took."""
        due_s = self.manager.wakeup_s
        return self._tell(Wakeup(), now_s) if due_s is not None and due_s <= now_s else 0.0

    def batch(self, number: int, lines: int) -> None:
        """A batch comes that asks both models."""
        for model in MODELS:
            bulk = BulkWaiting(
                batch=BatchId(f"batch-{number}"),
                model=ModelName(model),
                slo_class="batch-2",
                slo=Slo(ttft_s=86_400.0, e2e_s=86_400.0),
                lines=lines // len(MODELS),
                prompt_tokens_mean=900.0,
                max_output_tokens=1_024,
                arrival_s=0.0,
                tenant=f"tenant-{number % 4}",
            )
            self._tell(GatewaySaid(GATEWAY, bulk), 0.0)

    def _tell(self, event: Event, now_s: float) -> float:
        started = time.thread_time()
        self.manager.handle(event, now_s=now_s)
        return time.thread_time() - started


def _manager() -> list[Figure]:
    bench = _Bench()
    gc.collect()
    before = _resident_bytes()
    for number in range(WAITING):
        bench.arrive(number, number * STEP_S)
        if number % REPORT_EVERY == 0:
            bench.renew_leases(number * STEP_S)
    gc.collect()
    grown = _resident_bytes() - before
    costs = sorted(bench.arrive(WAITING + n, (WAITING + n) * STEP_S) for n in range(MEASURED))
    return [
        Figure(
            name=f"manager, per arrival at {WAITING} waiting, mean",
            value=statistics.fmean(costs) * 1e6,
            unit="us",
            most=50.0,
        ),
        Figure(
            name="manager, per arrival, p99", value=costs[int(0.99 * len(costs))] * 1e6, unit="us"
        ),
        Figure(
            name="manager, memory per waiting request",
            value=grown / WAITING,
            unit="bytes",
            most=1_024.0,
        ),
        Figure(name="manager, groups at the end", value=len(bench.manager.groups), unit=""),
    ]


def _beside_batches() -> list[Figure]:
    """The same work without batches and beside a million of their lines, planning and finish times included."""
    figures = []
    for where, batches in (("alone", 0), ("beside a million lines", BATCHES)):
        bench = _Bench()
        gc.collect()
        before = _resident_bytes()
        for number in range(batches):
            bench.batch(number, LINES)
        gc.collect()
        grown = _resident_bytes() - before
        arrivals, others = [], 0.0
        for number in range(MEASURED):
            now_s = 1.0 + number * BESIDE_STEP_S
            arrivals.append(bench.arrive(number, now_s))
            others += bench.pass_time(now_s)
            if number % REPORT_EVERY_BESIDE == 0:
                bench.renew_leases(now_s)
        arrivals.sort()
        figures += [
            Figure(
                name=f"manager, per arrival, {where}, mean",
                value=statistics.fmean(arrivals) * 1e6,
                unit="us",
            ),
            Figure(
                name=f"manager, per arrival, {where}, p99",
                value=arrivals[int(0.99 * len(arrivals))] * 1e6,
                unit="us",
            ),
            Figure(
                name=f"manager, planning and finish times, {where}, a second",
                value=others / (MEASURED * BESIDE_STEP_S) * 1e3,
                unit="ms",
            ),
        ]
        if batches:
            memory = grown / (batches * LINES)
            figures.append(Figure(name="manager, memory per line", value=memory, unit="bytes"))
    return figures


def _first_plan() -> list[Figure]:
    problem = random_problem(groups=100, queues=10, seed=1)
    costs = []
    for _ in range(9):
        started = time.thread_time()
        greedy(problem)
        costs.append(time.thread_time() - started)
    return [
        Figure(name="first plan 100x10, first call", value=costs[0] * 1e3, unit="ms"),
        Figure(
            name="first plan 100x10", value=statistics.median(costs) * 1e3, unit="ms", most=10.0
        ),
    ]


async def _improvement() -> list[Figure]:
    """How soon a backend process betters a first plan, and how much by then; the median of some problems."""
    pool = Pool()
    try:
        await _improved(pool, seed=0)
        runs = [await _improved(pool, seed=seed) for seed in range(1, 8)]
    finally:
        await pool.close()
    soon = statistics.median(first_s for first_s, _ in runs)
    gained = statistics.median(share for _, share in runs)
    return [
        Figure(name="first plan 100x10, improved after", value=soon * 1e3, unit="ms", most=200.0),
        Figure(name="first plan 100x10, better after 200 ms by", value=gained * 100, unit="%"),
    ]


async def _improved(pool: Pool, *, seed: int) -> tuple[float, float]:
    """Seconds to the first improvement of a greedy plan, and its gain at 200 ms as a share."""
    problem = random_problem(groups=100, queues=10, seed=seed)
    first = greedy(problem)
    before = evaluate(problem, first).objective
    started = time.perf_counter()
    seen: list[tuple[float, float]] = []

    def improved(_plan: Plan, objective: float) -> None:
        if objective < before:
            seen.append((time.perf_counter() - started, objective))

    await pool.solve(
        problem,
        backend="search",
        budget_s=0.5,
        warm=first,
        wait_compiled=True,
        on_improvement=improved,
    )
    in_time = [objective for at_s, objective in seen if at_s <= 0.2]
    return (seen[0][0] if seen else float("inf")), 1.0 - (in_time or [before])[-1] / before


def random_problem(*, groups: int, queues: int, seed: int) -> Problem:
    """A fleet of two classes of GPU and four models with the given numbers of groups and queues."""
    rng = np.random.default_rng(seed)
    models, classes = 4, 2
    base_s = rng.uniform(2.0, 40.0, size=groups)
    swap_s = rng.uniform(3.0, 15.0, size=(classes, models + 1, models))
    for model in range(models):
        swap_s[:, model, model] = 0.0
    return Problem(
        group_model=rng.integers(0, models, size=groups),
        group_requests=rng.integers(1, 256, size=groups),
        group_weight=rng.choice([1.0, 2.0, 4.0], size=groups),
        due_s=rng.choice([20.0, 60.0, 3600.0], size=groups) * rng.uniform(0.2, 1.0, size=groups),
        duration_s=np.stack([base_s, 3.0 * base_s], axis=1),
        queue_class=np.arange(queues) % classes,
        loaded_model=rng.integers(0, models, size=queues),
        busy_s=rng.uniform(0.0, 10.0, size=queues),
        swap_s=swap_s,
        alpha=30.0,
    )


def _imports() -> list[Figure]:
    return [
        Figure(
            name="import qlm_core",
            value=_wall_s([sys.executable, "-c", "import qlm_core"]) - _bare_s(),
            unit="s",
            most=0.3,
        ),
        Figure(
            name="import qlm_core.manager",
            value=_wall_s([sys.executable, "-c", "import qlm_core.manager"]) - _bare_s(),
            unit="s",
            most=0.3,
        ),
        Figure(
            name="qlm --help",
            value=_wall_s([sys.executable, "-m", "qlm", "--help"]),
            unit="s",
            most=0.5,
        ),
    ]


def _bare_s() -> float:
    return _wall_s([sys.executable, "-c", "pass"])


def _wall_s(command: list[str]) -> float:
    walls = []
    for _ in range(5):
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        walls.append(time.perf_counter() - started)
    return statistics.median(walls)


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
