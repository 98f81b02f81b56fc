"""HiGHS: set partitioning over paths, or a compact formulation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from qlm_core.planning import PlanResult, Problem, Termination
from solver.backends.compact import Answer, solve_compact
from solver.backends.milp import Milp
from solver.backends.order import Order
from solver.backends.partition import choose_with_highs
from solver.backends.report import Desk, solve_by_paths


def solve(problem: Problem, order: Order, desk: Desk) -> PlanResult:
    """The best plan within the budget, by the order's formulation."""
    if order.formulation == "paths":
        return solve_by_paths(problem, order, desk, choose_with_highs, "highs")
    return solve_compact(problem, order, desk, "highs", solve_program)


def solve_program(
    program: Milp,
    wall_s: float,
    start: Any,
    offer: Callable[[Any], None],
    *,
    presolve: bool = True,
) -> Answer:
    """A Milp by HiGHS.

    Args:
        presolve: slower without, but not misled: the presolve of HiGHS 1.15.1 has cut off an optimum.
    """
    import highspy

    lp = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = program.variables, program.rows
    lp.col_cost_, lp.col_lower_, lp.col_upper_ = program.cost, program.low, program.high
    lp.row_lower_, lp.row_upper_ = program.row_low, program.row_high
    lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    lp.a_matrix_.start_ = program.starts.astype(np.int32)
    lp.a_matrix_.index_ = program.index.astype(np.int32)
    lp.a_matrix_.value_ = program.value
    kinds = (highspy.HighsVarType.kContinuous, highspy.HighsVarType.kInteger)
    lp.integrality_ = [kinds[int(whole)] for whole in program.whole.tolist()]
    highs = highspy.Highs()
    highs.setOptionValue("output_flag", False)
    highs.setOptionValue("threads", 1)
    highs.setOptionValue("time_limit", float(wall_s))
    highs.setOptionValue("mip_rel_gap", 0.0)
    highs.setOptionValue("presolve", "choose" if presolve else "off")
    highs.passModel(lp)
    if start is not None:
        solution = highspy.HighsSolution()
        solution.col_value = start.tolist()
        highs.setSolution(solution)
    highs.cbMipImprovingSolution.subscribe(lambda event: offer(event.data_out.mip_solution))
    highs.run()
    status = highs.getModelStatus()
    info = highs.getInfo()
    vector = None
    if info.primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible:
        vector = np.array(highs.getSolution().col_value)
    ended = {
        highspy.HighsModelStatus.kOptimal: Termination.OPTIMAL,
        highspy.HighsModelStatus.kInfeasible: Termination.INFEASIBLE,
        highspy.HighsModelStatus.kTimeLimit: Termination.LIMIT,
    }
    return Answer(
        vector=vector,
        termination=ended.get(status, Termination.ERROR),
        bound=float(info.mip_dual_bound),
        detail=str(highs.modelStatusToString(status)),
    )
