"""The portfolio: repair, search, bound, and set partitioning by the best MIP solver there is.

Gurobi chooses the columns if it is installed, licensed and the choice fits its licence; else HiGHS;
without either, the search and the bound remain. Each step down is part of the answer.
"""

from __future__ import annotations

from dataclasses import replace

from qlm_core.planning import Plan, PlanResult, Problem, StepDown, Termination
from qlm_core.planning.columns import Partition, Picked
from solver.backends import is_available
from solver.backends.order import Order
from solver.backends.partition import choose_with_gurobi, choose_with_highs
from solver.backends.report import Desk, solve_by_paths


def solve(problem: Problem, order: Order, desk: Desk) -> PlanResult:
    """The best plan and bound that this machine can give within the budget."""
    steps: list[StepDown] = []

    def choose(partition: Partition, wall_s: float, start: Plan | None) -> Picked:
        begin_s = desk.clock()
        if is_available("gurobi"):
            picked = choose_with_gurobi(partition, wall_s, start, order.licence)
            if picked.termination in (Termination.OPTIMAL, Termination.LIMIT):
                return picked
            steps.append(_step("gurobi", picked.termination, picked.detail))
        else:
            steps.append(_step("gurobi", Termination.UNAVAILABLE, "gurobipy is not installed"))
        if is_available("highs"):
            left_s = max(0.01, wall_s - (desk.clock() - begin_s))
            return choose_with_highs(partition, left_s, start)
        steps.append(_step("highs", Termination.UNAVAILABLE, "highspy is not installed"))
        return Picked(plan=None, termination=Termination.UNAVAILABLE, bound=None)

    result = solve_by_paths(problem, order, desk, choose, "auto")
    return replace(result, step_downs=tuple(steps))


def _step(backend: str, termination: Termination, reason: str) -> StepDown:
    return StepDown(backend=backend, termination=termination, reason=reason)
