"""The disk below files: threads that wait for it, a file that grows, and what is told of a disk that is full or broken."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import math
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, TypeVar

from qlm_core.errors import NoRoom, QlmError, Unavailable

log = logging.getLogger(__name__)

# So many operations at a time wait for a disk that is slow, beside the gateway's other threads.
_THREADS = 8
# How often it is said that a disk fails; its clients hear it each time.
_SAID_EVERY_S = 60.0
_FULL = (errno.ENOSPC, errno.EDQUOT)

Result = TypeVar("Result")


class Disk:
    """Threads in which a disk is waited for."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="qlm-files")
        self._said_s = -math.inf

    async def do(self, work: Callable[[], Result]) -> Result:
        """The result of something that blocks. Raises NoRoom or Unavailable for an OSError, and what else it raises."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, work)
        except OSError as error:
            raise self._failed(error) from None

    async def take(self, make: Callable[[], Result], undo: Callable[[Result], None]) -> Result:
        """As `do`, of something that is to be undone where nobody is left who takes it."""
        made = asyncio.get_running_loop().run_in_executor(self._threads, make)

        def leave(made: asyncio.Future[Result]) -> None:
            if not made.cancelled() and made.exception() is None:
                self._threads.submit(undo, made.result())

        try:
            return await asyncio.shield(made)
        except asyncio.CancelledError:
            made.add_done_callback(leave)
            raise
        except OSError as error:
            raise self._failed(error) from None

    def close(self) -> None:
        """Wait for what was begun. Blocks."""
        self._threads.shutdown()

    def _failed(self, error: OSError) -> QlmError:
        now_s = asyncio.get_running_loop().time()
        if now_s - self._said_s >= _SAID_EVERY_S:
            self._said_s = now_s
            log.error("the disk of files fails", extra={"error": str(error)})
        return _of_disk(error)


class Growing:
    """A file that is being written.

    Args:
        disk_free_bytes_min: so much of the disk is left free.
    """

    def __init__(self, path: Path, disk_free_bytes_min: int) -> None:
        self.path = path
        self._least = disk_free_bytes_min
        self._file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        self._closed = False

    def write(self, parts: list[bytes]) -> None:
        """Append. Raises OSError, NoRoom."""
        disk = os.fstatvfs(self._file)
        if disk.f_bavail * disk.f_frsize - sum(map(len, parts)) < self._least:
            raise _full()
        for part in parts:
            rest = memoryview(part)
            while rest:
                rest = rest[os.write(self._file, rest) :]

    def finish(self) -> None:
        """Sync and close. Raises OSError."""
        os.fsync(self._file)
        self.close()

    def close(self) -> None:
        """Idempotent."""
        if not self._closed:
            self._closed = True
            os.close(self._file)

    def discard(self) -> None:
        """Leave nothing."""
        self.close()
        self.path.unlink(missing_ok=True)


class Reading:
    """A file that is read, by one thread at a time. Raises OSError where it cannot be opened.

    Attributes:
        size: its bytes; -1 where there is no file.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._file: BinaryIO | None = None
        self.size = -1
        with contextlib.suppress(FileNotFoundError):
            self._file = path.open("rb")
            self.size = os.fstat(self._file.fileno()).st_size

    def read(self, first: int, size: int) -> bytes:
        """Some bytes, from `first` on; fewer at the end, and none where there is no file or it is closed."""
        with self._lock:
            return b"" if self._file is None else os.pread(self._file.fileno(), size, first)

    def close(self) -> None:
        """Idempotent; waits for who reads."""
        with self._lock:
            if self._file is not None:
                self._file.close()
            self._file = None


def _of_disk(error: OSError) -> QlmError:
    """What to tell a client."""
    if error.errno in _FULL:
        return _full()
    return Unavailable(
        f"the gateway's disk fails: {error.strerror or 'its log says why'}; try again later"
    )


def _full() -> NoRoom:
    return NoRoom(
        "file: the gateway's disk is full",
        "Delete files that are not needed any more, or tell its operator to make room.",
    )
