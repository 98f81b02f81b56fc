"""One file that is coming in: written as it comes, and then kept whole or not at all.

What has come waits in memory until it is worth a write, WRITE_BYTES or so; nothing more is taken while that is written.
So a file costs this much memory, whatever its size, and who sends it is as fast as the disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import failpoints
from gateway.files.disk import Disk, Growing
from gateway.files.purposes import BATCH
from gateway.files.quota import Quota
from gateway.files.rows import StoredFile
from qlm_core.errors import InvalidRequest

# How much of a file is in memory before it is written.
WRITE_BYTES = 524_288

Result = TypeVar("Result")


class Upload:
    """A file that is coming in. Use it as an asynchronous context; what is not committed by its end is gone.

    Args:
        keep: gives what is written a name and a row, or finds the file that has its id; whether it is the first.
        spawn: runs something to its end, whoever leaves meanwhile.

    Attributes:
        purpose, filename, expires_in_s: may be set until `commit`; while there is no purpose, the file may have the
            size of any.
        size: bytes that have come.
    """

    def __init__(
        self,
        quota: Quota,
        disk: Disk,
        file: Growing,
        *,
        owner: str,
        purpose: str,
        filename: str,
        expires_in_s: float | None,
        keep: Callable[[Upload, Growing], Coroutine[Any, Any, tuple[StoredFile, bool]]],
        spawn: Callable[[Coroutine[Any, Any, Any]], asyncio.Task[Any]],
    ) -> None:
        self.owner = owner
        self.purpose = purpose
        self.filename = filename
        self.expires_in_s = expires_in_s
        self.size = 0
        self._quota = quota
        self._disk = disk
        self._file = file
        self._keep = keep
        self._spawn = spawn
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._last: asyncio.Task[Any] | None = None
        self._open = True

    async def __aenter__(self) -> Upload:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.abort()

    async def write(self, data: bytes) -> None:
        """Take the next part. Raises InvalidRequest, NoRoom, Unavailable; then there is nothing but `abort`."""
        self._require(self.size + len(data))
        self._quota.grow(self.owner, len(data))
        self.size += len(data)
        self._waiting.append(data)
        self._waiting_bytes += len(data)
        if self._waiting_bytes >= WRITE_BYTES:
            await self._whole(self._write())

    async def commit(self) -> StoredFile:
        """Keep the file: once this returns, it survives. Raises InvalidRequest, NoRoom, Unavailable; then it is gone."""
        try:
            self._require(self.size)
            return await self._whole(self._commit())
        finally:
            await self.abort()

    async def abort(self) -> None:
        """Leave nothing of it, unless it is committed or about to be. Idempotent."""
        if self._open:
            await self._whole(self._drop(self._last))

    async def _whole(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Do something that is not to be torn by a client that leaves."""
        self._last = self._spawn(work)
        result: Result = await asyncio.shield(self._last)
        return result

    async def _write(self) -> None:
        parts, self._waiting, self._waiting_bytes = self._waiting, [], 0

        def work() -> None:
            failpoints.at("gateway.files.writing", OSError)
            self._file.write(parts)

        await self._disk.do(work)

    async def _commit(self) -> StoredFile:
        await self._write()
        kept, is_new = await self._keep(self, self._file)
        if is_new:
            self._open = False
        return kept

    async def _drop(self, last: asyncio.Task[Any] | None) -> None:
        if last is not None:
            # A thread may still be writing for somebody who has left; what comes of it is nobody's any more.
            await asyncio.gather(last, return_exceptions=True)
        if self._open:
            self._open = False
            self._quota.drop(self.owner, self.size)
            await self._disk.do(self._file.discard)

    def _require(self, size: int) -> None:
        limits = self._quota.limits
        most = max(limits.file_bytes_max, limits.batch_file_bytes_max)
        if self.purpose:
            most = limits.batch_file_bytes_max if self.purpose == BATCH else limits.file_bytes_max
        if size > most:
            key = (
                "batch_file_bytes_max" if most == limits.batch_file_bytes_max else "file_bytes_max"
            )
            raise InvalidRequest(
                "file",
                f"more than {most} bytes",
                f"Divide it into several, or raise gateway.files.{key}.",
                code="file_too_large",
            )
