"""Plans within milliseconds: the best place for every group that has none.

`repair` turns the plan in force into one for the problem at hand; `greedy` starts from nothing.
Both are pure and deterministic, run inside the Manager, and need nothing but NumPy. A new group is
put where it raises the objective least; every position of every queue is considered. A lower bound
on the delay cost of what stands behind a position (the groups that are late already pay beta for
every second, all pay eps) leaves few positions to be computed exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from qlm_core.planning.problem import LATE_TOLERANCE_S, Floats, Ints, Problem
from qlm_core.planning.score import Plan, as_plan, group_cost, pinned_prefixes

_REGRET_GROUPS = 12
"""Up to so many new groups are inserted by regret; more are inserted in order of due time."""

_REGRET_CELLS = 60_000
"""Positions x suffix length that one regret table may hold."""

_CANDIDATE_QUEUES = 24
"""Queues considered for each group of a first plan when there are many."""


class Queues:
    """Partial plan under insertion, as padded arrays: row g is queue g, its last column unused."""

    def __init__(self, problem: Problem, plan: Sequence[Sequence[int]], frozen: Sequence[int]):
        self.problem = problem
        self.weight = problem.group_total_weight
        self.tail_less_due = problem.tail_s - problem.due_s[:, None]
        self.ramped = bool(problem.ramp_s.any())
        self.free_from = np.array(frozen, np.int64)
        lengths = [len(queue) for queue in plan]
        width = max(lengths, default=0) + 4
        queues = problem.queues
        self.length = np.array(lengths, np.int64)
        self.groups = np.full((queues, width), -1, np.int64)
        if sum(lengths):
            filled = np.arange(width)[None, :] < self.length[:, None]
            self.groups[filled] = np.array([i for queue in plan for i in queue], np.int64)
        self._allocate(queues, width)
        self._recompute(slice(None))

    def _allocate(self, queues: int, width: int) -> None:
        self.before = np.zeros((queues, width))
        self.model = np.zeros((queues, width), np.int64)
        self.own_model = np.zeros((queues, width), np.int64)
        self.swap = np.zeros((queues, width))
        self.slope = np.zeros((queues, width))
        self.cost = np.zeros((queues, width))

    def _recompute(self, rows: int | slice) -> None:
        """Refresh the timeline of one queue or of all.

        before[g, k]: when position k could start; model[g, k]: what is loaded then; cost[g, k]:
        what the group at k pays; slope[g, k]: how fast, at least, the groups from k on get dearer
        when delayed; own_model[g, k], swap[g, k]: its model, and the swap to it.
        """
        problem = self.problem
        groups = self.groups[rows]
        present = groups >= 0
        classes = problem.queue_class[rows, None]
        self.own_model[rows] = own_model = problem.group_model[groups]
        model = self.model[rows]
        model[..., 0] = problem.loaded_model[rows]
        model[..., 1:] = own_model[..., :-1]
        self.swap[rows] = swap = problem.swap_s[classes, model, own_model]
        step = np.where(present, swap + problem.duration_s[groups, classes], 0.0)
        step[..., 0] += problem.busy_s[rows]
        end = step.cumsum(axis=-1)
        before = self.before[rows]
        before[..., 0] = problem.busy_s[rows]
        before[..., 1:] = end[..., :-1]
        weight = np.where(present, self.weight[groups], 0.0)
        lateness = end + self.tail_less_due[groups, classes]
        self.cost[rows] = self._group_cost(weight, lateness, end, problem.ramp_s[groups])
        rate = weight * (problem.eps + problem.beta * (lateness > LATE_TOLERANCE_S))
        self.slope[rows] = rate[..., ::-1].cumsum(axis=-1)[..., ::-1]

    def _group_cost(self, weight: Floats, lateness: Floats, end: Floats, ramp: Floats) -> Floats:
        return group_cost(self.problem, weight, lateness, end, ramp if self.ramped else None)

    def _positions(self, group: int, rows: Ints | None) -> tuple[Floats, Floats, Floats]:
        """For every queue of `rows` and position: own cost, delay of what follows, least total
        cost.
        """
        problem = self.problem
        used = int(self.length.max()) + 1 if rows is None else int(self.length[rows].max()) + 1
        pick = slice(None) if rows is None else rows
        classes = problem.queue_class[pick]
        own_model = problem.group_model[group]
        model = self.model[pick, :used]
        length = self.length[pick][:, None]
        column = np.arange(used)
        swap = problem.swap_s[:, :, own_model][classes[:, None], model]
        duration = problem.duration_s[group, classes]
        fits = duration < math.inf
        occupied = swap + np.where(fits, duration, 0.0)[:, None]
        end = self.before[pick, :used] + occupied
        lateness = end + self.tail_less_due[group, classes][:, None]
        own = self._group_cost(self.weight[group], lateness, end, problem.ramp_s[group])
        swap_next = problem.swap_s[:, own_model][classes[:, None], self.own_model[pick, :used]]
        change = np.where(column < length, swap_next - self.swap[pick, :used], 0.0)
        delay = occupied + change
        own += problem.kappa * (swap + change)
        if problem.home[group] >= 0 and problem.move_cost[group]:
            here = np.arange(problem.queues)[pick] == problem.home[group]
            own += np.where(here, 0.0, problem.move_cost[group])[:, None]
        allowed = (column <= length) & (column >= self.free_from[pick][:, None]) & fits[:, None]
        own = np.where(allowed, own, math.inf)
        # Nothing is known of what follows where it starts sooner, which a swap that is spared may do.
        others = np.where(delay >= 0.0, delay * self.slope[pick, :used], -math.inf)
        return own, delay, own + np.where(own < math.inf, others, 0.0)

    def _suffix(self, queue: Ints, position: Ints, delay: Floats) -> Floats:
        """What the groups from each position on cost more when they start `delay` later."""
        problem = self.problem
        used = int(self.length[queue].max())
        if used == 0:
            return np.zeros(len(queue))
        groups = self.groups[queue, :used]
        column = np.arange(used)
        behind = (column >= position[:, None]) & (groups >= 0)
        classes = problem.queue_class[queue][:, None]
        end = self.before[queue, 1 : used + 1] + delay[:, None]
        lateness = end + self.tail_less_due[groups, classes]
        cost = self._group_cost(self.weight[groups], lateness, end, problem.ramp_s[groups])
        extra: Floats = np.where(behind, cost - self.cost[queue, :used], 0.0).sum(axis=1)
        return extra

    def best(self, group: int, rows: Ints | None = None) -> tuple[float, int, int]:
        """The cheapest place for a group: (extra cost, queue, position); inf if there is none."""
        own, delay, least = self._positions(group, rows)
        width = own.shape[1]
        flat_least = least.ravel()
        first = np.array([int(flat_least.argmin())])
        if flat_least[first[0]] == math.inf:
            return math.inf, -1, -1
        number = np.arange(self.problem.queues) if rows is None else rows
        bound = self._exact(first, width, number, own, delay)[0]
        promising = np.flatnonzero(flat_least < bound - 1e-12 * abs(bound))
        promising = promising[promising != first[0]]
        chosen = int(first[0])
        if promising.size:
            costs = self._exact(promising, width, number, own, delay)
            at = int(costs.argmin())
            if costs[at] < bound:
                bound, chosen = costs[at], int(promising[at])
        return float(bound), int(number[chosen // width]), chosen % width

    def _exact(self, flat: Ints, width: int, number: Ints, own: Floats, delay: Floats) -> Floats:
        rows, position = np.divmod(flat, width)
        suffix = self._suffix(number[rows], position, delay[rows, position])
        total: Floats = own[rows, position] + suffix
        return total

    def best_by_queue(self, group: int, rows: Ints) -> tuple[Floats, Ints]:
        """The cheapest place for a group on each queue of `rows`: (extra costs, positions)."""
        own, delay, _ = self._positions(group, rows)
        count, width = own.shape
        cost = np.full((count, width), math.inf)
        possible = np.flatnonzero(own.ravel() < math.inf)
        if possible.size:
            cost.ravel()[possible] = self._exact(possible, width, rows, own, delay)
        position = cost.argmin(axis=1)
        return cost[np.arange(count), position], position

    def insert(self, group: int, queue: int, position: int) -> None:
        """Put a group in its place and refresh that queue."""
        length = int(self.length[queue])
        if length + 2 > self.groups.shape[1]:
            self._grow()
        row = self.groups[queue]
        row[position + 1 : length + 1] = row[position:length].copy()
        row[position] = group
        self.length[queue] = length + 1
        self._recompute(queue)

    def _grow(self) -> None:
        queues, width = self.groups.shape
        wider = np.full((queues, 2 * width), -1, np.int64)
        wider[:, :width] = self.groups
        self.groups = wider
        self._allocate(queues, 2 * width)
        self._recompute(slice(None))

    def earliest(self, group: int, count: int) -> Ints:
        """The queues that could finish a group first if it came last, in order of number."""
        problem = self.problem
        rows = np.arange(problem.queues)
        model = self.model[rows, self.length]
        classes = problem.queue_class
        end = (
            self.before[rows, self.length]
            + problem.swap_s[classes, model, problem.group_model[group]]
            + problem.duration_s[group, classes]
        )
        return np.sort(np.argpartition(end, count)[:count])

    def plan(self) -> Plan:
        """The plan as it stands."""
        lengths = self.length.tolist()
        return tuple(
            tuple(row[:length]) for row, length in zip(self.groups.tolist(), lengths, strict=True)
        )


def greedy(problem: Problem) -> Plan:
    """A first plan, from nothing: every group in order of due time goes where it costs least."""
    prefixes = pinned_prefixes(problem)
    free = np.flatnonzero(~problem.pinned)
    return _insert_all(problem, prefixes, [len(prefix) for prefix in prefixes], free)


def dispatch(problem: Problem) -> Plan:
    """A plan in the least time: each group in order of due time goes behind the queue that would
    finish it first.

    The problem must be free of pins.
    """
    queues: list[list[int]] = [[] for _ in range(problem.queues)]
    free_s = problem.busy_s.copy()
    loaded = problem.loaded_model.copy()
    classes = problem.queue_class
    order = np.lexsort((np.arange(problem.groups), problem.due_s))
    for group in order.tolist():
        model = problem.group_model[group]
        end_s = free_s + problem.swap_s[classes, loaded, model] + problem.duration_s[group, classes]
        queue = int(end_s.argmin())
        queues[queue].append(group)
        free_s[queue] = end_s[queue]
        loaded[queue] = model
    return as_plan(queues)


def repair(problem: Problem, previous: Sequence[Sequence[int]]) -> Plan:
    """The previous plan made one for this problem, with as little change as possible.

    Numbers in `previous` are those of `problem`. Any number that is no group (say -1, for a group
    that has vanished), repeats, or stands where it does not fit is dropped; queues may have come or
    gone. Groups that are then nowhere are inserted where they cost least, the one with the most to
    lose first.
    """
    prefixes = pinned_prefixes(problem)
    placed = problem.pinned.tolist()
    groups = problem.groups
    fits = np.isfinite(problem.duration_s).tolist()
    classes = problem.queue_class.tolist()
    queues: list[list[int]] = []
    for number, prefix in enumerate(prefixes):
        queue = list(prefix)
        where = classes[number]
        for group in previous[number] if number < len(previous) else ():
            if 0 <= group < groups and not placed[group] and fits[group][where]:
                placed[group] = True
                queue.append(group)
        queues.append(queue)
    missing = np.flatnonzero(~np.array(placed, np.bool_))
    if not missing.size:
        return as_plan(queues)
    return _insert_all(problem, queues, [len(prefix) for prefix in prefixes], missing)


def _insert_all(
    problem: Problem, plan: Sequence[Sequence[int]], frozen: Sequence[int], groups: Ints
) -> Plan:
    if not groups.size:
        return as_plan(plan)
    state = Queues(problem, plan, frozen)
    order = groups[np.lexsort((groups, problem.due_s[groups]))].tolist()
    cells = problem.queues * int(state.length.max() + 1) ** 2 * len(order)
    if 1 < len(order) <= _REGRET_GROUPS and cells <= _REGRET_CELLS:
        _insert_by_regret(state, order)
        return state.plan()
    # A repair may look at every queue for each group; a first plan of a large fleet may not.
    narrow = problem.queues > 2 * _CANDIDATE_QUEUES and 4 * len(order) > problem.groups
    for group in order:
        rows = state.earliest(group, _CANDIDATE_QUEUES) if narrow else None
        cost, queue, position = state.best(group, rows)
        if cost == math.inf:
            _, queue, position = state.best(group)
        state.insert(group, queue, position)
    return state.plan()


def _insert_by_regret(state: Queues, order: list[int]) -> None:
    """Regret-2: next comes the group that loses most if its best queue is taken from it."""
    rows = np.arange(state.problem.queues)
    tables = {group: state.best_by_queue(group, rows) for group in order}
    while tables:
        chosen, most = -1, -math.inf
        for group, (cost, _) in tables.items():
            regret = math.inf
            if len(cost) > 1:
                best, second = np.partition(cost, 1)[:2].tolist()
                regret = second - best if second < math.inf else math.inf
            if regret > most:
                chosen, most = group, regret
        cost, position = tables.pop(chosen)
        queue = int(cost.argmin())
        state.insert(chosen, queue, int(position[queue]))
        changed = np.array([queue])
        for group, (costs, positions) in tables.items():
            new_cost, new_position = state.best_by_queue(group, changed)
            costs[queue], positions[queue] = new_cost[0], new_position[0]
