"""Requests in one SQLite file, written by one thread.

The thread collects what is asked for during `commit_interval_s` and commits it together (group commit); only then
do the callers hear back. Write-ahead logging survives a killed process; with `fsync` also a power cut, at the price of
a disk flush per commit. A lock file beside the database keeps a second gateway out.

A file of an older schema is brought up to date when it is opened, in one transaction.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec.structs import replace

from gateway.store.base import Kept, StoredEnd, StoredRequest, StoreError
from qlm_core.errors import QlmError
from qlm_core.model import RequestId

SCHEMA_VERSION = 2
# One commit holds at most this many operations, so that no caller waits for an endless batch.
BATCH_MAX = 2_000
SWEEP_MAX = 500

_SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS requests (
    id TEXT PRIMARY KEY,
    idempotency_key TEXT UNIQUE,
    arrived_at REAL NOT NULL,
    head BLOB NOT NULL,
    body BLOB NOT NULL,
    ended_at REAL,
    ended BLOB,
    fingerprint TEXT NOT NULL DEFAULT ''
);
CREATE INDEX IF NOT EXISTS requests_open ON requests (arrived_at) WHERE ended_at IS NULL;
CREATE INDEX IF NOT EXISTS requests_ended ON requests (ended_at) WHERE ended_at IS NOT NULL;
"""

# What brings a file from each version to the next. 1 to 2: idempotency keys have an owner and a content. What an older
# release stored has neither: it belongs to who brings no API key, and fits whatever content comes under its key.
_MIGRATIONS = {
    1: (
        "ALTER TABLE requests ADD COLUMN fingerprint TEXT NOT NULL DEFAULT ''",
        "UPDATE requests SET idempotency_key = '/' || idempotency_key WHERE idempotency_key IS NOT NULL",
    )
}

_BUMP = """
INSERT INTO facts VALUES ('starts', 1) ON CONFLICT (name) DO UPDATE SET value = value + 1
RETURNING value
"""

Result = TypeVar("Result")
Work = Callable[[sqlite3.Connection], Any]
Job = tuple[Work, "asyncio.Future[Any]"]


class SqliteStore:
    """Durable requests in a file."""

    def __init__(self, path: str, *, commit_interval_s: float = 0.002, fsync: bool = False) -> None:
        self._path = Path(path)
        self._commit_interval_s = commit_interval_s
        self._fsync = fsync
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock: int | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def open(self) -> int:
        self._loop = asyncio.get_running_loop()
        try:
            connection, starts = await asyncio.to_thread(self._connect)
        except (OSError, sqlite3.Error) as error:
            self._unlock()
            raise QlmError(
                f"gateway.store.path: cannot open {self._path}: {error}. "
                "Give a path that this user can write, and that is a store of QLM's or nothing yet."
            ) from None
        self._thread = threading.Thread(
            target=self._write, args=(connection,), name="qlm-store", daemon=True
        )
        self._thread.start()
        return starts

    async def add(self, request: StoredRequest) -> Kept:
        head = msgspec.msgpack.encode(replace(request, body=b""))
        key = request.owned_key or None
        row = (request.id, key, request.arrived_at, head, request.body, request.fingerprint)

        def work(connection: sqlite3.Connection) -> Kept:
            added = connection.execute(
                "INSERT INTO requests (id, idempotency_key, arrived_at, head, body, fingerprint) "
                "VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (idempotency_key) DO NOTHING",
                row,
            )
            if added.rowcount:
                return Kept(request.id, request.fingerprint)
            id, fingerprint = connection.execute(
                "SELECT id, fingerprint FROM requests WHERE idempotency_key = ?", (key,)
            ).fetchone()
            return Kept(RequestId(id), fingerprint)

        return await self._ask(work)

    async def end(self, end: StoredEnd) -> bool:
        row = (end.ended_at, msgspec.msgpack.encode(end), end.frees_key, end.id)

        def work(connection: sqlite3.Connection) -> bool:
            changed = connection.execute(
                "UPDATE requests SET ended_at = ?, ended = ?, body = x'', "
                "idempotency_key = CASE WHEN ? THEN NULL ELSE idempotency_key END "
                "WHERE id = ? AND ended_at IS NULL",
                row,
            )
            return changed.rowcount == 1

        return await self._ask(work)

    async def open_requests(self) -> list[StoredRequest]:
        def work(connection: sqlite3.Connection) -> list[StoredRequest]:
            rows = connection.execute(
                "SELECT head, body FROM requests WHERE ended_at IS NULL ORDER BY arrived_at, id"
            )
            return [_request(head, body) for head, body in rows]

        return await self._ask(work)

    async def find(self, id: RequestId) -> tuple[StoredRequest, StoredEnd | None] | None:
        def work(connection: sqlite3.Connection) -> tuple[StoredRequest, StoredEnd | None] | None:
            row = connection.execute(
                "SELECT head, body, ended FROM requests WHERE id = ?", (id,)
            ).fetchone()
            if row is None:
                return None
            head, body, ended = row
            end = None if ended is None else msgspec.msgpack.decode(ended, type=StoredEnd)
            return _request(head, body), end

        return await self._ask(work)

    async def sweep(self, ended_before: float) -> int:
        def work(connection: sqlite3.Connection) -> int:
            return connection.execute(
                "DELETE FROM requests WHERE rowid IN "
                "(SELECT rowid FROM requests WHERE ended_at < ? LIMIT ?)",
                (ended_before, SWEEP_MAX),
            ).rowcount

        return await self._ask(work)

    async def close(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            self._jobs.put(None)
            await asyncio.to_thread(thread.join)
        self._unlock()

    async def _ask(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        if self._loop is None or self._thread is None:
            raise StoreError("the store is closed")
        future: asyncio.Future[Result] = self._loop.create_future()
        self._jobs.put((work, future))
        return await future

    # ---------------------------------------------------------------- before the thread starts

    def _connect(self) -> tuple[sqlite3.Connection, int]:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        # Prompts are in there: for this user's eyes only.
        os.close(os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600))
        connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {'FULL' if self._fsync else 'NORMAL'}")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if not 0 <= version <= SCHEMA_VERSION:
            connection.close()
            raise sqlite3.DatabaseError(
                f"it has schema version {version}, this release reads up to {SCHEMA_VERSION}"
            )
        connection.execute("BEGIN IMMEDIATE")
        for step in range(version or SCHEMA_VERSION, SCHEMA_VERSION):
            for statement in _MIGRATIONS[step]:
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        connection.execute("COMMIT")
        connection.executescript(_SCHEMA)
        starts = connection.execute(_BUMP).fetchone()[0]
        return connection, starts

    def _take_lock(self) -> None:
        lock = os.open(f"{self._path}.lock", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            raise OSError("another gateway has it open") from None
        self._lock = lock

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # ---------------------------------------------------------------- in the thread

    def _write(self, connection: sqlite3.Connection) -> None:
        open_ = True
        while open_:
            jobs, open_ = self._collect()
            if jobs:
                self._commit(connection, jobs)
        connection.close()

    def _collect(self) -> tuple[list[Job], bool]:
        """The next batch, and whether more may follow."""
        first = self._jobs.get()
        if first is None:
            return [], False
        jobs = [first]
        due = time.monotonic() + self._commit_interval_s
        while len(jobs) < BATCH_MAX:
            try:
                job = self._jobs.get(timeout=max(0.0, due - time.monotonic()))
            except queue.Empty:
                break
            if job is None:
                return jobs, False
            jobs.append(job)
        return jobs, True

    def _commit(self, connection: sqlite3.Connection, jobs: list[Job]) -> None:
        try:
            connection.execute("BEGIN IMMEDIATE")
            results = [work(connection) for work, _ in jobs]
            connection.execute("COMMIT")
        except (sqlite3.Error, msgspec.MsgspecError) as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            self._answer(jobs, StoreError(f"the store failed: {error}"))
        else:
            self._answer(jobs, results)

    def _answer(self, jobs: list[Job], results: list[Any] | StoreError) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(_resolve, jobs, results)
        except RuntimeError:
            # The loop closed without closing the store: nobody waits for an answer any more.
            return


def _resolve(jobs: list[Job], results: list[Any] | StoreError) -> None:
    for index, (_, future) in enumerate(jobs):
        if future.done():
            continue
        if isinstance(results, StoreError):
            future.set_exception(results)
        else:
            future.set_result(results[index])


def _request(head: bytes, body: bytes) -> StoredRequest:
    return replace(msgspec.msgpack.decode(head, type=StoredRequest), body=body)
