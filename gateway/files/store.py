"""Files that clients upload and batches write: their bytes in a folder, their rows in the store's database.

A file is there once its row is committed, and then it is whole: the bytes are synced and have their name before. So of
what a crash leaves, bytes without a row belong to nobody and are removed when the gateway starts; they are removed after the
row likewise. A row without its bytes is no crash's doing: somebody took them, and may put them back. It is kept and named in
the log. Another tenant's file is looked for in vain, with the same answer as one that never was.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterator,
    Sequence,
)
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import failpoints
from gateway.files import checks, rows
from gateway.files.disk import Disk, Growing, Reading
from gateway.files.folder import Folder
from gateway.files.quota import Quota
from gateway.files.rows import Gone, Ids, StoredFile
from gateway.files.upload import BATCH, BATCH_OUTPUT, Upload
from gateway.keys import Caller
from gateway.metrics import Gauge
from gateway.store import Database, Store, StoreError
from qlm_core.config import GatewayConfig
from qlm_core.errors import FileLost, NotFound, QlmError, Unavailable

log = logging.getLogger(__name__)

SWEEP_PERIOD_S = 60.0
# Of files that are lost so many are named each.
_NAMED_MAX = 20


class Page(NamedTuple):
    """Some of the files that are listed, and whether there are more."""

    files: list[StoredFile]
    has_more: bool


class FileStore:
    """The files of one gateway. `open` comes after the store's, `close` before it.

    Args:
        time_s: the store's time, by which files expire.
    """

    def __init__(self, config: GatewayConfig, store: Store, *, time_s: Callable[[], float]) -> None:
        self._config = config
        self._limits = config.files
        self._store = store
        self._time_s = time_s
        self._folder = _folder(config)
        self._disk = Disk()
        self._quota = Quota(config.files)
        self._ids = Ids("")
        self._database: Database | None = None
        self._taking = False
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self._lost = 0

    async def open(self) -> None:
        """Make the folder ready, and put in order what a crash left. Raises QlmError when it cannot be used."""
        database = self._store.database
        try:
            mark = await database.write(rows.mark)
            kept = await database.read(rows.sizes)
            found = await self._disk.do(partial(self._folder.open, mark))
            orphans = [name for name in found if name not in kept]
            await self._disk.do(partial(self._folder.remove, *orphans))
            sums = await database.read(rows.sums)
        except (Unavailable, StoreError) as error:
            raise QlmError(
                f"gateway.store.files: cannot use {self._folder.path}: {error}. "
                "Give a folder that this user can write."
            ) from None
        for one in sums:
            self._quota.keep(one.owner, one.bytes_count, files=one.files)
        self._ids = Ids(max(kept, default=""))
        self._report(orphans, [id for id, size in kept.items() if found.get(id) != size])
        self._database = database
        self._taking = True

    async def create(
        self,
        *,
        owner: str,
        purpose: str,
        filename: str,
        expires_in_s: float | None = None,
        id: str = "",
    ) -> Upload:
        """Begin a file. Raises InvalidRequest (a quota), QueueFull (too many uploads), NoRoom, Unavailable.

        Args:
            purpose: "" while it is not known; `Upload.purpose` must be set before the commit then.
            expires_in_s: after which it expires; None: as its purpose does.
            id: one of `new_id`; a file that has it already is what the commit returns.
        """
        self._require_taking()
        self._quota.begin(owner)
        try:
            make = partial(Growing, self._folder.incoming(), self._limits.disk_free_bytes_min)
            file = await self._disk.do(make)
        except BaseException:
            self._quota.end(owner)
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
            spawn=self._spawn,
        )

    def new_id(self) -> str:
        """An id for `create` or `put`, to be noted before the file is made, so that it is made once."""
        return self._ids.make(time.time())

    async def put(
        self,
        source: Path,
        *,
        owner: str,
        filename: str,
        purpose: str = BATCH_OUTPUT,
        expires_in_s: float | None = None,
        id: str = "",
    ) -> StoredFile:
        """Make a file of one that was written in a `workspace`; quotas count it, and do not refuse it.

        The source is there until the file is kept, and gone afterwards, so whoever dies in between puts it again; with the
        same id that is the same file. Raises Unavailable, NoRoom; then the source is still there.
        """
        self._require_taking()
        put = self._put(source, id, owner, purpose, filename, expires_in_s)
        kept: StoredFile = await asyncio.shield(self._spawn(put))
        return kept

    def workspace(self, name: str) -> Path:
        """A folder for what is written in order to be `put`; nobody else touches what is in it."""
        return self._folder.workspace(name)

    async def find(self, id: str, caller: Caller) -> StoredFile:
        """A file that the caller may see. Raises NotFound, Unavailable."""
        file = None
        if rows.is_id(id):
            file = await self._opened.read(partial(rows.find, id=id, now_s=self._time_s()))
        if file is None or not caller.sees(file.owner):
            raise NotFound(f"No such File object: {id[:64]}")
        return file

    def path(self, file: StoredFile) -> Path:
        """The bytes exactly as they came. Whoever needs them after the file was deleted keeps it open, or links it."""
        return self._folder.of(file.id)

    @asynccontextmanager
    async def reading(
        self, file: StoredFile
    ) -> AsyncIterator[Callable[[int, int], Awaitable[bytes]]]:
        """Reads bytes of a file, from a first one on so many. Raises FileLost, Unavailable."""

        def opened() -> Reading | None:
            with contextlib.suppress(FileNotFoundError):
                return Reading(self.path(file))
            return None

        bytes_of = await self._disk.do(opened)
        if bytes_of is None:
            raise FileLost(file.id)
        try:
            if bytes_of.size != file.bytes_count:
                raise FileLost(file.id)
            yield lambda first, size: self._disk.do(partial(bytes_of.read, first, size))
        finally:
            await asyncio.shield(self._spawn(self._disk.do(bytes_of.close)))

    async def list(
        self,
        caller: Caller,
        *,
        purpose: str = "",
        after: str = "",
        limit: int = 10_000,
        newest_first: bool = True,
    ) -> Page:
        """Files that the caller may see, in order of their creation. Raises Unavailable.

        Args:
            purpose: only of this one; "" for all.
            after: begin behind this id, whether it is still there or not; "" for the beginning.
        """
        found = await self._opened.read(
            partial(
                rows.page,
                owner=None if caller.operator else caller.tenant,
                purpose=purpose,
                after=after,
                limit=limit + 1,
                newest_first=newest_first,
                now_s=self._time_s(),
            )
        )
        return Page(found[:limit], len(found) > limit)

    async def delete(self, id: str, caller: Caller) -> None:
        """Delete a file that the caller may see. Raises NotFound, Unavailable."""
        await self.find(id, caller)
        gone: Gone | None = await asyncio.shield(self._spawn(self._delete(id)))
        if gone is None:
            raise NotFound(f"No such File object: {id[:64]}")

    async def sweep(self) -> int:
        """Delete some of the files that have expired; returns how many. Raises Unavailable."""
        gone = await self._opened.write(partial(rows.expire, now_s=self._time_s()))
        await self._remove(gone)
        return len(gone)

    async def run(self) -> None:
        """Sweep from time to time, for ever."""
        while True:
            swept = 0
            try:
                swept = await self.sweep()
            except QlmError as error:
                log.error("cannot delete expired files", extra={"error": str(error)})
            await asyncio.sleep(0.1 if swept else SWEEP_PERIOD_S)

    async def close(self) -> None:
        """Finish what was begun and release everything. Idempotent."""
        self._taking = False
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._database = None
        await asyncio.to_thread(self._disk.close)
        await asyncio.to_thread(self._folder.close)

    def gauges(self) -> Iterator[Gauge]:
        """What metrics read from here."""
        total = self._quota.total
        yield "qlm_files", "Files that are kept or coming.", float(total.files)
        yield "qlm_file_bytes", "Their bytes.", float(total.bytes_count)
        yield "qlm_file_uploads", "Files that are coming.", float(total.uploads)
        yield "qlm_files_lost", "Files whose bytes were gone at the start.", float(self._lost)

    # ---------------------------------------------------------------- parts

    @property
    def _opened(self) -> Database:
        if self._database is None:
            raise _closed()
        return self._database

    def _require_taking(self) -> None:
        if not self._taking:
            raise _closed()

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._tasks[task] = None
        task.add_done_callback(self._tasks.pop)
        return task

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
        made, expires_at = self._made(
            id, upload.owner, upload.purpose, upload.filename, upload.size, upload.expires_in_s
        )
        await self._disk.do(partial(self._folder.rename, file.path, made.id))
        failpoints.at("gateway.files.renamed")
        try:
            await self._opened.write(partial(rows.insert, file=made, expires_at=expires_at))
        except StoreError:
            await self._disk.do(partial(self._folder.remove, made.id))
            raise
        failpoints.at("gateway.files.stored")
        return made, True

    async def _put(
        self,
        source: Path,
        id: str,
        owner: str,
        purpose: str,
        filename: str,
        expires_in_s: float | None,
    ) -> StoredFile:
        kept = await self._earlier(id)
        if kept is None:
            id = id or self.new_id()
            size = await self._disk.do(partial(self._folder.adopt, source, id))
            failpoints.at("gateway.files.adopted")
            kept, expires_at = self._made(id, owner, purpose, filename, size, expires_in_s)
            await self._opened.write(partial(rows.insert, file=kept, expires_at=expires_at))
            self._quota.keep(owner, size)
        await self._disk.do(partial(source.unlink, missing_ok=True))
        return kept

    async def _earlier(self, id: str) -> StoredFile | None:
        """The file that has an id already, expired or not."""
        if not id:
            return None
        return await self._opened.read(partial(rows.find, id=id, now_s=-math.inf))

    def _made(
        self,
        id: str,
        owner: str,
        purpose: str,
        filename: str,
        size: int,
        expires_in_s: float | None,
    ) -> tuple[StoredFile, float | None]:
        """A file as it is from now on, and when it expires by the store's clock."""
        if expires_in_s is None:
            limits = self._limits
            usual_s = {BATCH: limits.batch_expires_s, BATCH_OUTPUT: limits.output_expires_s}
            expires_in_s = usual_s.get(purpose) or None
        created_unix_s = int(time.time())
        file = StoredFile(
            id=id or self.new_id(),
            owner=owner,
            purpose=purpose,
            filename=filename,
            bytes_count=size,
            created_unix_s=created_unix_s,
            expires_unix_s=None if expires_in_s is None else created_unix_s + int(expires_in_s),
        )
        return file, None if expires_in_s is None else self._time_s() + expires_in_s

    async def _delete(self, id: str) -> Gone | None:
        gone = await self._opened.write(partial(rows.delete, id=id))
        if gone is not None:
            await self._remove([gone])
        return gone

    async def _remove(self, gone: Sequence[Gone]) -> None:
        """Remove the bytes of files that have no row any more."""
        if gone:
            failpoints.at("gateway.files.deleting")
        for one in gone:
            self._quota.drop(one.owner, one.bytes_count)
        try:
            await self._disk.do(partial(self._folder.remove, *[one.id for one in gone]))
        except QlmError as error:
            # Nobody finds them, and the next start tries again.
            said = {"files": len(gone), "error": str(error)}
            log.error("cannot remove the bytes of deleted files", extra=said)

    def _report(self, orphans: Sequence[str], lost: Sequence[str]) -> None:
        """Say what was found amiss at the start."""
        self._lost = len(lost)
        if orphans:
            log.info("what uploads and deletions left is removed", extra={"files": len(orphans)})
        if lost:
            said = {"files": len(lost), "some": lost[:_NAMED_MAX], "folder": str(self._folder.path)}
            log.error("bytes of files are gone; put a copy of them back", extra=said)


def _folder(config: GatewayConfig) -> Folder:
    store = config.store
    if store.kind == "memory":
        return Folder(None, within=Path(store.files) if store.files else None)
    return Folder(Path(store.files or f"{store.path}.files"))


def _closed() -> Unavailable:
    return Unavailable("the gateway is shutting down; send the request to another one")
