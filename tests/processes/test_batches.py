"""kill -9 of each process at each named moment of a batch: every line is in its files once."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import openai
import pytest
from msgspec.structs import replace
from openai import AsyncOpenAI
from openai.types import Batch

import failpoints
from gateway.batches.stored import head_of, read_head
from qlm import fleet
from tests.processes.conftest import MODEL, PATIENCE_S

LINES = 60
PATH = "/v1/completions"
KEY = {"idempotency-key": "tonight"}
AGENT = f"agents=[{{name: one, gpu: a100, models: [{MODEL}], engine: {{sim: {{time_scale: 20}}}}}}]"
# A failpoint of a gateway that has been started again would kill it again.
LATER = {"gateway.batches.closed": 1, "gateway.batches.line_stored": 20}
OVER = ("completed", "failed", "expired", "cancelled")
Json = dict[str, Any]


def line(number: int, output_tokens: int) -> Json:
    body = {
        "model": MODEL,
        "prompt": "A question of the night. " * 4,
        "max_tokens": 5_000,
        "qlm_sim": {"output_tokens": output_tokens},
    }
    return {"custom_id": f"line-{number}", "method": "POST", "url": PATH, "body": body}


def workload(*, output_tokens: int = 40) -> bytes:
    """A third is refused as it is released, so that there is an error file as well."""
    lines = [line(number, output_tokens + number) for number in range(LINES)]
    for refused in lines[::3]:
        refused["body"]["max_tokens"] = -1
    return "\n".join(json.dumps(one) for one in lines).encode()


class Patient:
    """A client that asks again whatever happens to its connections."""

    def __init__(self, client: AsyncOpenAI) -> None:
        self.client = client

    async def create(
        self, data: bytes, window: str = "24h", *, key: Mapping[str, str] = KEY
    ) -> Batch:
        file = await self.client.files.create(file=("in.jsonl", data), purpose="batch")
        return await self.client.batches.create(
            input_file_id=file.id,
            endpoint=PATH,
            completion_window=window,  # type: ignore[arg-type]
            extra_headers=key,
        )

    async def until_over(self, batch: Batch) -> Batch:
        async with asyncio.timeout(PATIENCE_S):
            while batch.status not in OVER:
                await asyncio.sleep(0.05)
                batch = await self.client.batches.retrieve(batch.id)
        return batch

    async def lines(self, file_id: str | None) -> list[Json]:
        if file_id is None:
            return []
        text = (await self.client.files.content(file_id)).text
        return [json.loads(one) for one in text.splitlines()]

    async def results(self, batch: Batch) -> tuple[list[Json], list[Json]]:
        """Output and errors, in which each line is once."""
        output = await self.lines(batch.output_file_id)
        errors = await self.lines(batch.error_file_id)
        ids = sorted(one["custom_id"] for one in output + errors)
        assert ids == sorted(f"line-{number}" for number in range(LINES))
        counts = batch.request_counts
        assert counts is not None
        assert (counts.completed, counts.failed) == (len(output), len(errors))
        assert counts.total == LINES
        return output, errors


@contextlib.asynccontextmanager
async def running(folder: Path, *overrides: str) -> AsyncIterator[tuple[fleet.Running, Patient]]:
    config = fleet.temporary_config(folder, [AGENT, *overrides])
    async with (
        fleet.running(config, folder) as made,
        AsyncOpenAI(base_url=f"{made.url}/v1", api_key="unused", max_retries=40) as client,
    ):
        yield made, Patient(client)


def moments(*, without: tuple[str, ...]) -> list[str]:
    names = [name for name in failpoints.MOMENTS if name.startswith("gateway.batches.")]
    return [name for name in names if name not in without]


@pytest.mark.parametrize(
    "moment",
    [
        *moments(without=("gateway.batches.cancelling", "gateway.batches.expiring")),
        "gateway.driver.output_counted",
        "gateway.files.adopted",
    ],
)
async def test_a_batch_survives_its_gateways_death_at(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nth = LATER.get(moment, 1)
    monkeypatch.setenv(failpoints.VARIABLE, f"{moment}=kill@{nth}")
    async with running(tmp_path) as (made, client):
        # The gateway that is started next lives on.
        monkeypatch.delenv(failpoints.VARIABLE)
        batch = await client.until_over(await client.create(workload()))
        assert batch.status == "completed"
        output, errors = await client.results(batch)
        assert (len(output), len(errors)) == (2 * LINES // 3, LINES // 3)
        assert made.supervisor.restarts("gateway") == 1
        assert [one.id for one in (await client.client.batches.list()).data] == [batch.id]
        outputs = await client.client.files.list(purpose="batch_output")
        assert {one.id for one in outputs.data} == {batch.output_file_id, batch.error_file_id}


async def test_a_batch_survives_the_death_of_everybody_in_turn(tmp_path: Path) -> None:
    async with running(tmp_path) as (made, client):
        batch = await client.create(workload(output_tokens=200))
        for victim in ("one", "gateway", "solver", "gateway"):
            await asyncio.sleep(0.3)
            async with asyncio.timeout(PATIENCE_S):
                await made.supervisor.until_ready(victim)
            pid = made.supervisor.pid(victim)
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
        batch = await client.until_over(batch)
        assert batch.status == "completed"
        output, _ = await client.results(batch)
        assert len(output) == 2 * LINES // 3


async def test_a_cancel_survives_its_gateways_death(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(failpoints.VARIABLE, "gateway.batches.cancelling=kill")
    async with running(tmp_path, "gateway.batches.waiting_lines_max=8") as (made, client):
        monkeypatch.delenv(failpoints.VARIABLE)
        batch = await client.create(workload(output_tokens=3_000))
        while batch.request_counts is None or not batch.request_counts.failed:
            batch = await client.client.batches.retrieve(batch.id)
        await client.client.batches.cancel(batch.id)
        batch = await client.until_over(batch)
        assert batch.status == "cancelled"
        await client.results(batch)
        assert made.supervisor.restarts("gateway") == 1


async def test_an_expiry_survives_its_gateways_death(tmp_path: Path) -> None:
    async with running(tmp_path) as (made, client):
        batch = await client.create(workload(output_tokens=3_000))
        while batch.request_counts is None or not batch.request_counts.failed:
            batch = await client.client.batches.retrieve(batch.id)
        config = made.config
    # While nobody has the store, a day passes.
    with contextlib.closing(sqlite3.connect(config.gateway.store.path)) as store, store:
        (head,) = store.execute("SELECT head FROM batches").fetchone()
        store.execute(
            "UPDATE batches SET head = ?", (head_of(replace(read_head(head), arrived_at=0.0)),)
        )
    command = [sys.executable, "-m", "qlm", "gateway", "--config", str(tmp_path / "config.yaml")]
    rule = {failpoints.VARIABLE: "gateway.batches.expiring=kill"}
    dead = await asyncio.to_thread(
        subprocess.run, command, env=os.environ | rule, capture_output=True, timeout=PATIENCE_S
    )
    assert dead.returncode == -signal.SIGKILL
    async with (
        fleet.running(config, tmp_path) as made,
        AsyncOpenAI(base_url=f"{made.url}/v1", api_key="unused") as open_ai,
    ):
        client = Patient(open_ai)
        batch = await client.until_over(batch)
        assert batch.status == "expired"
        _, errors = await client.results(batch)
        codes = [one["error"]["code"] for one in errors if one["error"]]
        assert set(codes) == {"batch_expired"}


async def test_a_gateway_that_stops_in_order_gives_no_batch_up(tmp_path: Path) -> None:
    async with running(tmp_path) as (made, client):
        batch = await client.create(workload(output_tokens=300))
        while batch.status == "validating":
            batch = await client.client.batches.retrieve(batch.id)
        config = made.config
    async with (
        fleet.running(config, tmp_path) as made,
        AsyncOpenAI(base_url=f"{made.url}/v1", api_key="unused") as open_ai,
    ):
        client = Patient(open_ai)
        assert (await client.until_over(batch)).status == "completed"
        with pytest.raises(openai.ConflictError):
            await open_ai.batches.cancel(batch.id)
