"""Pinned groups folded away, so that no planner needs to know about them.

A queue whose first groups are fixed is a queue that is busy for longer, holds the model of the last
of them, and owes a constant. What remains is a problem without pins.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from qlm_core.planning.problem import Ints, Problem
from qlm_core.planning.score import Plan, evaluate, pinned_prefixes


@dataclass(frozen=True, slots=True, kw_only=True)
class Folded:
    """A problem without its pinned groups, and what it takes to go back."""

    problem: Problem
    constant: float
    """The objective of the pinned groups; add it to any objective or bound of `problem`."""
    prefixes: Plan
    numbers: Ints
    """[N of problem] the number each group has in the original."""

    def restore(self, plan: Plan) -> Plan:
        """A plan of the folded problem as one of the original."""
        numbers = self.numbers.tolist()
        return tuple(
            prefix + tuple(numbers[group] for group in queue)
            for prefix, queue in zip(self.prefixes, plan, strict=True)
        )

    def fold(self, plan: Plan) -> Plan:
        """A plan of the original as one of the folded problem."""
        new = {old: number for number, old in enumerate(self.numbers.tolist())}
        return tuple(
            tuple(new[group] for group in queue[len(prefix) :])
            for prefix, queue in zip(self.prefixes, plan, strict=True)
        )


def _subset(problem: Problem, groups: Ints) -> Problem:
    return replace(
        problem,
        group_model=problem.group_model[groups],
        group_requests=problem.group_requests[groups],
        group_weight=problem.group_weight[groups],
        due_s=problem.due_s[groups],
        duration_s=problem.duration_s[groups],
        tail_s=problem.tail_s[groups],
        ramp_s=problem.ramp_s[groups],
        home=problem.home[groups],
        move_cost=problem.move_cost[groups],
        pinned=problem.pinned[groups],
    )


def fold_pins(problem: Problem) -> Folded:
    """The problem that is left to decide once the pinned groups stand where they must."""
    prefixes = pinned_prefixes(problem)
    if not problem.pinned.any():
        return Folded(
            problem=problem, constant=0.0, prefixes=prefixes, numbers=np.arange(problem.groups)
        )
    fixed = np.flatnonzero(problem.pinned)
    free = np.flatnonzero(~problem.pinned)
    place = {group: number for number, group in enumerate(fixed.tolist())}
    score = evaluate(
        _subset(problem, fixed), tuple(tuple(place[i] for i in prefix) for prefix in prefixes)
    )
    busy = problem.busy_s.copy()
    loaded = problem.loaded_model.copy()
    for queue, prefix in enumerate(prefixes):
        if prefix:
            busy[queue] = score.end_s[place[prefix[-1]]]
            loaded[queue] = problem.group_model[prefix[-1]]
    left = replace(_subset(problem, free), busy_s=busy, loaded_model=loaded)
    return Folded(problem=left, constant=score.objective, prefixes=prefixes, numbers=free)
