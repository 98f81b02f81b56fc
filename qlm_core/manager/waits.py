"""What is told of the waits of new requests, and what is learned once they are over."""

from __future__ import annotations

from collections.abc import Mapping

from qlm_core.grouping import RequestGroup
from qlm_core.manager.estimators import Estimators
from qlm_core.manager.fleet import Agent
from qlm_core.manager.lateness import Lateness
from qlm_core.manager.requests import Held
from qlm_core.manager.timeline import Timeline
from qlm_core.messages import GatewayOrder
from qlm_core.model import AgentId, Estimate, GroupId


def tell_wait(
    held: Held,
    timeline: Timeline,
    estimators: Estimators,
    lateness: Lateness,
    agents: Mapping[AgentId, Agent],
    groups: Mapping[GroupId, RequestGroup],
    *,
    now_s: float,
) -> tuple[Estimate | None, list[GatewayOrder]]:
    """The wait of a new request from now on, and what its gateway is told: that, and to shed it where it is too long."""
    request = held.request
    wait = timeline.wait(request, held.group, agents, groups, now_s)
    if wait is None:
        return None, []
    held.wait = wait
    estimate = estimators.give(request, wait, now_s=now_s)
    return estimate, lateness.at_arrival(request, estimate, now_s=now_s)


def learn_wait(held: Held, estimators: Estimators, *, ttft_s: float) -> None:
    """Its first token came so long after its arrival."""
    if held.wait is None:
        return
    realised_s = held.request.arrival_s + ttft_s - held.wait.told_at_s
    estimators.realised(held.request, held.wait, max(0.0, realised_s))
    held.wait = None
