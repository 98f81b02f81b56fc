"""The production Manager as a policy, with parts of it taken out, and with knowledge that nobody has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import msgspec
import numpy as np

from qlm_core.config import RwtConfig, SolverConfig
from qlm_core.manager import Manager
from qlm_core.manager.estimators import Estimators
from qlm_core.manager.planner import Planner, Queues, View
from qlm_core.manager.snapshot import Snapshot
from qlm_core.manager.timeline import Timeline
from qlm_core.model import AgentId, ModelName, RequestId, RequestMeta
from qlm_core.sim.policies.base import Context

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


def clairvoyant(context: Context) -> Manager:
    """The Manager with true output lengths instead of expected ones."""
    made = manager(context)
    made.estimators = ClairvoyantEstimators(made.config.rwt, context.output_of)
    made.timeline = Timeline(made.estimators)
    return made


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


class ClairvoyantEstimators(Estimators):
    """Knows the length of every output."""

    __slots__ = ("_output_of",)

    def __init__(self, config: RwtConfig, output_of: Callable[[RequestId], int]):
        super().__init__(config)
        self._output_of = output_of

    def expected_output(self, request: RequestMeta) -> int:
        """What it will really produce from here on."""
        return max(1, self._output_of(request.id) - request.produced_tokens)
