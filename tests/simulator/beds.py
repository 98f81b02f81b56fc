"""Small beds on which a run takes a fraction of a second."""

from __future__ import annotations

from typing import Any

from qlm_core.sim.policies import policy_named
from qlm_core.sim.record import RunRecord
from qlm_core.sim.report import report_of
from qlm_core.sim.scenario import Scenario, requests, scenario_from_mapping
from qlm_core.sim.world import World

SIMULATION = {"solve_work": 400}


def one_model(*, requests: int = 150, rate: float = 12.0, count: int = 2) -> dict[str, Any]:
    """W_A on a few A10, whose batches are small enough to fill."""
    return {
        "name": "one model",
        "fleet": [{"gpu": "a10", "models": ["mistral-7b"], "count": count}],
        "workload": {
            "kind": "W_A",
            "model": "mistral-7b",
            "interactive_rps": rate,
            "requests": requests,
        },
        "simulation": SIMULATION,
    }


def two_models(*, requests: int = 120, rate: float = 10.0) -> dict[str, Any]:
    """W_B with two models that share two A100."""
    return {
        "name": "two models",
        "fleet": [{"gpu": "a100", "models": ["mistral-7b-ft1", "vicuna-13b-ft1"], "count": 2}],
        "workload": {
            "kind": "W_B",
            "batch_1_rps": rate,
            "requests": requests,
            "batch_1_models": {"mistral-7b-ft1": 1, "vicuna-13b-ft1": 1},
            "batch_2_models": {"vicuna-13b-ft1": 1, "mistral-7b-ft1": 1},
        },
        "simulation": SIMULATION,
    }


def crowded() -> dict[str, Any]:
    """More on one A10 than it can serve in time, with a class that has to be evicted for."""
    return one_model(requests=300, rate=40.0, count=1) | {
        "slo_classes": {
            "interactive": {"ttft_s": 5, "weight": 4},
            "batch-1": {"ttft_s": 60},
            "batch-2": {"ttft_s": 3600},
        }
    }


def three_models() -> dict[str, Any]:
    """Three models on two A100: they have to be swapped."""
    data = two_models(requests=250, rate=20.0)
    data["fleet"][0]["models"] = ["mistral-7b-ft1", "vicuna-13b-ft1", "mistral-7b-ft2"]
    data["workload"]["batch_2_models"] = {"mistral-7b-ft2": 1}
    return data


def popular() -> dict[str, Any]:
    """Two models on three A10, and the one that everybody asks for is awake on one of them."""
    models = ["mistral-7b-ft1", "mistral-7b-ft2"]
    tight = {"slo_class": "chat", "lengths": "rag", "max_tokens": 64, "until_s": 80}
    return {
        "name": "popular",
        "fleet": [
            {"gpu": "a10", "models": models, "awake": "mistral-7b-ft1", "count": 2},
            {"gpu": "a10", "models": models, "awake": "mistral-7b-ft2"},
        ],
        "slo_classes": {"chat": {"ttft_s": 2.0}},
        "workload": {
            "kind": "streams",
            "streams": [
                tight | {"models": {"mistral-7b-ft1": 1}, "rate_rps": 0.1},
                tight | {"models": {"mistral-7b-ft2": 1}, "rate_rps": 1.0},
            ],
        },
        "simulation": SIMULATION,
    }


def scenario(data: dict[str, Any]) -> Scenario:
    return scenario_from_mapping(data, "test.yaml")


def simulate(
    data: dict[str, Any], policy: str, *, seed: int = 0, without: tuple[str, ...] = ()
) -> tuple[RunRecord, list[str]]:
    """The record and the trace of a run."""
    bed = scenario(data)
    trace: list[str] = []
    world = World(
        bed,
        policy_named(policy, without=without),
        requests(bed, seed=seed),
        seed=seed,
        trace=trace.append,
    )
    return world.run(), trace


def figures(data: dict[str, Any], policy: str, **options: Any) -> dict[str, Any]:
    record, _ = simulate(data, policy, **options)
    return report_of(record, policy=policy, seed=0, wall_s=0.0)
