"""SHEPHERD as the paper describes its baseline: instances are given to streams, which run in fixed batches.

Every period, instances are divided among the streams (model and SLO class) by their demand, the small integer program
of such a division being solved by largest remainders. An instance takes a whole batch of its stream and nothing more until
that batch has ended. Batches are sized for the longest outputs, since execution times are taken to be fixed.
"""

from __future__ import annotations

from collections import deque
from math import inf

from qlm_core.model import AgentId, ModelName, RequestMeta
from qlm_core.sim.policies.base import Context
from qlm_core.sim.policies.dispatcher import Dispatcher, Host

_PERIOD_S = 10.0

Stream = tuple[ModelName, str]


class Shepherd(Dispatcher):
    """Streams, their instances, and one batch at a time on each."""

    def __init__(self, context: Context):
        super().__init__(context)
        self._queues: dict[Stream, deque[RequestMeta]] = {}
        self._arrived: dict[Stream, float] = {}
        self._given: dict[AgentId, Stream] = {}
        self._divide_s = 0.0

    @property
    def wakeup_s(self) -> float | None:
        """The next division, while anything waits."""
        return self._divide_s if any(self._queues.values()) else None

    def waits(self, request: RequestMeta) -> None:
        """Queue it in its stream."""
        stream = (request.model, request.slo_class)
        if stream not in self._queues:
            self._queues[stream] = deque()
            self._divide_s = self.now_s
        self._queues[stream].append(request)
        self._arrived[stream] = self._arrived.get(stream, 0.0) + 1.0
        self.woken()
        for host in self.serving(request.model):
            self.room(host)

    def woken(self) -> None:
        """Divide the instances again if that is due."""
        if self.now_s < self._divide_s or not any(self._queues.values()):
            return
        self._divide_s = self.now_s + _PERIOD_S
        self._divide()
        for host in self.hosts.values():
            self.room(host)

    def room(self, host: Host) -> None:
        """Start the next batch if the last one has ended."""
        stream = self._given.get(host.agent)
        if host.held or host.line or stream is None:
            return
        queue = self._queues[stream]
        for _ in range(min(len(queue), self._batch(host, stream[0]))):
            self.bind(queue.popleft(), host)

    def _batch(self, host: Host, model: ModelName) -> int:
        profile = host.profiles[model]
        longest = 2048 + 1024
        return max(1, min(profile.max_num_seqs, profile.kv_cache_tokens // longest))

    def _divide(self) -> None:
        """Give each instance to one stream: to the one that is furthest below its share."""
        ttft_s = {one.name: one.slo.ttft_s for one in self.context.classes}
        asked = {
            stream: len(queue) + self._arrived.get(stream, 0.0)
            for stream, queue in self._queues.items()
        }
        # A stream of which not one request is to be expected in a period is over.
        demand = {stream: requests for stream, requests in asked.items() if requests >= 1.0}
        for stream in self._arrived:
            self._arrived[stream] *= 0.5
        given = dict.fromkeys(demand, 0.0)
        self._given.clear()
        for host in self.hosts.values():
            able = [one for one in demand if one[0] in host.profiles]
            if not able:
                continue
            chosen = max(
                able,
                key=lambda one: (
                    demand[one] / given[one] if given[one] else inf,
                    one[0] == host.model,
                    -ttft_s.get(one[1], inf),
                    demand[one],
                ),
            )
            given[chosen] += 1.0
            self._given[host.agent] = chosen
