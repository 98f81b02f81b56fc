"""When to take room away from running requests, and from which: the arithmetic behind eviction.

A waiting request is *pressing* once its latest start (its due time less its own prefill and that of
everyone before it) is no further away than the margin. It justifies an eviction only if no room comes free by
itself before that latest start, and only while it can still be in time: an expired target never makes a
request more urgent.

Evictions wait for that last moment as long as they can save everybody then. If more requests would be late than
there is laxer work to evict, every second that laxer work runs on costs one of them its target, so it gives way at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from math import inf

from qlm_core.executor.batch import Batch, InFlight
from qlm_core.model import RequestRef

# How many of the next requests are looked at; bounds the work of one check.
LOOKAHEAD = 256


@dataclass(frozen=True, slots=True)
class Need:
    """Room that the pressing requests lack, and when to look again.

    Attributes:
        slots, kv_tokens: what has to be freed beyond what is free now; 0 for nothing.
        check_s: no request can become pressing before.
    """

    slots: int
    kv_tokens: int
    check_s: float


def need(
    waiting: Iterable[RequestRef],
    batch: Batch,
    *,
    now_s: float,
    margin_s: float,
    prefill_s_per_token: float,
    token_s: float,
    evictable: int,
    resume_share: float = 1.0,
) -> Need:
    """What the next requests need beyond what will come free in time.

    Args:
        waiting: the requests to come, first to run first. Those that have begun take room alone: they are never late.
        prefill_s_per_token: engine time of a prompt token.
        token_s: time between two output tokens of a running request.
        evictable: requests in flight that could give way.
        resume_share: of those that have begun, the share that is computed again.
    """
    releases: _Releases | None = None
    check_s = inf
    slots = kv_tokens = late = late_tokens = 0
    ahead_s = 0.0
    charged = 0
    free_slots, free_tokens = batch.room()
    for index, ref in enumerate(islice(waiting, LOOKAHEAD)):
        own_s = (ref.prompt_tokens + ref.produced_tokens) * prefill_s_per_token
        own_s *= resume_share if ref.produced_tokens else 1.0
        ahead_s += own_s
        charged += batch.charge(ref)
        if now_s + own_s > ref.due_s or ref.produced_tokens:
            continue
        latest_s = ref.due_s - ahead_s
        if releases is None:
            releases = _Releases(batch, now_s, token_s)
        missing = index + 1 - free_slots
        short = charged - free_tokens
        if releases.free_at(missing, short) <= latest_s:
            check_s = min(check_s, max(latest_s - margin_s, now_s + margin_s / 4))
            continue
        late += 1
        late_tokens += batch.charge(ref)
        if now_s < latest_s - margin_s:
            check_s = min(check_s, latest_s - margin_s)
            continue
        slots, kv_tokens = max(0, missing), max(0, short)
    if saves_too_few(late, evictable):
        slots, kv_tokens = max(slots, late), max(kv_tokens, late_tokens)
    return Need(slots, kv_tokens, check_s)


def saves_too_few(late: int, evictable: int) -> bool:
    """Whether more would be late than could be saved at the last moment: then laxer work gives way at once."""
    return late > evictable


class _Releases:
    """When running requests are expected to end and what they free, soonest first.

    Asked for ever more room, so that each of them is looked at once. Whoever needs more than all of them free waits
    for as long again as that takes.
    """

    def __init__(self, batch: Batch, now_s: float, token_s: float):
        ends = [
            (item.remaining_tokens * token_s, item.charged_tokens)
            for item in batch.running.values()
        ]
        self._ends = sorted(ends)
        self._now_s = now_s
        self._slots = 0
        self._kv_tokens = 0

    def free_at(self, slots: int, kv_tokens: int) -> float:
        """When so much more room is expected to be free; not less than asked for before."""
        ends = self._ends
        while self._slots < len(ends) and (slots > self._slots or kv_tokens > self._kv_tokens):
            self._kv_tokens += ends[self._slots][1]
            self._slots += 1
        if slots <= self._slots and kv_tokens <= self._kv_tokens:
            return self._now_s + (ends[self._slots - 1][0] if self._slots else 0.0)
        if not ends:
            return inf
        rounds = max(slots / self._slots, kv_tokens / max(1, self._kv_tokens))
        return self._now_s + rounds * ends[-1][0]


def victims(candidates: Iterable[InFlight], wanted: Need) -> list[InFlight]:
    """Which requests to evict so that the need is met as far as it can be.

    The laxest class gives first, and in it whoever has least to compute again. Outputs that have begun and of which more is
    promised come last.
    """
    lax = sorted(
        candidates,
        key=lambda item: (
            keeps_a_pace(item),
            -item.class_ttft_s,
            cost_to_resume(item),
            item.ref.id,
        ),
    )
    chosen: list[InFlight] = []
    slots, kv_tokens = wanted.slots, wanted.kv_tokens
    for item in lax:
        if slots <= 0 and kv_tokens <= 0:
            break
        chosen.append(item)
        slots -= 1
        kv_tokens -= item.charged_tokens
    return chosen


def keeps_a_pace(item: InFlight) -> bool:
    """Whether a pause costs an output what is left of its target."""
    return item.begun and not item.first_token_only


def cost_to_resume(item: InFlight) -> int:
    """Tokens that an engine computes again for a request that gave way."""
    return item.resident_tokens


def overflow(batch: Batch, may_evict: Callable[[InFlight], bool]) -> list[InFlight]:
    """Running requests to evict because the KV cache is full: laxer ones than the strictest that runs."""
    excess = batch.resident_tokens - batch.kv_tokens
    if excess <= 0:
        return []
    strictest_s = min(item.class_ttft_s for item in batch.running.values())
    able = [
        item
        for item in batch.running.values()
        if item.class_ttft_s > strictest_s and may_evict(item)
    ]
    return victims(able, Need(0, excess, inf))


def latest_begin_s(
    waiting: Iterable[RequestRef], *, before_s: float, prefill_s_per_token: float, now_s: float
) -> float:
    """When something that takes `before_s` has to begin for the next request that can still be in time; infinite without one."""
    for ref in waiting:
        first_token_s = before_s + ref.prompt_tokens * prefill_s_per_token
        if not ref.produced_tokens and now_s + first_token_s <= ref.due_s:
            return ref.due_s - first_token_s
    return inf
