"""The production Manager as a policy, with parts of it taken out, and with knowledge that nobody has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import msgspec
import numpy as np

from qlm_core.config import RwtConfig, SolverConfig
from qlm_core.grouping import GroupKey
from qlm_core.manager import Manager
from qlm_core.manager.estimators import Estimators
from qlm_core.manager.events import Effect, Event, GatewaySaid
from qlm_core.manager.planner import Planner, Queues, View
from qlm_core.manager.snapshot import Snapshot
from qlm_core.manager.timeline import Timeline
from qlm_core.messages import Arrived
from qlm_core.model import AgentId, ModelName, RequestId, RequestMeta
from qlm_core.sim.policies.base import Brain, Context

_FOREVER_S = 1e12


def manager(context: Context) -> Manager:
    """The Manager as it runs in production; in the simulation agents do not get lost, so leases do not end."""
    config = msgspec.structs.replace(
        context.config, agent_lease_s=_FOREVER_S, gateway_lease_s=_FOREVER_S
    )
    return Manager(config, context.classes, now_s=0.0)


def manager_without_balancing(context: Context) -> Manager:
    """The Manager with groups dealt out to instances in turn; plans only order each queue."""
    made = manager(context)
    made.planner = DealingPlanner(made.config, {one.name: one.weight for one in context.classes})
    return made


def clairvoyant(context: Context) -> Brain:
    """The Manager, told the true length of every output on arrival."""
    made = manager(context)
    made.estimators = ClairvoyantEstimators(made.config.rwt)
    made.timeline = Timeline(made.estimators)
    return Clairvoyant(made, context.output_of)


class DealingPlanner(Planner):
    """Places each new group on the next instance in turn, and never moves it."""

    __slots__ = ("_turn",)

    def __init__(self, config: SolverConfig, weights: dict[str, float]):
        super().__init__(config, weights)
        self._turn: dict[ModelName, int] = {}

    def repair(self, view: View, estimators: Estimators, *, now_s: float) -> Queues | None:
        """As the Planner's, with a home for every new group."""
        groups, agents = view
        known: dict[AgentId, None] = {agent.id: None for agent in agents}
        for group in groups:
            if group.home is None or group.home not in known:
                able = [agent.id for agent in agents if group.key.model in agent.profiles]
                turn = self._turn.get(group.key.model, 0)
                self._turn[group.key.model] = turn + 1
                group.home = able[turn % len(able)]
        return super().repair(view, estimators, now_s=now_s)

    def snapshot(self, view: View, estimators: Estimators, *, now_s: float) -> Snapshot:
        """As the Planner's, with moves out of the question."""
        made = super().snapshot(view, estimators, now_s=now_s)
        cost = np.full(made.problem.groups, 1e9)
        return replace(made, problem=replace(made.problem, move_cost=cost))


class Clairvoyant:
    """A Manager that hears of every request with its true length as the limit, so that groups are of alike lengths."""

    def __init__(self, manager: Manager, output_of: Callable[[RequestId], int]):
        self._manager = manager
        self._output_of = output_of

    @property
    def wakeup_s(self) -> float | None:
        """The Manager's."""
        return self._manager.wakeup_s

    def handle(self, event: Event, *, now_s: float) -> list[Effect]:
        """The Manager's answer, with the truth in the question."""
        if isinstance(event, GatewaySaid) and isinstance(event.fact, Arrived):
            told = event.fact.request
            true = replace(told, max_output_tokens=self._output_of(told.id))
            event = GatewaySaid(event.gateway, Arrived(true))
        return self._manager.handle(event, now_s=now_s)


class ClairvoyantEstimators(Estimators):
    """Takes the limit of a request for its length."""

    __slots__ = ("_outputs",)

    def __init__(self, config: RwtConfig):
        super().__init__(config)
        self._outputs: dict[GroupKey, float] = {}

    def arrived(self, request: RequestMeta) -> None:
        """Learn the mean length of each kind from those that arrive."""
        super().arrived(request)
        key, tokens = GroupKey.of(request), float(request.max_output_tokens)
        mean = self._outputs.get(key, tokens)
        self._outputs[key] = mean + 0.02 * (tokens - mean)

    def expected_output(self, request: RequestMeta) -> int:
        """What it will really produce from here on."""
        return max(1, request.max_output_tokens - request.produced_tokens)

    def _means(self, model: ModelName, key: GroupKey | None) -> tuple[float, float]:
        prompt, output = super()._means(model, key)
        return prompt, output if key is None else self._outputs.get(key, output)
