"""A gateway at whose door files come and go, and how to ask it by hand."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import aiohttp

from gateway.service import Gateway
from tests.files.beds import gauges
from tests.files.forms import CONTENT_TYPE, field
from tests.gateway.peers import config, running, soon
from tests.gateway.test_connections import Peer

BATCH = field("purpose", "batch")


class Door(NamedTuple):
    """A gateway and how to ask it."""

    gateway: Gateway
    url: str

    async def ask(
        self, method: str, path: str, data: Any = None, **headers: str
    ) -> tuple[int, Any, Any]:
        """Status, body and headers; the body is read as JSON where it is some."""
        # aiohttp warns of bytes that are many.
        data = io.BytesIO(data) if isinstance(data, bytes) else data
        async with (
            aiohttp.ClientSession() as session,
            session.request(method, self.url + path, data=data, headers=headers) as answer,
        ):
            body = await answer.read()
            is_json = answer.content_type == "application/json"
            return answer.status, json.loads(body) if is_json and body else body, answer.headers

    async def send(self, data: Any, **headers: str) -> tuple[int, Any, Any]:
        """Upload a form."""
        return await self.ask("POST", "/v1/files", data, **{"content-type": CONTENT_TYPE} | headers)

    async def fails(self, data: Any, **headers: str) -> tuple[int, str | None, str | None]:
        """Upload a form in vain: status, code and field. Nothing of it is left."""
        status, body, _ = await self.send(data, **headers)
        await self.empty()
        return status, body["error"]["code"], body["error"]["param"]

    async def empty(self) -> None:
        """Wait until nothing is kept or coming."""
        files = self.gateway.files
        await soon(lambda: gauges(files)["qlm_files"] == gauges(files)["qlm_file_uploads"] == 0)
        folder = files.workspace(".")
        assert [path.name for path in folder.rglob("*") if path.is_file()] == ["store"]
        assert self.gateway._http is not None
        assert self.gateway._http.uploads.budget.used == 0

    @contextlib.asynccontextmanager
    async def dialled(self, sent: bytes = b"") -> AsyncIterator[Peer]:
        host, port = self.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(sent)
        try:
            yield Peer(reader, writer)
        finally:
            writer.close()


@contextlib.asynccontextmanager
async def door(**gateway: Any) -> AsyncIterator[Door]:
    async with running(config(**gateway)) as (made, at):
        yield Door(made, f"http://{at.http}")


def head(length: int, *more: bytes) -> bytes:
    """The head of an upload."""
    lines = [
        b"POST /v1/files HTTP/1.1",
        b"host: x",
        b"content-type: " + CONTENT_TYPE.encode(),
        b"content-length: %d" % length,
        *more,
    ]
    return b"\r\n".join(lines) + b"\r\n\r\n"
