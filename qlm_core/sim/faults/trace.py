"""The trace of a run: a line for each fault, each event of a machine, and what the machine wanted done about it.

Lines are made only where somebody reads them. Values are written as their types with what tells them apart, since whole messages
would hide what happened.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum

from qlm_core.sim.agenda import Agenda

Write = Callable[[str], None]

_LEFT_OUT = ("profiles", "problem", "warm", "state", "result", "body", "estimate", "slo", "meta")
_TEXT_MAX = 90


class Trace:
    """Writes lines, if anybody reads them."""

    def __init__(self, agenda: Agenda, write: Write | None):
        self._agenda = agenda
        self._write = write

    def line(self, who: str, *words: object) -> None:
        """Write a line."""
        if self._write is not None:
            self._write(" ".join([f"{self._agenda.now_s:9.4f}", f"{who:9}", *map(str, words)]))

    def event(self, who: str, event: object, effects: Sequence[object]) -> None:
        """Write what a machine was told and what it wants done."""
        if self._write is None:
            return
        told = "" if not effects else " -> " + "; ".join(map(brief, effects))
        self.line(who, brief(event) + told)


def brief(value: object) -> str:
    """A value in a few words."""
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, tuple | list):
        return "[" + " ".join(map(brief, value)) + "]"
    if isinstance(value, float):
        return f"{value:.3f}"
    if not is_dataclass(value):
        text = str(value)
        return text if len(text) <= _TEXT_MAX else text[:_TEXT_MAX] + "..."
    told = [
        f"{field.name}={brief(getattr(value, field.name))}"
        for field in fields(value)
        if field.name not in _LEFT_OUT and getattr(value, field.name) != field.default
    ]
    return f"{type(value).__name__}({' '.join(told)})"
