"""Batches in trouble: disks and stores that fail, processes that die, engines that lines kill, models that come and go."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

import failpoints
from gateway.batches import releasing, validating
from gateway.batches.index import Scan
from gateway.store import StoreError
from qlm_core import messages as m
from qlm_core.model import ModelName
from tests.batches.beds import CHAT, Bed, bed, chat, chats, client_of, jsonl
from tests.gateway.peers import Agent, Fleet, Solver, config, running, solving, soon


@pytest.fixture(autouse=True)
def off_afterwards() -> Iterator[None]:
    yield
    failpoints.arm("")


@pytest.fixture(autouse=True)
def soon_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try again at once, as far as it is only time that matters."""
    for name in ("_REST_S_MIN", "_REST_S_MAX", "_GONE_REST_S"):
        monkeypatch.setattr(releasing, name, 0.02)
    monkeypatch.setattr(validating, "_RETRY_S", 0.0)


async def test_a_disk_that_fails_at_the_end_costs_time_alone() -> None:
    async with bed() as one:
        one.answer()
        failpoints.arm("gateway.batches.writing=error")
        batch = await one.until(await one.create([*chats(3), chat("bad", max_tokens=-1)]))
        assert batch.status == "completed"
        output, errors = await one.results(batch)
        assert (len(output), list(errors)) == (3, ["bad"])


async def test_results_wait_for_a_store_that_takes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async with bed() as one:
        monkeypatch.setattr("gateway.batches.driver.RETRY_S", 0.02)
        one.answer(lambda payload, said: None)
        made = await one.until(await one.create(chats(3)), "in_progress")
        database = one.fleet.gateway.batches.database
        write, refused = database.write, []

        async def full(work: Any) -> Any:
            refused.append(work)
            raise StoreError("the disk is full")

        database.write = full  # type: ignore[method-assign]
        await soon(lambda: len(one.agent.payloads) == 3)
        for payload in one.agent.payloads:
            one.agent.say(payload, "x", finish="stop")
        await soon(lambda: len(refused) > 6)
        batch = await one.client.batches.retrieve(made.id)
        assert batch.request_counts is not None
        assert batch.request_counts.completed == 0
        database.write = write  # type: ignore[method-assign]
        batch = await one.until(made)
        assert len((await one.results(batch))[0]) == 3


async def test_a_disk_that_takes_no_name_takes_no_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    async with bed() as one:
        file_id = await one.upload(chats(1))
        client = one.client.with_options(max_retries=0)

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as there:
            there.setattr("os.link", full)
            there.setattr("shutil.copyfile", full)
            with pytest.raises(openai.InternalServerError) as caught:
                await client.batches.create(
                    input_file_id=file_id, endpoint=CHAT, completion_window="24h"
                )
        assert caught.value.status_code == 503
        assert (await client.batches.list()).data == []


@pytest.mark.parametrize(("failures", "status"), [(2, "completed"), (99, "failed")])
async def test_a_process_that_dies_over_a_file_is_started_again_some_times(
    failures: int, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [failures]
    real = validating.Validator._try

    async def dying(self: validating.Validator, path: Path, endpoint: str) -> Scan | None:
        if left[0]:
            left[0] -= 1
            with monkeypatch.context() as there:
                there.setattr("sys.executable", "/bin/false")
                return await real(self, path, endpoint)
        return await real(self, path, endpoint)

    monkeypatch.setattr(validating.Validator, "_try", dying)
    async with bed() as one:
        one.answer()
        batch = await one.until(await one.create(chats(2)))
        assert batch.status == status
        if status == "failed":
            assert batch.errors is not None
            assert batch.errors.data is not None
            assert batch.errors.data[0].code == "server_error"


async def test_a_line_that_kills_engines_is_an_error_line_and_costs_the_others_nothing() -> None:
    async with bed() as one:

        def script(payload: m.Payload, said: str) -> str | None:
            if said != "line-1":
                return "good"
            back = m.AttemptReturned(
                payload.id, payload.attempt, m.ReturnReason.ENGINE_ERROR, "it crashed"
            )
            one.agent.send(back)
            return None

        one.answer(script)
        made = await one.create(chats(3))
        await pulling_again(one)
        batch = await one.until(made)
        output, errors = await one.results(batch)
        assert list(output) == ["line-0", "line-2"]
        line = errors["line-1"]
        assert line["response"]["status_code"] == 502
        assert "it crashed" in line["response"]["body"]["error"]["message"]


async def test_a_line_that_takes_every_agent_with_it_fails_after_some_and_alone() -> None:
    async with bed(pulls=False, attempts_max=3, agent_grace_s=0.05) as one:
        made = await one.until(await one.create(chats(3)), "in_progress")
        await soon(lambda: len(one.fleet.solver.heard(m.Arrived)) == 3)
        first, killer, last = [fact.request.id for fact in one.fleet.solver.heard(m.Arrived)]
        for number in range(3):
            async with Agent(one.fleet.addresses.agents, f"dies-{number}") as agent:
                agent.pull(killer)
                await agent.payload()
            heard = one.fleet.solver.heard
            await soon(lambda: len([*heard(m.Returned), *heard(m.Ended)]) > number)  # noqa: B023
        one.answer()
        for id in (first, last):
            one.agent.pull(id)
        batch = await one.until(made)
        output, errors = await one.results(batch)
        assert list(output) == ["line-0", "line-2"]
        assert errors["line-1"]["response"]["status_code"] == 502
        said = errors["line-1"]["response"]["body"]["error"]["message"]
        assert "lost with 3 agents or engines" in said


async def pulling_again(one: Bed) -> None:
    """Pull what came back, whenever the solver hears of it, until it has failed."""
    pulled = 0
    async with asyncio.timeout(15):
        while len(one.fleet.solver.heard(m.Ended)) < 3:
            returned = one.fleet.solver.heard(m.Returned)
            for fact in returned[pulled:]:
                one.agent.pull(fact.id)
            pulled = len(returned)
            await asyncio.sleep(0.01)


async def test_models_are_judged_once_a_solver_says_which_there_are() -> None:
    solver = Solver()
    async with solving(solver) as address:
        pass
    async with (
        running(config(solver=address)) as (gateway, at),
        Agent(at.agents) as agent,
        client_of(f"http://{at.http}") as client,
    ):
        one = Bed(Fleet(gateway, at, solver, agent), client)
        solver.on_arrival = agent.pull
        one.answer()
        made = await one.create([chat("a", model="elsewhere")])
        await asyncio.sleep(0.3)
        assert (await client.batches.retrieve(made.id)).status == "validating"
        async with solving(solver, address):
            assert (await one.until(made)).status == "completed"


async def test_lines_wait_for_a_model_that_is_away_for_a_while() -> None:
    async with bed(pulls=False, batches={"waiting_lines_max": 1}) as one:
        one.answer()
        made = await one.until(await one.create(chats(4, model="elsewhere")), "in_progress")
        await soon(lambda: one.fleet.solver.heard(m.Arrived))
        one.fleet.solver.orders.put(m.Fleet(()))
        await soon(lambda: not one.fleet.gateway._solver.models())
        one.fleet.solver.on_arrival = one.agent.pull
        one.agent.pull(one.fleet.solver.heard(m.Arrived)[0].request.id)
        await soon(lambda: one.fleet.solver.heard(m.Ended))
        await asyncio.sleep(0.2)
        batch = await one.client.batches.retrieve(made.id)
        assert batch.request_counts is not None
        assert (batch.request_counts.completed, batch.request_counts.failed) == (1, 0)
        one.fleet.solver.orders.put(m.Fleet((ModelName("elsewhere"),)))
        batch = await one.until(made)
        assert len((await one.results(batch))[0]) == 4


async def test_lines_wait_for_room_in_a_gateway_that_is_full() -> None:
    async with bed(limits={"open_requests_max": 3}) as one:
        one.answer(lambda payload, said: None)
        made = await one.until(await one.create(chats(9)), "in_progress")
        await soon(lambda: len(one.agent.payloads) == 3)
        await asyncio.sleep(0.1)
        assert len(one.agent.payloads) == 3
        batch = await one.client.batches.retrieve(made.id)
        assert batch.request_counts is not None
        assert batch.request_counts.failed == 0
        waiting = list(one.agent.payloads)
        one.answer()
        for payload in waiting:
            one.agent.say(payload, "late", finish="stop")
        batch = await one.until(made)
        assert len((await one.results(batch))[0]) == 9


async def test_inputs_that_open_batches_keep_are_bounded() -> None:
    size = len(jsonl(chats(3)))
    async with bed(files={"tenant_bytes_max": size + 10}) as one:
        one.answer(lambda payload, said: None)
        made = await one.create(chats(3))
        await one.client.files.delete(made.input_file_id)
        file_id = await one.upload(chats(1))
        client = one.client.with_options(max_retries=0)
        with pytest.raises(openai.RateLimitError) as caught:
            await client.batches.create(
                input_file_id=file_id, endpoint=CHAT, completion_window="24h"
            )
        assert "tenant_bytes_max" in str(caught.value)
        await one.until(await client.batches.cancel(made.id))
        await client.batches.create(input_file_id=file_id, endpoint=CHAT, completion_window="24h")
