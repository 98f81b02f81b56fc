"""kill -9 of a gateway between a batch's end and its receiver: each is told, under one id, and nothing is kept for ever."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import sqlite3
import sys
from pathlib import Path

import msgspec
import pytest

import failpoints
from qlm.fleet import Running
from tests.processes.conftest import MODEL, PATIENCE_S
from tests.processes.test_batches import line, running
from tests.webhooks.beds import SECRET, Receiver, receiver


def telling(there: Receiver) -> str:
    return f"gateway.webhooks={msgspec.json.encode([there.config()]).decode()}"


def lines(count: int) -> bytes:
    return b"\n".join(msgspec.json.encode(line(number, 20)) for number in range(count))


async def until_nothing_is_kept(made: Running) -> None:
    path = made.config.gateway.store.path
    async with asyncio.timeout(PATIENCE_S):
        while True:
            with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as store:
                (kept,) = store.execute("SELECT count(*) FROM webhook_deliveries").fetchone()
            if not kept:
                return
            await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    "moment",
    [
        "gateway.batches.written",
        "gateway.batches.closed",
        "gateway.webhooks.told",
        "gateway.webhooks.sent",
    ],
)
async def test_the_end_of_a_batch_is_told_although_its_gateway_dies_at(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(failpoints.VARIABLE, f"{moment}=kill")
    async with receiver() as there, running(tmp_path, telling(there)) as (made, client):
        monkeypatch.delenv(failpoints.VARIABLE)
        batch = await client.until_over(await client.create(lines(3)))
        assert batch.status == "completed"
        count = 2 if moment == "gateway.webhooks.sent" else 1
        got = await there.until(count)
        await until_nothing_is_kept(made)
        assert made.supervisor.restarts("gateway") == 1
        assert len(got) == count
        assert len({(each.id, each.body) for each in got}) == 1
        event = got[0].unwrap()
        assert event.type == "batch.completed"
        assert (event.data.id, event.created_at) == (batch.id, batch.completed_at)


async def test_what_waits_for_a_receiver_outlives_gateways(tmp_path: Path) -> None:
    async with receiver() as there, running(tmp_path, telling(there)) as (made, client):
        there.answer = 500
        batches = []
        for number in range(3):
            data = lines(number + 1)
            file = await client.client.files.create(file=("in.jsonl", data), purpose="batch")
            batch = await client.client.batches.create(
                input_file_id=file.id, endpoint="/v1/completions", completion_window="24h"
            )
            batches.append((await client.until_over(batch)).id)
            pid = made.supervisor.pid("gateway")
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            async with asyncio.timeout(PATIENCE_S):
                await made.supervisor.until_ready("gateway")
        there.answer = 200
        await until_nothing_is_kept(made)
        taken = {each.unwrap().data.id for each in there.got}  # type: ignore[union-attr]
        assert taken == set(batches)
        assert len({each.id for each in there.got}) == 3


@pytest.mark.parametrize("moment", ["gateway.driver.end_recorded", "gateway.webhooks.told"])
async def test_the_end_of_a_response_is_told_although_its_gateway_dies_at(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(failpoints.VARIABLE, f"{moment}=kill")
    async with receiver() as there, running(tmp_path, telling(there)) as (made, client):
        monkeypatch.delenv(failpoints.VARIABLE)
        response = await client.client.responses.create(
            model=MODEL, input="A question of the night.", background=True, max_output_tokens=20
        )
        (got,) = await there.until(1)
        event = got.unwrap()
        assert event.type in ("response.completed", "response.incomplete")
        assert event.data.id == response.id
        await until_nothing_is_kept(made)
        assert made.supervisor.restarts("gateway") == 1
        assert len(there.got) == 1


async def test_the_receiver_of_the_documentation_works(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "webhooks.md").read_text()
    (program,) = re.findall(r"^```python\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    there = Receiver(f"http://127.0.0.1:{port}/")
    async with running(tmp_path, telling(there)) as (made, client):
        for words, meant in {
            "http://127.0.0.1:7400": made.url,
            "whsec_...": SECRET,
            "8080": str(port),
        }.items():
            assert words in program
            program = program.replace(words, meant)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-u", "-c", program, stdout=asyncio.subprocess.PIPE
        )
        try:
            batch = await client.until_over(await client.create(lines(1)))
            assert process.stdout is not None
            async with asyncio.timeout(PATIENCE_S):
                said = await process.stdout.readline()
            assert said.decode().split() == [batch.id, batch.output_file_id]
            await until_nothing_is_kept(made)
        finally:
            process.kill()
            await process.wait()
