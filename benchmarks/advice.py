"""Whether advice comes true: what the solver says of other instances, beside what the simulator shows with them.

A burst of requests comes to a small fleet. Just after, the simulated solver is asked what one instance more would change, and how
many instances it takes. Then the same burst comes to fleets of these sizes. `python -m benchmarks.advice`: a minute; `--json`.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import numpy as np

from qlm_core.manager import Manager
from qlm_core.manager.events import Effect, Event
from qlm_core.manager.whatif import Question, planned, question
from qlm_core.planning import capacity_values, evaluate
from qlm_core.planning.bound import Pricing, ascend, reach_of, removal_prices
from qlm_core.planning.compiled import compiled_kernels, compiled_pricing
from qlm_core.planning.needs import instances_needed
from qlm_core.sim.policies import ours, policy_named
from qlm_core.sim.policies.base import Context
from qlm_core.sim.record import RunRecord
from qlm_core.sim.scenario import Scenario, requests, scenario_from_mapping
from qlm_core.sim.world import World

Json = dict[str, Any]

_RATE_RPS = 5_000.0
_ROUNDS = 100
"""Of the ascent of the bound whose prices the advice is made from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Burst:
    """Requests of one class that come at once to a fleet of one GPU.

    Attributes:
        ttft_s: their target.
    """

    name: str
    gpu: str
    models: tuple[str, ...]
    instances: int
    requests: int
    ttft_s: float

    @property
    def asked_s(self) -> float:
        """When all have come, and a moment more."""
        return self.requests / _RATE_RPS + 0.02

    def scenario(self, instances: int) -> Scenario:
        """The burst on so many instances."""
        stream = {
            "slo_class": "interactive",
            "models": dict.fromkeys(self.models, 1.0),
            "rate_rps": _RATE_RPS,
            "requests": self.requests,
        }
        fleet = {"gpu": self.gpu, "models": list(self.models), "count": instances}
        data = {
            "name": self.name,
            "fleet": [fleet],
            "workload": {"kind": "streams", "streams": [stream]},
            "slo_classes": {"interactive": {"ttft_s": self.ttft_s}},
        }
        return scenario_from_mapping(data, self.name)


def _burst(name: str, gpu: str, models: str, instances: int, requests: int, ttft_s: float) -> Burst:
    return Burst(
        name=name,
        gpu=gpu,
        models=tuple(models.split()),
        instances=instances,
        requests=requests,
        ttft_s=ttft_s,
    )


BURSTS = (
    _burst("an A10", "a10", "mistral-7b", 1, 400, 15.0),
    _burst("two A10", "a10", "mistral-7b", 2, 900, 15.0),
    _burst("six A10", "a10", "mistral-7b", 6, 400, 20.0),
    _burst("an A100", "a100", "vicuna-13b", 1, 600, 10.0),
    _burst("two models", "a100", "vicuna-13b mistral-7b", 2, 1200, 20.0),
    _burst("an H100", "h100", "vicuna-13b", 1, 900, 6.0),
)


class Asked(Manager):
    """The Manager, which takes down a question once so much simulated time has passed.

    Attributes:
        question: None until then.
    """

    question: Question | None = None

    def ask(self, changes: dict[str, int], at_s: float) -> None:
        """Take this question down at that time."""
        self._changes, self._at_s = changes, at_s

    def handle(self, event: Event, *, now_s: float) -> list[Effect]:
        """As the Manager's."""
        effects = super().handle(event, now_s=now_s)
        if self.question is None and now_s >= self._at_s:
            self.question = question(self, self._changes, now_s=now_s)
        return effects


def run(burst: Burst, instances: int, *, seed: int) -> tuple[RunRecord, Asked]:
    """One run, and the Manager that was asked for one instance more in it."""
    managers: list[Asked] = []

    def build(context: Context) -> Manager:
        made = Asked(ours.undying(context.config), context.classes, now_s=0.0)
        made.ask({burst.gpu: 1}, burst.asked_s)
        managers.append(made)
        return made

    scenario = burst.scenario(instances)
    policy = replace(policy_named("qlm"), build=build)
    record = World(scenario, policy, requests(scenario, seed=seed), seed=seed).run()
    return record, managers[0]


def needed(asked: Question) -> int:
    """How many instances more the state calls for, by the prices of a bound and plans of other sizes."""
    problem = asked.before.snapshot.problem
    plan = planned(problem, asked.before.present)
    score = evaluate(problem, plan)
    pricing = Pricing(problem, compiled_pricing(), reach_of(problem, score))
    found = ascend(
        pricing,
        removal_prices(problem, plan),
        score.objective,
        keep_going=lambda: True,
        max_rounds=_ROUNDS,
    )
    capacity = capacity_values(problem, tuple(found.prices.tolist()), compiled_pricing())
    kernels = compiled_kernels()
    [more] = instances_needed(
        problem, plan, capacity, clock=lambda: 0.0, until_s=inf, compiled=kernels
    )
    assert more is not None
    return more


def came(record: RunRecord, burst: Burst) -> Json:
    """What became of the burst: how many were late, and how long they took to their first tokens from the question on."""
    first_s = np.array(record.arrival_s) + np.array(record.ttft_s)
    return {
        "late": int((np.array(record.attained) == 0).sum()),
        "wait_mean_s": round(float(np.maximum(0.0, first_s - burst.asked_s).mean()), 2),
    }


def measure(burst: Burst, *, seed: int) -> Json:
    """Advice for a burst, and what came of it."""
    record, manager = run(burst, burst.instances, seed=seed)
    asked = manager.question
    assert asked is not None, f"{burst.name}: it was over before it was asked"
    told, least = asked.answer(), burst.instances + needed(asked)
    outcome = {burst.instances: came(record, burst)}
    for count in (burst.instances + 1, least - 1, least, least + 1):
        if count >= 1 and count not in outcome:
            other, _ = run(burst, count, seed=seed)
            outcome[count] = came(other, burst)
    return {
        "burst": burst.name,
        "instances": burst.instances,
        "requests": burst.requests,
        "ttft_s": burst.ttft_s,
        "told": {side: told[side]["classes"]["interactive"] for side in ("before", "after")},
        "needed": least,
        "came": {str(count): outcome[count] for count in sorted(outcome)},
    }


def main() -> int:
    """Print advice and outcome of each burst."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.advice", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    args = parser.parse_args()
    found = [measure(burst, seed=args.seed) for burst in BURSTS]
    if args.json:
        print(json.dumps(found, indent=1))
        return 0
    for one in found:
        print(line(one))
    return 0


def line(one: Json) -> str:
    """A burst's figures in words."""
    lines = [
        f"{one['burst']}: {one['requests']} requests within {one['ttft_s']:g} s on {one['instances']}"
    ]
    for side, count in (("before", one["instances"]), ("after", one["instances"] + 1)):
        told, came_true = one["told"][side], one["came"][str(count)]
        lines.append(
            f"  on {count}: late {told['expected_late']:.0f} said, {came_true['late']} came; "
            f"mean wait {told['wait_mean_s']:.1f} s said, {came_true['wait_mean_s']:.1f} s came"
        )
    late = ", ".join(f"{each['late']} on {count}" for count, each in one["came"].items())
    lines.append(f"  {one['needed']} needed; late {late}")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
