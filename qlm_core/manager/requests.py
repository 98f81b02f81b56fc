"""The Manager's book of requests: one small record for each that has not ended.

Records are kept small on purpose: a solver holds hundreds of thousands of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from qlm_core.grouping import RequestGroup
from qlm_core.manager.bulks import Bulks
from qlm_core.manager.estimators import Estimators
from qlm_core.manager.fleet import Agent
from qlm_core.model import AgentId, GatewayId, RequestId, RequestMeta, RunningRequest
from qlm_core.rwt.waits import Wait


class Held:
    """A request that has not ended.

    Attributes:
        agent: who holds it now.
        wait: its estimated wait, until the first token tells how long it was.
        seen: how much of its output the length models have counted.
    """

    __slots__ = ("agent", "group", "request", "seen", "wait")

    def __init__(self, request: RequestMeta, group: RequestGroup):
        self.request = request
        self.group = group
        self.agent: AgentId | None = None
        self.wait: Wait | None = None
        self.seen = 0


class Book:
    """All requests that have not ended, by id.

    Args:
        bulks: is told which lines of batches wait.

    Attributes:
        waiting: how many of them no agent holds, lines of batches aside.
    """

    __slots__ = ("_bulks", "_held", "waiting")

    def __init__(self, bulks: Bulks) -> None:
        self._bulks = bulks
        self._held: dict[RequestId, Held] = {}
        self.waiting = 0

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, id: RequestId) -> bool:
        return id in self._held

    def add(self, request: RequestMeta, group: RequestGroup) -> Held:
        """Enter a request that has joined `group`."""
        held = Held(request, group)
        self._held[request.id] = held
        self._count(request, 1)
        return held

    def get(self, id: RequestId) -> Held | None:
        """The record of a request, if it has not ended."""
        return self._held.get(id)

    def produced(self, running: Iterable[RunningRequest], estimators: Estimators) -> None:
        """Have the length models count how far running requests have come."""
        for one in running:
            held = self._held.get(one.id)
            if held is not None:
                held.seen = estimators.produced(held.request, one.produced_tokens, held.seen)

    def pulled(self, held: Held, agent: AgentId, agents: Mapping[AgentId, Agent]) -> None:
        """An agent holds a request, which may be news of an agent that is not known."""
        if held.agent is None:
            self._count(held.request, -1)
        held.agent = agent
        holder = agents.get(agent)
        if holder is not None:
            holder.held[held.request.id] = None

    def released(self, held: Held, agents: Mapping[AgentId, Agent]) -> None:
        """No agent holds a request any more."""
        if held.agent is None:
            return
        holder = agents.get(held.agent)
        if holder is not None:
            holder.held.pop(held.request.id, None)
        held.agent = None
        self._count(held.request, 1)

    def remove(self, id: RequestId, agents: Mapping[AgentId, Agent]) -> Held | None:
        """Strike a request out, and from what its agent holds; the record still names the agent."""
        held = self._held.pop(id, None)
        if held is None:
            return None
        if held.agent is None:
            self._count(held.request, -1)
        elif held.agent in agents:
            agents[held.agent].held.pop(id, None)
        return held

    def regroup(self, group: RequestGroup) -> None:
        """The waiting members of a group were in another one before."""
        for request in group.members():
            self._held[request.id].group = group

    def of_gateway(self, gateway: GatewayId) -> list[RequestId]:
        """Requests that a gateway announced."""
        return [id for id, held in self._held.items() if held.request.gateway == gateway]

    def held_by(self, agent: AgentId) -> list[RequestId]:
        """Requests that an agent holds."""
        return [id for id, held in self._held.items() if held.agent == agent]

    def _count(self, request: RequestMeta, more: int) -> None:
        if request.batch:
            self._bulks.count(request, more)
        else:
            self.waiting += more
