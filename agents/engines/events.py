"""Server-sent events out of bytes, as servers really send them.

An event is known to be complete when its data is one line that holds a JSON object, so that nothing waits for the empty
line that some servers leave out. Data over several lines counts as one event up to an empty line. Comments, ids and
fields that we do not know are passed over, and so is an event without data.
"""

from __future__ import annotations

from dataclasses import dataclass

from agents.engines.lenient_json import Unreadable

DONE = b"[DONE]"


@dataclass(frozen=True, slots=True)
class Event:
    """The data of one event, and whether its name says that it is an error."""

    data: bytes
    error: bool = False


class Events:
    """Splits a stream.

    Args:
        bytes_max: how long an event may be.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._rest: list[bytes] = []
        self._rest_bytes = 0
        self._lines: list[bytes] = []
        self._lines_bytes = 0
        self._ended_in_cr = False
        self._error = False

    def feed(self, data: bytes) -> list[Event]:
        """The events that are complete with this. Raises Unreadable for one that is too long."""
        if self._ended_in_cr and data.startswith(b"\n"):
            # The second half of a line's end, which came in two reads.
            data = data[1:]
        self._ended_in_cr = data.endswith(b"\r")
        if b"\n" not in data and b"\r" not in data:
            self._keep(data)
            return []
        if self._rest:
            data = b"".join([*self._rest, data])
            self._rest.clear()
            self._rest_bytes = 0
        lines = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._keep(lines.pop())
        events: list[Event] = []
        for line in lines:
            self._take(line, events)
        return events

    def finish(self) -> list[Event]:
        """What the end of the stream completes."""
        events: list[Event] = []
        self._take(b"".join(self._rest), events)
        self._rest.clear()
        self._dispatch(events)
        return events

    def _keep(self, rest: bytes) -> None:
        if not rest:
            return
        self._rest.append(rest)
        self._rest_bytes += len(rest)
        self._check(self._rest_bytes)

    def _check(self, size: int) -> None:
        if size > self._bytes_max:
            raise Unreadable(f"an event of more than {self._bytes_max} bytes")

    def _take(self, line: bytes, events: list[Event]) -> None:
        line = line.removeprefix(b"\xef\xbb\xbf")
        if not line.strip():
            self._dispatch(events)
        elif line.startswith(b"data:"):
            data = line[5:].strip()
            whole = data == DONE or (data.startswith(b"{") and data.endswith(b"}"))
            if whole and not self._lines:
                events.append(Event(data, self._error))
                self._error = False
            elif data:
                self._lines.append(data)
                self._lines_bytes += len(data)
                self._check(self._lines_bytes)
        elif line.startswith(b"event:"):
            self._error = line[6:].strip() == b"error"

    def _dispatch(self, events: list[Event]) -> None:
        if self._lines:
            events.append(Event(b"\n".join(self._lines), self._error))
            self._lines, self._lines_bytes = [], 0
        self._error = False
