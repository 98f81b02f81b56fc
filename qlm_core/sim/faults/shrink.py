"""Makes a failing schedule short: what can be taken out, one part after another, so that the same checker still complains.

Delta debugging (Zeller and Hildebrandt, 2002) over faults, batches and requests: faults first, since most failures need few of
them, in ever smaller parts until no single event can be left out, or the runs that may be spent on it are used up.
"""

from __future__ import annotations

import msgspec

from qlm_core.sim.faults.run import Outcome, run
from qlm_core.sim.faults.schedule import Schedule

RUNS_MAX = 400


def shrink(
    schedule: Schedule, checker: str, *, runs_max: int = RUNS_MAX
) -> tuple[Schedule, Outcome]:
    """A schedule with few of the events of a failing one, and how it fails.

    Args:
        checker: who complains about the schedule, and is to complain about the result.
        runs_max: most runs that are tried.
    """
    shrinking = _Shrinking(schedule, checker, runs_max)
    for kind in ("faults", "batches", "asks", "faults"):
        shrinking.reduce(kind)
    return shrinking.best


class _Shrinking:
    """The shortest schedule so far, and how many runs are left."""

    def __init__(self, schedule: Schedule, checker: str, runs_max: int):
        self._checker = checker
        self._left = runs_max
        self.best = schedule, run(schedule)

    def reduce(self, kind: str) -> None:
        """Leave out events of a kind, the name of a field of the schedule, that are not needed."""
        events: tuple[object, ...] = getattr(self.best[0], kind)
        parts = 2
        while events and self._left:
            size = max(1, len(events) // parts)
            for start in range(0, len(events), size):
                fewer = events[:start] + events[start + size :]
                if self._fails(kind, fewer):
                    events = fewer
                    parts = max(2, parts - 1)
                    break
            else:
                if size == 1:
                    break
                parts = min(len(events), 2 * parts)

    def _fails(self, kind: str, events: tuple[object, ...]) -> bool:
        if not self._left:
            return False
        self._left -= 1
        schedule = msgspec.structs.replace(self.best[0], **{kind: events})
        outcome = run(schedule)
        failed = outcome.failure is not None and outcome.failure.checker == self._checker
        if failed:
            self.best = schedule, outcome
        return failed
