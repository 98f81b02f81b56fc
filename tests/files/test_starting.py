"""What a start finds of files: what a crash left, bytes that are gone, folders and stores that do not belong together."""

from __future__ import annotations

import shutil
import socket
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from gateway.files import USER_DATA
from qlm_core.errors import FileLost, NotFound, QlmError
from tests.files.beds import ADMIN, ALICE, configured, gauges, made, on_disk, opened
from tests.files.forms import LINES
from tests.gateway.peers import config, running


def folder(tmp_path: Path) -> Path:
    return tmp_path / "q.sqlite.files"


async def filled(tmp_path: Path, *, count: int = 3, **given: Any) -> list[str]:
    """A store with files that is closed again; their ids."""
    async with opened(configured(tmp_path, **given)) as files:
        return [(await made(files)).id for _ in range(count)]


def altered(tmp_path: Path, statement: str, *values: object) -> None:
    with sqlite3.connect(tmp_path / "q.sqlite") as connection:
        connection.execute(statement, values)
    connection.close()


async def test_files_are_there_after_a_restart(tmp_path: Path) -> None:
    ids = await filled(tmp_path)
    async with opened(configured(tmp_path)) as files:
        assert [file.id for file in (await files.list(ALICE)).files] == ids[::-1]
        assert gauges(files)["qlm_file_bytes"] == 3 * len(LINES)
        assert (await made(files)).id > max(ids)


async def test_what_has_no_row_is_removed(tmp_path: Path) -> None:
    ids = await filled(tmp_path)
    (folder(tmp_path) / ("file-" + "0" * 32)).write_bytes(b"renamed, and no row")
    (folder(tmp_path) / "incoming" / "half").write_bytes(b"half")
    work = folder(tmp_path) / "batches"
    work.mkdir()
    (work / "b.jsonl").write_bytes(b"somebody else's")
    async with opened(configured(tmp_path)):
        assert on_disk(folder(tmp_path)) == sorted([*ids, "b.jsonl"])


async def test_bytes_that_are_gone_are_said_to_be_and_may_come_back(tmp_path: Path) -> None:
    gone, cut, whole = await filled(tmp_path)
    kept = folder(tmp_path) / gone
    kept.rename(tmp_path / "aside")
    (folder(tmp_path) / cut).write_bytes(LINES[:-1])
    async with opened(configured(tmp_path)) as files:
        assert gauges(files)["qlm_files_lost"] == 2
        for id in (gone, cut):
            file = await files.find(id, ALICE)
            with pytest.raises(FileLost, match=id):
                async with files.reading(file):
                    pass
        async with files.reading(await files.find(whole, ALICE)) as read:
            assert await read(0, 1_000) == LINES
        await files.delete(cut, ALICE)
    (tmp_path / "aside").rename(kept)
    async with opened(configured(tmp_path)) as files:
        assert gauges(files)["qlm_files_lost"] == 0
        async with files.reading(await files.find(gone, ALICE)) as read:
            assert await read(0, 1_000) == LINES


async def test_a_folder_that_is_not_there_costs_no_rows(tmp_path: Path) -> None:
    # As where what should be mounted is not.
    ids = await filled(tmp_path)
    folder(tmp_path).rename(tmp_path / "unmounted")
    async with opened(configured(tmp_path)) as files:
        assert gauges(files)["qlm_files_lost"] == 3
    shutil.rmtree(folder(tmp_path))
    (tmp_path / "unmounted").rename(folder(tmp_path))
    async with opened(configured(tmp_path)) as files:
        assert gauges(files)["qlm_files_lost"] == 0
        assert on_disk(folder(tmp_path)) == sorted(ids)


@pytest.mark.parametrize("case", ["new-store", "other-folder", "unmarked"])
async def test_nothing_is_removed_where_store_and_folder_do_not_belong_together(
    case: str, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for path in (first, second):
        path.mkdir()
    ids = await filled(first)
    path = folder(first)
    if case == "new-store":
        (first / "q.sqlite").unlink()
    elif case == "other-folder":
        await filled(second)
        config = configured(second, store={"files": str(folder(first))})
        with pytest.raises(QlmError, match=r"gateway\.store\.files"):
            async with opened(config):
                pass
    else:
        (folder(first) / "store").unlink()
        altered(first, "DELETE FROM facts WHERE name = 'files_mark'")
        altered(first, "DELETE FROM files")
    if case != "other-folder":
        with pytest.raises(QlmError, match=r"gateway\.store\.files.*of its own"):
            async with opened(configured(first)):
                pass
    assert on_disk(path) == sorted(ids)


@pytest.mark.parametrize("name", ["incoming/x", "batches/x", "notes.txt"])
async def test_a_folder_that_is_somebody_elses_is_left_alone(name: str, tmp_path: Path) -> None:
    theirs = folder(tmp_path) / name
    theirs.parent.mkdir(parents=True)
    theirs.write_text("x")
    with pytest.raises(QlmError, match=r"gateway\.store\.files"):
        async with opened(configured(tmp_path)):
            pass
    assert theirs.read_text() == "x"
    assert on_disk(folder(tmp_path)) == [theirs.name]


async def test_a_start_that_died_and_an_empty_disk_are_no_obstacle(tmp_path: Path) -> None:
    (folder(tmp_path) / "lost+found").mkdir(parents=True)
    (folder(tmp_path) / "store.new").write_text("")
    async with opened(configured(tmp_path)) as files:
        await made(files)


async def test_a_gateway_that_does_not_start_removes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").write_text("x")
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(QlmError, match="http_listen"):
            async with running(config(http_listen=f"127.0.0.1:{port}")):
                pass
    assert (tmp_path / "mine").read_text() == "x"


async def test_a_folder_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    folder(tmp_path).write_text("a file")
    with pytest.raises(QlmError, match=r"gateway\.store\.files: cannot use .*q\.sqlite\.files"):
        async with opened(configured(tmp_path)):
            pass


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("bytes_count", -5),
        ("bytes_count", b"\xff"),
        ("created_unix_s", "soon"),
        ("filename", b"\xff\xfe"),
        ("expires_unix_s", "x"),
        ("purpose", 7),
    ],
)
async def test_a_row_that_cannot_be_read_costs_the_others_nothing(
    column: str, value: object, tmp_path: Path
) -> None:
    odd, *others = await filled(tmp_path)
    altered(tmp_path, f"UPDATE files SET {column} = ? WHERE id = ?", value, odd)
    async with opened(configured(tmp_path)) as files:
        page = await files.list(ADMIN)
        listed = [file.id for file in page.files]
        assert [id for id in listed if id != odd] == others[::-1]
        if odd not in listed:
            with pytest.raises(NotFound):
                await files.find(odd, ADMIN)
        await made(files)
    assert odd in on_disk(folder(tmp_path))


async def test_a_store_of_version_3_gets_its_tables(tmp_path: Path) -> None:
    await filled(tmp_path, count=0)
    for statement in (
        "DROP TABLE files",
        "DROP INDEX requests_owned_ended",
        "ALTER TABLE requests DROP COLUMN owner",
        "PRAGMA user_version = 3",
    ):
        altered(tmp_path, statement)
    async with opened(configured(tmp_path)) as files:
        assert (await made(files)).filename == "in.jsonl"


async def test_the_files_of_a_memory_store_go_with_it(tmp_path: Path) -> None:
    within = tmp_path / "there"
    config = configured(tmp_path, store={"kind": "memory", "files": str(within)})
    async with opened(config) as files:
        kept = await made(files, purpose=USER_DATA)
        assert on_disk(within) == [kept.id]
    assert list(within.iterdir()) == []
