"""QLM as the paper describes it: groups, virtual queues, and a program with hard constraints.

New groups go to the end of the shortest virtual queue. Only when the estimator predicts a violation is the program of §7
solved: minimise the sum of the groups' waiting times (13) subject to every group starting within its SLO (12). Without a
solution, groups are ordered by earliest deadline (§9). Groups weigh the same whatever their size, waits before a change of
model include the completion of the longest output (10), and what has been placed stays until the next violation.

The program is solved by the search of `qlm_core.planning` with a prohibitive price on each violated constraint, not by a
MILP solver: it is repeatable, and finds solutions at sizes where a MILP solver runs out of time. `qlm bench paper-program`
solves programs of real runs both ways (docs/evaluation.md has the outcome). The search minimises the sum of ends, which
differs from that of waits where a group takes longer on one GPU than on another.

Where the paper leaves a choice, this is the one that serves it best on our beds. SLOs are what is left of them, not
constants. A request that was evicted after its first token owes nothing, since SLOs are TTFT: it neither makes the program
infeasible nor goes first by deadline. Earliest deadline first deals groups out anew, and a group may move after it
has started, which the paper rules out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import msgspec
import numpy as np

from qlm_core.config import SolverConfig
from qlm_core.grouping import RequestGroup
from qlm_core.manager import Manager
from qlm_core.manager.estimators import Estimators
from qlm_core.manager.events import StartSolve
from qlm_core.manager.planner import Planner, Queues, View
from qlm_core.manager.timeline import Timeline
from qlm_core.model import AgentId, Estimate, GroupId, RequestMeta
from qlm_core.planning import Plan, PlanResult, Problem, evaluate, greedy
from qlm_core.sim.policies.base import Context
from qlm_core.sim.policies.ours import manager

_VIOLATION = 1e6
_LONGEST_OUTPUT_TOKENS = 2048
_NEVER_S = 1e6
"""Longer than any queue."""

_INSERTED_MAX = 128
"""Beyond so many groups, inserting one after the other at its best place costs more time than the search itself."""


def paper_manager(context: Context) -> Manager:
    """The Manager with the paper's planning in place of ours."""
    made = manager(context)
    config = msgspec.structs.replace(
        made.config,
        objective=msgspec.structs.replace(made.config.objective, aim=1.0, rest_share=1.0),
    )
    made.timeline = Timeline(made.estimators, None, rest_share=1.0)
    made.planner = PaperPlanner(config, {one.name: one.weight for one in context.classes})
    return made


class PaperPlanner(Planner):
    """Append, solve on a predicted violation, and fall back to earliest deadline first."""

    seats_at_once = False

    __slots__ = ("_violation",)

    def __init__(self, config: SolverConfig, weights: dict[str, float]):
        super().__init__(config, weights)
        self._violation = False

    def changed(self) -> None:
        """Groups or agents came or went, which is no reason to plan."""

    def predicted(self, request: RequestMeta, estimate: Estimate, *, now_s: float) -> None:
        """A predicted miss is the reason to plan (§4)."""
        if now_s + estimate.p90_s > request.due_s:
            self._violation = True

    def due(self, *, now_s: float) -> bool:
        """Whether a violation waits to be dealt with."""
        wakeup_s = self.wakeup_s
        return wakeup_s is not None and now_s >= wakeup_s

    @property
    def wakeup_s(self) -> float | None:
        """When `due` may turn true by the passage of time alone."""
        if self._solving is not None or not self._violation:
            return None
        return max(0.0, self._started_s + self._config.replan.min_interval_s)

    def repair(self, view: View, estimators: Estimators, *, now_s: float) -> Queues | None:
        """Append every new group to the shortest queue that can serve it."""
        if not view[0]:
            return None
        self._estimators = estimators
        snapshot = self.snapshot(view, estimators, now_s=now_s)
        queues = [list(queue) for queue in snapshot.to_plan(_queues(view))]
        self.repairs += 1
        return snapshot.to_queues(_append(snapshot.problem, queues))

    def start(self, view: View, estimators: Estimators, *, now_s: float) -> StartSolve | None:
        """Ask for a solution of the paper's program."""
        self._violation = False
        self._started_s = now_s
        self._estimators = estimators
        if not view[0] or not view[1]:
            return None
        snapshot = self.snapshot(view, estimators, now_s=now_s)
        problem = paper_program(snapshot.problem, view, estimators, now_s=now_s)
        snapshot = replace(snapshot, problem=problem)
        queues = [list(queue) for queue in snapshot.to_plan(_queues(view))]
        self.solves += 1
        self._solving = snapshot
        return StartSolve(self.solves, problem, first_solution(problem, queues))

    def finish(self, solve: int, result: PlanResult, view: View, *, now_s: float) -> Queues | None:
        """Put the solution in force, or earliest deadline first where there is none."""
        solved, self._solving = self._solving, None
        if solved is None or solve != self.solves or result.plan is None or not view[0]:
            return None
        feasible = evaluate(solved.problem, result.plan).late_weight == 0.0
        plan = result.plan if feasible else earliest_deadline_first(solved.problem)
        self.adopted += 1
        assert self._estimators is not None
        now = self.snapshot(view, self._estimators, now_s=now_s)
        queues = [list(queue) for queue in now.to_plan(solved.to_queues(plan))]
        return now.to_queues(_append(now.problem, queues))


def paper_program(problem: Problem, view: View, estimators: Estimators, *, now_s: float) -> Problem:
    """The paper's objective and constraints in our terms.

    A group is late if it starts after the due time of the first member whose first token is still owed; each violated
    constraint costs so much that no sum of waits makes up for it. Leaving a model costs the longest output of the batch in
    full.
    """
    due_s = np.array([owed_by_s(group) for group in view[0]])
    shift_s = problem.due_s - np.array([group.last_due_s for group in view[0]])
    finite = np.where(np.isfinite(problem.duration_s), problem.duration_s, 0.0)
    ones = np.ones(problem.groups)
    return replace(
        problem,
        group_requests=ones.astype(np.int64),
        group_weight=ones,
        due_s=due_s + shift_s,
        tail_s=-finite,
        ramp_s=np.zeros(problem.groups),
        swap_s=_with_completion(problem, view, estimators, now_s=now_s),
        alpha=_VIOLATION,
        beta=0.0,
        kappa=0.0,
        eps=1.0,
        move_cost=np.zeros(problem.groups),
    )


def owed_by_s(group: RequestGroup) -> float:
    """When the group has to start. What was evicted after its first token has met or missed its target, and owes nothing."""
    owed = (request.due_s for request in group.members() if not request.produced_tokens)
    return next(owed, group.last_due_s + _NEVER_S)


def _with_completion(
    problem: Problem, view: View, estimators: Estimators, *, now_s: float
) -> np.ndarray:
    """The swap matrix with the completion of the longest output where a batch has to drain (10)."""
    matrix = problem.swap_s.copy()
    models = sorted({model: None for agent in view[1] for model in agent.profiles})
    number = {model: index for index, model in enumerate(models)}
    if len(models) != problem.models:
        return matrix
    for agent, queue_class in zip(view[1], problem.queue_class.tolist(), strict=True):
        for model, profile in agent.profiles.items():
            rate = estimators.rate(estimators.profile(profile), None, now_s=now_s)
            token_s = rate.seconds_per_token * rate.batch
            swaps = matrix[queue_class, number[model]]
            # Nothing has to drain for what is served beside it.
            beside = [number[one] for one in agent.beside(model)]
            drains = swaps > 0
            drains[beside] = False
            swaps[drains] = (
                problem.swap_s[queue_class, number[model]][drains]
                - rate.residence_s / 2
                + token_s * _LONGEST_OUTPUT_TOKENS
            )
    return np.maximum(matrix, 0.0)


def first_solution(problem: Problem, present: list[list[int]]) -> Plan:
    """What the search starts from: of several plans the one that violates the fewest constraints, with the shortest waits.

    The plan in force alone is a bad start under so high a price: while the search is hot enough to mend many violations it
    forgets waits, and with few moves for each group it may not find the solution that plain deadline order is.
    """
    longest_s = np.where(np.isfinite(problem.duration_s), problem.duration_s, 0.0).max(axis=1)
    plans = [
        _append(problem, present),
        earliest_deadline_first(problem),
        _in_order(problem, problem.due_s + longest_s),
    ]
    if problem.groups <= _INSERTED_MAX:
        plans.append(greedy(problem))
    return min(plans, key=lambda plan: evaluate(problem, plan).objective)


def earliest_deadline_first(problem: Problem) -> Plan:
    """Groups by due time, each to the queue where it can start first."""
    return _in_order(problem, problem.due_s)


def _in_order(problem: Problem, key: np.ndarray) -> Plan:
    order = np.lexsort((np.arange(problem.groups), key)).tolist()
    return _append(problem, [[] for _ in range(problem.queues)], order)


def _append(problem: Problem, queues: list[list[int]], order: Sequence[int] | None = None) -> Plan:
    """Append the groups that stand in no queue to whichever queue is done first."""
    placed = dict.fromkeys(group for queue in queues for group in queue)
    free_s = problem.busy_s.copy()
    model = problem.loaded_model.copy()
    for number, queue in enumerate(queues):
        for group in queue:
            _advance(problem, number, group, free_s, model)
    for group in order if order is not None else range(problem.groups):
        if group in placed:
            continue
        duration_s = problem.duration_s[group, problem.queue_class]
        swap_s = problem.swap_s[problem.queue_class, model, problem.group_model[group]]
        number = int(np.argmin(free_s + swap_s + np.where(np.isfinite(duration_s), 0.0, np.inf)))
        queues[number].append(group)
        _advance(problem, number, group, free_s, model)
    return tuple(tuple(queue) for queue in queues)


def _advance(
    problem: Problem, number: int, group: int, free_s: np.ndarray, model: np.ndarray
) -> None:
    kind = problem.queue_class[number]
    needed = problem.group_model[group]
    free_s[number] += problem.swap_s[kind, model[number], needed] + problem.duration_s[group, kind]
    model[number] = needed


def _queues(view: View) -> dict[AgentId, Sequence[GroupId]]:
    return {agent.id: agent.queue for agent in view[1]}
