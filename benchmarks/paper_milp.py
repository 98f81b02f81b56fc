"""The paper's program (§7, eq. 6-13) as a MILP, for what `qlm-paper` asks of its search to be solved exactly.

x[g, i, k] = 1 puts group i on queue g with k groups behind it. Positions are counted from the end, so that the padding of (6)
stands in front, where it waits for nothing; a wait then counts once for every group from its position on, and (13) is
linear without a big M. Changes of model (9) are flows between the models of neighbouring positions, from the one that is
loaded; the last term of (10) is read with x[g, i, k] in place of x[g, i, j], and a group waits for its own swap as well.
"""

from __future__ import annotations

import numpy as np

from qlm_core.planning import Plan, Problem, evaluate
from qlm_core.planning.problem import Floats, Ints
from solver.backends.milp import Builder, Milp

_EXACT_S = 1e-6


def waits_s(problem: Problem, plan: Plan) -> float:
    """The objective (13) but for a constant: the sum over groups of seconds until they start."""
    return float(evaluate(problem, plan).start_s.sum())


def lateness_s(problem: Problem, plan: Plan) -> float:
    """By how much the worst constraint (12) is violated; at most 0 for a solution."""
    return float((evaluate(problem, plan).start_s - problem.due_s).max(initial=0.0))


def impossible(problem: Problem) -> bool:
    """Whether it takes no solver to see that there is no solution.

    Either a group would start too late even as the first of any queue, or more has to be done by some due time than all
    queues can do by then, each with one group left that has only to have started.
    """
    classes, loaded = problem.queue_class, problem.loaded_model
    alone = problem.busy_s + problem.swap_s[classes, loaded][:, problem.group_model].T
    alone = np.where(problem.fits(), alone, np.inf).min(axis=1)
    if (alone > problem.due_s + _EXACT_S).any():
        return True
    least_s = problem.duration_s[:, classes].min(axis=1)
    for due_s in np.unique(problem.due_s).tolist():
        work = np.sort(least_s[problem.due_s <= due_s])[: -problem.queues]
        if work.sum() > np.maximum(due_s - problem.busy_s, 0.0).sum() + _EXACT_S:
            return True
    return False


def paper_milp(problem: Problem, waits_most_s: float | None) -> Milp:
    """The program; `waits_most_s`, the objective of a known solution, leaves out positions that no better one uses."""
    m = Builder()
    once = m.rows(problem.groups, 1.0, 1.0)
    queues = [
        _queue(m, problem, queue, once, most)
        for queue, most in enumerate(_lengths(problem, waits_most_s))
    ]

    def decode(values: Floats) -> Plan:
        return tuple(_in_order(groups, values[x]) for groups, x in queues)

    return m.build(exact=True, decode=decode, encode=lambda _: None)


def _in_order(groups: Ints, x: Floats) -> tuple[int, ...]:
    row, behind = np.nonzero(x > 0.5)
    return tuple(groups[row[np.argsort(-behind)]].tolist())


def _lengths(problem: Problem, waits_most_s: float | None) -> list[int]:
    """The most groups that each queue can serve, given when the last of them is due and how long all may wait."""
    lengths = []
    soonest_s = float(problem.busy_s.min())
    for queue in range(problem.queues):
        fit, duration_s = _fitting(problem, queue)
        start_s = problem.busy_s[queue] + np.cumsum(np.sort(duration_s)) - np.sort(duration_s)
        able = start_s <= problem.due_s[fit].max(initial=0.0) + _EXACT_S
        if waits_most_s is not None:
            others = problem.groups - 1 - np.arange(len(fit))
            able &= np.cumsum(start_s) + others * soonest_s <= waits_most_s + _EXACT_S
        lengths.append(max(int(able.sum()), min(1, len(fit))))
    return lengths


def _fitting(problem: Problem, queue: int) -> tuple[Ints, Floats]:
    duration_s = problem.duration_s[:, problem.queue_class[queue]]
    fit = np.flatnonzero(np.isfinite(duration_s))
    return fit, duration_s[fit]


def _queue(m: Builder, problem: Problem, queue: int, once: Ints, length: int) -> tuple[Ints, Ints]:
    """One queue: its groups, and their variables by group and position from the end."""
    fit, duration_s = _fitting(problem, queue)
    if not length:
        return fit, np.zeros((len(fit), 0), np.int64)
    busy_s, behind = float(problem.busy_s[queue]), np.arange(length)
    cost = busy_s + behind * duration_s[:, None]
    x = m.variables(len(fit) * length, cost=cost.ravel(), high=1.0, whole=True)
    x = x.reshape(len(fit), length)
    m.put(once[fit][:, None], x, 1.0)
    padding = m.variables(length, high=1.0)
    one = m.rows(length, 1.0, 1.0)
    m.put(one, x, 1.0)
    m.put(one, padding, 1.0)
    if length > 1:
        first = m.rows(length - 1, 0.0, np.inf)
        m.put(first, padding[1:], 1.0)
        m.put(first, padding[:-1], -1.0)
    in_time = m.rows(length, -np.inf, -busy_s)
    # A due time beyond the end of all work would only spoil the arithmetic.
    due_s = np.minimum(problem.due_s[fit], _end_s(problem, queue))
    m.put(in_time, x, -due_s[:, None])
    m.put(in_time, padding, -busy_s)
    for position in range(length - 1):
        m.put(in_time[position], x[:, position + 1 :], duration_s[:, None])
    _swaps(m, problem, queue, x, padding, in_time)
    return fit, x


def _end_s(problem: Problem, queue: int) -> float:
    _, duration_s = _fitting(problem, queue)
    longest_swap_s = float(problem.swap_s[problem.queue_class[queue]].max(initial=0.0))
    return float(problem.busy_s[queue] + duration_s.sum() + len(duration_s) * longest_swap_s)


def _swaps(m: Builder, problem: Problem, queue: int, x: Ints, padding: Ints, in_time: Ints) -> None:
    """Flows from the model before each position to the model at it; padding keeps what is loaded."""
    table = problem.swap_s[problem.queue_class[queue]]
    fit, _ = _fitting(problem, queue)
    loaded = int(problem.loaded_model[queue]) % len(table)
    models = np.unique(np.append(problem.group_model[fit], loaded))
    # Nothing is ever unloaded for nothing, so going to an empty GPU needs no price.
    seconds = np.pad(table, ((0, 0), (0, 1)))[np.ix_(models, models)]
    if not seconds.any():
        return
    length, many = x.shape[1], len(models)
    cost = np.arange(1, length + 1)[:, None, None] * seconds
    flow = m.variables(cost.size, cost=cost.ravel(), high=1.0).reshape(cost.shape)
    at = m.rows(length * many, 0.0, 0.0).reshape(length, many)
    m.put(at[:, None, :], flow, 1.0)
    number = np.searchsorted(models, problem.group_model[fit])
    m.put(at[:, number].T, x, -1.0)
    start = int(np.searchsorted(models, loaded))
    m.put(at[:, start], padding, -1.0)
    leaving = m.rows(length * many, 0.0, 0.0).reshape(length, many)
    m.put(leaving[:, :, None], flow, 1.0)
    if length > 1:
        m.put(leaving[:-1, number].T, x[:, 1:], -1.0)
        m.put(leaving[:-1, start], padding[1:], -1.0)
    origin = m.variables(1, low=1.0, high=1.0)
    m.put(leaving[-1, start], origin, -1.0)
    for position in range(length):
        m.put(in_time[position], flow[position:], seconds)
