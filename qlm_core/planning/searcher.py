"""A problem and a plan laid out for the kernels, interpreted or compiled."""

from __future__ import annotations

import math
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qlm_core.planning import annealing_kernels, kernels, ruin_kernels
from qlm_core.planning.problem import Problem
from qlm_core.planning.score import Plan

_SPREAD = 16
"""Rows are wide enough for queues this many times as long as the average."""

_REGRET_CELLS = 6000
"""Regret insertion is worth its time up to so many pairs of group and queue."""


_INTERPRETED = SimpleNamespace(
    reset=kernels.reset,
    return_to_best=kernels.return_to_best,
    insert_in_order=kernels.insert_in_order,
    insert_by_regret=kernels.insert_by_regret,
    anneal=annealing_kernels.anneal,
    ruin_and_recreate=ruin_kernels.ruin_and_recreate,
)


_ALL_QUEUES_CELLS = 400_000
"""Up to so many pairs of group and queue, every group of a first plan looks at every queue."""

_SAMPLE = 20
"""Beyond that, at so many drawn at random."""


class Searcher:
    """Owns the arrays of one search. The problem must be free of pins.

    With `compiled` kernels the arrays are NumPy's, otherwise lists; results are the same.
    """

    def __init__(self, problem: Problem, compiled: ModuleType | None, seed: int):
        self.problem = problem
        self.kernels: Any = compiled or _INTERPRETED
        self._as_lists = compiled is None
        self._seed = seed
        self.w: Any = []
        self.x: Any = []
        self._lay_out(self._row_length(0))

    def _store(self, array: NDArray[Any]) -> Any:
        return array.tolist() if self._as_lists else array

    def _row_length(self, longest: int) -> int:
        groups, queues = self.problem.groups, max(1, self.problem.queues)
        return min(groups, max(64, _SPREAD * groups // queues, 2 * longest)) + 5

    def _lay_out(self, row: int) -> None:
        """Fill both arrays with the problem and room for a plan."""
        wholes, reals = _tables(self.problem, row)
        w = [0] * kernels.W_HEAD
        w[kernels.N], w[kernels.G], w[kernels.M] = _sizes(self.problem)
        w[kernels.MOVING] = int((reals[kernels.MOVE] > 0).any())
        w[kernels.ROW] = row
        # Any seed gives a well-mixed, non-zero 32-bit word (multiplication by Knuth's constant).
        w[kernels.RNG] = (self._seed * 2654435761 + 0x9E3779B9) % 0xFFFFFFFF + 1
        for tables, first in ((wholes, kernels.W_HEAD), (reals, kernels.X_HEAD)):
            at = first
            for slot, table in tables.items():
                w[slot] = at
                at += table.size
        head = np.array([self.problem.kappa, 0.0, 0.0])
        self.w = self._store(
            np.concatenate([np.array(w), *(table.ravel() for table in wholes.values())])
        )
        self.x = self._store(np.concatenate([head, *(table.ravel() for table in reals.values())]))

    def load(self, plan: Plan) -> float:
        """Make `plan` the current and the best one; returns its cost."""
        longest = max((len(queue) for queue in plan), default=0)
        if longest + 4 > int(self.w[kernels.ROW]):
            word = self.w[kernels.RNG]
            self._lay_out(self._row_length(longest))
            self.w[kernels.RNG] = word
        row, groups, length = (
            int(self.w[slot]) for slot in (kernels.ROW, kernels.GROUPS, kernels.LENGTH)
        )
        for number, queue in enumerate(plan):
            self.w[length + number] = len(queue)
            at = groups + number * row
            self.w[at : at + len(queue)] = queue
        self.kernels.reset(self.x, self.w)
        return self.best_cost

    def construct(self) -> bool:
        """Build a first plan by insertion; False if a queue would outgrow its row."""
        groups, queues = self.problem.groups, self.problem.queues
        order = np.lexsort((np.arange(groups), self.problem.due_s))
        failed = self._insert(order, by_regret=False)
        if failed:
            return False
        if groups * queues <= _REGRET_CELLS:
            by_due, cost = self.best_plan(), self.best_cost
            if self._insert(order, by_regret=True) or self.best_cost > cost:
                self.load(by_due)
        return True

    def anneal(self, moves: int, hot: float, cooling: float) -> None:
        """So many moves of annealing; the temperature is multiplied by `cooling` at each."""
        self.kernels.anneal(self.x, self.w, moves, hot, cooling)

    def ruin(self, rounds: int, hot: float, cooling: float) -> None:
        """So many rounds of ruin-and-recreate, cooled the same way."""
        self.kernels.ruin_and_recreate(self.x, self.w, rounds, hot, cooling, 3, 16)

    def resume(self) -> None:
        """Go on from the best plan."""
        self.kernels.return_to_best(self.x, self.w)

    def _insert(self, order: NDArray[np.int64], *, by_regret: bool) -> int:
        length = int(self.w[kernels.LENGTH])
        for queue in range(self.problem.queues):
            self.w[length + queue] = 0
        self.kernels.reset(self.x, self.w)
        todo = self._store(order)
        cells = self.problem.groups * self.problem.queues
        if by_regret:
            extra = self._store(np.zeros(cells))
            places = self._store(np.zeros(cells, np.int64))
            failed = self.kernels.insert_by_regret(self.x, self.w, extra, places, todo)
        else:
            sample = _SAMPLE if cells > _ALL_QUEUES_CELLS else 0
            failed = self.kernels.insert_in_order(self.x, self.w, todo, sample)
        self.kernels.reset(self.x, self.w)
        return int(failed)

    @property
    def best_cost(self) -> float:
        """Cost of the best plan, as the kernels add it up."""
        return float(self.x[kernels.BEST])

    def best_plan(self) -> Plan:
        """The best plan so far."""
        row, groups, length = (
            int(self.w[slot]) for slot in (kernels.ROW, kernels.BEST_GROUPS, kernels.BEST_LENGTH)
        )
        queues = self.problem.queues
        cells = self.w[groups : groups + queues * row]
        counts = self.w[length : length + queues]
        if not self._as_lists:
            cells, counts = cells.tolist(), counts.tolist()
        return tuple(
            tuple(cells[queue * row : queue * row + count]) for queue, count in enumerate(counts)
        )


def _sizes(problem: Problem) -> tuple[int, int, int]:
    return problem.groups, problem.queues, problem.models


def _tables(
    problem: Problem, row: int
) -> tuple[dict[int, NDArray[np.int64]], dict[int, NDArray[np.float64]]]:
    """The tables of whole numbers and of reals, each by the slot of its offset."""
    groups, queues, models = _sizes(problem)
    weight = problem.group_total_weight
    pays = (problem.home >= 0) & (problem.move_cost > 0)
    by_model = np.argsort(problem.group_model, kind="stable")
    wholes: dict[int, NDArray[np.int64]] = {
        kernels.HOME: np.where(pays, problem.home, -1),
        kernels.MODEL: problem.group_model,
        kernels.LOADED: np.where(problem.loaded_model < 0, models, problem.loaded_model),
        kernels.OF_CLASS: problem.queue_class,
        kernels.BY_MODEL: by_model,
        kernels.MODEL_FROM: np.searchsorted(problem.group_model[by_model], np.arange(models + 1)),
    }
    chill = [-math.log((step + 0.5) / kernels.CHILL_STEPS) for step in range(kernels.CHILL_STEPS)]
    reals: dict[int, NDArray[np.float64]] = {
        kernels.DURATION: np.where(
            np.isfinite(problem.duration_s), problem.duration_s, kernels.NEVER
        ).T,
        kernels.DUE: (problem.due_s[:, None] - problem.tail_s).T,
        kernels.LATE: problem.alpha * weight,
        kernels.TARDY: problem.beta * weight,
        kernels.EARLY: problem.eps * weight,
        kernels.RAMP: problem.ramp_s,
        kernels.MOVE: np.where(pays, problem.move_cost, 0.0),
        kernels.SWAP: problem.swap_s,
        kernels.BUSY: problem.busy_s,
        kernels.CHILL: np.array(chill),
    }
    matrix, each_queue, each_group = queues * row, queues, groups
    for slot, size in (
        (kernels.GROUPS, matrix),
        (kernels.LENGTH, each_queue),
        (kernels.QUEUE, each_group),
        (kernels.PLACE, each_group),
        (kernels.KNOWN, each_group),
        (kernels.BEST_GROUPS, matrix),
        (kernels.BEST_LENGTH, each_queue),
        (kernels.TOUCHED, each_queue),
        (kernels.TOUCHED_LIST, each_queue),
        (kernels.REMOVED, each_group),
        (kernels.SAVED_GROUPS, matrix),
        (kernels.SAVED_LENGTH, each_queue),
        (kernels.CANDIDATES, max(each_queue, 64)),
    ):
        wholes[slot] = np.zeros(size, np.int64)
    for slot, size in (
        (kernels.END, matrix),
        (kernels.TOTAL, matrix),
        (kernels.SLOPE, matrix),
        (kernels.COST, each_queue),
        (kernels.GAIN, each_group),
        (kernels.KEY, each_group),
        (kernels.SAVED_COST, each_queue),
    ):
        reals[slot] = np.zeros(size)
    return wholes, reals
