"""How well finish times were foretold until now, of batches that are over and of one that goes on, and what follows from it."""

from __future__ import annotations

from math import exp, log, sqrt

from qlm_core.rwt.finish import DEVIATIONS_P90, LEAST_S


class Record:
    """How well finish times were foretold until now, in deviations of what was foretold: by how much too short, and how surely.

    Few batches end, so two numbers are learned for all of them.

    Args:
        shift, width: what they are before any has ended, worth some batches.
    """

    __slots__ = ("_squares", "_sum", "covered", "observed")

    _BATCHES = 8.0
    _LARGEST = 4.0

    def __init__(self, *, shift: float = 0.0, width: float = 1.0) -> None:
        self._sum = self._BATCHES * shift
        self._squares = self._BATCHES * (width**2 + shift**2)
        self.observed = 0
        self.covered = [0, 0]

    def told(self, p50_s: float, p90_s: float) -> tuple[float, float]:
        """The same quantiles as the past bears out."""
        deviation = self._deviation(p50_s, p90_s)
        count = self._BATCHES + self.observed
        shift = self._sum / count
        width = sqrt(max(0.25, self._squares / count - shift**2))
        base_s = p50_s + LEAST_S
        return (
            max(0.0, base_s * exp(shift * deviation) - LEAST_S),
            max(0.0, base_s * exp((shift + DEVIATIONS_P90 * width) * deviation) - LEAST_S),
        )

    def observe(
        self, foretold: tuple[float, float], told: tuple[float, float], realised_s: float
    ) -> None:
        """Learn from a batch that is over: what was foretold, what was told of it, and what came."""
        off = log((realised_s + LEAST_S) / (foretold[0] + LEAST_S)) / self._deviation(*foretold)
        off = min(self._LARGEST, max(-self._LARGEST, off))
        self._sum += off
        self._squares += off**2
        self.observed += 1
        for number, quantile_s in enumerate(told):
            self.covered[number] += realised_s <= quantile_s

    @staticmethod
    def _deviation(p50_s: float, p90_s: float) -> float:
        return max(0.02, log((p90_s + LEAST_S) / (p50_s + LEAST_S)) / DEVIATIONS_P90)


class Slowness:
    """How many times as long as reckoned the lines of a batch take, from how many have ended and how many should have.

    Args:
        usual: of batches before it.
    """

    __slots__ = ("_done", "_due", "_usual")

    _LINES = 30.0
    _MOST = 3.0

    def __init__(self, usual: float) -> None:
        self._usual = usual
        self._done = 0.0
        self._due = 0.0

    def observe(self, *, done: int, due: float) -> None:
        """So many lines have ended in a time in which so many should have."""
        self._done += done
        self._due += due

    @property
    def known(self) -> float:
        """From how many lines it is known."""
        return min(self._done, self._due)

    @property
    def value(self) -> float:
        """The quotient."""
        found = (self._due + self._LINES * self._usual) / (self._done + self._LINES)
        return min(self._MOST, max(1.0 / self._MOST, found))
