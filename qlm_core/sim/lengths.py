"""Token lengths of requests: distributions given by their quantiles.

A distribution is a table of quantiles between which it is linear, which is how public sources
publish lengths. Sampling takes a number in [0, 1), so the caller's generator decides everything.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import Literal

LengthsName = Literal["sharegpt", "mega", "brief", "code", "rag", "reasoning"]


@dataclass(frozen=True, slots=True)
class Quantiles:
    """A distribution of token counts: its values at evenly spaced levels from 0 to 1."""

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.values) < 2:
            raise ValueError("values: a distribution needs at least its least and its largest.")
        if self.values[0] < 1 or any(late < early for early, late in pairwise(self.values)):
            raise ValueError("values: quantiles start at 1 or more and never fall.")

    def at(self, level: float) -> int:
        """Tokens at a level in [0, 1]; at least 1."""
        position = level * (len(self.values) - 1)
        below = min(int(position), len(self.values) - 2)
        low, high = self.values[below], self.values[below + 1]
        return max(1, round(low + (high - low) * (position - below)))

    @property
    def mean(self) -> float:
        """Mean number of tokens."""
        inner = sum(self.values[1:-1])
        return (inner + (self.values[0] + self.values[-1]) / 2) / (len(self.values) - 1)


# ShareGPT lengths as used by the paper (Patke et al., SoCC '24, Fig. 8): quantiles 0.01 to 0.99
# read from the figure; prompts reach 1,024 tokens and outputs about 1,800.
# fmt: off
SHAREGPT_PROMPT = Quantiles((
    4,
    5, 6, 7, 8, 8, 9, 10, 10, 11, 12, 12,
    13, 13, 14, 15, 16, 16, 17, 18, 18, 19, 20,
    21, 22, 23, 24, 25, 26, 27, 29, 30, 33, 36,
    38, 40, 43, 45, 49, 53, 59, 64, 69, 73, 80,
    85, 93, 98, 106, 117, 128, 141, 152, 163, 174, 189,
    203, 216, 236, 248, 261, 275, 285, 299, 308, 317, 335,
    345, 354, 366, 375, 387, 398, 407, 419, 433, 446, 466,
    481, 496, 520, 540, 556, 578, 596, 621, 644, 663, 688,
    710, 740, 768, 788, 817, 844, 864, 886, 915, 944, 978,
    1024,
))
SHAREGPT_OUTPUT = Quantiles((
    4,
    5, 6, 6, 7, 8, 9, 10, 11, 11, 12, 13,
    14, 15, 16, 17, 18, 19, 20, 21, 22, 24, 25,
    26, 27, 29, 31, 33, 35, 38, 40, 42, 45, 47,
    50, 54, 58, 62, 65, 70, 75, 81, 85, 89, 94,
    98, 103, 109, 117, 125, 133, 141, 148, 154, 164, 175,
    182, 190, 197, 207, 218, 229, 238, 245, 255, 261, 267,
    275, 284, 291, 298, 305, 313, 320, 331, 341, 350, 357,
    366, 377, 391, 399, 408, 419, 434, 447, 470, 486, 510,
    532, 560, 590, 625, 667, 705, 739, 788, 852, 926, 999,
    1800,
))
# fmt: on

# Mega prompts (paper, §8, W_C): 3,000 to 4,000 tokens in all.
MEGA_TOTAL = Quantiles((3000, 4000))

# Brief prompts with answers of some length: what slots are short of, not prompts or KV cache.
BRIEF_PROMPT = Quantiles((40, 160))
BRIEF_OUTPUT = Quantiles((100, 600))


# Assumed, as no public source gives them by use: a file or two and an edit; retrieved passages and a short answer; a
# question and a long chain of thought.
CODE_PROMPT = Quantiles((100, 400, 900, 1600, 2800, 6000))
CODE_OUTPUT = Quantiles((10, 30, 70, 150, 350, 1000))
RAG_PROMPT = Quantiles((1000, 2000, 2800, 3600, 5000, 8000))
RAG_OUTPUT = Quantiles((20, 60, 120, 200, 320, 700))
REASONING_PROMPT = Quantiles((40, 80, 150, 300, 600, 1500))
REASONING_OUTPUT = Quantiles((300, 700, 1200, 1900, 3200, 7000))

_INDEPENDENT: dict[LengthsName, tuple[Quantiles, Quantiles]] = {
    "sharegpt": (SHAREGPT_PROMPT, SHAREGPT_OUTPUT),
    "brief": (BRIEF_PROMPT, BRIEF_OUTPUT),
    "code": (CODE_PROMPT, CODE_OUTPUT),
    "rag": (RAG_PROMPT, RAG_OUTPUT),
    "reasoning": (REASONING_PROMPT, REASONING_OUTPUT),
}
"""Prompts and outputs of the kinds that draw them independently; `mega` gives their sum."""


def mean_lengths(name: LengthsName) -> tuple[float, float]:
    """(prompt tokens, output tokens) in the mean of a named kind."""
    if name == "mega":
        return MEGA_TOTAL.mean - SHAREGPT_OUTPUT.mean, SHAREGPT_OUTPUT.mean
    prompt, output = _INDEPENDENT[name]
    return prompt.mean, output.mean


def sample_lengths(name: LengthsName, rng: Random) -> tuple[int, int]:
    """(prompt tokens, output tokens) of one request of a named kind.

    Prompt and output are independent: the sources publish marginals only.
    """
    if name == "mega":
        output = SHAREGPT_OUTPUT.at(rng.random())
        return MEGA_TOTAL.at(rng.random()) - output, output
    prompts, outputs = _INDEPENDENT[name]
    output = outputs.at(rng.random())
    return prompts.at(rng.random()), output
