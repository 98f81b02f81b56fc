"""CP-SAT of OR-Tools: a circuit a queue with optional groups. It shares no process with HiGHS."""

from __future__ import annotations

from typing import Any

import numpy as np

from qlm_core.planning import Plan, PlanResult, Problem, Termination, greedy, repair
from qlm_core.planning.pins import fold_pins
from qlm_core.planning.score import evaluate
from solver.backends.order import Order
from solver.backends.report import Desk, failure, judged

_TICKS_PER_S = 10
_UNIT = 1000
"""Objective coefficients are whole: thousandths of cost per tick."""


def solve(problem: Problem, order: Order, desk: Desk) -> PlanResult:
    """The best plan within the budget; times are rounded to tenths of a second, so it has no bound."""
    from ortools.sat.python import cp_model

    begin_s = desk.clock()
    folded = fold_pins(problem)
    inner = folded.problem
    warm = greedy(problem) if order.warm is None else repair(problem, order.warm)
    if inner.groups == 0:
        return failure("cpsat", Termination.UNAVAILABLE, "nothing to decide")
    model = _Model(cp_model, inner, folded.fold(warm))
    setup_s = desk.clock() - begin_s
    begin_s = desk.clock()
    best: list[tuple[float, Plan]] = []
    history: list[tuple[float, float]] = []

    def offer(value: Any) -> None:
        plan = folded.restore(model.plan_of(value))
        objective = judged(problem, plan)
        if objective is not None and (not best or objective < best[0][0]):
            best[:] = [(objective, plan)]
            history.append((desk.clock() - begin_s, objective))
            desk.on_improvement(plan, objective)

    class Heard(cp_model.CpSolverSolutionCallback):  # type: ignore[misc]
        def on_solution_callback(self) -> None:
            offer(self.boolean_value)

    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = order.seed
    solver.parameters.max_time_in_seconds = order.budget_s
    status = solver.solve(model.model, Heard())
    wall_s = desk.clock() - begin_s
    if not best:
        infeasible = status == cp_model.INFEASIBLE
        ended = Termination.INFEASIBLE if infeasible else Termination.LIMIT
        return failure("cpsat", ended, solver.status_name(status), wall_s)
    return PlanResult(
        plan=best[0][1],
        objective=best[0][0],
        lower_bound=None,
        termination=Termination.LIMIT,
        backend="cpsat",
        wall_s=wall_s,
        setup_s=setup_s,
        history=tuple(history),
        detail=solver.status_name(status),
    )


class _Model:
    """The constraint model and its arcs. Arc (queue, a, b): b follows a; -1 is the queue's ends."""

    def __init__(self, cp_model: Any, problem: Problem, warm: Plan):
        self.problem = problem
        self.model = cp_model.CpModel()
        self.arcs: dict[tuple[int, int, int], Any] = {}
        horizon = 2.0 * float(evaluate(problem, warm).end_s.max()) + 10.0
        self.end = [
            self.model.new_int_var(0, _ticks(horizon), f"end{i}") for i in range(problem.groups)
        ]
        self.terms: list[Any] = []
        weight = problem.group_total_weight
        present: list[list[Any]] = [[] for _ in range(problem.groups)]
        for queue in range(problem.queues):
            self._add_queue(queue, present)
        for i in range(problem.groups):
            self.model.add_exactly_one(present[i])
            self._add_cost(i, float(weight[i]), horizon)
        self.model.minimize(sum(self.terms))
        self._hint(warm)

    def _add_cost(self, i: int, weight: float, horizon: float) -> None:
        problem = self.problem
        late = self.model.new_int_var(0, _ticks(horizon + abs(float(problem.due_s[i]))), f"late{i}")
        # A tail that differs by class is taken at its mean: the evaluator judges the outcome.
        tail = float(problem.tail_s[i].mean())
        due = _ticks(float(problem.due_s[i]) - tail)
        self.model.add(late >= self.end[i] - due)
        self.terms.append(round(_UNIT * problem.beta * weight) * late)
        self.terms.append(round(_UNIT * problem.eps * weight) * self.end[i])
        if problem.alpha > 0:
            missed = self.model.new_bool_var(f"missed{i}")
            self.model.add(self.end[i] <= due).only_enforce_if(missed.negated())
            self.terms.append(round(_UNIT * _TICKS_PER_S * problem.alpha * weight) * missed)

    def _add_queue(self, queue: int, present: list[list[Any]]) -> None:
        problem = self.problem
        number = int(problem.queue_class[queue])
        swap = problem.swap_s[number]
        duration = problem.duration_s[:, number]
        mine = np.flatnonzero(np.isfinite(duration)).tolist()
        circuit = [(0, 0, self.model.new_bool_var(f"empty{queue}"))]
        for j in mine:
            here = self.model.new_bool_var(f"on{queue}_{j}")
            present[j].append(here)
            circuit.append((j + 1, j + 1, here.negated()))
            if problem.home[j] not in (-1, queue) and problem.move_cost[j]:
                cost = _UNIT * _TICKS_PER_S * float(problem.move_cost[j])
                self.terms.append(round(cost) * here)
            last = self.model.new_bool_var(f"last{queue}_{j}")
            self.arcs[queue, j, -1] = last
            circuit.append((j + 1, 0, last))
            for i in (-1, *(i for i in mine if i != j)):
                arc = self.model.new_bool_var(f"arc{queue}_{i}_{j}")
                self.arcs[queue, i, j] = arc
                circuit.append((i + 1, j + 1, arc))
                before = problem.loaded_model[queue] if i < 0 else problem.group_model[i]
                step = float(swap[before, problem.group_model[j]])
                begin = _ticks(float(problem.busy_s[queue])) if i < 0 else self.end[i]
                needed = _ticks(step + float(duration[j]))
                self.model.add(self.end[j] >= begin + needed).only_enforce_if(arc)
                if step:
                    cost = _UNIT * _TICKS_PER_S * problem.kappa * step
                    self.terms.append(round(cost) * arc)
        self.model.add_circuit(circuit)

    def _hint(self, warm: Plan) -> None:
        used = {
            (queue, a, b): True
            for queue, groups in enumerate(warm)
            for a, b in zip((-1, *groups), (*groups, -1), strict=True)
        }
        for key, arc in self.arcs.items():
            self.model.add_hint(arc, key in used)

    def plan_of(self, value: Any) -> Plan:
        """The plan in a solution; `value` gives a variable's truth."""
        after = {(queue, a): b for (queue, a, b), arc in self.arcs.items() if value(arc)}
        plan: list[tuple[int, ...]] = []
        for queue in range(self.problem.queues):
            groups: list[int] = []
            at = after.get((queue, -1), -1)
            while at >= 0:
                groups.append(at)
                at = after.get((queue, at), -1)
            plan.append(tuple(groups))
        return tuple(plan)


def _ticks(seconds: float) -> int:
    return round(seconds * _TICKS_PER_S)
