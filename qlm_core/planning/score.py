"""The one judge of plans: `check` says whether a plan is a plan, `evaluate` what it costs, exactly.

Every answer of every planner and backend passes through here before anyone acts on it, and the
objective reported anywhere is the one computed here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qlm_core.planning.problem import LATE_TOLERANCE_S, Floats, Ints, InvalidProblem, Problem

Plan = tuple[tuple[int, ...], ...]
"""The groups of each queue, first to run first."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Score:
    """What a plan costs and why."""

    objective: float
    late_weight: float
    """Sum over groups of W x probability of being late."""
    tardiness_s: float
    """Sum over groups of W x seconds late."""
    swap_s: float
    swaps: int
    moves: int
    """Groups planned on a queue other than their home."""
    move_cost: float
    weighted_end_s: float
    """Sum over groups of W x end."""
    start_s: Floats
    """[N] when each group starts to occupy its queue."""
    end_s: Floats
    """[N] when each group stops to occupy its queue."""
    group_cost: Floats
    """[N] each group's own part of the objective (without swaps)."""


def as_plan(queues: Sequence[Sequence[int]]) -> Plan:
    """Any nested sequence of group numbers as a Plan."""
    return tuple(tuple(int(group) for group in queue) for queue in queues)


def check(problem: Problem, plan: Plan) -> str | None:
    """What is wrong with a plan, in one line, or None if nothing is."""
    if len(plan) != problem.queues:
        return f"the plan has {len(plan)} queues, the problem {problem.queues}"
    lengths = [len(queue) for queue in plan]
    order = np.array([group for queue in plan for group in queue], np.int64)
    if order.size and (order.min() < 0 or order.max() >= problem.groups):
        return f"the plan names a group outside 0 .. {problem.groups - 1}"
    counts = np.bincount(order, minlength=problem.groups)
    if (counts != 1).any():
        group = int(np.flatnonzero(counts != 1)[0])
        return f"group {group} appears {int(counts[group])} times"
    queue = np.repeat(np.arange(problem.queues), lengths)
    durations = problem.duration_s[order, problem.queue_class[queue]]
    if not np.isfinite(durations).all():
        at = int(np.flatnonzero(~np.isfinite(durations))[0])
        return f"group {order[at]} does not fit on queue {queue[at]}"
    if problem.pinned.any():
        for number, prefix in enumerate(pinned_prefixes(problem)):
            if plan[number][: len(prefix)] != prefix:
                return f"queue {number} must start with its pinned groups {list(prefix)}"
    return None


def pinned_prefixes(problem: Problem) -> Plan:
    """The pinned groups of each queue, in the order in which they must come first."""
    prefixes: list[list[int]] = [[] for _ in range(problem.queues)]
    for group in np.flatnonzero(problem.pinned).tolist():
        prefixes[problem.home[group]].append(group)
    return as_plan(prefixes)


def late_probability(lateness_s: Floats, ramp_s: Floats) -> Floats:
    """The probability of being late, given the expected lateness and the width of its ramp."""
    step = (lateness_s > LATE_TOLERANCE_S).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        ramp = np.clip(lateness_s / ramp_s + 0.5, 0.0, 1.0)
    return np.where(ramp_s > 0, ramp, step)


def group_cost(
    problem: Problem, weight: Floats, lateness_s: Floats, end_s: Floats, ramp_s: Floats | None
) -> Floats:
    """What groups cost that end at `end_s` and are late by `lateness_s`; `ramp_s` is None where no group has one."""
    cost = problem.eps * end_s + problem.beta * np.maximum(lateness_s, 0.0)
    if problem.alpha:
        if ramp_s is None:
            cost = cost + problem.alpha * (lateness_s > LATE_TOLERANCE_S)
        else:
            cost = cost + problem.alpha * late_probability(lateness_s, ramp_s)
    result: Floats = weight * cost
    return result


def evaluate(problem: Problem, plan: Plan) -> Score:
    """The exact cost of a plan.

    Raises:
        InvalidProblem: the plan is not one for this problem (see `check`).
    """
    error = check(problem, plan)
    if error is not None:
        raise InvalidProblem(f"plan: {error}")
    lengths = [len(queue) for queue in plan]
    order = np.array([group for queue in plan for group in queue], np.int64)
    queue = np.repeat(np.arange(problem.queues), lengths)
    swap, end = _timeline(problem, order, queue, lengths)
    classes = problem.queue_class[queue]
    weight = problem.group_total_weight[order]
    lateness = end + problem.tail_s[order, classes] - problem.due_s[order]
    probability = late_probability(lateness, problem.ramp_s[order])
    tardiness = np.where(lateness > LATE_TOLERANCE_S, lateness, 0.0)
    home = problem.home[order]
    moved = (home >= 0) & (home != queue)
    move_cost = np.where(moved, problem.move_cost[order], 0.0)
    cost = weight * (problem.alpha * probability + problem.beta * tardiness + problem.eps * end)
    by_group = [np.zeros(problem.groups) for _ in range(3)]
    by_group[0][order] = end - problem.duration_s[order, classes]
    by_group[1][order] = end
    by_group[2][order] = cost + move_cost
    swap_total = float(swap.sum())
    return Score(
        objective=float(cost.sum()) + float(move_cost.sum()) + problem.kappa * swap_total,
        late_weight=float((weight * probability).sum()),
        tardiness_s=float((weight * tardiness).sum()),
        swap_s=swap_total,
        swaps=int(_changes(problem, order, queue).sum()),
        moves=int(moved.sum()),
        move_cost=float(move_cost.sum()),
        weighted_end_s=float((weight * end).sum()),
        start_s=by_group[0],
        end_s=by_group[1],
        group_cost=by_group[2],
    )


def _previous_models(problem: Problem, order: Ints, queue: Ints) -> Ints:
    """The model on the GPU before each group of the concatenated queues."""
    models = problem.group_model[order]
    previous = np.empty_like(models)
    previous[1:] = models[:-1]
    first = np.flatnonzero(np.diff(queue, prepend=-1))
    previous[first] = problem.loaded_model[queue[first]]
    return previous


def _changes(problem: Problem, order: Ints, queue: Ints) -> Ints:
    changed: Ints = _previous_models(problem, order, queue) != problem.group_model[order]
    return changed


def _timeline(
    problem: Problem, order: Ints, queue: Ints, lengths: list[int]
) -> tuple[Floats, Floats]:
    """Swap time before, and end of, every group of the concatenated queues."""
    classes = problem.queue_class[queue]
    previous = _previous_models(problem, order, queue)
    swap = problem.swap_s[classes, previous, problem.group_model[order]]
    end = swap + problem.duration_s[order, classes]
    at = 0
    for number, length in enumerate(lengths):
        if length:
            row = end[at : at + length]
            row[0] += problem.busy_s[number]
            np.cumsum(row, out=row)
            at += length
    return swap, end
