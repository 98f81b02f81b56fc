"""The paper's evaluation on our bed: every figure of its §8, simulated, beside what the paper printed.

The paper's fleets and most of its rates are not stated in full, so loads are chosen relative to what the simulated fleet can
serve: from what every policy manages to several times that. An experiment is a list of points on an axis; each
point is one bed, run under some policies and seeds. All runs of all experiments go through one pool of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Any

from benchmarks import paper_published as published
from qlm.simulations import Bed, Run, run_one
from qlm_core.sim.scenario import scenario_from_mapping

Mapping = dict[str, Any]

W_B_MODELS = (
    "mistral-7b-ft1",
    "llama-2-70b-ft1",
    "vicuna-13b-ft1",
    "vicuna-13b-ft2",
    "llama-2-70b-ft2",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One bed: where it stands on the axis, what it is, and who runs on it (`policy`, or `qlm` without an LSO)."""

    at: float
    bed: Mapping
    policies: tuple[str, ...]
    without: tuple[str, ...] = ("",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """A figure of the paper, or two that share their runs."""

    name: str
    title: str
    axis: str
    points: tuple[Point, ...]
    figures: dict[str, published.Curves] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Key:
    """One run."""

    experiment: str
    at: float
    policy: str
    without: str
    seed: int


def experiments(*, quick: bool) -> tuple[Experiment, ...]:
    """All simulated experiments; `quick` ones have fewer requests and points."""
    size = 1 if quick else 3
    gpus = 2 if quick else 4
    rates = (7.5, 15.0, 30.0) if quick else (10.0, 15.0, 20.0, 30.0, 45.0, 60.0)
    b_rates = (1.0, 3.0, 10.0) if quick else (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
    rivals = ("qlm", "qlm-paper", "edf", "fcfs", "shepherd")
    lsos = ("", *published.ABLATION)
    queues = (0, 1, 2, 4) if quick else (0, 4, 8, 12)
    return (
        Experiment(
            name="w-a",
            title=f"W_A: one model, {gpus} A100 (Fig. 9 and 10)",
            axis="interactive requests/s",
            points=tuple(
                Point(at=rate, bed=_w_a(rate, 1500 * gpus * size, gpus), policies=rivals)
                for rate in rates
            ),
            figures={"SLOs met": published.W_A_ATTAINMENT, "throughput": published.W_A_THROUGHPUT},
        ),
        Experiment(
            name="w-b",
            title="W_B: five models, 4 instances of four A100 (Fig. 12 and 13)",
            axis="batch-1 requests/s",
            points=tuple(
                Point(at=rate, bed=_w_b(rate, 1000 * size, 4), policies=rivals) for rate in b_rates
            ),
            figures={"SLOs met": published.W_B_ATTAINMENT, "throughput": published.W_B_THROUGHPUT},
        ),
        Experiment(
            name="lso-w-a",
            title="LSOs removed on W_A (Fig. 11)",
            axis="interactive requests/s",
            points=(Point(at=15, bed=_w_a(15, 3500, 2), policies=("qlm",), without=lsos),),
        ),
        Experiment(
            name="lso-w-b",
            title="LSOs removed on W_B (Fig. 14)",
            axis="batch-1 requests/s",
            points=(Point(at=6, bed=_w_b(6, 1500 * size, 3), policies=("qlm",), without=lsos),),
        ),
        Experiment(
            name="heterogeneity",
            title="A10 and A100 in one fleet of ten (Fig. 15)",
            axis="A10, %",
            points=tuple(
                Point(
                    at=share,
                    bed=_mixed(share, 3500 * size),
                    policies=("qlm", "round-robin"),
                )
                for share in (0, 20, 50, 80, 100)
            ),
            figures={"SLOs met": published.HETEROGENEITY},
        ),
        Experiment(
            name="mega-prompts",
            title="W_C: mega prompts among W_B (Fig. 16)",
            axis="mega prompts/s",
            points=tuple(
                Point(at=rate, bed=_w_c(rate, 1000 * size), policies=("qlm", "round-robin"))
                for rate in (0.4, 0.8, 2.0, 4.0)
            ),
            figures={"SLOs met": published.MEGA_PROMPTS},
        ),
        Experiment(
            name="queue-growth",
            title="W_B behind a queue of batch-2 requests (Fig. 17)",
            axis="queue at the start, thousands",
            points=tuple(
                Point(
                    at=queue,
                    bed=_growth(1000 * queue, 750 * size),
                    policies=("qlm", "edf", "shepherd", "fcfs"),
                )
                for queue in queues
            ),
            figures={"SLOs met": published.QUEUE_GROWTH},
        ),
        Experiment(
            name="group-size",
            title="Size of request groups (Fig. 19)",
            axis="δ",
            points=tuple(
                Point(
                    at=delta,
                    bed=_w_b(3, 1000 * size, 4) | {"solver": {"grouping": {"delta": delta}}},
                    policies=("qlm",),
                )
                for delta in published.GROUP_SIZE
            ),
        ),
    )


def _w_a(rate: float, requests: int, count: int) -> Mapping:
    return {
        "fleet": [{"gpu": "a100", "models": ["vicuna-13b"], "count": count}],
        "workload": {"kind": "W_A", "interactive_rps": rate, "requests": requests},
    }


def _shared_fleet(count: int) -> list[Mapping]:
    return [
        {
            "gpu": "a100",
            "gpus": 4,
            "count": count,
            "host_memory_gb": 640,
            "models": list(W_B_MODELS),
        }
    ]


def _w_b(rate: float, requests: int, count: int) -> Mapping:
    return {
        "fleet": _shared_fleet(count),
        "workload": {"kind": "W_B", "batch_1_rps": rate, "requests": requests},
    }


def _w_c(mega_rate: float, requests: int) -> Mapping:
    work = {"kind": "W_C", "batch_1_rps": 8, "mega_rps": mega_rate, "requests": requests}
    return {"fleet": _shared_fleet(6), "workload": work}


def _mixed(share: int, requests: int) -> Mapping:
    a10 = share // 10
    parts = [("a10", a10), ("a100", 10 - a10)]
    fleet = [
        {"gpu": gpu, "models": ["mistral-7b"], "count": count} for gpu, count in parts if count
    ]
    # As fast for every mixture: an A10 serves about a sixth of what an A100 does.
    rate = 120 * (a10 / 6 + 10 - a10) / 10
    return {
        "fleet": fleet,
        "workload": {
            "kind": "W_A",
            "model": "mistral-7b",
            "interactive_rps": rate,
            "requests": requests,
        },
    }


def _growth(queue: int, requests: int) -> Mapping:
    lax = dict.fromkeys(W_B_MODELS[2:], 1.0)
    strict = dict.fromkeys(W_B_MODELS[:2], 1.0)
    streams = [
        {"slo_class": "batch-1", "models": strict, "rate_rps": 15, "requests": requests},
        {"slo_class": "batch-2", "models": lax, "rate_rps": 1e5, "requests": queue},
    ]
    return {
        "fleet": _shared_fleet(6),
        "workload": {"kind": "streams", "streams": streams[: 2 if queue else 1]},
    }


def run_all(
    wanted: tuple[Experiment, ...], *, seeds: int, jobs: int, progress: Callable[[str], None]
) -> dict[Key, Run]:
    """Every run of every experiment."""
    # The slow ones first, so that the last process does not work alone.
    tasks = sorted(_tasks(wanted, seeds), key=lambda task: task[0].policy != "qlm")
    done: dict[Key, Run] = {}
    with ProcessPoolExecutor(jobs) as pool:
        futures = {pool.submit(_run, key, bed): key for key, bed in tasks}
        for future in as_completed(futures):
            key = futures[future]
            done[key] = future.result()
            progress(f"{len(done)}/{len(tasks)}  {key.experiment} at {key.at:g}: {key.policy}")
    return done


def _tasks(wanted: tuple[Experiment, ...], seeds: int) -> Iterator[tuple[Key, Mapping]]:
    for experiment in wanted:
        for point in experiment.points:
            for policy in point.policies:
                for without in point.without:
                    for seed in range(seeds):
                        yield Key(experiment.name, point.at, policy, without, seed), point.bed


def _run(key: Key, bed: Mapping) -> Run:
    scenario = scenario_from_mapping(
        {"name": key.experiment, "slo_classes": published.CLASSES} | bed, key.experiment
    )
    return run_one(
        Bed(scenario=scenario), key.policy, key.seed, (key.without,) if key.without else ()
    )
