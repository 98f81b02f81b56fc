"""A value that nobody is to read by accident: it shows itself only to who asks for it by name.

Keys and passwords of the configuration are of this type, so that a log line, a traceback, a message or a dump of the
configuration that one of them strays into says `<hidden>` instead.
"""

from __future__ import annotations

import hmac
from typing import Final

HIDDEN: Final = "<hidden>"


class Secret:
    """A text that is hidden in every form but `reveal()`; false when it is empty, and equal to the same text."""

    __slots__ = ("_text",)

    def __init__(self, text: str = "") -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself."""
        return self._text

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        text = other.reveal() if isinstance(other, Secret) else other
        if not isinstance(text, str):
            return NotImplemented
        return hmac.compare_digest(self._text.encode(), text.encode())

    # Equal to a text, and not to be found in a mapping by it.
    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return HIDDEN if self._text else "''"

    def __str__(self) -> str:
        return HIDDEN if self._text else ""
