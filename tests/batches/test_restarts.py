"""Batches over restarts of their gateway, in every state, on one store."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from openai.types import Batch

from gateway.batches import rows, writing
from gateway.batches.stored import head_of, line_id, read_head
from qlm_core import messages as m
from qlm_core.batches import BatchStatus, Unrun
from qlm_core.model import BatchId
from tests.batches.beds import Bed, bed, chats
from tests.gateway.peers import Agent, soon


@contextlib.asynccontextmanager
async def life(folder: Path, **batches: Any) -> AsyncIterator[Bed]:
    """One life of the gateway."""
    store = {"path": str(folder / "qlm.sqlite")}
    async with bed(pulls=False, store=store, batches=batches) as one:
        one.answer()
        yield one


def going_on(one: Bed) -> None:
    """Have the agent pull whatever has arrived and will."""
    one.fleet.solver.on_arrival = one.agent.pull
    for fact in one.fleet.solver.heard(m.Arrived):
        one.agent.pull(fact.request.id)


async def finished(one: Bed, made: Batch, status: str = "completed") -> Batch:
    batch = await one.until(await one.client.batches.retrieve(made.id))
    assert batch.status == status
    return batch


def edit(folder: Path, **changed: Any) -> None:
    """Change the one batch of a store while no gateway has it."""
    with contextlib.closing(sqlite3.connect(folder / "qlm.sqlite")) as connection, connection:
        (head,) = connection.execute("SELECT head FROM batches").fetchone()
        batch = replace(read_head(head), **changed)
        connection.execute("UPDATE batches SET head = ?", (head_of(batch),))


async def test_what_was_out_and_what_waited_goes_on(tmp_path: Path) -> None:
    async with life(tmp_path, waiting_lines_max=3) as one:
        made = await one.create(chats(10))
        await soon(lambda: len(one.fleet.solver.heard(m.Arrived)) == 3)
        one.agent.pull(one.fleet.solver.heard(m.Arrived)[1].request.id)
        await one.until(made, "in_progress")
        await soon(lambda: len(one.fleet.solver.heard(m.Ended)) == 1)
        ids = [fact.request.id for fact in one.fleet.solver.heard(m.Arrived)]
    async with life(tmp_path, waiting_lines_max=3) as one:
        batch = await one.client.batches.retrieve(made.id)
        assert batch.status == "in_progress"
        assert batch.request_counts is not None
        assert (batch.request_counts.total, batch.request_counts.completed) == (10, 1)
        assert batch.usage is not None
        assert batch.usage.total_tokens == 8
        going_on(one)
        batch = await finished(one, made)
        output, _ = await one.results(batch)
        assert list(output) == [f"line-{number}" for number in range(10)]
        # What had ended did not run again, under the same ids what had not.
        again = [fact.request.id for fact in one.fleet.solver.heard(m.Arrived)]
        assert ids[1] not in again
        assert {ids[0], ids[2]} < set(again)
        assert len(again) == 9
        assert batch.usage is not None
        assert batch.usage.total_tokens == 80


async def test_an_agent_goes_on_with_a_line_over_a_restart(tmp_path: Path) -> None:
    async with life(tmp_path) as one:
        one.answer(lambda payload, said: None)
        made = await one.create(chats(1))
        await soon(lambda: one.fleet.solver.heard(m.Arrived))
        one.agent.pull(one.fleet.solver.heard(m.Arrived)[0].request.id)
        payload = await one.agent.payload()
    async with life(tmp_path) as one:
        # The same attempt is brought along by the agent's next stream.
        agent = Agent(one.fleet.addresses.agents, "agent-1")
        agent.running = (m.Attempt(payload.id, payload.attempt, 0),)
        async with agent:
            await soon(lambda: agent.joined)
            assert agent.joined[0].going_on == agent.running
            agent.say(payload, "from before", finish="stop")
            batch = await finished(one, made)
        output, _ = await one.results(batch)
        body = output["line-0"]["response"]["body"]
        assert body["choices"][0]["message"]["content"] == "from before"


async def test_a_batch_that_was_being_validated_is_validated_again(tmp_path: Path) -> None:
    async with life(tmp_path) as one:
        made = await one.create(chats(3))
        await one.until(made, "in_progress")
    edit(tmp_path, status=BatchStatus.VALIDATING, models=(), released=(), moments={})
    async with life(tmp_path) as one:
        await one.until(await one.client.batches.retrieve(made.id), "in_progress")
        going_on(one)
        assert len((await one.results(await finished(one, made)))[0]) == 3


async def test_a_cancel_that_was_stored_is_carried_out(tmp_path: Path) -> None:
    async with life(tmp_path) as one:
        made = await one.create(chats(4))
        await soon(lambda: len(one.fleet.solver.heard(m.Arrived)) == 4)
        one.agent.pull(one.fleet.solver.heard(m.Arrived)[0].request.id)
        await soon(lambda: one.fleet.solver.heard(m.Ended))
        await one.until(made, "in_progress")
    edit(tmp_path, status=BatchStatus.CANCELLING, unrun=Unrun.CANCELLED)
    async with life(tmp_path) as one:
        output, errors = await one.results(await finished(one, made, "cancelled"))
        assert list(output) == ["line-0"]
        assert {line["error"]["code"] for line in errors.values()} == {"batch_cancelled"}
        assert one.fleet.solver.heard(m.Arrived) == []


async def test_a_cancel_before_anything_was_known_ends_the_batch(tmp_path: Path) -> None:
    async with life(tmp_path) as one:
        made = await one.create(chats(1))
        await one.until(made, "in_progress")
    edit(tmp_path, status=BatchStatus.CANCELLING, models=(), released=())
    async with life(tmp_path) as one:
        batch = await finished(one, made, "cancelled")
        assert batch.output_file_id is None


async def test_a_window_that_ended_meanwhile_expires_the_batch(tmp_path: Path) -> None:
    async with life(tmp_path) as one:
        made = await one.create(chats(2))
        await one.until(made, "in_progress")
    edit(tmp_path, arrived_at=0.0)
    async with life(tmp_path) as one:
        _, errors = await one.results(await finished(one, made, "expired"))
        assert {line["error"]["code"] for line in errors.values()} == {"batch_expired"}


async def test_files_that_were_being_written_are_written_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "_PAGE_LINES", 2)
    async with life(tmp_path) as one:
        going_on(one)
        kept: list[str] = []
        files = one.fleet.gateway.files
        put = files.put

        async def put_one(*args: Any, **said: Any) -> Any:
            """The first file is kept; whoever is to keep the second dies."""
            if kept:
                raise OSError("gone")
            kept.append(said["id"])
            return await put(*args, **said)

        files.put = put_one  # type: ignore[method-assign]
        lines = chats(5)
        lines[3]["body"]["max_tokens"] = -1
        made = await one.create(lines)
        await soon(lambda: kept)
    async with life(tmp_path) as one:
        batch = await finished(one, made)
        assert batch.output_file_id == kept[0]
        output, errors = await one.results(batch)
        assert (len(output), list(errors)) == (4, ["line-3"])
        outputs = await one.client.files.list(purpose="batch_output")
        assert {file.id for file in outputs.data} == {batch.output_file_id, batch.error_file_id}


async def test_what_a_crash_left_is_tidied_up(tmp_path: Path) -> None:
    async with life(tmp_path) as one:
        going_on(one)
        await one.until(await one.create(chats(2)))
        folder = one.fleet.gateway.batches.folder
        (folder / "batch_gone.jsonl").write_text("x")
        database = one.fleet.gateway.batches.database
        await database.write(lambda connection: rows.keep_index(connection, 99, b""))
    async with life(tmp_path) as one:
        assert list(one.fleet.gateway.batches.folder.iterdir()) == []
        database = one.fleet.gateway.batches.database
        while await database.read(rows.uncleared):
            pass


async def test_an_ended_batch_is_forgotten_after_a_while(tmp_path: Path) -> None:
    async with life(tmp_path) as one:
        going_on(one)
        made = await one.until(await one.create(chats(1)))
        assert made.status == "completed"
    async with life(tmp_path, keep_ended_s=0.0) as one:
        while (await one.client.batches.list()).data:
            pass


async def test_a_batch_whose_row_cannot_be_read_holds_nothing_up(tmp_path: Path) -> None:
    async with life(tmp_path) as one:
        await one.until(await one.create(chats(1)), "in_progress")
    with contextlib.closing(sqlite3.connect(tmp_path / "qlm.sqlite")) as connection, connection:
        connection.execute("UPDATE batches SET head = x'00'")
    async with life(tmp_path) as one:
        going_on(one)
        batch = await one.until(await one.create(chats(1)))
        assert batch.status == "completed"
        assert [one.id for one in (await one.client.batches.list()).data] == [batch.id]


async def test_lines_keep_their_ids_for_the_ledger() -> None:
    """A line's request has one id in every life, or agents could not bring their attempts along."""
    assert line_id(BatchId("batch_0123"), 7) == "batch_req_0123_7"
