"""What the benchmarks' stand-ins for model servers share: a bare HTTP connection, and a listener on a free loopback port.

They cost next to nothing on purpose, so that what is measured is the system before them.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable
from typing import cast

import httptools

STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)


class Connection(asyncio.Protocol):
    """One HTTP connection. Subclasses say what a request is answered with."""

    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._body, self._url = b"", b""
        self._transport: asyncio.Transport | None = None

    def asked(self, body: bytes) -> None:
        """A POST is here."""
        raise NotImplementedError

    def answer_to_get(self, url: bytes) -> bytes:
        """The body of the answer to anything else."""
        raise NotImplementedError

    def write(self, data: bytes) -> None:
        """Send bytes, unless there is no connection any more."""
        if self._transport is not None:
            self._transport.write(data)

    # ------------------------------------------------------------------- called by asyncio and the parser

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self._url = url

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        body, self._body = self._body, b""
        if self._parser.get_method() == b"POST":
            self.asked(body)
            return
        answer = self.answer_to_get(self._url)
        self.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(answer), answer))


async def serve(connection: Callable[[], Connection]) -> None:
    """Listen on a free loopback port, print its address, and serve until standard input ends."""
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(connection, "127.0.0.1", 0)
    host, port = listener.sockets[0].getsockname()
    print(f"{host}:{port}", flush=True)
    ended = asyncio.Event()

    def watch() -> None:
        sys.stdin.read()
        loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=watch, daemon=True).start()
    await ended.wait()
