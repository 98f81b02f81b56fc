"""Why a group stands where it stands, and what one more instance would be worth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np

from qlm_core.planning.bound import Pricing
from qlm_core.planning.insertion import Queues
from qlm_core.planning.pins import fold_pins
from qlm_core.planning.problem import NOTHING_LOADED, Problem
from qlm_core.planning.score import Plan, evaluate, pinned_prefixes


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """The best place for a group on another queue (or its own), and what choosing it would cost."""

    queue: int
    place: int
    extra_cost: float
    """Objective with the group there less objective as planned; negative if the plan can be
    bettered.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Where a group stands and why."""

    group: int
    queue: int
    place: int
    behind: tuple[int, ...]
    """The groups that run before it, first to run first."""
    start_s: float
    end_s: float
    swap_before_s: float
    pinned: bool
    cost: float
    """The group's own part of the objective."""
    alternatives: tuple[Alternative, ...]
    """Best place on every queue it fits on, cheapest first; empty for a pinned group."""


def explain(problem: Problem, plan: Plan, group: int, most: int = 3) -> Explanation:
    """Why a group stands where it stands: what is ahead, and what its next best places would cost.

    Raises:
        InvalidProblem: the plan is not one for this problem.
    """
    score = evaluate(problem, plan)
    queue = next(number for number, groups in enumerate(plan) if group in groups)
    place = plan[queue].index(group)
    behind = plan[queue][:place]
    before = int(problem.group_model[behind[-1]] if behind else problem.loaded_model[queue])
    number = int(problem.queue_class[queue])
    pinned = bool(problem.pinned[group])
    return Explanation(
        group=group,
        queue=queue,
        place=place,
        behind=behind,
        start_s=float(score.start_s[group]),
        end_s=float(score.end_s[group]),
        swap_before_s=float(problem.swap_s[number, before, problem.group_model[group]]),
        pinned=pinned,
        cost=float(score.group_cost[group]),
        alternatives=() if pinned else _alternatives(problem, plan, group, score.objective, most),
    )


def _alternatives(
    problem: Problem, plan: Plan, group: int, objective: float, most: int
) -> tuple[Alternative, ...]:
    without = tuple(tuple(i for i in queue if i != group) for queue in plan)
    state = Queues(problem, without, [len(prefix) for prefix in pinned_prefixes(problem)])
    costs, places = state.best_by_queue(group, np.arange(problem.queues))
    found: list[Alternative] = []
    for queue in np.lexsort((np.arange(problem.queues), costs)).tolist():
        place = int(places[queue])
        if costs[queue] == math.inf or len(found) == most:
            break
        moved = list(without)
        moved[queue] = (*without[queue][:place], group, *without[queue][place:])
        if tuple(moved) != plan:
            extra = evaluate(problem, tuple(moved)).objective - objective
            found.append(Alternative(queue=queue, place=place, extra_cost=extra))
    return tuple(found)


def capacity_values(
    problem: Problem, duals: Sequence[float], compiled: ModuleType | None = None
) -> tuple[float, ...]:
    """[C] what one more, empty instance of each class would save, in units of the objective.

    Taken from the prices of the bound: the most that one more queue could take off it. A class
    without queues counts too. Divide by alpha for (weighted) SLO violations where alpha rules the
    objective.
    """
    folded = fold_pins(problem)
    left = folded.problem
    prices = np.array(duals, np.float64)[folded.numbers] if len(duals) else np.zeros(left.groups)
    if left.groups == 0 or len(duals) != problem.groups:
        return (0.0,) * problem.classes
    count = problem.classes
    newcomers = Problem(
        **{name: getattr(left, name) for name in left.__dataclass_fields__}
        | {
            "queue_class": np.arange(count),
            "loaded_model": np.full(count, NOTHING_LOADED),
            "busy_s": np.zeros(count),
            "home": np.full(left.groups, -1),
            "move_cost": np.zeros(left.groups),
        }
    )
    reach_s = float(np.max(problem.busy_s, initial=0.0)) + 1.5 * _mean_load_s(left)
    values = Pricing(newcomers, compiled, reach_s).price(prices).queue_values
    return tuple((-np.minimum(values, 0.0)).tolist())


def _mean_load_s(problem: Problem) -> float:
    """Work a queue, were all work spread evenly, with its longest group on top."""
    shortest = np.where(np.isfinite(problem.duration_s), problem.duration_s, np.inf).min(axis=1)
    return float(shortest.sum() / max(1, problem.queues) + shortest.max() + problem.swap_s.max())
