"""A model server that speaks `script` at a steady pace and writes down every request and every token that it sends.

Run as `python -m benchmarks.chaos.engine --listen HOST:PORT --log FILE`; it serves until its standard input ends. The file is
only appended to, so it holds what earlier processes did as well; `witness` reads it.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import threading
import time
from typing import IO, Any

import msgspec
import uvloop
from aiohttp import web

from benchmarks.chaos import script


class Begun(msgspec.Struct, frozen=True, kw_only=True, tag="begun"):
    """An attempt came: whose, under which id, with which body, and after how many tokens of which the last may be wrong."""

    at_s: float
    engine: str
    attempt: str
    name: str
    after: int
    right: bool
    body: dict[str, Any]


class Sent(msgspec.Struct, frozen=True, kw_only=True, tag="sent"):
    """Tokens [first, last) went into the socket of an attempt."""

    at_s: float
    attempt: str
    name: str
    first: int
    last: int


class Left(msgspec.Struct, frozen=True, kw_only=True, tag="left"):
    """An attempt is over: all of it was sent, or whoever asked hung up."""

    at_s: float
    attempt: str
    name: str
    whole: bool


Line = Begun | Sent | Left


class _Log:
    """Lines that are in the file when this process dies."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._encode = msgspec.json.Encoder().encode

    def write(self, line: Line) -> None:
        self._file.write(self._encode(line) + b"\n")
        self._file.flush()


class _Server:
    """Answers completions token by token."""

    def __init__(self, name: str, log: _Log, token_s: float) -> None:
        self._name = name
        self._log = log
        self._token_s = token_s

    def app(self) -> web.Application:
        """Its routes."""
        app = web.Application()
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/completions", self._completions)
        return app

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def _models(self, _: web.Request) -> web.Response:
        model = {"id": script.MODEL, "object": "model", "owned_by": "chaos"}
        return web.json_response({"object": "list", "data": [model]})

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        attempt = request.headers.get("X-Request-Id", "")
        name, after, right = script.begun(body["prompt"])
        begun = Begun(
            at_s=time.time(),
            engine=self._name,
            attempt=attempt,
            name=name,
            after=after,
            right=right,
            body=body,
        )
        self._log.write(begun)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        whole = False
        try:
            await response.prepare(request)
            for number in range(1, body["max_tokens"] + 1):
                await asyncio.sleep(self._token_s)
                await self._say(response, begun, number, last=number == body["max_tokens"])
            await response.write(b"data: [DONE]\n\n")
            whole = True
        finally:
            self._log.write(Left(at_s=time.time(), attempt=attempt, name=name, whole=whole))
        return response

    async def _say(
        self, response: web.StreamResponse, begun: Begun, number: int, *, last: bool
    ) -> None:
        """Send the next token; `number` counts those of this attempt."""
        position = begun.after + number - 1
        choice = {
            "index": 0,
            "text": script.token(begun.name, position),
            "finish_reason": "length" if last else None,
        }
        event = {
            "id": f"cmpl-{begun.attempt}",
            "object": "text_completion",
            "created": 1_700_000_000,
            "model": script.MODEL,
            "choices": [choice],
            "usage": {"prompt_tokens": 8, "completion_tokens": number, "total_tokens": 8 + number},
        }
        sent = Sent(
            at_s=time.time(),
            attempt=begun.attempt,
            name=begun.name,
            first=position,
            last=position + 1,
        )
        # Before, so that nothing is sent that the witness does not know.
        self._log.write(sent)
        await response.write(b"data: " + msgspec.json.encode(event) + b"\n\n")


async def _serve(server: _Server, host: str, port: int) -> None:
    runner = web.AppRunner(server.app(), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, host, port, reuse_address=True).start()
    print("ready", flush=True)
    loop, ended = asyncio.get_running_loop(), asyncio.Event()

    def watch() -> None:
        sys.stdin.read()
        loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=watch, daemon=True).start()
    await ended.wait()
    await runner.cleanup()


def main() -> None:
    """Serve until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", required=True)
    parser.add_argument("--listen", required=True, metavar="HOST:PORT")
    parser.add_argument("--log", required=True, metavar="FILE")
    parser.add_argument("--token-s", type=float, default=0.02, help="seconds between two tokens")
    args = parser.parse_args()
    host, _, port = args.listen.rpartition(":")
    with open(args.log, "ab") as file, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(_Server(args.name, _Log(file), args.token_s), host, int(port)))


if __name__ == "__main__":
    main()
