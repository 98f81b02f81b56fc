"""How batches end before their lines do: cancel, and a window that is over."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import aiohttp
import openai
import pytest
from openai.types import Batch

from gateway.batches import asking
from qlm_core import messages as m
from tests.batches.beds import Bed, Json, bed, chats
from tests.gateway.peers import soon

# What a minute is to a batch that is to expire within a test.
MINUTE_S = 3.0


async def half_done(one: Bed, lines: int, **more: Any) -> Batch:
    """A batch of which the lines with an even number are answered, two more run, and the rest waits."""
    one.fleet.solver.on_arrival = lambda id: None
    one.answer(lambda payload, said: "done" if not int(said.partition("-")[2]) % 2 else None)
    made = await one.until(await one.create(chats(lines), **more), "in_progress")
    await soon(lambda: len(one.fleet.solver.heard(m.Arrived)) == 4)
    for fact in one.fleet.solver.heard(m.Arrived)[:4]:
        one.agent.pull(fact.request.id)
    await soon(lambda: len(one.agent.payloads) == 4)
    async with asyncio.timeout(5):
        while made.request_counts is None or made.request_counts.completed < 2:
            made = await one.client.batches.retrieve(made.id)
    return made


def revoked(one: Bed) -> list[m.Revoked]:
    return [order for order in one.agent.orders if isinstance(order, m.Revoked)]


async def test_cancel_ends_what_runs_and_never_runs_what_waits() -> None:
    async with bed(batches={"waiting_lines_max": 4}) as one:
        made = await half_done(one, 20)
        told = await one.client.batches.cancel(made.id)
        assert told.status in ("cancelling", "cancelled")
        assert told.cancelling_at
        batch = await one.until(told)
        assert batch.status == "cancelled"
        assert batch.cancelled_at
        assert batch.completed_at is None
        output, errors = await one.results(batch)
        assert list(output) == ["line-0", "line-2"]
        assert len(errors) == 18
        for line in errors.values():
            assert line["response"] is None
            assert line["error"] == {
                "code": "batch_cancelled",
                "message": "This request was not executed because the batch was cancelled.",
            }
        await soon(lambda: len(revoked(one)) == 2)
        assert len(one.agent.payloads) == 4


async def test_cancel_again_changes_nothing_and_what_ended_cannot_be_cancelled() -> None:
    async with bed() as one:
        one.answer(lambda payload, said: None)
        made = await one.create(chats(2))
        await one.client.batches.cancel(made.id)
        batch = await one.until(made)
        assert (await one.client.batches.cancel(made.id)).to_dict() == batch.to_dict()
        one.answer()
        over = await one.until(await one.create(chats(1)))
        url = f"{one.fleet.url}/v1/batches/{over.id}/cancel"
        async with aiohttp.ClientSession() as session, session.post(url) as answer:
            said = await answer.json()
        assert answer.status == 409
        # OpenAI's libraries would try a 409 again by themselves.
        assert answer.headers["x-should-retry"] == "false"
        assert said == {
            "error": {
                "message": "Cannot cancel a batch with status 'completed'.",
                "type": "invalid_request_error",
                "param": None,
                "code": None,
            }
        }


async def test_a_batch_that_is_cancelled_while_it_is_validated_has_no_lines() -> None:
    async with bed() as one:
        made = await one.create(chats(2_000))
        batch = await one.until(await one.client.batches.cancel(made.id))
        assert batch.status == "cancelled"
        assert batch.in_progress_at is None
        assert batch.request_counts is not None
        assert batch.request_counts.total == 0
        assert (batch.output_file_id, batch.error_file_id) == (None, None)
        assert one.agent.payloads == []


async def test_a_cancel_that_races_with_the_end_is_right_either_way() -> None:
    async with bed() as one:
        one.answer()
        for lines in range(1, 7):
            made = await one.create(chats(lines))
            await soon(lambda: one.agent.payloads)
            with contextlib.suppress(openai.ConflictError):
                await one.client.batches.cancel(made.id)
            batch = await one.until(made)
            assert batch.status in ("completed", "cancelled")
            output, errors = await one.results(batch)
            assert len(output) + len(errors) == lines
            one.agent.orders.clear()


async def test_when_the_window_is_over_the_rest_has_not_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(asking._UNIT_S, "m", MINUTE_S)
    async with bed(batches={"window_s_min": 1.0, "waiting_lines_max": 4}) as one:
        made = await half_done(one, 12, window="1m")
        over = await one.until(made)
        assert over.status == "expired"
        assert over.expired_at
        assert over.finalizing_at
        output, errors = await one.results(over)
        assert list(output) == ["line-0", "line-2"]
        assert len(errors) == 10
        assert errors["line-11"]["response"] is None
        assert errors["line-11"]["error"] == {
            "code": "batch_expired",
            "message": "This request could not be executed before the completion window expired.",
        }
        await soon(lambda: len(revoked(one)) == 2)


async def test_the_files_of_a_batch_expire_when_its_client_says() -> None:
    async with bed() as one:
        one.answer()
        after: Json = {"anchor": "created_at", "seconds": 7200}
        made = await one.create(chats(1), output_expires_after=after)
        batch = await one.until(made)
        file = await one.client.files.retrieve(batch.output_file_id or "")
        assert file.expires_at == file.created_at + 7200


@pytest.mark.parametrize("ending", ["cancel", "complete"])
async def test_nothing_of_a_batch_that_is_over_stays_in_the_store(ending: str) -> None:
    async with bed() as one:
        one.answer(lambda payload, said: "done" if ending == "complete" else None)
        made = await one.create(chats(30))
        if ending == "cancel":
            await soon(lambda: len(one.agent.payloads) == 30)
            await one.client.batches.cancel(made.id)
        await one.until(made)
        database = one.fleet.gateway.batches.database
        tables = ("batch_records", "batch_results", "batch_indexes")

        async def left() -> int:
            counts = [
                await database.read(
                    lambda connection, table=table: connection.execute(  # type: ignore[misc]
                        f"SELECT count(*) FROM {table}"
                    ).fetchone()[0]
                )
                for table in tables
            ]
            return sum(counts)

        async with asyncio.timeout(5):
            while await left():  # noqa: ASYNC110 (in the store)
                await asyncio.sleep(0.01)
