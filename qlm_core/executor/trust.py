"""Whether an engine that has lost work is given more.

An engine may say that it is healthy and lose whatever it is given: its server restarts, or answers errors. Each loss costs a
request one of its attempts (`gateway.attempts_max`), and a whole queue would be through with them in a second. So a loss ends the
supply for a while, which doubles with each further one; then a few requests are tried, until an output of the engine shows it
to work. They are more than one, so that a single request that no engine can bear does not keep the others from showing that.

An engine that answers some requests with errors and serves the others is not at fault. So of what is lost by an answer, the
first few requests since the engine last worked are what is blamed; if there are more in a row, the engine is.
"""

from __future__ import annotations

from math import inf

from qlm_core.model import RequestId

_PAUSE_S_MIN = 1.0
_PAUSE_S_MAX = 10.0
_TRIED = 2
# So many requests in a row may be what is wrong; bad ones come from one client, and together.
_BLAMED_MAX = 3


class Trust:
    """The trust in one engine: whole, until it loses something."""

    __slots__ = ("_blamed", "_pause_s", "_until_s")

    def __init__(self) -> None:
        self._blamed: dict[RequestId, None] = {}
        self._pause_s = 0.0
        self._until_s = -inf

    def blames(self, id: RequestId) -> bool:
        """Whether a request that the engine answered with an error is what is wrong, rather than the engine."""
        if len(self._blamed) < _BLAMED_MAX and not self._pause_s:
            self._blamed[id] = None
        return id in self._blamed

    def lost(self, now_s: float) -> None:
        """The engine has lost an attempt. What goes down together counts once."""
        if now_s >= self._until_s:
            self._pause_s = min(_PAUSE_S_MAX, max(_PAUSE_S_MIN, 2.0 * self._pause_s))
            self._until_s = now_s + self._pause_s

    def worked(self) -> bool:
        """The engine has answered; whether that was in doubt."""
        self._blamed.clear()
        doubted = self._pause_s > 0.0
        if doubted:
            self._pause_s, self._until_s = 0.0, -inf
        return doubted

    def admits(self, in_flight: int, *, now_s: float) -> bool:
        """Whether one more request may be given to an engine that has so many."""
        if not self._pause_s:
            return True
        return now_s >= self._until_s and in_flight < _TRIED

    def pauses(self, now_s: float) -> bool:
        """Whether nothing is given to it now."""
        return now_s < self._until_s

    def doubted(self, in_flight: int, *, now_s: float) -> bool:
        """Whether it has lost something since it last worked, and so is better not counted on.

        It is counted on again once nothing has been tried for a while: work that is not sent there cannot show that it works.
        """
        return self._pause_s > 0.0 and (in_flight > 0 or now_s < self._until_s + _PAUSE_S_MAX)

    def wakeup_s(self, now_s: float) -> float:
        """When that ends; infinite if it does not."""
        return self._until_s if self.pauses(now_s) else inf
