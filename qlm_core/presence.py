"""Presence: who is here, said once for all three kinds of stream (agents and gateways at the solver, agents at gateways).

Each end of a stream sends something at least every `PULSE_S`, if need be a message without content, and ends a stream on
which nothing has arrived for `SILENCE_S`. Both count in time that they were awake themselves: a process that was frozen has
heard nobody, which says nothing of the others. docs/states.md has the whole protocol as a table.
"""

from __future__ import annotations

PULSE_S = 1.0
"""Each end of a stream sends something at least this often."""

SILENCE_S = 5.0
"""A stream on which nothing arrived for so long is ended by who waits for it."""

_LATE_S = 0.5
"""A process that comes to its pulse later than this did not run meanwhile; a busy one is late by less."""


class Hearing:
    """Whether the other end of a stream is still heard. Counts pulses of its own, so it counts no time asleep.

    Args:
        silence_s: how long it may say nothing.
    """

    __slots__ = ("_quiet", "_silence_s")

    def __init__(self, silence_s: float = SILENCE_S) -> None:
        self._silence_s = silence_s
        self._quiet = 0

    def heard(self) -> None:
        """Something arrived."""
        self._quiet = 0

    def pulse(self) -> bool:
        """Another `PULSE_S` is over; say whether the other end counts as gone."""
        self._quiet += 1
        return self._quiet * PULSE_S > self._silence_s


class SleepWatch:
    """Notices that this process did not run for a while: frozen, suspended, moved to another host, or blocked.

    It has to be read at least every `PULSE_S`.
    """

    __slots__ = ("_read_s",)

    def __init__(self, now_s: float) -> None:
        self._read_s = now_s

    def slept_s(self, now_s: float) -> float:
        """Seconds since the last reading in which this process did not run; 0 if it is in time."""
        late_s = now_s - self._read_s - PULSE_S
        self._read_s = now_s
        return late_s if late_s > _LATE_S else 0.0
