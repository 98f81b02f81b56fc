"""From the Manager's state to a planning problem, and back from a plan to queues of group ids.

What the arrays mean is said in `qlm_core.planning.problem`; this module says how groups and instances become numbers:

* A group occupies a queue for its expected tokens over Θ. Its first member starts when the group before it has been
  pulled, its last one a group's duration later, so the share of late members rises linearly between the two
  instants at which the first and the last of them turn late. That is exactly a tail and a ramp. The ramp is as much wider
  as the due time is away, for what may arrive until then: a plan that has room to spare spends it on keeping
  urgent groups well ahead of their due times, not on running lax ones first because they are short.
* An instance with free room absorbs requests at once: its `busy_s` is negative by that many requests. Since planners
  want non-negative times, all times are shifted by the largest such credit.
* Instances with the same profiles, tiers and speed share a queue class, so bounds are priced once per class.
* Lines of a batch that are no requests yet take their time like others, but weigh no more than those that could run next: a
  million of them must not drown out what a few requests lose.
* A change of model costs the swap itself and half a residence time of the leaving batch, which drains meanwhile. From a base
  to an adapter of it, or between two of them, it costs no more than loading the adapter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import NDArray

from qlm_core.config import ObjectiveConfig
from qlm_core.grouping import GroupKey, RequestGroup
from qlm_core.manager.estimators import Estimators
from qlm_core.manager.fleet import Agent, QueueKind
from qlm_core.model import AgentId, GroupId, ModelName, ModelTier
from qlm_core.planning import NOTHING_LOADED, Plan, Problem
from qlm_core.profile import EngineProfile

_DOWN_S = 15.0
"""How long an instance that is down without a swap is taken to stay so."""

_STARTED_MOVE = 4.0
"""How many times as much it costs to move what is left of a group that has started."""

_SPREAD = 1.28
"""Half the ramp of a group's lateness in standard deviations of its wait: from p10 to p90."""

Floats = NDArray[np.float64]
Classes = dict[QueueKind, dict[ModelName, EngineProfile]]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A problem and what its numbers stand for.

    Attributes:
        shift_s: what was added to every time so that none is negative.
    """

    problem: Problem
    groups: tuple[GroupId, ...]
    agents: tuple[AgentId, ...]
    shift_s: float

    def to_plan(self, queues: Mapping[AgentId, Sequence[GroupId]]) -> Plan:
        """The queues in numbers; groups that the snapshot does not hold are left out."""
        number = {group: index for index, group in enumerate(self.groups)}
        return tuple(
            tuple(number[group] for group in queues.get(agent, ()) if group in number)
            for agent in self.agents
        )

    def to_queues(self, plan: Plan) -> dict[AgentId, list[GroupId]]:
        """A plan in ids."""
        return {
            agent: [self.groups[number] for number in queue]
            for agent, queue in zip(self.agents, plan, strict=True)
        }


def take_snapshot(
    groups: Sequence[RequestGroup],
    agents: Sequence[Agent],
    *,
    weights: dict[str, float],
    estimators: Estimators,
    objective: ObjectiveConfig,
    leaving_s: Mapping[ModelName, float],
    now_s: float,
) -> Snapshot:
    """Describe `groups` and `agents` as a planning problem.

    Args:
        groups: those with waiting members that at least one of `agents` can serve.
        agents: usable ones, in a stable order.
        weights: weight of one request of each SLO class.
        leaving_s: what leaving a base costs beyond the swap itself (`qlm_core.manager.residents`).
    """
    classes, queue_class = _classes(agents)
    models = sorted(
        {group.key.model: None for group in groups}
        | {model: None for profiles in classes.values() for model in profiles}
    )
    model_number = {model: number for number, model in enumerate(models)}
    sheet = _GroupSheet(groups, classes, estimators, objective, now_s=now_s)
    busy = _ready_in_s(agents, estimators, now_s=now_s)
    shift_s = max(0.0, -min(busy, default=0.0))
    place = {agent.id: index for index, agent in enumerate(agents)}
    homes = [place.get(group.home, -1) if group.home is not None else -1 for group in groups]
    problem = Problem(
        group_model=np.array([model_number[group.key.model] for group in groups], np.int64),
        group_requests=sheet.counted,
        group_weight=_weights(groups, weights, now_s=now_s),
        due_s=sheet.due_s + shift_s,
        duration_s=sheet.duration_s,
        tail_s=sheet.tail_s,
        ramp_s=sheet.ramp_s,
        queue_class=np.array(queue_class, np.int64),
        loaded_model=np.array(
            [
                model_number.get(agent.model, NOTHING_LOADED) if agent.model else NOTHING_LOADED
                for agent in agents
            ],
            np.int64,
        ),
        busy_s=np.array(busy) + shift_s,
        swap_s=_swap_matrix(models, classes, estimators, leaving_s, now_s=now_s),
        alpha=objective.late,
        beta=objective.tardiness,
        kappa=objective.swap,
        eps=objective.completion,
        home=np.array(homes, np.int64),
        move_cost=_move_costs(groups, sheet.counted, objective),
        empty_s=shift_s - _empty_room_s(classes, estimators, now_s=now_s),
    )
    return Snapshot(
        problem, tuple(group.id for group in groups), tuple(agent.id for agent in agents), shift_s
    )


def _weights(groups: Sequence[RequestGroup], weights: dict[str, float], *, now_s: float) -> Floats:
    """[N] weight of one request, a hair more for those that came first.

    Groups that are alike in everything else would otherwise stand in any order; so they are served
    first come, first served. The hair is bounded: no age makes up for a class.
    """
    by_class = np.array([weights.get(group.key.slo_class, 1.0) for group in groups])
    age = np.array([min(1.0, (now_s - group.opened_s) / group.key.ttft_s) for group in groups])
    rank = np.arange(len(groups), 0, -1) / max(1, len(groups))
    return by_class * (1.0 + _first_come(age, rank))


def _first_come(age: Floats, rank: Floats) -> Floats:
    """[N] the hair, from the age of each group as a share of its target, and its rank among all."""
    hair: Floats = 1e-2 * age + 1e-3 * rank
    return hair


def _move_costs(
    groups: Sequence[RequestGroup], waiting: NDArray[np.int64], objective: ObjectiveConfig
) -> Floats:
    # A started group has prefixes cached where it ran; moving the rest of it should need a reason.
    started = np.array([group.started for group in groups], np.bool_)
    factor = np.where(started, _STARTED_MOVE, 1.0)
    return (objective.move * waiting * factor).astype(np.float64)


def _classes(agents: Sequence[Agent]) -> tuple[Classes, list[int]]:
    """Queue classes in order of first appearance with their profiles, and each agent's class."""
    found: Classes = {}
    numbers: dict[QueueKind, int] = {}
    # Agents of one kind share the object, so nearly all are told by it without hashing profiles.
    by_object: dict[int, int] = {}
    queue_class: list[int] = []
    for agent in agents:
        number = by_object.get(id(agent.kind))
        if number is None:
            found.setdefault(agent.kind, agent.profiles)
            number = numbers.setdefault(agent.kind, len(numbers))
            by_object[id(agent.kind)] = number
        queue_class.append(number)
    return found, queue_class


Room = tuple[float, float]
"""The steady batch of an instance, and the seconds that one free place in it is worth."""


def _ready_in_s(agents: Sequence[Agent], estimators: Estimators, *, now_s: float) -> list[float]:
    """`ready_in_s` of many agents; those with one profile have the same room."""
    rooms: dict[int, Room] = {}
    ready: list[float] = []
    for agent in agents:
        state = agent.state
        profile = agent.profiles.get(state.awake_model) if state.awake_model is not None else None
        if profile is None or state.swapping_to is not None or not state.ready or agent.wakes:
            ready.append(ready_in_s(agent, estimators, now_s=now_s))
            continue
        found = rooms.get(id(profile))
        if found is None:
            found = rooms[id(profile)] = room(profile, estimators, now_s=now_s)
        batch, place_s = found
        ready.append(-_absorbed_s(batch - len(agent.held), place_s))
    return ready


def _absorbed_s(places: float, place_s: float) -> float:
    """What free room is worth: the seconds in which so many requests would start at the pace of a full batch."""
    return max(0.0, places) * place_s


def _empty_room_s(classes: Classes, estimators: Estimators, *, now_s: float) -> Floats:
    """[C] what the room of an empty instance of each class is worth, whatever it serves."""
    found = []
    for profiles in classes.values():
        rooms = [room(one, estimators, now_s=now_s) for one in profiles.values()]
        found.append(min((_absorbed_s(*one) for one in rooms), default=0.0))
    return np.array(found)


def room(profile: EngineProfile, estimators: Estimators, *, now_s: float) -> Room:
    """The room of an idle instance."""
    rate = estimators.rate(estimators.profile(profile), None, now_s=now_s)
    return rate.batch, rate.seconds_per_request - rate.absorb_s


def ready_in_s(agent: Agent, estimators: Estimators, *, now_s: float) -> float:
    """Seconds until the instance takes waiting requests at its steady pace.

    Negative while free room absorbs requests at once: by as many of them, at that pace.
    """
    state = agent.state
    if agent.wakes is not None and agent.wakes in agent.profiles:
        coming = agent.profiles[agent.wakes]
        return coming.sleep_s + swap_in_s(coming, agent.tier(agent.wakes))
    if state.swapping_to is not None and state.swapping_to in agent.profiles:
        coming = agent.profiles[state.swapping_to]
        swap_s = swap_in_s(coming, agent.tier(state.swapping_to))
        # Once it is awake all of its batch is free. Idle instances of other models are credited with theirs, and would be
        # preferred otherwise: one after another would be swapped for what one swap serves.
        batch, place_s = room(coming, estimators, now_s=now_s)
        return max(0.0, swap_s - (now_s - agent.swap_started_s)) - _absorbed_s(batch, place_s)
    if not state.ready or state.awake_model is None:
        return _DOWN_S if not state.ready else 0.0
    profile = agent.profiles.get(state.awake_model)
    if profile is None:
        return 0.0
    batch, place_s = room(profile, estimators, now_s=now_s)
    return -_absorbed_s(batch - len(agent.held), place_s)


def swap_in_s(profile: EngineProfile, tier: ModelTier) -> float:
    """Seconds to make a model awake from its tier."""
    return profile.cold_s if tier is ModelTier.COLD else (profile.wake_s or profile.cold_s)


class _GroupSheet:
    """The per-group arrays of a problem. Shapes: N groups, C classes."""

    def __init__(
        self,
        groups: Sequence[RequestGroup],
        classes: Classes,
        estimators: Estimators,
        objective: ObjectiveConfig,
        *,
        now_s: float,
    ):
        numbers: dict[GroupKey, int] = {}
        kind = [numbers.setdefault(group.key, len(numbers)) for group in groups]
        kinds = [
            _Kind(key, classes, estimators, objective.rest_share, now_s=now_s) for key in numbers
        ]
        paces = np.array([one.paces_s for one in kinds]).reshape(len(kinds), len(classes))
        early_s = np.array([one.early_s for one in kinds]).reshape(len(kinds), len(classes))
        early_ramp_s = np.array([one.early_ramp_s for one in kinds])
        variations = np.array([one.variation for one in kinds])
        self.waiting = np.array([group.waiting for group in groups], np.int64)
        self.counted = np.array([group.counted for group in groups], np.int64)
        last_due_s = np.array([group.last_due_s for group in groups])
        first_due_s = np.array([_first_due_s(group) for group in groups])
        span_s = last_due_s - first_due_s
        least_early_s = early_s.min(axis=1)[kind]
        target_s = np.array([group.key.ttft_s for group in groups]) - least_early_s
        spare_s = (1.0 - objective.aim) * target_s
        self.due_s = last_due_s - least_early_s - spare_s - now_s
        self.duration_s: Floats = paces[kind] * self.waiting[:, None].astype(np.float64)
        finite = np.where(np.isfinite(self.duration_s), self.duration_s, 0.0)
        self.tail_s = (span_s[:, None] - finite) / 2.0
        more_early_s = early_s[kind] - least_early_s[:, None]
        self.tail_s += np.where(np.isfinite(more_early_s), more_early_s, 0.0)
        fastest_s = paces.min(axis=1)[kind]
        noise_s: Floats = 2.0 * _SPREAD * variations[kind] * fastest_s * np.sqrt(self.waiting)
        self.ramp_s: Floats = np.abs(span_s - fastest_s * self.waiting) + noise_s
        self.ramp_s += early_ramp_s[kind]
        self.ramp_s += _unforeseen_s(self.due_s)


def _unforeseen_s(due_s: Floats) -> Floats:
    """[N] how much wider lateness is for what has not arrived.

    Whatever arrives until then may have to go first: the further away a due time, the less certain it is met.
    """
    return np.maximum(due_s, 0.0)


def _first_due_s(group: RequestGroup) -> float:
    first = group.first()
    return group.last_due_s if first is None else group.key.due_s(first)


class _Kind:
    """What groups of one key have in common.

    Where first tokens are all that is promised, and soon, those of the next group do not wait until these outputs are
    complete. A share of them is planned all the same: executors make outputs give way as late as they can.

    Attributes:
        paces_s: seconds per request on each class, inf where it does not run.
        early_s: on each class, how much before the first token is late an engine has to begin, so that a typical output
            ends in time; inf where it does not run.
        early_ramp_s: how much longer before that a long one would have to begin, to either side.
        variation: standard deviation of output lengths over their mean.
    """

    __slots__ = ("early_ramp_s", "early_s", "paces_s", "variation")

    def __init__(
        self,
        key: GroupKey,
        classes: Classes,
        estimators: Estimators,
        rest_share: float,
        *,
        now_s: float,
    ):
        self.paces_s = [inf] * len(classes)
        self.early_s = [inf] * len(classes)
        self.early_ramp_s = 0.0
        self.variation = 1.0
        for number, profiles in enumerate(classes.values()):
            profile = profiles.get(key.model)
            if profile is None:
                continue
            rate = estimators.rate(estimators.profile(profile), key, now_s=now_s)
            self.paces_s[number] = rate.pressed_s(key, rest_share)
            self.variation = rate.variation
            early_s = _early_s(key, rate.typical_output_s)
            self.early_s[number] = early_s
            ramp_s = 2.0 * (_early_s(key, rate.long_output_s) - early_s)
            self.early_ramp_s = max(self.early_ramp_s, ramp_s)


def _early_s(key: GroupKey, output_s: float) -> float:
    """By how much an output of that duration has to start before its first token is late, to end in time; at most at once."""
    return min(key.ttft_s, max(0.0, key.ttft_s + output_s - key.e2e_s))


def _swap_matrix(
    models: Sequence[ModelName],
    classes: Classes,
    estimators: Estimators,
    leaving_s: Mapping[ModelName, float],
    *,
    now_s: float,
) -> Floats:
    """[C, M + 1, M] seconds of capacity lost by going from one model to another."""
    size = len(models)
    matrix = np.zeros((len(classes), size + 1, size))
    for number, (key, profiles) in enumerate(classes.items()):
        tiers = {ModelName(profile.model): tier for profile, tier in key}
        leave = np.zeros(size + 1)
        for index, model in enumerate(models):
            profile = profiles.get(model)
            if profile is None:
                continue
            rate = estimators.rate(estimators.profile(profile), None, now_s=now_s)
            leave[index] = profile.sleep_s + rate.residence_s / 2
            leave[index] += leaving_s.get(ModelName(profile.base), 0.0)
            matrix[number, :, index] = swap_in_s(profile, tiers[model]) + profile.load_s
        matrix[number] += leave[:, None]
        _join_families(matrix[number], [profiles.get(model) for model in models])
        matrix[number, np.arange(size), np.arange(size)] = 0.0
    return matrix


def _join_families(swap_s: Floats, profiles: Sequence[EngineProfile | None]) -> None:
    """Between a base and its adapters nothing sleeps or wakes."""
    families: dict[str, list[int]] = {}
    for index, profile in enumerate(profiles):
        if profile is not None:
            families.setdefault(profile.base, []).append(index)
    for members in families.values():
        for index in members:
            profile = profiles[index]
            if profile is not None:
                swap_s[members, index] = profile.load_s
