"""The request waiting time (RWT) estimator: how long until a waiting request's first token.

The paper (§6) charges the q-th request the sum of the output tokens ahead of it over the token throughput,
(2) W_q = sum O_i / Θ, with the sum Normal by the central limit theorem (3). Three things are learned online here
instead of fixed offline: output lengths per model and SLO class (`LengthModel`), the engine's real speed against its profile
(`SpeedFactor`), and how far realised waits fall from estimated ones (`Calibration`), which turns a mean and a spread
into quantiles that hold as often as they claim. Requests that a running batch absorbs at once are not charged; that
is the caller's part, since it knows the queue.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, exp, expm1, sqrt

from qlm_core.model import Estimate

_BIN_GROWTH = 1.15
_BINNED_TOKENS = 1 << 16
_PRIOR_REQUESTS = 2.0
_REFRESH_EVERY = 8
_ROUNDS = 40


def _bin_starts() -> tuple[int, ...]:
    starts = [1]
    while starts[-1] < _BINNED_TOKENS:
        starts.append(max(starts[-1] + 1, round(starts[-1] * _BIN_GROWTH)))
    return tuple(starts)


_STARTS = _bin_starts()
_MIDDLES = tuple((low + high - 1) / 2 for low, high in pairwise(_STARTS))
_BINS = len(_MIDDLES)


class LengthModel:
    """Output lengths of one kind of request, learned from those that ended and from those that go on.

    Whoever learns from ended requests alone takes outputs to be short whenever a batch is young, since the short
    ones end first. So each request counts in every bin of lengths that it passes, when it passes it, and in the bin
    in which it ends; the share that ends of those that come by is the bin's hazard (a life table), and lengths follow
    from the hazards. Old counts fade; bins that few have reached lean on the prior.

    Args:
        prior: hazard of each bin before anything is seen.
        history: requests after which a count has faded to 1/e.
    """

    __slots__ = (
        "_came",
        "_changes",
        "_ended",
        "_growth",
        "_mass",
        "_prior",
        "_squares",
        "_sums",
        "_unit",
    )

    def __init__(self, *, prior: tuple[float, ...], history: int):
        self._prior = prior
        self._growth = 1.0 + 1.0 / history
        self._unit = 1.0
        self._ended = [0.0] * _BINS
        self._came = [0.0] * _BINS
        self._refresh()

    def passed(self, produced_tokens: int, seen: int = 0) -> int:
        """Learn that a request has produced so much and goes on.

        Args:
            seen: what the last call for this request returned.

        Returns:
            the bins that it has entered.
        """
        entered = bisect_right(_STARTS, produced_tokens, 0, _BINS)
        if entered <= seen:
            return seen
        # Half for coming into a bin and half for leaving it: whoever is in the midst of one counts half (actuarial method).
        half = self._unit / 2
        for index in range(seen, entered):
            self._came[index] += half
        for index in range(max(0, seen - 1), entered - 1):
            self._came[index] += half
        self._changes += 1
        return entered

    def observe(self, output_tokens: int, seen: int = 0) -> None:
        """Learn the length of a request that has ended by itself."""
        index = self.passed(output_tokens, seen) - 1
        self._came[index] += self._unit / 2
        self._ended[index] += self._unit
        self._changes += 1
        self._unit *= self._growth
        if self._unit > _BINNED_TOKENS:
            self._ended = [count / self._unit for count in self._ended]
            self._came = [count / self._unit for count in self._came]
            self._unit = 1.0

    @property
    def hazards(self) -> tuple[float, ...]:
        """Share of requests that end in each bin, of those that reach it; to start a narrower model from."""
        own = _PRIOR_REQUESTS * self._unit
        return tuple(
            (ended + own * prior) / (came + own)
            for ended, came, prior in zip(self._ended, self._came, self._prior, strict=True)
        )

    def _refresh(self) -> None:
        """Sums of probability, length and squared length over all bins below each one."""
        self._changes = 0
        mass, sums, squares, alive = [0.0], [0.0], [0.0], 1.0
        for hazard, middle in zip(self.hazards, _MIDDLES, strict=True):
            share = alive * hazard
            alive -= share
            mass.append(mass[-1] + share)
            sums.append(sums[-1] + share * middle)
            squares.append(squares[-1] + share * middle * middle)
        self._mass, self._sums, self._squares = mass, sums, squares

    def _below(self, tokens: float) -> int:
        if self._changes >= _REFRESH_EVERY:
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
    """The hazards of an exponential distribution with that mean."""
    return tuple(-expm1((low - high) / mean_tokens) for low, high in pairwise(_STARTS))


class SpeedFactor:
    """How fast an engine really is, as a multiple of its profile's prediction."""

    __slots__ = ("value",)

    _WEIGHT = 0.05
    _LOWEST, _HIGHEST = 0.1, 10.0

    def __init__(self) -> None:
        self.value = 1.0

    def observe(self, *, realised_per_s: float, predicted_per_s: float) -> None:
        """Learn from one interval in which a batch ran."""
        if realised_per_s <= 0 or predicted_per_s <= 0:
            return
        ratio = min(self._HIGHEST, max(self._LOWEST, realised_per_s / predicted_per_s))
        self.value += self._WEIGHT * (ratio - self.value)


class ArrivalRate:
    """How often requests of one kind arrive, and for how long they have."""

    __slots__ = ("_count", "_first_s", "_last_s")

    _MEMORY_S = 30.0
    _YOUNGEST_S = 1.0

    def __init__(self, now_s: float) -> None:
        self._first_s = self._last_s = now_s
        self._count = 0.0

    def observe(self, now_s: float) -> None:
        """One has arrived."""
        self._count = 1.0 + self._count * exp((self._last_s - now_s) / self._MEMORY_S)
        self._last_s = now_s

    def per_s(self, now_s: float) -> float:
        """Requests per second of late."""
        count = self._count * exp((self._last_s - now_s) / self._MEMORY_S)
        return -count / (self._MEMORY_S * expm1(-self.age_s(now_s) / self._MEMORY_S))

    def age_s(self, now_s: float) -> float:
        """Seconds since the first one; they may be expected to go on for as long again."""
        return max(self._YOUNGEST_S, now_s - self._first_s)


def overtaken_wait_s(wait_s: float, others: Sequence[tuple[float, float]]) -> float:
    """A wait in a queue in which later arrivals go first.

    Args:
        wait_s: behind what is there already.
        others: for each kind of more urgent request, the share of the engine's time that its arrivals take, and for
            how many seconds they go first.
    """
    if not others or wait_s <= 0.0:
        return wait_s
    total_s = wait_s
    # Each round adds what arrives during the last one's addition, so it ends at once unless they take nearly all.
    for _ in range(_ROUNDS):
        longer_s = wait_s + sum(share * min(total_s, until_s) for share, until_s in others)
        if longer_s - total_s < 1e-3 * wait_s:
            break
        total_s = longer_s
    return total_s


@dataclass(frozen=True, slots=True)
class Wait:
    """A wait before calibration: mean and standard deviation, seconds."""

    mean_s: float
    spread_s: float


@dataclass(frozen=True, slots=True)
class Coverage:
    """How many of the observed waits were within the p50, p90 and p99 that were estimated."""

    observed: int = 0
    covered: tuple[int, int, int] = (0, 0, 0)

    def __add__(self, other: Coverage) -> Coverage:
        p50, p90, p99 = (a + b for a, b in zip(self.covered, other.covered, strict=True))
        return Coverage(self.observed + other.observed, (p50, p90, p99))

    @property
    def coverage(self) -> tuple[float, float, float]:
        """The shares."""
        count = max(1, self.observed)
        return (self.covered[0] / count, self.covered[1] / count, self.covered[2] / count)


class Calibration:
    """Learns how many spreads above the mean each quantile lies, from realised waits.

    Each level is tracked by stochastic approximation: after every realised wait it moves up by its
    probability if the wait exceeded it and down by the complement if not, so that in the long run the
    level is exceeded as often as it claims, whatever the shape of the error.
    """

    __slots__ = ("_levels", "covered", "observed")

    _QUANTILES = (0.5, 0.9, 0.99)
    _STEP = 0.06
    _BOUND = 8.0

    def __init__(self) -> None:
        self._levels = [0.0, 1.28, 2.33]
        self.covered = [0, 0, 0]
        self.observed = 0

    def estimate(self, wait: Wait) -> Estimate:
        """The wait as a distribution whose quantiles hold as often as they claim."""
        p50, p90, p99 = (max(0.0, wait.mean_s + z * wait.spread_s) for z in self._levels)
        return Estimate(
            mean_s=wait.mean_s, p50_s=p50, p90_s=max(p50, p90), p99_s=max(p50, p90, p99)
        )

    def observe(self, wait: Wait, realised_s: float) -> None:
        """Learn from a request whose first token came `realised_s` after the estimate."""
        self.observed += 1
        for index, quantile in enumerate(self._QUANTILES):
            level = self._levels[index]
            held = realised_s <= max(0.0, wait.mean_s + level * wait.spread_s)
            self.covered[index] += held
            move = self._STEP * ((quantile - 1.0) if held else quantile)
            self._levels[index] = min(self._BOUND, max(-self._BOUND, level + move))
        self._levels.sort()

    @property
    def counts(self) -> Coverage:
        """How often the quantiles held so far."""
        return Coverage(self.observed, (self.covered[0], self.covered[1], self.covered[2]))


def tokens_ahead_wait(
    *,
    ready_in_s: float,
    requests_ahead: float,
    seconds_per_request: float,
    variation: float,
    prefill_s: float,
) -> Wait:
    """The wait of a request behind `requests_ahead` others on one queue.

    Eq. 2 and 3 of the paper with requests instead of tokens: mean = n E[O]/Θ, spread = sqrt(n) sd[O]/Θ, to
    which comes what is not queueing: `ready_in_s` until the engine takes the first of them (negative
    while free room absorbs requests at once) and the request's own prefill.

    Args:
        variation: standard deviation of output lengths over their mean.
    """
    queueing_s = max(0.0, ready_in_s + requests_ahead * seconds_per_request)
    counted = min(requests_ahead, queueing_s / seconds_per_request) if seconds_per_request else 0.0
    spread_s = sqrt(max(1.0, counted)) * variation * seconds_per_request
    mean_s = queueing_s + prefill_s
    # Speed itself is known to within some percent only, which no sum of many requests averages away.
    return Wait(mean_s, sqrt(spread_s**2 + (0.1 * mean_s) ** 2) + 1e-3)
