"""Ends of long queues put where they are done sooner, if that pays for the swap.

Insertion looks at one group at a time, and no single one is worth a swap that would pay for many: a backlog would stay on the
instances that have its model loaded, beside idle ones. `level` moves all that stands behind some place of a queue at once. Queues
that end with the same model are left to insertion, which has no swap to pay there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from qlm_core.planning.problem import NOTHING_LOADED, Floats, Ints, Problem
from qlm_core.planning.score import Plan, as_plan, group_cost, pinned_prefixes


class _Move(NamedTuple):
    """Everything from `start` on, to the end of queue `target`."""

    gain: float
    start: int
    target: int


class _Timeline(NamedTuple):
    """One queue as it runs. Shapes: n groups.

    Attributes:
        swap_s: [n] before each group.
        end_s: [n] of each group.
    """

    groups: Ints
    swap_s: Floats
    end_s: Floats


def level(problem: Problem, plan: Plan, queues: Iterable[int]) -> Plan:
    """The plan with the ends of some queues put behind others that end with another model, wherever that lowers the objective.

    Considered are the last 1, 2, 4, ... groups of each of `queues`, and all of them.

    Args:
        queues: whose ends may move.
    """
    rows = [list(queue) for queue in plan]
    frozen = [len(prefix) for prefix in pinned_prefixes(problem)]
    ends_s, last_model = _ends(problem, plan)
    for number in queues:
        for _ in range(problem.queues):
            free = len(rows[number]) - frozen[number]
            if not free:
                break
            move = _best_move(problem, number, rows[number], free, ends_s, last_model)
            if move is None:
                break
            rows[move.target] += rows[number][move.start :]
            del rows[number][move.start :]
            ends_s, last_model = _ends(problem, rows)
    return as_plan(rows)


def _ends(problem: Problem, rows: Sequence[Sequence[int]]) -> tuple[Floats, Ints]:
    """When each queue is done, and which model it has loaded then."""
    lengths = np.array([len(row) for row in rows])
    groups = np.array([group for row in rows for group in row], np.int64)
    queue = np.repeat(np.arange(problem.queues), lengths)
    kind, model = problem.queue_class[queue], problem.group_model[groups]
    before = np.concatenate(([NOTHING_LOADED], model[:-1]))
    filled = np.flatnonzero(lengths)
    last = lengths.cumsum()[filled] - 1
    before[last - lengths[filled] + 1] = problem.loaded_model[filled]
    step_s = problem.swap_s[kind, before, model] + problem.duration_s[groups, kind]
    last_model = problem.loaded_model.copy()
    last_model[filled] = model[last]
    return problem.busy_s + np.bincount(queue, step_s, problem.queues), last_model


def _timeline(problem: Problem, number: int, queue: Sequence[int]) -> _Timeline:
    groups = np.array(queue, np.int64)
    model = problem.group_model[groups]
    before = np.concatenate(([problem.loaded_model[number]], model[:-1]))
    kind = problem.queue_class[number]
    swap_s = problem.swap_s[kind, before, model]
    end_s = problem.busy_s[number] + np.cumsum(swap_s + problem.duration_s[groups, kind])
    return _Timeline(groups, swap_s, end_s)


def _best_move(
    problem: Problem,
    number: int,
    queue: Sequence[int],
    free: int,
    ends_s: Floats,
    last_model: Ints,
) -> _Move | None:
    """The move of the queue's end that lowers the objective most, if any does."""
    here = _timeline(problem, number, queue)
    costs = _costs(problem, here.groups, int(problem.queue_class[number]), here.end_s)
    costs += problem.kappa * here.swap_s + _move_costs(problem, here.groups, number)
    saved = costs[::-1].cumsum()[::-1]
    lengths = [1 << power for power in range(free.bit_length()) if 1 << power < free]
    starts = len(queue) - np.array([*lengths, free])
    best: _Move | None = None
    least = 1e-9 * max(1.0, float(saved[0]))
    for target in _targets(problem, number, ends_s, last_model):
        spent = _spent(problem, here.groups, starts, target, ends_s[target], last_model[target])
        gains = saved[starts] - spent
        at = int(gains.argmax())
        if gains[at] > least:
            least = float(gains[at])
            best = _Move(least, int(starts[at]), target)
    return best


def _targets(problem: Problem, number: int, ends_s: Floats, last_model: Ints) -> list[int]:
    """Queues that end before this one and with another model; of those alike in class and last model, the first to end."""
    found: dict[tuple[int, int], int] = {}
    for other in np.argsort(ends_s, kind="stable").tolist():
        if ends_s[other] >= ends_s[number]:
            break
        if last_model[other] != last_model[number]:
            alike = int(problem.queue_class[other]), int(last_model[other])
            found.setdefault(alike, other)
    return list(found.values())


def _spent(
    problem: Problem, groups: Ints, starts: Ints, target: int, end_s: float, last_model: int
) -> Floats:
    """What the groups from each start on cost behind another queue, swaps and moves included; inf where they do not fit.

    Args:
        groups: [n] in their order.
        starts: [k] indices of `groups`.
        end_s: when the other queue is free.
        last_model: what it has loaded then.
    """
    kind = int(problem.queue_class[target])
    model = problem.group_model[groups]
    duration_s = problem.duration_s[groups, kind]
    fits = np.isfinite(duration_s)
    inner_s = np.concatenate(([0.0], problem.swap_s[kind, model[:-1], model[1:]]))
    first_s = problem.swap_s[kind, last_model, model[starts]]
    step_s = inner_s + np.where(fits, duration_s, 0.0)
    done_s = step_s.cumsum()
    # The first of those that move has its own swap in place of the one behind its neighbour.
    offset_s = end_s + first_s - inner_s[starts] - (done_s - step_s)[starts]
    ends_s = done_s[None, :] + offset_s[:, None]
    costs = _costs(problem, groups, kind, ends_s) + _move_costs(problem, groups, target)
    costs += problem.kappa * inner_s
    moves = np.arange(len(groups)) >= starts[:, None]
    spent: Floats = np.where(moves, costs, 0.0).sum(axis=1)
    spent += problem.kappa * (first_s - inner_s[starts])
    misfit = np.flatnonzero(~fits)
    return np.where(starts > (misfit[-1] if misfit.size else -1), spent, math.inf)


def _costs(problem: Problem, groups: Ints, kind: int, end_s: Floats) -> Floats:
    lateness_s = end_s + problem.tail_s[groups, kind] - problem.due_s[groups]
    weight = problem.group_total_weight[groups]
    return group_cost(problem, weight, lateness_s, end_s, problem.ramp_s[groups])


def _move_costs(problem: Problem, groups: Ints, number: int) -> Floats:
    home = problem.home[groups]
    moved: Floats = np.where((home >= 0) & (home != number), problem.move_cost[groups], 0.0)
    return moved
