"""A process on a host of its own: it can be up or down, awake or paused, and everything that happens to it passes here.

While it is paused nothing is handled, neither what arrives nor its own timers; once it wakes all of it is handled at
once, in the order in which it came due. What was meant for an earlier life of it is never handled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qlm_core.sim.agenda import Action, Agenda
from qlm_core.sim.faults.trace import Trace

UNIX_S = 1_700_000_000.0
"""What wall clocks show when a run begins."""


class Process:
    """What a part runs in.

    Attributes:
        trace: where its machine's events are written.
        life: how often it was started.
        up: it runs, or is paused.
        asleep: it is paused.
        clock_jumps_s: by how much its host's wall clock is off; monotonic clocks are never.
        on_stream: takes a stream that another process dialled; set by the part.
        on_death: lets its streams go, told whether the host still speaks for it; set by the network.
    """

    def __init__(self, name: str, agenda: Agenda, trace: Trace):
        self.name = name
        self.trace = trace
        self.life = 0
        self.up = False
        self.asleep = False
        self.clock_jumps_s = 0.0
        self.on_stream: Callable[[Any], None] | None = None
        self.on_death: Callable[[bool], None] = lambda _said: None
        self._agenda = agenda
        self._kept: list[tuple[Action, tuple[Any, ...]]] = []

    @property
    def now_s(self) -> float:
        """Its monotonic clock."""
        return self._agenda.now_s

    @property
    def unix_s(self) -> float:
        """Its wall clock."""
        return UNIX_S + self._agenda.now_s + self.clock_jumps_s

    def start(self) -> None:
        """Begin a new life."""
        self.life += 1
        self.up, self.asleep = True, False

    def die(self, *, said: bool) -> None:
        """End this life; `said` is whether its host tells whoever has a stream with it."""
        self.up = False
        self.asleep = False
        self._kept = []
        self.on_death(said)

    def restart_after(self, delay_s: float, start: Action) -> None:
        """Have whoever supervises it start it again, unless it has been started meanwhile."""
        self._agenda.after(delay_s, self._restart, self.life, start)

    def _restart(self, life: int, start: Action) -> None:
        if life == self.life and not self.up:
            start()

    def pause(self) -> None:
        """Handle nothing for now."""
        self.asleep = self.up

    def wake(self) -> None:
        """Handle what came meanwhile."""
        self.asleep = False
        life, kept = self.life, self._kept
        self._kept = []
        for action, arguments in kept:
            if self.up and life == self.life:
                action(*arguments)

    def tell(self, action: Action, *arguments: Any) -> None:
        """Have it handle something that has come, now or when it wakes."""
        if self.asleep:
            self._kept.append((action, arguments))
        elif self.up:
            action(*arguments)

    def after(self, delay_s: float, action: Action, *arguments: Any) -> None:
        """Its own timer: late if it is paused then, and void if it has died."""
        self._agenda.after(delay_s, self._due, self.life, action, arguments)

    def at(self, time_s: float, action: Action, *arguments: Any) -> None:
        """The same at an instant of its monotonic clock."""
        self._agenda.at(time_s, self._due, self.life, action, arguments)

    def _due(self, life: int, action: Action, arguments: tuple[Any, ...]) -> None:
        if life == self.life and self.up:
            self.tell(action, *arguments)
