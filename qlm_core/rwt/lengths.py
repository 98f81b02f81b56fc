"""Output lengths: what they are taken to be before any request ended, and what is learned from those that run.

Lengths are counted in bins that grow by a constant factor, up to a length beyond which no more is asked.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from itertools import pairwise
from math import ceil, expm1, gamma, log

_BIN_GROWTH = 1.15
_BINNED_TOKENS = 1 << 16
_PRIOR_REQUESTS = 2.0
_HAZARD_MIN = 1e-7
_REFRESH_EVERY = 64
_REFRESH_PER_END = 0.5
_END_WORTH = 8
"""Changes after which sums are made anew, and how many more for each request that is remembered, since then one
change matters less. The end of a request tells as much as `_END_WORTH` reports of its going on."""


def _bin_starts() -> tuple[int, ...]:
    starts = [1]
    while starts[-1] < _BINNED_TOKENS:
        starts.append(max(starts[-1] + 1, round(starts[-1] * _BIN_GROWTH)))
    return tuple(starts)


_STARTS = _bin_starts()
_MIDDLES = tuple((low + high - 1) / 2 for low, high in pairwise(_STARTS))
_WIDTHS = tuple(high - low for low, high in pairwise(_STARTS))
_BINS = len(_MIDDLES)


def _bin_of(token: int) -> int:
    """The bin of the n-th token of an output, n from 1."""
    return bisect_right(_STARTS, token) - 1


class LengthModel:
    """Output lengths of one kind of request, learned from those that ended and from those that go on.

    Whoever learns from ended requests alone takes outputs to be short whenever a batch is young, since the short
    ones end first. So every token of a request counts in its bin of lengths when it is produced, and its end in the bin
    in which it ends; ends per token are the bin's hazard (a life table), and lengths follow from the hazards. Old counts
    fade; bins that few have reached lean on the prior.

    Args:
        prior: hazard in each bin before anything is seen, per token.
        history: requests after which a count has faded to 1/e.

    Attributes:
        ended: how many requests have, faded ones counted for what they still are.
    """

    __slots__ = (
        "_changes",
        "_ended",
        "_growth",
        "_mass",
        "_prior",
        "_squares",
        "_sums",
        "_tokens",
        "_unit",
        "ended",
    )

    def __init__(self, *, prior: tuple[float, ...], history: int):
        self._prior = prior
        self._growth = 1.0 + 1.0 / history
        self._unit = 1.0
        self._ended = [0.0] * _BINS
        self._tokens = [0.0] * _BINS
        self.ended = 0.0
        self._refresh()

    def passed(self, produced_tokens: int, seen_tokens: int = 0) -> int:
        """Learn that a request has produced so much and goes on.

        Args:
            seen_tokens: what the last call for this request returned.

        Returns:
            tokens that have been counted.
        """
        index = _bin_of(seen_tokens + 1)
        while seen_tokens < produced_tokens and index < _BINS:
            upto_tokens = min(produced_tokens, _STARTS[index + 1] - 1)
            self._tokens[index] += self._unit * (upto_tokens - seen_tokens)
            seen_tokens = upto_tokens
            index += 1
            self._changes += 1
        return max(seen_tokens, produced_tokens)

    def observe(self, output_tokens: int, seen_tokens: int = 0) -> None:
        """Learn the length of a request that has ended by itself; an answer without a token counts as one of one."""
        output_tokens = max(1, output_tokens)
        self.passed(output_tokens, seen_tokens)
        self._ended[min(_BINS - 1, _bin_of(output_tokens))] += self._unit
        self._changes += _END_WORTH
        self.ended = 1.0 + self.ended / self._growth
        self._unit *= self._growth
        if self._unit > _BINNED_TOKENS:
            self._ended = [count / self._unit for count in self._ended]
            self._tokens = [count / self._unit for count in self._tokens]
            self._unit = 1.0

    @property
    def prior(self) -> tuple[float, ...]:
        """Hazard in each bin before anything was seen, per token."""
        return self._prior

    def lean_on(self, prior: tuple[float, ...]) -> None:
        """Take another prior from now on."""
        if prior != self._prior:
            self._prior = prior
            self._refresh()

    def under(self, prior: tuple[float, ...]) -> LengthModel:
        """What the same requests tell from another prior on. The two share what they count."""
        other = object.__new__(LengthModel)
        other._prior, other._growth, other._unit = prior, self._growth, self._unit
        other._ended, other._tokens, other.ended = self._ended, self._tokens, self.ended
        other._refresh()
        return other

    def likelihood(self, hazards: tuple[float, ...]) -> float:
        """Logarithm of how likely what was seen is under other hazards."""
        seen = 0.0
        for ended, tokens, hazard in zip(self._ended, self._tokens, hazards, strict=True):
            if tokens:
                seen += ended * log(hazard) - tokens * hazard
        return seen / self._unit

    @property
    def begun(self) -> float:
        """How many requests have a token, faded ones counted for what they still are."""
        return self._tokens[0] / self._unit

    @property
    def hazards(self) -> tuple[float, ...]:
        """Ends per token in each bin; to start a narrower model from.

        At most 1: an end may weigh more than its token, which was counted earlier and has faded.
        """
        own = _PRIOR_REQUESTS * self._unit
        return tuple(
            min(1.0, (ended + own * width * prior) / (tokens + own * width))
            for ended, tokens, width, prior in zip(
                self._ended, self._tokens, _WIDTHS, self._prior, strict=True
            )
        )

    def _refresh(self) -> None:
        """Sums of probability, length and squared length over all bins below each one."""
        self._changes = 0
        mass, sums, squares, alive = [0.0], [0.0], [0.0], 1.0
        for hazard, width, middle in zip(self.hazards, _WIDTHS, _MIDDLES, strict=True):
            share = alive * (1.0 - (1.0 - hazard) ** width)
            alive -= share
            mass.append(mass[-1] + share)
            sums.append(sums[-1] + share * middle)
            squares.append(squares[-1] + share * middle * middle)
        self._mass, self._sums, self._squares = mass, sums, squares

    def _below(self, tokens: float) -> int:
        if self._changes >= _REFRESH_EVERY + _REFRESH_PER_END * self.ended:
            self._refresh()
        return bisect_right(_MIDDLES, tokens)

    def moments(self, max_tokens: int) -> tuple[float, float]:
        """Mean and variance of min(length, max_tokens). Tokens and tokens²."""
        below = self._below(max_tokens)
        cut = 1.0 - self._mass[below]
        mean = self._sums[below] + cut * max_tokens
        square = self._squares[below] + cut * max_tokens * max_tokens
        return mean, max(0.0, square - mean * mean)

    def expected(self, max_tokens: int) -> int:
        """Output tokens to expect of a fresh request, at least 1."""
        return max(1, ceil(self.moments(max_tokens)[0]))

    def beyond(self, tokens: float, max_tokens: int) -> float:
        """Share of fresh requests, cut at `max_tokens`, that are longer than so many tokens."""
        if tokens >= max_tokens:
            return 0.0
        self._below(0)
        index = min(_BINS - 1, _bin_of(int(tokens) + 1))
        part = (tokens + 1 - _STARTS[index]) / _WIDTHS[index]
        low, high = self._mass[index], self._mass[index + 1]
        return 1.0 - low - min(1.0, max(0.0, part)) * (high - low)

    def quantile(self, share: float, max_tokens: int) -> float:
        """Output tokens that this share of fresh requests, cut at `max_tokens`, does not exceed."""
        self._below(0)
        longest = bisect_left(self._mass, share)
        return min(float(max_tokens), _MIDDLES[min(_BINS, longest) - 1])

    def remaining(self, produced_tokens: int, max_tokens: int) -> float:
        """Mean tokens still to come, given that `produced_tokens` came and the request goes on."""
        if produced_tokens <= 0:
            return self.moments(max_tokens)[0]
        start = self._below(produced_tokens)
        end = max(start, self._below(max_tokens))
        longer = 1.0 - self._mass[start]
        if longer < 1e-9:
            return max(1.0, min(max_tokens - produced_tokens, produced_tokens * 0.5))
        total = self._sums[end] - self._sums[start] + (1.0 - self._mass[end]) * max_tokens
        return max(1.0, total / longer - produced_tokens)


def exponential_prior(mean_tokens: float) -> tuple[float, ...]:
    """The hazards of an exponential distribution with that mean, the same at every length."""
    return (-expm1(-1.0 / mean_tokens),) * _BINS


def weibull_prior(mean_tokens: float, shape: float) -> tuple[float, ...]:
    """The hazards of a Weibull distribution with that mean: below a shape of 1 long outputs go on for longer than short ones."""
    scale = max(1.0, mean_tokens) / gamma(1.0 + 1.0 / shape)
    sums = [((start - 1) / scale) ** shape for start in _STARTS]
    return tuple(
        min(1.0, max(_HAZARD_MIN, -expm1(-(after - before) / width)))
        for (before, after), width in zip(pairwise(sums), _WIDTHS, strict=True)
    )
