"""The backends that need no library: the search, and insertion alone."""

from __future__ import annotations

from collections.abc import Iterator

from qlm_core.planning import PlanResult, Problem, Termination, evaluate, greedy, level, repair
from qlm_core.planning.search import search
from solver.backends.order import Order
from solver.backends.report import Desk


def solve_by_search(problem: Problem, order: Order, desk: Desk) -> PlanResult:
    """Annealing and ruin-and-recreate until the budget is spent."""
    return search(
        problem,
        order.limits,
        seed=order.seed,
        clock=desk.clock,
        start=order.warm,
        compiled=desk.kernels,
        on_improvement=desk.on_improvement,
    )


def solve_greedily(problem: Problem, order: Order, desk: Desk) -> PlanResult:
    """One insertion, or one repair of the plan in force, and what is uneven then made level."""
    begin_s = desk.clock()
    plan = greedy(problem) if order.warm is None else repair(problem, order.warm)
    desk.on_improvement(plan, evaluate(problem, plan).objective)

    def queues_in_time() -> Iterator[int]:
        for number in range(problem.queues):
            if desk.clock() - begin_s > order.budget_s:
                return
            yield number

    plan = level(problem, plan, queues_in_time())
    objective = evaluate(problem, plan).objective
    desk.on_improvement(plan, objective)
    wall_s = desk.clock() - begin_s
    return PlanResult(
        plan=plan,
        objective=objective,
        lower_bound=None,
        termination=Termination.LIMIT,
        backend="greedy",
        wall_s=wall_s,
        history=((wall_s, objective),),
    )
