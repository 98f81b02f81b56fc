"""When the last of many like requests will have ended: what a fleet does until then, and how sure that is.

Lines of a batch start as fast as all instances that work on them make room, each after what it has to do before and in what is
left of its time by requests that go first. What follows the last start is the longest of the outputs that run then. Each of the
things that are not known for sure (how long outputs are, how fast engines, how many requests come) is let vary by itself, as far
as nine of ten times it will not; squares of what that does to the logarithm of the time add up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import exp, hypot, inf, log, log1p
from typing import NamedTuple

from qlm_core.rwt.lengths import LengthModel

DEVIATIONS_P90 = 1.2816
LEAST_S = 0.05
TAKEN_MAX = 0.97
"""Of an instance's time, by requests that go first: with more than that, nothing would ever end."""

_LOG_COARSE = log(1.3)
_TURNS = 14


class Server(NamedTuple):
    """An instance that works on a batch.

    Attributes:
        offset_s: what it has to do before and between the lines; negative while it has room for some at once.
        pace_s: seconds from one start of a line to the next.
        taken: share of its time that goes to requests that come later and go first.
    """

    offset_s: float
    pace_s: float
    taken: float

    def stretched(self, *, pace: float = 1.0, speed: float = 1.0, taken: float = 1.0) -> Server:
        """The same if a line took so many times as long, everything did, or so many times as much was taken."""
        return Server(self.offset_s * speed, self.pace_s * pace * speed, self.taken * taken * speed)


def last_start_s(lines: float, servers: Sequence[Server]) -> float:
    """Seconds until so many lines have started; 0 where there is room for all, infinite without a server."""
    begins = []
    for one in servers:
        free = 1.0 - min(TAKEN_MAX, one.taken)
        if one.pace_s < inf:
            begins.append((one.offset_s / free, free / one.pace_s))
    begins.sort()
    rate, started, at_s = 0.0, 0.0, 0.0
    for begin_s, per_s in begins:
        if rate > 0.0 and started + rate * (begin_s - at_s) >= lines:
            break
        if rate > 0.0:
            started += rate * (begin_s - at_s)
        at_s, rate = begin_s, rate + per_s
    if rate <= 0.0:
        return inf
    return max(0.0, at_s + (lines - started) / rate)


def coarse(produced_tokens: int) -> int:
    """About as many tokens: outputs that are nearly alike are counted together."""
    return round(1.3 ** round(log(produced_tokens) / _LOG_COARSE))


def longest_left(lengths: LengthModel, limit_tokens: int, running: float, share: float) -> float:
    """Output tokens after which all of so many outputs in progress have ended with that probability.

    Met at a random moment, an output is a long one more often than not: what is left of it exceeds x with probability
    E[(L - x)+] / E[L].
    """
    if running < 0.5:
        return 0.0
    mean = lengths.moments(limit_tokens)[0]
    exceeded = min(1.0, -log(share) / max(1.0, running)) * mean

    def is_short(tokens: float) -> bool:
        whole = round(tokens)
        return mean - (lengths.moments(whole)[0] if whole else 0.0) > exceeded

    return _least(is_short, limit_tokens)


def longest_of(
    lengths: LengthModel, limit_tokens: int, outputs: Mapping[int, int], share: float
) -> float:
    """The same of outputs of which it is known how far they are: so many by tokens produced, with 0 for those that begin."""
    if not outputs:
        return 0.0
    bound = log(share)
    known = [
        (produced, count, max(1e-12, lengths.beyond(produced, limit_tokens)))
        for produced, count in outputs.items()
    ]

    def is_short(tokens: float) -> bool:
        total = 0.0
        for produced, count, alive in known:
            longer = lengths.beyond(produced + tokens, limit_tokens) / alive
            if longer >= 1.0:
                return True
            total += count * log1p(-longer)
        return total < bound

    return _least(is_short, limit_tokens)


def alive(
    lengths: LengthModel, limit_tokens: int, outputs: Mapping[int, int], tokens: float
) -> float:
    """How many of these go on after so many more tokens."""
    return sum(
        [
            count
            * lengths.beyond(produced + tokens, limit_tokens)
            / max(1e-12, lengths.beyond(produced, limit_tokens))
            for produced, count in outputs.items()
        ]
    )


def _least(is_short: Callable[[float], bool], most: float) -> float:
    """The least number of tokens that is not short."""
    least, most = 0.0, float(most)
    for _ in range(_TURNS):
        middle = 0.5 * (least + most)
        if is_short(middle):
            least = middle
        else:
            most = middle
    return most


def spread(middle_s: float, varied_s: Sequence[float]) -> float:
    """The quotient of p90 and p50: by how much each unknown moves the time, taken together."""
    base = middle_s + LEAST_S
    return exp(hypot(*[log((one_s + LEAST_S) / base) for one_s in varied_s]))
