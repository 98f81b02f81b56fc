"""Requests in one SQLite file.

Write-ahead logging survives a killed process; with `fsync` also a power cut, at the price of a disk flush per commit. `place`
keeps a second gateway out, `jobs` has the thread that uses the file, `schema` its tables, `rows` what stands in them.
"""

from __future__ import annotations

import asyncio
import logging
import math
import sqlite3
from pathlib import Path
from typing import NamedTuple

from gateway.store import schema
from gateway.store.base import (
    Back,
    Ending,
    Endings,
    Found,
    Kept,
    Most,
    Opened,
    StoredEnd,
    StoredRequest,
    StoreError,
)
from gateway.store.clock import Seen
from gateway.store.database import Database, Work, together
from gateway.store.jobs import Jobs
from gateway.store.place import Place
from gateway.store.rows import (
    UnreadableRowError,
    ended_of,
    head_of,
    read_end,
    read_ending,
    read_request,
)
from qlm_core.errors import QlmError, SetAside
from qlm_core.model import RequestId

log = logging.getLogger(__name__)

SWEEP_MAX = 500
# Answers lie beside ends, so a part of these is cut short where that many bytes have been passed over.
PAGE_BYTES = 33_554_432
# Of rows that are set aside at once so many are named each; the file names all of them.
NAMED_MAX = 20

_BUMP = """
INSERT INTO facts VALUES ('starts', 1) ON CONFLICT (name) DO UPDATE SET value = value + 1
WHERE typeof(value) = 'integer' RETURNING value
"""


class _Row(NamedTuple):
    """A row as it stands in the table."""

    rowid: int
    id: RequestId
    head: object
    body: object
    ended_at: object
    ended: object
    aside: object

    def read(self) -> Found:
        """What it says. Raises UnreadableRowError."""
        request = read_request(self.id, self.head, self.body)
        return Found(request, None if self.ended_at is None else read_end(request, self.ended))


class _Unreadable(NamedTuple):
    """A row that is to be set aside; by its number, since its id may be what is wrong with it."""

    rowid: int
    id: str
    reason: str


class SqliteStore:
    """Durable requests in a file."""

    def __init__(self, path: str, *, commit_interval_s: float = 0.002, fsync: bool = False) -> None:
        self._place = Place(path)
        self._commit_interval_s = commit_interval_s
        self._fsync = fsync
        self._jobs: Jobs | None = None
        self._rows_aside = 0

    @property
    def rows_aside(self) -> int:
        return self._rows_aside

    @property
    def database(self) -> Database:
        return self._opened

    async def open(self) -> Opened:
        try:
            connection, opened = await asyncio.to_thread(self._open)
        except QlmError:
            self._place.release()
            raise
        except (OSError, sqlite3.Error) as error:
            self._place.release()
            raise QlmError(
                f"gateway.store.path: cannot open {self._place.path}: {error}. "
                "Give a path that this user can write, and that is a store of QLM's or nothing yet; "
                "or put a copy of the store in its place."
            ) from None
        self._rows_aside = opened.rows_aside
        self._jobs = Jobs(
            self._connect, connection, self._place, commit_interval_s=self._commit_interval_s
        )
        return opened

    async def add(self, request: StoredRequest) -> Kept:
        key = request.owned_key or None
        head = head_of(request)
        row = (
            request.id,
            key,
            request.arrived_at,
            head,
            request.body,
            request.fingerprint,
            request.owner,
        )

        def work(connection: sqlite3.Connection) -> Kept:
            added = connection.execute(
                "INSERT INTO requests "
                "(id, idempotency_key, arrived_at, head, body, fingerprint, owner) "
                "VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (idempotency_key) DO NOTHING",
                row,
            )
            if added.rowcount:
                return Kept(request.id, request.fingerprint)
            id, fingerprint = connection.execute(
                "SELECT id, fingerprint FROM requests WHERE idempotency_key = ?", (key,)
            ).fetchone()
            return Kept(RequestId(id), fingerprint)

        return await self._opened.write(work)

    async def end(self, end: StoredEnd, beside: Work[None] | None = None) -> bool:
        row = (end.ended_at, ended_of(end), end.frees_key, end.id)

        def work(connection: sqlite3.Connection) -> bool:
            changed = connection.execute(
                "UPDATE requests SET ended_at = ?, ended = ?, body = x'', "
                "idempotency_key = CASE WHEN ? THEN NULL ELSE idempotency_key END "
                "WHERE id = ? AND ended_at IS NULL",
                row,
            )
            return changed.rowcount == 1

        def both(connection: sqlite3.Connection) -> bool:
            with together(connection):
                ended = work(connection)
                if ended and beside is not None:
                    beside(connection)
            return ended

        return await self._opened.write(work if beside is None else both)

    async def keep(self, request: StoredRequest, end: StoredEnd) -> bool:
        row = (
            request.id,
            request.arrived_at,
            head_of(request),
            request.owner,
            end.ended_at,
            ended_of(end),
        )
        return await self._opened.write(
            lambda connection: (
                connection.execute(
                    "INSERT INTO requests (id, arrived_at, head, body, owner, ended_at, ended) "
                    "VALUES (?, ?, ?, x'', ?, ?, ?) ON CONFLICT (id) DO NOTHING",
                    row,
                ).rowcount
                == 1
            )
        )

    async def open_requests(self) -> list[StoredRequest]:
        def work(connection: sqlite3.Connection) -> tuple[list[StoredRequest], list[_Unreadable]]:
            found: list[StoredRequest] = []
            unreadable: list[_Unreadable] = []
            rows = connection.execute(
                "SELECT rowid, id, head, body, ended FROM requests "
                "WHERE ended_at IS NULL AND aside IS NULL ORDER BY arrived_at, id"
            )
            for rowid, id, head, body, ended in rows:
                try:
                    if ended is not None:
                        raise UnreadableRowError("ended_at: missing, although there is an end")
                    found.append(read_request(id, head, body))
                except UnreadableRowError as error:
                    unreadable.append(_Unreadable(rowid, str(id), str(error)))
            return found, unreadable

        found, unreadable = await self._opened.read(work)
        if unreadable:
            await self._set_aside(unreadable)
        return found

    async def find(self, id: RequestId) -> Found | None:
        row = await self._opened.read(lambda connection: _row(connection, id))
        if row is None:
            return None
        if row.aside is not None:
            raise SetAside(id)
        try:
            return row.read()
        except UnreadableRowError as error:
            await self._set_aside([_Unreadable(row.rowid, id, str(error))])
            raise SetAside(id) from None

    async def chain(self, id: RequestId, back: Back, most: Most) -> list[Found]:
        def work(connection: sqlite3.Connection) -> list[Found]:
            found: list[Found] = []
            next_id: RequestId | None = id
            size = 0
            while next_id is not None and len(found) < most.rows and size < most.kept_bytes:
                row = _row(connection, next_id)
                if row is None or row.aside is not None:
                    break
                try:
                    found.append(row.read())
                except UnreadableRowError:
                    break  # whoever asks for it by its id sets it aside
                size += found[-1].kept_bytes
                next_id = back(found[-1].request)
            return found

        return await self._opened.read(work)

    async def forget(self, id: RequestId) -> bool:
        return await self._opened.write(
            lambda connection: (
                connection.execute(
                    "DELETE FROM requests WHERE id = ? AND ended_at IS NOT NULL AND aside IS NULL",
                    (id,),
                ).rowcount
                == 1
            )
        )

    async def find_key(self, owned_key: str) -> RequestId | None:
        row = await self._opened.read(
            lambda connection: connection.execute(
                "SELECT id FROM requests WHERE idempotency_key = ?", (owned_key,)
            ).fetchone()
        )
        return None if row is None else RequestId(row[0])

    async def endings(
        self, owner: str | None, before: tuple[float, str] | None, limit: int
    ) -> Endings:
        whose, values = ("", ()) if owner is None else ("owner = ? AND ", (owner,))
        after = before or (math.inf, "")

        def work(connection: sqlite3.Connection) -> tuple[Endings, list[_Unreadable]]:
            found: list[Ending] = []
            unreadable: list[_Unreadable] = []
            size = 0
            rows = connection.execute(
                "SELECT rowid, id, head, body, ended FROM requests "  # noqa: S608
                f"WHERE {whose}ended_at <= ? AND (ended_at, id) < (?, ?) AND aside IS NULL "
                "ORDER BY ended_at DESC, id DESC",
                (*values, after[0], *after),
            )
            for rowid, id, head, body, ended in rows:
                if len(found) == limit or size > PAGE_BYTES:
                    return Endings(found, True), unreadable
                try:
                    found.append(read_ending(read_request(id, head, body), ended))
                except UnreadableRowError as error:
                    unreadable.append(_Unreadable(rowid, str(id), str(error)))
                else:
                    size += len(ended)
            return Endings(found, False), unreadable

        endings, unreadable = await self._opened.read(work)
        if unreadable:
            await self._set_aside(unreadable)
        return endings

    async def set_aside(self, id: RequestId, reason: str) -> None:
        rowid = await self._opened.read(
            lambda connection: connection.execute(
                "SELECT rowid FROM requests WHERE id = ?", (id,)
            ).fetchone()
        )
        if rowid is not None:
            await self._set_aside([_Unreadable(rowid[0], id, reason)])

    async def note(self, seen: Seen) -> None:
        await self._opened.write(
            lambda connection: (
                connection.execute(
                    "INSERT INTO facts VALUES ('seen_store_s', ?), ('seen_unix_s', ?) "
                    "ON CONFLICT (name) DO UPDATE SET value = excluded.value",
                    seen,
                ).rowcount
            )
        )

    async def sweep(self, ended_before: float) -> int:
        def work(connection: sqlite3.Connection) -> int:
            return connection.execute(
                "DELETE FROM requests WHERE rowid IN "
                "(SELECT rowid FROM requests WHERE ended_at < ? AND aside IS NULL LIMIT ?)",
                (ended_before, SWEEP_MAX),
            ).rowcount

        return await self._opened.write(work)

    async def close(self) -> None:
        jobs, self._jobs = self._jobs, None
        if jobs is not None:
            await jobs.close()
        self._place.release()

    @property
    def _opened(self) -> Jobs:
        if self._jobs is None:
            raise StoreError("the store is closed")
        return self._jobs

    async def _set_aside(self, rows: list[_Unreadable]) -> None:
        """Name rows in the log and mark them, so that they are looked at no more."""
        path = str(self._place.path)
        for row in rows[:NAMED_MAX]:
            said = {"request": row.id[:64], "store": path, "reason": row.reason}
            log.error("a stored request cannot be read and is set aside", extra=said)
        if len(rows) > NAMED_MAX:
            more = {"requests": len(rows) - NAMED_MAX, "store": path}
            log.error("more stored requests cannot be read and are set aside", extra=more)
        marks = [(row.reason, row.rowid) for row in rows]
        try:
            await self._opened.write(
                lambda connection: (
                    connection.executemany(
                        "UPDATE requests SET aside = ? WHERE rowid = ?", marks
                    ).rowcount
                )
            )
        except StoreError as error:
            # They are found again the next time that somebody looks.
            log.error("cannot mark what is set aside", extra={"store": path, "error": str(error)})
        else:
            self._rows_aside += len(rows)

    # ---------------------------------------------------------------- opening, in a thread of its own

    def _open(self) -> tuple[sqlite3.Connection, Opened]:
        self._place.take()
        connection = self._connect()
        try:
            schema.prepare(connection, self._place.path)
            return connection, Opened(
                starts=_starts(connection, self._place.path),
                seen=_seen(connection),
                rows_aside=connection.execute(
                    "SELECT count(*) FROM requests WHERE aside IS NOT NULL"
                ).fetchone()[0],
            )
        except BaseException:
            connection.close()
            raise

    def _connect(self) -> sqlite3.Connection:
        return schema.connect(self._place.path, fsync=self._fsync)


def _row(connection: sqlite3.Connection, id: RequestId) -> _Row | None:
    row = connection.execute(
        "SELECT rowid, head, body, ended_at, ended, aside FROM requests WHERE id = ?", (id,)
    ).fetchone()
    return None if row is None else _Row(row[0], id, *row[1:])


def _starts(connection: sqlite3.Connection, path: Path) -> int:
    """The number of this start. Raises QlmError if it cannot be told: attempt numbers depend on it."""
    row = connection.execute(_BUMP).fetchone()
    if row is None or row[0] < 1:
        raise QlmError(
            f"gateway.store.path: {path} does not say how often it was opened (facts.starts). "
            "Put a copy of the store in its place, or give another path."
        )
    starts: int = row[0]
    return starts


def _seen(connection: sqlite3.Connection) -> Seen | None:
    facts = dict(connection.execute("SELECT name, value FROM facts WHERE name LIKE 'seen_%'"))
    values = [facts.get(f"seen_{name}") for name in Seen._fields]
    numbers = [float(value) for value in values if isinstance(value, int | float)]
    if len(numbers) != len(values) or not all(map(math.isfinite, numbers)):
        return None
    return Seen(*numbers)
