"""A real gateway on stores in trouble: expired requests, odd rows, a damaged file, a full disk, a stepped clock."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import grpc
import msgspec
import pytest
from msgspec.structs import replace

from gateway.store import SqliteStore
from protos.qlm.v1 import client_service_pb2 as pb
from protos.qlm.v1 import client_service_pb2_grpc as rpc
from protos.qlm.v1 import types_pb2 as types
from qlm import config_file, fleet
from qlm.service import READY
from qlm_core.config import Config
from qlm_core.endpoint import Endpoint
from qlm_core.model import ModelName
from tests.gateway.test_store import end, request
from tests.processes.conftest import MODEL, PATIENCE_S, body, new_request

FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")
DISK_BYTES = 4 * 1024 * 1024


def configured(folder: Path, *overrides: str) -> tuple[Config, list[str]]:
    """A configuration of a gateway alone, and the command that starts it."""
    config = fleet.temporary_config(folder, ["agents=[]", *overrides])
    file = folder / "config.yaml"
    file.write_text(config_file.to_yaml(config, redact=False))
    return config, [sys.executable, "-m", "qlm", "gateway", "--config", str(file)]


@contextmanager
def serving(command: list[str], env: Mapping[str, str] | None = None) -> Iterator[None]:
    """That gateway while the block runs; it must outlive the block."""
    process = subprocess.Popen(
        [*command, "--supervised"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | (env or {}),
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline().strip() == READY
        yield
        assert process.poll() is None
    finally:
        process.stdin.close()
        process.wait(PATIENCE_S)
        process.stdout.close()


def ended(command: list[str]) -> subprocess.CompletedProcess[str]:
    """That gateway once it has given up."""
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)


def scribble(path: Path) -> None:
    """Damage a file in the middle."""
    with path.open("r+b") as file:
        file.seek(3 * 4096)
        file.write(b"\xa5" * 8 * 4096)


def fill_up(path: Path) -> None:
    """Leave no room on the file system of this file."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)


async def fill(config: Config, *ids: str, expires_in_s: float = 3600.0) -> None:
    """Put requests into its store that wait."""
    store = SqliteStore(config.gateway.store.path)
    await store.open()
    now = time.time()
    for id in ids:
        made = replace(
            request(id), endpoint=Endpoint.COMPLETIONS, model=ModelName(MODEL), body=body(5)
        )
        await store.add(replace(made, arrived_at=now, expires_at=now + expires_in_s))
    await store.close()


async def view_of(config: Config, id: str) -> tuple[int, dict[str, object]]:
    url = f"http://{config.gateway.http_listen}/v1/requests/{id}"
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        return answer.status, msgspec.json.decode(await answer.read())


async def until_shed(config: Config, id: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while (await view_of(config, id))[1]["phase"] != "shed":  # noqa: ASYNC110 (in another process)
            await asyncio.sleep(0.02)


async def test_a_gateway_starts_on_requests_that_expired_and_on_rows_that_cannot_be_read(
    tmp_path: Path,
) -> None:
    config, command = configured(tmp_path)
    await fill(config, "late", "later", expires_in_s=-3.0)
    await fill(config, "odd", "sound")
    with sqlite3.connect(config.gateway.store.path) as connection:
        connection.execute("UPDATE requests SET body = x'7b' WHERE id = 'odd'")
    connection.close()
    for _ in range(2):
        with serving(command):
            for id in ("late", "later"):
                await until_shed(config, id)
            assert (await view_of(config, "odd"))[0] == 500
            assert (await view_of(config, "sound"))[1]["phase"] == "waiting"


async def test_a_store_that_cannot_be_used_is_one_line_and_status_2(tmp_path: Path) -> None:
    config, command = configured(tmp_path)
    path = Path(config.gateway.store.path)
    await fill(config, *(f"{number:0100}" for number in range(200)))
    scribble(path)
    result = await asyncio.to_thread(ended, command)
    assert result.returncode == 2
    (line,) = [one for one in result.stderr.splitlines() if "error" in one]
    assert line.startswith("qlm: error: gateway.store.path: ")
    assert str(path) in line
    assert "Traceback" not in result.stderr


async def test_a_second_gateway_on_the_same_store_is_refused(tmp_path: Path) -> None:
    config, command = configured(tmp_path)
    second = tmp_path / "second"
    second.mkdir()
    _, command_2 = configured(second, f"gateway.store.path={config.gateway.store.path}")
    # The paths that a temporary fleet gets come after what overrides them.
    file = Path(command_2[-1])
    own = str(second / "qlm.sqlite")
    file.write_text(file.read_text().replace(own, config.gateway.store.path))
    with serving(command):
        result = await asyncio.to_thread(ended, command_2)
        assert result.returncode == 2
        assert f"another gateway has {config.gateway.store.path} open" in result.stderr


@pytest.mark.skipif(not FAKETIME.exists(), reason="libfaketime is not installed")
@pytest.mark.parametrize("offset", ["+25h", "-25h"])
async def test_a_clock_that_is_a_day_off_deletes_no_answers(offset: str, tmp_path: Path) -> None:
    config, command = configured(tmp_path)
    await fill(config, "done", "open", expires_in_s=20 * 3600.0)
    store = SqliteStore(config.gateway.store.path)
    await store.open()
    await store.end(replace(end("done"), ended_at=time.time()))
    await store.close()
    with serving(command):
        assert (await view_of(config, "done"))[0] == 200
    stepped = {"LD_PRELOAD": str(FAKETIME), "FAKETIME": offset, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    with serving(command, stepped):
        # Old answers are swept away from the first moment on.
        async with grpc.aio.insecure_channel(config.gateway.grpc_listen) as channel:
            stub = rpc.ClientServiceStub(channel)
            await stub.Enqueue(pb.EnqueueRequest(request=new_request(1, 1)), wait_for_ready=True)
        assert (await view_of(config, "done"))[1]["phase"] == "finished"
        assert (await view_of(config, "open"))[1]["phase"] == "waiting"


@contextmanager
def small_disk(path: Path) -> Iterator[None]:
    """A file system of a few megabytes, where this machine lets tests have one."""
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(path)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("only root can mount a small file system")
    try:
        yield
    finally:
        subprocess.run(["umount", str(path)], check=True)


async def test_a_disk_that_fills_up_refuses_requests_until_there_is_room(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk):
        config, command = configured(disk)
        large = replace_body(new_request(1, 1), 200_000)
        with serving(command):
            async with grpc.aio.insecure_channel(config.gateway.grpc_listen) as channel:
                stub = rpc.ClientServiceStub(channel)
                first = await stub.Enqueue(
                    pb.EnqueueRequest(request=new_request(0, 1)), wait_for_ready=True
                )
                filler = disk / "filler"
                fill_up(filler)
                for _ in range(3):
                    with pytest.raises(grpc.aio.AioRpcError) as caught:
                        await stub.Enqueue(pb.EnqueueRequest(request=large))
                    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
                assert (await view_of(config, first.accepted.id))[1]["phase"] == "waiting"
                cancelling = asyncio.ensure_future(
                    stub.CancelRequest(pb.CancelRequestRequest(id=first.accepted.id))
                )
                # Its end is tried, and kept until there is room; whether it fits already is not ours to say.
                await asyncio.wait([cancelling], timeout=0.2)
                filler.unlink()
                async with asyncio.timeout(PATIENCE_S):
                    assert (await cancelling).phase == types.PHASE_CANCELLED
                    kept = await stub.Enqueue(pb.EnqueueRequest(request=large))
        with serving(command):
            assert (await view_of(config, first.accepted.id))[1]["phase"] == "cancelled"
            assert (await view_of(config, kept.accepted.id))[1]["phase"] == "waiting"


def replace_body(new: pb.NewRequest, size: int) -> pb.NewRequest:
    new.body_json = body(1, prompt="x" * size)
    return new
