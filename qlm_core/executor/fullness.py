"""How much an engine takes that has said that it is full.

A server may take less at once than the agent is configured for, or be used by others as well. It says so by turning a
request away (HTTP 429 or 503). That is no failure. One request turned away among others that are served says nothing of
them. When the next one is turned away too, the agent gives the engine no more than it has, for a moment that doubles
each time.
"""

from __future__ import annotations

from math import inf

# How long nothing beyond what runs is tried: the first time, and at most, when it stays full.
_PAUSE_S_MIN = 0.5
_PAUSE_S_MAX = 8.0


class Fullness:
    """What the engine has said of being full; nothing until it turns requests away."""

    __slots__ = ("_in_a_row", "_pause_s", "_taken", "_until_s")

    def __init__(self) -> None:
        self._in_a_row = 0
        self._pause_s = 0.0
        self._taken = 0
        self._until_s = -inf

    def turned_away(self, beside: int, now_s: float) -> float:
        """It has turned a request away beside so many that run there; how long that one is to rest at least, in seconds."""
        self._in_a_row += 1
        if self._in_a_row == 1:
            return _PAUSE_S_MIN
        if now_s >= self._until_s:
            self._pause_s = min(_PAUSE_S_MAX, max(_PAUSE_S_MIN, 2.0 * self._pause_s))
            self._until_s = now_s + self._pause_s
        self._taken = beside
        return max(_PAUSE_S_MIN, self._until_s - now_s)

    def worked(self) -> None:
        """It has begun or ended one of the requests that it took, or is a new one."""
        if self._in_a_row:
            self._in_a_row, self._pause_s, self._until_s = 0, 0.0, -inf

    def admits(self, in_flight: int, *, now_s: float) -> bool:
        """Whether one more request may be given to an engine that has so many."""
        return now_s >= self._until_s or in_flight < self._taken

    def takes_nothing(self, in_flight: int, *, now_s: float) -> bool:
        """Whether it has turned several away in a row with nothing to do, and so is better not counted on.

        It is counted on again once nothing has been tried for a while: work that is not sent there cannot show that it has room.
        """
        full = self._pause_s > 0.0 and not self._taken
        return full and (in_flight > 0 or now_s < self._until_s + _PAUSE_S_MAX)

    def wakeup_s(self, now_s: float) -> float:
        """When more may be tried; infinite if nothing is held back."""
        return self._until_s if now_s < self._until_s else inf
