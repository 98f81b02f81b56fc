"""Bodies that are still arriving, whose bytes together have a limit.

Where they reach it, the one that has been arriving for longest gives way if it has had its time, and else the newcomer is
told to come back by then. So uploads that never end keep nobody out for long. A body that comes in one piece is none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from gateway.budget import Budget
from qlm_core.errors import QueueFull

# Where there is no room for others, an upload may take so long.
PATIENCE_S = 5.0


class Uploads:
    """All bodies that are arriving."""

    def __init__(self, bytes_max: int) -> None:
        self.budget = Budget(bytes_max)
        self._under_way: dict[Upload, None] = {}

    def begin(self, timeout: asyncio.Timeout) -> Upload:
        """A body that ends early if `timeout` does."""
        return Upload(self, timeout)

    def grow(self, upload: Upload, size: int) -> None:
        """So many bytes more have come of a body. Raises QueueFull."""
        now_s = asyncio.get_running_loop().time()
        while not self.budget.fits(size):
            oldest = next(iter(self._under_way), upload)
            age_s = now_s - oldest.began_s
            if oldest is upload or age_s < PATIENCE_S:
                raise QueueFull(
                    "gateway.limits.uploading_bytes_max", self.budget.bytes_max, PATIENCE_S - age_s
                )
            oldest.give_way()
        self._under_way.setdefault(upload)
        self.budget.take(size)
        upload.size += size

    @contextmanager
    def holding(self, size: int) -> Iterator[None]:
        """Count what is held of a body that is written to disk as it comes. Raises QueueFull."""
        if not self.budget.fits(size):
            raise QueueFull("gateway.limits.uploading_bytes_max", self.budget.bytes_max, PATIENCE_S)
        self.budget.take(size)
        try:
            yield
        finally:
            self.budget.give(size)

    def end(self, upload: Upload) -> None:
        """A body is complete, or given up."""
        if upload in self._under_way:
            del self._under_way[upload]
            self.budget.give(upload.size)


class Upload:
    """One body that is arriving."""

    __slots__ = ("_timeout", "_uploads", "began_s", "size")

    def __init__(self, uploads: Uploads, timeout: asyncio.Timeout) -> None:
        self._uploads = uploads
        self._timeout = timeout
        self.began_s = asyncio.get_running_loop().time()
        self.size = 0

    def grow(self, size: int) -> None:
        """So many bytes more have come, and others will. Raises QueueFull."""
        self._uploads.grow(self, size)

    def give_way(self) -> None:
        """End it as too slow, for others."""
        self._uploads.end(self)
        if not self._timeout.expired():
            self._timeout.reschedule(asyncio.get_running_loop().time())

    def __enter__(self) -> Upload:
        return self

    def __exit__(self, *_: object) -> None:
        self._uploads.end(self)
