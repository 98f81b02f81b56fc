"""The longest time between two tokens of each output, as a simulated client would see it.

Simulated output travels as the first token of an attempt and then in stretches, each handed in when it is over. The tokens of a
stretch came one after another, so what lies between two of them is the stretch's share, and not the time between two messages.
"""

from __future__ import annotations

from qlm_core.model import RequestId


class Pauses:
    """Outputs under way: when the last token came, and the longest pause so far."""

    def __init__(self) -> None:
        self._last_s: dict[RequestId, float] = {}
        self._longest_s: dict[RequestId, float] = {}

    def came(self, id: RequestId, tokens: int, now_s: float) -> None:
        """A stretch of so many tokens has come, the last of them now."""
        last_s = self._last_s.get(id)
        if last_s is not None:
            pause_s = (now_s - last_s) / tokens
            self._longest_s[id] = max(pause_s, self._longest_s.get(id, 0.0))
        self._last_s[id] = now_s

    def end(self, id: RequestId) -> float:
        """The output is over; its longest pause in seconds, 0 where one token or none came."""
        self._last_s.pop(id, None)
        return self._longest_s.pop(id, 0.0)
