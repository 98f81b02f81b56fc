"""On how many instances a model is awake: popular models get another one before their requests are late.

A plan knows who waits, not who will come. Where a target is shorter than a swap, a swap for those who wait helps none of them, so
no plan makes it, however many more of them are on their way. So every few seconds the first tokens are foreseen that arrivals as
they are now would miss on the instances where their model is awake, and what that would be with one instance more, taken from
a model that has several or is asked for no more. The instance that is worth most is told to wake the other model (`Agent.wakes`):
plans and seats go by that at once, and the instance turns to it as soon as nothing is left to do.

What an instance is worth to the model that it has awake is told to plans as well (`leaving_s`), or they would swap it back for
the next request that waits: to them an idle instance is free. Whose turn it is where models are more than instances is decided
elsewhere: no model is taken its last instance while it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import exp
from typing import NamedTuple

from qlm_core.config import ObjectiveConfig
from qlm_core.grouping import TIGHT_S, GroupKey
from qlm_core.manager.estimators import Estimators
from qlm_core.manager.fleet import Agent, Roster
from qlm_core.manager.flow import Arriving
from qlm_core.manager.snapshot import swap_in_s
from qlm_core.model import ModelName

LOOK_S = 2.0
"""How often arrivals are weighed."""

SETTLES_S = 15.0
"""After an instance was given away, what comes of it is waited for so long before the next one is."""

WAKES_S = 60.0
"""An instance that has not come to it by then is not to wake the model any more."""

AGAIN_S = 300.0
"""After that nothing is moved for so long: its engine may be unable to, and plans kept work away from it meanwhile."""

HORIZON_S = 30.0
"""Arrivals are taken to go on for so long as they are."""

LEAST = 1.0
"""A swap is to save so much weight of requests at least within the horizon."""

AGE_S = 20.0
SEEN = 5.0
"""An instance is given for requests of this age (`Arriving.age_s`) and known from so many arrivals: a first burst is no rate."""

ASKED = 0.25
"""A model is asked for while so many requests for it are to be expected within the horizon."""

_PROMPT_S_MIN = 1e-6


_Awake = Mapping[ModelName, Sequence[Agent]]


class _Move(NamedTuple):
    """An instance, what it would wake, and the weight of requests a second that this saves."""

    agent: Agent
    base: ModelName
    gain_per_s: float


class Residents:
    """Decides which instance is to wake which model besides what waits.

    Args:
        weights: of one request of each SLO class.

    Attributes:
        leaving_s: for each base on several instances, the swap time that costs as much as what would be late with one less.
    """

    __slots__ = ("_known", "_next_s", "_objective", "_until_s", "_weights", "leaving_s")

    _known: Estimators

    def __init__(self, weights: Mapping[str, float], objective: ObjectiveConfig) -> None:
        self.leaving_s: dict[ModelName, float] = {}
        self._weights = weights
        self._objective = objective
        self._next_s = 0.0
        self._until_s = 0.0

    def spread(self, roster: Roster, estimators: Estimators, *, now_s: float) -> list[Agent]:
        """Look at arrivals if it is time; the agents whose `wakes` has changed."""
        if now_s < self._next_s:
            return []
        self._known = estimators
        self._next_s = now_s + LOOK_S
        awake = _awake(roster.agents)
        self.leaving_s = self._worth_staying(awake, now_s)
        standing = [agent for agent in roster.agents if agent.wakes is not None]
        if standing:
            return self._given_up(standing, now_s)
        move = max(self._moves(awake, now_s), key=lambda one: one.gain_per_s, default=None)
        if move is None:
            return []
        move.agent.wakes = move.base
        self._next_s, self._until_s = now_s + SETTLES_S, now_s + WAKES_S
        return [move.agent]

    def _given_up(self, standing: list[Agent], now_s: float) -> list[Agent]:
        if now_s < self._until_s:
            return []
        for agent in standing:
            agent.wakes = None
        self._next_s, self.leaving_s = now_s + AGAIN_S, {}
        return standing

    def _worth_staying(self, awake: _Awake, now_s: float) -> dict[ModelName, float]:
        if len(awake) < 2:
            return {}
        found = {}
        for base, having in awake.items():
            if len(having) > 1:
                now, less = (self._late_per_s(base, some, now_s) for some in (having, having[1:]))
                weight = (less - now) * HORIZON_S
                found[base] = weight * self._objective.late / max(self._objective.swap, 1e-9)
        return found

    def _moves(self, awake: _Awake, now_s: float) -> Iterable[_Move]:
        """What can be done and saves more than it costs."""
        if len(awake) < 2:
            return
        late = {base: self._late_per_s(base, having, now_s) for base, having in awake.items()}
        for base, having in awake.items():
            if late[base] * HORIZON_S < LEAST:
                continue
            for other, theirs in awake.items():
                if other == base or (len(theirs) == 1 and self._is_asked_for(other, theirs, now_s)):
                    continue
                for agent in _emptiest(theirs, base):
                    left = [one for one in theirs if one is not agent]
                    gain_per_s = late[base] - self._late_per_s(base, [*having, agent], now_s)
                    gain_per_s += late[other] - self._late_per_s(other, left, now_s)
                    if gain_per_s * HORIZON_S >= max(LEAST, self._price(agent, base)):
                        yield _Move(agent, base, gain_per_s)

    def _price(self, agent: Agent, base: ModelName) -> float:
        """Weight of late requests that a swap costs as much as."""
        swap_s = swap_in_s(agent.profiles[base], agent.tier(base))
        return self._objective.swap * swap_s / max(self._objective.late, 1e-9)

    def _arriving(
        self, base: ModelName, agents: Sequence[Agent], now_s: float
    ) -> list[tuple[ModelName, Arriving]]:
        """The kinds of request that go on arriving for a base and its adapters."""
        models = {model: None for agent in agents for model in agent.beside(base)}
        return [
            (model, one)
            for model in models
            for one in self._known.arriving(model, now_s=now_s)
            if one.long_per_s > 0.0
        ]

    def _is_asked_for(self, base: ModelName, agents: Sequence[Agent], now_s: float) -> bool:
        arriving = self._arriving(base, agents, now_s)
        return sum(one.per_s for _, one in arriving) * HORIZON_S >= ASKED

    def _late_per_s(self, base: ModelName, agents: Sequence[Agent], now_s: float) -> float:
        """Weight of first tokens that would be late in a second if these instances had the base awake.

        Prompts are computed one after another on each instance, so that is a queue with so many servers: a request waits with
        Erlang's probability, and for longer than its slack with one that falls exponentially.
        """
        if not agents:
            return 0.0
        load = 0.0
        kinds: list[tuple[float, float, float]] = []
        for model, one in self._arriving(base, agents, now_s):
            if one.key.ttft_s > TIGHT_S or one.age_s < AGE_S or one.seen < SEEN:
                continue
            prompt_s = self._prompt_s(model, one.key, agents, now_s)
            load += one.long_per_s * prompt_s
            weight = self._weights.get(one.key.slo_class, 1.0)
            kinds.append((one.long_per_s * weight, one.key.ttft_s - prompt_s, prompt_s))
        waits = waiting_share(len(agents), load)
        spare = max(0.0, len(agents) - load)
        return sum(
            weight_per_s * waits * exp(-spare * max(0.0, slack_s) / prompt_s)
            for weight_per_s, slack_s, prompt_s in kinds
        )

    def _prompt_s(
        self, model: ModelName, key: GroupKey, agents: Sequence[Agent], now_s: float
    ) -> float:
        """Mean time that a prompt takes on these instances."""
        known = self._known
        each = [
            known.rate(known.profile(agent.profiles[model]), key, now_s=now_s).absorb_s
            for agent in agents
            if model in agent.profiles
        ]
        return max(_PROMPT_S_MIN, sum(each) / max(1, len(each)))


def waiting_share(servers: int, load: float) -> float:
    """The share of arrivals that find all servers taken, at a load in servers (Erlang's C formula); 1 from a full load on."""
    if load >= servers:
        return 1.0
    blocked = 1.0
    for many in range(1, servers + 1):
        blocked = load * blocked / (many + load * blocked)
    return blocked / (1.0 - load / servers * (1.0 - blocked))


def _awake(agents: Iterable[Agent]) -> _Awake:
    """The instances that have each base awake, or are to wake it next."""
    found: dict[ModelName, list[Agent]] = {}
    for agent in agents:
        if agent.model is not None and agent.state.ready and agent.state.swapping_to is None:
            found.setdefault(agent.model, []).append(agent)
    return found


def _emptiest(agents: Iterable[Agent], base: ModelName) -> list[Agent]:
    """Of the instances that could wake a base, those of each kind that hold the fewest requests."""
    found: dict[int, Agent] = {}
    for agent in agents:
        # An adapter's name is no base.
        if base not in agent.profiles or agent.base(base) != base:
            continue
        known = found.get(id(agent.kind))
        if known is None or len(agent.held) < len(known.held):
            found[id(agent.kind)] = agent
    return list(found.values())
