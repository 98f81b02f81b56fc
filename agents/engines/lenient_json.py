"""JSON as engines send it, read as far as it can be read.

Strict JSON takes the fast way. What is not strict but plain enough (NaN and infinities, lone surrogates, broken UTF-8,
numbers beyond 64 bits) is repaired: the odd value becomes null or a replacement character, the rest stays as it is. So
whatever passes here is strict JSON from then on, and nobody behind has to fear it.
"""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec

from qlm_core.nesting import LEVELS_MAX, is_too_deep

_decode = msgspec.json.Decoder().decode
encode = msgspec.json.Encoder().encode

# What readers of JSON raise for what is none, is not of the type that they want, or is nested beyond what they can read.
NO_JSON = (msgspec.MsgspecError, ValueError, RecursionError)

_INTEGER_MAX = 2**63
_DIGITS_MAX = 9


class Unreadable(Exception):
    """What an engine sent cannot be read at all, or lacks what is needed of it. The message quotes none of it."""


def read(data: bytes) -> Any:
    """The value. Raises Unreadable."""
    try:
        value = _decode(data)
    except NO_JSON:
        value = _repaired(data)
    if is_too_deep(data, value):
        raise Unreadable(f"nested deeper than {LEVELS_MAX} levels")
    return value


def whole_number(value: Any) -> Any:
    """A number that was written as text, as a number; anything else as it is."""
    written = isinstance(value, str) and value.isascii() and value.isdigit()
    return int(value) if written and len(value) <= _DIGITS_MAX else value


def _repaired(data: bytes) -> Any:
    try:
        return _strict(json.loads(data.decode("utf-8", "replace"), strict=False))
    except json.JSONDecodeError as error:
        raise Unreadable(f"not JSON ({error.msg} at character {error.pos})") from None
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"not JSON ({type(error).__name__})") from None


def _strict(value: Any) -> Any:
    """The value without what strict JSON cannot say."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, int):
        return value if -_INTEGER_MAX <= value < 2 * _INTEGER_MAX else None
    if isinstance(value, list):
        return [_strict(part) for part in value]
    if isinstance(value, dict):
        return {_strict(key): _strict(part) for key, part in value.items()}
    return value
