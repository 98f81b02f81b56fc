"""The exact planner: search for a plan, price a bound, and close the gap by set partitioning.

Three stages share the time: the search (which also collects columns), the ascent of the bound
(which adds the sequences it prices), and a choice among columns by a partition solver that the
caller passes in. If every column that a better plan could use fits in memory, the choice proves its
plan optimal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from types import ModuleType

import numpy as np

from qlm_core.planning.bound import Ascent, Priced, Pricing, ascend, reach_of, removal_prices
from qlm_core.planning.columns import Column, PartitionSolver, all_routes, partition_of
from qlm_core.planning.explain import capacity_values
from qlm_core.planning.needs import instances_needed
from qlm_core.planning.pins import Folded, fold_pins
from qlm_core.planning.problem import Floats, Problem
from qlm_core.planning.result import Limits, PlanResult, Termination
from qlm_core.planning.score import Plan, evaluate
from qlm_core.planning.search import Clock, OnImprovement, search

ENUMERATE_GROUPS = 40
"""Problems of up to so many groups are worth trying to prove optimal."""

_SEARCH_S_PER_GROUP = 0.002
"""Their search has usually ended after so long."""

_BOUND_S_MIN = 0.1
_BOUND_S_MIN_PER_GROUP = 4e-4
_PROOF_S_MIN_PER_GROUP = 0.005
"""In less time than this (the first two, or the last for a proof), it all goes to the search."""

_REMEMBERED = 8
"""Most groups that the bound remembers."""

_REVIEW_ROUNDS = 60
"""Rounds of an ascent after which it must have helped."""

_ROUTE_STEPS_PER_S = 2e7
_ROUTES_SHARE = 0.15
"""Listing the columns that matter takes at most this share of the time that is left."""

_FEW_COLUMNS = 600
"""A choice among so few columns is worth all the time that is left."""

_NEEDS_SHARE = 0.15
"""The sizes of fleets that would do are looked for in this share of the time, on top of it."""

_CHOOSE_GROUPS = 128
"""Up to so many groups, columns of the search and the bound are worth recombining."""

_MOST_COLUMNS = 3_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Toolbox:
    """What the exact planner is given from outside."""

    clock: Clock
    kernels: ModuleType | None = None
    """Compiled search kernels, if there are any."""
    pricing: ModuleType | None = None
    """Compiled pricing kernels, if there are any."""
    partition: PartitionSolver | None = None
    on_improvement: OnImprovement | None = None
    on_bound: Callable[[float], None] | None = None
    search_share: float = field(default=0.3)
    """Share of the time that goes to the search before the first bound, on small problems less."""


def solve_exact(
    problem: Problem,
    limits: Limits,
    *,
    seed: int,
    tools: Toolbox,
    start: Plan | None = None,
    duals: Sequence[float] = (),
) -> PlanResult:
    """The best plan and the best bound within the limit; `duals` start the bound where another
    ended (NaN for groups that it did not know). Who gives some plans for a fleet again and again, and is told how many
    instances it needs.

    Needs a limit on wall time: the ascent of the bound is paced by the clock.
    """
    return _Exact(problem, limits, seed, tools).go(start, duals)


class _Exact:
    def __init__(self, problem: Problem, limits: Limits, seed: int, tools: Toolbox):
        self.begin_s = tools.clock()
        self.problem = problem
        self.limits = limits
        self.seed = seed
        self.tools = tools
        self.folded: Folded = fold_pins(problem)
        self.columns: dict[Column, None] = {}
        self.history: list[tuple[float, float]] = []
        self.best: PlanResult | None = None

    def go(self, start: Plan | None, duals: Sequence[float]) -> PlanResult:
        self.asked_again = bool(len(duals))
        wall_s = self.limits.wall_s
        hurried = wall_s < self._time_to_bound_s()
        found = self._search(wall_s if hurried else self._search_share() * wall_s, start)
        if found.lower_bound is not None or hurried:
            return self._finish(found, found.lower_bound, None)
        ascent, bound = self._prove(duals)
        if self._open(bound) and self._left_s() > 0.2:
            self._choose_columns()
        if self._open(bound) and self._left_s() > 0.01:
            self._search(self._left_s(), self._best_plan())
        return self._finish(self._best_result(), bound, ascent)

    @property
    def _small(self) -> bool:
        return self.folded.problem.groups <= ENUMERATE_GROUPS

    def _time_to_bound_s(self) -> float:
        groups = self.folded.problem.groups
        some = _BOUND_S_MIN + groups * _BOUND_S_MIN_PER_GROUP
        return min(some, groups * _PROOF_S_MIN_PER_GROUP) if self._small else some

    def _search_share(self) -> float:
        if not self._small:
            return self.tools.search_share
        enough = self.folded.problem.groups * _SEARCH_S_PER_GROUP / self.limits.wall_s
        return min(0.7, max(0.15, enough))

    def _best_result(self) -> PlanResult:
        assert self.best is not None
        return self.best

    def _best_plan(self) -> Plan:
        plan = self._best_result().plan
        assert plan is not None
        return plan

    def _left_s(self) -> float:
        return self.limits.wall_s - (self.tools.clock() - self.begin_s)

    def _open(self, bound: float) -> bool:
        objective = self._best_result().objective
        return objective - bound > 1e-7 * max(1.0, abs(objective))

    def _search(self, wall_s: float, start: Plan | None) -> PlanResult:
        result = search(
            self.problem,
            replace(self.limits, wall_s=wall_s),
            seed=self.seed,
            clock=self.tools.clock,
            start=start,
            compiled=self.tools.kernels,
            on_improvement=self._improved,
        )
        self.seed += 1
        if self.best is None or result.objective < self.best.objective:
            self.best = result
        return self.best

    def _improved(self, plan: Plan, objective: float) -> None:
        self._collect(self.folded.fold(plan))
        known = self.history[-1][1] if self.history else None
        if known is None or objective < known - 1e-9 * abs(known):
            self.history.append((self.tools.clock() - self.begin_s, objective))
            if self.tools.on_improvement is not None:
                self.tools.on_improvement(plan, objective)

    def _collect(self, plan: Plan) -> None:
        if len(self.columns) < _MOST_COLUMNS:
            for queue, groups in enumerate(plan):
                if groups:
                    self.columns[Column(queue, groups)] = None

    def _collect_paths(self, priced: Priced) -> None:
        if len(self.columns) < _MOST_COLUMNS:
            for queue, path in enumerate(priced.paths):
                groups = tuple(path.tolist())
                if groups and len(dict.fromkeys(groups)) == len(groups):
                    self.columns[Column(queue, groups)] = None

    def _prove(self, duals: Sequence[float]) -> tuple[Ascent, float]:
        """Raise the bound as far as time allows; where it stalls, remember the groups that repeat."""
        problem = self.folded.problem
        plan = self.folded.fold(self._best_plan())
        score = evaluate(problem, plan)
        self.pricing = Pricing(problem, self.tools.pricing, reach_of(problem, score))
        prices = self._first_prices(duals, plan)
        until_s = self.tools.clock() + 0.8 * max(0.0, self._left_s())
        repeats = _Repeats(problem.groups)
        collect = problem.groups <= _CHOOSE_GROUPS and self.tools.partition is not None
        bound = -math.inf

        def heard(priced: Priced) -> None:
            repeats.note(priced)
            if collect:
                self._collect_paths(priced)

        first: Ascent | None = None
        ascent: Ascent | None = None
        while True:
            ascent = ascend(
                self.pricing,
                prices,
                self._best_result().objective - self.folded.constant,
                keep_going=lambda: self.tools.clock() < until_s,
                on_priced=heard,
                review_rounds=_REVIEW_ROUNDS if repeats.remembered else 2 * _REVIEW_ROUNDS,
                after=ascent,
            )
            # Prices for a bound that remembers groups are poor ones for the next, which does not yet.
            first = first or ascent
            prices = ascent.prices
            bound = max(bound, ascent.bound + self.folded.constant)
            if self.tools.on_bound is not None:
                self.tools.on_bound(bound)
            if self._small and self._open(bound):
                bound = max(bound, self._enumerate(ascent, bound))
            if not self._open(bound) or self.tools.clock() >= until_s:
                return first, bound
            if not repeats.remember_one_more(self.pricing):
                return first, bound

    def _first_prices(self, duals: Sequence[float], plan: Plan) -> Floats:
        """Those of an earlier bound; for groups that are new since (NaN), what removing them saves."""
        prices = 0.9 * removal_prices(self.folded.problem, plan)
        if len(duals) == self.problem.groups:
            known = np.array(duals, np.float64)[self.folded.numbers]
            prices = np.where(np.isnan(known), prices, np.maximum(0.0, known))
        return prices

    def _enumerate(self, ascent: Ascent, bound: float) -> float:
        """Try to prove the best choice among all columns that matter; returns the proven bound."""
        if self.tools.partition is None:
            return bound
        upper = self._best_result().objective - self.folded.constant
        steps = int(_ROUTE_STEPS_PER_S * _ROUTES_SHARE * max(0.0, self._left_s()))
        columns = all_routes(self.folded.problem, self.pricing, ascent.prices, upper, steps)
        if columns is None:
            return bound
        plan = self.folded.fold(self._best_plan())
        known: dict[Column, float | None] = dict(columns)
        for queue, groups in enumerate(plan):
            known.setdefault(Column(queue, groups), None)
        partition = partition_of(self.folded.problem, known)
        share = 0.9 if len(partition.columns) <= _FEW_COLUMNS else 0.4
        picked = self.tools.partition(partition, max(0.001, share * self._left_s()), plan)
        if picked.plan is not None:
            self._offer(self.folded.restore(picked.plan))
        if picked.termination is Termination.OPTIMAL:
            # No column outside the list can be in a better plan: the best of the list is the best.
            return self._best_result().objective
        if picked.bound is not None:
            return min(
                max(bound, picked.bound + self.folded.constant), upper + self.folded.constant
            )
        return bound

    def _choose_columns(self) -> None:
        """Put a better plan together from the columns that search and bound have come across."""
        groups = self.folded.problem.groups
        if self.tools.partition is None or not self.columns or groups > _CHOOSE_GROUPS:
            return
        partition = partition_of(self.folded.problem, self.columns)
        plan = self.folded.fold(self._best_plan())
        picked = self.tools.partition(partition, 0.3 * self._left_s(), plan)
        if picked.plan is not None:
            self._offer(self.folded.restore(picked.plan))

    def _offer(self, plan: Plan) -> None:
        best = self._best_result()
        objective = evaluate(self.problem, plan).objective
        if objective < best.objective - 1e-9 * max(1.0, abs(best.objective)):
            self.best = replace(best, plan=plan, objective=objective)
            self._improved(plan, objective)

    def _finish(self, found: PlanResult, bound: float | None, ascent: Ascent | None) -> PlanResult:
        duals: tuple[float, ...] = ()
        values: tuple[float, ...] = ()
        capacity: tuple[float, ...] = ()
        needed: tuple[int | None, ...] = ()
        if ascent is not None:
            spread = np.zeros(self.problem.groups)
            spread[self.folded.numbers] = ascent.prices
            duals, values = tuple(spread.tolist()), tuple(ascent.queue_values.tolist())
            capacity = capacity_values(self.problem, duals, self.tools.pricing)
            if self.asked_again:
                needed = self._needed(found.plan, capacity)
        bound = -math.inf if bound is None else min(bound, found.objective)
        closed = found.objective - bound <= 1e-7 * max(1.0, abs(found.objective))
        return replace(
            found,
            lower_bound=found.objective if closed else bound if bound > -math.inf else None,
            termination=Termination.OPTIMAL if closed else Termination.LIMIT,
            wall_s=self.tools.clock() - self.begin_s,
            history=tuple(self.history),
            duals=duals,
            queue_values=values,
            capacity_values=capacity,
            needed=needed,
        )

    def _needed(self, plan: Plan | None, capacity: Sequence[float]) -> tuple[int | None, ...]:
        """How many instances it takes, looked for in some time beyond that of the plan and its bound."""
        if plan is None:
            return ()
        until_s = self.tools.clock() + _NEEDS_SHARE * self.limits.wall_s
        return instances_needed(
            self.problem,
            plan,
            capacity,
            clock=self.tools.clock,
            until_s=until_s,
            compiled=self.tools.kernels,
        )


class _Repeats:
    """How often the cheapest sequences of late have run groups more than once."""

    _FADE = 0.98

    def __init__(self, groups: int):
        self.often = np.zeros(groups)
        self.remembered: list[int] = []

    def note(self, priced: Priced) -> None:
        """Take in the sequences of one pricing."""
        self.often *= self._FADE
        for path in priced.paths:
            if path.size > 1:
                self.often += np.maximum(np.bincount(path, minlength=len(self.often)) - 1, 0)

    def remember_one_more(self, pricing: Pricing) -> bool:
        """Have the bound remember the group that repeats most; False if none does, or too many."""
        self.often[self.remembered] = 0.0
        most = int(self.often.argmax())
        if self.often[most] <= 0.0 or len(self.remembered) == _REMEMBERED:
            return False
        self.remembered.append(most)
        return pricing.remember(np.array(self.remembered))
