"""What all streams between the services have in common: pulses, the silence that ends them, and pauses before dialling again."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from qlm_core.messages import Alive
from qlm_core.presence import PULSE_S, SILENCE_S, Hearing
from qlm_core.sim.faults.network import End
from qlm_core.sim.faults.process import Process

_FIRST_RETRY_S = 0.05
_RETRY_S_MAX = 1.0
_ALIVE = Alive()


class Session:
    """One end's use of a stream. It ends once: because the peer hung up, because it broke, or in silence.

    Args:
        on_end: told when it ends otherwise than by `close`.
        beats: whether pulses are sent; an agent's reports to the solver are its pulse.
        silence_s: how long the peer may say nothing.
    """

    def __init__(
        self,
        end: End,
        *,
        on_message: Callable[[Any], None],
        on_end: Callable[[], None],
        beats: bool = True,
        silence_s: float = SILENCE_S,
    ) -> None:
        self.end = end
        self._on_message = on_message
        self._on_end = on_end
        self._beats = beats
        self._hearing = Hearing(silence_s)
        end.on_message = self._heard
        end.on_end = on_end
        end.process.after(PULSE_S, self._pulse)

    @property
    def open(self) -> bool:
        """Whether messages can be sent."""
        return self.end.open

    def send(self, message: object) -> None:
        """Send a message; it is dropped if the session is over."""
        self.end.send(message)

    def close(self) -> None:
        """Hang up."""
        self.end.close()

    def part(self) -> None:
        """Hang up, and do what is done when the peer does."""
        if self.end.open:
            self.end.close()
            self._on_end()

    def _heard(self, message: object) -> None:
        self._hearing.heard()
        if message is not _ALIVE:
            self._on_message(message)

    def _pulse(self) -> None:
        if not self.end.open:
            return
        if self._hearing.pulse():
            self.part()
            return
        if self._beats:
            self.end.send(_ALIVE)
        self.end.process.after(PULSE_S, self._pulse)


class Backoff:
    """Growing pauses between attempts to dial."""

    def __init__(self, process: Process, rng: Random) -> None:
        self._process = process
        self._rng = rng
        self._next_s = _FIRST_RETRY_S

    def reset(self) -> None:
        """A session stood: begin with short pauses again."""
        self._next_s = _FIRST_RETRY_S

    def retry(self, dial: Callable[[], None]) -> None:
        """Dial after the next pause."""
        pause_s = self._next_s * self._rng.uniform(0.5, 1.0)
        self._next_s = min(2 * self._next_s, _RETRY_S_MAX)
        self._process.after(pause_s, dial)
