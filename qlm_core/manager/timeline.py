"""When each waiting group is expected to start, from the queues in force.

One pass over a queue gives the start of each of its groups relative to now: what the instance still has to do,
then, group by group, a model change where one is due and the group's duration. The pass is repeated at most every
quarter of a second per queue, less often for a long one, unless the queue changes; between two passes only the clock and what
is pulled count.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from qlm_core.grouping import GroupKey, RequestGroup
from qlm_core.manager.estimators import Arriving, Estimators, Rate
from qlm_core.manager.fleet import Agent
from qlm_core.manager.snapshot import ready_in_s, swap_in_s
from qlm_core.model import AgentId, GroupId, ModelName, RequestMeta
from qlm_core.profile import EngineProfile
from qlm_core.rwt.waits import Overtaker, Wait, tokens_ahead_wait

_LIFE_S = 0.25
_LIFE_PER_GROUP_S = 0.005
_COUNT_LIFE_S = 1.0

Agents = Mapping[AgentId, Agent]
Groups = Mapping[GroupId, RequestGroup]


class Start(NamedTuple):
    """When a place in a queue can start, by two clocks of which the later tells. Instants.

    Attributes:
        paced_s: what is ahead has made room at the steady pace; in the past while there is room.
        computed_s: the prompts ahead are computed.
    """

    paced_s: float
    computed_s: float

    def later(self, requests: float, rate: Rate) -> Start:
        """The same behind so many more requests."""
        return Start(
            self.paced_s + requests * rate.seconds_per_request,
            self.computed_s + requests * rate.absorb_s,
        )

    def in_s(self, now_s: float) -> float:
        """Seconds from now."""
        return max(self.paced_s, self.computed_s) - now_s


class _Starts:
    """Starts of one queue's groups: instants, and waiting requests of the same kind ahead."""

    __slots__ = ("end", "made_s", "of")

    def __init__(self, made_s: float):
        self.made_s = made_s
        self.of: dict[GroupId, Start] = {}
        self.end = Start(made_s, made_s)


class Timeline:
    """Expected start of every placed group, made when asked for."""

    __slots__ = ("_awake", "_estimators", "_starts")

    def __init__(self, estimators: Estimators):
        self._estimators = estimators
        self._starts: dict[AgentId, _Starts] = {}
        self._awake: dict[ModelName, tuple[float, tuple[Arriving, ...]]] = {}

    def stale(self, agent: AgentId) -> None:
        """The agent's queue or state changed."""
        self._starts.pop(agent, None)

    def pulled(self, agent: Agent, group: RequestGroup, now_s: float) -> None:
        """A group's first waiting member was pulled: what is left of it starts later, all else as before."""
        starts = self._starts.get(agent.id)
        if starts is not None and group.id in starts.of and group.key.model in agent.profiles:
            rate = self._rate(agent, group.key.model, group.key, now_s)
            starts.of[group.id] = starts.of[group.id].later(1, rate)

    def wait(
        self,
        request: RequestMeta,
        group: RequestGroup,
        agents: Agents,
        groups: Groups,
        now_s: float,
    ) -> Wait | None:
        """The wait of the last member of a group; None while the group has no queue."""
        agent = agents.get(group.home) if group.home is not None else None
        if agent is None or request.model not in agent.profiles:
            return None
        starts = self._of(agent, groups, now_s)
        start = starts.of.get(group.id, starts.end)
        return self._wait(agent, group.key, start, group.waiting - 1, agents, now_s)

    def hypothetical(
        self, request: RequestMeta, agents: Agents, groups: Groups, now_s: float
    ) -> Wait | None:
        """The shortest wait of a request that would join or open a group now."""
        key = GroupKey.of(request)
        waits = []
        for agent in agents.values():
            if request.model not in agent.profiles:
                continue
            starts = self._of(agent, groups, now_s)
            same = [id for id in agent.queue if groups[id].key == key]
            if same:
                last = groups[same[-1]]
                start = starts.of.get(last.id, starts.end)
                waits.append(self._wait(agent, key, start, last.waiting, agents, now_s))
            else:
                swap_s = self._swap_s(agent, self._last_model(agent, groups), request.model)
                end = starts.end
                start = Start(end.paced_s + swap_s, end.computed_s + swap_s)
                waits.append(self._wait(agent, key, start, 0, agents, now_s))
        return min(waits, key=lambda wait: wait.mean_s, default=None)

    def start_in_s(self, agent: Agent, groups: Groups, now_s: float) -> dict[GroupId, float]:
        """Seconds until each group of a queue starts."""
        starts = self._of(agent, groups, now_s)
        return {id: start.in_s(now_s) for id, start in starts.of.items()}

    def _rate(self, agent: Agent, model: ModelName, key: GroupKey | None, now_s: float) -> Rate:
        profile = self._estimators.profile(agent.profiles[model])
        return self._estimators.rate(profile, key, now_s=now_s)

    def _wait(
        self,
        agent: Agent,
        key: GroupKey,
        start: Start,
        ahead: int,
        agents: Agents,
        now_s: float,
    ) -> Wait:
        rate = self._rate(agent, key.model, key, now_s)
        queueing_s = start.later(ahead, rate).in_s(now_s)
        # Nobody overtakes who does not wait.
        arriving = self._arriving(agent, key.model, agents, now_s) if queueing_s > 0.0 else ()
        # All that is ahead, in other groups too, adds to the spread as so many requests of this kind.
        return tokens_ahead_wait(
            queueing_s=queueing_s,
            seconds_per_request=rate.seconds_per_request,
            variation=rate.variation,
            uncertainty=rate.uncertainty,
            prefill_s=rate.prefill_s,
            overtakers=[
                Overtaker(other.share, key.ttft_s - other.ttft_s, other.age_s)
                for other in arriving
                if other.ttft_s < key.ttft_s
            ],
        )

    def _arriving(
        self, agent: Agent, model: ModelName, agents: Agents, now_s: float
    ) -> tuple[Arriving, ...]:
        """What goes on arriving for a model, shared by the instances that have it awake, or else by `agent` alone."""
        known = self._awake.get(model)
        if known is None or now_s - known[0] > _COUNT_LIFE_S:
            awake = [one.profiles[model] for one in agents.values() if one.model == model]
            engines = awake or [agent.profiles[model]]
            arriving = self._estimators.arriving(model, engines, now_s=now_s)
            known = self._awake[model] = (now_s, arriving)
        return known[1]

    def _of(self, agent: Agent, groups: Groups, now_s: float) -> _Starts:
        found = self._starts.get(agent.id)
        life_s = max(_LIFE_S, _LIFE_PER_GROUP_S * len(agent.queue))
        if found is None or now_s - found.made_s > life_s:
            found = self._starts[agent.id] = self._pass(agent, groups, now_s)
        return found

    def _pass(self, agent: Agent, groups: Groups, now_s: float) -> _Starts:
        starts = _Starts(now_s)
        model = agent.model
        start = self._head(agent, now_s)
        leaving = model is not None and bool(agent.held)
        for id in agent.queue:
            group = groups.get(id)
            if group is None or group.key.model not in agent.profiles:
                continue
            rate = self._rate(agent, group.key.model, group.key, now_s)
            if group.key.model != model:
                at_s = max(start.paced_s, start.computed_s)
                if leaving and model is not None and model in agent.profiles:
                    at_s += self._rate(agent, model, None, now_s).residence_s
                at_s += self._swap_s(agent, model, group.key.model)
                # A fresh engine has room for a whole batch.
                room_s = rate.batch * (rate.seconds_per_request - rate.absorb_s)
                start = Start(at_s - room_s, at_s)
                model = group.key.model
            starts.of[id] = start
            start = start.later(group.waiting, rate)
            leaving = True
        starts.end = start
        return starts

    def _head(self, agent: Agent, now_s: float) -> Start:
        """When the first place of a queue can start."""
        paced_s = now_s + ready_in_s(agent, self._estimators, now_s=now_s)
        computed_s = max(now_s, paced_s)
        if agent.model is not None and agent.model in agent.profiles:
            # The engine has gone on with its prompts since it reported.
            prompt_s = self._rate(agent, agent.model, None, now_s).absorb_s
            computed_s = max(computed_s, agent.reported_s + agent.uncomputed * prompt_s)
        return Start(paced_s, computed_s)

    def _swap_s(self, agent: Agent, old: ModelName | None, new: ModelName) -> float:
        if old == new:
            return 0.0
        profile: EngineProfile | None = agent.profiles.get(old) if old is not None else None
        return (profile.sleep_s if profile is not None else 0.0) + swap_in_s(
            agent.profiles[new], agent.tier(new)
        )

    @staticmethod
    def _last_model(agent: Agent, groups: Groups) -> ModelName | None:
        for id in reversed(agent.queue):
            if id in groups:
                return groups[id].key.model
        return agent.model
