"""The compact MILPs: the paper's slots, sequence arcs, and model blocks. All need big-M.

They are here for fidelity to the paper and as baselines: the column formulation ("paths") has by
far the better bounds. Problems come without pins. A ramp of the late probability is taken as a
step, and then the program is no longer exact; the evaluator has the last word in any case.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from qlm_core.planning.problem import LATE_TOLERANCE_S, Floats, Ints, Problem
from qlm_core.planning.score import Plan, evaluate
from solver.backends.milp import Builder, Milp

_EXACT_SLOTS = 10
_EXACT_HORIZON_GROUPS = 16
_VISITS = 3


def build(problem: Problem, name: str, plan: Plan) -> Milp:
    """The formulation of that name; `plan` is any good plan, to size big-M with.

    Raises:
        KeyError: there is none of that name.
    """
    return FORMULATIONS[name](problem, plan)


def _horizon(problem: Problem, plan: Plan) -> tuple[float, bool]:
    """A time by which all ends, and whether no optimal plan can need longer."""
    if problem.groups <= _EXACT_HORIZON_GROUPS:
        finite = np.where(np.isfinite(problem.duration_s), problem.duration_s, 0.0)
        longest = finite.max(axis=1).sum() + problem.groups * problem.swap_s.max()
        return float(problem.busy_s.max() + longest), True
    return 1.25 * float(evaluate(problem, plan).end_s.max()) + 10.0, False


class _Ends:
    """Variables for when each group ends, how late it is, and whether."""

    def __init__(self, problem: Problem, m: Builder, horizon: float):
        weight = problem.group_total_weight
        count = problem.groups
        self.problem = problem
        self.end = m.variables(count, cost=problem.eps * weight)
        self.tardy = m.variables(count, cost=problem.beta * weight)
        self.rows = m.rows(count, -problem.due_s, np.inf)
        m.put(self.rows, self.tardy, 1.0)
        m.put(self.rows, self.end, -1.0)
        self.late: Ints | None = None
        if problem.alpha > 0:
            self.late = m.variables(count, cost=problem.alpha * weight, high=1.0, whole=True)
            self.late_rows = m.rows(count, -problem.due_s, np.inf)
            most = np.maximum(horizon + problem.tail_s.max(initial=0.0) - problem.due_s, 0.0)
            m.put(self.late_rows, self.late, most)
            m.put(self.late_rows, self.end, -1.0)

    def add_tail(self, m: Builder, groups: Ints, queues: Ints, variables: Ints) -> None:
        """Let a placement variable add its class's tail to what is compared with the due time."""
        tail = self.problem.tail_s[groups, self.problem.queue_class[queues]]
        if tail.any():
            m.put(self.rows[groups], variables, -tail)
            if self.late is not None:
                m.put(self.late_rows[groups], variables, -tail)

    def fill(self, x: Floats, plan: Plan) -> None:
        """Set these variables as a plan has them."""
        problem = self.problem
        queue = np.empty(problem.groups, np.int64)
        for number, groups in enumerate(plan):
            queue[list(groups)] = number
        end = evaluate(problem, plan).end_s
        tail = problem.tail_s[np.arange(problem.groups), problem.queue_class[queue]]
        over = end + tail - problem.due_s
        x[self.end] = end
        x[self.tardy] = np.maximum(0.0, over)
        if self.late is not None:
            x[self.late] = over > LATE_TOLERANCE_S


def _pairs(problem: Problem) -> tuple[Ints, Ints]:
    """(queues, groups) of every feasible placement."""
    queues, groups = np.nonzero(problem.fits().T)
    return queues, groups


def _move_cost(problem: Problem, queues: Ints, groups: Ints) -> Floats:
    home = problem.home[groups]
    cost: Floats = np.where((home >= 0) & (home != queues), problem.move_cost[groups], 0.0)
    return cost


def slot(problem: Problem, plan: Plan) -> Milp:
    """The paper's program: x[group, queue, slot], no holes, times along the slots."""
    count, queues, models = problem.groups, problem.queues, problem.models
    longest = max(len(groups) for groups in plan)
    slots = count
    if count > _EXACT_SLOTS:
        slots = min(count, max(longest + 1, 2 * count // queues + 2))
    horizon, long_enough = _horizon(problem, plan)
    m = Builder()
    gg, ii = _pairs(problem)
    x = m.variables(
        len(gg) * slots, cost=np.repeat(_move_cost(problem, gg, ii), slots), high=1.0, whole=True
    ).reshape(len(gg), slots)
    ends = _Ends(problem, m, horizon)
    ends.add_tail(m, np.repeat(ii, slots), np.repeat(gg, slots), x.ravel())
    y = m.variables(queues * slots * models, high=1.0).reshape(queues, slots, models)
    swap = m.variables(queues * slots, cost=problem.kappa).reshape(queues, slots)
    time = m.variables(queues * slots).reshape(queues, slots)
    once = m.rows(count, 1.0, 1.0)
    m.put(once[ii][:, None], x, 1.0)
    filled = m.rows(queues * slots, -np.inf, 1.0).reshape(queues, slots)
    m.put(filled[gg], x, 1.0)
    if slots > 1:
        packed = m.rows(queues * (slots - 1), 0.0, np.inf).reshape(queues, slots - 1)
        m.put(packed[gg], x[:, :-1], 1.0)
        m.put(packed[gg], x[:, 1:], -1.0)
    holds = m.rows(queues * slots * models, 0.0, 0.0).reshape(queues, slots, models)
    m.put(holds, y, -1.0)
    m.put(holds[gg, :, problem.group_model[ii]], x, 1.0)
    table = problem.swap_s[problem.queue_class]
    _first_swaps(m, problem, swap[:, 0], y[:, 0, :])
    if slots > 1:
        _later_swaps(m, table[:, :models, :], swap[:, 1:], y)
    start = np.zeros((queues, slots))
    start[:, 0] = problem.busy_s
    row = m.rows(queues * slots, start.ravel(), np.inf).reshape(queues, slots)
    m.put(row, time, 1.0)
    m.put(row, swap, -1.0)
    duration = problem.duration_s[ii, problem.queue_class[gg]]
    m.put(row[gg], x, -duration[:, None])
    if slots > 1:
        m.put(row[:, 1:], time[:, :-1], -1.0)
    link = m.rows(len(gg) * slots, -horizon, np.inf).reshape(len(gg), slots)
    m.put(link, ends.end[ii][:, None], 1.0)
    m.put(link, time[gg], -1.0)
    m.put(link, x, -horizon)
    number = {pair: at for at, pair in enumerate(zip(gg.tolist(), ii.tolist(), strict=True))}

    def decode(values: Floats) -> Plan:
        chosen = values[x] > 0.5
        found: list[list[int]] = [[] for _ in range(queues)]
        for k in range(slots):
            for at in np.flatnonzero(chosen[:, k]).tolist():
                found[int(gg[at])].append(int(ii[at]))
        return tuple(tuple(groups) for groups in found)

    def encode(given: Plan) -> Floats | None:
        if max(len(groups) for groups in given) > slots:
            return None
        values = np.zeros(m.variable_count)
        for queue, groups in enumerate(given):
            now, model = float(problem.busy_s[queue]), int(problem.loaded_model[queue])
            for k in range(slots):
                if k < len(groups):
                    i = groups[k]
                    own = int(problem.group_model[i])
                    step = float(table[queue, model, own])
                    now += step + float(problem.duration_s[i, problem.queue_class[queue]])
                    model = own
                    values[swap[queue, k]] = step
                    values[x[number[queue, i], k]] = 1.0
                    values[y[queue, k, own]] = 1.0
                values[time[queue, k]] = now
        ends.fill(values, given)
        return values

    exact = long_enough and slots == count and not problem.ramp_s.any()
    return m.build(exact=exact, decode=decode, encode=encode)


def _first_swaps(m: Builder, problem: Problem, swap: Ints, holds: Ints) -> None:
    """The first swap of each queue starts from what it holds now."""
    queues = problem.queues
    first = problem.swap_s[problem.queue_class, problem.loaded_model]
    rows = m.rows(queues, 0.0, np.inf)
    m.put(rows, swap, 1.0)
    m.put(rows[:, None], holds, -first)


def _later_swaps(m: Builder, table: Floats, swap: Ints, holds: Ints) -> None:
    """swap[k] >= sum over m' of S[m, m'] holds[k, m'] - Smax (1 - holds[k - 1, m])."""
    queues, later = swap.shape
    models = table.shape[1]
    most = table.max(axis=(1, 2))
    rows = m.rows(queues * later * models, -np.repeat(most, later * models), np.inf)
    rows = rows.reshape(queues, later, models)
    m.put(rows, swap[:, :, None], 1.0)
    m.put(rows, holds[:, :-1, :], -most[:, None, None])
    for model in range(models):
        m.put(rows, holds[:, 1:, model][:, :, None], -table[:, :, model][:, None, :])


def arc(problem: Problem, plan: Plan) -> Milp:
    """Arcs between consecutive groups of a queue, with end times along them."""
    count, queues = problem.groups, problem.queues
    horizon, long_enough = _horizon(problem, plan)
    m = Builder()
    fits = problem.fits().T
    apart = ~np.eye(count, dtype=bool)
    g3, i3, j3 = np.nonzero(fits[:, :, None] & fits[:, None, :] & apart[None])
    gf, jf = np.nonzero(fits)
    classes = problem.queue_class
    model = problem.group_model
    swap3 = problem.swap_s[classes[g3], model[i3], model[j3]]
    swap_f = problem.swap_s[classes[gf], problem.loaded_model[gf], model[jf]]
    y = m.variables(
        len(g3), cost=problem.kappa * swap3 + _move_cost(problem, g3, j3), high=1.0, whole=True
    )
    f = m.variables(
        len(gf), cost=problem.kappa * swap_f + _move_cost(problem, gf, jf), high=1.0, whole=True
    )
    ends = _Ends(problem, m, horizon)
    ends.add_tail(m, j3, g3, y)
    ends.add_tail(m, jf, gf, f)
    once = m.rows(count, 1.0, 1.0)
    m.put(once[j3], y, 1.0)
    m.put(once[jf], f, 1.0)
    begin = m.rows(queues, -np.inf, 1.0)
    m.put(begin[gf], f, 1.0)
    flow = m.rows(queues * count, 0.0, np.inf).reshape(queues, count)
    m.put(flow[g3, j3], y, 1.0)
    m.put(flow[gf, jf], f, 1.0)
    m.put(flow[g3, i3], y, -1.0)
    order = m.rows(count * count, -horizon, np.inf).reshape(count, count)
    a, b = np.nonzero(apart)
    m.put(order[a, b], ends.end[b], 1.0)
    m.put(order[a, b], ends.end[a], -1.0)
    duration = problem.duration_s[:, classes]
    m.put(order[i3, j3], y, -(horizon + duration[j3, g3] + swap3))
    least = m.rows(count, 0.0, np.inf)
    busy = problem.busy_s
    m.put(least, ends.end, 1.0)
    m.put(least[jf], f, -(busy[gf] + swap_f + duration[jf, gf]))
    m.put(least[j3], y, -(busy[g3] + duration[i3, g3] + swap3 + duration[j3, g3]))
    place_y = {
        key: at for at, key in enumerate(zip(g3.tolist(), i3.tolist(), j3.tolist(), strict=True))
    }
    place_f = {key: at for at, key in enumerate(zip(gf.tolist(), jf.tolist(), strict=True))}

    def decode(values: Floats) -> Plan:
        after = {int(i3[at]): int(j3[at]) for at in np.flatnonzero(values[y] > 0.5).tolist()}
        found: list[list[int]] = [[] for _ in range(queues)]
        for at in np.flatnonzero(values[f] > 0.5).tolist():
            group: int | None = int(jf[at])
            while group is not None and len(found[int(gf[at])]) <= count:
                found[int(gf[at])].append(group)
                group = after.get(group)
        return tuple(tuple(groups) for groups in found)

    def encode(given: Plan) -> Floats | None:
        values = np.zeros(m.variable_count)
        for queue, groups in enumerate(given):
            for k, i in enumerate(groups):
                if k == 0:
                    values[f[place_f[queue, i]]] = 1.0
                else:
                    values[y[place_y[queue, groups[k - 1], i]]] = 1.0
        ends.fill(values, given)
        return values if values[ends.end].max() <= horizon else None

    return m.build(exact=long_enough and not problem.ramp_s.any(), decode=decode, encode=encode)


def block(problem: Problem, plan: Plan) -> Milp:
    """A few visits to models a queue, groups in order of due time within a visit: a restriction."""
    count, queues, models = problem.groups, problem.queues, problem.models
    horizon, _ = _horizon(problem, plan)
    visits = 1 + (_VISITS if models > 1 else 1)
    m = Builder()
    gg, ii = _pairs(problem)
    g3, i3, k3 = np.repeat(gg, visits), np.repeat(ii, visits), np.tile(np.arange(visits), len(gg))
    allowed = (k3 > 0) | (problem.group_model[i3] == problem.loaded_model[g3])
    g3, i3, k3 = g3[allowed], i3[allowed], k3[allowed]
    x = m.variables(len(g3), cost=_move_cost(problem, g3, i3), high=1.0, whole=True)
    holds = m.variables(queues * visits * models, high=1.0, whole=True)
    holds = holds.reshape(queues, visits, models)
    ends = _Ends(problem, m, horizon)
    ends.add_tail(m, i3, g3, x)
    swap = m.variables(queues * visits, cost=problem.kappa).reshape(queues, visits)
    begin = m.variables(queues * visits).reshape(queues, visits)
    now = np.zeros((queues, models))
    loaded = np.flatnonzero(problem.loaded_model >= 0)
    now[loaded, problem.loaded_model[loaded]] = 1.0
    m.put(m.rows(queues * models, now.ravel(), now.ravel()), holds[:, 0, :].ravel(), 1.0)
    one = m.rows(queues * visits, -np.inf, 1.0).reshape(queues, visits)
    m.put(one[:, :, None], holds, 1.0)
    m.put(m.rows(count, 1.0, 1.0)[i3], x, 1.0)
    within = m.rows(len(g3), -np.inf, 0.0)
    m.put(within, x, 1.0)
    m.put(within, holds[g3, k3, problem.group_model[i3]], -1.0)
    table = problem.swap_s[problem.queue_class]
    _first_swaps(m, problem, swap[:, 1], holds[:, 1, :])
    if visits > 2:
        # Visits are used from the first on, so the one before is the model that was held.
        packed = m.rows(queues * (visits - 2), 0.0, np.inf).reshape(queues, visits - 2)
        m.put(packed[:, :, None], holds[:, 1:-1, :], 1.0)
        m.put(packed[:, :, None], holds[:, 2:, :], -1.0)
        _later_swaps(m, table[:, :models, :], swap[:, 2:], holds[:, 1:, :])
    start = np.zeros((queues, visits))
    start[:, 0] = problem.busy_s
    row = m.rows(queues * visits, start.ravel(), np.inf).reshape(queues, visits)
    m.put(row, begin, 1.0)
    m.put(row, swap, -1.0)
    m.put(row[:, 1:], begin[:, :-1], -1.0)
    duration = problem.duration_s[i3, problem.queue_class[g3]]
    early = k3 < visits - 1
    m.put(row[g3[early], k3[early] + 1], x[early], -duration[early])
    rank = np.empty(count, np.int64)
    rank[np.lexsort((np.arange(count), problem.due_s))] = np.arange(count)
    link = m.rows(len(g3), -horizon, np.inf)
    m.put(link, ends.end[i3], 1.0)
    m.put(link, begin[g3, k3], -1.0)
    m.put(link, x, -horizon)
    visit = (g3 * visits + k3) * models + problem.group_model[i3]
    for number in np.unique(visit).tolist():
        members = np.flatnonzero(visit == number)
        members = members[np.argsort(rank[i3[members]])]
        a, b = np.tril_indices(len(members))
        m.put(link[members[a]], x[members[b]], -duration[members[b]])
    place = {
        key: at for at, key in enumerate(zip(g3.tolist(), i3.tolist(), k3.tolist(), strict=True))
    }

    def decode(values: Floats) -> Plan:
        chosen = np.flatnonzero(values[x] > 0.5)
        found: list[list[int]] = [[] for _ in range(queues)]
        for at in chosen[np.lexsort((rank[i3[chosen]], k3[chosen]))].tolist():
            found[int(g3[at])].append(int(i3[at]))
        return tuple(tuple(groups) for groups in found)

    def encode(given: Plan) -> Floats | None:
        values = np.zeros(m.variable_count)
        ordered: list[tuple[int, ...]] = []
        for queue, groups in enumerate(given):
            model, k = int(problem.loaded_model[queue]), 0
            stays: list[list[int]] = [[] for _ in range(visits)]
            if model >= 0:
                values[holds[queue, 0, model]] = 1.0
            for i in groups:
                own = int(problem.group_model[i])
                if own != model:
                    k += 1
                    if k >= visits:
                        return None
                    values[swap[queue, k]] = table[queue, model, own]
                    values[holds[queue, k, own]] = 1.0
                    model = own
                stays[k].append(i)
            time = float(problem.busy_s[queue])
            for at, stay in enumerate(stays):
                time += float(values[swap[queue, at]])
                values[begin[queue, at]] = time
                stay.sort(key=lambda i: int(rank[i]))
                for i in stay:
                    values[x[place[queue, i, at]]] = 1.0
                    time += float(problem.duration_s[i, problem.queue_class[queue]])
            ordered.append(tuple(i for stay in stays for i in stay))
        ends.fill(values, tuple(ordered))
        return values

    return m.build(exact=False, decode=decode, encode=encode)


FORMULATIONS: dict[str, Callable[[Problem, Plan], Milp]] = {
    "slot": slot,
    "arc": arc,
    "block": block,
}
