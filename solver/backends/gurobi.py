"""Gurobi: set partitioning over paths, or a compact formulation.

What a licence allows is told by `solver.backends.gurobi_licence`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from qlm_core.planning import Plan, PlanResult, Problem, Termination
from qlm_core.planning.columns import Partition, Picked
from solver.backends.compact import Answer, solve_compact
from solver.backends.gurobi_licence import environment, termination_of
from solver.backends.milp import Milp
from solver.backends.order import Order
from solver.backends.partition import choose_with_gurobi
from solver.backends.report import Desk, failure, solve_by_paths


def solve(problem: Problem, order: Order, desk: Desk) -> PlanResult:
    """The best plan within the budget, by the order's formulation."""
    import gurobipy as gp

    try:
        with environment(order.licence):
            pass
    except gp.GurobiError as error:
        return failure("gurobi", termination_of(error), str(error))
    if order.formulation == "paths":
        return _solve_by_paths(problem, order, desk)

    def program_solver(
        program: Milp, wall_s: float, start: Any, offer: Callable[[Any], None]
    ) -> Answer:
        try:
            with environment(order.licence) as env, gp.Model(env=env) as model:
                return _optimize(gp, model, program, wall_s, start, offer)
        except gp.GurobiError as error:
            return Answer(vector=None, termination=termination_of(error), detail=str(error))

    return solve_compact(problem, order, desk, "gurobi", program_solver)


def _solve_by_paths(problem: Problem, order: Order, desk: Desk) -> PlanResult:
    def choose(partition: Partition, wall_s: float, start: Plan | None) -> Picked:
        return choose_with_gurobi(partition, wall_s, start, order.licence)

    return solve_by_paths(problem, order, desk, choose, "gurobi")


def _optimize(
    gp: Any, model: Any, program: Milp, wall_s: float, start: Any, offer: Callable[[Any], None]
) -> Answer:
    model.Params.TimeLimit = max(0.0, wall_s)
    model.Params.MIPGap = 0.0
    x = [
        model.addVar(lb=low, ub=high, obj=cost, vtype="I" if whole else "C")
        for low, high, cost, whole in zip(
            program.low.tolist(),
            program.high.tolist(),
            program.cost.tolist(),
            program.whole.tolist(),
            strict=True,
        )
    ]
    starts = program.starts.tolist()
    index, value = program.index.tolist(), program.value.tolist()
    limits = zip(program.row_low.tolist(), program.row_high.tolist(), strict=True)
    for row, (low, high) in enumerate(limits):
        first, last = starts[row], starts[row + 1]
        terms = gp.LinExpr(value[first:last], [x[j] for j in index[first:last]])
        if low == high:
            model.addLConstr(terms, "=", low)
        elif np.isfinite(low):
            model.addLConstr(terms, ">", low)
        else:
            model.addLConstr(terms, "<", high)
    if start is not None:
        for variable, number in zip(x, start.tolist(), strict=True):
            variable.Start = number

    def heard(active: Any, where: int) -> None:
        if where == gp.GRB.Callback.MIPSOL:
            offer(active.cbGetSolution(x))

    model.optimize(heard)
    ended = {
        gp.GRB.OPTIMAL: Termination.OPTIMAL,
        gp.GRB.INFEASIBLE: Termination.INFEASIBLE,
        gp.GRB.TIME_LIMIT: Termination.LIMIT,
    }
    return Answer(
        vector=np.array([variable.X for variable in x]) if model.SolCount else None,
        termination=ended.get(model.Status, Termination.ERROR),
        bound=float(model.ObjBound) if model.SolCount else None,
        detail=f"status {model.Status}",
    )
