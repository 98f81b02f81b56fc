"""A form (multipart/form-data, RFC 7578) that is read while it comes, in whatever pieces. Everything here is pure.

The parts and their bytes come out as they go in; nothing but the head of a part is held, and that has limits.
"""

from __future__ import annotations

import logging
import re
from typing import NamedTuple

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser

from gateway.files.disposition import Part, part_of
from qlm_core.errors import InvalidRequest

PARTS_MAX = 64
HEAD_BYTES_MAX = 8_192
_BOUNDARY = re.compile(
    rb"multipart/form-data[ \t]*;.*?\bboundary=(?:\"([^\"]{1,70})\"|([^\s;\"]{1,70})(?=[\s;]|$))",
    re.IGNORECASE,
)
# What is wrong is told to the client; it warns of each in the log as well, in the client's words.
logging.getLogger("python_multipart").setLevel(logging.CRITICAL)


class PartBegan(NamedTuple):
    """A part has begun."""

    part: Part


class PartData(NamedTuple):
    """The next bytes of the part that began last."""

    data: bytes


class PartEnded(NamedTuple):
    """That part is whole."""


Event = PartBegan | PartData | PartEnded


def boundary_of(content_type: bytes) -> bytes:
    """What divides the parts of a form. Raises InvalidRequest for what is no form."""
    found = _BOUNDARY.match(content_type.strip())
    if found is None:
        raise InvalidRequest(
            "content-type",
            f"{content_type[:64].decode('latin-1')!r} is not multipart/form-data with a boundary",
            "Send the file as a form, as OpenAI's libraries and curl -F do.",
        )
    return found[1] or found[2]


class FormReader:
    """One form.

    Attributes:
        complete: whether its end has come; what follows does not count.
    """

    def __init__(self, boundary: bytes) -> None:
        self.complete = False
        self._parts = 0
        self._head_bytes = 0
        self._header = b""
        self._disposition = b""
        self._name = b""
        self._events: list[Event] = []
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._began,
                "on_header_field": self._named,
                "on_header_value": self._valued,
                "on_header_end": self._header_ended,
                "on_headers_finished": self._head_ended,
                "on_part_data": self._came,
                "on_part_end": self._ended,
                "on_end": self._all_ended,
            },
        )

    def feed(self, data: bytes) -> list[Event]:
        """What comes of the next piece. Raises InvalidRequest for what is no form; then it is not to be used again."""
        try:
            self._parser.write(data)
        except FormParserError:
            raise _broken("it is not divided into parts as its boundary says") from None
        events, self._events = self._events, []
        return events

    def _began(self) -> None:
        self._parts += 1
        if self._parts > PARTS_MAX:
            raise _broken(f"more than {PARTS_MAX} parts")
        self._head_bytes = 0
        self._name = self._header = self._disposition = b""

    def _named(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]
        self._count(end - start)

    def _valued(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]
        self._count(end - start)

    def _header_ended(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = self._header
        self._name = self._header = b""

    def _head_ended(self) -> None:
        part = part_of(self._disposition)
        if part is None:
            raise _broken("a part does not say which field it is")
        self._events.append(PartBegan(part))

    def _came(self, data: bytes, start: int, end: int) -> None:
        self._events.append(PartData(data[start:end]))

    def _ended(self) -> None:
        self._events.append(PartEnded())

    def _all_ended(self) -> None:
        self.complete = True

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > HEAD_BYTES_MAX:
            raise _broken(f"the head of a part has more than {HEAD_BYTES_MAX} bytes")


def _broken(what: str) -> InvalidRequest:
    return InvalidRequest(
        "body", what, "Send a form, as OpenAI's libraries and curl -F do.", code="invalid_form"
    )
