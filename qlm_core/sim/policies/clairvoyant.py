"""The reference: the Manager with knowledge that nobody has, to say how far from the best the others are.

It knows all requests of the run beforehand, with their true lengths, and makes four uses of that:

* Before the first arrival it goes through the whole run on a fluid fleet, earliest due time first, and gives up what costs
  most wherever a due time would be missed (`given_up`), so that nothing that can be saved is late for what cannot.
* Most targets speak of the first token alone. So only first tokens are planned as urgent, at the pace at which prompts are
  computed; the rest of an output that was evicted is lax work. What is given up is lax work from the start.
* Whoever has a first token gives way to whoever lacks one, a while before it would be too late. That the pauses of
  begun outputs grow is of no concern to a reference, unless a class promises `tpot_s` or `e2e_s`.
* Executors are told the true length of each output, and length models have learned all of them.

Each request is judged by its own target, whatever the Manager is told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush

from qlm_core.config import RwtConfig
from qlm_core.grouping import TIGHT_S, GroupKey
from qlm_core.manager import Manager
from qlm_core.manager.estimators import Estimators
from qlm_core.manager.events import Effect, Event, GatewaySaid, TellAgent
from qlm_core.manager.flow import Rate
from qlm_core.manager.sizing import GroupSizes
from qlm_core.manager.timeline import Timeline
from qlm_core.messages import Arrived, QueueUpdate
from qlm_core.model import (
    RequestId,
    RequestMeta,
    Slo,
)
from qlm_core.profile import EngineProfile
from qlm_core.sim.policies.base import Context, Foreseen
from qlm_core.sim.policies.ours import undying

EXECUTOR_CHANGES = {"output_share": 0.15}
"""Hardly any room is kept for the rest of an output, which gives way in any case."""

_LAX = "(lax work)"
_LAX_SLO = Slo(ttft_s=1e6)


# --------------------------------------------------------------------------- what to give up


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a request needs to be in time.

    Attributes:
        work_s: seconds of the whole fleet.
        weight: cost of being late.
    """

    id: RequestId
    arrival_s: float
    due_s: float
    work_s: float
    weight: float = 1.0


def given_up(jobs: Sequence[Job]) -> dict[RequestId, None]:
    """The requests to give up so that all others are in time on a fluid fleet that works off earliest due times first.

    Moore and Hodgson's rule, extended to jobs that arrive and that have weights: when one would be late, the one of least
    weight for its work is given up, of it and those that were served while it waited. With jobs of equal weight that are all
    there at the start this loses as few as can be.

    Args:
        jobs: in order of arrival.
    """
    lost: dict[RequestId, None] = {}
    waiting: list[tuple[float, int]] = []
    served: list[Job] = []
    start_s: list[float] = []
    now_s, coming = 0.0, 0
    while waiting or coming < len(jobs):
        if not waiting:
            now_s = max(now_s, jobs[coming].arrival_s)
        while coming < len(jobs) and jobs[coming].arrival_s <= now_s:
            heappush(waiting, (jobs[coming].due_s, coming))
            coming += 1
        job = jobs[heappop(waiting)[1]]
        served.append(job)
        start_s.append(max(now_s, job.arrival_s))
        now_s = start_s[-1] + job.work_s
        while served and served[-1] is job and now_s > job.due_s:
            place = _least_worth(served, start_s)
            lost[served[place].id] = None
            del served[place], start_s[place]
            now_s = _close_up(served, start_s, place)
    return lost


def _least_worth(served: Sequence[Job], start_s: Sequence[float]) -> int:
    """The place of the job of least weight for its work among the last one and those that were begun while it waited."""
    last = least = len(served) - 1
    for place in range(last - 1, -1, -1):
        if start_s[place] < served[last].arrival_s:
            break
        one, other = served[place], served[least]
        if one.weight * other.work_s < other.weight * one.work_s:
            least = place
    return least


def _close_up(served: Sequence[Job], start_s: list[float], place: int) -> float:
    """Start all jobs from a place on as soon as they can be; returns when the last one ends."""
    end_s = start_s[place - 1] + served[place - 1].work_s if place else 0.0
    for index in range(place, len(served)):
        start_s[index] = max(end_s, served[index].arrival_s)
        end_s = start_s[index] + served[index].work_s
    return end_s


# --------------------------------------------------------------------------- who knows it all


class Clairvoyant(Manager):
    """The Manager under the same contract; it hears of requests as they should be planned."""

    def __init__(self, context: Context):
        classes = context.classes
        super().__init__(undying(context.config), classes, now_s=0.0)
        self._future = context.foresee()
        self._given_up: dict[RequestId, None] | None = None
        self._first_token_only = {one.name: None for one in classes if one.slo.first_token_only}
        self._weights = {one.name: one.weight for one in classes}
        able = [one for one in classes if one.slo.first_token_only] or classes
        self._laxest = max(able, key=lambda one: one.slo.ttft_s).name
        self.estimators = KnowingEstimators(
            self.config.rwt, self._future, first_token_only=self._first_token_only
        )
        self.timeline = Timeline(
            self.estimators, self._weights, rest_share=self.config.objective.rest_share
        )
        self._sizes = GroupSizes(self.estimators, self.config.grouping)

    def handle(self, event: Event, *, now_s: float) -> list[Effect]:
        """The Manager's answer to the event as it is told of it, in words that executors know."""
        match event:
            case GatewaySaid(gateway, Arrived(request)):
                effects = super().handle(
                    GatewaySaid(gateway, Arrived(self._as_told(request))), now_s=now_s
                )
            case _:
                effects = super().handle(event, now_s=now_s)
        return [self._in_known_words(effect) for effect in effects]

    def _as_told(self, request: RequestMeta) -> RequestMeta:
        """A new request as it is, or without a target if it was given up."""
        if self._given_up is None:
            self._given_up = given_up(self._jobs())
        if request.id in self._given_up:
            return replace(request, slo_class=_LAX, slo=_LAX_SLO)
        return request

    def _in_known_words(self, effect: Effect) -> Effect:
        """An effect with lax work under the name of the laxest class."""
        if not (isinstance(effect, TellAgent) and isinstance(effect.order, QueueUpdate)):
            return effect
        if effect.order.order is None:
            return effect
        order = tuple(
            replace(group, slo_class=self._laxest) if group.slo_class == _LAX else group
            for group in effect.order.order
        )
        return TellAgent(effect.agent, replace(effect.order, order=order))

    def _jobs(self) -> list[Job]:
        """All requests of the run as work for the whole fleet: a prompt where that yields all that is promised, or an output."""
        paces: dict[GroupKey, float] = {}
        jobs = []
        for one in self._future:
            request, key = one.request, GroupKey.of(one.request)
            if key not in paces:
                paces[key] = self._seconds_per_token(key)
            first_only = request.slo_class in self._first_token_only
            tokens = request.prompt_tokens if first_only else one.output_tokens
            jobs.append(
                Job(
                    id=request.id,
                    arrival_s=request.arrival_s,
                    due_s=request.due_s,
                    work_s=tokens * paces[key],
                    weight=self._weights[request.slo_class],
                )
            )
        return jobs

    def _seconds_per_token(self, key: GroupKey) -> float:
        """What a token that counts as work costs the fleet: spread over the engines that serve it, by their speed."""
        engines = [
            one.profiles[key.model] for one in self.agents.values() if key.model in one.profiles
        ]
        tokens_per_s = 0.0
        for profile in engines:
            if key.slo_class in self._first_token_only:
                chunk = profile.max_num_batched_tokens
                tokens_per_s += chunk / profile.prefill_s(chunk)
            else:
                rate = self.estimators.rate(profile, key, now_s=self._now_s)
                tokens_per_s += 1.0 / rate.seconds_per_token
        return len(engines) / tokens_per_s / len(self.agents) if engines else 0.0


class KnowingEstimators(Estimators):
    """Knows the output of every request of a run.

    Args:
        first_token_only: classes of which only the first token is promised.
    """

    __slots__ = ("_first_token_only", "_outputs")

    def __init__(
        self,
        config: RwtConfig,
        future: Sequence[Foreseen],
        *,
        first_token_only: Mapping[str, None],
    ):
        super().__init__(config)
        self._outputs = {one.request.id: one.output_tokens for one in future}
        self._first_token_only = first_token_only
        for one in future:
            self.finished(one.request, one.output_tokens, 0)

    def expected_output(self, request: RequestMeta) -> int:
        """What it will really produce from here on."""
        return max(1, self._outputs[request.id] - request.produced_tokens)

    def _rate(self, profile: EngineProfile, key: GroupKey | None) -> Rate:
        """Where first tokens are soon due, they go at the pace of prompts, and the rest of each output comes later."""
        rate = super()._rate(profile, key)
        if key is None or key.ttft_s > TIGHT_S or key.slo_class not in self._first_token_only:
            return rate
        return replace(rate, seconds_per_request=rate.absorb_s)
