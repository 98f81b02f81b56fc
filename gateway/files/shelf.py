"""Where files are put and taken from: their bytes into the folder before their row, and out of it after.

So a file that has a row is whole, and bytes without one belong to nobody. What is begun here is done to its end, whoever
leaves meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import failpoints
from gateway.files import checks, rows
from gateway.files.disk import Disk, Growing
from gateway.files.folder import Folder
from gateway.files.purposes import BATCH, BATCH_OUTPUT
from gateway.files.quota import Quota
from gateway.files.rows import Gone, Ids, StoredFile
from gateway.files.upload import Upload
from gateway.store import Database, StoreError
from qlm_core.config import GatewayConfig
from qlm_core.errors import QlmError

log = logging.getLogger(__name__)


class Shelf:
    """The files of one gateway, for whoever may see them is decided elsewhere.

    Args:
        time_s: the store's time, by which files expire.
        latest: the greatest id in use; "" for none.
    """

    def __init__(
        self,
        config: GatewayConfig,
        database: Database,
        folder: Folder,
        disk: Disk,
        quota: Quota,
        *,
        time_s: Callable[[], float],
        latest: str,
    ) -> None:
        self._config = config
        self._database = database
        self._folder = folder
        self._disk = disk
        self._quota = quota
        self._time_s = time_s
        self._ids = Ids(latest)
        self._tasks: dict[asyncio.Task[Any], None] = {}

    def new_id(self) -> str:
        """An id for a file that is not there yet."""
        return self._ids.make(time.time())

    async def begin(
        self, owner: str, purpose: str, filename: str, expires_in_s: float | None, id: str
    ) -> Upload:
        """Begin a file, as `FileStore.create`."""
        self._quota.begin(owner)
        try:
            file = await self._disk.take(
                partial(Growing, self._folder.incoming(), self._config.files.disk_free_bytes_min),
                Growing.discard,
            )
        except BaseException:
            self._quota.drop(owner, 0)
            raise
        return Upload(
            self._quota,
            self._disk,
            file,
            owner=owner,
            purpose=purpose,
            filename=filename,
            expires_in_s=expires_in_s,
            keep=partial(self._keep, id=id),
            spawn=self.spawn,
        )

    async def put(self, source: Path, about: About) -> StoredFile:
        """Make a file of one that is on this file system, as `FileStore.put`."""
        kept: StoredFile = await asyncio.shield(self.spawn(self._put(source, about)))
        return kept

    async def delete(self, id: str) -> bool:
        """Delete a file; False if there is none. Raises StoreError."""
        deleted: bool = await asyncio.shield(self.spawn(self._delete(id)))
        return deleted

    async def expire(self) -> int:
        """Delete some of the files that have expired; returns how many. Raises StoreError."""
        gone = await self._database.write(partial(rows.expire, now_s=self._time_s()))
        if gone:
            await self._remove(gone)
        return len(gone)

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Do something to its end, or to that of the gateway."""
        task = asyncio.create_task(work)
        self._tasks[task] = None
        task.add_done_callback(self._tasks.pop)
        return task

    async def close(self) -> None:
        """Wait for what was begun."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _keep(self, upload: Upload, file: Growing, *, id: str) -> tuple[StoredFile, bool]:
        """Give an upload, which is counted already, a name and a row; or find the file that has its id."""
        if upload.purpose == BATCH:
            checks.check_name(upload.filename)
            line_bytes_max = self._config.limits.body_bytes_max + checks.LINE_REST_BYTES
            await self._disk.do(partial(checks.check_content, file.path, line_bytes_max))
        await self._disk.do(file.finish)
        failpoints.at("gateway.files.received")
        earlier = await self._earlier(id)
        if earlier is not None:
            return earlier, False
        about = About(upload.owner, upload.purpose, upload.filename, upload.expires_in_s, id)
        made, expires_at = self._made(about, upload.size)
        await self._disk.do(partial(self._folder.rename, file.path, made.id))
        failpoints.at("gateway.files.renamed")
        try:
            await self._insert(made, expires_at)
        except StoreError:
            await self._disk.do(partial(self._folder.remove, made.id))
            raise
        failpoints.at("gateway.files.stored")
        return made, True

    async def _put(self, source: Path, about: About) -> StoredFile:
        kept = await self._earlier(about.id)
        if kept is None:
            about = about._replace(id=about.id or self.new_id())
            size = await self._disk.do(partial(self._folder.adopt, source, about.id))
            failpoints.at("gateway.files.adopted")
            kept, expires_at = self._made(about, size)
            await self._insert(kept, expires_at)
            self._quota.keep(about.owner, size)
        await self._disk.do(partial(source.unlink, missing_ok=True))
        return kept

    async def _insert(self, file: StoredFile, expires_at: float | None) -> None:
        await self._database.write(partial(rows.insert, file=file, expires_at=expires_at))

    async def _earlier(self, id: str) -> StoredFile | None:
        """The file that has an id already, expired or not."""
        if not id:
            return None
        return await self._database.read(partial(rows.find, id=id, now_s=-math.inf))

    def _made(self, about: About, size: int) -> tuple[StoredFile, float | None]:
        """A file as it is from now on, and when it expires by the store's clock."""
        expires_in_s = about.expires_in_s
        if expires_in_s is None:
            limits = self._config.files
            usual_s = {BATCH: limits.batch_expires_s, BATCH_OUTPUT: limits.output_expires_s}
            expires_in_s = usual_s.get(about.purpose) or None
        created_unix_s = int(time.time())
        file = StoredFile(
            id=about.id or self.new_id(),
            owner=about.owner,
            purpose=about.purpose,
            filename=about.filename,
            bytes_count=size,
            created_unix_s=created_unix_s,
            expires_unix_s=None if expires_in_s is None else created_unix_s + int(expires_in_s),
        )
        return file, None if expires_in_s is None else self._time_s() + expires_in_s

    async def _delete(self, id: str) -> bool:
        gone = await self._database.write(partial(rows.delete, id=id))
        if gone is not None:
            await self._remove([gone])
        return gone is not None

    async def _remove(self, gone: Sequence[Gone]) -> None:
        """Remove the bytes of files that have no row any more."""
        failpoints.at("gateway.files.deleting")
        for one in gone:
            self._quota.drop(one.owner, one.bytes_count)
        try:
            await self._disk.do(partial(self._folder.remove, *[one.id for one in gone]))
        except QlmError as error:
            # Nobody finds them, and the next start tries again.
            said = {"files": len(gone), "error": str(error)}
            log.error("cannot remove the bytes of deleted files", extra=said)


class About(NamedTuple):
    """What is said of a file that is to be made; an id of "" is for us to choose."""

    owner: str
    purpose: str
    filename: str
    expires_in_s: float | None
    id: str
