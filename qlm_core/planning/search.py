"""Anytime search: annealing over moves of groups between queues, and ruin-and-recreate for small
plans.

A run is a chain of cycles, each cooling from a start temperature to a small share of it and
resuming from the best plan so far. Cycles become longer and longer, so that whoever takes the plan
early finds a cooled one; none exceeds a number of moves per group beyond which a new cycle pays
more. A warm start begins cooler, so that a good plan is refined
rather than forgotten. The caller passes the clock in; under a limit on work alone the clock decides
nothing, and the same seed gives the same plan, compiled or not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

from qlm_core.planning.insertion import dispatch, greedy, repair
from qlm_core.planning.pins import Folded, fold_pins
from qlm_core.planning.problem import Problem
from qlm_core.planning.result import Limits, PlanResult, Termination
from qlm_core.planning.score import Plan, evaluate
from qlm_core.planning.searcher import Searcher

Clock = Callable[[], float]
OnImprovement = Callable[[Plan, float], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """The few numbers of the search; temperatures are shares of the mean cost of a group."""

    hot: float = 0.3
    """Start temperature of a first cycle on a plan built from nothing, given time enough."""
    hurried: float = 0.1
    """The same when there is time for no more than `hurried_moves` per group."""
    hurried_moves: int = 2_000
    reheats: tuple[float, ...] = (0.1, 0.3, 0.1, 1.0)
    """Start temperatures of later cycles, in turn: now and then one leaves the valley."""
    warm: float = 0.01
    """Start temperature on a plan that was good a moment ago."""
    cooling: float = 0.002
    """End temperature over start temperature."""
    cycle_moves: int = 60_000
    """Most moves per group in one cycle ..."""
    small_cycle_moves: int = 5_000
    """... and on problems of up to `ruin_groups`."""
    first_s: float = 0.04
    """The first cycle ends then (or after as many moves as compiled kernels make until then) ..."""
    growth: float = 4.5
    """... the second after so many times as long, and so on."""
    ruin_groups: int = 64
    """Up to so many groups, cycles alternate between annealing and ruin-and-recreate."""
    ruin_work: int = 40
    """One round of ruin-and-recreate costs about so many moves."""


_NEARLY = 1.7
"""A stage is not worth its while if the limit is so many times its end."""

_CHUNK_S = 0.004
_CHUNK_WORK = 20_000
_FIRST_RATE_PER_S = 4e6
_FIRST_RATE_INTERPRETED_PER_S = 1e5

_INSERTION_S = 1.5e-4
"""What inserting a group takes without compiled kernels."""


def search(
    problem: Problem,
    limits: Limits,
    *,
    seed: int,
    clock: Clock,
    start: Plan | None = None,
    compiled: ModuleType | None = None,
    on_improvement: OnImprovement | None = None,
    tuning: Tuning | None = None,
) -> PlanResult:
    """Improve a plan until a limit is reached.

    `start` is any earlier plan, repaired first; without one, a plan is built by insertion. Work is
    counted in moves.
    """
    run = _Run(problem, limits, seed, clock, compiled, on_improvement, tuning or Tuning())
    return run.go(start)


class _Run:
    """One search: the searcher, its clock, and what it has found."""

    def __init__(
        self,
        problem: Problem,
        limits: Limits,
        seed: int,
        clock: Clock,
        compiled: ModuleType | None,
        on_improvement: OnImprovement | None,
        tuning: Tuning,
    ):
        self.clock = clock
        self.begin_s = clock()
        self.problem = problem
        self.limits = limits
        self.tuning = tuning
        self.on_improvement = on_improvement
        self.folded: Folded = fold_pins(problem)
        self.compiled = compiled is not None
        self.searcher = Searcher(self.folded.problem, compiled, seed)
        self.rate_per_s = _FIRST_RATE_PER_S if compiled else _FIRST_RATE_INTERPRETED_PER_S
        self.work = 0
        self.told = math.inf
        self.history: list[tuple[float, float]] = []

    def go(self, start: Plan | None) -> PlanResult:
        left = self.folded.problem
        if left.groups == 0:
            return self._result()
        if start is not None:
            self.searcher.load(self.folded.fold(repair(self.problem, start)))
        else:
            self._build()
        self._tell()
        if left.groups * left.queues > 1:
            self._cycles(warm=start is not None)
        return self._result()

    def _build(self) -> None:
        """A first plan by insertion, or by less where that would take longer than there is."""
        left = self.folded.problem
        if self.compiled or self.limits.work is not None:
            if not self.searcher.construct():
                self.searcher.load(greedy(left))
            return
        self.searcher.load(dispatch(left))
        if left.groups * _INSERTION_S < self.limits.wall_s - self._elapsed():
            self._tell()
            self.searcher.load(greedy(left))

    def _cycles(self, *, warm: bool) -> None:
        tuning = self.tuning
        groups = self.folded.problem.groups
        mean_cost = self.searcher.best_cost / groups
        small = groups <= tuning.ruin_groups
        most = groups * (tuning.small_cycle_moves if small else tuning.cycle_moves)
        stage_s, reheats, cycle = tuning.first_s, 0, 0
        while True:
            while (moves := self._moves_until(stage_s)) <= 0:
                if stage_s >= self._longest_s():
                    return
                stage_s *= tuning.growth
                reheats = 0
            moves = min(moves, most)
            hurried = moves <= groups * tuning.hurried_moves
            share = tuning.warm if warm else tuning.hurried if hurried else tuning.hot
            if reheats > 0:
                share = tuning.reheats[(reheats - 1) % len(tuning.reheats)]
            if cycle > 0:
                self.searcher.resume()
            self._cycle(moves, share * mean_cost + 1e-12, ruin=small and cycle % 2 == 0)
            cycle += 1
            reheats += 1

    def _longest_s(self) -> float:
        """The limit, in seconds of compiled kernels if it is one on work."""
        if self.limits.work is not None:
            return self.limits.work / _FIRST_RATE_PER_S
        return self.limits.wall_s

    def _moves_until(self, stage_s: float) -> int:
        """Moves until a stage ends; one that ends near the limit ends there."""
        longest_s = self._longest_s()
        if stage_s * _NEARLY >= longest_s:
            stage_s = longest_s
        if self.limits.work is not None:
            late = self._elapsed() >= self.limits.wall_s
            return 0 if late else int(stage_s * _FIRST_RATE_PER_S) - self.work
        return int((stage_s - self._elapsed()) * self.rate_per_s)

    def _elapsed(self) -> float:
        return self.clock() - self.begin_s

    def _cycle(self, moves: int, hot: float, *, ruin: bool) -> None:
        """Cool once over `moves` moves, or over the time they were thought to take."""
        begin_s, begin_work = self._elapsed(), self.work
        span_s = max(1e-9, min(moves / self.rate_per_s, self.limits.wall_s - begin_s))
        timed = self.limits.work is None
        done = 0.0
        while done < 1.0:
            if timed:
                chunk_s = min(_CHUNK_S, span_s / 8, (1.0 - done) * span_s)
                chunk = max(200, int(self.rate_per_s * chunk_s))
                step = chunk / (self.rate_per_s * span_s)
            else:
                chunk = max(1, min(_CHUNK_WORK, begin_work + moves - self.work))
                step = chunk / moves
            temperature = hot * self.tuning.cooling**done
            before_s = self._elapsed()
            self._chunk(chunk, temperature, self.tuning.cooling ** (step / chunk), ruin=ruin)
            after_s = self._elapsed()
            if timed:
                self._learn_rate(chunk, after_s - before_s)
                done = (after_s - begin_s) / span_s
            else:
                done = (self.work - begin_work) / moves
            self._tell()
            if not timed and after_s >= self.limits.wall_s:
                return

    def _learn_rate(self, chunk: int, spent_s: float) -> None:
        """Short chunks say little about the rate."""
        if spent_s > 0.0:
            trust = 0.5 * min(1.0, spent_s / _CHUNK_S)
            self.rate_per_s += trust * (chunk / spent_s - self.rate_per_s)

    def _chunk(self, moves: int, temperature: float, cooling: float, *, ruin: bool) -> None:
        if ruin:
            rounds = max(1, moves // self.tuning.ruin_work)
            self.searcher.ruin(rounds, temperature, cooling**self.tuning.ruin_work)
        else:
            self.searcher.anneal(moves, temperature, cooling)
        self.work += moves

    def _tell(self) -> None:
        cost = self.searcher.best_cost
        if cost >= self.told - 1e-6:
            return
        self.told = cost
        plan = self.folded.restore(self.searcher.best_plan())
        objective = evaluate(self.problem, plan).objective
        self.history.append((self._elapsed(), objective))
        if self.on_improvement is not None:
            self.on_improvement(plan, objective)

    def _result(self) -> PlanResult:
        plan = self.folded.prefixes
        if self.folded.problem.groups:
            plan = self.folded.restore(self.searcher.best_plan())
        objective = evaluate(self.problem, plan).objective
        return PlanResult(
            plan=plan,
            objective=objective,
            lower_bound=None if self.folded.problem.groups else objective,
            termination=Termination.LIMIT if self.folded.problem.groups else Termination.OPTIMAL,
            backend="search",
            wall_s=self._elapsed(),
            work=self.work,
            history=tuple(self.history),
        )
