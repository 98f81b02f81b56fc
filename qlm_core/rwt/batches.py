"""What is known of the lines of one batch: their prompts, their limit, and how long their outputs are.

Lines of a batch are alike, and like nothing else: of one, all outputs are a word, of another, pages. So lengths are learned for
each batch, as those of earlier batches stretched by a factor that nobody knows. How likely each factor is follows from how far
batches lay apart until now and from all that the lines have produced, ended or not. That tells how far a mean can be trusted: no
number of lines helps before some have run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import exp, log, sqrt

from qlm_core.rwt.lengths import LengthModel, stretched
from qlm_core.rwt.rates import RecentMean

_APART = 1.1
_APART_BATCHES = 4
_APART_MIN = 0.3
_APART_MAX = 3.0
_STEP = 0.4
_STEPS = 8
"""Factors lie from exp(-3.2) to exp(3.2)."""

_TEMPER = 0.3
"""A likelihood of many lines is worth so much less: lengths are no stretched copy of others'."""

_UNLIKELY = 0.004


class BatchesApart:
    """How far the mean output of a batch lies from what was expected before it began: a standard deviation of its logarithm."""

    __slots__ = ("_squares", "_weight")

    def __init__(self) -> None:
        self._weight = float(_APART_BATCHES)
        self._squares = _APART_BATCHES * _APART**2

    def observe(self, *, expected_tokens: float, mean_tokens: float) -> None:
        """Learn from a batch that is over."""
        apart = log(max(1.0, mean_tokens) / max(1.0, expected_tokens))
        self._squares += min(_APART_MAX, abs(apart)) ** 2
        self._weight += 1.0

    @property
    def value(self) -> float:
        """The standard deviation."""
        return max(_APART_MIN, sqrt(self._squares / self._weight))


@dataclass(frozen=True, slots=True)
class Guess:
    """What lengths may be, and how likely that is."""

    lengths: LengthModel
    probability: float


class BatchLengths:
    """The lines of one batch and model.

    Args:
        prior: hazards of earlier batches.
        apart: how far batches lie apart.

    Attributes:
        prompt_tokens: mean of those that wait, or of those that came where nothing was said.
        limit_tokens: how many output tokens a line may have at most.
        lengths: what is learned of their outputs, from the likeliest factor on.
    """

    __slots__ = (
        "_apart",
        "_expected_tokens",
        "_prior",
        "_prompts",
        "lengths",
        "limit_tokens",
        "prompt_tokens",
    )

    def __init__(self, prior: tuple[float, ...], apart: BatchesApart, *, history: int):
        self.lengths = LengthModel(prior=prior, history=history)
        self.prompt_tokens = 0.0
        self.limit_tokens = 1
        self._prior = prior
        self._apart = apart
        self._expected_tokens = 0.0
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
        if not self.lengths.ended:
            self._expected_tokens = self.mean_tokens

    def over(self) -> None:
        """The batch is over: learn how far it was from what was expected of it."""
        if self.lengths.ended >= _APART_BATCHES:
            self._apart.observe(expected_tokens=self._expected_tokens, mean_tokens=self.mean_tokens)

    @property
    def mean_tokens(self) -> float:
        """Mean output of a line."""
        return self.lengths.moments(self.limit_tokens)[0]

    def guesses(self) -> list[Guess]:
        """What lengths may be, shortest first; the likeliest is what they are taken for from now on."""
        apart = self._apart.value
        factors = [_STEP * step for step in range(-_STEPS, _STEPS + 1)]
        priors = [stretched(self._prior, exp(factor)) for factor in factors]
        worth = [
            -0.5 * (factor / apart) ** 2 + _TEMPER * self.lengths.likelihood(prior)
            for factor, prior in zip(factors, priors, strict=True)
        ]
        most = max(worth)
        weights = [exp(one - most) for one in worth]
        total = sum(weights)
        found = [
            Guess(self.lengths.under(prior), weight / total)
            for prior, weight in zip(priors, weights, strict=True)
            if weight > _UNLIKELY * total
        ]
        self.lengths.lean_on(priors[_middle([weight / total for weight in weights])])
        return found


def _middle(weights: Sequence[float]) -> int:
    """Where half of the weight is reached."""
    return next(place for place, sum_ in enumerate(accumulate(weights)) if sum_ >= 0.5)


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
