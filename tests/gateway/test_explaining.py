"""Why a request stands where it stands: running, waiting with and without a solver, and ended."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

from gateway.explaining import REMEMBERED_MAX, Remembered
from protos.qlm.v1 import client_service_pb2 as pb
from qlm_core import messages as m
from qlm_core.model import Phase
from tests.gateway.peers import Fleet, config, fleet, running, soon
from tests.gateway.test_grpc import Client, new
from tests.gateway.test_http import CHAT, get, post


async def explained(it: Fleet, id: str) -> dict[str, Any]:
    status, body = await get(f"{it.url}/v1/queue/{id}")
    assert status == 200, body
    said: dict[str, Any] = json.loads(body)
    return said


async def test_what_waits_is_told_by_the_solver_with_the_gateways_figures() -> None:
    async with fleet(pulls=False) as it:
        asked = asyncio.create_task(post(f"{it.url}/v1/chat/completions", CHAT))
        await soon(lambda: len(it.gateway.driver.ledger) == 1)
        (row,) = it.gateway.driver.ledger.newest()
        said = await explained(it, row.meta.id)
        assert (said["state"], said["phase"], said["why"]) == ("waiting", "waiting", "test")
        assert said["age_s"] == said["waited_s"] >= 0
        assert said["due_in_s"] > 0
        asked.cancel()


async def test_what_runs_says_by_whom_since_when_and_how_far() -> None:
    async with fleet() as it:
        it.solver.estimates = True
        asked = asyncio.create_task(post(f"{it.url}/v1/chat/completions", CHAT))
        payload = await it.agent.payload()
        held = await explained(it, payload.id)
        assert held["state"] == "held"
        assert "its engine has given nothing yet" in held["because"]
        it.agent.say(payload, "a", "b", "c")
        row = it.gateway.driver.ledger.row(payload.id)
        assert row is not None
        await soon(lambda: row.phase is Phase.RUNNING and row.output_tokens == 3)
        said = await explained(it, payload.id)
        assert (said["state"], said["agent"], said["produced_tokens"]) == ("running", "agent-0", 3)
        assert said["because"].startswith("agent agent-0 runs it: 3 tokens so far of at most ")
        assert said["because"].endswith("(1.5 s were estimated)")
        assert said["ttft_s"] >= said["waited_s"]
        it.agent.send(m.AttemptEnded(payload.id, payload.attempt, "stop", 7, 3))
        await asked
        # It was on a plain connection and is in no store; it was among the latest all the same.
        over = await explained(it, payload.id)
        assert (over["state"], over["phase"]) == ("finished", "finished")
        assert over["because"].startswith("finished (stop) after ")
        assert over["because"].endswith("3 tokens of output, its targets were met")


async def test_a_stored_request_is_explained_after_its_end() -> None:
    async with fleet() as it:
        it.agent.answer("x")
        async with Client(it.addresses.grpc) as stub:
            id = (await stub.Enqueue(pb.EnqueueRequest(request=new()))).accepted.id
            await soon(lambda: it.gateway.driver.live(id) is None)
            reply = await stub.ExplainRequest(pb.ExplainRequestRequest(id=id))
        said = json.loads(reply.explanation_json)
        assert (said["state"], said["model"], said["slo_class"]) == (
            *("finished", "tiny"),
            "interactive",
        )
        assert "first token after" in said["because"]


async def test_without_a_solver_the_gateway_speaks_alone() -> None:
    async with running(config()) as (_, at):
        asked = asyncio.create_task(post(f"http://{at.http}/v1/chat/completions", CHAT))
        listed: list[Any] = []
        while not listed:
            listed = json.loads((await get(f"http://{at.http}/v1/requests"))[1])["data"]
        status, body = await get(f"http://{at.http}/v1/queue/{listed[0]['id']}")
        said = json.loads(body)
        assert (status, said["state"]) == (200, "waiting")
        assert said["because"].endswith(
            "its place in the queue is not known here: no solver is connected"
        )
        assert (await get(f"http://{at.http}/v1/queue/nothing"))[0] == 404
        asked.cancel()


async def test_only_the_latest_ends_are_remembered() -> None:
    async with fleet() as it:
        it.agent.answer("x")
        await post(f"{it.url}/v1/chat/completions", CHAT)
        driver = it.gateway.driver
        ((_, ended_at, _, record),) = driver.remembered._ends.values()
        request = it.agent.payloads[0]
        remembered = Remembered()

        class Named:
            owner, model = "", "tiny"

            def __init__(self, number: int) -> None:
                self.id = f"{request.id}-{number}"

        long = replace(record, closing=b"x" * 10_000)
        for number in range(REMEMBERED_MAX + 2):
            remembered.add(Named(number), ended_at, long)  # type: ignore[arg-type]
        assert remembered.find(f"{request.id}-1") is None  # type: ignore[arg-type]
        kept = remembered.find(f"{request.id}-2")  # type: ignore[arg-type]
        assert kept is not None
        assert kept[3].closing == b""
