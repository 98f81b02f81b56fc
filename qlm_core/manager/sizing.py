"""How large a request group may be now.

The paper (§4, Algorithm 1) bounds a group by δ times the average batch. A group runs on one instance, though, so a fleet is
kept evenly busy only if what waits makes up several groups for each instance: with little waiting, groups are small, and large
ones that were formed in a rush are halved as it passes.
"""

from __future__ import annotations

from collections.abc import Mapping

from qlm_core.manager.estimators import Estimators
from qlm_core.manager.fleet import Agent
from qlm_core.model import AgentId, ModelName

_GROUPS_PER_AGENT = 4
_LIFE_S = 1.0
_UNKNOWN_BATCH = 64.0


class GroupSizes:
    """Bounds by model; what follows from the fleet alone is kept for a second."""

    __slots__ = ("_delta", "_estimators", "_of_fleet", "_until_s")

    def __init__(self, estimators: Estimators, *, delta: float):
        self._estimators = estimators
        self._delta = delta
        self._of_fleet: dict[ModelName, tuple[int, int]] = {}
        self._until_s = float("-inf")

    def most(
        self, model: ModelName, agents: Mapping[AgentId, Agent], *, waiting: int, now_s: float
    ) -> int:
        """Requests that one group of this model may hold, at least 1.

        Args:
            waiting: requests that wait anywhere.
        """
        if now_s >= self._until_s:
            self._of_fleet.clear()
            self._until_s = now_s + _LIFE_S
        known = self._of_fleet.get(model)
        if known is None:
            known = self._of_fleet[model] = self._measure(model, agents, now_s)
        size, serving = known
        if serving < 2:
            return size
        return max(1, min(size, waiting // (_GROUPS_PER_AGENT * serving)))

    def _measure(
        self, model: ModelName, agents: Mapping[AgentId, Agent], now_s: float
    ) -> tuple[int, int]:
        """δ times the average batch over the agents that serve a model, and how many they are."""
        profiles = [agent.profiles[model] for agent in agents.values() if model in agent.profiles]
        batches = [
            self._estimators.rate(self._estimators.profile(one), None, now_s=now_s).batch
            for one in profiles
        ]
        average = sum(batches) / len(batches) if batches else _UNKNOWN_BATCH
        return max(1, round(self._delta * average)), len(batches)
