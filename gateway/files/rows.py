"""The rows of files: what a file is apart from its bytes, and the statements that keep it."""

from __future__ import annotations

import re
import secrets
import sqlite3
from typing import NamedTuple

import msgspec

_COLUMNS = "id, owner, purpose, filename, bytes_count, created_unix_s, expires_unix_s"
_ID = re.compile(r"file-[0-9a-f]{32}")
_INSERT = f"INSERT INTO files ({_COLUMNS}, expires_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608
_MARK = """
INSERT INTO facts VALUES ('files_mark', ?) ON CONFLICT (name) DO UPDATE SET value = value RETURNING value
"""
_SWEPT_MAX = 500


class StoredFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file that is kept, apart from its bytes.

    Attributes:
        id: "file-…"; ids of later files are greater, as text.
        owner: the tenant whose file it is, as `gateway.keys` names them.
        filename: as its client called it; it names nothing on our disk.
        created_unix_s: when it was complete, by the wall clock.
        expires_unix_s: when it expires, as its client was told; None: never. What counts is the store's clock.
    """

    id: str
    owner: str
    purpose: str
    filename: str
    bytes_count: int
    created_unix_s: int
    expires_unix_s: int | None = None


class Page(NamedTuple):
    """Some of the files that are listed, and whether there are more."""

    files: list[StoredFile]
    has_more: bool


class Gone(NamedTuple):
    """A file whose row was deleted."""

    id: str
    owner: str
    bytes_count: int


class Sum(NamedTuple):
    """What a tenant has."""

    owner: str
    files: int
    bytes_count: int


class Ids:
    """Makes ids, each greater than all before it.

    Args:
        latest: one that is in use already; "" for none.
    """

    def __init__(self, latest: str) -> None:
        self._last_ms = int(latest[5:17], 16) if is_id(latest) else 0

    def make(self, unix_s: float) -> str:
        """A new id; most of it cannot be guessed."""
        self._last_ms = max(int(unix_s * 1000), self._last_ms + 1)
        return f"file-{self._last_ms:012x}{secrets.token_hex(10)}"


def mark(connection: sqlite3.Connection) -> int:
    """The number that the folder of this database's files has to bear; made at the first call."""
    number: int = connection.execute(_MARK, (secrets.randbits(62),)).fetchone()[0]
    return number


def is_id(text: str) -> bool:
    """Whether a text could be the id of a file."""
    return _ID.fullmatch(text) is not None


def insert(connection: sqlite3.Connection, file: StoredFile, expires_at: float | None) -> None:
    """Keep a file. Raises sqlite3.IntegrityError if its id is taken."""
    connection.execute(_INSERT, (*msgspec.structs.astuple(file), expires_at))


def find(connection: sqlite3.Connection, id: str, now_s: float) -> StoredFile | None:
    """The file of an id, unless it has expired."""
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM files WHERE id = ? AND coalesce(expires_at > ?, 1)",  # noqa: S608
        (id, now_s),
    ).fetchone()
    return None if row is None else _file(row)


def page(
    connection: sqlite3.Connection,
    *,
    owner: str | None,
    purpose: str,
    after: str,
    limit: int,
    newest_first: bool,
    now_s: float,
) -> Page:
    """Files in order of their ids, from the one that follows `after` on, whether that is still there or not.

    Args:
        owner: whose; None: everybody's.
        purpose, after: "" for any.
    """
    terms: list[str] = ["coalesce(expires_at > ?, 1)"]
    values: list[object] = [now_s]
    for term, value in (
        ("owner = ?", owner),
        ("purpose = ?", purpose or None),
        ("id < ?" if newest_first else "id > ?", after or None),
    ):
        if value is not None:
            terms.append(term)
            values.append(value)
    order = "DESC" if newest_first else "ASC"
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM files WHERE {' AND '.join(terms)} ORDER BY id {order} LIMIT ?",  # noqa: S608
        (*values, limit + 1),
    ).fetchall()
    files = [file for file in map(_file, rows[:limit]) if file is not None]
    return Page(files, len(rows) > limit)


def delete(connection: sqlite3.Connection, id: str) -> Gone | None:
    """Forget a file; None if there is none."""
    rows = connection.execute(
        "DELETE FROM files WHERE id = ? RETURNING id, owner, bytes_count", (id,)
    )
    return next((Gone(*row) for row in rows.fetchall()), None)


def expire(connection: sqlite3.Connection, now_s: float) -> list[Gone]:
    """Forget some of the files that have expired."""
    rows = connection.execute(
        "DELETE FROM files WHERE id IN "
        "(SELECT id FROM files WHERE expires_at <= ? ORDER BY expires_at LIMIT ?) "
        "RETURNING id, owner, bytes_count",
        (now_s, _SWEPT_MAX),
    )
    return [Gone(*row) for row in rows.fetchall()]


def sums(connection: sqlite3.Connection) -> list[Sum]:
    """What there is, by tenant."""
    rows = connection.execute("SELECT owner, count(*), sum(bytes_count) FROM files GROUP BY owner")
    return [Sum(*row) for row in rows]


def sizes(connection: sqlite3.Connection) -> dict[str, int]:
    """The bytes of every file by its id."""
    return dict(connection.execute("SELECT id, bytes_count FROM files"))


def _file(row: tuple[object, ...]) -> StoredFile | None:
    """The file of a row; None for a row that nobody here has written."""
    values = dict(zip(StoredFile.__struct_fields__, row, strict=True))
    try:
        file = msgspec.convert(values, StoredFile)
    except msgspec.ValidationError:
        return None
    return file if is_id(file.id) and file.bytes_count >= 0 else None
