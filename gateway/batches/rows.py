"""The rows of batches and the statements that keep them.

A batch has a number; a line's place is that number and the line's own, so the lines of a batch stand together and each has one
record at most. Where lines are in their file is kept while a batch is open, the results of lines until its files are written.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from gateway.batches.index import Index
from gateway.batches.stored import StoredBatch, head_of, read_head
from gateway.store import StoreError, together
from gateway.webhooks.rows import Row, put
from qlm_core.batches import Usage

_LINE_BITS = 32
LINES_MAX = 2**_LINE_BITS - 1
_CLEARED_MAX = 1_000
_SWEPT_MAX = 500


class Numbered(NamedTuple):
    """A batch and its number."""

    number: int
    batch: StoredBatch


class Records(NamedTuple):
    """The lines of a batch that have a record, in order, each with whether it failed, and the usage of all of them."""

    lines: list[tuple[int, bool]]
    usage: Usage


class Result(NamedTuple):
    """The result of a line as it goes into a file."""

    line: int
    failed: bool
    data: bytes


def insert(connection: sqlite3.Connection, batch: StoredBatch) -> Numbered:
    """Keep a batch, or find the one of the same owner that already has its idempotency key."""
    added = connection.execute(
        "INSERT INTO batches (id, owner, idempotency_key, head) VALUES (?, ?, ?, ?) "
        "ON CONFLICT (idempotency_key) DO NOTHING RETURNING number",
        (batch.id, batch.owner, batch.owned_key, head_of(batch)),
    ).fetchone()
    if added is not None:
        return Numbered(added[0], batch)
    number, head = connection.execute(
        "SELECT number, head FROM batches WHERE idempotency_key = ?", (batch.owned_key,)
    ).fetchone()
    return Numbered(number, read_head(head))


def update(
    connection: sqlite3.Connection, number: int, batch: StoredBatch, ended_at: float | None
) -> None:
    """Keep what has become of a batch.

    Args:
        ended_at: when it ended, seconds of the store's clock; None if it has not.
    """
    connection.execute(
        "UPDATE batches SET head = ?, ended_at = ? WHERE number = ?",
        (head_of(batch), ended_at, number),
    )


def close(
    connection: sqlite3.Connection, number: int, batch: StoredBatch, at: float, told: Sequence[Row]
) -> None:
    """Keep the end of a batch, and what webhooks are told of it: both or neither."""
    with together(connection):
        update(connection, number, batch, at)
        put(connection, told)


def find(connection: sqlite3.Connection, id: str) -> Numbered | None:
    """The batch of an id, if there is one that can be read."""
    rows = connection.execute("SELECT number, head FROM batches WHERE id = ?", (id,))
    return next(_readable(rows), None)


def page(
    connection: sqlite3.Connection, *, owner: str | None, before: int | None, limit: int
) -> list[Numbered]:
    """Batches, newest first.

    Args:
        owner: whose; None: everybody's.
        before: only those with a smaller number; None for all.
    """
    terms, values = ["1"], []
    if owner is not None:
        terms.append("owner = ?")
        values.append(owner)
    if before is not None:
        terms.append("number < ?")
        values.append(str(before))
    rows = connection.execute(
        f"SELECT number, head FROM batches WHERE {' AND '.join(terms)} "  # noqa: S608
        "ORDER BY number DESC LIMIT ?",
        (*values, limit),
    )
    return list(_readable(rows))


def open_batches(connection: sqlite3.Connection) -> list[Numbered]:
    """Those that have not ended, oldest first."""
    rows = connection.execute(
        "SELECT number, head FROM batches WHERE ended_at IS NULL ORDER BY number"
    )
    return list(_readable(rows))


def sweep(connection: sqlite3.Connection, ended_before: float) -> int:
    """Forget some of the batches that ended before that time; returns how many."""
    return connection.execute(
        "DELETE FROM batches WHERE number IN (SELECT number FROM batches WHERE ended_at < ? LIMIT ?)",
        (ended_before, _SWEPT_MAX),
    ).rowcount


# --------------------------------------------------------------------------- lines


def keep_index(connection: sqlite3.Connection, number: int, lines: bytes) -> None:
    """Note where the lines of a batch are."""
    connection.execute("INSERT OR REPLACE INTO batch_indexes VALUES (?, ?)", (number, lines))


def index(connection: sqlite3.Connection, number: int) -> Index | None:
    """Where the lines of a batch are, if that is known."""
    row = connection.execute(
        "SELECT lines FROM batch_indexes WHERE batch = ?", (number,)
    ).fetchone()
    try:
        return None if row is None else Index.unpack(row[0])
    except (TypeError, ValueError):
        raise StoreError("the lines of a batch are not as this release writes them") from None


def end(connection: sqlite3.Connection, number: int, result: Result, usage: Usage) -> bool:
    """Keep the record and the result of a line; False if it has one already."""
    place = _place(number, result.line)
    with together(connection):
        added = connection.execute(
            "INSERT INTO batch_records VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (
                place,
                result.failed,
                usage.input_tokens,
                usage.cached_tokens,
                usage.output_tokens,
                usage.reasoning_tokens,
            ),
        )
        if not added.rowcount:
            return False
        connection.execute("INSERT INTO batch_results VALUES (?, ?)", (place, result.data))
    return True


def records(connection: sqlite3.Connection, number: int) -> Records:
    """What has ended of a batch."""
    places = (_place(number, 0), _place(number, LINES_MAX))
    rows = connection.execute(
        "SELECT place, failed FROM batch_records WHERE place BETWEEN ? AND ? ORDER BY place", places
    )
    lines = [(place & LINES_MAX, bool(failed)) for place, failed in rows]
    sums = connection.execute(
        "SELECT total(input_tokens), total(cached_tokens), total(output_tokens), total(reasoning_tokens) "
        "FROM batch_records WHERE place BETWEEN ? AND ?",
        places,
    ).fetchone()
    names = ("input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens")
    return Records(lines, Usage(**dict(zip(names, map(int, sums), strict=True))))


def results(connection: sqlite3.Connection, number: int, first: int, last: int) -> list[Result]:
    """The results of some lines of a batch, in order."""
    rows = connection.execute(
        "SELECT place, failed, line FROM batch_records JOIN batch_results USING (place) "
        "WHERE place BETWEEN ? AND ? ORDER BY place",
        (_place(number, first), _place(number, last)),
    )
    return [Result(place & LINES_MAX, bool(failed), line) for place, failed, line in rows]


def clear(connection: sqlite3.Connection, number: int) -> bool:
    """Forget some lines of a batch that is over; whether there may be more."""
    first, last = _place(number, 0), _place(number, LINES_MAX)
    more = False
    with together(connection):
        for table in ("batch_results", "batch_records"):
            gone = connection.execute(
                f"DELETE FROM {table} WHERE place IN "  # noqa: S608
                f"(SELECT place FROM {table} WHERE place BETWEEN ? AND ? LIMIT ?)",
                (first, last, _CLEARED_MAX),
            ).rowcount
            more |= gone == _CLEARED_MAX
        if not more:
            connection.execute("DELETE FROM batch_indexes WHERE batch = ?", (number,))
    return more


def uncleared(connection: sqlite3.Connection) -> list[int]:
    """Numbers of batches that are over, or gone, and whose lines are still here."""
    rows = connection.execute(
        "SELECT batch FROM batch_indexes WHERE batch NOT IN "
        "(SELECT number FROM batches WHERE ended_at IS NULL)"
    )
    return [number for (number,) in rows]


def _place(number: int, line: int) -> int:
    return number << _LINE_BITS | line


def _readable(rows: Iterator[tuple[int, object]]) -> Iterator[Numbered]:
    """What can be read; a row that nobody here has written stays as it is and is shown to nobody."""
    for number, head in rows:
        try:
            yield Numbered(number, read_head(head))
        except StoreError:
            continue
