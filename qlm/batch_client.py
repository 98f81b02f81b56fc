"""Files and batches of a gateway over HTTP, for commands: what is asked, and errors as one line each.

Uploads and results are streamed, so that a file's size costs no memory. What cannot be done is a QlmError in the gateway's words.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import aiohttp
import msgspec

from qlm import calls, trust
from qlm_core.errors import NotFound, QlmError, Unavailable

Json = dict[str, Any]

OVER = ("completed", "failed", "expired", "cancelled")
TIMEOUT_S = 30.0
# How long a gateway may be away from which a batch is watched.
PATIENCE_S = 60.0
_BLOCK_BYTES = 262_144


class BatchClient:
    """A client of one gateway; use as an asynchronous context.

    Args:
        url: of the gateway, without a path.
        api_key: sent as a bearer token unless empty.
        ca: as of `qlm.trust`.
    """

    def __init__(self, url: str, *, api_key: str = "", ca: str = "") -> None:
        self._url = url
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._tls = trust.https(ca)
        # A large file takes as long as it takes; silence does not.
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=10.0, sock_read=TIMEOUT_S)

    async def __aenter__(self) -> BatchClient:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=self._tls),
            timeout=self._timeout,
            headers=self._headers,
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._session.close()

    async def upload(self, path: Path) -> str:
        """Upload an input file; its id."""
        with path.open("rb") as file:
            form = aiohttp.FormData()
            form.add_field("purpose", "batch")
            form.add_field("file", file, filename=path.name)
            made = await self._ask("POST", "/files", data=form)
        return str(made["id"])

    async def create(
        self,
        file_id: str,
        *,
        endpoint: str,
        window: str,
        metadata: Mapping[str, str],
    ) -> Json:
        """Create a batch of an input file."""
        asked = _batch(file_id, endpoint, window) | {"metadata": dict(metadata) or None}
        return await self._ask("POST", "/batches", json=asked)

    async def estimate(self, file_id: str, *, endpoint: str, window: str) -> Json:
        """When a batch of an input file would be done."""
        return await self._ask("POST", "/estimate", json=_batch(file_id, endpoint, window))

    async def delete(self, file_id: str) -> None:
        """Delete a file."""
        await self._ask("DELETE", f"/files/{file_id}")

    async def get(self, id: str) -> Json:
        """A batch."""
        return await self._ask("GET", f"/batches/{id}")

    async def get_patiently(self, id: str) -> Json:
        """A batch, from a gateway that may be restarting."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + PATIENCE_S
        while True:
            try:
                return await self.get(id)
            except Unavailable:
                if loop.time() >= until_s:
                    raise
                await asyncio.sleep(1.0)

    async def cancel(self, id: str) -> Json:
        """Give a batch up."""
        return await self._ask("POST", f"/batches/{id}/cancel")

    async def list(self, limit: int) -> AsyncIterator[Json]:
        """The newest batches."""
        after: dict[str, str] = {}
        while limit > 0:
            asked = {"limit": str(min(limit, 100)), **after}
            page = await self._ask("GET", "/batches", params=asked)
            for batch in page["data"]:
                yield batch
            limit -= len(page["data"])
            if not page["has_more"]:
                return
            after = {"after": page["last_id"]}

    async def content(self, file_id: str, out: BinaryIO) -> None:
        """Write the bytes of a file."""
        try:
            async with self._session.get(f"{self._url}/v1/files/{file_id}/content") as answer:
                if answer.status != 200:
                    raise _refused(answer.status, await answer.read())
                async for block in answer.content.iter_chunked(_BLOCK_BYTES):
                    out.write(block)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise self._unreached(error) from None

    async def _ask(self, method: str, path: str, **said: Any) -> Json:
        try:
            async with self._session.request(method, f"{self._url}/v1{path}", **said) as answer:
                data = await answer.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise self._unreached(error) from None
        if answer.status != 200:
            raise _refused(answer.status, data)
        try:
            return msgspec.json.decode(data, type=Json)
        except msgspec.MsgspecError:
            raise QlmError(f"{self._url}: what answers there is no gateway.") from None

    def _unreached(self, error: Exception) -> QlmError:
        match error:
            case aiohttp.ClientSSLError():
                return calls.untrusted(self._url)
            case aiohttp.ClientConnectorError():
                return calls.no_gateway(self._url)
            case aiohttp.ClientResponseError():
                return calls.speaks_grpc(self._url)
            case aiohttp.ServerDisconnectedError():
                return calls.hung_up(self._url)
            case TimeoutError():
                return Unavailable(f"{self._url}: no answer within {TIMEOUT_S:g} s. Try again.")
            case _:
                return Unavailable(f"{self._url}: the connection broke ({error}). Try again.")


def _batch(file_id: str, endpoint: str, window: str) -> Json:
    return {"input_file_id": file_id, "endpoint": endpoint, "completion_window": window}


def _refused(status: int, data: bytes) -> QlmError:
    """What an answer with an error says."""
    try:
        message = msgspec.json.decode(data, type=Json)["error"]["message"]
    except (msgspec.MsgspecError, KeyError, TypeError):
        message = f"the gateway answered with status {status}."
    if status == 401:
        message = f"{message} `qlm` takes one from --api-key or QLM_API_KEY."
    return NotFound(message) if status == 404 else QlmError(message)
