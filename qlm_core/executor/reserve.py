"""Room kept free of lax work for requests whose first token was promised so soon that an eviction comes late for it.

A class is *prompt* if its whole target is within the eviction margin: its requests press as they arrive. One that finds a
slot free has its first token after an iteration or two. One that does not waits until an eviction has taken effect: the server
notices that the connection is closed, and the engine frees the slot when it next forms a batch.

So a few slots are kept free. How many is a rule of thumb (`Uses.slots`). What prompt requests take of them comes back as others
end; when none is left, lax work gives one back at once, and one to each prompt request that waits. That is work of classes with
targets of more than a minute, as long as it is not due sooner: it loses nothing by a pause.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import chain, islice
from math import exp, inf

from qlm_core.config import ExecutorConfig
from qlm_core.executor.attempts import Attempts
from qlm_core.executor.batch import NO_ROOM, InFlight, Room
from qlm_core.executor.urgency import LOOKAHEAD, Need, victims
from qlm_core.model import QueuedGroup, RequestRef

# Arrivals within this time come together: evictions take half of it, and a slot or so comes free by itself.
_TOGETHER_S = 0.12
# A slot is kept free from when it is used once in so many seconds, until it is used less than this share of that.
_USED_EVERY_S = 1.0
_STILL = 0.75
# What came so long ago counts by 1/e.
_FADES_S = 4.0
# At most this share of an engine's slots is kept free.
_SHARE_MAX = 0.25
# Weight of the newest request in the mean charge.
_WEIGHT = 0.1
# Classes with longer targets than this are lax, and their requests as long as they are not due sooner.
_LAX_S = 60.0


class Uses:
    """How often each place of a reserve is used, of late: the k-th by a request that comes with k - 1 or more just before it."""

    __slots__ = ("_at_s", "_kept", "_per_s", "_recent")

    def __init__(self) -> None:
        self._recent: deque[float] = deque()
        self._per_s: list[float] = []
        self._kept = 0
        self._at_s = 0.0

    def arrived(self, now_s: float) -> None:
        """A prompt request has come."""
        self._fade(now_s)
        recent, uses = self._recent, self._per_s
        recent.append(now_s)
        while recent[0] < now_s - _TOGETHER_S:
            recent.popleft()
        uses += [0.0] * (len(recent) - len(uses))
        for place in range(len(recent)):
            uses[place] += 1.0 / _FADES_S

    def slots(self, now_s: float) -> int:
        """How many slots to keep free: each from when it is used once in `_USED_EVERY_S`, until it is used clearly less.

        A rule of thumb. Steady arrivals are given what they need while slots come free for those after them,
        requests that come at once as many slots as come at once, and a class of which nothing comes any more none. A slot that
        is kept costs its share of the engine's work, and one that is given to lax work between two arrivals an eviction. What
        it is worth was measured (benchmarks/README.md).
        """
        self._fade(now_s)
        uses = self._per_s
        while self._kept < len(uses) and uses[self._kept] * _USED_EVERY_S > 1.0:
            self._kept += 1
        while self._kept and uses[self._kept - 1] * _USED_EVERY_S < _STILL:
            self._kept -= 1
        return self._kept

    def _fade(self, now_s: float) -> None:
        share = exp((self._at_s - now_s) / _FADES_S)
        self._per_s = [one * share for one in self._per_s]
        self._at_s = now_s


class Reserve:
    """The room that lax work may not take, and who makes room for prompt requests that find none."""

    __slots__ = ("_attempts", "_charge", "_margin_s", "_now_s", "_slots", "_uses")

    def __init__(self, attempts: Attempts, config: ExecutorConfig) -> None:
        self._attempts = attempts
        self._margin_s = config.evict_margin_s if config.eviction else 0.0
        self._uses = Uses()
        self._slots = 0
        self._now_s = 0.0
        self._charge = 0.0

    def arrived(self, refs: Iterable[RequestRef], now_s: float) -> float:
        """References have come; returns the shortest target among the prompt ones, infinite if none is."""
        attempts, shortest_s = self._attempts, inf
        for ref in refs:
            slo_class = attempts.window.slo_class(ref.group)
            if slo_class is None or not self._is_prompt(slo_class):
                continue
            shortest_s = min(shortest_s, attempts.laxity(slo_class))
            if not ref.produced_tokens and ref.due_s >= now_s:
                self._uses.arrived(now_s)
                weight = _WEIGHT if self._charge else 1.0
                self._charge += weight * (attempts.batch.charge(ref) - self._charge)
        return shortest_s

    def look(self, now_s: float) -> None:
        """Work out what is kept from now on."""
        self._now_s = now_s
        if self._charge:
            most = int(_SHARE_MAX * self._attempts.batch.slots)
            self._slots = min(self._uses.slots(now_s), most)

    def spare(self, ref: RequestRef, class_s: float) -> Room:
        """What a request of a class of such laxity has to leave free."""
        return self._room(self._slots) if self._is_lax(ref, class_s) else NO_ROOM

    def givers(self, head: QueuedGroup | None) -> list[InFlight]:
        """Lax requests to evict: room for the prompt ones that wait and can be in time, and for one more if any is kept."""
        attempts, batch = self._attempts, self._attempts.batch
        waiting, charged = self._in_line()
        if head is not None and self._is_prompt(head.slo_class):
            run = attempts.window.upcoming(head, self._is_prompt)
            fresh = [
                ref
                for ref in islice(run, LOOKAHEAD)
                if not ref.produced_tokens and ref.due_s >= self._now_s
            ]
            waiting += len(fresh)
            charged += sum(map(batch.charge, fresh))
        if not waiting and not self._slots:
            return []
        wanted = Room(waiting, charged) + self._room(min(self._slots, 1))
        slots, kv_tokens = batch.room()
        lack = Need(max(0, wanted.slots - slots), max(0, wanted.kv_tokens - kv_tokens), inf)
        if not lack.slots and not lack.kv_tokens:
            return []
        able = [
            item
            for item in batch.running.values()
            if attempts.may_evict(item)
            and (self._is_lax(item.ref, item.class_ttft_s) or self._idles(item))
        ]
        return victims(able, lack)

    def _in_line(self) -> tuple[int, int]:
        """Prompt requests in line that can still be in time, and what they are charged: nobody gives way to an expired target."""
        batch = self._attempts.batch
        if not batch.line.before(self._margin_s)[0]:
            return 0, 0
        charges = [
            item.charged_tokens
            for item in chain(batch.held.values(), batch.pulling.values())
            if item.class_ttft_s <= self._margin_s and item.ref.due_s >= self._now_s
        ]
        return len(charges), sum(charges)

    def _room(self, slots: int) -> Room:
        return Room(slots, int(slots * self._charge))

    def _is_prompt(self, slo_class: str) -> bool:
        # That nothing is known of a class does not make it prompt.
        return 0.0 < self._attempts.laxity(slo_class) <= self._margin_s

    def _idles(self, item: InFlight) -> bool:
        return item.owes_nothing and item.class_ttft_s > _LAX_S

    def _is_lax(self, ref: RequestRef, class_s: float) -> bool:
        return class_s > _LAX_S and ref.due_s > self._now_s + _LAX_S
