"""When to take room away from running requests, and from which: the arithmetic behind eviction.

A waiting request is *pressing* once its latest start (its due time less its own prefill and that of
everyone before it) is no further away than the margin. It justifies an eviction only if no room comes free by
itself before that latest start, and only while it can still be in time: an expired target never makes a
request more urgent.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from heapq import nsmallest
from itertools import islice
from math import inf

from qlm_core.executor.batch import Batch, InFlight, charge
from qlm_core.model import RequestRef

# How many of the next requests are looked at; bounds the work of one check.
LOOKAHEAD = 64


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
) -> Need:
    """What the next requests of the head group need beyond what will come free in time.

    Args:
        waiting: the head group's requests, first come first.
        prefill_s_per_token: engine time of a prompt token.
        token_s: time between two output tokens of a running request.
    """
    releases: list[tuple[float, int]] | None = None
    check_s = inf
    slots = kv_tokens = 0
    ahead_s = 0.0
    charged = 0
    for index, ref in enumerate(islice(waiting, LOOKAHEAD)):
        own_s = (ref.prompt_tokens + ref.produced_tokens) * prefill_s_per_token
        ahead_s += own_s
        charged += charge(ref)
        if now_s + own_s > ref.due_s or ref.produced_tokens:
            continue
        latest_s = ref.due_s - ahead_s
        if now_s < latest_s - margin_s:
            check_s = min(check_s, latest_s - margin_s)
            continue
        if releases is None:
            releases = _releases(batch, now_s, token_s)
        missing = index + 1 - batch.free_slots
        short = charged - batch.free_tokens
        if _free_at(releases, missing, short, now_s) <= latest_s:
            check_s = min(check_s, max(latest_s, now_s + margin_s / 4))
            continue
        slots, kv_tokens = max(0, missing), max(0, short)
    return Need(slots, kv_tokens, check_s)


def _releases(batch: Batch, now_s: float, token_s: float) -> list[tuple[float, int]]:
    """When running requests are expected to end and what they free, soonest first."""
    ends = (
        (now_s + item.remaining_tokens * token_s, item.charged_tokens)
        for item in batch.running.values()
    )
    return nsmallest(LOOKAHEAD, ends)


def _free_at(releases: list[tuple[float, int]], slots: int, kv_tokens: int, now_s: float) -> float:
    """When so much more room is expected to be free."""
    if slots <= 0 and kv_tokens <= 0:
        return now_s
    for end_s, charged_tokens in releases:
        slots -= 1
        kv_tokens -= charged_tokens
        if slots <= 0 and kv_tokens <= 0:
            return end_s
    return inf


def victims(candidates: Iterable[InFlight], wanted: Need, *, class_ttft_s: float) -> list[InFlight]:
    """Which requests to evict so that the need is met as far as it can be.

    Only requests of a laxer class than `class_ttft_s` qualify, so no two classes evict each other in turn. The
    laxest class gives first, and in it whoever has least to compute again.
    """
    lax = [item for item in candidates if item.class_ttft_s > class_ttft_s]
    lax.sort(key=lambda item: (-item.class_ttft_s, item.resident_tokens, item.ref.id))
    chosen: list[InFlight] = []
    slots, kv_tokens = wanted.slots, wanted.kv_tokens
    for item in lax:
        if slots <= 0 and kv_tokens <= 0:
            break
        chosen.append(item)
        slots -= 1
        kv_tokens -= item.charged_tokens
    return chosen
