"""What HTTP servers, HTTP clients and JSON libraries cost in the places where the data plane uses them.

`python -m benchmarks.libraries` measures every candidate that is installed and names those that are not. Servers and
clients are processes of their own, and their CPU time is what counts: the load may be slow without harm. The choice
that follows is in benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import importlib.util
import json
import os
import resource
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import uvloop

CONNECTIONS = 32
CHUNKS = 200
SECONDS = 4.0
TICK_S = 0.005
HOST = "127.0.0.1"

CHUNK = (
    b'{"id":"cmpl-1","object":"text_completion","created":1700000000,"model":"mistral-7b","choices":'
    b'[{"index":0,"text":" token","logprobs":null,"finish_reason":null}],"usage":null}'
)
EVENT = b"data: " + CHUNK + b"\n\n"
ASK = json.dumps(
    {"model": "mistral-7b", "prompt": "A short question. " * 12, "max_tokens": 1}
).encode()
STREAM = json.dumps({"model": "mistral-7b", "prompt": "x", "max_tokens": CHUNKS, "stream": True})

Message = dict[str, Any]


# --------------------------------------------------------------------------- servers


async def asgi(
    scope: Message,
    receive: Callable[[], Awaitable[Message]],
    send: Callable[[Message], Awaitable[None]],
) -> None:
    """The least that an OpenAI-compatible endpoint does, as ASGI."""
    if scope["type"] != "http":
        return
    body = b""
    while True:
        message = await receive()
        body += message["body"]
        if not message.get("more_body"):
            break
    fields = msgspec.json.decode(body)
    head: Message = {"type": "http.response.start", "status": 200}
    if not fields.get("stream"):
        length = str(len(CHUNK)).encode()
        await send(head | {"headers": [(b"content-length", length)]})
        await send({"type": "http.response.body", "body": CHUNK})
        return
    await send(head | {"headers": [(b"content-type", b"text/event-stream")]})
    for _ in range(CHUNKS):
        await send({"type": "http.response.body", "body": EVENT, "more_body": True})
        await asyncio.sleep(0)
    await send({"type": "http.response.body", "body": b""})


def _uvicorn(port: int, parser: str, app: Callable[..., Any], *, loop: str = "uvloop") -> None:
    import uvicorn

    uvicorn.run(
        app, host=HOST, port=port, http=parser, loop=loop, log_level="error", access_log=False
    )


def _starlette(port: int) -> None:
    starlette = importlib.import_module("starlette.applications")
    responses = importlib.import_module("starlette.responses")
    routing = importlib.import_module("starlette.routing")

    async def events() -> AsyncIterator[bytes]:
        for _ in range(CHUNKS):
            yield EVENT
            await asyncio.sleep(0)

    async def answer(request: Any) -> Any:
        fields = msgspec.json.decode(await request.body())
        if fields.get("stream"):
            return responses.StreamingResponse(events(), media_type="text/event-stream")
        return responses.Response(CHUNK, media_type="application/json")

    route = routing.Route("/", answer, methods=["POST"])
    _uvicorn(port, "httptools", starlette.Starlette(routes=[route]))


def _hypercorn(port: int) -> None:
    config = importlib.import_module("hypercorn.config").Config()
    config.bind, config.loglevel = [f"{HOST}:{port}"], "ERROR"
    serve = importlib.import_module("hypercorn.asyncio").serve
    uvloop.run(serve(asgi, config))


def _granian(port: int) -> None:
    server = importlib.import_module("granian.server.embed").Server
    serving = server(asgi, address=HOST, port=port, interface="asgi", log_enabled=False)
    uvloop.run(serving.serve())


def _aiohttp(port: int) -> None:
    from aiohttp import web

    async def answer(request: web.Request) -> web.StreamResponse:
        fields = msgspec.json.decode(await request.read())
        if not fields.get("stream"):
            return web.Response(body=CHUNK)
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for _ in range(CHUNKS):
            await response.write(EVENT)
            await asyncio.sleep(0)
        return response

    app = web.Application()
    app.router.add_post("/", answer)
    web.run_app(
        app, host=HOST, port=port, print=None, access_log=None, loop=uvloop.new_event_loop()
    )


SERVERS: dict[str, tuple[str, Callable[[int], None]]] = {
    "uvicorn, httptools": ("uvicorn", lambda port: _uvicorn(port, "httptools", asgi)),
    "the same on asyncio's loop": (
        "uvicorn",
        lambda port: _uvicorn(port, "httptools", asgi, loop="asyncio"),
    ),
    "uvicorn, h11": ("h11", lambda port: _uvicorn(port, "h11", asgi)),
    "starlette on uvicorn": ("starlette", _starlette),
    "aiohttp": ("aiohttp", _aiohttp),
    "hypercorn": ("hypercorn", _hypercorn),
    "granian": ("granian", _granian),
}


async def measure_server(name: str) -> dict[str, float]:
    """CPU milliseconds of a server per whole answer and per streamed chunk, and its rates."""
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    async with _process("server", name, str(port)) as process, aiohttp.ClientSession() as session:
        url = f"http://{HOST}:{port}/"
        await _until_served(session, url)
        await _load(session, url, ASK, 1.0)
        before_s = _cpu_s(process.pid)
        answers = await _load(session, url, ASK, SECONDS)
        spent_s, before_s = _cpu_s(process.pid) - before_s, _cpu_s(process.pid)
        streams = await _load(session, url, STREAM.encode(), SECONDS)
        streamed_s = _cpu_s(process.pid) - before_s
    return {
        "ms/answer": 1e3 * spent_s / answers,
        "ms/chunk": 1e3 * streamed_s / (streams * CHUNKS),
        "answers/s": answers / SECONDS,
        "chunks/s": streams * CHUNKS / SECONDS,
    }


async def _load(session: aiohttp.ClientSession, url: str, body: bytes, seconds: float) -> int:
    until_s = time.perf_counter() + seconds

    async def client() -> int:
        done = 0
        while time.perf_counter() < until_s:
            async with session.post(url, data=body) as response:
                await response.read()
            done += 1
        return done

    return sum(await asyncio.gather(*(client() for _ in range(CONNECTIONS))))


async def _until_served(session: aiohttp.ClientSession, url: str) -> None:
    async with asyncio.timeout(20.0):
        while True:
            try:
                async with session.post(url, data=ASK) as response:
                    response.raise_for_status()
                    return
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.05)


# --------------------------------------------------------------------------- clients


async def _read_aiohttp(url: str, body: bytes) -> int:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def stream() -> int:
            async with session.post(url, data=body) as response:
                return sum(
                    [block.count(b"data: {") async for block, _ in response.content.iter_chunks()]
                )

        return sum(await asyncio.gather(*(stream() for _ in range(CONNECTIONS))))


async def _read_httpx(url: str, body: bytes) -> int:
    httpx = importlib.import_module("httpx")
    async with httpx.AsyncClient(timeout=None, limits=httpx.Limits(max_connections=None)) as client:

        async def stream() -> int:
            async with client.stream("POST", url, content=body) as response:
                return sum([block.count(b"data: {") async for block in response.aiter_raw()])

        return sum(await asyncio.gather(*(stream() for _ in range(CONNECTIONS))))


CLIENTS: dict[str, tuple[str, Callable[[str, bytes], Awaitable[int]]]] = {
    "aiohttp": ("aiohttp", _read_aiohttp),
    "httpx": ("httpx", _read_httpx),
}


def read_streams(name: str, address: str) -> None:
    """Read streams at an engine's pace and print the CPU milliseconds per chunk."""
    body = json.dumps({"max_tokens": CHUNKS * 4}).encode()
    read = CLIENTS[name][1]

    async def run() -> int:
        return await read(f"http://{address}/v1/completions", body)

    before_s = _own_cpu_s()
    chunks = uvloop.run(run())
    print(json.dumps({"ms/chunk": 1e3 * (_own_cpu_s() - before_s) / chunks}))


async def measure_client(name: str) -> dict[str, float]:
    """CPU milliseconds of a client per chunk read."""
    stand_in = [sys.executable, "-m", "benchmarks.stand_in", "--tick-s", str(TICK_S)]
    server = await asyncio.create_subprocess_exec(
        *stand_in, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert server.stdin is not None
    assert server.stdout is not None
    address = (await server.stdout.readline()).decode().strip()
    try:
        async with _process("client", name, address) as process:
            assert process.stdout is not None
            figures: dict[str, float] = json.loads(await process.stdout.read())
            return figures
    finally:
        server.stdin.close()
        await server.wait()


# --------------------------------------------------------------------------- JSON


def measure_json() -> dict[str, dict[str, float]]:
    """Microseconds to read a chunk, to read only what must be looked at, and to write it."""
    shallow = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
    encoder = msgspec.json.Encoder().encode
    whole, parts = msgspec.json.decode(CHUNK), shallow(CHUNK)
    table: dict[str, dict[str, float]] = {
        "msgspec": {
            "us/decode": _us(lambda: msgspec.json.decode(CHUNK)),
            "us/encode": _us(lambda: encoder(whole)),
        },
        "msgspec, one level deep": {
            "us/decode": _us(lambda: shallow(CHUNK)),
            "us/encode": _us(lambda: encoder(parts)),
        },
        "json": {
            "us/decode": _us(lambda: json.loads(CHUNK)),
            "us/encode": _us(lambda: json.dumps(whole).encode()),
        },
    }
    with contextlib.suppress(ModuleNotFoundError):
        orjson = importlib.import_module("orjson")
        table["orjson"] = {
            "us/decode": _us(lambda: orjson.loads(CHUNK)),
            "us/encode": _us(lambda: orjson.dumps(whole)),
        }
    return table


def _us(work: Callable[[], object], times: int = 100_000) -> float:
    best = float("inf")
    for _ in range(5):
        before_s = time.process_time()
        for _ in range(times // 5):
            work()
        best = min(best, time.process_time() - before_s)
    return best / (times // 5) * 1e6


# --------------------------------------------------------------------------- processes


@contextlib.asynccontextmanager
async def _process(role: str, name: str, where: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.libraries", role, name, where),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _own_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def main() -> None:
    """Measure everything that is installed, and print it."""
    for title, rows, measure in (
        ("servers", SERVERS, measure_server),
        ("clients", CLIENTS, measure_client),
    ):
        for name, (module, _) in rows.items():
            if importlib.util.find_spec(module) is None:
                print(f"{title}: {name:<27} not installed")
                continue
            show(title, name, await measure(name))
    for name, figures in measure_json().items():
        show("json", name, figures)


def show(title: str, name: str, figures: dict[str, float]) -> None:
    """One line."""
    told = "  ".join(f"{value:>9,.4g} {unit}" for unit, value in figures.items())
    print(f"{title}: {name:<27} {told}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("role", nargs="?", choices=("server", "client"), help=argparse.SUPPRESS)
    parser.add_argument("name", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("where", nargs="?", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.role == "server":
        SERVERS[args.name][1](int(args.where))
    elif args.role == "client":
        read_streams(args.name, args.where)
    else:
        uvloop.run(main())
