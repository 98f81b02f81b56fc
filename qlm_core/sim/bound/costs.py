"""The least that an engine spends on a request: seconds of its time, whoever schedules, and seconds that pass in any case.

An iteration of the simulated engine takes (`IterationTime`, host time in b)

    t = b + c·max(0, X + D - K) + s·D + k·C + h·Q

with X prompt tokens, D decoding sequences, C tokens in their caches, Q pairs of prefill attention. Of each iteration hold
D + R <= S, X + D <= B and C + C' <= V (sequences, token budget, KV cache; R sequences that are still computing prompts, C'
tokens of those). So each of the ratios is at most 1, and so is any mean of them, with shares f of 1 in all:

    t >= g·(f_S·(D + R)/S + f_B·(X + D)/B + f_V·(C + C')/V) + e·c·(X + D) + s·D + k·C + h·Q,    g = b - e·c·K >= 0

for each e in [0, 1] with g >= 0, since max(0, y) >= e·y. The right side is a sum over the tokens in the iteration. What
a request needs in iterations therefore takes at least the sum over its tokens, however they are spread and whoever
shares the iterations.

A first token takes all of the prompt, computed on one engine since its model woke: evicted requests keep the KV cache
of what they have put out alone, and a swap empties the engine's own. Each token after it takes an iteration in which
the request decodes, or one that computes its prompt again after an interruption. Of that prompt whole blocks may be
found in a cache, so the cheaper of both counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

from qlm_core.planning.problem import Bools, Floats
from qlm_core.profile import EngineProfile
from qlm_core.sim.iteration import IterationCosts

_PS_PER_S = 1e12
_QUARTERS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What requests of one engine ask of it. All arrays are [n].

    Attributes:
        prompt, output: tokens.
        whole: whether all of the output is promised, not the first token alone.
        first_within_s, all_within_s: how long there is for the first token and for everything.
    """

    prompt: Floats
    output: Floats
    whole: Bools
    first_within_s: Floats
    all_within_s: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """Seconds of an engine that parts of its iterations take at the least.

    Attributes:
        computed_s: a token of a prompt.
        decoded_s: a sequence that decodes, without its cache.
        read_s: a token in the cache of a sequence that decodes.
        place_s: a place among the sequences, in an iteration.
        held_s: a token that holds KV cache, in an iteration; part of `read_s` as well.
        pair_s: half a pair of attention.
    """

    computed_s: float
    decoded_s: float
    read_s: float
    place_s: float
    held_s: float
    pair_s: float


def prices_of(
    profile: EngineProfile, *, places: float, budget: float, cache: float, steepness: float
) -> Prices:
    """Prices from shares f_S, f_B and f_V, 1 in all, and e as a share of the most that it may be."""
    form = IterationCosts(profile)
    knee = form.knee or 0
    slope = steepness * min(1.0, form.base / (form.token * knee)) if form.token * knee else 1.0
    spread = form.base - slope * form.token * knee
    token = slope * form.token
    place = spread * places / profile.max_num_seqs
    share = spread * budget / profile.max_num_batched_tokens
    blocks = profile.kv_cache_tokens // profile.block_tokens
    held = spread * cache / (blocks * profile.block_tokens)
    # In the plain linear form a decoding sequence is no token of the prompt's kind.
    decoded = 0.0 if form.knee is None else token
    return Prices(
        computed_s=(token + share) / _PS_PER_S,
        decoded_s=(decoded + form.sequence + place + share) / _PS_PER_S,
        read_s=(form.per_context_token + held) / _PS_PER_S,
        place_s=place / _PS_PER_S,
        held_s=held / _PS_PER_S,
        pair_s=form.half_pair / _PS_PER_S,
    )


def best_prices(profile: EngineProfile, asked: Asked) -> Prices:
    """Of all prices, those by which the requests fill the time that they have most: a choice that cannot make them wrong."""
    n = np.maximum(asked.output - 1.0, 0.0) * asked.whole
    reads = n * asked.prompt + n * (n - 1.0) / 2.0
    per_first, per_all = 1.0 / asked.first_within_s, 1.0 / asked.all_within_s
    computed, first = float(asked.prompt @ per_first), float(per_first.sum())
    decoded, read = float(n @ per_all), float(reads @ per_all)

    def filled(prices: Prices) -> float:
        return (
            (prices.computed_s + prices.held_s) * computed
            + prices.place_s * first
            + prices.decoded_s * decoded
            + prices.read_s * read
        )

    found = (
        prices_of(profile, places=places, budget=budget, cache=1.0 - places - budget, steepness=e)
        for places, budget, e in product(_QUARTERS, _QUARTERS, _QUARTERS)
        if places + budget <= 1.0
    )
    return max(found, key=filled)


def first_work_s(prices: Prices, asked: Asked) -> Floats:
    """[n] engine seconds that a first token takes at least: its prompt once, and a place in one iteration."""
    held_s = prices.place_s + prices.held_s * asked.prompt
    return prices.computed_s * asked.prompt + prices.pair_s * asked.prompt**2 + held_s


def rest_work_s(profile: EngineProfile, prices: Prices, asked: Asked) -> Floats:
    """[n] engine seconds that the tokens after the first take at least, where they are promised.

    A token is either decoded, with x tokens in the cache, or is the first of another attempt, whose prompt of x + 1
    tokens is computed
    from the last whole block on: x modulo the block and 1 more. By that remainder the x of a request are sequences in equal
    steps, and along each of them decoding is the cheaper one up to some x.
    """
    n = np.maximum(asked.output - 1.0, 0.0)
    block = profile.block_tokens
    # Both ways hold the cache for an iteration; what differs is this.
    step_s = prices.read_s - prices.held_s
    total = prices.held_s * (n * asked.prompt + n * (n - 1.0) / 2.0)
    for remainder in range(block):
        first = asked.prompt + (remainder - asked.prompt) % block
        count = np.maximum(0.0, np.floor((asked.prompt + n - 1.0 - first) / block) + 1.0)
        again_s = prices.computed_s * (remainder + 1) + prices.place_s
        if step_s > 0.0:
            until = (again_s - prices.decoded_s) / step_s
            decoded = np.clip(np.ceil((until - first) / block), 0.0, count)
        else:
            decoded = count if prices.decoded_s <= again_s else np.zeros_like(count)
        reads = decoded * first + block * decoded * (decoded - 1.0) / 2.0
        total += decoded * prices.decoded_s + step_s * reads + (count - decoded) * again_s
    return np.where(asked.whole, total, 0.0)


def least_first_s(profile: EngineProfile, asked: Asked) -> Floats:
    """[n] seconds that pass while a prompt is computed, alone on the engine.

    In n iterations it takes n·b + c·max(0, p - n·K), and there are p/B of them or more. That falls or rises in n up to
    p/K, and rises beyond it, so one of the ends is the least.
    """
    form = IterationCosts(profile)
    knee = form.knee or 0
    fewest = np.ceil(asked.prompt / profile.max_num_batched_tokens)
    alone = fewest * form.base + form.token * np.maximum(0.0, asked.prompt - fewest * knee)
    if knee:
        alone = np.minimum(alone, np.maximum(fewest, asked.prompt / knee) * form.base)
    return np.asarray((alone + form.half_pair * asked.prompt**2) / _PS_PER_S)


def least_rest_s(profile: EngineProfile, asked: Asked, *, link_s: float) -> Floats:
    """[n] seconds that pass between the first token and the last.

    Each token takes an iteration, in which a sequence is decoded with its prompt in the cache at least, or which
    another attempt begins. Between two attempts a message goes to the gateway and one comes from it, or the engine
    itself makes the request wait for an iteration.
    """
    form = IterationCosts(profile)
    decoded = form.sequence + form.per_context_token * asked.prompt
    each = form.base + np.minimum(decoded, min(2 * link_s * _PS_PER_S, form.base))
    return np.asarray(np.maximum(asked.output - 1.0, 0.0) * each / _PS_PER_S)
