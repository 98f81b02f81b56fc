"""A stand-in for a model server: speaks enough of OpenAI's completions to be an engine, and costs next to nothing.

Every stream gets one chunk at each tick, as the iterations of a real engine give them, written to its own connection;
with a tick of zero everything is answered at once. Run as `python -m benchmarks.stand_in --tick-s 0.02`; it prints its
address and serves until its standard input ends.
"""

from __future__ import annotations

import argparse
import asyncio

import msgspec
import uvloop

from benchmarks.loopback import STREAM_HEAD, Connection, serve

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
            connection.write(STREAM_HEAD)
            self._streams[connection] = (1, tokens)
        else:
            chunks = [_events(number, tokens) for number in range(1, tokens + 1)]
            connection.write(STREAM_HEAD + b"".join(chunks))

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


class _Connection(Connection):
    def __init__(self, server: _Server) -> None:
        super().__init__()
        self._server = server

    def connection_lost(self, _: Exception | None) -> None:
        self._server.end(self)

    def asked(self, body: bytes) -> None:
        self._server.begin(self, _ask.decode(body).max_tokens)

    def answer_to_get(self, _: bytes) -> bytes:
        return b""


async def _serve(tick_s: float) -> None:
    server = _Server(tick_s)
    ticking = asyncio.create_task(server.run())
    await serve(lambda: _Connection(server))
    ticking.cancel()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tick-s", type=float, default=0.0, help="seconds between two tokens")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(parser.parse_args().tick_s))
