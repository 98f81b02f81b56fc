"""Files that clients upload and batches write: their bytes in a folder, their rows in the store's database.

A file is there once its row is committed, and then it is whole (`shelf`). So of what a crash leaves, bytes without a row
belong to nobody and are removed when the gateway starts. A row without its bytes is no crash's doing: somebody took them, and
may put them back. It is kept and named in the log. Another tenant's file is looked for in vain, with the same answer as one
that never was.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from gateway.files import rows
from gateway.files.disk import Disk, Reading
from gateway.files.folder import Folder
from gateway.files.purposes import BATCH_OUTPUT
from gateway.files.quota import Quota
from gateway.files.rows import Page, StoredFile
from gateway.files.shelf import About, Shelf
from gateway.files.slots import Slots
from gateway.files.upload import Upload
from gateway.keys import Caller
from gateway.metrics import Gauge
from gateway.store import Store
from qlm_core.config import GatewayConfig
from qlm_core.errors import FileLost, NotFound, QlmError, Unavailable

log = logging.getLogger(__name__)

SWEEP_PERIOD_S = 60.0
# Of files that are lost so many are named.
_NAMED_MAX = 20


class FileStore:
    """The files of one gateway. `open` comes after the store's, `close` before it.

    Args:
        time_s: the store's time, by which files expire.

    Attributes:
        slots: of uploads under way, for the door at which they come.
    """

    def __init__(self, config: GatewayConfig, store: Store, *, time_s: Callable[[], float]) -> None:
        self._config = config
        self._store = store
        self._time_s = time_s
        self._folder = _folder(config)
        self._disk = Disk()
        self._quota = Quota(config.files)
        self._shelf: Shelf | None = None
        self._taking = False
        self._lost = 0
        self.slots = Slots(config.files)

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
        except Unavailable as error:
            raise QlmError(
                f"gateway.store.files: cannot use {self._folder.name}: {error}. "
                "Give a folder that this user can write."
            ) from None
        for one in sums:
            self._quota.keep(one.owner, one.bytes_count, files=one.files)
        self._report(orphans, [id for id, size in kept.items() if found.get(id) != size])
        self._shelf = Shelf(
            self._config,
            database,
            self._folder,
            self._disk,
            self._quota,
            time_s=self._time_s,
            latest=max(kept, default=""),
        )
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
        """Begin a file. Raises InvalidRequest (a quota of the tenant's), NoRoom, Unavailable.

        Args:
            purpose: "" while it is not known; `Upload.purpose` must be set before the commit then.
            expires_in_s: after which it expires; None: as its purpose does.
            id: one of `new_id`; a file that has it already is what the commit returns.
        """
        return await self._writing.begin(owner, purpose, filename, expires_in_s, id)

    def new_id(self) -> str:
        """An id for `create` or `put`, to be noted before the file is made, so that it is made once."""
        return self._opened.new_id()

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
        about = About(owner, purpose, filename, expires_in_s, id)
        return await self._writing.put(source, about)

    def workspace(self, name: str) -> Path:
        """A folder for what is written in order to be `put`; nobody else touches what is in it."""
        return self._folder.workspace(name)

    async def find(self, id: str, caller: Caller) -> StoredFile:
        """A file that the caller may see. Raises NotFound, Unavailable."""
        file = None
        if rows.is_id(id):
            now_s = self._time_s()
            file = await self._store.database.read(partial(rows.find, id=id, now_s=now_s))
        if file is None or not caller.sees(file.owner):
            raise _not_found(id)
        return file

    def path(self, file: StoredFile) -> Path:
        """The bytes exactly as they came. Whoever needs them after the file was deleted keeps it open, or links it."""
        return self._folder.of(file.id)

    @asynccontextmanager
    async def reading(
        self, file: StoredFile
    ) -> AsyncIterator[Callable[[int, int], Awaitable[bytes]]]:
        """Gives what reads bytes of a file, from a first one on so many. Raises FileLost, Unavailable."""

        found = await self._disk.take(partial(Reading, self.path(file)), Reading.close)
        try:
            if found.size != file.bytes_count:
                raise FileLost(file.id)
            yield lambda first, size: self._disk.do(partial(found.read, first, size))
        finally:
            # Not by us: somebody who left may have a thread reading still, on a disk that is slow.
            self._opened.spawn(self._disk.do(found.close))

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
        return await self._store.database.read(
            partial(
                rows.page,
                owner=None if caller.operator else caller.tenant,
                purpose=purpose,
                after=after,
                limit=limit,
                newest_first=newest_first,
                now_s=self._time_s(),
            )
        )

    async def delete(self, id: str, caller: Caller) -> None:
        """Delete a file that the caller may see. Raises NotFound, Unavailable."""
        await self.find(id, caller)
        if not await self._writing.delete(id):
            raise _not_found(id)

    async def sweep(self) -> int:
        """Delete some of the files that have expired; returns how many. Raises Unavailable."""
        return await self._writing.expire()

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
        if self._shelf is not None:
            await self._shelf.close()
        await asyncio.to_thread(self._disk.close)
        await asyncio.to_thread(self._folder.close)

    def gauges(self) -> Iterator[Gauge]:
        """What metrics read from here."""
        total = self._quota.total
        yield "qlm_files", "Files that are kept or coming.", float(total.files)
        yield "qlm_file_bytes", "Their bytes.", float(total.bytes_count)
        yield "qlm_file_uploads", "Uploads under way.", float(self.slots.taken)
        yield "qlm_files_lost", "Files whose bytes were gone at the start.", float(self._lost)

    @property
    def _opened(self) -> Shelf:
        assert self._shelf is not None, "the files are not open"
        return self._shelf

    @property
    def _writing(self) -> Shelf:
        """The shelf, while anything is put there. Raises Unavailable."""
        if not self._taking:
            raise Unavailable("the gateway is shutting down; send the request to another one")
        return self._opened

    def _report(self, orphans: Sequence[str], lost: Sequence[str]) -> None:
        """Say what was found amiss at the start."""
        self._lost = len(lost)
        if orphans:
            log.info("what uploads and deletions left is removed", extra={"files": len(orphans)})
        if lost:
            said = {"files": len(lost), "some": lost[:_NAMED_MAX], "folder": self._folder.name}
            log.error("bytes of files are gone; put a copy of them back", extra=said)


def _folder(config: GatewayConfig) -> Folder:
    store = config.store
    if store.kind == "memory":
        return Folder(None, within=Path(store.files) if store.files else None)
    return Folder(Path(store.files or f"{store.path}.files"))


def _not_found(id: str) -> NotFound:
    return NotFound(f"No such File object: {id[:64]}")
