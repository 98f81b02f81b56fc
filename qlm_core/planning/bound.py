"""Proven lower bounds on the objective of every plan, by Lagrangian relaxation.

Give each group a price for being served. For any prices, the sum of the prices plus, for each
queue, the cheapest (cost less prices) sequence it could run on its own, is a bound: no plan costs
less. One dynamic program per class of queues finds all of those sequences (`Pricing`); `ascend`
looks for the prices that make the bound tight. Prices carry over from one problem to the next.
Sequences may run a group twice, which costs some tightness; those that do so most can be remembered
(a state-space relaxation, refined as in Righini and Salani, 2008).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from qlm_core.planning import pricing_kernels
from qlm_core.planning.problem import LATE_TOLERANCE_S, NOTHING_LOADED, Floats, Ints, Problem
from qlm_core.planning.score import Plan, Score, late_probability

TICK_S = 0.1
MAX_TICKS = 6000
_ROUND = 1e-6
_WORTHWHILE = 0.05
"""An ascent that closes less than this share of the gap between two reviews has stalled."""

_MOST_CELLS = 4_000_000
"""Size of the tables up to which groups are remembered."""

_MOVE_CELLS = 6000
"""Queues that are somebody's home are priced one by one up to so many pairs of group and queue."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Priced:
    """The answer to a set of prices."""

    bound: float
    queue_values: Floats
    """[G] cheapest cost less prices of any sequence of each queue; <= 0."""
    served: Floats
    """[N] how often the cheapest sequences, together, serve each group."""
    paths: tuple[Ints, ...]
    """The cheapest sequence of each queue; a group may repeat."""


class PricingClass:
    """Queues that share durations, swaps and move costs, hence one dynamic program."""

    def __init__(self, problem: Problem, number: int, queues: Ints, tick_s: float, horizon: int):
        models = problem.models
        self.queues = queues
        self.jobs = np.flatnonzero(np.isfinite(problem.duration_s[:, number]))
        duration = problem.duration_s[self.jobs, number]
        self.ticks = np.floor(duration / tick_s + _ROUND).astype(np.int64)
        self.ticks_of = np.zeros(problem.groups, np.int64)
        self.ticks_of[self.jobs] = self.ticks
        self.model = problem.group_model[self.jobs]
        self.due = (problem.due_s - problem.tail_s[:, number])[self.jobs]
        weight = problem.group_total_weight[self.jobs]
        self.late = problem.alpha * weight
        self.tardy = problem.beta * weight
        self.early = problem.eps * weight
        self.ramp = problem.ramp_s[self.jobs]
        self.swap_ticks = np.floor(problem.swap_s[number] / tick_s + _ROUND).astype(np.int64)
        self.swap_cost = problem.kappa * problem.swap_s[number]
        home = problem.home[self.jobs]
        at_home = (home < 0) | np.isin(home, queues)
        self.move = np.where(at_home, 0.0, problem.move_cost[self.jobs])
        self.model_from = np.searchsorted(np.sort(self.model), np.arange(models + 1))
        swap = problem.swap_s[number][:models]
        through = (swap[:, :, None] + swap[None, :, :]).min(axis=1)
        self.prunable = bool((swap <= through + 1e-9).all())
        end = horizon * tick_s
        over = end - self.due
        step = np.where(
            self.ramp > 0, np.clip(over / np.maximum(self.ramp, 1e-300) + 0.5, 0, 1), over > 0
        )
        self.cost_at_horizon = (
            self.early * end + self.tardy * np.maximum(over, 0) + self.late * step + self.move
        )
        self.flag_of = np.zeros(problem.groups, np.int64)
        self.states = 1
        self._cells = models * horizon
        self._allocate()

    def remember(self, groups: Ints) -> None:
        """Let each of these groups run at most once in a sequence; every one doubles the tables."""
        mine = groups[np.isin(groups, self.jobs)]
        self.flag_of[:] = 0
        self.flag_of[mine] = 1 << np.arange(len(mine))
        self.states = 1 << len(mine)
        self._allocate()

    def _allocate(self) -> None:
        size = self._cells * self.states
        self.value, self.second = np.zeros(size), np.zeros(size)
        self.action, self.other = np.zeros(size, np.int32), np.zeros(size, np.int32)


class Pricing:
    """Bounds from prices, for one problem without pins.

    `reach_s` is the time up to which queues are followed exactly; the makespan of a good plan and
    some more.
    """

    def __init__(self, problem: Problem, compiled: ModuleType | None, reach_s: float):
        self.problem = problem
        self.kernels: Any = compiled or pricing_kernels
        self.tick_s = TICK_S * max(1, math.ceil(reach_s / (TICK_S * MAX_TICKS)))
        self.horizon = max(2, math.ceil(reach_s / self.tick_s) + 1)
        self.busy = np.floor(problem.busy_s / self.tick_s + _ROUND).astype(np.int64)
        self.classes = [
            PricingClass(problem, number, queues, self.tick_s, self.horizon)
            for number, queues in _queue_sets(problem)
        ]
        self._path = np.zeros(4 * problem.groups + 64, np.int64)
        self.calls = 0

    def price(self, prices: Floats) -> Priced:
        """The bound under these prices, and the sequences that attain it."""
        problem = self.problem
        values = np.zeros(problem.queues)
        paths: list[Ints] = [np.zeros(0, np.int64)] * problem.queues
        self.calls += 1
        for each in self.classes:
            if each.jobs.size:
                self._solve_class(each, prices, values, paths)
        served = np.zeros(problem.groups)
        if paths:
            served += np.bincount(np.concatenate(paths), minlength=problem.groups)
        bound = float(prices.sum() + values.sum())
        return Priced(bound=bound, queue_values=values, served=served, paths=tuple(paths))

    def _solve_class(
        self, each: PricingClass, prices: Floats, values: Floats, paths: list[Ints]
    ) -> None:
        models = self.problem.models
        price = prices[each.jobs] - each.move
        starts = np.full(len(price), self.horizon, np.int64)
        if each.prunable:
            self.kernels.latest_starts(
                price, each.ticks, each.due, each.late, each.tardy, each.early, each.ramp,
                self.horizon, self.tick_s, starts,
            )  # fmt: skip
        order = np.lexsort((-starts, each.model))
        beyond = self.beyond(each, prices)
        sorted_groups = (
            self.horizon, self.tick_s, models, each.model_from, each.jobs[order], starts[order],
            each.ticks[order], price[order], each.due[order], each.late[order], each.tardy[order],
            each.early[order], each.ramp[order],
        )  # fmt: skip
        memory = () if each.states == 1 else (each.flag_of[each.jobs[order]], each.states)
        backward = self.kernels.backward_remembering if memory else self.kernels.backward
        backward(
            *sorted_groups, *memory, each.swap_ticks.ravel(), each.swap_cost.ravel(),
            beyond, each.value, each.second, each.action, each.other,
        )  # fmt: skip
        for queue in each.queues.tolist():
            tick, model, value = self._entry(each, queue, beyond)
            values[queue] = value
            if model >= 0 and tick < self.horizon:
                end = self.kernels.follow(
                    tick, model, self.horizon, models, each.ticks_of,
                    each.flag_of, each.states, each.swap_ticks.ravel(), each.action, each.other, self._path, 0,
                )  # fmt: skip
                paths[queue] = self._path[:end].copy()

    def remember(self, groups: Ints) -> bool:
        """From now on, let each of these run at most once in a sequence, which lifts the bound.

        Every one doubles the time and the tables; False if that would be too much.
        """
        cells = max(each.value.size // each.states for each in self.classes)
        if cells << len(groups) > _MOST_CELLS:
            return False
        for each in self.classes:
            each.remember(groups)
        return True

    def beyond(self, each: PricingClass, prices: Floats) -> float:
        """A bound on what a queue can still gain after the horizon."""
        return float(np.minimum(0.0, each.cost_at_horizon - prices[each.jobs]).sum())

    def _entry(self, each: PricingClass, queue: int, beyond: float) -> tuple[int, int, float]:
        """Where a queue enters the tables: (tick, model, value); model -1 if it should do nothing."""
        tick = int(self.busy[queue])
        model = int(self.problem.loaded_model[queue])
        if model != NOTHING_LOADED:
            if tick >= self.horizon:
                return tick, -1, beyond
            return tick, model, float(each.value[(model * self.horizon + tick) * each.states])
        best = (tick, -1, 0.0)
        for first in range(self.problem.models):
            at = tick + int(each.swap_ticks[NOTHING_LOADED, first])
            value = float(each.swap_cost[NOTHING_LOADED, first])
            ahead = (first * self.horizon + at) * each.states
            value += float(each.value[ahead]) if at < self.horizon else beyond
            if value < best[2]:
                best = (at, first, value)
        return best


def _queue_sets(problem: Problem) -> list[tuple[int, Ints]]:
    """(class, queues) to price together. Apart where queues are homes that groups pay to leave."""
    paying = problem.home[(problem.home >= 0) & (problem.move_cost > 0)]
    apart = np.zeros(problem.queues, np.bool_)
    homes = np.unique(paying)
    if len(homes) * problem.groups <= _MOVE_CELLS:
        apart[homes] = True
    sets: list[tuple[int, Ints]] = []
    for number in range(problem.classes):
        mine = problem.queue_class == number
        sets += [(number, np.array([queue])) for queue in np.flatnonzero(mine & apart).tolist()]
        together = np.flatnonzero(mine & ~apart)
        if together.size:
            sets.append((number, together))
    return sets


def unhindered(problem: Problem) -> float:
    """A bound at the price of a sum: every group first on its best queue, its model loaded.

    It is tight while the fleet has room, when searching for a better plan would be in vain.
    """
    if problem.groups == 0:
        return 0.0
    free_s = np.full(problem.classes, math.inf)
    np.minimum.at(free_s, problem.queue_class, problem.busy_s)
    away = _cost(problem, free_s + problem.duration_s, problem.tail_s).min(axis=1)
    housed = problem.home >= 0
    if not housed.any():
        return float(away.sum())
    home, group = np.where(housed, problem.home, 0), np.arange(problem.groups)
    number = problem.queue_class[home]
    end = problem.busy_s[home] + problem.duration_s[group, number]
    stay = _cost(problem, end[:, None], problem.tail_s[group, number][:, None])[:, 0]
    moved = np.minimum(away + problem.move_cost, stay)
    return float(np.where(housed, moved, away).sum())


def _cost(problem: Problem, end_s: Floats, tail_s: Floats) -> Floats:
    """[N, K] what each group pays for ending at each of K instants; inf where it cannot."""
    possible = np.isfinite(end_s)
    end_s = np.where(possible, end_s, 0.0)
    lateness = end_s + tail_s - problem.due_s[:, None]
    probability = late_probability(lateness, problem.ramp_s[:, None])
    tardiness = np.where(lateness > LATE_TOLERANCE_S, lateness, 0.0)
    cost = problem.alpha * probability + problem.beta * tardiness + problem.eps * end_s
    return np.where(possible, problem.group_total_weight[:, None] * cost, math.inf)


def reach_of(problem: Problem, score: Score) -> float:
    """How far to follow queues, given a good plan."""
    finite = problem.duration_s[np.isfinite(problem.duration_s)]
    longest = float(finite.max()) if finite.size else 0.0
    makespan = max(float(score.end_s.max(initial=0.0)), float(problem.busy_s.max(initial=0.0)))
    return 1.1 * makespan + 0.5 * longest + 5.0


def removal_prices(problem: Problem, plan: Plan) -> Floats:
    """A first guess of the prices: what the plan would save without each group."""
    prices = np.zeros(problem.groups)
    weight = problem.group_total_weight.tolist()
    model, due = problem.group_model.tolist(), problem.due_s.tolist()
    ramp = problem.ramp_s.tolist()
    for queue, groups in enumerate(plan):
        number = int(problem.queue_class[queue])
        swap = problem.swap_s[number].tolist()
        duration = problem.duration_s[:, number].tolist()
        tail = problem.tail_s[:, number].tolist()

        def cost(
            sequence: tuple[int, ...],
            queue: int = queue,
            swap: list[list[float]] = swap,
            duration: list[float] = duration,
            tail: list[float] = tail,
        ) -> float:
            end, loaded = float(problem.busy_s[queue]), int(problem.loaded_model[queue])
            total = 0.0
            for i in sequence:
                step = swap[loaded][model[i]]
                end += step + duration[i]
                loaded = model[i]
                total += problem.kappa * step + pricing_kernels.cost_at(
                    end,
                    due[i] - tail[i],
                    problem.alpha * weight[i],
                    problem.beta * weight[i],
                    problem.eps * weight[i],
                    ramp[i],
                )
            return total

        whole = cost(groups)
        for place, group in enumerate(groups):
            prices[group] = max(0.0, whole - cost(groups[:place] + groups[place + 1 :]))
    return prices


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ascent:
    """The best bound that an ascent found, and its prices."""

    bound: float
    prices: Floats
    queue_values: Floats
    mean_served: Floats
    """[N] how often the mean of the sequences serves each group; all ones for a fractional plan."""
    rounds: int


def ascend(
    pricing: Pricing,
    prices: Floats,
    upper: float,
    *,
    keep_going: Callable[[], bool],
    on_priced: Callable[[Priced], None] | None = None,
    max_rounds: int = 1_000_000,
    review_rounds: int = 0,
    after: Ascent | None = None,
) -> Ascent:
    """Raise the bound from given prices: the volume algorithm (Barahona and Anbil, 2000).

    Steps go from the best prices so far along the mean of the sequences priced, which tends to a
    fractional plan; `upper`, the objective of some plan, sets their length. Stops when `keep_going`
    says no, when the bound meets `upper`, when steps no longer help, or, given `review_rounds`, when
    so many have closed next to nothing of the gap.
    """
    state = _Volume(pricing.price(prices), prices, upper, after)
    rounds = 1
    reviewed = state.best.bound
    while not state.finished() and rounds < max_rounds and keep_going():
        if review_rounds and rounds % review_rounds == 0:
            if state.best.bound - reviewed < _WORTHWHILE * (upper - reviewed):
                break
            reviewed = state.best.bound
        trial = state.trial()
        priced = pricing.price(trial)
        rounds += 1
        if on_priced is not None:
            on_priced(priced)
        state.learn(trial, priced, rounds)
    return Ascent(
        bound=state.best.bound,
        prices=state.prices,
        queue_values=state.best.queue_values,
        mean_served=state.mean_served,
        rounds=rounds,
    )


class _Volume:
    """The state of an ascent: the best prices, and the mean of what was served on the way."""

    _AHEAD = 0.05
    """The target lies this share of `upper` above the best bound."""
    _PATIENCE = 20
    _REVIEW_ROUNDS = 100

    def __init__(self, priced: Priced, prices: Floats, upper: float, after: Ascent | None):
        self.upper = upper
        self.best = priced
        self.prices = prices.copy()
        self.mean_served = priced.served.copy() if after is None else after.mean_served
        self.step = 0.1 if after is None else 0.002
        self.most_weight = 0.1
        self.stale = 0
        self.reviewed_bound = priced.bound
        self._aim()

    def _aim(self) -> None:
        self.target = min(self.upper, self.best.bound + self._AHEAD * abs(self.upper))

    def finished(self) -> bool:
        """Whether the bound has met the plan, or steps have become too short to matter."""
        met = self.upper - self.best.bound <= 1e-7 * max(1.0, abs(self.upper))
        slack = 1.0 - self.mean_served
        return met or self.step < 1e-6 or float(slack @ slack) < 1e-12

    def trial(self) -> Floats:
        """The prices to try next."""
        slack = 1.0 - self.mean_served
        self._direction = np.where((self.prices <= 0.0) & (slack < 0.0), 0.0, slack)
        norm = float(self._direction @ self._direction)
        ahead = max(self.target - self.best.bound, 1e-4 * abs(self.upper))
        step = self.step * ahead / max(norm, 1e-12)
        return np.maximum(0.0, self.prices + step * self._direction)

    def learn(self, trial: Floats, priced: Priced, rounds: int) -> None:
        """Take in what the trial prices gave."""
        slack = 1.0 - priced.served
        mean_slack = 1.0 - self.mean_served
        difference = mean_slack - slack
        norm = float(difference @ difference)
        weight = self.most_weight
        if norm > 1e-12:
            best_weight = float(mean_slack @ difference) / norm
            weight = min(max(best_weight, weight / 10), weight)
        self.mean_served = weight * priced.served + (1.0 - weight) * self.mean_served
        if priced.bound > self.best.bound + 1e-9 * abs(self.best.bound):
            if float(slack @ self._direction) >= 0.0:
                self.step = min(self.step * 1.1, 2.0)
            self.best, self.prices, self.stale = priced, trial, 0
            if self.target - priced.bound < 0.5 * self._AHEAD * abs(self.upper):
                self._aim()
        else:
            self.stale += 1
            if self.stale >= self._PATIENCE:
                self.step, self.stale = self.step * 0.66, 0
        if rounds % self._REVIEW_ROUNDS == 0:
            if self.best.bound - self.reviewed_bound < 0.01 * abs(self.best.bound):
                self.most_weight = max(self.most_weight / 2, 1e-4)
            self.reviewed_bound = self.best.bound
