"""Rivals with one queue for the fleet, from which an agent takes the next request when it has room.

They differ in the order of that queue and in whether an urgent arrival may take the place of requests that are bound
already (and, through the executor, of running ones). Deadlines are those of first tokens. A request that was evicted after its
own, and whose class promises no more, has no deadline left: it comes after those that still have one, but not for ever.
"""

from __future__ import annotations

from heapq import heappop, heappush

from qlm_core.model import ModelName, RequestId, RequestMeta
from qlm_core.sim.policies.base import Context
from qlm_core.sim.policies.dispatcher import Dispatcher, Host

_AHEAD = 4
"""Requests bound to an agent beyond those it has pulled."""

_URGENT_S = 10.0
"""With model batching, another model's turn comes when its first request is due in so long."""


# Rank, id, and a number: a request that came back may be in a queue twice, and counts as it came last.
_Entry = tuple[float, RequestId, int, RequestMeta]


class SharedQueue(Dispatcher):
    """First come, first served, by whichever instance has room first."""

    displaces = False
    """Whether a request may take the place of one that was bound and comes later in order."""

    def __init__(self, context: Context):
        super().__init__(context)
        self._queues: dict[ModelName, list[_Entry]] = {}
        self._pushes = 0

    def rank(self, request: RequestMeta) -> float:
        """Requests are taken in ascending order of rank."""
        return request.arrival_s

    def waits(self, request: RequestMeta) -> None:
        """Queue it, and let the agents with room look."""
        self._push(request)
        hosts = sorted(
            self.serving(request.model),
            key=lambda host: (len(host.line), host.model != request.model, len(host.held)),
        )
        for host in hosts[:2]:
            self.room(host)
        if self.displaces and self._queues[request.model]:
            self._displace(request, hosts)

    def room(self, host: Host) -> None:
        """Bind the next requests in order while few are bound."""
        while len(host.line) < _AHEAD:
            queue = self.next_queue(host)
            if not queue:
                return
            request = heappop(queue)[-1]
            if self.free(request):
                self.bind(request, host)

    def _push(self, request: RequestMeta) -> None:
        self._pushes -= 1
        entry = (self.rank(request), request.id, self._pushes, request)
        heappush(self._queues.setdefault(request.model, []), entry)

    def next_queue(self, host: Host) -> list[_Entry] | None:
        """The model's queue from which an agent takes next: that with the first request of all."""
        queues = [
            queue for model, queue in self._queues.items() if queue and model in host.profiles
        ]
        return min(queues, key=lambda queue: queue[0][:2], default=None)

    def _displace(self, request: RequestMeta, hosts: list[Host]) -> None:
        """Give an urgent request the place of the last one bound, where that is latest in order."""
        rank = self.rank(request)
        last = [
            (self.rank(host.line[next(reversed(host.line))]), host) for host in hosts if host.line
        ]
        if not last:
            return
        latest, host = max(last, key=lambda pair: pair[0])
        if latest <= rank or self._queues[request.model][0][1] != request.id:
            return
        heappop(self._queues[request.model])
        self._push(self.unbind(next(reversed(host.line))))
        line = sorted([*host.line.values(), request], key=lambda one: (self.rank(one), one.id))
        host.line.clear()
        for one in line:
            self.bind(one, host)


class Edf(SharedQueue):
    """Earliest deadline first: by the instant at which the first token is late."""

    def rank(self, request: RequestMeta) -> float:
        """Due time of the first token, or of the rest of an output."""
        return request.due_s


class EdfEvict(Edf):
    """Earliest deadline first; an urgent arrival displaces bound requests, and evicts running ones."""

    displaces = True


class EdfModel(Edf):
    """Earliest deadline first within the awake model; another model's turn comes when this one's queue is empty
    or the other's first request would be late soon.
    """

    displaces = True

    def next_queue(self, host: Host) -> list[_Entry] | None:
        """The awake model's queue unless it is empty or another model's first request is urgent."""
        model = host.last_model
        own = self._queues.get(model) if model is not None else None
        earliest = super().next_queue(host)
        if not own or earliest is None or earliest is own:
            return earliest
        other = earliest[0][-1]
        if any(one.last_model == other.model for one in self.hosts.values() if one is not host):
            return own
        profile = host.profiles[other.model]
        left_s = other.due_s - self.now_s
        return earliest if left_s < _URGENT_S + profile.wake_s else own


class LeastSlack(Edf):
    """Least slack first: the due time less the work that the request is expected to be."""

    displaces = True

    def rank(self, request: RequestMeta) -> float:
        """Due time less expected work on the first instance that serves the model."""
        due_s = request.due_s
        for host in self.hosts.values():
            profile = host.profiles.get(request.model)
            if profile is not None:
                decode_s = self.expected_output(request) * profile.iteration_s(decode_batch=1)
                return due_s - profile.prefill_s(request.prompt_tokens) - decode_s
        return due_s
