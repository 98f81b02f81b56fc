"""Request groups: which waiting requests are planned as one.

The paper (§4, Algorithm 1) clusters requests by model, SLO and token profile and halves a group above δ times the average
batch. Requests arrive one by one here, so a group is filled to that size instead and then closed; it is also closed once
its arrivals span a share of the SLO, since one due time must speak for all of its members. Inside a group
the order is first come, first served; a request that comes back from an engine stands ahead of those that never ran.

Once all that was promised of a request is out, the rest of its output is lax work, whatever its class: it leaves its group
for one of such rests, so that nothing that can still be late waits for what cannot.

A group may also stand for lines of a batch that are no requests yet. They have a number and no names, so that a million of them
is planned with, and takes no more memory than one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from math import frexp, inf
from typing import NamedTuple

from qlm_core.model import (
    REST_S,
    AgentId,
    BatchId,
    GatewayId,
    GroupId,
    ModelName,
    RequestId,
    RequestMeta,
    Slo,
)

BatchKey = tuple[GatewayId, BatchId]
"""A batch among those of all gateways."""

TIGHT_S = 120.0
"""Targets up to this are planned closely; with later ones there is time for whole outputs, which take a minute or so."""

LIMIT_SCALES = 4
"""Limits above 512 output tokens are all alike: few outputs reach them."""

COUNTED_LINES_MAX = 64
"""So many lines that are no requests yet count for what a group is worth: however many there are, only those that could run
next compete with requests that wait."""

PROMPT_ALONE = -1
"""The scale of limits of a token at most: what has such a limit ends with its prompt."""


class GroupKey(NamedTuple):
    """What all members of a group share.

    `prompt_scale` is 0 up to 256 prompt tokens, then log2. Prompts are all that is known of a request's own size, and
    they weigh as much in the KV cache as outputs do: in overload, short ones let more requests be in time. Where
    targets are lax nothing is won by that, so there it is 0 up to 1,024 tokens, and more come in order of arrival.
    `limit_scale` says the same of the client's limit on the output, where that is low enough to mean something;
    `PROMPT_ALONE` where there is hardly any.
    `ttft_s` is the target counted from arrival, or when the rest of an output is due, `e2e_s` that of the end and `pace_s`
    that of a token after the first, infinite if none was promised; `first_only` says that nothing is promised but a first token.
    Lines of one batch and model are alike whatever their size: what is learned of `batch` says more.
    """

    model: ModelName
    slo_class: str
    ttft_s: float
    first_only: bool
    e2e_s: float
    pace_s: float
    prompt_scale: int
    limit_scale: int
    batch: BatchKey | None = None

    @staticmethod
    def of(request: RequestMeta) -> GroupKey:
        """The key of a request."""
        ttft_s = request.target_s
        if request.batch:
            batch = request.gateway, request.batch
            return GroupKey.of_lines(request.model, request.slo_class, request.slo, batch, ttft_s)
        scale = prompt_scale(request.prompt_tokens, ttft_s)
        limit = limit_scale(request.max_output_tokens)
        only, e2e_s = request.slo.first_token_only, request.slo.e2e_s
        if e2e_s is None:
            e2e_s = inf
        pace_s = inf
        if request.slo.tpot_s is not None and limit != PROMPT_ALONE:
            pace_s = request.slo.tpot_s
        return GroupKey(request.model, request.slo_class, ttft_s, only, e2e_s, pace_s, scale, limit)

    @staticmethod
    def of_lines(
        model: ModelName, slo_class: str, slo: Slo, batch: BatchKey, ttft_s: float
    ) -> GroupKey:
        """The key of the lines of a batch; `ttft_s` is their target."""
        e2e_s = inf if slo.e2e_s is None else slo.e2e_s
        pace_s = inf if slo.tpot_s is None else slo.tpot_s
        only = slo.first_token_only
        return GroupKey(model, slo_class, ttft_s, only, e2e_s, pace_s, 0, LIMIT_SCALES, batch)

    @property
    def kind(self) -> tuple[object, ...]:
        """What is learned of together: targets within a power of two. Clients may name any, and none comes twice."""
        power = frexp(self.ttft_s)[1]
        targets = power, self.first_only, self.e2e_s < inf, frexp(min(self.pace_s, REST_S))[1]
        sizes = self.prompt_scale, self.limit_scale
        return self.model, self.slo_class, targets, *sizes, self.batch

    @property
    def presses(self) -> bool:
        """Whether its outputs, once begun, give way to first tokens that press: nothing more is promised, and that soon."""
        return self.first_only and self.ttft_s <= TIGHT_S

    def due_s(self, request: RequestMeta) -> float:
        """When a member has to start."""
        return request.arrival_s + self.ttft_s


def prompt_scale(tokens: int, ttft_s: float) -> int:
    """How long a prompt is, as far as groups tell: doublings beyond what counts as short."""
    return max(0, (tokens - 1) >> short_prompt_bits(ttft_s)).bit_length()


def short_prompt_bits(ttft_s: float) -> int:
    """Prompts of up to two to the power of this are all alike: of more tokens where the target is lax."""
    return 8 if ttft_s <= TIGHT_S else 10


def limit_scale(max_output_tokens: int) -> int:
    """How low the client's limit on the output is, as far as groups tell: doublings beyond 64 tokens."""
    if max_output_tokens <= 1:
        return PROMPT_ALONE
    return min(LIMIT_SCALES, ((max_output_tokens - 1) >> 6).bit_length())


class RequestGroup:
    """Requests with one key that wait or run as one planned unit.

    Attributes:
        opened_s: arrival of the first member.
        closed: no further request may join.
        pulled: members that an agent holds, with the agent.
        home: the agent in whose virtual queue the group stands or last stood.
        continues: the group of the same key that was full when this one was opened.
        unreleased: lines of a batch that belong to it and are no requests yet.
    """

    __slots__ = (
        "_returned",
        "_waiting",
        "closed",
        "continues",
        "home",
        "id",
        "key",
        "last_due_s",
        "opened_s",
        "pulled",
        "unreleased",
    )

    def __init__(self, id: GroupId, key: GroupKey, opened_s: float):
        self.id = id
        self.key = key
        self.opened_s = opened_s
        self.closed = False
        self.home: AgentId | None = None
        self.continues: GroupId | None = None
        self.last_due_s = opened_s + key.ttft_s
        self.pulled: dict[RequestId, AgentId] = {}
        self.unreleased = 0
        self._waiting: dict[RequestId, RequestMeta] = {}
        self._returned: dict[RequestId, RequestMeta] = {}

    @property
    def waiting(self) -> int:
        """How many members wait, lines that are no requests yet included."""
        return len(self._waiting) + len(self._returned) + self.unreleased

    @property
    def released(self) -> int:
        """How many members wait that are requests: what an agent may be told of."""
        return len(self._waiting) + len(self._returned)

    @property
    def goes_on(self) -> bool:
        """Whether more of it is to come: lines are left, and they are being released, since some wait or are held."""
        return self.unreleased > 0 and bool(self._waiting or self._returned or self.pulled)

    @property
    def counted(self) -> int:
        """For how many waiting requests the group stands where groups are weighed against each other."""
        return self.released + min(self.unreleased, COUNTED_LINES_MAX)

    @property
    def fresh(self) -> int:
        """How many members wait that no agent has held."""
        return len(self._waiting)

    @property
    def empty(self) -> bool:
        """Whether no member is left, waiting or held."""
        return not (self._waiting or self._returned or self.pulled or self.unreleased)

    @property
    def started(self) -> bool:
        """Whether an agent holds a member or has held one that came back."""
        return bool(self.pulled or self._returned)

    def members(self) -> Iterator[RequestMeta]:
        """Waiting members in the order in which they are pulled."""
        return chain(self._returned.values(), self._waiting.values())

    def first(self) -> RequestMeta | None:
        """The waiting member that is pulled next."""
        for request in self._returned.values():
            return request
        for request in self._waiting.values():
            return request
        return None

    def add(self, request: RequestMeta) -> None:
        """Append a new member."""
        self._waiting[request.id] = request
        self.last_due_s = max(self.last_due_s, self.key.due_s(request))

    def pull(self, id: RequestId, agent: AgentId) -> None:
        """A waiting member is held by `agent` now. Unknown ids are ignored."""
        if self._take(id) is not None or id in self.pulled:
            self.pulled[id] = agent

    def give_back(self, request: RequestMeta) -> None:
        """A held member waits again, ahead of those that never ran."""
        self.pulled.pop(request.id, None)
        self._waiting.pop(request.id, None)
        self._returned[request.id] = request
        self.last_due_s = max(self.last_due_s, self.key.due_s(request))

    def drop(self, id: RequestId) -> bool:
        """A member is gone for good; say whether it waited."""
        if self._take(id) is not None:
            return True
        self.pulled.pop(id, None)
        return False

    def move_last_half(self, other: RequestGroup) -> None:
        """Move the half of the fresh members that came last into an empty group; lines that are no requests yet are the last."""
        half = (self.fresh + self.unreleased + 1) // 2
        other.unreleased = min(self.unreleased, half)
        self.unreleased -= other.unreleased
        stay = self.fresh - (half - other.unreleased)
        for request in list(self._waiting.values())[stay:]:
            del self._waiting[request.id]
            other.add(request)
        self.last_due_s = max(
            (self.key.due_s(request) for request in self.members()),
            default=self.opened_s + self.key.ttft_s,
        )

    def _take(self, id: RequestId) -> RequestMeta | None:
        found = self._waiting.pop(id, None)
        return found if found is not None else self._returned.pop(id, None)


def waiting_groups(groups: Iterable[RequestGroup]) -> list[RequestGroup]:
    """Those with members that wait: few of the tens of thousands that a large busy fleet runs, so asked without a call each."""
    return [group for group in groups if group._waiting or group._returned or group.unreleased]


# Where requests came back from an engine, and what is left of them.
_RestPlace = tuple[AgentId | None, GroupKey]


class Grouper:
    """Places each arriving request in the open group of its key, or opens one.

    Args:
        span_ratio: share of the SLO that the arrivals of one group may span.
        requests_max: upper bound on the size of any group.
    """

    __slots__ = ("_next_id", "_open", "_requests_max", "_rest_of", "_rests", "_span_ratio")

    def __init__(self, *, span_ratio: float, requests_max: int):
        self._span_ratio = span_ratio
        self._requests_max = requests_max
        self._open: dict[GroupKey, RequestGroup] = {}
        self._rests: dict[_RestPlace, RequestGroup] = {}
        self._rest_of: dict[GroupId, _RestPlace] = {}
        self._next_id = 1

    def place(self, request: RequestMeta, *, size_max: int) -> tuple[RequestGroup, bool]:
        """Put a request into a group; say whether the group is new.

        Args:
            size_max: requests that a group may hold; with 0 nobody joins another.
        """
        key = GroupKey.of(request)
        group = self._open.get(key)
        if group is not None and self._fits(group, request, size_max):
            group.add(request)
            return group, False
        full = group
        group = self._new(key, request.arrival_s)
        if full is not None:
            full.closed = True
            group.continues = full.id
        self._open[key] = group
        group.add(request)
        return group, True

    def take_back(
        self, request: RequestMeta, group: RequestGroup, *, size_max: int
    ) -> RequestGroup:
        """Have a member that came back from an engine wait in its group, or among the rests there; returns which.

        Rests stay where their group is at home, since what they have in the KV cache is there. Lines of a batch stay together.
        """
        key = GroupKey.of(request)
        if key == group.key or request.batch:
            group.give_back(request)
            return group
        group.drop(request.id)
        place = (group.home, key)
        rest = self._rests.get(place)
        full = rest is not None and rest.waiting >= max(1, size_max)
        if rest is None or rest.closed or rest.home != group.home or full:
            if rest is not None:
                self._rest_of.pop(rest.id, None)
            rest = self._rests[place] = self._new(key, request.arrival_s)
            self._rest_of[rest.id] = place
            rest.home = group.home
        rest.give_back(request)
        return rest

    def open_for_lines(self, key: GroupKey, opened_s: float, lines: int) -> RequestGroup:
        """A group of lines that are no requests yet; nobody joins it but those, as they become some."""
        group = self._new(key, opened_s)
        group.closed = True
        group.unreleased = lines
        return group

    def _new(self, key: GroupKey, opened_s: float) -> RequestGroup:
        group = RequestGroup(GroupId(self._next_id), key, opened_s)
        self._next_id += 1
        return group

    def halve(self, group: RequestGroup) -> RequestGroup:
        """Split a group (Algorithm 1); returns the later half, which takes over whether it is open."""
        half = self._new(group.key, group.opened_s)
        group.move_last_half(half)
        half.home = group.home
        half.closed = group.closed
        group.closed = True
        if self._open.get(group.key) is group:
            self._open[group.key] = half
        return half

    def _fits(self, group: RequestGroup, request: RequestMeta, size_max: int) -> bool:
        span_s = request.arrival_s - group.opened_s
        limit = min(size_max, self._requests_max)
        return group.waiting < limit and span_s <= self._span_ratio * group.key.ttft_s

    def forget(self, group: RequestGroup) -> None:
        """The group is empty and nothing may join it any more."""
        group.closed = True
        if self._open.get(group.key) is group:
            del self._open[group.key]
        place = self._rest_of.pop(group.id, None)
        if place is not None:
            del self._rests[place]
