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
from collections import deque
from dataclasses import dataclass
from itertools import accumulate
from math import ceil, log1p, sqrt

from qlm_core.model import Estimate

_PRIOR_SAMPLES = 20
_REFRESH_EVERY = 8


class LengthModel:
    """Output lengths of one kind of request, as a sliding sample that begins with a prior.

    The prior enters as a few quantile samples that real observations push out. Sums over the sorted sample
    are kept, so a question costs a binary search; they lag by a few observations.
    """

    __slots__ = ("_history", "_since_refresh", "_sorted", "_squares", "_sums", "observed")

    def __init__(self, *, prior: tuple[int, ...], history: int):
        self._history: deque[int] = deque(prior, maxlen=max(history, len(prior)))
        self.observed = 0
        self._refresh()

    def observe(self, output_tokens: int) -> None:
        """Learn the length of a finished request."""
        self._history.append(output_tokens)
        self.observed += 1
        self._since_refresh += 1
        if self._since_refresh >= _REFRESH_EVERY:
            self._refresh()

    def _refresh(self) -> None:
        self._since_refresh = 0
        self._sorted = sorted(self._history)
        self._sums = list(accumulate(self._sorted, initial=0))
        self._squares = list(accumulate((n * n for n in self._sorted), initial=0))

    def moments(self, max_tokens: int) -> tuple[float, float]:
        """Mean and variance of min(length, max_tokens). Tokens and tokens²."""
        size = len(self._sorted)
        below = bisect_right(self._sorted, max_tokens)
        mean = (self._sums[below] + (size - below) * max_tokens) / size
        square = (self._squares[below] + (size - below) * max_tokens * max_tokens) / size
        return mean, max(0.0, square - mean * mean)

    def expected(self, max_tokens: int) -> int:
        """Output tokens to expect of a fresh request, at least 1."""
        return max(1, ceil(self.moments(max_tokens)[0]))

    def remaining(self, produced_tokens: int, max_tokens: int) -> float:
        """Mean tokens still to come, given that `produced_tokens` came and the request goes on."""
        if produced_tokens <= 0:
            return self.moments(max_tokens)[0]
        start = bisect_right(self._sorted, produced_tokens)
        longer = len(self._sorted) - start
        if longer == 0:
            return max(1.0, min(max_tokens - produced_tokens, produced_tokens * 0.5))
        end = max(start, bisect_right(self._sorted, max_tokens))
        total = self._sums[end] - self._sums[start] + (len(self._sorted) - end) * max_tokens
        return max(1.0, total / longer - produced_tokens)

    def quantiles(self, count: int = _PRIOR_SAMPLES) -> tuple[int, ...]:
        """`count` evenly spaced quantiles, to start a narrower model from."""
        size = len(self._sorted)
        return tuple(self._sorted[(2 * k + 1) * size // (2 * count)] for k in range(count))


def exponential_prior(mean_tokens: int, count: int = _PRIOR_SAMPLES) -> tuple[int, ...]:
    """`count` evenly spaced quantiles of an exponential distribution with that mean."""
    return tuple(
        max(1, round(-mean_tokens * log1p(-(2 * k + 1) / (2 * count)))) for k in range(count)
    )


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


@dataclass(frozen=True, slots=True)
class Wait:
    """A wait before calibration: mean and standard deviation, seconds."""

    mean_s: float
    spread_s: float


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
    def coverage(self) -> tuple[float, float, float]:
        """Share of realised waits at or below the p50, p90 and p99 that were estimated."""
        count = max(1, self.observed)
        return (self.covered[0] / count, self.covered[1] / count, self.covered[2] / count)


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
