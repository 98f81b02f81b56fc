"""The HTTP connections of one gateway: how many there may be, and how long each may keep it waiting.

uvicorn bounds none of this. A connection without a request under way is *quiet*, and gives way to a new one where there are
too many; a head that does not come, or answers that nobody reads, end their connection after a time. So neither idle
connections nor clients that write or read a byte now and then keep others out.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from gateway.admission import Seats
from gateway.budget import Budget
from gateway.problems import Problem
from qlm_core.config import GatewayLimits

# Beyond the limit so many more connections are opened, to be told that it is reached, or how the gateway is.
SPARE_CONNECTIONS = 256
# Requests of one connection that wait for the one before them. Few clients send even a second.
_PIPELINED_MAX = 16

_FULL = Problem(
    status=503,
    message="The gateway has all the connections that it may have. Try again later.",
    type="server_error",
    code="connections_max",
    retry_after_s=1.0,
)
_FULL_OF_YOURS = Problem(
    status=429,
    message=(
        "There are as many connections from this address as gateway.limits.connections_per_address_max "
        "allows. Close some, or use them for more than one request."
    ),
    type="rate_limit_error",
    code="connections_per_address_max",
    retry_after_s=1.0,
)
_BAD_HEAD = Problem(
    status=400,
    message="This is not HTTP that can be read here.",
    type="invalid_request_error",
    code="invalid_http",
)
_LARGE_HEAD = Problem(
    status=431,
    message="The headers are longer or more than gateway.limits.header_bytes_max and headers_max allow.",
    type="invalid_request_error",
    code="headers_too_large",
)
_SLOW_HEAD = Problem(
    status=408,
    message="The head of the request had not arrived after gateway.limits.header_s_max.",
    type="invalid_request_error",
    code="head_too_slow",
)
_PHRASES = {
    400: b"Bad Request",
    408: b"Request Timeout",
    429: b"Too Many Requests",
    431: b"Request Header Fields Too Large",
    503: b"Service Unavailable",
}


@dataclass(slots=True)
class _Address:
    """What one client address has open."""

    open: int = 0
    quiet: dict[Connection, None] = field(default_factory=dict)


@dataclass(slots=True)
class _Unread:
    """Bytes on their way to a client, and since when none of them was read."""

    size: int
    since_s: float


class Connections:
    """All HTTP connections of one gateway.

    Args:
        connections_max: how many there is room for (`gateway.open_files`), SPARE_CONNECTIONS aside.
        unread: counts what clients have not read, which is known here as of the last sweep.
    """

    def __init__(self, limits: GatewayLimits, *, connections_max: int, unread: Budget) -> None:
        self.limits = limits
        self._connections_max = connections_max
        self._unread_budget = unread
        self._loop = asyncio.get_running_loop()
        self._open: dict[Connection, str] = {}
        self._addresses: dict[str, _Address] = {}
        # Both in the order in which they began.
        self._quiet: dict[Connection, None] = {}
        self._headless: dict[Connection, float] = {}
        self._unread: dict[Connection, _Unread] = {}
        self._unread_bytes = 0

    @property
    def full(self) -> bool:
        """Whether requests are to be turned away for want of connections."""
        return len(self._open) > self._connections_max

    @property
    def seats(self) -> Seats:
        """How many have a request under way beside the one that asks, and may have."""
        return Seats(len(self._open) - len(self._quiet) - 1, self._connections_max)

    def counts(self) -> dict[str, float]:
        """How many there are, for metrics."""
        quiet = len(self._quiet)
        return {"busy": float(len(self._open) - quiet), "quiet": float(quiet)}

    def enter(self, connection: Connection, host: str) -> Problem | None:
        """A connection was opened; why it is not to stay, if so."""
        address = self._addresses.setdefault(host, _Address())
        self._open[connection] = host
        address.open += 1
        refused = None
        # Who waits for nothing gives way, first whoever does so for longest.
        if address.open > self.limits.connections_per_address_max and not _close_one(address.quiet):
            refused = _FULL_OF_YOURS
        elif len(self._open) > self._connections_max and not _close_one(self._quiet):
            refused = _FULL if len(self._open) > self._connections_max + SPARE_CONNECTIONS else None
        if refused is None:
            self.rest(connection)
            self.begin_head(connection)
        return refused

    def leave(self, connection: Connection) -> None:
        """A connection is closed."""
        self.work(connection)
        self._unread.pop(connection, None)
        host = self._open.pop(connection, None)
        if host is None:
            return
        address = self._addresses[host]
        address.open -= 1
        if not address.open:
            del self._addresses[host]

    def rest(self, connection: Connection) -> None:
        """No request of it is under way."""
        if connection in self._open:
            self._quiet[connection] = None
            self._addresses[self._open[connection]].quiet[connection] = None

    def begin_head(self, connection: Connection) -> None:
        """The head of its next request is to come now."""
        self._headless.setdefault(connection, self._loop.time())

    def work(self, connection: Connection) -> None:
        """A request of it has begun, or it is about to close."""
        self._headless.pop(connection, None)
        if connection in self._quiet:
            del self._quiet[connection]
            del self._addresses[self._open[connection]].quiet[connection]

    def writes(self, connection: Connection) -> None:
        """It has bytes that its client has not read: see to it that this ends."""
        if connection in self._open:
            size = connection.unread_bytes
            self._unread.setdefault(connection, _Unread(size, self._loop.time()))

    def sweep(self) -> None:
        """Close what has kept us waiting for too long. To be called several times a second."""
        now_s = self._loop.time()
        for connection, since_s in list(self._headless.items()):
            if now_s - since_s < self.limits.header_s_max:
                break
            connection.end(_SLOW_HEAD if connection.has_begun else None)
        total = 0
        for connection, unread in list(self._unread.items()):
            size = connection.unread_bytes
            if not size:
                del self._unread[connection]
                continue
            if size < unread.size:
                unread.since_s = now_s
            unread.size = size
            if now_s - unread.since_s >= self.limits.write_s_max:
                connection.abort()
            else:
                total += size
        self._unread_budget.give(self._unread_bytes - total)
        self._unread_bytes = total
        if self._unread_budget.over:
            self._relieve()

    def _relieve(self) -> None:
        """Too much is unread: end those who have read nothing for longest, as far as it takes."""
        for connection, unread in sorted(self._unread.items(), key=lambda item: item[1].since_s):
            if not self._unread_budget.over:
                return
            self._unread_budget.give(unread.size)
            self._unread_bytes -= unread.size
            connection.abort()


class Connection(HttpToolsProtocol):
    """One client's HTTP connection."""

    def __init__(self, doorway: Connections, **given: Any) -> None:
        config: Config = given["config"]
        state: ServerState = given["server_state"]
        super().__init__(config, state, given["app_state"], given.get("_loop"))
        self._doorway = doorway
        self._limits = doorway.limits
        self._refusal = _BAD_HEAD
        self._in_head = True
        self._head_bytes = 0
        self._refused = False
        self._unanswered: list[RequestResponseCycle] = []
        self.has_begun = False

    # ---------------------------------------------------------------- what the doorway asks and orders

    @property
    def unread_bytes(self) -> int:
        """Bytes written that the system has not taken yet."""
        return int(self.transport.get_write_buffer_size())

    def end(self, problem: Problem | None = None) -> None:
        """Close, with a last word if there is one to say. Whatever is unread by then has `write_s_max` to be."""
        self._doorway.work(self)
        if self.transport.is_closing():
            return
        if problem is not None:
            self.transport.write(_response(problem))
        self.transport.close()
        self._watch_writing()

    def abort(self) -> None:
        """Close at once, whatever is unread."""
        self.transport.abort()

    # ---------------------------------------------------------------- what the transport tells

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        host = self.client[0] if self.client else ""
        refusal = self._doorway.enter(self, host)
        if refusal is not None:
            self._refused = True
            self.end(refusal)

    def connection_lost(self, exc: Exception | None) -> None:
        self._doorway.leave(self)
        super().connection_lost(exc)
        # uvicorn tells the last of its requests only.
        for cycle in self._unanswered:
            cycle.disconnected = True
            cycle.message_event.set()

    def data_received(self, data: bytes) -> None:
        if self._refused or self.transport.is_closing():
            return
        super().data_received(data)
        if not self._in_head or self._refused or self.transport.is_closing():
            return
        self.has_begun = True
        self._head_bytes += len(data)
        if self._head_bytes > self._limits.header_bytes_max:
            self._refuse(_LARGE_HEAD)
        elif not self._unanswered:
            self._doorway.begin_head(self)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_writing()

    # ---------------------------------------------------------------- what the parser tells

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0

    def on_headers_complete(self) -> None:
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        too_large = size > self._limits.header_bytes_max
        if too_large or len(self.headers) > self._limits.headers_max:
            self._refusal = _LARGE_HEAD
            raise ValueError("too many headers")  # to the parser, which ends at any exception
        if len(self.pipeline) >= _PIPELINED_MAX:
            raise ValueError("too many requests at once")
        self._in_head = self.has_begun = False
        self._doorway.work(self)
        super().on_headers_complete()
        self._unanswered.append(self.cycle)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch_writing()
        self._unanswered = [one for one in self._unanswered if not one.response_complete]
        if not self.transport.is_closing() and not self._unanswered:
            self._doorway.rest(self)
            if self._in_head:
                self._doorway.begin_head(self)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        self._refuse(self._refusal)

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._watch_writing()

    def _refuse(self, problem: Problem) -> None:
        """What came cannot be read. Nothing else is on this connection."""
        self._refused = True
        if len(self._unanswered) == 1 and _waits_for_body(self._unanswered[0]):
            # It is the body of this one, so the refusal is its answer.
            self._unanswered[0].disconnected = True
            self._unanswered[0].message_event.set()
            self.end(problem)
        else:
            self.end(None if self._unanswered else problem)

    def _watch_writing(self) -> None:
        if self.unread_bytes:
            self._doorway.writes(self)


def _waits_for_body(cycle: RequestResponseCycle) -> bool:
    return cycle.more_body and not cycle.response_started


def _response(problem: Problem) -> bytes:
    """A whole answer, for who has not sent a whole request."""
    body = problem.body()
    status = b"HTTP/1.1 %d %s\r\n" % (problem.status, _PHRASES[problem.status])
    after = b"retry-after: %d\r\n" % problem.retry_after_s if problem.retry_after_s else b""
    head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
    return status + after + head % len(body) + body


def _close_one(quiet: dict[Connection, None]) -> bool:
    """Close the first of them; False if there is none."""
    first = next(iter(quiet), None)
    if first is None:
        return False
    first.end()
    return True
