"""Files of a real gateway that is killed at every moment of an upload, and of one whose disk is full."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

import failpoints
from gateway.files import StoredFile
from gateway.files.upload import WRITE_BYTES
from qlm.service import READY
from qlm_core.config import Config
from tests.files.beds import ALICE, on_disk, opened
from tests.files.beds import configured as files_configured
from tests.files.forms import CONTENT_TYPE, LINES, field, file, form
from tests.processes.conftest import PATIENCE_S
from tests.processes.test_stores import configured, fill_up, serving, small_disk

DATA = LINES * (2 * WRITE_BYTES // len(LINES))
FORM = form(field("purpose", "batch"), file(DATA))


@contextmanager
def dying(command: list[str], rules: str = "") -> Iterator[subprocess.Popen[str]]:
    """That gateway until it is killed, by a rule or by the test."""
    process = subprocess.Popen(
        [*command, "--supervised"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {failpoints.VARIABLE: rules},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline().strip() == READY
        yield process
        assert process.wait(PATIENCE_S) == -signal.SIGKILL
    finally:
        process.kill()
        process.wait(PATIENCE_S)
        process.stdin.close()
        process.stdout.close()


def url(config: Config, path: str = "") -> str:
    return f"http://{config.gateway.http_listen}/v1/files{path}"


async def sent(config: Config, data: bytes = FORM) -> tuple[int, Any]:
    """Upload a form; status and answer."""
    headers = {"content-type": CONTENT_TYPE}
    async with (
        aiohttp.ClientSession() as session,
        session.post(url(config), data=io.BytesIO(data), headers=headers) as answer,
    ):
        return answer.status, msgspec.json.decode(await answer.read())


async def kept(config: Config) -> dict[str, bytes]:
    """All files of a gateway: their bytes by their ids."""
    async with aiohttp.ClientSession() as session:
        async with session.get(url(config)) as answer:
            listed = msgspec.json.decode(await answer.read())["data"]
        found = {}
        for one in listed:
            async with session.get(url(config, f"/{one['id']}/content")) as answer:
                assert answer.status == 200
                found[one["id"]] = await answer.read()
        return found


def folder(config: Config) -> Path:
    return Path(f"{config.gateway.store.path}.files")


@pytest.mark.parametrize(
    ("rule", "there"),
    [
        ("gateway.files.writing=kill", False),
        ("gateway.files.writing=kill@2", False),
        ("gateway.files.received=kill", False),
        ("gateway.files.renamed=kill", False),
        ("gateway.files.stored=kill", True),
    ],
)
async def test_dying_in_an_upload_leaves_it_whole_or_not_at_all(
    rule: str, there: bool, tmp_path: Path
) -> None:
    config, command = configured(tmp_path)
    with serving(command):
        status, first = await sent(config)
        assert status == 200
    with dying(command, rule), pytest.raises(aiohttp.ClientError):
        await sent(config)
    with serving(command):
        found = await kept(config)
        assert found.pop(first["id"]) == DATA
        assert list(found.values()) == ([DATA] if there else [])
        assert on_disk(folder(config)) == sorted([first["id"], *found])
        assert (await sent(config))[0] == 200


async def test_a_gateway_that_is_killed_in_the_middle_of_an_upload_leaves_nothing(
    tmp_path: Path,
) -> None:
    config, command = configured(tmp_path)
    host, port = config.gateway.http_listen.split(":")
    head = (
        f"POST /v1/files HTTP/1.1\r\nhost: x\r\ncontent-type: {CONTENT_TYPE}\r\n"
        f"content-length: {len(FORM)}\r\n\r\n"
    )
    with dying(command) as process:
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(head.encode() + FORM[: WRITE_BYTES + 100_000])
        async with asyncio.timeout(PATIENCE_S):
            while not any(path.stat().st_size for path in (folder(config) / "incoming").iterdir()):  # noqa: ASYNC110 (in another process)
                await asyncio.sleep(0.01)
        process.kill()
        writer.close()
    assert len(on_disk(folder(config))) == 1
    with serving(command):
        assert await kept(config) == {}
        assert on_disk(folder(config)) == []


async def test_dying_in_a_deletion_deletes(tmp_path: Path) -> None:
    config, command = configured(tmp_path)
    with dying(command, "gateway.files.deleting=kill"):
        (_, first), (_, second) = await sent(config), await sent(config)
        async with aiohttp.ClientSession() as session:
            with pytest.raises(aiohttp.ClientError):
                await session.delete(url(config, f"/{first['id']}"))
    assert on_disk(folder(config)) == sorted([first["id"], second["id"]])
    with serving(command):
        assert await kept(config) == {second["id"]: DATA}
        assert on_disk(folder(config)) == [second["id"]]


PUTTING = """
import asyncio, sys
from pathlib import Path
from gateway.files import FileStore
from tests.files.beds import configured, opened

async def put(path, id):
    async with opened(configured(Path(path))) as files:
        await files.put(files.workspace("batches") / "out", owner="alice", filename="o.jsonl", id=id)

asyncio.run(put(*sys.argv[1:]))
"""


@pytest.mark.parametrize(
    "rule",
    [
        "gateway.files.adopted=kill",
        "gateway.store.before_commit=kill@2",
        "gateway.store.after_commit=kill@2",
    ],
)
async def test_what_a_batch_wrote_is_put_once_however_often_it_dies(
    rule: str, tmp_path: Path
) -> None:
    async with opened(files_configured(tmp_path)) as files:
        id = files.new_id()
        (files.workspace("batches") / "out").write_bytes(LINES)
    environment = os.environ | {failpoints.VARIABLE: rule}
    command = [sys.executable, "-c", PUTTING, str(tmp_path), id]
    for _ in range(2):
        done = await asyncio.to_thread(subprocess.run, command, env=environment)
        assert done.returncode in (0, -signal.SIGKILL)
    async with opened(files_configured(tmp_path)) as files:
        source = files.workspace("batches") / "out"
        put: StoredFile = await files.put(source, owner="alice", filename="o.jsonl", id=id)
        assert (await files.list(ALICE)).files == [put]
        assert files.path(put).read_bytes() == LINES
        assert on_disk(tmp_path / "q.sqlite.files") == [id]


async def test_a_disk_that_is_full_takes_no_file_and_serves_what_it_has(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk):
        config, command = configured(disk, "gateway.files.disk_free_bytes_min=0")
        with serving(command):
            status, first = await sent(config)
            assert status == 200
            filler = disk / "filler"
            fill_up(filler)
            for _ in range(2):
                status, answer = await sent(config)
                assert (status, answer["error"]["code"]) == (507, "no_room")
            assert on_disk(folder(config)) == [first["id"]]
            assert await kept(config) == {first["id"]: DATA}
            filler.unlink()
            assert (await sent(config))[0] == 200
        with serving(command):
            assert set((await kept(config)).values()) == {DATA}
