"""The tables of a store, for what keeps more in it than requests: files, and what is built on them.

Whoever uses it says what is to be done with a connection. Writes of many share one commit, and an awaited write is
committed. A memory store has the same tables, which are gone with it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

from gateway.store import schema
from gateway.store.base import StoreError

Result = TypeVar("Result")
Work = Callable[[sqlite3.Connection], Result]


class Database(Protocol):
    """Tables that are read and written. Both raise StoreError, and then nothing was done."""

    async def read(self, work: Work[Result]) -> Result:
        """The result of something that changes nothing."""

    async def write(self, work: Work[Result]) -> Result:
        """The result of one change, once that is committed: one statement, or several within `together`."""


@contextmanager
def together(connection: sqlite3.Connection) -> Iterator[None]:
    """All changes of this block or, where it raises, none of them; others in the same commit have theirs."""
    connection.execute("SAVEPOINT together")
    try:
        yield
    except BaseException:
        # A full disk has ended the whole transaction by now.
        if connection.in_transaction:
            connection.execute("ROLLBACK TO together")
            connection.execute("RELEASE together")
        raise
    connection.execute("RELEASE together")


class MemoryDatabase:
    """The tables for as long as the object lives."""

    def __init__(self) -> None:
        self._connection = sqlite3.connect(":memory:", isolation_level=None)
        schema.make(self._connection)

    async def read(self, work: Work[Result]) -> Result:
        """As `Database.read`."""
        try:
            return work(self._connection)
        except sqlite3.Error as error:
            raise StoreError(f"the store failed: {error}") from None

    async def write(self, work: Work[Result]) -> Result:
        """As `Database.write`."""
        try:
            self._connection.execute("BEGIN")
            try:
                result = work(self._connection)
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise StoreError(f"the store failed: {error}") from None
        return result

    def close(self) -> None:
        """Forget everything. Idempotent."""
        self._connection.close()
