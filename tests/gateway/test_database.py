"""The tables behind a store, for what keeps more than requests in it: changes together, beside others, and in memory."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.store import Database, MemoryStore, SqliteStore, Store, StoreError, together


@pytest.fixture(params=["sqlite", "memory"])
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    store: Store = MemoryStore()
    if request.param == "sqlite":
        store = SqliteStore(str(tmp_path / "q.sqlite"), commit_interval_s=0.05)
    await store.open()
    yield store.database
    await store.close()


def put(connection: sqlite3.Connection, *names: str) -> int:
    """Facts of these names, all of them or none; of one that is there already, none."""
    with together(connection):
        for name in names:
            connection.execute("INSERT INTO facts VALUES (?, 1)", (name,))
    return len(names)


def names(connection: sqlite3.Connection) -> list[str]:
    found = connection.execute("SELECT name FROM facts WHERE name LIKE 'x%' ORDER BY name")
    return [name for (name,) in found]


async def test_changes_are_made_together_or_not_at_all(database: Database) -> None:
    assert await database.write(lambda connection: put(connection, "x1", "x2")) == 2
    # In one commit with others, which have theirs.
    done = await asyncio.gather(
        database.write(lambda connection: put(connection, "x3", "x1", "x4")),
        database.write(lambda connection: put(connection, "x5")),
        return_exceptions=True,
    )
    assert isinstance(done[0], StoreError)
    assert done[1] == 1
    assert await database.read(names) == ["x1", "x2", "x5"]


async def test_what_raises_changes_nothing(database: Database) -> None:
    def work(connection: sqlite3.Connection) -> None:
        with together(connection):
            put(connection, "x1")
            raise StoreError("no")

    with pytest.raises(StoreError, match="no"):
        await database.write(work)
    assert await database.read(names) == []


async def test_a_transaction_that_is_over_is_said_to_have_failed(tmp_path: Path) -> None:
    # As a full disk ends it.
    def work(connection: sqlite3.Connection) -> None:
        with together(connection):
            put(connection, "x1")
            connection.execute("ROLLBACK")
            raise sqlite3.OperationalError("database or disk is full")

    store = SqliteStore(str(tmp_path / "q.sqlite"))
    await store.open()
    with pytest.raises(StoreError, match="disk is full"):
        await store.database.write(work)
    assert await store.database.read(names) == []
    assert await store.database.write(lambda connection: put(connection, "x1")) == 1
    await store.close()


async def test_what_a_memory_store_knows_is_gone_with_it() -> None:
    store = MemoryStore()
    await store.open()
    await store.database.write(lambda connection: put(connection, "x1"))
    await store.close()
    assert await store.database.read(names) == []
    await store.close()


async def test_a_closed_store_has_no_tables(tmp_path: Path) -> None:
    store = SqliteStore(str(tmp_path / "q.sqlite"))
    await store.open()
    await store.close()
    with pytest.raises(StoreError):
        store.database  # noqa: B018
