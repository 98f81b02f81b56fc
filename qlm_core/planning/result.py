"""What a planner answers: how it ended, how good the plan is known to be, and how it got there."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, field

from qlm_core.planning.score import Plan


class Termination(enum.StrEnum):
    """Why a planner stopped. Anything but the first two means that its answer, if any, is a fall-
    back's.
    """

    OPTIMAL = "optimal"
    LIMIT = "limit"
    INFEASIBLE = "infeasible"
    TOO_LARGE = "too_large"
    UNAVAILABLE = "unavailable"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """When to stop: after so long by the caller's clock, or after so much work.

    Work is counted in moves tried. With a limit on work the run is paced by it and repeatable, and
    the wall limit is only a last resort; without one the wall limit paces the run.
    """

    wall_s: float = math.inf
    work: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepDown:
    """One step down the ladder of backends: who could not answer, how it ended, and why."""

    backend: str
    termination: Termination
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanResult:
    """A planner's answer. The objective is always `evaluate`'s, never the backend's own."""

    plan: Plan | None
    objective: float
    lower_bound: float | None
    """A proven bound on every plan's objective, or None where there is none."""
    termination: Termination
    backend: str
    """Who made the plan."""
    wall_s: float = 0.0
    setup_s: float = 0.0
    """Model building and start-up of the backend process, apart from `wall_s`."""
    work: int = 0
    history: tuple[tuple[float, float], ...] = ()
    """(seconds, objective) at each improvement."""
    duals: tuple[float, ...] = ()
    """[N] price of each group under the bound, to start the next bound from."""
    queue_values: tuple[float, ...] = ()
    """[G] what each queue is worth under the bound (its reduced cost, <= 0)."""
    capacity_values: tuple[float, ...] = ()
    """[C] what one more instance of each class would save, by the duals."""
    needed: tuple[int | None, ...] = ()
    """[C] how many instances of each class more (fewer, if negative) keep targets; None where that is not known."""
    detail: str = ""
    step_downs: tuple[StepDown, ...] = field(default=())

    @property
    def gap(self) -> float | None:
        """(objective - bound) / objective, 0 when proven optimal, None without a bound."""
        if self.lower_bound is None or self.plan is None:
            return None
        difference = self.objective - self.lower_bound
        if difference <= 1e-9 * max(1.0, abs(self.objective)):
            return 0.0
        return difference / abs(self.objective) if self.objective else math.inf
