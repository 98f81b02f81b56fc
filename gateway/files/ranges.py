"""Which bytes of a file a client asks for (RFC 9110, section 14). Everything here is pure."""

from __future__ import annotations

import re

_ONE = re.compile(r"bytes[ \t]*=[ \t]*([0-9]{0,18})-([0-9]{0,18})")


def wanted(header: str, size: int) -> tuple[int, int] | None:
    """The first byte and the one behind the last; None if none of them are there.

    All of them for what is no range, or several: whoever asks for these must take the whole as well.
    """
    found = _ONE.fullmatch(header.strip())
    if found is None or not (found[1] or found[2]):
        return 0, size
    if not found[1]:
        first, end = size - min(int(found[2]), size), size
    else:
        first, last = int(found[1]), int(found[2] or size - 1)
        if found[2] and last < first:
            return 0, size
        end = min(last + 1, size)
    return (first, end) if first < end else None
