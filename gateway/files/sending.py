"""The bytes of a file as an answer: read as they are taken, and never whole in memory.

Nothing is read ahead of the client beyond what the connection holds, which bounds and in the end closes it where nobody
reads (`gateway.connections`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from gateway import headers as hd
from gateway.asgi import RawHeaders, hung_up
from gateway.call import Call
from gateway.files.disposition import attachment
from gateway.files.ranges import wanted
from gateway.files.rows import StoredFile
from gateway.files.store import FileStore
from gateway.metrics import Metrics
from gateway.problems import Problem
from gateway.refusing import refuse
from qlm_core.errors import Unavailable

log = logging.getLogger(__name__)

PIECE_BYTES = 262_144


async def send_content(files: FileStore, file: StoredFile, call: Call, metrics: Metrics) -> None:
    """Answer with a file, or the part of it that is asked for. Raises FileLost, Unavailable before anything is sent."""
    etag = b'"%b"' % file.id.encode()
    about: RawHeaders = [
        *hd.echoed(call.headers),
        (b"content-type", b"application/octet-stream"),
        (b"content-disposition", attachment(file.filename)),
        # Clients chose what is in it; no page is to be made of it.
        (b"x-content-type-options", b"nosniff"),
        (b"accept-ranges", b"bytes"),
        (b"etag", etag),
    ]
    size = file.bytes_count
    if_range = call.headers.get(b"if-range", etag)
    asked = hd.text(call.headers, b"range") if if_range == etag else ""
    part = wanted(asked, size) if asked else (0, size)
    if part is None:
        await refuse(metrics, _out_of_range(size), call.send, call.headers, _range(b"*", size))
        return
    first, end = part
    status = 200
    if end - first != size:
        status = 206
        about += _range(b"%d-%d" % (first, end - 1), size)
    async with files.reading(file) as read:
        about.append((b"content-length", b"%d" % (end - first)))
        await call.send({"type": "http.response.start", "status": status, "headers": about})
        if call.method == "HEAD":
            await call.send({"type": "http.response.body", "body": b""})
        else:
            await _send(call, read, first, end)


async def _send(
    call: Call, read: Callable[[int, int], Awaitable[bytes]], first: int, end: int
) -> None:
    gone = asyncio.create_task(hung_up(call.receive))
    try:
        while not gone.done():
            try:
                data = await read(first, min(PIECE_BYTES, end - first))
            except Unavailable:
                # The status is long out; a body that is too short says that something is wrong.
                return
            first += len(data)
            more = bool(data) and first < end
            await call.send({"type": "http.response.body", "body": data, "more_body": more})
            if not more:
                return
    finally:
        gone.cancel()


def _range(which: bytes, size: int) -> RawHeaders:
    return [(b"content-range", b"bytes %b/%d" % (which, size))]


def _out_of_range(size: int) -> Problem:
    return Problem(
        status=416,
        message=f"range: none of these bytes are there. The file has {size} bytes.",
        type="invalid_request_error",
        code="range_not_satisfiable",
        param="range",
    )
