"""A gateway that dies in the middle of bringing an older store up to date: the next start finds the old store, and all of it."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import failpoints
from gateway.store import SqliteStore
from tests.gateway.test_store import OLD_SCHEMA, old_head, request

OPENING = "import asyncio, sys; from gateway.store import SqliteStore; asyncio.run(SqliteStore(sys.argv[1]).open())"


def opened(path: Path, *, dying_at: int) -> int:
    """How a process ended that opens a store and dies after so many steps of the migration."""
    environment = os.environ | {failpoints.VARIABLE: f"gateway.store.migrating=kill@{dying_at}"}
    return subprocess.run([sys.executable, "-c", OPENING, str(path)], env=environment).returncode


async def test_dying_in_a_migration_leaves_the_store_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "q.sqlite"
    with sqlite3.connect(path) as old:
        old.executescript(OLD_SCHEMA)
        row = ("open", "k1", 1.0, old_head("open", "k1"), b'{"messages": []}', None, None)
        old.execute("INSERT INTO requests VALUES (?, ?, ?, ?, ?, ?, ?)", row)
    old.close()
    for step in (1, 2, 3, 4):
        assert opened(path, dying_at=step) == -signal.SIGKILL
    store = SqliteStore(str(path))
    # The starts that died in it are not counted, as they granted nothing.
    assert (await store.open()).starts == 5
    assert await store.open_requests() == [request("open", key="k1")]
    await store.close()
