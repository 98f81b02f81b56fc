"""When to plan, and whether to adopt a plan.

The plan in force is the agents' queues. `repair` changes it at once, by insertion alone. `start` asks for a better one:
at most one solve runs at a time, not more often than `min_interval_s`, only when something has changed or lateness is
predicted, and not for a plan that insertion has made as good as any can be, which is the rule while the fleet has room.
An answer speaks of a state that is past when it comes, so `consider` translates it into the present state, repairs it
there, and adopts it only if our own evaluator finds it better than what is in force.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import nan

from qlm_core.config import SolverConfig
from qlm_core.grouping import RequestGroup
from qlm_core.manager.estimators import Estimators
from qlm_core.manager.events import StartSolve
from qlm_core.manager.fleet import Agent, Roster
from qlm_core.manager.placing import contenders, free_seat
from qlm_core.manager.residents import Residents
from qlm_core.manager.snapshot import Snapshot, take_snapshot
from qlm_core.model import AgentId, Estimate, GroupId, RequestMeta
from qlm_core.planning import Plan, PlanResult, Score, evaluate, level, repair
from qlm_core.planning.bound import unhindered

_HISTORY = 32
"""Plans that are remembered, for people."""

View = tuple[Sequence[RequestGroup], Sequence[Agent]]
Queues = dict[AgentId, list[GroupId]]


@dataclass(frozen=True, slots=True, kw_only=True)
class CapacityValue:
    """What one more instance of a kind would be worth, by the prices of the last bound.

    Attributes:
        instances: how many there are.
        saves_cost: by how much it would lower the objective, at most.
        saves_late_weight: the same in weighted late requests.
        more: how many more keep the targets of what waits (fewer, if negative); None where that is not known.
    """

    gpu: str
    instances: int
    saves_cost: float
    saves_late_weight: float
    more: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanInForce:
    """What is known of the plan in force, as of `at_s`.

    Attributes:
        lower_bound: proven for the problem that was solved last; None without one.
        moved: groups that changed queue when it was adopted.
        capacity: by GPU, as of `bound_at_s`.
    """

    at_s: float
    objective: float
    late_weight: float
    groups: int
    queues: int
    backend: str
    termination: str
    lower_bound: float | None = None
    gap: float | None = None
    bound_at_s: float | None = None
    moved: int = 0
    wall_s: float = 0.0
    capacity: tuple[CapacityValue, ...] = ()


class Planner:
    """The Manager's planning logic; it holds no groups and no queues of its own.

    Attributes:
        seats_at_once: whether a new group goes to an idle agent that takes all of it, without planning.
        history: the last plans that came into force by a planner, oldest first, as they were known when they did.
    """

    seats_at_once = True

    __slots__ = (
        "_config",
        "_estimators",
        "_pending",
        "_prices",
        "_proved_s",
        "_solving",
        "_started_s",
        "_weights",
        "adopted",
        "history",
        "in_force",
        "moved",
        "repairs",
        "residents",
        "solves",
    )

    def __init__(self, config: SolverConfig, weights: dict[str, float]):
        self._config = config
        self._weights = weights
        self.residents = Residents(weights, config.objective)
        self._estimators: Estimators | None = None
        self._pending = False
        self._solving: Snapshot | None = None
        self._started_s = float("-inf")
        self._proved_s = float("-inf")
        self._prices: dict[GroupId, float] = {}
        self.in_force: PlanInForce | None = None
        self.history: deque[PlanInForce] = deque(maxlen=_HISTORY)
        self.solves = 0
        self.adopted = 0
        self.repairs = 0
        self.moved = 0

    # ------------------------------------------------------------------ when

    def changed(self) -> None:
        """Groups or agents came or went: a better plan may exist."""
        self._pending = True

    def predicted(self, request: RequestMeta, estimate: Estimate, *, now_s: float) -> None:
        """Take note of a new request's estimate; a predicted miss is a reason to plan (paper §4)."""
        if now_s + estimate.p90_s > request.due_s:
            self._pending = True

    def due(self, *, now_s: float) -> bool:
        """Whether a solve should start now."""
        if self._solving is not None:
            return False
        return now_s >= self._next_start_s

    @property
    def wakeup_s(self) -> float | None:
        """When `due` may turn true by the passage of time alone."""
        return None if self._solving is not None else max(0.0, self._next_start_s)

    @property
    def _next_start_s(self) -> float:
        replan = self._config.replan
        return self._started_s + (replan.min_interval_s if self._pending else replan.period_s)

    # ------------------------------------------------------------------ what

    def snapshot(self, view: View, estimators: Estimators, *, now_s: float) -> Snapshot:
        """The present state as a planning problem."""
        groups, agents = view
        return take_snapshot(
            groups,
            agents,
            weights=self._weights,
            leaving_s=self.residents.leaving_s,
            estimators=estimators,
            objective=self._config.objective,
            now_s=now_s,
        )

    def seat(
        self, new: Sequence[RequestGroup], roster: Roster, estimators: Estimators, *, now_s: float
    ) -> Queues | None:
        """The queue of the agent that takes a new group at once, if there is one: a repair that needs no plan."""
        seat = None
        if len(new) == 1 and self.seats_at_once:
            seat = free_seat(new[0], roster, estimators, now_s=now_s)
        if seat is None:
            return None
        self.repairs += 1
        return {seat.id: [new[0].id]}

    def repair(self, view: View, estimators: Estimators, *, now_s: float) -> Queues | None:
        """Queues with every placeable group in one, changed as little as insertion can."""
        if not view[0]:
            return None
        self._estimators = estimators
        groups, agents = view
        placed = {id: None for agent in agents for id in agent.queue}
        new = [group for group in groups if group.id not in placed]
        self.repairs += 1
        view = groups, contenders(groups, agents, new=len(new))
        snapshot = self.snapshot(view, estimators, now_s=now_s)
        present = snapshot.to_plan(_queues(view))
        plan = repair(snapshot.problem, present)
        grown = [number for number, queue in enumerate(plan) if len(queue) > len(present[number])]
        plan = level(snapshot.problem, plan, grown)
        if not self._note_repair(snapshot, plan, now_s=now_s):
            self._pending = True
        return snapshot.to_queues(plan)

    def start(self, view: View, estimators: Estimators, *, now_s: float) -> StartSolve | None:
        """Ask for a better plan than the one in force, unless there is nothing to decide."""
        self._pending = False
        self._started_s = now_s
        self._estimators = estimators
        groups, agents = view
        if not groups or not agents or (len(groups) < 2 and len(agents) < 2):
            return None
        snapshot = self.snapshot(view, estimators, now_s=now_s)
        present = snapshot.to_plan(_queues(view))
        warm = repair(snapshot.problem, present)
        if warm == present and self._note_repair(snapshot, warm, now_s=now_s):
            return None
        self.solves += 1
        self._solving = snapshot
        prove = now_s - self._proved_s >= self._config.replan.bound_period_s
        if not prove:
            return StartSolve(self.solves, snapshot.problem, warm)
        self._proved_s = now_s
        duals = tuple(self._prices.get(group, nan) for group in snapshot.groups)
        return StartSolve(self.solves, snapshot.problem, warm, True, duals)

    def consider(self, solve: int, plan: Plan, view: View, *, now_s: float) -> Queues | None:
        """Adopt `plan` if it is still better; return the queues to put in force, or None."""
        return self._consider(solve, plan, view, now_s=now_s, backend="search", termination="limit")

    def finish(self, solve: int, result: PlanResult, view: View, *, now_s: float) -> Queues | None:
        """A solve has ended: adopt its last plan if it is better, note its bound."""
        if self._solving is None or solve != self.solves:
            return None
        queues = None
        if result.plan is not None:
            queues = self._consider(
                solve,
                result.plan,
                view,
                now_s=now_s,
                backend=result.backend,
                termination=result.termination.value,
            )
        self._note_bound(result, view[1], now_s=now_s)
        self._solving = None
        return queues

    def _consider(
        self, solve: int, plan: Plan, view: View, *, now_s: float, backend: str, termination: str
    ) -> Queues | None:
        if self._solving is None or solve != self.solves or self._estimators is None:
            return None
        if not view[0]:
            return None
        before = self._solving.to_queues(plan)
        snapshot = self.snapshot(view, self._estimators, now_s=now_s)
        candidate = repair(snapshot.problem, snapshot.to_plan(before))
        present = repair(snapshot.problem, snapshot.to_plan(_queues(view)))
        standing = evaluate(snapshot.problem, present)
        found = standing if candidate == present else evaluate(snapshot.problem, candidate)
        least_gain = 1e-6 * max(1.0, abs(standing.objective))
        better = found.objective < standing.objective - least_gain
        score = found if better else standing
        self._note(snapshot, score, now_s=now_s, backend=backend, termination=termination)
        if not better:
            return None
        self.adopted += 1
        if self.in_force is not None:
            self.history.append(self.in_force)
        return snapshot.to_queues(candidate)

    # ------------------------------------------------------------------ what is known

    def _note_repair(self, snapshot: Snapshot, plan: Plan, *, now_s: float) -> bool:
        """Note a plan that insertion made; say whether it is proven that none is better."""
        score = evaluate(snapshot.problem, plan)
        self._note(snapshot, score, now_s=now_s, backend="repair", termination="limit")
        noted = self.in_force
        assert noted is not None
        if noted.objective > unhindered(snapshot.problem) + 1e-6 * max(1.0, noted.objective):
            return False
        # Nothing waits for anything: more instances save nothing, and what is busy says how many are needed.
        idle = tuple(
            replace(one, saves_cost=0.0, saves_late_weight=0.0, more=None) for one in noted.capacity
        )
        self.in_force = replace(
            noted,
            termination="optimal",
            lower_bound=noted.objective,
            gap=0.0,
            bound_at_s=now_s,
            capacity=idle,
        )
        return True

    def _note(
        self, snapshot: Snapshot, score: Score, *, now_s: float, backend: str, termination: str
    ) -> None:
        previous = self.in_force
        self.moved += score.moves
        self.in_force = PlanInForce(
            at_s=now_s,
            objective=score.objective,
            late_weight=score.late_weight,
            groups=snapshot.problem.groups,
            queues=snapshot.problem.queues,
            backend=backend,
            termination=termination,
            lower_bound=previous.lower_bound if previous else None,
            gap=previous.gap if previous else None,
            bound_at_s=previous.bound_at_s if previous else None,
            moved=score.moves,
            wall_s=previous.wall_s if previous else 0.0,
            capacity=previous.capacity if previous else (),
        )

    def _note_bound(self, result: PlanResult, agents: Sequence[Agent], *, now_s: float) -> None:
        if self.in_force is None or self._solving is None:
            return
        if len(result.duals) == len(self._solving.groups):
            self._prices = dict(zip(self._solving.groups, result.duals, strict=True))
        capacity = self._capacity(self._solving, result, agents)
        bounded = result.lower_bound is not None
        self.in_force = replace(
            self.in_force,
            lower_bound=result.lower_bound if bounded else self.in_force.lower_bound,
            gap=result.gap if bounded else self.in_force.gap,
            bound_at_s=now_s if bounded else self.in_force.bound_at_s,
            wall_s=result.wall_s,
            capacity=capacity or self.in_force.capacity,
        )
        if self.history and self.history[-1].at_s == self.in_force.at_s:
            self.history[-1] = self.in_force

    def _capacity(
        self, snapshot: Snapshot, result: PlanResult, agents: Sequence[Agent]
    ) -> tuple[CapacityValue, ...]:
        """The best value of each GPU's queue classes; none if the solve priced nothing."""
        values = result.capacity_values
        if len(values) != snapshot.problem.classes:
            return ()
        needed = result.needed or (None,) * len(values)
        gpu_of = {agent.id: agent.gpu for agent in agents}
        counts: dict[str, int] = {}
        worth: dict[str, float] = {}
        more: dict[str, dict[int, int | None]] = {}
        numbers = snapshot.problem.queue_class.tolist()
        for agent, number in zip(snapshot.agents, numbers, strict=True):
            gpu = gpu_of.get(agent)
            if gpu is not None:
                counts[gpu] = counts.get(gpu, 0) + 1
                worth[gpu] = max(worth.get(gpu, 0.0), values[number])
                more.setdefault(gpu, {})[number] = needed[number]
        late = self._config.objective.late
        return tuple(
            CapacityValue(
                gpu=gpu,
                instances=counts[gpu],
                saves_cost=value,
                saves_late_weight=value / late if late else 0.0,
                more=_of_gpu(list(more[gpu].values())),
            )
            for gpu, value in worth.items()
        )


def _of_gpu(needed: Sequence[int | None]) -> int | None:
    """How many more of a GPU, given how many more of each of its queue classes would do alone.

    Of the classes that help, the one of which fewest are needed; fewer are said of one class alone, since only the others as
    they are were looked at.
    """
    known = [one for one in needed if one is not None]
    helping = [one for one in known if one > 0]
    return min(helping or known, default=None)


def _queues(view: View) -> dict[AgentId, Sequence[GroupId]]:
    return {agent.id: agent.queue for agent in view[1]}
