"""The batches that gateways hold: of each, how many lines are no requests yet, in which groups these stand, and what is open.

A batch is planned as what it is. Its lines of one model are a *bulk*: a few groups, about two for each instance that serves the
model, whatever their number, so memory and plans do not grow with it. A line that is released takes its place in the group of
its bulk that will want it first. As lines go, groups are halved, so that all instances end together.

A bulk lasts until none of its lines is left or open. What was learned of it outlives a gateway's new session.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import ceil, inf

from qlm_core.grouping import BatchKey, Grouper, GroupKey, RequestGroup
from qlm_core.manager.estimators import Estimators
from qlm_core.manager.fleet import Agent, Roster
from qlm_core.manager.timeline import Timeline
from qlm_core.messages import BulkWaiting
from qlm_core.model import AgentId, GatewayId, GroupId, ModelName, Phase, RequestMeta, Slo

GROUPS_PER_INSTANCE = 2
LINES_MIN = 4
"""Lines of a group at least, where there are as many."""

SOON_S = 20.0
"""Released lines wait where lines are wanted within so much of the first place that wants any."""

_PLACES_LIFE_S = 1.0
_WHOLE = 0.95

BulkKey = tuple[BatchKey, ModelName]


@dataclass(slots=True, kw_only=True)
class Bulk:
    """The lines of one batch and model that have not ended.

    Attributes:
        due_s: when the completion window is over.
        groups: where lines are planned that are no requests yet.
        open: lines that are requests.
        at_hand: those of them that no agent holds.
        ended: lines that ended while this solver knew of them.
        number: in the order in which bulks came.
        lines: how many there were, as far as this solver knows.
        stopped: whether lines were cancelled or shed.
    """

    key: GroupKey
    number: int
    tenant: str
    arrival_s: float
    due_s: float
    groups: dict[GroupId, RequestGroup] = field(default_factory=dict)
    open: int = 0
    at_hand: int = 0
    ended: int = 0
    lines: int = 0
    stopped: bool = False
    places: list[RequestGroup] = field(default_factory=list)
    places_until_s: float = -inf
    places_epoch: int = -1

    @property
    def cut(self) -> bool:
        """Whether it is over before all its lines have ended by themselves; a few may never have become requests."""
        return self.stopped or self.ended < _WHOLE * self.lines

    @property
    def unreleased(self) -> int:
        """Lines that are no requests yet."""
        return sum([group.unreleased for group in self.groups.values()])

    @property
    def waiting(self) -> int:
        """Lines that no agent holds."""
        return self.unreleased + self.at_hand

    @property
    def held(self) -> int:
        """Lines that an agent holds."""
        return self.open - self.at_hand

    @property
    def left(self) -> int:
        """Lines that have not ended."""
        return self.unreleased + self.open


class Bulks:
    """All bulks, by batch and model.

    Args:
        groups, agents: the Manager's; only looked at here.
        batches_max: bulks beyond so many are not planned with before their lines are released.

    Attributes:
        new, over: bulks that came, and of which nothing is left, until somebody takes note.
        refused: how often one was beyond that.
    """

    __slots__ = (
        "_agents",
        "_announcing",
        "_bulks",
        "_ends",
        "_estimators",
        "_groups",
        "_max",
        "_numbers",
        "_timeline",
        "new",
        "over",
        "refused",
    )

    def __init__(
        self,
        estimators: Estimators,
        timeline: Timeline,
        groups: Mapping[GroupId, RequestGroup],
        agents: Mapping[AgentId, Agent],
        batches_max: int,
    ):
        self._estimators = estimators
        self._timeline = timeline
        self._groups = groups
        self._agents = agents
        self._max = batches_max
        self._bulks: dict[BulkKey, Bulk] = {}
        self._announcing: dict[GatewayId, None] = {}
        self._ends: dict[AgentId | None, list[tuple[RequestMeta, int, int]]] = {}
        self._numbers = 0
        self.new: list[Bulk] = []
        self.over: list[Bulk] = []
        self.refused = 0

    def __len__(self) -> int:
        return len(self._bulks)

    def __iter__(self) -> Iterator[Bulk]:
        return iter(self._bulks.values())

    def of(self, batch: BatchKey, model: ModelName) -> Bulk | None:
        """What is known of a batch's lines of one model."""
        return self._bulks.get((batch, model))

    def by_batch(self) -> dict[BatchKey, list[Bulk]]:
        """The bulks of each batch."""
        found: dict[BatchKey, list[Bulk]] = {}
        for (batch, _), bulk in self._bulks.items():
            found.setdefault(batch, []).append(bulk)
        return found

    def released_by_turns(self, bulk: Bulk) -> list[Bulk]:
        """Those whose lines one gateway releases one after the other, as it does of one model and tenant; itself included."""
        batch, model, tenant = bulk.key.batch, bulk.key.model, bulk.tenant
        return [
            one
            for (other, of), one in self._bulks.items()
            if of == model and one.tenant == tenant and batch is not None and other[0] == batch[0]
        ]

    # ------------------------------------------------------------------ lines that wait

    def told(
        self, gateway: GatewayId, fact: BulkWaiting, grouper: Grouper, roster: Roster
    ) -> list[RequestGroup]:
        """A gateway says how many lines wait; returns the groups that have changed, new ones and emptied ones among them."""
        key = (gateway, fact.batch), fact.model
        bulk = self._bulks.get(key)
        if bulk is None:
            if not fact.lines:
                return []
            if len(self._bulks) >= self._max:
                self.refused += 1
                return []
            bulk = self._enter(key, fact.slo_class, fact.slo, fact.arrival_s, fact.tenant)
        if fact.lines:
            self._estimators.batch(bulk.key).told(
                prompt_tokens=fact.prompt_tokens_mean, limit_tokens=fact.max_output_tokens
            )
        more = fact.lines - bulk.unreleased
        bulk.lines = max(bulk.lines, bulk.ended + bulk.open + fact.lines)
        changed = self._grow(bulk, more, grouper, roster) if more > 0 else _shrink(bulk, -more)
        self._close_if_over(key, bulk)
        return changed

    def size(self, model: ModelName, roster: Roster, *, more: int = 0) -> int:
        """Lines that one group should hold now, or with so many more."""
        lines = sum([bulk.left for (_, of), bulk in self._bulks.items() if of == model])
        return max(LINES_MIN, ceil((lines + more) / _groups_max(model, roster)))

    def shares(self, model: ModelName, lines: int, roster: Roster) -> list[int]:
        """So many more lines of a model, in as many parts as they are to have groups."""
        size = self.size(model, roster, more=lines)
        count = min(max(1, ceil(lines / size)), _groups_max(model, roster))
        return [
            (lines * (number + 1)) // count - (lines * number) // count for number in range(count)
        ]

    def split(self, half: RequestGroup) -> None:
        """A group was halved."""
        batch = half.key.batch
        bulk = self._bulks.get((batch, half.key.model)) if batch is not None else None
        if bulk is not None and half.unreleased:
            bulk.groups[half.id] = half
            bulk.places_until_s = -inf

    def _grow(self, bulk: Bulk, more: int, grouper: Grouper, roster: Roster) -> list[RequestGroup]:
        size = self.size(bulk.key.model, roster, more=more)
        least = min(bulk.groups.values(), key=lambda one: one.unreleased, default=None)
        if least is not None and least.unreleased + more <= size:
            least.unreleased += more
            return [least]
        opened = [
            grouper.open_for_lines(bulk.key, bulk.arrival_s, lines)
            for lines in self.shares(bulk.key.model, more, roster)
        ]
        bulk.groups.update({group.id: group for group in opened})
        bulk.places_until_s = -inf
        return opened

    # ------------------------------------------------------------------ lines that are requests

    def arrived(self, request: RequestMeta, *, epoch: int, now_s: float) -> RequestGroup | None:
        """A line is a request now; returns the group that it has joined, None where the bulk has none left to be released."""
        key = (request.gateway, request.batch), request.model
        bulk = self._bulks.get(key)
        if bulk is None:
            bulk = self._enter(
                key, request.slo_class, request.slo, request.arrival_s, request.tenant
            )
        bulk.open += 1
        stale = now_s >= bulk.places_until_s or epoch != bulk.places_epoch
        if stale or not any(group.unreleased for group in bulk.places):
            bulk.places = self._first_wanted(bulk, now_s)
            bulk.places_until_s, bulk.places_epoch = now_s + _PLACES_LIFE_S, epoch
        wanting = [group for group in bulk.places if group.unreleased]
        group = min(wanting, key=lambda one: one.released, default=None)
        if group is not None:
            group.unreleased -= 1
            if not group.unreleased:
                del bulk.groups[group.id]
            group.add(request)
        return group

    def count(self, request: RequestMeta, more: int) -> None:
        """A line waits for an agent (1), or does not any more (-1)."""
        bulk = self._bulks.get(((request.gateway, request.batch), request.model))
        if bulk is not None:
            bulk.at_hand += more

    def finished(
        self, request: RequestMeta, output_tokens: int, seen: int, agent: AgentId | None
    ) -> None:
        """Learn that a request has come to its end.

        Of a line that is learned when its agent has reported next, as how far the others have come is: learned at once, it
        would make outputs look short of which those alone are known that have ended.
        """
        if not request.batch:
            self._estimators.finished(request, output_tokens, seen)
            return
        self._ends.setdefault(agent, []).append((request, output_tokens, seen))

    def reported(self, agent: AgentId | None) -> None:
        """An agent has said how far all that it runs has come."""
        for request, output_tokens, seen in self._ends.pop(agent, ()):
            if ((request.gateway, request.batch), request.model) in self._bulks:
                self._estimators.finished(request, output_tokens, seen)

    def ended(self, request: RequestMeta, phase: Phase | None) -> None:
        """A line is a request no more; without a phase it is only forgotten."""
        key = (request.gateway, request.batch), request.model
        bulk = self._bulks.get(key)
        if bulk is not None:
            bulk.open -= 1
            bulk.ended += phase is not None
            bulk.stopped |= phase in (Phase.CANCELLED, Phase.SHED)
            self._close_if_over(key, bulk)

    def _first_wanted(self, bulk: Bulk, now_s: float) -> list[RequestGroup]:
        """Of each queue the first group of a bulk that has lines left, if it starts about when the first of them does."""
        firsts: list[tuple[float, RequestGroup]] = []
        for home in {group.home: None for group in bulk.groups.values()}:
            agent = self._agents.get(home) if home is not None else None
            if agent is None:
                continue
            first = next((id for id in agent.queue if id in bulk.groups), None)
            if first is not None:
                span = self._timeline.spans(agent, self._groups, now_s).get(first)
                firsts.append((inf if span is None else span.start_in_s, bulk.groups[first]))
        if not firsts:
            # Nobody serves them yet.
            return list(bulk.groups.values())
        soonest_s = max(0.0, min(start_s for start_s, _ in firsts))
        return [group for start_s, group in firsts if start_s <= soonest_s + SOON_S]

    # ------------------------------------------------------------------ gateways

    def renew(self, gateway: GatewayId) -> list[RequestGroup]:
        """A gateway will announce anew what it holds; returns the groups whose lines are forgotten until then."""
        self._announcing[gateway] = None
        of = [bulk for (batch, _), bulk in self._bulks.items() if batch[0] == gateway]
        return [group for bulk in of for group in _shrink(bulk, bulk.unreleased)]

    def announced(self, gateway: GatewayId) -> None:
        """Everything that a gateway holds is known: what it did not name is over."""
        self._announcing.pop(gateway, None)
        for key in [key for key in self._bulks if key[0][0] == gateway]:
            self._close_if_over(key, self._bulks[key])

    def _enter(self, key: BulkKey, slo_class: str, slo: Slo, arrival_s: float, tenant: str) -> Bulk:
        (batch, model), window_s = key, slo.ttft_s if slo.e2e_s is None else slo.e2e_s
        self._numbers += 1
        bulk = self._bulks[key] = Bulk(
            number=self._numbers,
            key=GroupKey.of_lines(model, slo_class, slo, batch, slo.start_s),
            tenant=tenant,
            arrival_s=arrival_s,
            due_s=arrival_s + window_s,
        )
        self.new.append(bulk)
        return bulk

    def _close_if_over(self, key: BulkKey, bulk: Bulk) -> None:
        batch, model = key
        if not bulk.groups and not bulk.open and batch[0] not in self._announcing:
            del self._bulks[key]
            self.over.append(bulk)
            self._estimators.batch_over(model, batch)


def _groups_max(model: ModelName, roster: Roster) -> int:
    serving = sum([len(alike) for _, alike in roster.engines.get(model, ())])
    return GROUPS_PER_INSTANCE * max(1, serving)


def _shrink(bulk: Bulk, less: int) -> list[RequestGroup]:
    """Take so many lines out of a bulk, from its largest groups on; returns the groups that have changed."""
    changed = []
    for group in sorted(bulk.groups.values(), key=lambda one: (-one.unreleased, -one.id)):
        if not less:
            break
        taken = min(less, group.unreleased)
        group.unreleased -= taken
        less -= taken
        changed.append(group)
        if not group.unreleased:
            del bulk.groups[group.id]
    return changed
