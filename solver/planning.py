"""The planner as the configuration wants it: which backend, how long, and what became of each solve.

Every step down from a backend to the next (no licence, too large, time-out, crash) is counted here, and logged when
it is for another reason than the one before.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from qlm_core.config import SolverConfig
from qlm_core.planning import Plan, PlanResult, Problem

if TYPE_CHECKING:
    from solver.pool import Pool

log = logging.getLogger("qlm.solver")


class PlanningCounts:
    """What became of all solves so far."""

    __slots__ = ("_reasons", "seconds", "solves", "step_downs")

    def __init__(self) -> None:
        self.solves: Counter[tuple[str, str]] = Counter()
        self.step_downs: Counter[tuple[str, str]] = Counter()
        self.seconds: dict[str, float] = {}
        self._reasons: dict[str, str] = {}

    def note(self, result: PlanResult) -> None:
        """Count a finished solve and log what is new about its steps down."""
        status = result.termination.value
        self.solves[result.backend, status] += 1
        spent_s = self.seconds.get(result.backend, 0.0)
        self.seconds[result.backend] = spent_s + result.wall_s
        for step in result.step_downs:
            self.step_downs[step.backend, step.termination.value] += 1
            news = self._reasons.get(step.backend) != step.reason
            self._reasons[step.backend] = step.reason
            log.log(
                logging.WARNING if news else logging.DEBUG,
                "backend stepped down",
                extra={
                    "backend": step.backend,
                    "status": step.termination.value,
                    "reason": step.reason,
                },
            )
        log.debug(
            "solved",
            extra={
                "backend": result.backend,
                "status": status,
                "objective": result.objective,
                "wall_s": result.wall_s,
            },
        )


class ConfiguredPlanner:
    """A pool of backend processes, asked the way the configuration says."""

    def __init__(self, config: SolverConfig, pool: Pool):
        self._config = config
        self._pool = pool
        self.counts = PlanningCounts()

    async def solve(
        self,
        problem: Problem,
        *,
        warm: Plan,
        prove: bool,
        duals: Sequence[float] = (),
        on_improvement: Callable[[Plan, float], None],
    ) -> PlanResult:
        """The best plan within the configured budget, and with `prove` a bound on how good one can be.

        `duals` are prices to start that bound from, NaN where there is none. Never raises for a backend's failure.
        """
        result = await self._pool.solve(
            problem,
            backend=self._config.backend,
            formulation=self._config.formulation,
            budget_s=self._config.budget_s,
            background_budget_s=self._config.background_budget_s if prove else 0.0,
            warm=warm,
            seed=self._config.seed,
            duals=duals if prove else (),
            on_improvement=on_improvement,
        )
        self.counts.note(result)
        return result
