"""Stores that are damaged, of another kind or version, locked, full or failing: what is refused, kept and done later."""

import asyncio
import fcntl
import logging
import os
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.store import SqliteStore, StoreError
from gateway.store.sqlite import NAMED_MAX
from qlm_core.errors import QlmError, SetAside
from qlm_core.model import RequestId
from tests.gateway.test_store import end, request

SECRET = "a prompt that nobody may read"


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(str(path))
    await store.open()
    try:
        yield store
    finally:
        await store.close()


def change(path: Path, statement: str, *values: Any) -> None:
    with sqlite3.connect(path) as connection:
        assert connection.execute(statement, values).rowcount == 1
    connection.close()


def packed(value: Any, **fields: Any) -> bytes:
    """A head or an end with other fields; None takes one out."""
    said = {**msgspec.to_builtins(value, builtin_types=(bytes,)), **fields}
    return msgspec.msgpack.encode({key: one for key, one in said.items() if one is not None})


# ---------------------------------------------------------------- rows

HEAD = packed(request("odd"), body=b"")
ODD_HEADS = {
    "no bytes": "text",
    "no message": b"\xc1",
    "truncated": HEAD[:-3],
    "missing field": packed(request("odd"), body=b"", model=None),
    "wrong type": packed(request("odd"), body=b"", prompt_tokens=SECRET),
    "wrong kind of target": packed(request("odd"), body=b"", slo={"ttft_s": SECRET}),
    "no number": packed(request("odd"), body=b"", arrived_at=float("nan")),
    "for ever": packed(request("odd"), body=b"", expires_at=float("inf")),
    "less than none": packed(request("odd"), body=b"", prompt_tokens=-1),
    "too many": packed(request("odd"), body=b"", max_output_tokens=2**32),
    "late before it came": packed(request("odd"), body=b"", slo={"ttft_s": -1.0}),
    "another request": packed(request("other"), body=b""),
}


@pytest.mark.parametrize("head", ODD_HEADS.values(), ids=ODD_HEADS.keys())
async def test_an_open_row_that_cannot_be_read_is_set_aside(
    head: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "q.sqlite"
    async with opened(path) as store:
        for id in ("a", "odd", "z"):
            await store.add(request(id, key=f"key of {id}"))
    change(path, "UPDATE requests SET head = ? WHERE id = 'odd'", head)
    for start in range(2):
        async with opened(path) as store:
            assert [found.id for found in await store.open_requests()] == ["a", "z"]
            assert store.rows_aside == 1
            with pytest.raises(SetAside, match="odd"):
                await store.find(RequestId("odd"))
            # Its key still names it, so nobody runs it twice unawares.
            assert (await store.add(request(f"again-{start}", key="key of odd"))).id == "odd"
            assert await store.sweep(ended_before=1e12) == 0
    # Named once, by id, place and path, and without what it says.
    (said,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert vars(said)["request"] == "odd"
    assert vars(said)["store"] == str(path)
    assert vars(said)["reason"].startswith("head")
    assert SECRET not in str(vars(said))


ENDED = packed(end("odd"))
RECORD = msgspec.to_builtins(end("odd").record)
ODD_ENDS = {
    "nothing": None,
    "no bytes": "text",
    "truncated": ENDED[:-3],
    "unknown phase": packed(end("odd"), record=RECORD | {"phase": SECRET}),
    "missing record": packed(end("odd"), record=None),
    "another request": packed(end("other")),
    "no answer": packed(end("odd"), answer=b"\xff"),
    "an answer without choices": packed(end("odd"), answer=b"[]"),
}


@pytest.mark.parametrize("ended", ODD_ENDS.values(), ids=ODD_ENDS.keys())
async def test_a_finished_row_that_cannot_be_read_is_set_aside(
    ended: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "q.sqlite"
    async with opened(path) as store:
        for id in ("a", "odd"):
            await store.add(request(id))
            await store.end(end(id))
    change(path, "UPDATE requests SET ended = ? WHERE id = 'odd'", ended)
    async with opened(path) as store:
        assert store.rows_aside == 0
        for _ in range(2):
            with pytest.raises(SetAside, match="odd"):
                await store.find(RequestId("odd"))
            assert store.rows_aside == 1
        found = await store.find(RequestId("a"))
        assert found is not None
        assert found[1] == end("a")
        # An operator decides about it; until then it stays.
        assert await store.sweep(ended_before=3.0) == 1
    (said,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert vars(said)["reason"].startswith("ended")
    assert SECRET not in str(vars(said))
    async with opened(path) as store:
        assert store.rows_aside == 1


async def test_an_open_row_that_has_an_end_does_not_run_again(tmp_path: Path) -> None:
    path = tmp_path / "q.sqlite"
    async with opened(path) as store:
        await store.add(request("odd"))
        await store.end(end("odd"))
    change(path, "UPDATE requests SET ended_at = NULL")
    async with opened(path) as store:
        assert await store.open_requests() == []
        assert store.rows_aside == 1


async def test_text_that_is_none_does_not_hide_the_other_rows(tmp_path: Path) -> None:
    path = tmp_path / "q.sqlite"
    async with opened(path) as store:
        for id in ("a", "odd"):
            await store.add(request(id))
    change(path, "UPDATE requests SET id = CAST(x'ff00fe' AS TEXT) WHERE id = 'odd'")
    async with opened(path) as store:
        assert [found.id for found in await store.open_requests()] == ["a"]
        assert store.rows_aside == 1


async def test_of_many_odd_rows_some_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "q.sqlite"
    async with opened(path) as store:
        await asyncio.gather(*(store.add(request(f"{number}")) for number in range(50)))
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE requests SET head = x'00'")
    connection.close()
    async with opened(path) as store:
        assert await store.open_requests() == []
        assert store.rows_aside == 50
    errors = [vars(record) for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == NAMED_MAX + 1
    assert errors[-1]["requests"] == 50 - NAMED_MAX


# ---------------------------------------------------------------- files


async def refused(path: Path) -> str:
    """What opening it is refused with, in one line that names it."""
    with pytest.raises(QlmError) as caught:
        await SqliteStore(str(path)).open()
    said = str(caught.value)
    assert said.startswith("gateway.store.path: ")
    assert str(path) in said
    assert "\n" not in said
    return said


def no_database(path: Path) -> None:
    path.write_text("This is a shopping list. " * 100)


def folder(path: Path) -> None:
    path.mkdir()


def truncated(path: Path) -> None:
    filled(path)
    os.truncate(path, 3 * 4096)


def scribbled(path: Path) -> None:
    filled(path)
    with path.open("r+b") as file:
        file.seek(2 * 4096)
        file.write(b"\xa5" * 4 * 4096)


def somebody_elses(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE songs (name TEXT)")
    connection.close()


def not_counting(path: Path) -> None:
    filled(path)
    change(path, "UPDATE facts SET value = 'often' WHERE name = 'starts'")


def newer(path: Path) -> None:
    filled(path)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()


def lying(path: Path) -> None:
    filled(path)
    with sqlite3.connect(path) as connection:
        connection.execute("ALTER TABLE requests DROP COLUMN fingerprint")
    connection.close()


def filled(path: Path) -> None:
    async def fill() -> None:
        async with opened(path) as store:
            await asyncio.gather(*(store.add(request(f"{number:050}")) for number in range(300)))

    # In a loop of its own, since the test has one that runs.
    asyncio.run(fill())


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (no_database, "not a database"),
        (folder, "directory"),
        (truncated, "malformed|damaged"),
        (scribbled, "malformed|damaged"),
        (somebody_elses, "has tables that are not those of a store"),
        (not_counting, "facts.starts"),
        (newer, "schema version 99; this release knows versions 1 to 5"),
        (lying, "says schema version 5 but has other tables"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_a_file_that_is_no_sound_store_is_refused_in_one_line(
    make: Callable[[Path], None], said: str, tmp_path: Path
) -> None:
    path = tmp_path / "q.sqlite"
    await asyncio.to_thread(make, path)
    refusal = await refused(path)
    assert any(part in refusal for part in said.split("|")), refusal
    # Neither this process nor another is kept from a store that is put in its place.
    lock = os.open(f"{path}.lock", os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(lock)


async def test_places_where_nothing_can_be_written_are_refused(tmp_path: Path) -> None:
    await refused(Path("/proc/no/such/place/q.sqlite"))
    (tmp_path / "file").touch()
    await refused(tmp_path / "file" / "q.sqlite")


async def test_a_store_that_another_process_has_locked_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "q.sqlite"
    await asyncio.to_thread(filled, path)
    with locked(path):
        assert "locked" in await refused(path)
    async with opened(path) as store:
        assert len(await store.open_requests()) == 300


async def test_one_store_has_one_lock_by_whatever_name(tmp_path: Path) -> None:
    path, alias = tmp_path / "q.sqlite", tmp_path / "alias.sqlite"
    async with opened(path):
        alias.symlink_to(path)
        with pytest.raises(QlmError, match=r"another gateway has .*q\.sqlite open"):
            await SqliteStore(str(alias)).open()


@pytest.mark.parametrize("way", ["another name", "its lock deleted"])
async def test_a_file_has_one_gateway_whatever_becomes_of_its_lock(
    way: str, tmp_path: Path
) -> None:
    path, other = tmp_path / "q.sqlite", tmp_path / "other.sqlite"
    async with opened(path):
        if way == "another name":
            other.hardlink_to(path)
        else:
            other = path
            Path(f"{path}.lock").unlink()
        with pytest.raises(QlmError, match="another gateway has"):
            await SqliteStore(str(other)).open()


@pytest.mark.parametrize("replaced", [False, True])
async def test_nothing_is_acknowledged_into_a_file_that_nobody_finds_again(
    replaced: bool, tmp_path: Path
) -> None:
    path, away = tmp_path / "q.sqlite", tmp_path / "away.sqlite"
    async with opened(path) as store:
        await store.add(request("before"))
        path.rename(away)
        if replaced:
            path.touch()
        with pytest.raises(StoreError, match="no longer the file that was opened"):
            await store.add(request("meanwhile"))
        assert await store.find(RequestId("before"))  # what is stored can be fetched
        away.replace(path)
        await store.add(request("after"))
    async with opened(path) as store:
        assert [found.id for found in await store.open_requests()] == ["after", "before"]


async def test_what_is_in_a_journal_that_was_deleted_is_saved(tmp_path: Path) -> None:
    path = tmp_path / "q.sqlite"
    store = SqliteStore(str(path))
    await store.open()
    await store.add(request("before"))
    Path(f"{path}-wal").unlink()
    await store.add(request("after"))
    # As a crash leaves it: the file and its journal, by their names.
    for end_of_name in ("", "-wal"):
        shutil.copy(f"{path}{end_of_name}", f"{tmp_path / 'copy.sqlite'}{end_of_name}")
    await store.close()
    async with opened(tmp_path / "copy.sqlite") as found:
        assert [one.id for one in await found.open_requests()] == ["after", "before"]


async def test_the_first_schema_without_a_version_is_brought_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "q.sqlite"
    await asyncio.to_thread(filled, path)
    with sqlite3.connect(path) as connection:
        connection.execute("DROP INDEX requests_owned_ended")
        connection.execute("DROP INDEX requests_aside")
        for column in ("owner", "aside", "fingerprint"):
            connection.execute(f"ALTER TABLE requests DROP COLUMN {column}")
        connection.execute("PRAGMA user_version = 0")
    connection.close()
    async with opened(path) as store:
        assert len(await store.open_requests()) == 300
        assert (await store.add(request("new", key="k"))).id == "new"


async def test_a_migration_that_fails_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gateway.store import schema

    path = tmp_path / "q.sqlite"
    await asyncio.to_thread(filled, path)
    with sqlite3.connect(path) as connection:
        connection.execute("DROP INDEX requests_owned_ended")
        connection.execute("DROP INDEX requests_aside")
        for column in ("owner", "aside"):
            connection.execute(f"ALTER TABLE requests DROP COLUMN {column}")
        connection.execute("PRAGMA user_version = 2")
    connection.close()
    with monkeypatch.context() as patched:
        broken = (*schema._MIGRATIONS[2], "INSERT INTO nowhere VALUES (1)")
        patched.setitem(schema._MIGRATIONS, 2, broken)
        assert "nowhere" in await refused(path)
    async with opened(path) as store:
        assert len(await store.open_requests()) == 300


# ---------------------------------------------------------------- failing while it runs


class locked:  # noqa: N801 (a context manager)
    """Another process that has the file to itself for a while."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)

    def __enter__(self) -> None:
        self._connection.execute("BEGIN IMMEDIATE")

    def __exit__(self, *_: object) -> None:
        self._connection.execute("ROLLBACK")
        self._connection.close()


async def limit_pages(store: SqliteStore, pages: int) -> None:
    """Let the file grow to that many pages at most, as a disk that is full does."""
    assert store._jobs is not None
    await store._jobs.read(lambda db: db.execute(f"PRAGMA max_page_count = {pages}").fetchone())


async def test_a_full_disk_refuses_additions_and_nothing_else(tmp_path: Path) -> None:
    async with opened(tmp_path / "q.sqlite") as store:
        for id in "ab":
            await store.add(request(id))
        await limit_pages(store, 1)
        large = msgspec.structs.replace(request("large"), body=b"x" * 100_000)
        with pytest.raises(StoreError, match="full"):
            await store.add(large)
        # What was there is read, and what needs no more room is stored.
        assert await store.find(RequestId("a")) == (request("a"), None)
        assert await store.end(end("b")) is True
        assert await store.find(RequestId("large")) is None
        # There is room again.
        await limit_pages(store, 1 << 30)
        assert (await store.add(large)).id == "large"
        assert [found.id for found in await store.open_requests()] == ["a", "large"]


async def test_a_locked_file_refuses_changes_and_is_read_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "q.sqlite"
    async with opened(path) as store:
        await store.add(request("a"))
        with locked(path):
            adding = asyncio.gather(
                store.add(request("b")), store.end(end("a")), return_exceptions=True
            )
            assert await store.find(RequestId("a")) == (request("a"), None)
            assert [str(one) for one in await adding] == 2 * [
                "the store failed: database is locked"
            ]
        assert (await store.add(request("b"))).id == "b"
        assert await store.end(end("a"))


class _Failing:
    """A connection on which chosen statements fail, before or after they were carried out."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.failing: dict[str, None] = {}

    def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
        if statement in self.failing:
            raise sqlite3.OperationalError("disk I/O error")
        return self._connection.execute(statement, *values)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


@pytest.mark.parametrize("statements", [("COMMIT",), ("COMMIT", "ROLLBACK"), ("BEGIN IMMEDIATE",)])
async def test_a_failed_commit_acknowledges_nobody(
    statements: tuple[str, ...], tmp_path: Path
) -> None:
    async with opened(tmp_path / "q.sqlite") as store:
        await store.add(request("a"))
        assert store._jobs is not None
        failing = store._jobs._connection = _Failing(store._jobs._connection)  # type: ignore[assignment,arg-type]
        failing.failing.update(dict.fromkeys(statements))
        outcomes = await asyncio.gather(
            store.add(request("b")),
            store.add(request("c")),
            store.end(end("a")),
            return_exceptions=True,
        )
        assert [type(one) for one in outcomes] == [StoreError] * 3
        failing.failing.clear()
        # Nothing of it is there, and the next commit stands, on a new connection where the old one was beyond help.
        assert await store.open_requests() == [request("a")]
        assert (await store.add(request("b"))).id == "b"
        assert await store.end(end("a"))
        assert await store.open_requests() == [request("b")]


async def test_an_odd_job_fails_alone_and_says_nothing_of_its_content(tmp_path: Path) -> None:
    async with opened(tmp_path / "q.sqlite") as store:
        outcomes = await asyncio.gather(
            store.add(request("a")),
            store.find(RequestId("\udcff")),
            store.sweep(ended_before=2**70),
            return_exceptions=True,
        )
        assert outcomes[0] == ("a", "")
        assert [str(one) for one in outcomes[1:]] == [
            "the store failed: UnicodeEncodeError",
            "the store failed: OverflowError",
        ]
        assert await store.open_requests() == [request("a")]
