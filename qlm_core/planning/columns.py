"""Columns: whole sequences of single queues, from which plans are put together by set partitioning.

A plan picks one column a queue so that every group is in exactly one. Columns come from the plans
that the search passes through and from the sequences that the bound prices; for small problems
`all_routes` lists every column that a better plan could use, so that the best choice among them is
proven optimal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from qlm_core.planning.bound import Pricing, PricingClass
from qlm_core.planning.problem import LATE_TOLERANCE_S, Floats, Ints, Problem
from qlm_core.planning.result import Termination
from qlm_core.planning.score import Plan, late_probability

_MOST_ROUTES = 60_000
_MOST_COLUMNS = 1_900
"""More than this a MIP solver does not choose from in time."""


class Column(NamedTuple):
    """One queue's whole sequence."""

    queue: int
    groups: tuple[int, ...]


def column_cost(problem: Problem, column: Column) -> float:
    """What a queue costs if it runs this sequence (exactly; the sum over a plan is its objective)."""
    queue, groups = column
    if not groups:
        return 0.0
    order = np.array(groups, np.int64)
    number = int(problem.queue_class[queue])
    model = problem.group_model[order]
    before = np.concatenate([problem.loaded_model[queue : queue + 1], model[:-1]])
    swap = problem.swap_s[number, before, model]
    end = problem.busy_s[queue] + np.cumsum(swap + problem.duration_s[order, number])
    over = end + problem.tail_s[order, number] - problem.due_s[order]
    weight = problem.group_total_weight[order]
    cost = weight * (
        problem.alpha * late_probability(over, problem.ramp_s[order])
        + problem.beta * np.where(over > LATE_TOLERANCE_S, over, 0.0)
        + problem.eps * end
    )
    home = problem.home[order]
    moved = np.where((home >= 0) & (home != queue), problem.move_cost[order], 0.0)
    return float(cost.sum() + moved.sum() + problem.kappa * swap.sum())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Partition:
    """Choose columns: minimise cost, every group in exactly one, at most one a queue.

    In matrix form, column j has ones in the rows `rows[starts[j] : starts[j + 1]]`; rows 0 .. N - 1
    are groups (= 1), rows N .. N + G - 1 queues (<= 1).
    """

    groups: int
    queues: int
    columns: tuple[Column, ...]
    cost: Floats
    starts: Ints
    rows: Ints

    def plan_of(self, chosen: Iterable[int]) -> Plan:
        """The plan that a choice of columns makes."""
        queues: list[tuple[int, ...]] = [()] * self.queues
        for number in chosen:
            queues[self.columns[number].queue] = self.columns[number].groups
        return tuple(queues)

    def choice_of(self, plan: Plan) -> NDArray[np.float64] | None:
        """The 0/1 vector of a plan all of whose sequences are columns, or None."""
        number = {column: j for j, column in enumerate(self.columns)}
        vector = np.zeros(len(self.columns))
        for queue, groups in enumerate(plan):
            if groups:
                at = number.get(Column(queue, groups))
                if at is None:
                    return None
                vector[at] = 1.0
        return vector


@dataclass(frozen=True, slots=True, kw_only=True)
class Picked:
    """A partition solver's answer."""

    plan: Plan | None
    termination: Termination
    bound: float | None
    detail: str = ""


PartitionSolver = Callable[[Partition, float, Plan | None], Picked]
"""(partition, seconds, a plan to start from) to a choice."""


def partition_of(problem: Problem, columns: Mapping[Column, float | None]) -> Partition:
    """The set-partitioning problem over some columns and, where known, their costs."""
    kept = tuple(column for column in columns if column.groups)
    costs = [columns[column] for column in kept]
    lengths = [len(column.groups) + 1 for column in kept]
    rows = [row for column in kept for row in (*column.groups, problem.groups + column.queue)]
    return Partition(
        groups=problem.groups,
        queues=problem.queues,
        columns=kept,
        cost=np.array(
            [
                column_cost(problem, column) if cost is None else cost
                for column, cost in zip(kept, costs, strict=True)
            ]
        ),
        starts=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        rows=np.array(rows, np.int64),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Room:
    """Where the enumeration writes its routes."""

    routes: Ints
    lengths: Ints
    costs: Floats


def all_routes(
    problem: Problem, pricing: Pricing, prices: Floats, upper: float, most_steps: int
) -> dict[Column, float] | None:
    """Every column that a plan better than `upper` can use, with its cost; None if they are too
    many, or take more than `most_steps` to find.

    A plan costs the sum of the prices plus each queue's cost less prices, and no queue does better
    than its value; so no queue of a better plan is more than upper - bound above its value. Of
    sequences of the same groups only the cheapest is kept.
    """
    priced = pricing.price(prices)
    slack = upper - priced.bound + 1e-6 * max(1.0, abs(upper))
    if slack < 0:
        return {}
    columns: dict[Column, float] = {}
    room = _Room(
        routes=np.zeros(20 * _MOST_ROUTES, np.int64),
        lengths=np.zeros(_MOST_ROUTES, np.int64),
        costs=np.zeros(_MOST_ROUTES),
    )
    for each in pricing.classes:
        for queue in each.queues.tolist():
            limit = float(priced.queue_values[queue]) + slack
            count = _routes_of(problem, pricing, each, queue, prices, limit, room, most_steps)
            if count < 0 or len(columns) > _MOST_COLUMNS:
                return None
            columns.update(_cheapest(problem.groups, queue, room, count))
    return columns


def _routes_of(
    problem: Problem,
    pricing: Pricing,
    each: PricingClass,
    queue: int,
    prices: Floats,
    limit: float,
    room: _Room,
    most_steps: int,
) -> int:
    number = int(problem.queue_class[queue])
    groups = problem.groups
    fits = np.isfinite(problem.duration_s[:, number])
    duration = np.where(fits, problem.duration_s[:, number], 0.0)
    tick = pricing.tick_s
    ticks = np.where(fits, np.floor(duration / tick + 1e-6), -1).astype(np.int64)
    weight = problem.group_total_weight
    moved = (problem.home >= 0) & (problem.home != queue)
    swap_s = problem.swap_s[number].ravel()
    swap_ticks = np.floor(swap_s / tick + 1e-6).astype(np.int64)
    loaded = int(problem.loaded_model[queue])
    deep = groups + 2
    found = pricing.kernels.enumerate_routes(
        int(pricing.busy[queue]), loaded if loaded >= 0 else problem.models, limit,
        pricing.horizon, tick, problem.models, ticks, problem.group_model, prices,
        np.where(moved, problem.move_cost, 0.0), problem.due_s - problem.tail_s[:, number],
        problem.alpha * weight, problem.beta * weight, problem.eps * weight, problem.ramp_s,
        swap_ticks, problem.kappa * swap_s, each.flag_of, each.states, each.value,
        pricing.beyond(each, prices), np.zeros(groups, np.int64), np.zeros(deep, np.int64),
        np.zeros(deep, np.int64), np.zeros(deep, np.int64), np.zeros(deep),
        np.zeros(deep, np.int64), float(problem.busy_s[queue]), duration, swap_s,
        np.zeros(deep), np.zeros(deep), most_steps, room.routes, room.lengths, room.costs,
    )  # fmt: skip
    return int(found)


def _cheapest(groups: int, queue: int, room: _Room, count: int) -> dict[Column, float]:
    """The cheapest route for each set of groups."""
    lengths = room.lengths[:count]
    costs = room.costs[:count]
    ends = np.cumsum(lengths)
    members = np.zeros((count, groups), np.bool_)
    flat = room.routes[: int(lengths.sum())]
    members[np.repeat(np.arange(count), lengths), flat] = True
    packed = np.packbits(members, axis=1)
    keys = packed.view([("", packed.dtype)] * packed.shape[1]).ravel()
    order = np.lexsort((np.arange(count), costs))
    _, first = np.unique(keys[order], return_index=True)
    columns: dict[Column, float] = {}
    for route in order[first].tolist():
        end = int(ends[route])
        sequence = tuple(flat[end - int(lengths[route]) : end].tolist())
        columns[Column(queue, sequence)] = float(costs[route])
    return columns
