"""The time of a store, by which the ages of what it holds are told.

It begins as the Unix time of the store's first start. While a gateway runs it advances with a clock that nobody sets;
between two runs it advances with the wall clock, but never back, and by `DOWN_S_MAX` at most. So a clock that is stepped
by a day neither deletes answers nor sheds requests, whether it is stepped during a run or between two.
"""

from __future__ import annotations

from typing import NamedTuple

# How much of the time between two runs counts at most.
DOWN_S_MAX = 3600.0


class Seen(NamedTuple):
    """One instant on both clocks, as a store keeps it from run to run.

    Attributes:
        store_s: the store's time.
        unix_s: the wall clock's at that instant, Unix seconds.
    """

    store_s: float
    unix_s: float


class StoreClock:
    """The time of one store during one run.

    Args:
        seen: the last instant of the run before; None in a store's first run.
        unix_s: the wall clock now.
        now_s: the clock now that `read` is given later: any that only advances.

    Attributes:
        down_s: what the wall clock says has passed since the last instant of the run before.
        counted_s: how much of that counts.
    """

    __slots__ = ("_offset_s", "counted_s", "down_s")

    def __init__(self, seen: Seen | None, *, unix_s: float, now_s: float) -> None:
        self.down_s = 0.0 if seen is None else unix_s - seen.unix_s
        self.counted_s = min(max(0.0, self.down_s), DOWN_S_MAX)
        start_s = unix_s if seen is None else seen.store_s + self.counted_s
        self._offset_s = start_s - now_s

    def read(self, now_s: float) -> float:
        """The store's time at an instant of this run."""
        return self._offset_s + now_s
