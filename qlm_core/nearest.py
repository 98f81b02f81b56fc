"""Which name somebody may have meant who wrote one that is not known."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

_WORD_CHARS_MAX = 128
_KNOWN_MAX = 1_000


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A question that names the nearest of the known names, behind a blank; "" where none is near."""
    if not 0 < len(word) <= _WORD_CHARS_MAX:
        return ""
    names = [name for _, name in zip(range(_KNOWN_MAX), known, strict=False)]
    near = get_close_matches(word, names, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""
