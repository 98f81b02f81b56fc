"""When a batch will be done, by the queues in force: what stands before its lines, who works on them, and how sure that is.

Of one model, a gateway releases the lines of a tenant's batches in the order in which these are due. So they are taken together:
their groups in the queues are what all of them get, and the lines of those that are due first go before. The rest is arithmetic
(`qlm_core.rwt.finish`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

from qlm_core.grouping import GroupKey, RequestGroup
from qlm_core.manager.estimators import Estimators, Rate
from qlm_core.manager.fleet import Agent
from qlm_core.manager.timeline import Timeline
from qlm_core.model import GroupId
from qlm_core.profile import EngineProfile
from qlm_core.rwt import finish as rwt
from qlm_core.rwt.batches import weighted_quantile
from qlm_core.rwt.finish import DEVIATIONS_P90, Server
from qlm_core.rwt.lengths import LengthModel
from qlm_core.rwt.waits import Wait

_MODEL_ERROR = 0.08
"""What all the rest amounts to: swaps, batches that are not full, plans that change."""

_RATE_DRIFT = 0.25
"""How much rates of arrival change over as long as they are known from, as a standard deviation of the logarithm."""

_STRAGGLE = 0.5
"""While the last outputs run, their batch shrinks to nothing: it is so full on average."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What is left of a batch in one model.

    Attributes:
        waiting: lines that no agent holds. running: lines that one does.
        together: keys of the batches whose lines are released by turns with these, own one included.
        before: lines of those that are due before, with their keys.
    """

    key: GroupKey
    waiting: int
    running: int
    together: tuple[GroupKey, ...]
    before: tuple[tuple[GroupKey, int], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """When the lines of one model will have ended.

    Attributes:
        wait: from now, before calibration.
        instances: that work on them. lines_per_s: that these start together at their steady pace.
        behind_s: the shortest time until one of them begins.
        taken: share of their time that goes to requests that come meanwhile.
        tail_s: from the last start to the last end.
        output_tokens: mean output of a line. ended: lines that this is known from.
    """

    wait: Wait
    instances: int
    lines_per_s: float
    behind_s: float
    taken: float
    tail_s: float
    output_tokens: float
    ended: float


class Forecaster:
    """Looks at queues and tells when work in them will be done."""

    __slots__ = ("_estimators",)

    def __init__(self, estimators: Estimators):
        self._estimators = estimators

    def outlook(
        self,
        work: Work,
        agents: Sequence[Agent],
        groups: Mapping[GroupId, RequestGroup],
        timeline: Timeline,
        *,
        now_s: float,
    ) -> Outlook | None:
        """When the lines of one model will have ended; None while nobody serves it."""
        able = [agent for agent in agents if work.key.model in agent.profiles and agent.usable]
        if not able:
            return None
        taken = self._taken(agents, now_s)
        serving = [
            (agent, server)
            for agent in able
            if (server := self._server(work, agent, groups, timeline, taken, now_s))
        ]
        if work.waiting and not serving:
            return None
        return _Reckoning(self._estimators, work, serving, able, taken, now_s).outlook()

    def _server(
        self,
        work: Work,
        agent: Agent,
        groups: Mapping[GroupId, RequestGroup],
        timeline: Timeline,
        taken: Taken,
        now_s: float,
    ) -> Server | None:
        """What an agent does for the lines; None if none of their groups stands in its queue."""
        own = [id for id in agent.queue if id in groups and groups[id].key in work.together]
        if not own:
            return None
        starts = timeline.room_in_s(agent, groups, now_s)
        profile = self._estimators.profile(agent.profiles[work.key.model])
        paces = {
            key: self._estimators.rate(profile, key, now_s=now_s).seconds_per_request
            for key in work.together
        }
        own_s = sum([groups[id].waiting * paces[groups[id].key] for id in own[:-1]])
        first_s, last_s = starts.get(own[0], 0.0), starts.get(own[-1], 0.0)
        offset_s = first_s + max(0.0, last_s - first_s - own_s)
        # What goes before on this instance takes as long as here, whatever it would elsewhere.
        return Server(offset_s, paces[work.key], taken.of(agent))

    def _taken(self, agents: Sequence[Agent], now_s: float) -> Taken:
        shares: dict[str, float] = {}
        seen, streams = 0.0, 0
        models = {model: None for agent in agents for model in agent.profiles}
        for model in models:
            arriving = self._estimators.arriving(model, now_s=now_s)
            if not arriving:
                continue
            engines = [one for one in agents if one.serves(model)] or [
                one for one in agents if model in one.profiles
            ]
            for one in arriving:
                served_per_s = 0.0
                for agent in engines:
                    if model in agent.profiles:
                        profile = self._estimators.profile(agent.profiles[model])
                        rate = self._estimators.rate(profile, one.key, now_s=now_s)
                        served_per_s += 1.0 / max(1e-9, rate.seconds_per_request)
                for agent in engines:
                    more = one.long_per_s / max(1e-9, served_per_s)
                    shares[agent.id] = shares.get(agent.id, 0.0) + more
            seen += sum(one.seen for one in arriving)
            streams += 1
        return Taken(shares, seen)


@dataclass(frozen=True, slots=True)
class Taken:
    """Shares of agents' time that go to requests which come and go first, and how many of those they are known from."""

    shares: Mapping[str, float]
    seen: float

    def of(self, agent: Agent) -> float:
        """The share of one agent's time."""
        return self.shares.get(agent.id, 0.0)

    @property
    def uncertainty(self) -> float:
        """Standard deviation of the logarithm of the shares."""
        return sqrt(_RATE_DRIFT**2 + 1.0 / max(1.0, self.seen))


class _Reckoning:
    """The arithmetic of one outlook."""

    def __init__(
        self,
        estimators: Estimators,
        work: Work,
        serving: Sequence[tuple[Agent, Server]],
        able: Sequence[Agent],
        taken: Taken,
        now_s: float,
    ):
        self._work = work
        self._servers = [server for _, server in serving]
        self._known = known = estimators.batch(work.key)
        self._guesses = known.guesses()
        self._mean = known.mean_tokens
        self._taken = taken
        working = [agent for agent, _ in serving] or list(able)
        profiles = [estimators.profile(one.profiles[work.key.model]) for one in working]
        rates = [estimators.rate(one, work.key, now_s=now_s) for one in profiles]
        self._room = sum([rate.batch for rate in rates])
        self._lines = work.waiting + _in_these(work, profiles, rates, estimators, now_s)
        mean_taken = sum([taken.of(one) for one in working]) / len(working)
        self._mean_taken = min(rwt.TAKEN_MAX, mean_taken)
        in_flight = self._room * (1.0 - self._mean_taken)
        self._last = min(in_flight, float(work.waiting + work.running))
        # What runs beside the last outputs: their own number shrinks to nothing.
        own = _STRAGGLE * self._last / len(working)
        beside = self._mean_taken * sum([rate.batch for rate in rates]) / len(working)
        batch = max(1.0, own + beside)
        context = known.prompt_tokens + self._mean
        self._token_s = sum(
            [
                one.iteration_s(
                    decode_batch=min(batch, rate.batch),
                    context_tokens=min(batch, rate.batch) * context,
                )
                for one, rate in zip(profiles, rates, strict=True)
            ]
        ) / len(working)
        self._variation = sum([rate.variation for rate in rates]) / len(rates)

    def outlook(self) -> Outlook:
        """All of it."""
        by_length = [
            (self._finish_s(0.5, lengths=one.lengths), one.probability) for one in self._guesses
        ]
        middle_s = weighted_quantile(by_length, 0.5)
        lines = max(1.0, float(self._work.waiting))
        varied = [
            self._finish_s(0.9) + middle_s - self._finish_s(0.5),
            weighted_quantile(by_length, 0.9),
            middle_s
            + self._finish_s(0.5, pace=1.0 + DEVIATIONS_P90 * self._variation / sqrt(lines))
            - self._finish_s(0.5),
            middle_s
            + self._finish_s(0.5, taken=1.0 + DEVIATIONS_P90 * self._taken.uncertainty)
            - self._finish_s(0.5),
            middle_s * (1.0 + DEVIATIONS_P90 * _MODEL_ERROR),
        ]
        p90_s = middle_s * rwt.spread(middle_s, varied)
        p99_s = middle_s * (p90_s / max(middle_s, 1e-9)) ** 1.8
        free = [(1.0 - min(rwt.TAKEN_MAX, one.taken)) / one.pace_s for one in self._servers]
        return Outlook(
            wait=Wait(middle_s, (middle_s, p90_s, max(p90_s, p99_s))),
            instances=len(self._servers),
            lines_per_s=sum(free),
            behind_s=max(0.0, min([one.offset_s for one in self._servers], default=0.0)),
            taken=self._mean_taken,
            tail_s=self._tail_s(0.5, self._known.lengths),
            output_tokens=self._mean,
            ended=self._known.lengths.ended,
        )

    def _finish_s(
        self,
        share: float,
        *,
        lengths: LengthModel | None = None,
        pace: float = 1.0,
        taken: float = 1.0,
    ) -> float:
        start_s = 0.0
        if lengths is not None:
            pace *= lengths.moments(self._known.limit_tokens)[0] / self._mean
        if self._lines:
            servers = [one.stretched(pace=pace, taken=taken) for one in self._servers]
            start_s = rwt.last_start_s(self._lines, servers)
        return start_s + self._tail_s(share, self._known.lengths if lengths is None else lengths)

    def _tail_s(self, share: float, lengths: LengthModel) -> float:
        """From the last start to the last end."""
        known, work = self._known, self._work
        full = self._lines + work.running > self._room
        if full or not work.waiting:
            tokens = rwt.longest_left(lengths, known.limit_tokens, self._last, share)
        else:
            tokens = rwt.longest_of(lengths, known.limit_tokens, self._last, share)
        return tokens * self._token_s


def _in_these(
    work: Work,
    profiles: Sequence[EngineProfile],
    rates: Sequence[Rate],
    estimators: Estimators,
    now_s: float,
) -> float:
    """Lines of other batches that go before, as so many of these."""
    pace_s = sum([rate.seconds_per_request for rate in rates])
    before = 0.0
    for key, lines in work.before:
        paces_s = [estimators.rate(one, key, now_s=now_s).seconds_per_request for one in profiles]
        before += lines * sum(paces_s) / pace_s
    return before
