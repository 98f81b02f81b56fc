"""How deep JSON may be nested: far deeper than any request or answer is, and far from where readers and writers give up.

Those recurse, each to a depth of its own that depends on who calls it. What passes here is read and written everywhere.
"""

from __future__ import annotations

LEVELS_MAX = 200


def is_too_deep(data: bytes, value: object) -> bool:
    """Whether JSON has more levels than `LEVELS_MAX`.

    Args:
        data: the text, which mostly has too few brackets for that.
        value: what it says.
    """
    if data.count(b"[") + data.count(b"{") <= LEVELS_MAX:
        return False
    level = [value]
    for _ in range(LEVELS_MAX):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return False
    return any(isinstance(one, dict | list) for one in level)


def _inside(value: object) -> list[object]:
    """The parts of a value that may have parts themselves."""
    if isinstance(value, dict):
        return [part for part in value.values() if isinstance(part, dict | list)]
    if isinstance(value, list):
        return [part for part in value if isinstance(part, dict | list)]
    return []
