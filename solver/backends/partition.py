"""Set partitioning by HiGHS or Gurobi: the choice of columns that `qlm_core.planning.exact` asks
for.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qlm_core.planning.columns import Partition, Picked
from qlm_core.planning.result import Termination
from qlm_core.planning.score import Plan
from solver.backends.gurobi_licence import environment, termination_of
from solver.backends.order import GurobiLicence


def choose_with_highs(partition: Partition, wall_s: float, start: Plan | None) -> Picked:
    """Choose columns with HiGHS."""
    import highspy

    columns = len(partition.columns)
    rows = partition.groups + partition.queues
    lp = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = columns, rows
    lp.col_cost_ = partition.cost
    lp.col_lower_, lp.col_upper_ = np.zeros(columns), np.ones(columns)
    lp.row_lower_ = np.concatenate(
        [np.ones(partition.groups), np.full(partition.queues, -highspy.kHighsInf)]
    )
    lp.row_upper_ = np.ones(rows)
    lp.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    lp.a_matrix_.start_ = partition.starts.astype(np.int32)
    lp.a_matrix_.index_ = partition.rows.astype(np.int32)
    lp.a_matrix_.value_ = np.ones(len(partition.rows))
    lp.integrality_ = [highspy.HighsVarType.kInteger] * columns
    highs = highspy.Highs()
    highs.setOptionValue("output_flag", False)
    highs.setOptionValue("threads", 1)
    highs.setOptionValue("time_limit", float(wall_s))
    highs.setOptionValue("mip_rel_gap", 0.0)
    highs.passModel(lp)
    choice = partition.choice_of(start) if start is not None else None
    if choice is not None:
        solution = highspy.HighsSolution()
        solution.col_value = choice.tolist()
        highs.setSolution(solution)
    highs.run()
    info = highs.getInfo()
    status = highs.getModelStatus()
    optimal = status == highspy.HighsModelStatus.kOptimal
    termination = Termination.OPTIMAL if optimal else Termination.LIMIT
    plan = None
    if info.primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible:
        chosen = np.flatnonzero(np.array(highs.getSolution().col_value) > 0.5)
        plan = partition.plan_of(chosen.tolist())
    bound = float(info.mip_dual_bound)
    return Picked(
        plan=plan,
        termination=termination,
        bound=bound if np.isfinite(bound) else None,
        detail=str(highs.modelStatusToString(status)),
    )


def choose_with_gurobi(
    partition: Partition, wall_s: float, start: Plan | None, licence: GurobiLicence
) -> Picked:
    """Choose columns with Gurobi; no licence or too small a one is an answer, not an exception."""
    import gurobipy as gp

    try:
        with environment(licence) as env, gp.Model(env=env) as model:
            return _choose(gp, model, partition, wall_s, start)
    except gp.GurobiError as error:
        return Picked(plan=None, termination=termination_of(error), bound=None, detail=str(error))


def _choose(gp: Any, model: Any, partition: Partition, wall_s: float, start: Plan | None) -> Picked:
    model.Params.TimeLimit = max(0.0, wall_s)
    model.Params.MIPGap = 0.0
    rows = [model.addLConstr(gp.LinExpr(), "=", 1.0) for _ in range(partition.groups)]
    rows += [model.addLConstr(gp.LinExpr(), "<", 1.0) for _ in range(partition.queues)]
    model.update()
    at = partition.starts.tolist()
    members = partition.rows.tolist()
    choice = partition.choice_of(start) if start is not None else None
    x = []
    for j, cost in enumerate(partition.cost.tolist()):
        mine = [rows[row] for row in members[at[j] : at[j + 1]]]
        x.append(model.addVar(obj=cost, vtype="B", column=gp.Column([1.0] * len(mine), mine)))
        if choice is not None:
            x[-1].Start = choice[j]
    model.optimize()
    plan = None
    if model.SolCount:
        plan = partition.plan_of(j for j, variable in enumerate(x) if variable.X > 0.5)
    optimal = model.Status == gp.GRB.OPTIMAL
    bound = float(model.ObjBound)
    return Picked(
        plan=plan,
        termination=Termination.OPTIMAL if optimal else Termination.LIMIT,
        bound=bound if np.isfinite(bound) else None,
        detail=f"status {model.Status}",
    )
