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
from math import ceil, exp, expm1, floor, log, sqrt

from qlm_core.model import Estimate

_BIN_GROWTH = 1.15
_BINNED_TOKENS = 1 << 16
_PRIOR_REQUESTS = 2.0
_REFRESH_EVERY = 8
Quantiles = tuple[float, float, float]
_PROBABILITIES: Quantiles = (0.5, 0.9, 0.99)
_DEVIATIONS = (0.0, 1.28, 2.33)
_SPEED_SPREAD = 0.1
_LASTING_MEAN = 0.5


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


class RecentMean:
    """Mean of what was seen of late: of all at first, each weighing the same.

    Args:
        prior: before anything is seen.
        history: sightings after which one has faded to 1/e.
    """

    __slots__ = ("_history", "seen", "value")

    def __init__(self, *, prior: float, history: int):
        self.value = prior
        self._history = history
        self.seen = 0

    def observe(self, value: float) -> None:
        """Learn from one sighting."""
        self.seen += 1
        self.value += (value - self.value) / min(self._history, self.seen)


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


@dataclass(frozen=True, slots=True)
class Overtaker:
    """A more urgent kind of request that goes on arriving.

    Attributes:
        share: of the engine's time that its arrivals take.
        first_s: for how long from now its new requests go first.
        age_s: for how long it has been arriving.
    """

    share: float
    first_s: float
    age_s: float


def overtaken_wait_s(wait_s: float, others: Sequence[Overtaker], *, lasting: float = 1.0) -> float:
    """A wait in a queue in which later arrivals go first.

    Args:
        wait_s: behind what is there already.
        lasting: arrivals go on for this multiple of the time that they have.
    """
    if not others or wait_s <= 0.0:
        return wait_s
    ends = sorted([(min(one.first_s, lasting * one.age_s), one.share) for one in others])
    share = sum([one.share for one in others])
    # total = wait + Σ share · min(total, end): linear between ends, so the piece that holds the total gives it.
    for end_s, one in ends:
        if wait_s <= (1.0 - share) * end_s:
            return wait_s / (1.0 - share)
        wait_s += one * end_s
        share -= one
    return wait_s


@dataclass(slots=True)
class Wait:
    """A wait before calibration, seconds.

    Attributes:
        mean_s: its mean.
        quantiles_s: its p50, p90 and p99.
        told_s: the calibrated quantiles that were given out; None before that.
    """

    mean_s: float
    quantiles_s: Quantiles
    told_s: Quantiles | None = None


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


class _Shift:
    """Logarithms of the factors by which one kind of wait's quantiles are moved."""

    __slots__ = ("levels", "observed")

    _STEP = 0.1
    _FIRST_STEP = 0.5
    _FLIGHT = 2.0

    def __init__(self) -> None:
        self.levels = [0.0, 0.0, 0.0]
        self.observed = 0

    def step(self, in_flight: int) -> float:
        """How far the next outcome moves a level, times the probability of the other outcome.

        Large at first and then constant, since waits change. Outcomes of waits that were told already will all move
        the same way, though nothing is left to mend in them: together they may not move a level far.
        """
        self.observed += 1
        step = max(self._STEP, self._FIRST_STEP / (1.0 + self.observed / 2.0))
        return min(step, self._FLIGHT / (1 + in_flight))


class Calibration:
    """Learns by what factor each quantile of one class's waits has to be moved, from realised waits.

    After every realised wait the factor grows by its probability if the wait exceeded what was told and shrinks by the
    complement if not, so that in the long run a quantile is exceeded as often as it claims, whatever the shape, the
    bias and the drift of the error (Gibbs and Candès 2021, "Adaptive conformal inference under distribution shift").
    There is a factor for the class and one for each order of magnitude of the wait: short waits err otherwise than long ones.
    """

    __slots__ = ("_in_flight", "_magnitudes", "_whole", "covered", "observed")

    _LARGEST = 3.0
    _LEAST_S = 0.05
    _MAGNITUDE = log(4.0)

    def __init__(self) -> None:
        self._whole = _Shift()
        self._magnitudes: dict[int, _Shift] = {}
        self._in_flight = 0
        self.covered = [0, 0, 0]
        self.observed = 0

    def estimate(self, wait: Wait) -> Estimate:
        """The wait as a distribution whose quantiles hold as often as they claim."""
        p50, p90, p99 = self._quantiles(wait)
        return Estimate(mean_s=wait.mean_s, p50_s=p50, p90_s=p90, p99_s=p99)

    def give(self, wait: Wait) -> Estimate:
        """The same for a wait that is going to be realised; `observe` or `forget` it."""
        p50, p90, p99 = wait.told_s = self._quantiles(wait)
        self._in_flight += 1
        return Estimate(mean_s=wait.mean_s, p50_s=p50, p90_s=p90, p99_s=p99)

    def forget(self, wait: Wait) -> None:
        """A wait that was given will not be realised."""
        if wait.told_s is not None:
            self._in_flight -= 1

    def observe(self, wait: Wait, realised_s: float) -> None:
        """Learn from a request whose first token came `realised_s` after its estimate was given."""
        if wait.told_s is None:
            return
        self._in_flight -= 1
        self.observed += 1
        near = self._near(wait)
        step, near_step = self._whole.step(self._in_flight), near.step(self._in_flight)
        for index, told_s in enumerate(wait.told_s):
            held = realised_s <= told_s
            self.covered[index] += held
            move = _PROBABILITIES[index] - held
            self._whole.levels[index] += step * move
            near.levels[index] += near_step * move

    def _quantiles(self, wait: Wait) -> Quantiles:
        near = self._near(wait).levels
        told = []
        least_s = 0.0
        for value_s, whole, shift in zip(wait.quantiles_s, self._whole.levels, near, strict=True):
            level = min(self._LARGEST, max(-self._LARGEST, whole + shift))
            least_s = max(least_s, (value_s + self._LEAST_S) * exp(level) - self._LEAST_S)
            told.append(least_s)
        p50, p90, p99 = told
        return p50, p90, p99

    def _near(self, wait: Wait) -> _Shift:
        magnitude = floor(log(wait.quantiles_s[0] + self._LEAST_S) / self._MAGNITUDE)
        found = self._magnitudes.get(magnitude)
        if found is None:
            found = self._magnitudes[magnitude] = _Shift()
        return found

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
    overtakers: Sequence[Overtaker] = (),
) -> Wait:
    """The wait of a request behind `requests_ahead` others on one queue.

    Eq. 2 and 3 of the paper with requests instead of tokens: mean = n E[O]/Θ, spread = sqrt(n) sd[O]/Θ, to
    which comes what is not queueing: `ready_in_s` until the engine takes the first of them (negative
    while free room absorbs requests at once) and the request's own prefill.

    How long arrivals go on nobody knows. Seen at a moment like any other, what has lasted for a time lasts for at most
    that time again with probability one half, and at most nine times that with nine tenths (Gott 1993, "Implications
    of the Copernican principle"), which is what the quantiles take. The mean takes half of that time, the multiple of
    what has passed that comes nearest to what is left in least squares: E[u (1 - u)] / E[u²] for u uniform.

    Args:
        variation: standard deviation of output lengths over their mean.
        overtakers: whose arrivals go first.
    """
    queueing_s = max(0.0, ready_in_s + requests_ahead * seconds_per_request)
    quantiles = []
    total_s = queueing_s
    for probability, deviations in zip(_PROBABILITIES, _DEVIATIONS, strict=True):
        if overtakers:
            lasting = probability / (1.0 - probability)
            total_s = overtaken_wait_s(queueing_s, overtakers, lasting=lasting)
        requests = total_s / seconds_per_request if seconds_per_request else 0.0
        spread_s = sqrt(max(1.0, requests)) * variation * seconds_per_request
        total_s += prefill_s
        # Speed itself is known to within some percent only, which no sum of many requests averages away.
        spread_s = sqrt(spread_s**2 + (_SPEED_SPREAD * total_s) ** 2)
        quantiles.append(total_s + deviations * spread_s)
        total_s = queueing_s
    mean_s = overtaken_wait_s(queueing_s, overtakers, lasting=_LASTING_MEAN) + prefill_s
    p50, p90, p99 = quantiles
    return Wait(mean_s, (p50, p90, p99))
