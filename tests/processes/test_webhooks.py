"""kill -9 of a gateway between a batch's end and its receiver: each is told, under one id, and nothing is kept for ever."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
from pathlib import Path

import msgspec
import pytest

import failpoints
from qlm.fleet import Running
from tests.processes.conftest import PATIENCE_S
from tests.processes.test_batches import line, running
from tests.webhooks.beds import Receiver, receiver


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
