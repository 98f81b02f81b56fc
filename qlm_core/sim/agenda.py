"""The agenda of a simulation: what is to happen when, in an order that does not depend on anything else.

Entries at the same instant happen in the order in which they were made.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

Action = Callable[..., None]


class Agenda:
    """A heap of (time, number, action, arguments) and the time that has come.

    Attributes:
        now_s: the simulated time; only `step` moves it.
        done: entries that have happened.
    """

    __slots__ = ("_entries", "_number", "done", "now_s")

    def __init__(self) -> None:
        self._entries: list[tuple[float, int, Action, tuple[Any, ...]]] = []
        self._number = 0
        self.now_s = 0.0
        self.done = 0

    def __len__(self) -> int:
        return len(self._entries)

    def at(self, time_s: float, action: Action, *arguments: Any) -> None:
        """Let `action(*arguments)` happen at an instant, at once if that is past."""
        self._number += 1
        entry = (max(time_s, self.now_s), self._number, action, arguments)
        heappush(self._entries, entry)

    def after(self, delay_s: float, action: Action, *arguments: Any) -> None:
        """Let `action(*arguments)` happen so much later."""
        self._number += 1
        heappush(self._entries, (self.now_s + delay_s, self._number, action, arguments))

    def step(self) -> None:
        """Let the next entry happen. There must be one."""
        self.now_s, _, action, arguments = heappop(self._entries)
        self.done += 1
        action(*arguments)
