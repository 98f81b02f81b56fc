"""From estimated waits to quantiles that hold as often as they claim.

After every outcome a quantile's factor grows by its probability if the wait exceeded what was told and shrinks by the
complement if not, so that in the long run it is exceeded as often as it claims, whatever the shape, the bias and the
drift of the error (Gibbs and Candès 2021, "Adaptive conformal inference under distribution shift"). Long waits end long
after they were told, but that one exceeds a quantile is known once that time is over: it counts then. Short ones end early,
and of waits that were told together the lucky ones first: that a wait was within its p50 counts when that time is over too,
or the median of the lucky would be learned for that of all.
"""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from math import exp, floor, log

from qlm_core.model import Estimate
from qlm_core.rwt.waits import PROBABILITIES, Quantiles, Wait

_QUANTILES = len(PROBABILITIES)
_Levels = tuple[float, float, float]


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
    """Logarithms of the factors by which one kind of wait's quantiles are moved.

    Args:
        first: where the quantiles start.
        neighbour: a kind like this one; what it has learned counts for as much as `likeness`.
    """

    __slots__ = ("levels", "outcomes")

    _STEP = 0.1
    _FIRST_STEP = 0.5
    _FLIGHT = 1.5
    _LARGEST = 3.0

    def __init__(self, first: _Levels, neighbour: _Shift | None, likeness: float) -> None:
        learned = first if neighbour is None else neighbour.levels
        self.levels: list[float] = [
            start + likeness * (level - start) for start, level in zip(first, learned, strict=True)
        ]
        self.outcomes = [0] * _QUANTILES

    def learn(self, index: int, *, held: bool, flight: float) -> None:
        """Move a quantile by one outcome.

        Steps are large at first and then constant, since waits change. The outcomes of waits that were told already
        will all move the same way, though nothing is left to mend in them: together they may not move a level far.

        Args:
            flight: waits that were told and are undecided.
        """
        self.outcomes[index] += 1
        step = max(self._STEP, self._FIRST_STEP / (1.0 + self.outcomes[index] / 2.0))
        step = min(step, self._FLIGHT / (1.0 + flight))
        level = self.levels[index] + step * (PROBABILITIES[index] - held)
        self.levels[index] = min(self._LARGEST, max(-self._LARGEST, level))


class Calibration:
    """Learns by what factor each quantile of one class's waits has to be moved, from realised waits.

    There is a factor for each order of magnitude of the wait, since short ones err otherwise than long ones.
    """

    __slots__ = (
        "_covered",
        "_deadlines",
        "_flight",
        "_given",
        "_lucky",
        "_magnitudes",
        "_observed",
        "_undecided",
    )

    # Nothing is known of a queue at first, so its upper quantiles start wide. Below 0.2 s there is hardly one.
    _FIRST: _Levels = (0.0, 0.5, 1.0)
    _FIRST_SHORT: _Levels = (0.1, 0.1, 0.8)
    _SHORT = -2
    _LEAST_S = 0.05
    _MAGNITUDE = log(4.0)
    _LIKENESS = 0.1
    _LANDING = 0.999
    # News of a first token may be late.
    _GRACE_S = 0.5
    _SPARE_DEADLINES = 64
    # So many short waits at most are kept until their p50 is over; those that are due first count at once then.
    _LUCKY = 10_000

    def __init__(self) -> None:
        self._magnitudes: dict[int, _Shift] = {}
        self._undecided = [0] * _QUANTILES
        self._flight = [0.0] * _QUANTILES
        self._deadlines: list[tuple[float, int, Wait]] = []
        self._lucky: list[tuple[float, int, _Shift]] = []
        self._given = 0
        self._observed = 0
        self._covered = [0] * _QUANTILES

    def estimate(self, wait: Wait) -> Estimate:
        """The wait as a distribution whose quantiles hold as often as they claim."""
        p50, p90, p99 = self._quantiles(wait)
        return Estimate(mean_s=wait.mean_s, p50_s=p50, p90_s=p90, p99_s=p99)

    def give(self, wait: Wait, *, now_s: float) -> Estimate:
        """The same for a wait that is going to be realised; `observe` or `forget` it."""
        self._pass_deadlines(now_s)
        p50, p90, p99 = wait.told_s = self._quantiles(wait)
        wait.told_at_s = now_s
        self._given += 1
        for index in range(_QUANTILES):
            self._undecided[index] += 1
        heappush(self._deadlines, (now_s + p50, self._given, wait))
        if len(self._deadlines) > self._SPARE_DEADLINES + 2 * self._undecided[-1]:
            self._deadlines = [one for one in self._deadlines if one[2].overdue < _QUANTILES]
            heapify(self._deadlines)
        return Estimate(mean_s=wait.mean_s, p50_s=p50, p90_s=p90, p99_s=p99)

    def forget(self, wait: Wait) -> None:
        """A wait that was given will not be realised."""
        if wait.told_s is not None:
            for index in range(wait.overdue, _QUANTILES):
                self._undecided[index] -= 1
            wait.overdue = _QUANTILES

    def observe(self, wait: Wait, realised_s: float) -> None:
        """Learn from a request whose first token came `realised_s` after its estimate was given."""
        if wait.told_s is None:
            return
        self._observed += 1
        for index in range(wait.overdue, _QUANTILES):
            held = realised_s <= wait.told_s[index]
            self._covered[index] += held
            if held and index == 0:
                deadline_s = wait.told_at_s + wait.told_s[0]
                heappush(self._lucky, (deadline_s, self._observed, self._near(wait)))
            else:
                self._decide(self._near(wait), index, held=held)
        wait.overdue = _QUANTILES
        if len(self._lucky) > self._LUCKY:
            self._decide(heappop(self._lucky)[2], 0, held=True)

    def _pass_deadlines(self, now_s: float) -> None:
        """What has been waiting for longer than a quantile told exceeds it, however long it will be."""
        lucky = self._lucky
        while lucky and lucky[0][0] < now_s:
            self._decide(heappop(lucky)[2], 0, held=True)
        deadlines = self._deadlines
        while deadlines and deadlines[0][0] < now_s - self._GRACE_S:
            deadline_s, number, wait = heappop(deadlines)
            index = wait.overdue
            if index == _QUANTILES or wait.told_s is None:
                continue
            wait.overdue += 1
            self._decide(self._near(wait), index, held=False)
            if wait.overdue < _QUANTILES:
                deadline_s += wait.told_s[index + 1] - wait.told_s[index]
                heappush(deadlines, (deadline_s, number, wait))

    def _decide(self, shift: _Shift, index: int, *, held: bool) -> None:
        self._undecided[index] -= 1
        # Many land at once: for them all, as many were in flight as when the first did.
        self._flight[index] = max(self._undecided[index], self._LANDING * self._flight[index])
        shift.learn(index, held=held, flight=self._flight[index])

    def _quantiles(self, wait: Wait) -> Quantiles:
        told = []
        least_s = 0.0
        for value_s, level in zip(wait.quantiles_s, self._near(wait).levels, strict=True):
            least_s = max(least_s, (value_s + self._LEAST_S) * exp(level) - self._LEAST_S)
            told.append(least_s)
        p50, p90, p99 = told
        return p50, p90, p99

    def _near(self, wait: Wait) -> _Shift:
        magnitude = floor(log(wait.quantiles_s[0] + self._LEAST_S) / self._MAGNITUDE)
        found = self._magnitudes.get(magnitude)
        if found is None:
            known = self._magnitudes
            nearest = min(known, key=lambda other: (abs(other - magnitude), other), default=None)
            first = self._FIRST_SHORT if magnitude <= self._SHORT else self._FIRST
            if nearest is None:
                found = _Shift(first, None, 0.0)
            else:
                found = _Shift(first, known[nearest], self._LIKENESS ** abs(nearest - magnitude))
            known[magnitude] = found
        return found

    @property
    def counts(self) -> Coverage:
        """How often the quantiles held so far."""
        p50, p90, p99 = self._covered
        return Coverage(self._observed, (p50, p90, p99))
