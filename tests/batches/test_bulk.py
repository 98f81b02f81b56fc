"""What the solver hears of batches, and what clients see of its answer."""

from __future__ import annotations

import asyncio
import time

import pytest

from qlm_core import messages as m
from qlm_core.model import BatchId
from tests.batches.beds import CHAT, EMBED, Bed, bed, chat, chats, client_of, jsonl
from tests.gateway.peers import config, running, soon

TWO = {"waiting_lines_max": 2}


def told(one: Bed, model: str = "tiny") -> list[m.BulkWaiting]:
    return [fact for fact in one.fleet.solver.heard(m.BulkWaiting) if fact.model == model]


async def test_the_solver_hears_how_many_lines_are_no_requests_yet() -> None:
    async with bed(pulls=False, batches=TWO) as one:
        lines = [chat("x" * 400, max_tokens=10), chat("b", max_tokens=10)]
        lines += [chat(f"{number}" * 40, max_tokens=50) for number in range(4)]
        made = await one.create(lines, window="2h")

        def told_after_arrivals() -> bool:
            kinds = [type(fact) for fact in one.fleet.solver.facts[-3:]]
            return kinds == [m.Arrived, m.Arrived, m.BulkWaiting]

        await soon(told_after_arrivals)
        bulk = told(one)[-1]
        assert (bulk.batch, bulk.lines, bulk.slo_class) == (made.id, 4, "batch-2")
        # Of those that wait, not of those that are requests.
        assert (bulk.prompt_tokens_mean, bulk.max_output_tokens) == (10.0, 50)
        assert (bulk.slo.ttft_s, bulk.slo.e2e_s) == (7200.0, 7200.0)
        arrived = one.fleet.solver.heard(m.Arrived)[0].request
        assert arrived.batch == made.id
        assert bulk.arrival_s == pytest.approx(arrived.arrival_s, abs=1.0)


async def test_each_model_is_told_and_a_batch_that_is_over_is_taken_back() -> None:
    async with bed(pulls=False, batches=TWO) as one:
        lines = chats(3) + [chat(f"o{number}", model="other") for number in range(4)]
        made = await one.create(lines)
        await soon(lambda: told(one) and told(one, "other"))
        assert [fact.lines for fact in (told(one)[-1], told(one, "other")[-1])] == [1, 2]
        await one.client.batches.cancel(made.id)
        await soon(lambda: told(one)[-1].lines == 0 and told(one, "other")[-1].lines == 0)


async def test_a_limit_that_a_line_does_not_name_is_its_models_length() -> None:
    async with bed(pulls=False, batches=TWO) as one:
        await one.create(chats(3))
        await soon(lambda: told(one))
        assert told(one)[-1].max_output_tokens == 1000


async def test_what_has_no_output_is_told_as_that() -> None:
    async with bed(pulls=False, batches=TWO) as one:
        body = {"model": "tiny", "input": ["x" * 40, "y" * 20]}
        lines = [
            {"custom_id": str(number), "method": "POST", "url": EMBED, "body": body}
            for number in range(4)
        ]
        await one.create(lines, endpoint=EMBED)
        await soon(lambda: told(one) and told(one)[-1].lines == 2)
        bulk = told(one)[-1]
        assert (bulk.prompt_tokens_mean, bulk.max_output_tokens) == (15.0, 0)


async def test_a_new_session_hears_everything_before_the_end_of_the_announcement() -> None:
    async with bed(pulls=False, batches=TWO) as one:
        await one.create(chats(6))
        await soon(lambda: told(one))
        one.fleet.solver.facts.clear()
        # The session ends; the gateway dials again.
        one.fleet.solver.orders.close()
        await soon(lambda: one.fleet.solver.heard(m.AnnounceDone))
        facts = one.fleet.solver.facts
        (bulk,) = told(one)
        assert bulk.lines == 4
        assert facts.index(bulk) < facts.index(m.AnnounceDone())


async def test_who_creates_a_batch_is_told_at_once_when_it_will_be_done() -> None:
    async with bed(pulls=False, batches=TWO | {"finish_wait_s_max": 10.0}) as one:
        creating = asyncio.create_task(one.create(chats(6)))
        await soon(lambda: told(one))
        one.fleet.solver.orders.put(m.BulkEstimate(told(one)[0].batch, True, 60.0, 90.0, "6 left"))
        made = await creating
        shown = made.to_dict()["qlm"]
        assert isinstance(shown, dict)
        assert (made.status, shown["feasible"], shown["explanation"]) == (
            "in_progress",
            True,
            "6 left",
        )


@pytest.mark.parametrize("status", ["failed", "cancelled"])
async def test_what_will_have_no_finish_time_is_not_waited_for(status: str) -> None:
    async with bed(pulls=False, batches=TWO | {"finish_wait_s_max": 60.0}) as one:
        lines = chats(2) if status == "cancelled" else [{"custom_id": 3}]
        creating = asyncio.create_task(one.create(lines))
        if status == "cancelled":
            await soon(lambda: told(one) or one.fleet.solver.heard(m.Arrived))
            [batch] = one.fleet.gateway.batches
            await one.client.batches.cancel(batch.stored.id)
        async with asyncio.timeout(10.0):
            made = await creating
        assert made.status in (status, "cancelling")
        assert made.status == "cancelling" or made.to_dict()["qlm"] is None


async def test_without_a_solver_nobody_waits_for_what_it_would_say() -> None:
    later = config(batches={"finish_wait_s_max": 60.0})
    async with running(later) as (_, at), client_of(f"http://{at.http}") as client:
        file = await client.files.create(file=("in.jsonl", jsonl(chats(1))), purpose="batch")
        async with asyncio.timeout(10.0):
            made = await client.batches.create(
                input_file_id=file.id, endpoint=CHAT, completion_window="24h"
            )
        assert made.status == "validating"


async def test_the_finish_time_is_shown_as_the_solver_says_it() -> None:
    async with bed(pulls=False, batches=TWO) as one:
        made = await one.create(chats(6))
        assert made.to_dict()["qlm"] == {
            "feasible": None,
            "finish_p50_at": None,
            "finish_p90_at": None,
            "explanation": "its lines are being read",
        }
        await soon(lambda: told(one))
        unsaid = (await one.client.batches.retrieve(made.id)).to_dict()["qlm"]
        assert isinstance(unsaid, dict)
        assert unsaid["explanation"] == "no solver has said yet"
        said = m.BulkEstimate(BatchId(made.id), True, 3600.0, 7200.0, "behind 3 others")
        one.fleet.solver.orders.put(m.BulkEstimate(BatchId("batch_other"), False, None, None, ""))
        one.fleet.solver.orders.put(said)
        batch = one.fleet.gateway.batches.get(BatchId(made.id))
        assert batch is not None
        await soon(lambda: batch.forecast.feasible)
        shown = (await one.client.batches.retrieve(made.id)).to_dict()["qlm"]
        assert isinstance(shown, dict)
        assert shown["explanation"] == "behind 3 others"
        assert shown["finish_p50_at"] == pytest.approx(time.time() + 3600, abs=5)
        assert shown["finish_p90_at"] == pytest.approx(time.time() + 7200, abs=5)
        one.fleet.solver.orders.put(m.BulkEstimate(BatchId(made.id), False, None, None, "no agent"))
        await soon(lambda: batch.forecast.feasible is False)
        shown = (await one.client.batches.retrieve(made.id)).to_dict()["qlm"]
        assert shown == {
            "feasible": False,
            "finish_p50_at": None,
            "finish_p90_at": None,
            "explanation": "no agent",
        }
