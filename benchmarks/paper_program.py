"""How well `qlm-paper` solves the paper's program: its search beside the MILP, on programs of real runs.

`qlm-paper` runs on a few small beds; every program that it sets up is recorded with the answer it got. Those that are not
infeasible at sight are then solved as the paper states them (`benchmarks.paper_milp`) by HiGHS, within a limit each: do both
agree that there is a solution, and how much longer are the waits of the search's than the least possible?
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import paper_published as published
from benchmarks.paper_milp import impossible, lateness_s, paper_milp, waits_s
from qlm.simulations import read_scenario
from qlm_core.manager.events import Effect, Event, PlanFinished, StartSolve
from qlm_core.planning import Plan, Problem, Termination, evaluate
from qlm_core.sim.policies import policy_named
from qlm_core.sim.policies.base import Brain
from qlm_core.sim.scenario import Scenario, requests, scenario_from_mapping
from qlm_core.sim.world import World

SCENARIOS = Path(__file__).with_name("scenarios")
W_B_MODELS = [
    "mistral-7b-ft1",
    "llama-2-70b-ft1",
    "vicuna-13b-ft1",
    "vicuna-13b-ft2",
    "llama-2-70b-ft2",
]
_TOLERANCE_S = 1e-4
"""What a MIP solver's arithmetic may be off by."""


def beds() -> tuple[Scenario, ...]:
    """The scenarios that are shipped, or smaller ones like them."""
    w_a = {"kind": "W_A", "model": "vicuna-13b"}
    w_b = {"kind": "W_B", "batch_1_rps": 5, "requests": 800}
    mixed = {"kind": "W_A", "model": "mistral-7b", "interactive_rps": 20, "requests": 1500}
    big = {"gpu": "a100", "gpus": 4, "count": 2, "host_memory_gb": 640, "models": W_B_MODELS}
    two = [{"gpu": gpu, "models": ["mistral-7b"]} for gpu in ("a10", "a100")]
    a100 = {"gpu": "a100", "models": ["vicuna-13b"]}
    made: tuple[dict[str, Any], ...] = (
        {
            "name": "W_A, 1 A100",
            "fleet": [a100],
            "workload": w_a | {"interactive_rps": 10, "requests": 800},
        },
        {
            "name": "W_A, 2 A100",
            "fleet": [a100 | {"count": 2}],
            "workload": w_a | {"interactive_rps": 15, "requests": 2000},
        },
        {"name": "W_B, 2 x 4 A100", "fleet": [big], "workload": w_b},
        {"name": "A10 and A100", "fleet": two, "workload": mixed},
    )
    scenarios = [
        scenario_from_mapping({"slo_classes": published.CLASSES} | one, one["name"]) for one in made
    ]
    return (*scenarios, read_scenario(SCENARIOS / "real-time.yaml"))


@dataclass(frozen=True, slots=True)
class Solved:
    """A program and the search's answer to it."""

    problem: Problem
    plan: Plan

    @property
    def feasible(self) -> bool:
        """Whether the search found a solution."""
        return evaluate(self.problem, self.plan).late_weight == 0.0


class Recorder:
    """A brain whose solves are noted."""

    def __init__(self, brain: Brain, solved: list[Solved]):
        self._brain = brain
        self._solved = solved
        self._open: dict[int, Problem] = {}

    @property
    def wakeup_s(self) -> float | None:
        """The brain's."""
        return self._brain.wakeup_s

    def handle(self, event: Event, *, now_s: float) -> list[Effect]:
        """The brain's answer, noted."""
        if isinstance(event, PlanFinished):
            problem = self._open.pop(event.solve, None)
            if problem is not None and event.result.plan is not None:
                self._solved.append(Solved(problem, event.result.plan))
        effects = self._brain.handle(event, now_s=now_s)
        for effect in effects:
            if isinstance(effect, StartSolve):
                self._open[effect.solve] = effect.problem
        return effects


def record(scenario: Scenario, seed: int) -> list[Solved]:
    """Every program of one run, in order of time."""
    solved: list[Solved] = []
    policy = policy_named("qlm-paper")
    noted = replace(policy, build=lambda context: Recorder(policy.build(context), solved))
    World(scenario, noted, requests(scenario, seed=seed), seed=seed).run()
    return solved


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Both answers to one program.

    Attributes:
        milp: how HiGHS ended.
        milp_waits_s, search_waits_s: sums of waits of their solutions, None without one.
        least_waits_s: what HiGHS has proven that no solution goes below.
    """

    groups: int
    milp: Termination
    milp_waits_s: float | None
    search_waits_s: float | None
    least_waits_s: float

    @property
    def missed(self) -> bool:
        """The search overlooked a solution."""
        return self.milp_waits_s is not None and self.search_waits_s is None

    @property
    def decided(self) -> bool:
        """Whether it is known if there is a solution."""
        return (
            self.milp is Termination.INFEASIBLE
            or self.milp_waits_s is not None
            or self.search_waits_s is not None
        )

    @property
    def excess(self) -> float | None:
        """The search's waits over HiGHS's, less 1, if it has solved the program."""
        if self.milp is not Termination.OPTIMAL:
            return None
        return _over(self.search_waits_s, self.milp_waits_s)

    @property
    def excess_at_most(self) -> float | None:
        """The search's waits over what no solution goes below, less 1."""
        return _over(self.search_waits_s, self.least_waits_s)


def _over(waits_s: float | None, least_s: float | None) -> float | None:
    return waits_s / least_s - 1.0 if waits_s and least_s is not None and least_s > 0.0 else None


def compare(solved: Solved, limit_s: float) -> Comparison:
    """Solve a recorded program by HiGHS."""
    from solver.backends.highs import solve_program

    problem = solved.problem
    search_waits_s = waits_s(problem, solved.plan) if solved.feasible else None
    program = paper_milp(problem, search_waits_s)
    answer = solve_program(program, limit_s, None, lambda _: None, presolve=False)
    found_s = None
    if answer.vector is not None:
        plan = program.decode(answer.vector)
        if lateness_s(problem, plan) <= _TOLERANCE_S:
            found_s = waits_s(problem, plan)
    return Comparison(
        groups=problem.groups,
        milp=answer.termination,
        milp_waits_s=found_s,
        search_waits_s=search_waits_s,
        least_waits_s=answer.bound if answer.bound is not None else 0.0,
    )


def main(*, seeds: int, most: int, limit_s: float, say: Callable[[str], None]) -> str:
    """Record, solve, and return both tables: by bed, and by number of groups."""
    rows = []
    everything: list[Comparison] = []
    for bed in beds():
        programs = [one for seed in range(seeds) for one in record(bed, seed)]
        open_ones = [one for one in programs if one.feasible or not impossible(one.problem)]
        chosen = _spread(open_ones, most)
        say(f"{bed.name}: {len(programs)} programs, {len(chosen)} to solve")
        compared = [compare(one, limit_s) for one in chosen]
        everything += compared
        sizes = [one.groups for one in compared]
        span = f"{min(sizes)}-{max(sizes)}" if sizes else "-"
        sight = str(len(programs) - len(open_ones))
        rows.append((bed.name, str(len(programs)), sight, span, *_columns(compared)))
    by_bed = ("bed", "programs", "infeasible at sight", "groups", *_HEAD)
    ranges = ((1, 16), (17, 32), (33, 48), (49, 10_000))
    by_size = []
    for low, high in ranges:
        part = [one for one in everything if low <= one.groups <= high]
        if part:
            name = f"{low}-{high}" if high < 10_000 else f"{low} and more"
            by_size.append((name, *_columns(part)))
    return _table(by_bed, rows) + "\n\n" + _table(("groups", *_HEAD), by_size)


def _spread(programs: Sequence[Solved], most: int) -> list[Solved]:
    """Some of all sizes, as evenly as there are."""
    left = sorted(programs, key=lambda one: one.problem.groups)
    sizes = [one.problem.groups for one in left]
    chosen: list[Solved] = []
    for number in range(min(most, len(left))):
        wanted = sizes[0] + (sizes[-1] - sizes[0]) * number / max(1, most - 1)
        nearest = min(left, key=lambda one: abs(one.problem.groups - wanted))
        left.remove(nearest)
        chosen.append(nearest)
    return chosen


_HEAD = (
    "HiGHS: optimal, infeasible, out of time",
    "with a solution: search, HiGHS",
    "missed by the search",
    "neither",
    "waits over the least: median, worst",
    "over HiGHS's bound: median, worst",
)


def _columns(compared: Sequence[Comparison]) -> tuple[str, ...]:
    ended = [one.milp for one in compared]
    optimal, infeasible = (
        ended.count(how) for how in (Termination.OPTIMAL, Termination.INFEASIBLE)
    )
    ours = sum(one.search_waits_s is not None for one in compared)
    theirs = sum(one.milp_waits_s is not None for one in compared)
    return (
        f"{optimal}, {infeasible}, {len(compared) - optimal - infeasible}",
        f"{ours}, {theirs}",
        str(sum(one.missed for one in compared)),
        str(sum(not one.decided for one in compared)),
        _shares([one.excess for one in compared]),
        _shares([one.excess_at_most for one in compared]),
    )


def _shares(values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{median(known):.1%}, {max(known):.1%}" if known else "-"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
