"""The store of files: whole or not at all, whose they are, lists, expiry, and quotas."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import failpoints
from gateway.files import BATCH, BATCH_OUTPUT, USER_DATA, FileStore, StoredFile
from gateway.files.disk import Growing, Reading
from gateway.files.upload import WRITE_BYTES, Upload
from gateway.keys import Caller
from qlm_core.errors import InvalidRequest, NoRoom, NotFound, Unavailable
from tests.files.beds import ADMIN, ALICE, BOB, Clock, configured, gauges, made, on_disk, opened
from tests.files.forms import LINES
from tests.gateway.peers import soon


@pytest.fixture(params=["sqlite", "memory"])
async def files(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[FileStore]:
    store = {"kind": request.param, "files": str(tmp_path / "files")}
    async with opened(configured(tmp_path, store=store)) as it:
        yield it


@pytest.fixture
def failing() -> Iterator[Any]:
    yield failpoints.arm
    failpoints.arm("")


async def bytes_of(files: FileStore, file: StoredFile) -> bytes:
    async with files.reading(file) as read:
        return await read(0, file.bytes_count + 1)


async def ids(files: FileStore, caller: Caller = ADMIN, **asked: Any) -> list[str]:
    return [file.id for file in (await files.list(caller, **asked)).files]


# --------------------------------------------------------------------------- one file


async def test_a_file_is_kept_exactly(files: FileStore) -> None:
    data = LINES * (3 * WRITE_BYTES // len(LINES)) + b"\r\n\0 the end"
    before = int(time.time())
    async with await files.create(owner="alice", purpose=BATCH, filename="a.jsonl") as upload:
        for at in range(0, len(data), 100_000):
            await upload.write(data[at : at + 100_000])
        kept = await upload.commit()
    assert (kept.owner, kept.purpose, kept.filename) == ("alice", BATCH, "a.jsonl")
    assert kept.bytes_count == len(data)
    assert before <= kept.created_unix_s <= time.time()
    assert await files.find(kept.id, ALICE) == kept
    assert files.path(kept).read_bytes() == await bytes_of(files, kept) == data
    async with files.reading(kept) as read:
        assert await read(5, 7) == data[5:12]
    assert gauges(files)["qlm_files"] == 1
    assert gauges(files)["qlm_file_bytes"] == len(data)


async def test_of_a_file_that_is_not_committed_nothing_is_left(
    files: FileStore, tmp_path: Path
) -> None:
    async with await files.create(owner="alice", purpose=BATCH, filename="a.jsonl") as upload:
        await upload.write(LINES * 20_000)
        assert len(on_disk(tmp_path / "files")) == 1
        assert gauges(files)["qlm_file_bytes"] == 20_000 * len(LINES)
    assert on_disk(tmp_path / "files") == []
    assert gauges(files)["qlm_files"] == gauges(files)["qlm_file_bytes"] == 0
    await upload.abort()
    assert await ids(files) == []


async def test_a_file_is_deleted_with_its_bytes(files: FileStore, tmp_path: Path) -> None:
    kept, other = await made(files), await made(files)
    async with files.reading(kept) as read:
        await files.delete(kept.id, ALICE)
        # Who reads it reads on.
        assert await read(0, 1_000) == LINES
    assert on_disk(tmp_path / "files") == [other.id]
    assert gauges(files)["qlm_files"] == 1
    assert gauges(files)["qlm_file_bytes"] == len(LINES)
    with pytest.raises(NotFound):
        await files.delete(kept.id, ALICE)


async def test_another_tenants_file_is_as_one_that_never_was(files: FileStore) -> None:
    kept = await made(files)
    unknown = files.new_id()
    for work in (files.find, files.delete):
        messages = []
        for id in (kept.id, unknown):
            with pytest.raises(NotFound) as raised:
                await work(id, BOB)
            messages.append(str(raised.value).replace(id, "ID"))
        assert messages[0] == messages[1]
    for id in ("", "file-", "../q.sqlite", "file-../../x", "x" * 10_000):
        with pytest.raises(NotFound):
            await files.find(id, ADMIN)
    assert await files.find(kept.id, ADMIN) == kept
    assert await ids(files, BOB) == []
    await files.delete(kept.id, ADMIN)


async def test_a_client_that_leaves_while_its_file_is_written_leaves_nothing(
    files: FileStore, tmp_path: Path, failing: Any, caplog: pytest.LogCaptureFixture
) -> None:
    failing("gateway.files.writing=delay:0.5")

    async def upload() -> None:
        async with await files.create(owner="a", purpose=BATCH, filename="a.jsonl") as upload:
            await upload.write(b"x" * WRITE_BYTES)
            raise AssertionError("it should have been cancelled")

    task = asyncio.create_task(upload())
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert on_disk(tmp_path / "files") == []
    assert gauges(files)["qlm_file_bytes"] == 0
    # What was being written was written to its end, and not into a file that was closed.
    await files.close()
    assert [record.message for record in caplog.records] == []


async def committed(upload: Upload) -> None:
    async with upload:
        await upload.commit()


@pytest.mark.parametrize("what", ["shelf.Growing", "store.Reading"])
async def test_a_client_that_leaves_while_a_file_is_opened_leaves_nothing_open(
    what: str, files: FileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = await made(files)
    kind = Growing if what == "shelf.Growing" else Reading
    closed: list[object] = []

    class Slow(kind):  # type: ignore[misc,valid-type]
        def __init__(self, *given: object) -> None:
            time.sleep(0.5)
            super().__init__(*given)

        def close(self) -> None:
            super().close()
            closed.append(self)

    monkeypatch.setattr(f"gateway.files.{what}", Slow)

    async def work() -> None:
        if what == "shelf.Growing":
            await files.create(owner="alice", purpose=BATCH, filename="a.jsonl")
        async with files.reading(kept):
            raise AssertionError("it should have been cancelled")

    task = asyncio.create_task(work())
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await soon(lambda: closed)
    assert on_disk(tmp_path / "files") == [kept.id]
    assert gauges(files)["qlm_files"] == 1


async def test_a_client_that_leaves_while_its_file_is_committed_has_it_or_not(
    files: FileStore, tmp_path: Path
) -> None:
    for steps in range(1, 12):
        upload = await files.create(owner="alice", purpose=BATCH, filename="a.jsonl")
        await upload.write(LINES)

        task = asyncio.create_task(committed(upload))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert on_disk(tmp_path / "files") == sorted(await ids(files))
        assert gauges(files)["qlm_files"] == len(await ids(files))


async def test_of_a_file_whose_row_is_not_taken_nothing_is_left(
    tmp_path: Path, failing: Any
) -> None:
    async with opened(configured(tmp_path)) as files:
        failing("gateway.store.before_commit=error")
        with pytest.raises(Unavailable):
            await made(files)
        assert on_disk(tmp_path / "q.sqlite.files") == []
        assert gauges(files)["qlm_files"] == 0
        kept = await made(files)
        failing("gateway.store.before_commit=error")
        with pytest.raises(Unavailable):
            await files.delete(kept.id, ALICE)
        assert await bytes_of(files, kept) == LINES


# --------------------------------------------------------------------------- what a batch writes


async def test_what_a_batch_wrote_becomes_a_file_once(files: FileStore, tmp_path: Path) -> None:
    id = files.new_id()
    source = files.workspace("batches") / "b.jsonl"
    source.write_bytes(LINES)
    kept = await files.put(source, owner="alice", filename="out.jsonl", id=id)
    assert (kept.id, kept.purpose, kept.expires_unix_s) == (id, BATCH_OUTPUT, None)
    assert await bytes_of(files, kept) == LINES
    # Again, as after a crash in between: what is there is the file, whatever the source says.
    source.write_bytes(b"more")
    assert await files.put(source, owner="alice", filename="out.jsonl", id=id) == kept
    assert await bytes_of(files, kept) == LINES
    assert on_disk(tmp_path / "files") == [id]
    assert gauges(files)["qlm_file_bytes"] == len(LINES)
    with pytest.raises(Unavailable):
        await files.put(source, owner="alice", filename="out.jsonl")


async def test_a_put_that_fails_can_be_made_again(
    files: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = files.new_id()
    source = files.workspace("batches") / "b.jsonl"
    source.write_bytes(LINES)

    async def broken(*_: object) -> None:
        raise Unavailable("the store failed")

    with monkeypatch.context() as patch:
        patch.setattr(files._opened, "_insert", broken)
        with pytest.raises(Unavailable):
            await files.put(source, owner="alice", filename="out.jsonl", id=id)
    with pytest.raises(NotFound):
        await files.find(id, ADMIN)
    kept = await files.put(source, owner="alice", filename="out.jsonl", id=id)
    assert await bytes_of(files, kept) == LINES
    assert not source.exists()


async def test_an_upload_with_an_id_is_made_once(files: FileStore, tmp_path: Path) -> None:
    id = files.new_id()
    first = await made(files, id=id)
    assert first.id == id
    assert await made(files, LINES * 2, id=id) == first
    assert await bytes_of(files, first) == LINES
    assert on_disk(tmp_path / "files") == [id]
    assert gauges(files)["qlm_files"] == 1


# --------------------------------------------------------------------------- lists


async def test_files_are_listed_in_order_and_in_pages(files: FileStore) -> None:
    kept = [(await made(files, purpose=purpose)).id for purpose in [BATCH, USER_DATA] * 3]
    await made(files, owner="bob")
    assert await ids(files, ALICE) == kept[::-1]
    assert await ids(files, ALICE, newest_first=False) == kept
    assert await ids(files, ALICE, purpose=USER_DATA, newest_first=False) == kept[1::2]
    assert len(await ids(files, ADMIN)) == 7
    page = await files.list(ALICE, limit=4)
    assert ([file.id for file in page.files], page.has_more) == (kept[:1:-1], True)
    page = await files.list(ALICE, limit=2, after=kept[2])
    assert ([file.id for file in page.files], page.has_more) == ([kept[1], kept[0]], False)
    # Who deletes while going through the pages misses nothing.
    await files.delete(kept[2], ALICE)
    assert await ids(files, ALICE, after=kept[2]) == [kept[1], kept[0]]


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(limit=st.integers(1, 9), newest_first=st.booleans(), deletes=st.booleans())
async def test_pages_are_the_whole_list(
    files: FileStore, limit: int, newest_first: bool, deletes: bool
) -> None:
    while len(await ids(files)) < 7:
        await made(files)
    whole = await ids(files, newest_first=newest_first)
    found: list[str] = []
    more = True
    while more:
        page = await files.list(
            ADMIN, limit=limit, newest_first=newest_first, after=found[-1] if found else ""
        )
        found += [file.id for file in page.files]
        more = page.has_more
        assert 0 < len(page.files) <= limit
        if deletes:
            await files.delete(found[-1], ADMIN)
    assert found == whole


async def test_ids_grow_even_where_the_clock_steps_back(
    files: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await made(files)
    monkeypatch.setattr("time.time", lambda: 1_000.0)
    second = await made(files)
    assert second.id > first.id
    assert second.created_unix_s == 1_000


# --------------------------------------------------------------------------- expiry


async def test_files_expire_by_the_stores_clock(tmp_path: Path) -> None:
    clock = Clock()
    config = configured(tmp_path, batch_expires_s=1_000.0)
    folder = tmp_path / "q.sqlite.files"
    async with opened(config, clock) as files:
        usual = await made(files)
        soon = await made(files, expires_in_s=100.0)
        never = await made(files, purpose=USER_DATA)
        assert soon.expires_unix_s == soon.created_unix_s + 100
        assert usual.expires_unix_s == usual.created_unix_s + 1_000
        assert never.expires_unix_s is None
        clock.now_s += 99.0
        assert await files.find(soon.id, ALICE) == soon
        assert await files.sweep() == 0
        clock.now_s += 1.0
        # Gone for everybody at once, and its bytes when it is swept.
        with pytest.raises(NotFound):
            await files.find(soon.id, ADMIN)
        assert await ids(files) == [never.id, usual.id]
        assert on_disk(folder) == sorted([usual.id, soon.id, never.id])
        assert await files.sweep() == 1
        assert on_disk(folder) == sorted([usual.id, never.id])
        assert gauges(files)["qlm_files"] == 2
        clock.now_s += 1e9
        assert await files.sweep() == 1
        assert await ids(files) == [never.id]


async def test_expired_files_are_swept_from_time_to_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    async with opened(configured(tmp_path), clock) as files:
        for _ in range(3):
            await made(files, expires_in_s=10.0)
        monkeypatch.setattr("gateway.files.rows._SWEPT_MAX", 2)
        clock.now_s += 11.0
        running = asyncio.create_task(files.run())
        async with asyncio.timeout(5.0):
            while gauges(files)["qlm_files"]:  # noqa: ASYNC110 (a sweep tells nobody)
                await asyncio.sleep(0.01)
        running.cancel()


async def test_no_expiry_of_inputs_and_an_expiry_of_outputs_by_configuration(
    tmp_path: Path,
) -> None:
    config = configured(tmp_path, batch_expires_s=0.0, output_expires_s=60.0)
    async with opened(config) as files:
        assert (await made(files)).expires_unix_s is None
        source = files.workspace("batches") / "b"
        source.write_bytes(b"x")
        put = await files.put(source, owner="alice", filename="o.jsonl")
        assert put.expires_unix_s == put.created_unix_s + 60
        source.write_bytes(b"x")
        put = await files.put(source, owner="alice", filename="o.jsonl", expires_in_s=7_200.0)
        assert put.expires_unix_s == put.created_unix_s + 7_200


# --------------------------------------------------------------------------- quotas and checks


async def test_a_tenant_has_a_quota_of_its_own(tmp_path: Path) -> None:
    config = configured(tmp_path, tenant_bytes_max=1_000, tenant_files_max=3)
    async with opened(config) as files:
        first = await made(files, b"x" * 600, purpose=USER_DATA)
        with pytest.raises(InvalidRequest, match="tenant_bytes_max") as raised:
            await made(files, b"x" * 401, purpose=USER_DATA)
        assert raised.value.code == "file_quota_exceeded"
        assert gauges(files)["qlm_file_bytes"] == 600
        await made(files, b"x" * 1_000, owner="bob", purpose=USER_DATA)
        await made(files, b"x" * 400, purpose=USER_DATA)
        await made(files, b"", purpose=USER_DATA)
        with pytest.raises(InvalidRequest, match="tenant_files_max"):
            await made(files, b"", purpose=USER_DATA)
        await files.delete(first.id, ALICE)
        await made(files, b"x" * 600, purpose=USER_DATA)
    # What is kept counts after a restart as well.
    async with opened(config) as files:
        with pytest.raises(InvalidRequest, match="tenant_files_max"):
            await made(files, b"", purpose=USER_DATA)
        # An answer that was worked for is kept all the same.
        source = files.workspace("batches") / "b"
        source.write_bytes(b"x" * 5_000)
        await files.put(source, owner="alice", filename="o.jsonl")
        assert gauges(files)["qlm_file_bytes"] == 7_000


@pytest.mark.parametrize("limit", ["total_bytes_max", "total_files_max"])
async def test_all_tenants_together_have_a_quota(limit: str, tmp_path: Path) -> None:
    async with opened(configured(tmp_path, **{limit: 1})) as files:
        await made(files, b"x", purpose=USER_DATA)
        with pytest.raises(NoRoom, match=limit):
            await made(files, b"x", purpose=USER_DATA, owner="bob")


async def test_a_file_has_a_size_by_its_purpose(tmp_path: Path) -> None:
    config = configured(tmp_path, batch_file_bytes_max=1_000, file_bytes_max=2_000)
    async with opened(config) as files:
        await made(files, b"x" * 2_000, purpose=USER_DATA)
        for purpose, size in ((USER_DATA, 2_001), (BATCH, 1_001), ("", 2_001)):
            with pytest.raises(InvalidRequest) as raised:
                await made(files, b"x" * size, purpose=purpose)
            assert raised.value.code == "file_too_large"
        # One that turns out to be a batch's.
        async with await files.create(owner="alice", purpose="", filename="a.jsonl") as upload:
            await upload.write(LINES * 20)
            upload.purpose = BATCH
            with pytest.raises(InvalidRequest, match="batch_file_bytes_max"):
                await upload.commit()
        assert gauges(files)["qlm_files"] == 1


@pytest.mark.parametrize(
    ("filename", "data", "message"),
    [
        ("a.json", LINES, "Invalid file format for Batch API. Must be .jsonl"),
        ("jsonl", LINES, "Invalid file format for Batch API. Must be .jsonl"),
        ("a.jsonl", b"", "The file is empty."),
        ("a.jsonl", b" \n\r\n\t\n", "The file is empty."),
        ("a.jsonl", b"\xef\xbb\xbf", "The file is empty."),
        ("a.jsonl", b"no json\n" + LINES, "Invalid file format for Batch API."),
        ("a.jsonl", b'\n\n{"a": \n' + LINES, "Invalid file format for Batch API."),
        ("a.jsonl", b"[" * 100_000, "Invalid file format for Batch API."),
        ("a.jsonl", b'"' + b"x" * 9_000_000 + b'"', "Invalid file format for Batch API."),
        ("a.jsonl", b'"\xff"', "Invalid file format for Batch API."),
    ],
    ids=["json", "no-dot", "empty", "blank", "bom", "text", "cut", "deep", "long", "latin-1"],
)
async def test_an_input_of_batches_is_looked_at(
    filename: str, data: bytes, message: str, tmp_path: Path
) -> None:
    async with opened(configured(tmp_path)) as files:
        with pytest.raises(InvalidRequest) as raised:
            await made(files, data, filename=filename)
        assert str(raised.value).startswith(message)
        assert (raised.value.code, raised.value.field) == ("", "")
        assert on_disk(tmp_path / "q.sqlite.files") == []
        assert gauges(files)["qlm_files"] == 0
        # For anything else it is good enough.
        await made(files, data, filename=filename, purpose=USER_DATA)


@pytest.mark.parametrize(
    ("filename", "data"),
    [
        ("a.JSONL", LINES),
        ("a.jsonl", b"\r\n  \n" + LINES),
        ("a.jsonl", b"\xef\xbb\xbf" + LINES),
        ("a.jsonl", b"{}"),
        ("a.jsonl", LINES + b"faults of later lines are told by the batch"),
    ],
)
async def test_what_openai_takes_is_taken(filename: str, data: bytes, tmp_path: Path) -> None:
    async with opened(configured(tmp_path)) as files:
        assert await bytes_of(files, await made(files, data, filename=filename)) == data
