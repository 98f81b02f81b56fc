"""The wait of one request in a queue, before calibration: its mean, and quantiles from the spread of what is ahead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

Quantiles = tuple[float, float, float]
PROBABILITIES: Quantiles = (0.5, 0.9, 0.99)
_DEVIATIONS = (0.0, 1.28, 2.33)
_LASTING_MEAN = 0.4


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


def lasts_for(probability: float) -> float:
    """At most how many times as long as it has lasted something goes on, with that probability (Gott's principle)."""
    return probability / (1.0 - probability)


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
    """A wait before calibration, in seconds, and what became of the calibrated one.

    Attributes:
        mean_s: its mean.
        quantiles_s: its p50, p90 and p99.
        told_s: the calibrated quantiles that were given out; None before that.
        told_at_s: when they were.
        overdue: how many of these it has exceeded; all, once nothing more is to be learned from it.
    """

    mean_s: float
    quantiles_s: Quantiles
    told_s: Quantiles | None = None
    told_at_s: float = 0.0
    overdue: int = 0


def tokens_ahead_wait(
    *,
    queueing_s: float,
    seconds_per_request: float,
    variation: float,
    uncertainty: float,
    prefill_s: float,
    overtakers: Sequence[Overtaker] = (),
) -> Wait:
    """The wait of a request that starts in `queueing_s`, if nobody overtakes it.

    Eq. 3 of the paper with requests instead of tokens: of n requests ahead the spread is sqrt(n) sd[O]/Θ. To the queueing
    comes the request's own prefill.

    How long arrivals go on nobody knows. Seen at a moment like any other, what has lasted for a time lasts for at most
    that time again with probability one half, and at most nine times that with nine tenths (Gott 1993, "Implications
    of the Copernican principle"), which is what the quantiles take. In least squares half of the time that has
    passed comes nearest to what is left, E[u (1 - u)] / E[u²] for u uniform; the mean takes a little less, since
    ages are counted generously (`ArrivalRate.age_s`).

    Args:
        variation: standard deviation of output lengths over their mean.
        uncertainty: standard deviation of the pace, which is one for all requests ahead, over its mean.
        overtakers: whose arrivals go first.
    """
    queueing_s = max(0.0, queueing_s)
    quantiles = []
    total_s = queueing_s
    for probability, deviations in zip(PROBABILITIES, _DEVIATIONS, strict=True):
        if overtakers:
            total_s = overtaken_wait_s(queueing_s, overtakers, lasting=lasts_for(probability))
        requests = total_s / seconds_per_request if seconds_per_request else 0.0
        spread_s = sqrt(max(1.0, requests)) * variation * seconds_per_request
        total_s += prefill_s
        # An error of the pace is in every request ahead, so no sum of many averages it away.
        spread_s = sqrt(spread_s**2 + (uncertainty * total_s) ** 2)
        quantiles.append(total_s + deviations * spread_s)
        total_s = queueing_s
    mean_s = overtaken_wait_s(queueing_s, overtakers, lasting=_LASTING_MEAN) + prefill_s
    p50, p90, p99 = quantiles
    return Wait(mean_s, (p50, p90, p99))


def later(one: Wait, other: Wait) -> Wait:
    """The wait for two things of which the later one counts."""
    (a50, a90, a99), (b50, b90, b99) = one.quantiles_s, other.quantiles_s
    quantiles = max(a50, b50), max(a90, b90), max(a99, b99)
    return Wait(max(one.mean_s, other.mean_s), quantiles)


def relieved(steady: Wait, pressed: Wait, *, press_in_s: float, due_in_s: float) -> Wait:
    """The wait for room that is taken from begun outputs if it does not come by itself.

    Args:
        steady: the wait if nothing gives way.
        pressed: the wait if all gives way that may, from now on.
        press_in_s: when the request begins to press: its wait is so long if half of those before it go by themselves.
        due_in_s: when its first token is late: it waits no longer for what others may give way for.
    """
    bounds = press_in_s, due_in_s, due_in_s
    q50, q90, q99 = [
        min(at_ease, max(at_once, bound))
        for at_ease, at_once, bound in zip(
            steady.quantiles_s, pressed.quantiles_s, bounds, strict=True
        )
    ]
    return Wait(min(steady.mean_s, max(pressed.mean_s, press_in_s)), (q50, q90, q99))
