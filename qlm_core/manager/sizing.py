"""How large a request group may be now.

The paper (§4, Algorithm 1) bounds a group by δ times the average batch. A group runs on one instance, though, so a fleet is
kept evenly busy only if what waits makes up several groups for each instance: with little waiting, groups are small, and large
ones that were formed in a rush are halved as it passes. Nor does a group take longer than a share of its class's target, since
whether it is in time is decided for all of its members together.
"""

from __future__ import annotations

from qlm_core.config import GroupingConfig
from qlm_core.grouping import GroupKey
from qlm_core.manager.estimators import Estimators
from qlm_core.manager.fleet import Roster
from qlm_core.model import ModelName

_GROUPS_PER_AGENT = 4
_LIFE_S = 1.0
_UNKNOWN_BATCH = 64.0


def shared_out(size: int, waiting: int, serving: int) -> int:
    """The size that leaves several groups of what waits for each of the instances that serve it."""
    return min(size, waiting // (_GROUPS_PER_AGENT * serving)) if serving > 1 else size


class GroupSizes:
    """Bounds by model; what follows from the fleet alone is kept for a second."""

    __slots__ = ("_delta", "_estimators", "_of_fleet", "_span_ratio", "_until_s")

    def __init__(self, estimators: Estimators, config: GroupingConfig):
        self._estimators = estimators
        self._delta = config.delta
        self._span_ratio = config.span_ratio
        self._of_fleet: dict[ModelName, tuple[int, float, int]] = {}
        self._until_s = float("-inf")

    def most(
        self,
        key: GroupKey,
        roster: Roster,
        *,
        waiting: int,
        now_s: float,
    ) -> int:
        """Requests that one group of this kind may hold; 0 if so little waits that each is placed by itself.

        Args:
            waiting: requests that wait anywhere.
        """
        if now_s >= self._until_s:
            self._of_fleet.clear()
            self._until_s = now_s + _LIFE_S
        known = self._of_fleet.get(key.model)
        if known is None:
            known = self._of_fleet[key.model] = self._measure(key.model, roster, now_s)
        size, pace_s, serving = known
        if pace_s:
            size = max(1, min(size, int(self._span_ratio * key.ttft_s / pace_s)))
        return shared_out(size, waiting, serving)

    def _measure(self, model: ModelName, roster: Roster, now_s: float) -> tuple[int, float, int]:
        """δ times the average batch over the agents that serve a model, their average pace, and how many they are."""
        engines = roster.engines.get(model)
        if engines is None:
            return round(self._delta * _UNKNOWN_BATCH), 0.0, 0
        rates = [
            (
                self._estimators.rate(self._estimators.profile(profile), None, now_s=now_s),
                len(agents),
            )
            for profile, agents in engines
        ]
        serving = sum(count for _, count in rates)
        batch = sum(rate.batch * count for rate, count in rates) / serving
        pace_s = sum(rate.seconds_per_request * count for rate, count in rates) / serving
        return max(1, round(self._delta * batch)), pace_s, serving
