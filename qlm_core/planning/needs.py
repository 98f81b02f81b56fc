"""How many instances of a class what waits needs: the fewest with which its targets are kept, and that as a number more or fewer.

The prices of a bound say what one more instance saves at most, so about how many it takes; plans for fleets of that size and
others say how many really. Plans here are of a moment: quick, and never in force.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import fields
from types import ModuleType

import numpy as np

from qlm_core.planning.problem import NOTHING_LOADED, Floats, Ints, Problem, UnplaceableGroup
from qlm_core.planning.result import Limits
from qlm_core.planning.score import Plan, evaluate, late_probability
from qlm_core.planning.search import search

LATE_SHARE_MAX = 0.01
"""Targets are kept if no more than this share of the waiting weight is late by plan, beyond what no instance could save."""

MORE_MAX = 256
"""So many more instances of a class are considered at most."""

_MOVES, _MOVES_PER_GROUP = 2_000, 40
"""Moves tried for one plan."""

Clock = Callable[[], float]


class OutOfTime(Exception):
    """The answer was not found in time."""


def instances_needed(
    problem: Problem,
    plan: Plan,
    capacity: Sequence[float],
    *,
    clock: Clock,
    until_s: float,
    compiled: ModuleType | None = None,
) -> tuple[int | None, ...]:
    """[C] how many instances of each class more it takes to keep targets, or how many fewer do if negative.

    Each class is looked at for itself, the others as they are. None: not found in time. A class of which more would help nobody
    needs none, whatever is late.

    Args:
        plan: a good one for the problem.
        capacity: [C] what one more instance of each class saves at most (`capacity_values`).
        until_s: by `clock`, when no more plans are made.
    """
    if problem.pinned.any() or len(capacity) != problem.classes:
        return (None,) * problem.classes
    late_weight = evaluate(problem, plan).late_weight
    found: list[int | None] = []
    for number in range(problem.classes):
        search_of = _Sizes(problem, number, late_weight, clock, until_s, compiled)
        try:
            found.append(search_of.least(capacity[number]))
        except OutOfTime:
            found.append(None)
    return tuple(found)


class _Sizes:
    """The sizes of one class, and whether targets are kept with each."""

    def __init__(
        self,
        problem: Problem,
        number: int,
        late_weight: float,
        clock: Clock,
        until_s: float,
        compiled: ModuleType | None,
    ):
        self.problem = problem
        self.number = number
        self.clock = clock
        self.until_s = until_s
        self.compiled = compiled
        self.present = int((problem.queue_class == number).sum())
        self.late_weight = late_weight
        weight = problem.group_total_weight
        hopeless = float((weight * _least_late(problem, number)).sum())
        self.allowed = hopeless + LATE_SHARE_MAX * float(weight.sum()) + 1e-9

    def least(self, saves_cost: float) -> int:
        """Of the least size that keeps targets, how much larger it is than the present one."""
        if self.late_weight <= self.allowed:
            return self._bisect(-1, self.present) - self.present
        alpha = self.problem.alpha
        if saves_cost <= 0.0 or not alpha:
            return 0
        excess = self.late_weight - self.allowed
        most = min(MORE_MAX, self.problem.groups)
        more = min(most, max(1, math.ceil(excess * alpha / saves_cost)))
        low = 0
        while not self._kept(self.present + more):
            if more == most:
                return more
            low, more = more, min(most, 2 * more)
        return self._bisect(self.present + low, self.present + more) - self.present

    def _bisect(self, low: int, high: int) -> int:
        """The least size that keeps targets, between one that does not and one that does."""
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._kept(middle) else (middle, high)
        return high

    def _kept(self, size: int) -> bool:
        left_s = self.until_s - self.clock()
        if left_s <= 0.0:
            raise OutOfTime
        try:
            problem = resized(self.problem, self.number, size)
        except UnplaceableGroup:
            return False
        limits = Limits(wall_s=left_s, work=_MOVES + _MOVES_PER_GROUP * problem.groups)
        found = search(problem, limits, seed=0, clock=self.clock, compiled=self.compiled)
        assert found.plan is not None
        return evaluate(problem, found.plan).late_weight <= self.allowed


def resized(problem: Problem, number: int, size: int) -> Problem:
    """The problem with so many queues of a class, and nothing costs a move.

    New ones are empty, with models awake in the proportion in which they are waited for. All times are later by as much as it
    takes for none to be negative.

    Raises:
        UnplaceableGroup: a group fits on none of the queues that are left.
    """
    mine = np.flatnonzero(problem.queue_class == number)
    spare = mine[np.argsort(problem.busy_s[mine], kind="stable")][size:]
    kept = np.setdiff1d(np.arange(problem.queues), spare)
    more = max(0, size - len(mine))
    sooner_s = max(0.0, -float(problem.empty_s[number])) if more else 0.0
    values = {item.name: getattr(problem, item.name) for item in fields(problem)}
    values |= {
        "queue_class": np.append(problem.queue_class[kept], np.full(more, number)),
        "loaded_model": np.append(problem.loaded_model[kept], _awake(problem, number, more)),
        "busy_s": np.append(
            problem.busy_s[kept] + sooner_s, np.full(more, problem.empty_s[number] + sooner_s)
        ),
        "due_s": problem.due_s + sooner_s,
        "empty_s": problem.empty_s + sooner_s,
        "home": np.full(problem.groups, -1),
        "move_cost": np.zeros(problem.groups),
    }
    return Problem(**values)


def _awake(problem: Problem, number: int, more: int) -> Ints:
    """[more] the models that are awake on new queues of a class."""
    fits = np.isfinite(problem.duration_s[:, number])
    weight = problem.group_total_weight * fits
    wanted = np.bincount(problem.group_model, weight, problem.models)
    return np.array(dealt(wanted.tolist(), more), np.int64)


def dealt(wanted: Sequence[float], places: int) -> list[int]:
    """Which gets each place, so that all get them in proportion to how they are wanted; NOTHING_LOADED where nothing is."""
    if not any(wanted):
        return [NOTHING_LOADED] * places
    got = [0] * len(wanted)
    order = []
    for _ in range(places):
        best = max(range(len(wanted)), key=lambda one: (wanted[one] / (got[one] + 1), -one))
        got[best] += 1
        order.append(best)
    return order


def _least_late(problem: Problem, number: int) -> Floats:
    """[N] how probably each group is late even if it goes first, on any queue there is or on a new one of the class."""
    ready_s = np.full((problem.groups, problem.classes), math.inf)
    free_s = np.full(problem.classes, math.inf)
    np.minimum.at(free_s, problem.queue_class, problem.busy_s)
    ready_s[:] = free_s
    ready_s[:, number] = np.minimum(ready_s[:, number], problem.empty_s[number])
    lateness_s = ready_s + problem.duration_s + problem.tail_s - problem.due_s[:, None]
    late = late_probability(lateness_s, problem.ramp_s[:, None])
    least: Floats = np.where(np.isfinite(lateness_s), late, 1.0).min(axis=1, initial=1.0)
    return least
