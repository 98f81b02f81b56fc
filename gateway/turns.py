"""In which order text, reasoning and tool calls came in a chat, where a folded answer would not tell.

Most models think, then speak, then call; what is folded together is read in this order. A few go back and forth, and of
them a folded chunk says so in a field of its own: how much of each came in turn. So whoever reads an answer as parts in
order reads the same parts, however often its chunks were merged. Everything here is pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

FIELD = "qlm_turns"
REASONING, CONTENT, REFUSAL, CALLS = "reasoning", "content", "refusal", "calls"
_ORDER = (REASONING, CONTENT, REFUSAL, CALLS)

Turn = tuple[str, int]


def texts_of(delta: dict[str, Any]) -> dict[str, str]:
    """The pieces of text in a delta or a message by their kind, in the usual order; empty ones are left out."""
    # Servers have two names for it, and some say it under both.
    found = {
        REASONING: delta.get("reasoning") or delta.get("reasoning_content"),
        CONTENT: delta.get("content"),
        REFUSAL: delta.get("refusal"),
    }
    return {kind: text for kind, text in found.items() if isinstance(text, str) and text}


def name_of(call: dict[str, Any]) -> str:
    """The name of the function that is called, as far as it has come."""
    function = call.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else ""


def is_named(call: dict[str, Any]) -> bool:
    """Whether the name of the function that is called has come."""
    return bool(name_of(call))


def told_in(chunk: dict[str, Any]) -> list[Turn] | None:
    """The turns that a chunk tells of; None where it has none, or none that can be read."""
    turns = chunk.get(FIELD)
    if not isinstance(turns, list):
        return None
    read: list[Turn] = []
    for turn in turns:
        if not (isinstance(turn, list) and len(turn) == 2 and turn[0] in _ORDER):
            return None
        size = turn[1]
        if not isinstance(size, int) or size < 0:
            return None
        read.append((turn[0], size))
    return read


def usual(texts: dict[str, str], calls: int) -> Iterator[Turn]:
    """The turns of a delta that has these texts and begins so many calls, in the usual order."""
    for kind, text in texts.items():
        yield kind, len(text)
    if calls:
        yield CALLS, calls


class Turns:
    """The turns of one answer."""

    __slots__ = ("_turns",)

    def __init__(self) -> None:
        self._turns: list[Turn] = []

    def add(self, turns: Iterator[Turn] | list[Turn]) -> None:
        """What came next: characters of text, or calls that were begun."""
        for kind, size in turns:
            if self._turns and self._turns[-1][0] == kind:
                size += self._turns.pop()[1]
            self._turns.append((kind, size))

    def told(self) -> dict[str, Any]:
        """The field to add to a folded chunk; nothing where the usual order is right."""
        places = [_ORDER.index(kind) for kind, _ in self._turns]
        if all(one < later for one, later in pairwise(places)):
            return {}
        return {FIELD: self._turns}
