"""The rows of what is still to be told, and the statements that keep them.

A row is one event on its way to one webhook. It is there from before anybody relies on it until the webhook has taken it,
so it outlives whatever happens to the gateway.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import msgspec

from gateway.store import together
from qlm_core.webhooks import Delivery


class Row(NamedTuple):
    """An event on its way to a webhook.

    Attributes:
        event: its id, the same however often it is told.
        webhook: which one, as `name_of` has it.
        subject: the id of what has happened to.
        told_at, due_at: when it was stored and when it is to be tried, seconds of the store's clock.
        tries: how many have failed.
    """

    event: str
    webhook: str
    type: str
    subject: str
    created_unix_s: int
    told_at: float
    tries: int
    due_at: float

    @property
    def delivery(self) -> Delivery:
        """What the schedule calls it."""
        return Delivery(self.event, self.webhook)


def event_id(type: str, subject: str) -> str:
    """The id of an event: what has happened once has one, whoever tells of it again."""
    return f"evt_{hashlib.sha256(f'{type} {subject}'.encode()).hexdigest()[:32]}"


def name_of(url: str) -> str:
    """What a webhook is called in rows, which are none of its keys' places."""
    return hashlib.sha256(url.encode()).hexdigest()[:32]


def put(connection: sqlite3.Connection, rows: Iterable[Row]) -> None:
    """Keep what is to be told; what is kept already stays as it is."""
    with together(connection):
        connection.executemany(
            "INSERT INTO webhook_deliveries VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            rows,
        )


def note(connection: sqlite3.Connection, delivery: Delivery, tries: int, due_at: float) -> None:
    """Keep how often one was tried, and when it is to be tried again."""
    connection.execute(
        "UPDATE webhook_deliveries SET tries = ?, due_at = ? WHERE event = ? AND webhook = ?",
        (tries, due_at, *delivery),
    )


def remove(connection: sqlite3.Connection, deliveries: Iterable[Delivery]) -> None:
    """Forget some."""
    with together(connection):
        connection.executemany(
            "DELETE FROM webhook_deliveries WHERE event = ? AND webhook = ?", deliveries
        )


def take_up(connection: sqlite3.Connection, webhooks: Sequence[str]) -> tuple[list[Row], int]:
    """What is to be told, the oldest first; what is for none of these webhooks is forgotten, and counted."""
    places = ", ".join("?" * len(webhooks))
    gone = connection.execute(
        f"DELETE FROM webhook_deliveries WHERE webhook NOT IN ({places})",  # noqa: S608
        tuple(webhooks),
    ).rowcount
    rows = connection.execute("SELECT * FROM webhook_deliveries ORDER BY told_at")
    return list(_readable(rows)), gone


def _readable(rows: Iterable[tuple[object, ...]]) -> Iterator[Row]:
    """What can be read; a row that nobody here has written stays as it is and is told to nobody."""
    for row in rows:
        try:
            yield msgspec.convert(row, Row)
        except msgspec.ValidationError:
            continue
