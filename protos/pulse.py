"""The pulse of one stream: a message without content every `PULSE_S`, and the end of a stream on which nothing arrives.

Each end of each stream has one. A pulse goes into the stream's outbox like everything else, so it also tells that the writer
works, and a stream that cannot be written is silent for the other end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from qlm_core.presence import PULSE_S, SILENCE_S, Hearing


class Pulse:
    """Beats from `start` to `stop`. Owned by one event loop.

    Args:
        send: sends a message without content.
        on_silence: called once when the other end counts as gone; the pulse stops.
        silence_s: how long the other end may say nothing.
    """

    __slots__ = ("_hearing", "_on_silence", "_send", "_timer")

    def __init__(
        self,
        send: Callable[[], None],
        *,
        on_silence: Callable[[], None],
        silence_s: float = SILENCE_S,
    ) -> None:
        self._send = send
        self._on_silence = on_silence
        self._hearing = Hearing(silence_s)
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to beat."""
        self._timer = asyncio.get_running_loop().call_later(PULSE_S, self._beat)

    def heard(self) -> None:
        """Something arrived from the other end."""
        self._hearing.heard()

    def stop(self) -> None:
        """Beat no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _beat(self) -> None:
        self._timer = None
        if self._hearing.pulse():
            self._on_silence()
            return
        self._send()
        self.start()
