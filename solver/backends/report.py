"""What a backend tells while it works, and the tools that it works with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

from qlm_core.planning import Plan, PlanResult, Problem, Termination, check, evaluate
from qlm_core.planning.columns import PartitionSolver
from qlm_core.planning.exact import Toolbox, solve_exact
from solver.backends.order import Order


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """Where a backend works: its clock, compiled kernels if they are ready, and whom to tell."""

    clock: Callable[[], float]
    kernels: ModuleType | None
    pricing: ModuleType | None
    on_improvement: Callable[[Plan, float], None]
    on_bound: Callable[[float], None]


def solve_by_paths(
    problem: Problem, order: Order, desk: Desk, partition: PartitionSolver | None, backend: str
) -> PlanResult:
    """Search, bound and set partitioning with the given partition solver."""
    tools = Toolbox(
        clock=desk.clock,
        kernels=desk.kernels,
        pricing=desk.pricing,
        partition=partition,
        on_improvement=desk.on_improvement,
        on_bound=desk.on_bound,
        search_share=min(0.9, order.search_s / order.budget_s) if order.budget_s else 0.3,
    )
    result = solve_exact(
        problem, order.limits, seed=order.seed, tools=tools, start=order.warm, duals=order.duals
    )
    return renamed(result, backend)


def renamed(result: PlanResult, backend: str) -> PlanResult:
    """The same result under the name of the backend that was asked."""
    from dataclasses import replace

    return replace(result, backend=backend)


def failure(backend: str, termination: Termination, detail: str, wall_s: float = 0.0) -> PlanResult:
    """The answer of a backend that has none."""
    return PlanResult(
        plan=None,
        objective=float("inf"),
        lower_bound=None,
        termination=termination,
        backend=backend,
        wall_s=wall_s,
        detail=detail,
    )


def judged(problem: Problem, plan: Plan) -> float | None:
    """The objective of a plan a library came up with, by our own evaluator; None if it is no plan."""
    if check(problem, plan) is not None:
        return None
    return evaluate(problem, plan).objective
