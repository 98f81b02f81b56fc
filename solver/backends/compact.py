"""Solving a compact formulation: what is the same whoever solves it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from qlm_core.planning import Plan, PlanResult, Problem, Termination, greedy, repair
from qlm_core.planning.pins import fold_pins
from solver.backends.formulation import FORMULATIONS, build
from solver.backends.milp import Milp
from solver.backends.order import Order
from solver.backends.report import Desk, failure, judged


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A MIP solver's answer to a Milp."""

    vector: Any
    """Values of the variables, or None."""
    termination: Termination
    bound: float | None = None
    detail: str = ""


MilpSolver = Callable[[Milp, float, Any, Callable[[Any], None]], Answer]
"""(program, seconds, start vector or None, whom to tell of each incumbent) to an answer."""


def solve_compact(
    problem: Problem, order: Order, desk: Desk, backend: str, solver: MilpSolver
) -> PlanResult:
    """Solve by the order's formulation with the given solver; building counts as set-up."""
    if order.formulation not in FORMULATIONS:
        known = ", ".join(("paths", *FORMULATIONS))
        return failure(backend, Termination.ERROR, f"formulation: must be one of {known}")
    begin_s = desk.clock()
    folded = fold_pins(problem)
    if folded.problem.groups == 0:
        return _nothing_to_decide(problem, folded.prefixes, backend)
    warm = greedy(problem) if order.warm is None else repair(problem, order.warm)
    inner = folded.fold(warm)
    program = build(folded.problem, order.formulation, inner)
    start = program.encode(inner)
    setup_s = desk.clock() - begin_s
    begin_s = desk.clock()
    best: list[tuple[float, Plan]] = []
    history: list[tuple[float, float]] = []

    def offer(vector: Any) -> None:
        plan = folded.restore(program.decode(np.asarray(vector)))
        objective = judged(problem, plan)
        if objective is not None and (not best or objective < best[0][0]):
            best[:] = [(objective, plan)]
            history.append((desk.clock() - begin_s, objective))
            desk.on_improvement(plan, objective)

    answer = solver(program, order.budget_s, start, offer)
    if answer.vector is not None:
        offer(answer.vector)
    wall_s = desk.clock() - begin_s
    if not best:
        return failure(backend, answer.termination, answer.detail or "no plan in time", wall_s)
    objective, plan = best[0]
    bound = None
    if program.exact and answer.bound is not None and np.isfinite(answer.bound):
        bound = min(objective, answer.bound + folded.constant)
    proven = program.exact and answer.termination is Termination.OPTIMAL
    return PlanResult(
        plan=plan,
        objective=objective,
        lower_bound=objective if proven else bound,
        termination=Termination.OPTIMAL if proven else Termination.LIMIT,
        backend=backend,
        wall_s=wall_s,
        setup_s=setup_s,
        history=tuple(history),
        detail=answer.detail,
    )


def _nothing_to_decide(problem: Problem, plan: Plan, backend: str) -> PlanResult:
    objective = judged(problem, plan)
    assert objective is not None
    return PlanResult(
        plan=plan,
        objective=objective,
        lower_bound=objective,
        termination=Termination.OPTIMAL,
        backend=backend,
    )
