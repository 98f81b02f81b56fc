"""What is known of the lines of one batch: their prompts, their limit, and how long their outputs are.

Lines of a batch are alike, and like nothing else: of one, all outputs are a word, of another, pages. So lengths are learned for
each batch, from a distribution on whose scale nobody knows. How likely each scale is follows from how far batches lay apart until
now and from all that the lines have produced, ended or not. That tells how far a mean can be trusted: no number of lines helps
before some have run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from math import exp, log, sqrt

from qlm_core.rwt.lengths import LengthModel, weibull_prior
from qlm_core.rwt.rates import RecentMean

_APART = 1.3
_APART_BATCHES = 4
_APART_MIN = 0.3
_APART_MAX = 3.0

_SCALES = tuple(4.0 * exp(0.4 * step) for step in range(23))
"""Means that lengths may have, in tokens: up to some ten thousand."""

_SHAPES = (0.8, 1.2, 2.2, 4.0)
"""Of Weibull distributions: conversations lie near the first, answers of a given form near the last two."""

_SCALE_LINES = 2.5
"""Scale and shape are known from as many lines as the root of so many times their number: no distribution is as simple as these,
and where hundreds have not ended yet, or some have, says less of the others than it would of a Weibull distribution."""

_UNLIKELY = 0.004
_UNLIMITED = 1 << 20


@lru_cache(maxsize=len(_SCALES) * len(_SHAPES))
def _prior(mean_tokens: float, shape: float) -> tuple[float, ...]:
    return weibull_prior(mean_tokens, shape)


class BatchesApart:
    """How far the mean outputs of batches lie from what is usual for their class, as logarithms: on average, and apart.

    What is usual counts as much as some batches that were just so.
    """

    __slots__ = ("_batches", "_squares", "_sum")

    def __init__(self) -> None:
        self._batches = _APART_BATCHES
        self._sum = 0.0
        self._squares = _APART_BATCHES * _APART**2

    def observe(self, *, usual_tokens: float, mean_tokens: float) -> None:
        """Learn from a batch that is over."""
        apart = log(max(1.0, mean_tokens) / max(1.0, usual_tokens))
        apart = min(_APART_MAX, max(-_APART_MAX, apart))
        self._batches += 1
        self._sum += apart
        self._squares += apart**2

    @property
    def mean(self) -> float:
        """By how much the next one lies apart, on average."""
        return self._sum / self._batches

    @property
    def deviation(self) -> float:
        """The standard deviation of that."""
        return max(_APART_MIN, sqrt(self._squares / self._batches - self.mean**2))


@dataclass(frozen=True, slots=True)
class Guess:
    """What lengths may be, and how likely that is."""

    lengths: LengthModel
    probability: float


class BatchLengths:
    """The lines of one batch and model.

    Args:
        usual: hazards of the class.
        apart: how far its batches lie apart.

    Attributes:
        prompt_tokens: mean of those that wait, or of those that came where nothing was said.
        limit_tokens: how many output tokens a line may have at most.
        lengths: what is learned of their outputs, from the likeliest factor on.
    """

    __slots__ = (
        "_apart",
        "_mean_tokens",
        "_prompts",
        "_usual",
        "lengths",
        "limit_tokens",
        "prompt_tokens",
    )

    def __init__(self, usual: tuple[float, ...], apart: BatchesApart, *, history: int):
        self._usual = LengthModel(prior=usual, history=history)
        self._mean_tokens = exp(apart.mean) * self._usual.moments(_UNLIMITED)[0]
        prior = weibull_prior(self._mean_tokens, _SHAPES[1])
        self.lengths = LengthModel(prior=prior, history=history)
        self.prompt_tokens = 0.0
        self.limit_tokens = 1
        self._apart = apart
        self._prompts: RecentMean | None = RecentMean(prior=0.0, history=history)

    def told(self, *, prompt_tokens: float, limit_tokens: int) -> None:
        """The gateway has said what the lines are like that wait."""
        self._prompts = None
        self.prompt_tokens = prompt_tokens
        self._limit(limit_tokens)

    def came(self, prompt_tokens: int, limit_tokens: int) -> None:
        """A line has become a request; of a batch of which nothing was said, that is all that is known."""
        if self._prompts is not None:
            self._prompts.observe(float(prompt_tokens))
            self.prompt_tokens = self._prompts.value
            self._limit(max(limit_tokens, self.limit_tokens))

    def _limit(self, tokens: int) -> None:
        self.limit_tokens = max(1, tokens)

    def over(self) -> None:
        """The batch is over: learn how far it was from what was expected of it."""
        if self.lengths.ended >= _APART_BATCHES:
            usual_tokens = self._usual.moments(self.limit_tokens)[0]
            self._apart.observe(usual_tokens=usual_tokens, mean_tokens=self.mean_tokens)

    @property
    def mean_tokens(self) -> float:
        """Mean output of a line."""
        return self.lengths.moments(self.limit_tokens)[0]

    def guesses(self) -> list[Guess]:
        """What lengths may be; the likeliest scale is what they are taken for from now on."""
        apart, usual = self._apart.deviation, log(self._mean_tokens)
        counts = min(1.0, sqrt(_SCALE_LINES / max(1.0, self.lengths.begun)))
        priors = [(scale, _prior(scale, shape)) for scale in _SCALES for shape in _SHAPES]
        worth = [
            -0.5 * ((log(scale) - usual) / apart) ** 2 + counts * self.lengths.likelihood(prior)
            for scale, prior in priors
        ]
        most = max(worth)
        weights = [exp(one - most) for one in worth]
        total = sum(weights)
        found = [
            Guess(self.lengths.under(prior), weight / total)
            for (_, prior), weight in zip(priors, weights, strict=True)
            if weight > _UNLIKELY * total
        ]
        means = [one.lengths.moments(self.limit_tokens)[0] for one in found]
        middle = weighted_middle(
            [(mean, one.probability) for mean, one in zip(means, found, strict=True)]
        )
        self.lengths.lean_on(found[middle].lengths.prior)
        return found


def weighted_middle(values: Sequence[tuple[float, float]]) -> int:
    """The place of the value below which half of the weight is, of (value, weight)."""
    places = sorted(range(len(values)), key=lambda place: values[place])
    half = 0.5 * sum(weight for _, weight in values)
    sums = accumulate(values[place][1] for place in places)
    return next(place for place, sum_ in zip(places, sums, strict=True) if sum_ >= half)


def weighted_quantile(values: Sequence[tuple[float, float]], share: float) -> float:
    """The value that so much of the weight does not exceed, of (value, weight); linear in logarithms between values."""
    in_order = sorted(values)
    total = sum(weight for _, weight in in_order)
    below = 0.0
    last: tuple[float, float] | None = None
    for value, weight in in_order:
        # A value stands for the middle of its weight.
        at = (below + 0.5 * weight) / total
        if at >= share:
            if last is None or at <= last[1]:
                return value
            part = (share - last[1]) / (at - last[1])
            return exp(log(last[0] + 1e-9) * (1.0 - part) + log(value + 1e-9) * part)
        below += weight
        last = value, at
    return in_order[-1][0]
