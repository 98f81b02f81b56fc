"""Columns: whole sequences of single queues, from which plans are put together by set partitioning.

A plan picks one column a queue so that every group is in exactly one. Columns come from the plans that the
search passes through and from the sequences that the bound prices; for small problems `all_routes`
lists every column that a better plan could use, so that the best choice among them is proven optimal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from qlm_core.planning.bound import Pricing, PricingClass
from qlm_core.planning.problem import LATE_TOLERANCE_S, Floats, Ints, Problem
from qlm_core.planning.result import Termination
from qlm_core.planning.score import Plan, late_probability

_MOST_ROUTES = 60_000
_MOST_NODES = 3_000_000


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

    In matrix form, column j has ones in the rows `rows[starts[j] : starts[j + 1]]`; rows 0 .. N - 1 are
    groups (= 1), rows N .. N + G - 1 queues (<= 1).
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


def partition_of(problem: Problem, columns: Iterable[Column]) -> Partition:
    """The set-partitioning problem over some columns."""
    kept = tuple(column for column in columns if column.groups)
    lengths = [len(column.groups) + 1 for column in kept]
    rows = [row for column in kept for row in (*column.groups, problem.groups + column.queue)]
    return Partition(
        groups=problem.groups,
        queues=problem.queues,
        columns=kept,
        cost=np.array([column_cost(problem, column) for column in kept]),
        starts=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        rows=np.array(rows, np.int64),
    )


def all_routes(
    problem: Problem, pricing: Pricing, prices: Floats, upper: float
) -> list[Column] | None:
    """Every column that a plan better than `upper` can use, or None if they are too many.

    A plan costs the sum of the prices plus each queue's cost less prices, and no queue does better than
    its value; so no queue of a better plan is more than upper - bound above its value. Of sequences of the
    same groups only the cheapest is kept.
    """
    priced = pricing.price(prices)
    slack = upper - priced.bound + 1e-6 * max(1.0, abs(upper))
    if slack < 0:
        return []
    columns: list[Column] = []
    routes = np.zeros(20 * _MOST_ROUTES, np.int64)
    lengths = np.zeros(_MOST_ROUTES, np.int64)
    for each in pricing.classes:
        for queue in each.queues.tolist():
            limit = float(priced.queue_values[queue]) + slack
            count = _routes_of(problem, pricing, each, queue, prices, limit, routes, lengths)
            if count < 0 or len(columns) > _MOST_ROUTES:
                return None
            columns += _cheapest(problem, queue, routes, lengths[:count])
    return columns


def _routes_of(
    problem: Problem,
    pricing: Pricing,
    each: PricingClass,
    queue: int,
    prices: Floats,
    limit: float,
    routes: Ints,
    lengths: Ints,
) -> int:
    number = int(problem.queue_class[queue])
    groups = problem.groups
    duration = problem.duration_s[:, number]
    tick = pricing.tick_s
    fits = np.isfinite(duration)
    ticks = np.where(fits, np.floor(np.where(fits, duration, 0.0) / tick + 1e-6), -1)
    weight = problem.group_total_weight
    moved = (problem.home >= 0) & (problem.home != queue)
    swap_ticks = np.floor(problem.swap_s[number] / tick + 1e-6).astype(np.int64)
    loaded = int(problem.loaded_model[queue])
    depth = groups + 2
    found = pricing.kernels.enumerate_routes(
        int(pricing.busy[queue]), loaded if loaded >= 0 else problem.models, limit,
        pricing.horizon, tick, problem.models, ticks.astype(np.int64), problem.group_model,
        prices - np.where(moved, problem.move_cost, 0.0), problem.due_s - problem.tail_s[:, number],
        problem.alpha * weight, problem.beta * weight, problem.eps * weight, problem.ramp_s,
        swap_ticks.ravel(), (problem.kappa * problem.swap_s[number]).ravel(), each.value,
        pricing.beyond(each, prices), np.zeros(groups, np.int64), np.zeros(depth, np.int64),
        np.zeros(depth, np.int64), np.zeros(depth), np.zeros(depth, np.int64), _MOST_NODES,
        routes, lengths,
    )  # fmt: skip
    return int(found)


def _cheapest(problem: Problem, queue: int, routes: Ints, lengths: Ints) -> list[Column]:
    best: dict[tuple[int, ...], tuple[float, Column]] = {}
    flat = routes[: int(lengths.sum())].tolist()
    at = 0
    for length in lengths.tolist():
        column = Column(queue, tuple(flat[at : at + length]))
        at += length
        cost = column_cost(problem, column)
        members = tuple(sorted(column.groups))
        if members not in best or cost < best[members][0]:
            best[members] = (cost, column)
    return [column for _, column in best.values()]
