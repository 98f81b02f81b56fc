"""Several processes of a fleet killed while one batch runs, batches killed while they end early, and a disk that is full."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import openai
import pytest
from msgspec.structs import replace
from openai import AsyncOpenAI
from openai.types import Batch

import failpoints
from gateway.batches.stored import head_of, read_head
from qlm import fleet
from tests.processes.conftest import PATIENCE_S
from tests.processes.test_batches import LINES, OVER, Patient, running, workload
from tests.processes.test_stores import DISK_BYTES, fill_up, small_disk

# Tokens of an answer that takes some seconds.
LONG = 3_000
# Small enough that a batch is still under way when somebody looks.
FEW = "gateway.batches.waiting_lines_max=8"


async def begun(client: Patient, batch: Batch) -> Batch:
    """The batch once some of its lines have ended."""
    async with asyncio.timeout(PATIENCE_S):
        while batch.request_counts is None or not batch.request_counts.failed:
            batch = await client.client.batches.retrieve(batch.id)
    return batch


@pytest.mark.parametrize(
    "rules",
    [
        # The first dispatch, a pull that is under way, a gateway that has come back.
        {
            "gateway": "gateway.driver.granted=kill@3",
            "one": "agents.gateway_link.after_pull=kill@2",
            "solver": "solver.sessions.gateway_announcing=kill@2",
        },
        # Between an output and its commit, a job that no engine has, an order that is not sent.
        {
            "gateway": "gateway.batches.line_ended=kill@12",
            "one": "agents.driver.submitting=kill@4",
            "solver": "solver.sessions.window_leaving=kill@3",
        },
        # In the middle of lines, and who comes back finds somebody else away.
        {
            "gateway": "gateway.batches.line_stored=kill@15",
            "one": "agents.driver.output_came=kill@40",
            "solver": "solver.sessions.agent_joining=kill@2",
        },
        # Ends that nobody heard of, and a batch that is all but over.
        {
            "gateway": "gateway.batches.written=kill",
            "one": "agents.gateway_link.end_sent=kill@6",
        },
        {
            "gateway": "gateway.batches.writing=kill",
            "one": "agents.driver.engine_done=kill@3",
        },
    ],
    ids=lambda rules: "+".join(rule.partition("=")[0] for rule in rules.values()),
)
async def test_a_batch_survives_deaths_of_several_at(
    rules: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(failpoints.VARIABLE, ";".join(rules.values()))
    async with running(tmp_path) as (made, client):
        monkeypatch.delenv(failpoints.VARIABLE)
        batch = await client.until_over(await client.create(workload()))
        assert batch.status == "completed"
        output, errors = await client.results(batch)
        assert (len(output), len(errors)) == (2 * LINES // 3, LINES // 3)
        assert {name: made.supervisor.restarts(name) for name in rules} == dict.fromkeys(rules, 1)


@pytest.mark.parametrize("seed", [1, 2])
async def test_several_batches_survive_deaths_at_random(seed: int, tmp_path: Path) -> None:
    drawn = random.Random(seed)
    async with running(tmp_path, FEW) as (made, client):

        async def one(number: int) -> None:
            """A batch of its own; every other one is cancelled, if it is not over by then."""
            await asyncio.sleep(drawn.uniform(0.0, 1.5))
            key = {"idempotency-key": f"batch-{number}"}
            batch = await client.create(workload(output_tokens=drawn.randrange(3, 400)), key=key)
            if number % 2:
                await asyncio.sleep(drawn.uniform(0.0, 3.0))
                with contextlib.suppress(openai.ConflictError):
                    batch = await client.client.batches.cancel(batch.id)
            batch = await client.until_over(batch)
            if batch.in_progress_at is not None:
                await client.results(batch)
            else:
                assert (batch.status, batch.error_file_id) == ("cancelled", None)

        batches = asyncio.gather(*(one(number) for number in range(4)))
        for victim in drawn.choices(["gateway", "one", "solver"], weights=[2, 1, 1], k=5):
            await asyncio.sleep(drawn.uniform(0.2, 1.5))
            async with asyncio.timeout(PATIENCE_S):
                await made.supervisor.until_ready(victim)
                # One that has died just now is not known to be away yet.
                while (pid := made.supervisor.pid(victim)) is None:
                    await asyncio.sleep(0.05)
                    await made.supervisor.until_ready(victim)
            os.kill(pid, signal.SIGKILL)
        await batches
        assert {one.status for one in (await client.client.batches.list()).data} <= {*OVER}


@pytest.mark.parametrize(
    "moment",
    [
        "gateway.batches.writing",
        "gateway.batches.file_kept",
        "gateway.batches.written",
        "gateway.batches.closed",
    ],
)
async def test_a_cancel_survives_a_death_at(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(failpoints.VARIABLE, f"{moment}=kill")
    async with running(tmp_path, FEW) as (made, client):
        monkeypatch.delenv(failpoints.VARIABLE)
        batch = await begun(client, await client.create(workload(output_tokens=LONG)))
        told = await client.client.batches.cancel(batch.id)
        assert told.status in ("cancelling", "cancelled")
        batch = await client.until_over(batch)
        assert batch.status == "cancelled"
        await client.results(batch)
        assert made.supervisor.restarts("gateway") == 1


@pytest.mark.parametrize(
    "moment", ["gateway.batches.writing", "gateway.batches.file_kept", "gateway.batches.closed"]
)
async def test_an_expiry_with_some_done_survives_a_death_at(moment: str, tmp_path: Path) -> None:
    async with running(tmp_path, FEW) as (made, client):
        # Of one line in two the answer takes until long after the fleet has stopped.
        parts = zip(workload().splitlines(), workload(output_tokens=LONG).splitlines(), strict=True)
        data = b"\n".join(part[number % 2] for number, part in enumerate(parts))
        batch = await client.create(data)
        async with asyncio.timeout(PATIENCE_S):
            while batch.request_counts is None or not batch.request_counts.completed:
                batch = await client.client.batches.retrieve(batch.id)
        config = made.config
    # While nobody has the store, a day passes.
    with contextlib.closing(sqlite3.connect(config.gateway.store.path)) as store, store:
        (head,) = store.execute("SELECT head FROM batches").fetchone()
        past = head_of(replace(read_head(head), arrived_at=0.0))
        store.execute("UPDATE batches SET head = ?", (past,))
    dead = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "qlm", "gateway", "--config", str(tmp_path / "config.yaml")],
        env=os.environ | {failpoints.VARIABLE: f"{moment}=kill"},
        capture_output=True,
        timeout=PATIENCE_S,
    )
    assert dead.returncode == -signal.SIGKILL
    async with (
        fleet.running(config, tmp_path) as made,
        AsyncOpenAI(base_url=f"{made.url}/v1", api_key="unused") as open_ai,
    ):
        client = Patient(open_ai)
        over = await client.until_over(batch)
        assert over.status == "expired"
        output, errors = await client.results(over)
        assert batch.request_counts is not None
        assert len(output) >= batch.request_counts.completed >= 1
        codes = [one["error"]["code"] for one in errors if one["error"]]
        assert codes
        assert set(codes) == {"batch_expired"}


async def test_a_disk_that_is_full_costs_a_batch_time_alone(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk):
        async with running(disk, FEW, "gateway.files.disk_free_bytes_min=0") as (made, client):
            batch = await begun(client, await client.create(workload(output_tokens=LONG)))
            filler = disk / "filler"
            fill_up(filler)
            assert filler.stat().st_size > DISK_BYTES // 8
            pid = made.supervisor.pid("gateway")
            # Results come meanwhile, and none of them is lost, counted too early, or ends the batch.
            await asyncio.sleep(3.0)
            batch = await client.client.batches.retrieve(batch.id)
            assert batch.status not in OVER
            filler.unlink()
            batch = await client.until_over(batch)
            assert batch.status == "completed"
            output, errors = await client.results(batch)
            assert (len(output), len(errors)) == (2 * LINES // 3, LINES // 3)
            assert (made.supervisor.restarts("gateway"), made.supervisor.pid("gateway")) == (0, pid)
