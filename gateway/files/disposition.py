"""Content-Disposition: what it says of a part of a form, and how it names a file that is fetched. Everything here is pure.

Clients write names in several ways. Browsers (WHATWG) and current curl send UTF-8 as it is, with %22 for a quote; older ones
escape it with a backslash; some send `filename*` (RFC 5987) for what is not ASCII. All are read.
"""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import quote, unquote_to_bytes

_PARAMETER = re.compile(
    rb";[ \t]*([A-Za-z0-9!#$&+.^_`|~*-]+)[ \t]*=[ \t]*(?:\"((?:[^\"\\]|\\.)*)\"|([^;\"]*))",
    re.DOTALL,
)
_ESCAPED = re.compile(rb"\\([\"\\])")
_EXTENDED = re.compile(rb"(utf-8|iso-8859-1)'[^']*'(.*)", re.IGNORECASE | re.DOTALL)
_PLAIN = re.compile(r"[A-Za-z0-9._ -]+")


class Part(NamedTuple):
    """What the head of a part says: its field, and the name of its file; None where it is no file."""

    name: str
    filename: str | None


def part_of(value: bytes) -> Part | None:
    """The part of a form that a header describes; None if it describes none."""
    kind, _, _ = value.partition(b";")
    if kind.strip().lower() != b"form-data":
        return None
    given: dict[bytes, bytes] = {}
    for key, quoted, bare in _PARAMETER.findall(value):
        said = _ESCAPED.sub(rb"\1", quoted).replace(b"%22", b'"') if quoted else bare.strip()
        given.setdefault(key.lower(), said)
    if b"name" not in given:
        return None
    filename = _extended(given.get(b"filename*", b""))
    if filename is None and b"filename" in given:
        filename = _text(given[b"filename"])
    return Part(_text(given[b"name"]), filename)


def attachment(filename: str) -> bytes:
    """The header of an answer that is a file of this name (RFC 6266)."""
    if _PLAIN.fullmatch(filename):
        return b'attachment; filename="%b"' % filename.encode()
    ascii_name = "".join(c if _PLAIN.fullmatch(c) else "_" for c in filename)
    encoded = quote(filename, safe="", encoding="utf-8")
    return f"attachment; filename=\"{ascii_name}\"; filename*=UTF-8''{encoded}".encode()


def _extended(value: bytes) -> str | None:
    found = _EXTENDED.fullmatch(value)
    if found is None:
        return None
    data = unquote_to_bytes(found[2])
    return _printable(data.decode("latin-1")) if found[1].lower() != b"utf-8" else _text(data)


def _text(data: bytes) -> str:
    try:
        return _printable(data.decode())
    except UnicodeDecodeError:
        return _printable(data.decode("latin-1"))


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "_" for c in text)
