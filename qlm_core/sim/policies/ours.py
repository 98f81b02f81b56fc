"""The production Manager as a policy, and with parts of it taken out."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np

from qlm_core.config import SolverConfig
from qlm_core.manager import Manager
from qlm_core.manager.estimators import Estimators
from qlm_core.manager.planner import Planner, Queues, View
from qlm_core.manager.snapshot import Snapshot
from qlm_core.model import AgentId, ModelName
from qlm_core.sim.policies.base import Context

_FOREVER_S = 1e12


def manager(context: Context) -> Manager:
    """The Manager as it runs in production."""
    return Manager(undying(context.config), context.classes, now_s=0.0)


def undying(config: SolverConfig) -> SolverConfig:
    """The configuration with leases that do not end, since agents do not get lost in the simulation."""
    return msgspec.structs.replace(config, agent_lease_s=_FOREVER_S, gateway_lease_s=_FOREVER_S)


def manager_without_balancing(context: Context) -> Manager:
    """The Manager with groups dealt out to instances in turn; plans only order each queue."""
    made = manager(context)
    made.planner = DealingPlanner(made.config, {one.name: one.weight for one in context.classes})
    return made


class DealingPlanner(Planner):
    """Places each new group on the next instance in turn, and never moves it."""

    seats_at_once = False

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
