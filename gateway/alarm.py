"""When the ledger is woken: in time for what it waits for, once a pulse, and how long it slept before.

It owns the timers and the watch over sleep. What the ledger then does is not decided here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from qlm_core.presence import PULSE_S, SleepWatch

log = logging.getLogger(__name__)


class Alarm:
    """Wakes one ledger.

    Args:
        wake: is called when it is time.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._loop = asyncio.get_running_loop()
        # Its time is kept beside it: for one that has come already, uvloop makes a handle without a time.
        self._timer: asyncio.Handle | None = None
        self._timer_due_s = 0.0
        self._pulse: asyncio.TimerHandle | None = None
        self._watch = SleepWatch(self._loop.time())

    def slept_s(self) -> float:
        """For how many seconds this process did not run; 0 after the ordinary pauses between two calls."""
        slept_s = self._watch.slept_s(self._loop.time())
        if slept_s:
            log.warning("did not run for a while", extra={"slept_s": round(slept_s, 1)})
        return slept_s

    def beat(self) -> None:
        """Wake it at least once a pulse from now on, so that only sleep is taken for sleep."""
        self._wake()
        self._pulse = self._loop.call_later(PULSE_S, self.beat)

    def arm(self, due_s: float | None) -> None:
        """See to it that the ledger is woken in time; an early wake-up does no harm.

        Args:
            due_s: by when, seconds of the loop's clock; None if it waits for nothing.
        """
        if due_s is None:
            return
        if self._timer is not None:
            if self._timer_due_s <= due_s:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(due_s, self._ring)
        self._timer_due_s = due_s

    def close(self) -> None:
        """Wake it no more."""
        for timer in (self._timer, self._pulse):
            if timer is not None:
                timer.cancel()

    def _ring(self) -> None:
        self._timer = None
        self._wake()
