"""Exact time of iterations: whole picoseconds, and stretches of iterations that grow linearly.

Coefficients are rounded to picoseconds once; from there on all arithmetic is on integers, so the
order of operations and the way a stretch is cut into calls cannot show in the results.
"""

from __future__ import annotations

from math import isqrt, ulp

from qlm_core.profile import EngineProfile

_PS_PER_MS = 1_000_000_000
_PS_PER_NS = 1_000
_NS_PER_S = 1_000_000_000


def picoseconds(seconds: float) -> int:
    """An instant on the grid of nanoseconds, in picoseconds."""
    return round(seconds * _NS_PER_S) * _PS_PER_NS


def last_picosecond(seconds: float) -> int:
    """The last picosecond that counts as this instant.

    An instant is reached when its nanosecond is, so that times survive the way through a float. After some weeks floats are
    coarser than that, and it is reached when what two roundings may have made of it is.
    """
    lost_ns = int(2 * ulp(seconds) * _NS_PER_S)
    return picoseconds(seconds) + (1 + lost_ns) * _PS_PER_NS - 1


def seconds(instant: int) -> float:
    """An instant in seconds, rounded down to the grid of nanoseconds."""
    return instant // _PS_PER_NS / _NS_PER_S


class IterationCosts:
    """A profile's coefficients in whole picoseconds, host time included.

    Attributes:
        knee: in tokens; None for the plain linear form.
        half_pair: half of a pair of prefill attention.
    """

    __slots__ = ("base", "half_pair", "knee", "per_context_token", "sequence", "token")

    def __init__(self, profile: EngineProfile):
        form = profile.iteration
        self.base = _cost(form.base_ms + profile.host_overhead_ms)
        self.token = _cost(form.per_token_ms)
        self.sequence = _cost(form.per_sequence_ms + profile.host_per_sequence_ms)
        self.half_pair = _cost(form.per_attention_pair_ms / 2)
        self.knee = form.knee_tokens
        self.per_context_token = _cost(form.per_context_token_ms)

    def iteration(self, *, decoding: int, context: int, prefill: int, half_pairs: int) -> int:
        """Picoseconds of one iteration.

        Args:
            decoding: sequences that decode.
            context: tokens they have in the KV cache, summed.
            prefill: prompt tokens computed.
            half_pairs: twice the pairs of prefill attention: p * (p + 2 * q), summed over chunks of
                p tokens after q computed ones.
        """
        tokens = prefill if self.knee is None else max(0, prefill + decoding - self.knee)
        return (
            self.base
            + self.token * tokens
            + self.sequence * decoding
            + self.per_context_token * context
            + self.half_pair * half_pairs
        )


class Stretch:
    """Consecutive iterations, each a constant longer than the one before.

    Attributes:
        start: when the first begins, or when the last stretch ended if `count` is 0.
        first: duration of the first.
        growth: how much longer each one is than its predecessor.
        count: iterations left; 0 while the engine is idle.
        end: when the last ends.
    """

    __slots__ = ("count", "end", "first", "growth", "start")

    def __init__(self) -> None:
        self.start = self.first = self.growth = self.count = self.end = 0

    def begin(self, *, first: int, growth: int, count: int) -> None:
        """Plan `count` iterations from `start` on."""
        self.first = first
        self.growth = growth
        self.count = count
        self.end = self.start + self.span(count)

    def span(self, iterations: int) -> int:
        """Duration of the first `iterations`."""
        return iterations * self.first + self.growth * (iterations * (iterations - 1) // 2)

    def ended_by(self, instant: int) -> int:
        """How many iterations end up to an instant within the stretch."""
        span = instant - self.start
        if span < self.first:
            return 0
        if not self.growth:
            return span // self.first
        # The largest j with j * first + growth * j * (j - 1) / 2 <= span.
        linear = 2 * self.first - self.growth
        root = isqrt(linear * linear + 8 * self.growth * span)
        return (root - linear) // (2 * self.growth)

    def drop(self, iterations: int) -> int:
        """Let the first `iterations` be over; returns their duration."""
        span = self.span(iterations)
        self.start += span
        self.first += self.growth * iterations
        self.count -= iterations
        return span

    def cut(self) -> None:
        """End after the iteration in flight."""
        if self.count > 1:
            self.count = 1
            self.end = self.start + self.first


def _cost(milliseconds: float) -> int:
    return round(milliseconds * _PS_PER_MS)
