"""The tables of a store's file, by version, and what makes a file of this version out of whatever is there.

A new file gets the present schema, one of an older release is brought up to date in one transaction, and whatever else
a file may be is refused, with its path, what was found and the remedy in one line.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

import failpoints
from gateway.store.rows import owner_of
from qlm_core.errors import QlmError

VERSION = 5
# How long a statement waits for another process that has the file locked.
LOCK_WAIT_S = 1.0
# A file of at most this size is checked page by page before it is used.
CHECKED_BYTES_MAX = 64 * 1024 * 1024

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
    fingerprint TEXT NOT NULL DEFAULT '',
    aside TEXT,
    owner TEXT NOT NULL DEFAULT ''
);
CREATE INDEX IF NOT EXISTS requests_open ON requests (arrived_at) WHERE ended_at IS NULL;
CREATE INDEX IF NOT EXISTS requests_ended ON requests (ended_at) WHERE ended_at IS NOT NULL;
CREATE INDEX IF NOT EXISTS requests_owned_ended ON requests (owner, ended_at) WHERE ended_at IS NOT NULL;
CREATE INDEX IF NOT EXISTS requests_aside ON requests (id) WHERE aside IS NOT NULL;
CREATE TABLE IF NOT EXISTS files (
    id TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    purpose TEXT NOT NULL,
    filename TEXT NOT NULL,
    bytes_count INTEGER NOT NULL,
    created_unix_s INTEGER NOT NULL,
    expires_unix_s INTEGER,
    expires_at REAL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS files_owned ON files (owner, id);
CREATE INDEX IF NOT EXISTS files_expiring ON files (expires_at) WHERE expires_at IS NOT NULL;
CREATE TABLE IF NOT EXISTS batches (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    idempotency_key TEXT UNIQUE,
    head BLOB NOT NULL,
    ended_at REAL
);
CREATE INDEX IF NOT EXISTS batches_owned ON batches (owner, number);
CREATE INDEX IF NOT EXISTS batches_open ON batches (number) WHERE ended_at IS NULL;
CREATE INDEX IF NOT EXISTS batches_ended ON batches (ended_at) WHERE ended_at IS NOT NULL;
CREATE TABLE IF NOT EXISTS batch_indexes (batch INTEGER PRIMARY KEY, lines BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS batch_records (
    place INTEGER PRIMARY KEY,
    failed INTEGER NOT NULL,
    input_tokens INTEGER NOT NULL,
    cached_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    reasoning_tokens INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS batch_results (place INTEGER PRIMARY KEY, line BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS webhook_deliveries (
    event TEXT NOT NULL,
    webhook TEXT NOT NULL,
    type TEXT NOT NULL,
    subject TEXT NOT NULL,
    created_unix_s INTEGER NOT NULL,
    told_at REAL NOT NULL,
    tries INTEGER NOT NULL,
    due_at REAL NOT NULL,
    PRIMARY KEY (event, webhook)
) WITHOUT ROWID;
"""

_OLDEST_COLUMNS = ("id", "idempotency_key", "arrived_at", "head", "body", "ended_at", "ended")
# The columns of requests that each version added to those of the one before.
_ADDED_COLUMNS = {1: _OLDEST_COLUMNS, 2: ("fingerprint",), 3: ("aside",), 4: (), 5: ("owner",)}

# What brings a file from each version to the next.
_MIGRATIONS = {
    # Idempotency keys have an owner and a content. What an older release stored has neither: it belongs to who brings
    # no API key, and fits whatever content comes under its key.
    1: (
        "ALTER TABLE requests ADD COLUMN fingerprint TEXT NOT NULL DEFAULT ''",
        "UPDATE requests SET idempotency_key = '/' || idempotency_key WHERE idempotency_key IS NOT NULL",
    ),
    # Rows can be set aside, and a store has a time of its own, which goes on from the last that it has noted.
    2: (
        "ALTER TABLE requests ADD COLUMN aside TEXT",
        """
        INSERT INTO facts
        SELECT name, latest FROM
            (SELECT max(at) AS latest FROM
                (SELECT arrived_at AS at FROM requests UNION ALL SELECT ended_at FROM requests)
             WHERE typeof(at) = 'real'),
            (SELECT 'seen_store_s' AS name UNION ALL SELECT 'seen_unix_s')
        WHERE latest IS NOT NULL
        """,
    ),
    # Files and batches came, in tables of their own, which are made below wherever they are missing.
    3: (),
    # What has ended can be listed by whose it is, which a row says in its head. Webhooks came, in a table of their own.
    4: (
        "ALTER TABLE requests ADD COLUMN owner TEXT NOT NULL DEFAULT ''",
        "UPDATE requests SET owner = owner_of(head)",
    ),
}


def connect(path: Path, *, fsync: bool) -> sqlite3.Connection:
    """A connection to an existing file, as every use of it wants it. Raises sqlite3.Error."""
    connection = sqlite3.connect(
        f"{path.as_uri()}?mode=rw",
        uri=True,
        timeout=LOCK_WAIT_S,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        # What a damaged row has for text must not keep others from being read.
        connection.text_factory = lambda data: data.decode(errors="replace")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {'FULL' if fsync else 'NORMAL'}")
    except BaseException:
        connection.close()
        raise
    return connection


def prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Make the file one of the present version. Raises QlmError for what cannot be, sqlite3.Error."""
    if path.stat().st_size <= CHECKED_BYTES_MAX:
        found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise sqlite3.DatabaseError("it is damaged")
    connection.create_function("owner_of", 1, owner_of, deterministic=True)
    connection.execute("BEGIN IMMEDIATE")
    try:
        version = _version(connection, path)
        for step in range(version or VERSION, VERSION):
            for statement in _MIGRATIONS[step]:
                connection.execute(statement)
                failpoints.at("gateway.store.migrating", sqlite3.OperationalError)
        make(connection)
        connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def make(connection: sqlite3.Connection) -> None:
    """Make the tables of the present version, as far as they are missing."""
    for statement in _SCHEMA.split(";"):
        connection.execute(statement)


def _version(connection: sqlite3.Connection, path: Path) -> int:
    """The version of a file's tables; 0 for one without any. Raises QlmError if it is none that is known."""
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    tables = [
        name
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
    ]
    if version == 0 and not tables:
        return 0
    if not 0 <= version <= VERSION:
        raise _refused(path, f"has schema version {version}")
    columns = [row[1] for row in connection.execute("PRAGMA table_info (requests)")]
    if "facts" in tables:
        # The first releases did not always note their version; their columns tell.
        for known in range(VERSION, 0, -1):
            if version in (0, known) and columns == _columns(known):
                return known
    if version == 0:
        raise _refused(path, "has tables that are not those of a store")
    raise _refused(path, f"says schema version {version} but has other tables")


def _columns(version: int) -> list[str]:
    return [name for known in range(1, version + 1) for name in _ADDED_COLUMNS[known]]


def _refused(path: Path, found: str) -> QlmError:
    return QlmError(
        f"gateway.store.path: {path} {found}; this release knows versions 1 to {VERSION}. "
        "Start the release that wrote it, or give the path of another store or of none yet."
    )
