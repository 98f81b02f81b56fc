"""What the fleet has to do with a batch, by the queues in force: who works on its lines, after what, and beside what.

Of one model, a gateway releases the lines of a tenant's batches in the order in which these are due. So they are taken together:
their groups in the queues are what all of them get, and the lines of those that are due first go before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from qlm_core.grouping import GroupKey, RequestGroup
from qlm_core.manager.estimators import Estimators
from qlm_core.manager.fleet import Agent
from qlm_core.manager.reckoning import Outlook, Reckoning, Scene, Work
from qlm_core.manager.timeline import Timeline
from qlm_core.model import AgentId, GroupId, ModelName
from qlm_core.profile import EngineProfile
from qlm_core.rwt.finish import Server, coarse

_PACE_S_MIN = 1e-9

Groups = Mapping[GroupId, RequestGroup]


class Forecaster:
    """Looks at queues and tells when work in them will be done.

    Args:
        agents: those that groups may be placed at.
        groups: those in their queues, and those of what they hold.
    """

    __slots__ = ("_agents", "_estimators", "_groups", "_now_s", "_seen", "_taken", "_timeline")

    def __init__(
        self,
        estimators: Estimators,
        timeline: Timeline,
        agents: Iterable[Agent],
        groups: Groups,
        *,
        now_s: float,
    ):
        self._estimators = estimators
        self._timeline = timeline
        self._agents = [agent for agent in agents if agent.usable]
        self._groups = groups
        self._now_s = now_s
        self._seen = 0.0
        # Of each agent's time: what requests take, and what their prompts do.
        self._taken: dict[AgentId, tuple[float, float]] = {}
        self._count_arrivals()

    def _count_arrivals(self) -> None:
        """What share of each agent's time goes to requests that keep arriving, by how many did over a longer time."""
        models = {model: None for agent in self._agents for model in agent.profiles}
        for model in models:
            arriving = self._estimators.arriving(model, now_s=self._now_s)
            able = [one for one in self._agents if model in one.profiles]
            engines = [one for one in able if one.serves(model)] or able
            for one in arriving:
                served_per_s = computed_per_s = 0.0
                for agent in engines:
                    profile = self._profile(agent, model)
                    rate = self._estimators.rate(profile, one.key, now_s=self._now_s)
                    served_per_s += 1.0 / max(_PACE_S_MIN, rate.seconds_per_request)
                    computed_per_s += 1.0 / max(_PACE_S_MIN, rate.absorb_s)
                for agent in engines:
                    taken, prompts = self._taken.get(agent.id, (0.0, 0.0))
                    taken += one.long_per_s / served_per_s
                    prompts += one.long_per_s / computed_per_s
                    self._taken[agent.id] = taken, prompts
                self._seen += one.seen

    def outlook(self, work: Work) -> Outlook | None:
        """When the lines of one model will have ended; None while nobody serves it."""
        able = [agent for agent in self._agents if work.key.model in agent.profiles]
        waiting = [agent for agent in able if self._own_groups(agent, work)]
        if not able or (work.waiting and not waiting):
            return None
        outputs: dict[int, int] = {}
        engines = list(waiting)
        for agent in able:
            own = self._own_outputs(agent, work)
            for produced in own:
                about = coarse(produced)
                outputs[about] = outputs.get(about, 0) + 1
            if own and agent not in engines:
                engines.append(agent)
        scene = self._scene(work, waiting, engines or able, outputs)
        return Reckoning(self._estimators, work, scene, now_s=self._now_s).outlook()

    def _scene(
        self,
        work: Work,
        waiting: Sequence[Agent],
        engines: Sequence[Agent],
        outputs: Mapping[int, int],
    ) -> Scene:
        counts: dict[int, tuple[EngineProfile, int]] = {}
        for agent in engines:
            profile = self._profile(agent, work.key.model)
            counts[id(profile)] = profile, counts.get(id(profile), (profile, 0))[1] + 1
        held = sum([len(agent.held) for agent in engines])
        resident = sum([agent.state.kv_used_tokens for agent in engines])
        return Scene(
            servers=[self._server(agent, work) for agent in waiting],
            engines=tuple(counts.values()),
            outputs=outputs,
            beside=max(0, held - work.running),
            context_tokens=resident / held if held else 0.0,
            taken=self._mean_taken(engines, 0),
            taken_by_prompts=self._mean_taken(engines, 1),
            taken_seen=self._seen,
        )

    def _server(self, agent: Agent, work: Work) -> Server:
        """What an agent does for the lines in its queue."""
        own = self._own_groups(agent, work)
        starts = self._timeline.room_in_s(agent, self._groups, self._now_s)
        profile = self._profile(agent, work.key.model)
        own_s = sum([group.waiting * self._pace_s(profile, group.key) for group in own[:-1]])
        first_s, last_s = starts.get(own[0].id, 0.0), starts.get(own[-1].id, 0.0)
        offset_s = first_s + max(0.0, last_s - first_s - own_s)
        return Server(offset_s, self._pace_s(profile, work.key), self._mean_taken([agent], 0))

    def _pace_s(self, profile: EngineProfile, key: GroupKey) -> float:
        return self._estimators.rate(profile, key, now_s=self._now_s).seconds_per_request

    def _mean_taken(self, agents: Sequence[Agent], which: int) -> float:
        return sum([self._taken.get(one.id, (0.0, 0.0))[which] for one in agents]) / len(agents)

    def _own_groups(self, agent: Agent, work: Work) -> list[RequestGroup]:
        found = [self._groups[id] for id in agent.queue if id in self._groups]
        return [group for group in found if group.key in work.together]

    def _own_outputs(self, agent: Agent, work: Work) -> list[int]:
        """How far the lines that run on an agent have come."""
        return [
            one.produced_tokens
            for one in agent.state.running
            if one.produced_tokens
            and (group := self._groups.get(one.group)) is not None
            and group.key == work.key
        ]

    def _profile(self, agent: Agent, model: ModelName) -> EngineProfile:
        return self._estimators.profile(agent.profiles[model])
