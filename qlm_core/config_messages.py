"""What is wrong with the types in a configuration, said as its user sees it: the path, the problem, the remedy.

msgspec says it in terms of types and leaves the keys of mappings open; here its words are turned into ours.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, get_args, get_origin, get_type_hints

from qlm_core.nearest import did_you_mean

Fits = Callable[[object, Any], bool]

_UNKNOWN = re.compile(r"Object contains unknown field `(?P<key>[^`]*)`")
_AT = re.compile(r"^(?P<what>.*) - at (?P<key>`?key`? in )?`\$(?P<path>.*)`$", re.DOTALL)
_EXPECTED = re.compile(r"^Expected `(?P<want>[^`]*)`, got `(?P<got>[^`]*)`$")
_MISSING = re.compile(r"^Object missing required field `(?P<key>[^`]*)`$")
_CHOICE = re.compile(r"^Invalid enum value (?P<got>.*)$", re.DOTALL)
_STEP = re.compile(r"\[(\d+|\.\.\.)\]|([^.\[\]]+)")
_PLAIN_WORDS = {
    "object": "a mapping",
    "array": "a list",
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "null": "empty",
}


def readable(message: str, data: object, tree: type, fits: Fits) -> str:
    """Turn msgspec's message about `data` into `path: problem. remedy`.

    Args:
        tree: the type that the data does not fit.
        fits: whether a value fits a type.
    """
    at = _AT.fullmatch(message)
    what = at["what"] if at else message
    path, kind = _follow(at["path"] if at else "", data, tree, fits)
    if at and at["key"]:
        return f"{path}: every key must be text. Put quotes around it."
    if unknown := _UNKNOWN.fullmatch(what):
        key = f"{path}.{unknown['key']}".strip(".")
        meant = did_you_mean(unknown["key"], get_type_hints(kind) if isinstance(kind, type) else ())
        return f"{key}: unknown key. Remove it or check its spelling (`qlm config show`).{meant}"
    if missing := _MISSING.fullmatch(what):
        return f"{path}.{missing['key']}: missing. Add this key.".removeprefix(".")
    path = path or "the configuration"
    if expected := _EXPECTED.fullmatch(what):
        want, got = (_in_words(expected[part]) for part in ("want", "got"))
        return f"{path}: must be {want}, not {got}."
    if choice := _CHOICE.fullmatch(what):
        meant = did_you_mean(choice["got"].strip("'"), get_args(kind))
        return (
            f"{path}: {choice['got']} is not known. Use one of: {', '.join(get_args(kind))}.{meant}"
        )
    return f"{path}: {what}."


def _in_words(types: str) -> str:
    return " or ".join(_PLAIN_WORDS.get(name, name) for name in types.split(" | "))


def _follow(path: str, data: object, tree: type, fits: Fits) -> tuple[str, Any]:
    """The path as a user writes it and the type there; msgspec leaves a mapping's key open."""
    kind: Any = tree
    value: Any = data
    named = ""
    for index, key in _STEP.findall(path):
        if key:
            kind, value, named = get_type_hints(kind)[key], value[key], f"{named}.{key}"
        elif index == "...":
            kind = get_args(_shaped(kind, dict))[-1]
            broken = next(name for name, item in value.items() if not fits(item, kind))
            value, named = value[broken], f"{named}.{broken}"
        else:
            kind = get_args(_shaped(kind, tuple))[0]
            value, named = value[int(index)], f"{named}[{index}]"
    return named.removeprefix("."), kind


def _shaped(kind: Any, shape: type) -> Any:
    """The type itself, or of several that a key may have the one of that shape."""
    several = [one for one in get_args(kind) if get_origin(one) is shape]
    return several[0] if several and get_origin(kind) is not shape else kind
