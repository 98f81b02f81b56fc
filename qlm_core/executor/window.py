"""The agent's copy of its virtual queue: the order of groups and, in each, references to requests, first come first.

A window is a part of the queue; the solver refills it. Requests of a gateway that cannot be reached are set
aside until it can, so that they hold nobody up. So are references to requests that are in flight here: whoever sent
them may know that the attempt is void before we do. What is left of a group that leaves the order is forgotten: the solver sends
it anew if the group comes back. All operations are O(1) per request, but for a look past those
that came back begun.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Container, Iterator
from itertools import islice

from qlm_core.messages import QueueUpdate
from qlm_core.model import GatewayId, GroupId, ModelName, QueuedGroup, RequestId, RequestRef

_References = OrderedDict[RequestId, RequestRef]


class Window:
    """Groups in order, references in each. Only groups in the order are pulled from."""

    def __init__(self) -> None:
        self.epoch = 0
        self.order: tuple[QueuedGroup, ...] = ()
        self._position: dict[GroupId, int] = {}
        self._groups: dict[GroupId, _References] = {}
        self._group_of: dict[RequestId, GroupId] = {}
        self._offline: dict[RequestId, RequestRef] = {}
        self._in_flight: dict[RequestId, RequestRef] = {}
        self._reachable: dict[GatewayId, None] = {}
        # No group before this position has a reference.
        self._first = 0

    def __len__(self) -> int:
        return len(self._group_of) + len(self._offline)

    def __contains__(self, id: object) -> bool:
        return id in self._group_of or id in self._offline

    def apply(self, update: QueueUpdate, in_flight: Container[RequestId]) -> bool:
        """Take an update over; False if it is older than the last one.

        References to what is `in_flight` count from the moment that `landed` is told of it.
        """
        if update.epoch < self.epoch:
            return False
        self.epoch = update.epoch
        if update.snapshot:
            self.order = ()
            self._first = 0
            self._position.clear()
            self._groups.clear()
            self._group_of.clear()
            self._offline.clear()
            self._in_flight.clear()
        if update.order is not None:
            self.order = update.order
            self._position = {group.id: index for index, group in enumerate(update.order)}
            self._first = 0
            self._forget_others()
        for id in update.remove:
            self.take(id)
            self._in_flight.pop(id, None)
        for ref in update.add:
            if ref.id in in_flight:
                self._in_flight[ref.id] = ref
            else:
                self.take(ref.id)
                self._insert(ref)
        return True

    def landed(self, id: RequestId) -> None:
        """A request is no longer in flight: a reference that came meanwhile counts now."""
        ref = self._in_flight.pop(id, None)
        if ref is not None:
            self._insert(ref)

    def set_reachable(self, gateway: GatewayId, reachable: bool) -> None:
        """Note whether a gateway can be asked for payloads."""
        if not reachable:
            self._reachable.pop(gateway, None)
            return
        self._reachable[gateway] = None
        waiting = [ref for ref in self._offline.values() if ref.gateway == gateway]
        for ref in reversed(waiting):
            self.put_back(ref)

    def put_back(self, ref: RequestRef) -> None:
        """Insert a reference at the front of its group."""
        self._offline.pop(ref.id, None)
        self._insert(ref)
        if ref.id not in self._group_of:
            return
        self._groups[ref.group].move_to_end(ref.id, last=False)

    def take(self, id: RequestId) -> RequestRef | None:
        """Remove a reference; None if it is not here."""
        group = self._group_of.pop(id, None)
        if group is None:
            return self._offline.pop(id, None)
        references = self._groups[group]
        ref = references.pop(id)
        if not references:
            del self._groups[group]
        return ref

    def head(self, skip: Container[ModelName] = ()) -> QueuedGroup | None:
        """The first group in order that has a reference to pull, passing over the models in `skip`."""
        order = self.order
        while self._first < len(order) and not self._pullable(order[self._first].id):
            self._first += 1
        for index in range(self._first, len(order)):
            group = order[index]
            if group.model not in skip and self._pullable(group.id):
                return group
        return None

    def group(self, id: GroupId) -> QueuedGroup | None:
        """A group that is in the order and has a reference to pull."""
        position = self._position.get(id)
        if position is None or not self._pullable(id):
            return None
        return self.order[position]

    def slo_class(self, group: GroupId) -> str | None:
        """The class of a group in the order, None if it is not there."""
        position = self._position.get(group)
        return None if position is None else self.order[position].slo_class

    def model(self, group: GroupId) -> ModelName | None:
        """The model of a group in the order, None if it is not there."""
        position = self._position.get(group)
        return None if position is None else self.order[position].model

    def first(self, group: GroupId) -> RequestRef:
        """The reference of a group that comes next. The group must have one."""
        references = self._groups[group]
        return references[next(iter(references))]

    def next(self, head: QueuedGroup, fresh_due_s: float) -> tuple[QueuedGroup, RequestRef]:
        """The reference to pull, and its group, when it is the turn of `head`.

        That is the group's first, unless this goes on with an output that was begun: the first in the run of
        its class that still waits for its first token comes before it, if that is due by `fresh_due_s`.
        """
        first = self.first(head.id)
        if first.produced_tokens:
            for group in self._run(head, lambda name: name == head.slo_class):
                for ref in self.peek(group.id):
                    if ref.produced_tokens or ref.gateway not in self._reachable:
                        continue
                    return (group, ref) if ref.due_s <= fresh_due_s else (head, first)
        return head, first

    def peek(self, group: GroupId) -> Iterator[RequestRef]:
        """The references of a group, first come first."""
        return iter(self._groups.get(group, _References()).values())

    def upcoming(self, head: QueuedGroup, wanted: Callable[[str], bool]) -> Iterator[RequestRef]:
        """References from a group on, as long as model and class stay as wanted."""
        for group in self._run(head, wanted):
            yield from self.peek(group.id)

    def alike(self, head: QueuedGroup) -> Iterator[tuple[QueuedGroup, RequestRef]]:
        """References of the head's class that can be asked for, with their groups, until the order comes to another model."""
        for group in islice(self.order, self._position.get(head.id, 0), None):
            if group.model != head.model:
                return
            if group.slo_class == head.slo_class:
                for ref in self.peek(group.id):
                    if ref.gateway in self._reachable:
                        yield group, ref

    def position(self, group: GroupId) -> int | None:
        """Where a group stands in the order, None if it does not."""
        return self._position.get(group)

    def _run(self, head: QueuedGroup, wanted: Callable[[str], bool]) -> Iterator[QueuedGroup]:
        """Groups from one on, as long as model and class stay as wanted."""
        for group in islice(self.order, self._position.get(head.id, 0), None):
            if group.model != head.model or not wanted(group.slo_class):
                return
            yield group

    def _forget_others(self) -> None:
        """Forget references to groups that are not in the order: of requests that another agent has pulled meanwhile."""
        for id in [group for group in self._groups if group not in self._position]:
            for request in self._groups.pop(id):
                del self._group_of[request]
        for aside in (self._offline, self._in_flight):
            for request in [id for id, ref in aside.items() if ref.group not in self._position]:
                del aside[request]

    def _insert(self, ref: RequestRef) -> None:
        if ref.group not in self._position:
            return
        if ref.gateway not in self._reachable:
            self._offline[ref.id] = ref
            return
        self._groups.setdefault(ref.group, _References())[ref.id] = ref
        self._group_of[ref.id] = ref.group
        position = self._position.get(ref.group)
        if position is not None and position < self._first:
            self._first = position

    def _pullable(self, group: GroupId) -> bool:
        """Whether a group has a reference to pull; sets aside those whose gateway is away."""
        references = self._groups.get(group)
        while references:
            id = next(iter(references))
            ref = references[id]
            if ref.gateway in self._reachable:
                return True
            self.take(id)
            self._offline[id] = ref
        return False
