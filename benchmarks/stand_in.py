"""A stand-in for a model server: speaks enough of OpenAI's completions to be an engine, and costs next to nothing.

Every stream gets one chunk at each tick, as the iterations of a real engine give them, written to its own connection;
with a tick of zero everything is answered at once. Run as `python -m benchmarks.stand_in --tick-s 0.02`; it prints its
address and serves until its standard input ends.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import threading
from typing import cast

import httptools
import msgspec
import uvloop

_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_EMPTY = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
_END = b"0\r\n\r\n"


class _Ask(msgspec.Struct):
    max_tokens: int = 16


_ask = msgspec.json.Decoder(_Ask)


def _events(number: int, last: int) -> bytes:
    """The chunk of one token, as vLLM writes it; with the last one the end of the stream."""
    reason = '"length"' if number == last else "null"
    usage = f'{{"prompt_tokens":40,"total_tokens":{40 + number},"completion_tokens":{number}}}'
    chunk = (
        '{"id":"cmpl-stand-in","object":"text_completion","created":1700000000,"model":"stand-in",'
        f'"choices":[{{"index":0,"text":" token","logprobs":null,"finish_reason":{reason}}}],'
        f'"usage":{usage}}}'
    )
    text = f"data: {chunk}\n\n" + ("data: [DONE]\n\n" if number == last else "")
    return f"{len(text):x}\r\n{text}\r\n".encode() + (_END if number == last else b"")


class _Server:
    """All open streams, and the tick that moves them."""

    def __init__(self, tick_s: float) -> None:
        self._tick_s = tick_s
        self._streams: dict[_Connection, tuple[int, int]] = {}

    def begin(self, connection: _Connection, tokens: int) -> None:
        if self._tick_s:
            connection.write(_HEAD)
            self._streams[connection] = (1, tokens)
        else:
            chunks = [_events(number, tokens) for number in range(1, tokens + 1)]
            connection.write(_HEAD + b"".join(chunks))

    def end(self, connection: _Connection) -> None:
        self._streams.pop(connection, None)

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._tick_s or 1.0)
            for connection, (number, last) in list(self._streams.items()):
                connection.write(_events(number, last))
                if number == last:
                    del self._streams[connection]
                else:
                    self._streams[connection] = (number + 1, last)


class _Connection(asyncio.Protocol):
    """One HTTP connection."""

    def __init__(self, server: _Server) -> None:
        self._server = server
        self._parser = httptools.HttpRequestParser(self)
        self._body = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, _: Exception | None) -> None:
        self._server.end(self)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        body, self._body = self._body, b""
        if self._parser.get_method() == b"POST":
            self._server.begin(self, _ask.decode(body).max_tokens)
        else:
            self.write(_EMPTY)

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)


async def serve(tick_s: float) -> None:
    """Serve on a free loopback port until standard input ends."""
    server = _Server(tick_s)
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(lambda: _Connection(server), "127.0.0.1", 0)
    host, port = listener.sockets[0].getsockname()
    print(f"{host}:{port}", flush=True)
    ended = asyncio.Event()

    def watch() -> None:
        sys.stdin.read()
        loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=watch, daemon=True).start()
    ticking = asyncio.create_task(server.run())
    await ended.wait()
    ticking.cancel()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tick-s", type=float, default=0.0, help="seconds between two tokens")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(parser.parse_args().tick_s))
