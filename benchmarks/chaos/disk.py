"""What happens to the gateway's store: no room, somebody else's lock, a torn write, a row that nobody can read."""

from __future__ import annotations

import asyncio
import os
import resource
import sqlite3
from pathlib import Path

from benchmarks.chaos.bed import Bed

_FULL_S = 6.0
_LOCKED_S = 8.0


def _path(bed: Bed) -> Path:
    return Path(bed.config.gateway.store.path)


async def full(bed: Bed) -> None:
    """The gateway may write to no file for a while: a full disk by the means of a process's limits, which needs no rights."""
    pid = bed.pid("gateway")
    assert pid is not None
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, hard))
    await asyncio.sleep(_FULL_S)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))


async def locked(bed: Bed) -> None:
    """Another process has begun to write, and takes its time."""
    connection = sqlite3.connect(_path(bed), isolation_level=None, timeout=10.0)
    try:
        connection.execute("BEGIN IMMEDIATE")
        await asyncio.sleep(_LOCKED_S)
        connection.execute("ROLLBACK")
    finally:
        connection.close()


async def torn(bed: Bed) -> None:
    """The gateway dies, and what it wrote last is followed by garbage."""
    async with bed.down("gateway"):
        wal = Path(f"{_path(bed)}-wal")
        wal.write_bytes(wal.read_bytes() + os.urandom(6_000))


async def unreadable(bed: Bed) -> None:
    """The gateway dies, and a row that waits makes no sense to the next one. It is no client's."""
    async with bed.down("gateway"):
        connection = sqlite3.connect(_path(bed), isolation_level=None)
        connection.row_factory = sqlite3.Row
        row = dict(connection.execute("SELECT * FROM requests LIMIT 1").fetchone())
        row |= {"id": "cmpl-unreadable", "idempotency_key": None, "head": b"\xc1garbage"}
        row |= {"ended_at": None, "ended": None}
        names, places = ", ".join(row), ", ".join("?" * len(row))
        connection.execute(f"INSERT INTO requests ({names}) VALUES ({places})", tuple(row.values()))
        connection.close()
