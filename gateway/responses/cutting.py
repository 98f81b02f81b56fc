"""Text in pieces, one to an event of a stream.

Whoever follows a response to the end gets each chunk as it comes. Whoever may come back and go on after event 57 needs an
event 57 that is the same each time, however the output was cut into chunks, merged or made again. So that text is cut by
itself: before a blank, and after so many characters. Its price is that a piece waits until it is known to be whole.
"""

from __future__ import annotations

import re

PIECE_CHARS_MAX = 16
_WORD_END = re.compile(r"(?<=\S)\s")


class Cutter:
    """Cuts one text.

    Args:
        by_chunk: each chunk is a piece.
    """

    __slots__ = ("_by_chunk", "_held")

    def __init__(self, *, by_chunk: bool) -> None:
        self._by_chunk = by_chunk
        self._held = ""

    def add(self, text: str) -> list[str]:
        """The pieces that are whole with this text."""
        if self._by_chunk:
            return [text] if text else []
        text, start = self._held + text, 0
        pieces: list[str] = []
        while (end := _end_of(text, start)) is not None:
            pieces.append(text[start:end])
            start = end
        self._held = text[start:]
        return pieces

    def rest(self) -> list[str]:
        """What is left at the end of the text."""
        held, self._held = self._held, ""
        return [held] if held else []


def _end_of(text: str, start: int) -> int | None:
    """Where the piece that begins here ends; None if that cannot be said yet."""
    limit = start + PIECE_CHARS_MAX
    found = _WORD_END.search(text, start + 1, limit)
    if found is not None:
        return found.start()
    return limit if len(text) >= limit else None
