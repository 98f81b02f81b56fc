"""When each waiting group is expected to start, from the queues in force.

One pass over a queue gives the start of each of its groups relative to now: what the instance still has to do,
then, group by group, a model change where one is due and the group's duration. The pass is repeated at most every
quarter of a second per queue, less often for a long one, unless the queue changes; between two passes only the clock and what
is pulled count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain, pairwise
from math import inf
from typing import NamedTuple

from qlm_core.grouping import GroupKey, RequestGroup
from qlm_core.manager.estimators import Arriving, Estimators, Rate
from qlm_core.manager.fleet import Agent
from qlm_core.manager.slots import EVICT_MARGIN_S, FullSlots, full_slots
from qlm_core.manager.snapshot import ready_in_s, swap_in_s
from qlm_core.model import PAUSE_SHARE, AgentId, GroupId, ModelName, RequestMeta
from qlm_core.profile import EngineProfile
from qlm_core.rwt.waits import Overtaker, Wait, later, relieved, tokens_ahead_wait

_LIFE_S = 0.25
_LIFE_PER_GROUP_S = 0.005
_COUNT_LIFE_S = 1.0
_PACE_S_MIN = 1e-6
"""Prompts cost nothing where a throughput is all that is known of an engine."""

_SERVED_MIN = 1e-9
"""Requests a second, where none of the engines serves the model any more."""

Agents = Mapping[AgentId, Agent]
Groups = Mapping[GroupId, RequestGroup]


class Clocks(NamedTuple):
    """A number for each of the clocks that tell when a place in a queue can start: instants, paces or shares of time.

    Attributes:
        paced: outputs ahead are completed and so make room; in the past while there is room.
        pressed: the same while outputs give way that may.
        computed: the prompts ahead are computed.
    """

    paced: float
    pressed: float
    computed: float

    def later(self, requests: float, paces: Clocks) -> Clocks:
        """The same behind so many more requests."""
        return Clocks(
            self.paced + requests * paces.paced,
            self.pressed + requests * paces.pressed,
            self.computed + requests * paces.computed,
        )

    def in_s(self, now_s: float) -> float:
        """Seconds from now if nothing gives way."""
        return max(self.paced, self.computed) - now_s


class Span(NamedTuple):
    """When a group is worked on, seconds from now: its first and its last request begin, and how long a model change before that
    takes, which ends as the group starts."""

    start_in_s: float
    end_in_s: float
    swap_s: float


_PACED, _PRESSED, _COMPUTED = range(3)
_NOBODY: tuple[list[Overtaker], ...] = ([], [], [])


class _Stream(NamedTuple):
    """Requests of one kind that go on arriving.

    Attributes:
        age_s: for how long.
        shares: of the engines' time that they take by each clock.
        worth: weight of what a second of the engines starts, in requests a second.
    """

    ttft_s: float
    age_s: float
    shares: Clocks
    worth: float

    def first_before_s(self, other: _Stream) -> float:
        """For how long from now its new requests go before one of `other` that arrives now; not if negative.

        Plans let those go first that are worth most for the time that is left until they are late (the index of apparent
        tardiness cost, Vepsalainen and Morton 1987). Among equals that is the order of due times.
        """
        if other.worth == self.worth:
            return other.ttft_s - self.ttft_s
        return other.ttft_s - self.ttft_s * other.worth / self.worth if self.worth else -inf


class _Streams:
    """All that goes on arriving for a model, as seen at `made_s`."""

    __slots__ = ("engines", "made_s", "of", "overtakers")

    def __init__(self, made_s: float, engines: Sequence[Agent], of: Sequence[_Stream]):
        self.made_s = made_s
        self.engines = engines
        self.of = of
        self.overtakers: dict[GroupKey, tuple[list[Overtaker], ...]] = {}


class _Starts:
    """Starts of one queue's groups: instants, and waiting requests of the same kind ahead."""

    __slots__ = ("end", "full", "made_s", "of")

    def __init__(self, made_s: float, full: FullSlots | None):
        self.made_s = made_s
        self.full = full
        self.of: dict[GroupId, Clocks] = {}
        self.end = Clocks(made_s, made_s, made_s)


class Timeline:
    """Expected start of every placed group, made when asked for.

    Args:
        weights: of one request of each SLO class; None where plans let those go first who are due first, whatever their worth.
        rest_share: `solver.objective.rest_share`.
    """

    __slots__ = ("_estimators", "_rest_share", "_starts", "_streams", "_weights")

    def __init__(
        self, estimators: Estimators, weights: Mapping[str, float] | None, *, rest_share: float
    ):
        self._estimators = estimators
        self._weights = weights
        self._rest_share = rest_share
        self._starts: dict[AgentId, _Starts] = {}
        self._streams: dict[ModelName, _Streams] = {}

    def stale(self, agent: AgentId) -> None:
        """The agent's queue or state changed."""
        self._starts.pop(agent, None)

    def pulled(self, agent: Agent, group: RequestGroup, now_s: float) -> None:
        """A group's first waiting member was pulled: what is left of it starts later, all else as before."""
        starts = self._starts.get(agent.id)
        if starts is not None and group.id in starts.of and group.key.model in agent.profiles:
            rate = self._rate(agent, group.key.model, group.key, now_s)
            starts.of[group.id] = starts.of[group.id].later(1, self._paces(rate, group.key))

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
        ahead = group.waiting - 1
        return self._wait(request, group.key, agent, start, ahead, starts.full, agents, now_s)

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
                ahead = last.waiting
            else:
                swap_s = self._swap_s(agent, self._last_model(agent, groups), request.model)
                start, ahead = Clocks(*(end_s + swap_s for end_s in starts.end)), 0
            waits.append(self._wait(request, key, agent, start, ahead, starts.full, agents, now_s))
        return min(waits, key=lambda wait: wait.mean_s, default=None)

    def spans(self, agent: Agent, groups: Groups, now_s: float) -> dict[GroupId, Span]:
        """When each group of a queue is worked on, and the model change before it."""
        starts = self._of(agent, groups, now_s)
        instants_s = [start.in_s(now_s) for start in starts.of.values()]
        instants_s.append(starts.end.in_s(now_s))
        found: dict[GroupId, Span] = {}
        model = agent.model
        for id, (start_s, end_s) in zip(starts.of, pairwise(instants_s), strict=True):
            group = groups.get(id)
            if group is None or group.key.model not in agent.profiles:
                continue
            base = agent.base(group.key.model)
            swap_s = self._swap_s(agent, model, group.key.model) if base != model else 0.0
            found[id] = Span(start_s, max(start_s, end_s), swap_s)
            model = base
        return found

    def _rate(self, agent: Agent, model: ModelName, key: GroupKey | None, now_s: float) -> Rate:
        profile = self._estimators.profile(agent.profiles[model])
        return self._estimators.rate(profile, key, now_s=now_s)

    def _paces(self, rate: Rate, key: GroupKey) -> Clocks:
        pressed_s = rate.pressed_s(key, self._rest_share)
        return Clocks(
            rate.seconds_per_request, max(pressed_s, _PACE_S_MIN), max(_prompt_s(rate), _PACE_S_MIN)
        )

    def _wait(
        self,
        request: RequestMeta,
        key: GroupKey,
        agent: Agent,
        start: Clocks,
        ahead: int,
        full: FullSlots | None,
        agents: Agents,
        now_s: float,
    ) -> Wait:
        rate = self._rate(agent, key.model, key, now_s)
        start = start.later(ahead, self._paces(rate, key))
        # Nobody overtakes who does not wait.
        waits = start.in_s(now_s) > 0.0
        others = self._overtakers(agent, key, agents, now_s) if waits else _NOBODY
        own_s = self._estimators.first_token_s(
            self._estimators.profile(agent.profiles[key.model]),
            _computed_tokens(request, agent),
            batch=min(len(agent.held), round(rate.batch)) if agent.serves(key.model) else 0,
            state=agent.state,
            behind_prompts=start.computed > now_s,
        )
        steady = _behind(start, _PACED, rate, others, own_s, now_s)
        due_in_s = request.due_s - now_s
        press_in_s = due_in_s - PAUSE_SHARE * key.ttft_s
        laxer = full is not None and full.laxer(key.ttft_s) > ahead
        if laxer:
            press_in_s = max(0.0, due_in_s - EVICT_MARGIN_S)
        presses = key.presses or laxer
        if not presses or due_in_s <= 0.0 or steady.quantiles_s[-1] <= press_in_s:
            return steady
        if laxer:
            # Whatever is left of the outputs that give way, it does not count.
            at_once_s = max(0.0, start.pressed - now_s) + own_s
            pressed = Wait(at_once_s, (at_once_s, at_once_s, at_once_s))
        else:
            pressed = _behind(start, _PRESSED, rate, others, own_s, now_s)
        return relieved(steady, pressed, press_in_s=press_in_s, due_in_s=due_in_s)

    def _overtakers(
        self, agent: Agent, key: GroupKey, agents: Agents, now_s: float
    ) -> tuple[Sequence[Overtaker], ...]:
        """What will go before a kind of request, by each clock."""
        streams = self._arriving(agent, key.model, agents, now_s)
        found = streams.overtakers.get(key)
        if found is None:
            own = self._stream(Arriving(key, 0.0, 0.0), streams.engines, now_s)
            firsts = [(other, other.first_before_s(own)) for other in streams.of]
            found = streams.overtakers[key] = tuple(
                [
                    Overtaker(other.shares[clock], first_s, other.age_s)
                    for other, first_s in firsts
                    if first_s > 0.0
                ]
                for clock in (_PACED, _PRESSED, _COMPUTED)
            )
        return found

    def _arriving(self, agent: Agent, model: ModelName, agents: Agents, now_s: float) -> _Streams:
        """What goes on arriving for a model and those beside it, shared by the instances that serve it, else by `agent` alone."""
        known = self._streams.get(model)
        if known is None or now_s - known.made_s > _COUNT_LIFE_S:
            engines = [one for one in agents.values() if one.serves(model)] or [agent]
            arriving = [self._estimators.arriving(one, now_s=now_s) for one in agent.beside(model)]
            of = [self._stream(one, engines, now_s) for one in chain.from_iterable(arriving)]
            known = self._streams[model] = _Streams(now_s, engines, of)
        return known

    def _stream(self, arriving: Arriving, engines: Sequence[Agent], now_s: float) -> _Stream:
        key = arriving.key
        served_per_s = [0.0, 0.0, 0.0]
        # One of them may have joined anew without the model.
        for agent in [one for one in engines if key.model in one.profiles]:
            paces = self._paces(self._rate(agent, key.model, key, now_s), key)
            for clock, pace_s in enumerate(paces):
                served_per_s[clock] += 1.0 / pace_s
        shares = Clocks(*(arriving.per_s / max(served, _SERVED_MIN) for served in served_per_s))
        worth = 1.0
        if self._weights is not None:
            worth = self._weights.get(key.slo_class, 1.0) * served_per_s[_PRESSED]
        return _Stream(key.ttft_s, arriving.age_s, shares, worth)

    def _of(self, agent: Agent, groups: Groups, now_s: float) -> _Starts:
        found = self._starts.get(agent.id)
        life_s = max(_LIFE_S, _LIFE_PER_GROUP_S * len(agent.queue))
        if found is None or now_s - found.made_s > life_s:
            found = self._starts[agent.id] = self._pass(agent, groups, now_s)
        return found

    def _pass(self, agent: Agent, groups: Groups, now_s: float) -> _Starts:
        starts = _Starts(now_s, full_slots(agent, groups, self._estimators, now_s=now_s))
        model = agent.model
        start = self._head(agent, starts.full, now_s)
        leaving = model is not None and bool(agent.held)
        for id in agent.queue:
            group = groups.get(id)
            if group is None or group.key.model not in agent.profiles:
                continue
            rate = self._rate(agent, group.key.model, group.key, now_s)
            if agent.base(group.key.model) != model:
                at_s = max(start.paced, start.computed)
                if leaving and model is not None and model in agent.profiles:
                    at_s += self._rate(agent, model, None, now_s).residence_s
                at_s += self._swap_s(agent, model, group.key.model)
                # A fresh engine has room for a whole batch.
                room_s = rate.batch * (rate.seconds_per_request - rate.absorb_s)
                start = Clocks(at_s - room_s, at_s, at_s)
                model = agent.base(group.key.model)
            starts.of[id] = start
            start = start.later(group.waiting, self._paces(rate, group.key))
            leaving = True
        starts.end = start
        return starts

    def _head(self, agent: Agent, full: FullSlots | None, now_s: float) -> Clocks:
        """When the first place of a queue can start."""
        paced_s = now_s + ready_in_s(agent, self._estimators, now_s=now_s)
        pressed_s = computed_s = max(now_s, paced_s)
        if full is not None:
            paced_s = pressed_s + full.next_s
        if agent.model is not None and agent.model in agent.profiles:
            # The engine has gone on with its prompts since it reported.
            prompt_s = self._rate(agent, agent.model, None, now_s).absorb_s
            computed_s = max(computed_s, agent.reported_s + agent.uncomputed * prompt_s)
        return Clocks(paced_s, pressed_s, computed_s)

    def _swap_s(self, agent: Agent, old: ModelName | None, new: ModelName) -> float:
        if old is not None and agent.base(old) == agent.base(new):
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


def _prompt_s(rate: Rate) -> float:
    """How long the prompt of each request ahead holds up those behind it, room or not."""
    return rate.absorb_s


def _computed_tokens(request: RequestMeta, agent: Agent) -> int:
    """What an engine computes before the next token of a request."""
    if not request.produced_tokens:
        return request.prompt_tokens
    tokens = request.prompt_tokens + request.produced_tokens
    return max(1, round(agent.state.resume_share * tokens))


def _behind(
    start: Clocks,
    clock: int,
    rate: Rate,
    overtakers: tuple[Sequence[Overtaker], ...],
    own_s: float,
    now_s: float,
) -> Wait:
    """The wait by one clock for room, or that for the prompts ahead, whichever is longer, and `own_s` for its own."""

    def wait(clock: int) -> Wait:
        # All that is ahead, in other groups too, adds to the spread as so many requests of this kind.
        return tokens_ahead_wait(
            queueing_s=start[clock] - now_s,
            seconds_per_request=rate.seconds_per_request,
            variation=rate.variation,
            uncertainty=rate.uncertainty,
            prefill_s=own_s,
            overtakers=overtakers[clock],
        )

    # Prompts take the least part of the engines' time: who has longer to wait for room is done with them first.
    if start.computed <= start[clock]:
        return wait(clock)
    computed = wait(_COMPUTED)
    return computed if start[clock] <= now_s else later(computed, wait(clock))
