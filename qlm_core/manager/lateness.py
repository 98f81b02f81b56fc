"""Requests that are shed because their target cannot be met, where their class asks for that.

A request is judged when it arrives, by its estimate: it is shed if it would more likely than not be late. Later it is shed
once that is certain, since its target has passed while it waited. Who has been given output is not shed any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import inf

from qlm_core.grouping import RequestGroup
from qlm_core.manager.events import TellGateway
from qlm_core.manager.fleet import Agent
from qlm_core.manager.timeline import Timeline
from qlm_core.messages import EstimateGiven, GatewayOrder, ShedOrder
from qlm_core.model import AgentId, Estimate, GroupId, RequestMeta, SloClass
from qlm_core.outcome import ShedReason

# How often what waits is looked at.
_LOOK_S = 1.0


class Lateness:
    """Judges the requests of the classes that shed what would be late."""

    def __init__(self, classes: Iterable[SloClass], *, now_s: float) -> None:
        self._classes = {one.name: None for one in classes if one.shed_late}
        self._next_s = now_s

    def next_s(self, groups: Mapping[GroupId, RequestGroup]) -> float:
        """When what waits is to be looked at again; infinite if there is nothing to shed."""
        return self._next_s if self._classes and groups else inf

    def at_arrival(
        self, request: RequestMeta, estimate: Estimate, *, now_s: float
    ) -> list[GatewayOrder]:
        """What is told of a request that has just come: its estimate, and the order to shed it if it would be late.

        Args:
            estimate: its wait from now on. Gateways count from the arrival.
        """
        told = estimate.after(max(0.0, now_s - request.arrival_s))
        orders: list[GatewayOrder] = [EstimateGiven(request.id, told)]
        late_s = told.p50_s - request.slo.start_s
        if request.slo_class in self._classes and late_s > 0.0:
            orders.append(_shed(request, late_s))
        return orders

    def hopeless(
        self,
        groups: Mapping[GroupId, RequestGroup],
        agents: Mapping[AgentId, Agent],
        timeline: Timeline,
        now_s: float,
    ) -> Iterator[TellGateway]:
        """Orders to shed what waits without hope, now and then; nothing in between."""
        if not self._classes or now_s < self._next_s:
            return
        self._next_s = now_s + _LOOK_S
        for group in groups.values():
            if group.key.slo_class not in self._classes or not group.waiting:
                continue
            passed = [
                request
                for request in group.members()
                if request.due_s <= now_s and not request.produced_tokens
            ]
            if not passed:
                continue
            # When one that comes then would be in time: by what one that came now would have to wait.
            wait = timeline.hypothetical(passed[-1], agents, groups, now_s)
            late_s = 0.0 if wait is None else wait.quantiles_s[0] - passed[-1].slo.start_s
            for request in passed:
                yield TellGateway(request.gateway, _shed(request, late_s))


def _shed(request: RequestMeta, late_s: float) -> ShedOrder:
    return ShedOrder(request.id, ShedReason.LATE, max(0.0, late_s))
