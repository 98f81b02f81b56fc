"""PuLP: the same programs written row by row, for solvers that only PuLP reaches. Slow to build."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from qlm_core.planning import Plan, PlanResult, Problem, Termination
from qlm_core.planning.columns import Partition, Picked
from solver.backends.compact import Answer, solve_compact
from solver.backends.milp import Milp
from solver.backends.order import Order
from solver.backends.report import Desk, solve_by_paths


def solve(problem: Problem, order: Order, desk: Desk) -> PlanResult:
    """The best plan within the budget, by the order's formulation."""
    if order.formulation == "paths":
        return solve_by_paths(problem, order, desk, _choose, "pulp")
    return solve_compact(problem, order, desk, "pulp", _solve_program)


def _solver(wall_s: float) -> Any:
    """HiGHS inside this process if PuLP can use it, else the CBC that comes with PuLP."""
    import pulp

    highs = pulp.HiGHS(msg=False, timeLimit=wall_s, threads=1, gapRel=0.0)
    if highs.available():
        return highs
    return pulp.PULP_CBC_CMD(msg=False, timeLimit=wall_s, threads=1, gapRel=0.0)


def _choose(partition: Partition, wall_s: float, start: Plan | None) -> Picked:  # noqa: ARG001
    import pulp

    model = pulp.LpProblem("partition", pulp.LpMinimize)
    x = [pulp.LpVariable(f"x{j}", cat="Binary") for j in range(len(partition.columns))]
    model += pulp.lpDot(partition.cost.tolist(), x)
    rows: list[list[Any]] = [[] for _ in range(partition.groups + partition.queues)]
    starts, members = partition.starts.tolist(), partition.rows.tolist()
    for j, variable in enumerate(x):
        for row in members[starts[j] : starts[j + 1]]:
            rows[row].append(variable)
    for row, terms in enumerate(rows):
        if row < partition.groups:
            model += pulp.lpSum(terms) == 1
        elif terms:
            model += pulp.lpSum(terms) <= 1
    model.solve(_solver(wall_s))
    plan = None
    if model.sol_status in (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible):
        plan = partition.plan_of(j for j, variable in enumerate(x) if variable.value() > 0.5)
    optimal = model.sol_status == pulp.LpSolutionOptimal
    return Picked(
        plan=plan, termination=Termination.OPTIMAL if optimal else Termination.LIMIT, bound=None
    )


def _solve_program(
    program: Milp,
    wall_s: float,
    start: Any,  # noqa: ARG001
    offer: Callable[[Any], None],  # noqa: ARG001
) -> Answer:
    import pulp

    model = pulp.LpProblem("plan", pulp.LpMinimize)
    x = [
        pulp.LpVariable(
            f"x{j}", low, high if np.isfinite(high) else None, "Integer" if whole else "Continuous"
        )
        for j, (low, high, whole) in enumerate(
            zip(program.low.tolist(), program.high.tolist(), program.whole.tolist(), strict=True)
        )
    ]
    model += pulp.lpDot(program.cost.tolist(), x)
    starts = program.starts.tolist()
    index, value = program.index.tolist(), program.value.tolist()
    limits = zip(program.row_low.tolist(), program.row_high.tolist(), strict=True)
    for row, (low, high) in enumerate(limits):
        first, last = starts[row], starts[row + 1]
        terms = pulp.LpAffineExpression(
            [(x[j], a) for j, a in zip(index[first:last], value[first:last], strict=True)]
        )
        if low == high:
            model += terms == low
        elif np.isfinite(low):
            model += terms >= low
        else:
            model += terms <= high
    model.solve(_solver(wall_s))
    optimal = model.sol_status == pulp.LpSolutionOptimal
    feasible = optimal or model.sol_status == pulp.LpSolutionIntegerFeasible
    if model.status == pulp.LpStatusInfeasible:
        return Answer(vector=None, termination=Termination.INFEASIBLE)
    return Answer(
        vector=np.array([variable.value() or 0.0 for variable in x]) if feasible else None,
        termination=Termination.OPTIMAL if optimal else Termination.LIMIT,
    )
