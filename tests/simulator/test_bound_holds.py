"""No policy is above the bound, on random small beds and on some at the edge; and a bound that is a little too tight would show.

Random beds are those of `qlm bench regret`, cut to some dozens of requests, with other links, targets, loads and fleets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from random import Random
from typing import Any

import numpy as np
import pytest

from qlm_core.sim.beds import draw_bed
from qlm_core.sim.bound import Bound, demand, upper_bound
from qlm_core.sim.bound.demand import Kind
from qlm_core.sim.policies import policy_named
from qlm_core.sim.scenario import Scenario, requests, scenario_from_mapping
from qlm_core.sim.world import World

ROUNDS = 40
"""Few, which makes the bound looser, and the tests quick."""

EVICTING = ("qlm", "edf-evict", "least-slack")
POLICIES = (*EVICTING, "turns-3", "turns-9", "clairvoyant", "edf-model", "vllm-priority", "fcfs")


def random_bed(index: int) -> tuple[Scenario, int]:
    """A small bed and the seed of its requests."""
    rng = Random(f"bound/{index}")
    data: dict[str, Any] = dict(draw_bed(900 + index, 0).scenario)
    faster = rng.choice((1.0, 1.0, 3.0))
    streams = [one | {"rate_rps": one["rate_rps"] * faster} for one in data["workload"]["streams"]]
    data["workload"] = data["workload"] | {"requests": rng.randint(10, 50), "streams": streams}
    if rng.random() < 0.4:
        data["slo_classes"] = {
            name: one | {"ttft_s": one["ttft_s"] ** 0.6}
            for name, one in data["slo_classes"].items()
        }
    if rng.random() < 0.4:
        data["fleet"] = [max(data["fleet"], key=lambda part: len(part["models"]))]
        models = data["fleet"][0]["models"]
        data["workload"]["streams"] = [
            one | {"models": {name: one["models"][name] for name in models}}
            for one in data["workload"]["streams"]
        ]
    link_s, abort_s = rng.choice((0.0, 0.001, 0.02)), rng.choice((0.0, 0.0, 0.05))
    data["simulation"] = {"solve_work": 200, "link_s": link_s, "abort_s": abort_s}
    return scenario_from_mapping(data, f"bed {index}"), rng.randrange(1000)


def turning() -> tuple[Scenario, int]:
    """Two models on one GPU, and just enough time to swap between the requests for one and the other."""
    streams = [
        {
            "slo_class": "chat",
            "models": {model: 1},
            "rate_rps": 1 / 6,
            "cv": 0,
            "start_s": start_s,
            "requests": 10,
            "max_tokens": 20,
        }
        for start_s, model in ((0.0, "mistral-7b"), (3.0, "mistral-7b-ft1"))
    ]
    data = {
        "name": "turning",
        "fleet": [{"gpu": "h100", "models": ["mistral-7b", "mistral-7b-ft1"]}],
        "slo_classes": {"chat": {"ttft_s": 2.9}},
        "workload": {"kind": "streams", "streams": streams},
    }
    return scenario_from_mapping(data, "turning"), 0


def burst() -> tuple[Scenario, int]:
    """Prompts that an A10 can just compute in time, all at once."""
    stream = {"slo_class": "chat", "models": {"mistral-7b": 1}, "rate_rps": 1e6, "requests": 60}
    data = {
        "name": "burst",
        "fleet": [{"gpu": "a10", "models": ["mistral-7b"]}],
        "slo_classes": {"chat": {"ttft_s": 3.0}},
        "workload": {"kind": "streams", "streams": [stream]},
    }
    return scenario_from_mapping(data, "burst"), 3


def ending() -> tuple[Scenario, int]:
    """Outputs whose ends are promised for as long as the GPU takes for all of them."""
    stream = {
        "slo_class": "chat", "models": {"llama-2-7b": 1}, "rate_rps": 1e6, "requests": 160,
        "lengths": "brief",
    }  # fmt: skip
    data = {
        "name": "ending",
        "fleet": [{"gpu": "a40", "models": ["llama-2-7b"]}],
        "slo_classes": {"chat": {"ttft_s": 40.0, "e2e_s": 40.0}},
        "workload": {"kind": "streams", "streams": [stream]},
    }
    return scenario_from_mapping(data, "ending"), 0


EDGES = (turning, burst, ending)


@cache
def kept(bed: Callable[[], tuple[Scenario, int]] | int, policy: str) -> tuple[float, float]:
    """Weighted and plain attainment of a policy."""
    scenario, seed = bed_of(bed)
    world = World(scenario, policy_named(policy), requests(scenario, seed=seed), seed=seed)
    record = world.run()
    attained = np.array(record.attained, dtype=float)
    weight = np.array([one.weight for one in scenario.classes])[np.array(record.slo_class)]
    return float(attained @ weight / weight.sum()), float(attained.mean())


@cache
def bed_of(bed: Callable[[], tuple[Scenario, int]] | int) -> tuple[Scenario, int]:
    return random_bed(bed) if isinstance(bed, int) else bed()


def above(bed: Callable[[], tuple[Scenario, int]] | int, policies: tuple[str, ...]) -> list[str]:
    """The policies that are above the bound."""
    scenario, seed = bed_of(bed)
    bound: Bound = upper_bound(scenario, seed, rounds=ROUNDS)
    found = []
    for policy in policies:
        weighted, plain = kept(bed, policy)
        if weighted > bound.weighted + 1e-9 or plain > bound.plain + 1e-9:
            found.append(f"{policy}: {weighted:.4f}, {plain:.4f} above {bound}")
    return found


@pytest.mark.parametrize(
    "bed", [*range(16), *EDGES], ids=lambda bed: str(getattr(bed, "__name__", bed))
)
def test_no_policy_is_above_the_bound(bed: Callable[[], tuple[Scenario, int]] | int) -> None:
    assert above(bed, POLICIES) == []


# --------------------------------------------------------------------------- planted


def with_kind(change: Callable[[Kind], dict[str, Any]]) -> Callable[[pytest.MonkeyPatch], None]:
    """A demand whose kinds of instances are changed."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        made = demand._kind

        def changed(*arguments: Any) -> Kind:
            kind = made(*arguments)
            return replace(kind, **change(kind))

        patch.setattr(demand, "_kind", changed)

    return plant


PLANTED = {
    "half the computing of prompts": with_kind(
        lambda kind: {"first_work_s": 2.0 * kind.first_work_s}
    ),
    "half the computing of outputs": with_kind(
        lambda kind: {"rest_work_s": 2.0 * kind.rest_work_s}
    ),
    "swaps twice as long": with_kind(lambda kind: {"swap_s": 2.0 * kind.swap_s}),
    "models that are cold": with_kind(lambda kind: {"ready_s": kind.ready_s + 60.0}),
    "fewer instances": with_kind(lambda kind: {"awake": kind.awake[1:]}),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_bound_that_is_too_tight_shows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    PLANTED[name](monkeypatch)
    assert any(above(bed, EVICTING) for bed in EDGES), "nobody noticed"
