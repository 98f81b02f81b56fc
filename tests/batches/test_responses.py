"""Lines that ask for responses: translated to chats, answered as responses, and kept in their batch's files alone."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import openai
import pytest

from gateway.batches.endpoints import ENDPOINTS
from qlm_core import messages as m
from tests.batches.beds import RESPOND, Bed, Json, bed
from tests.batches.test_restarts import finished, going_on, life
from tests.doors.beds import ALICE, BOB, KEYS
from tests.gateway.peers import soon


def line(id: str, **body: Any) -> Json:
    """A line that asks for a response; the agent knows it by its input."""
    said = {"model": "tiny", "input": id} | body
    return {"custom_id": id, "method": "POST", "url": RESPOND, "body": said}


async def results(one: Bed, *lines: Json) -> tuple[dict[str, Json], dict[str, Json]]:
    batch = await one.until(await one.create(list(lines), endpoint=RESPOND))
    assert batch.status == "completed", batch.errors
    return await one.results(batch)


def asked(one: Bed, index: int = -1) -> list[tuple[str, str]]:
    """Who says what in the chat that an engine got."""
    messages = json.loads(one.agent.payloads[index].body)["messages"]
    return [(message["role"], message["content"]) for message in messages]


async def test_responses_are_batched_as_well() -> None:
    async with bed() as one:
        one.answer(lambda payload, said: "Hello.")
        said = line("a", instructions="Be brief.", max_output_tokens=5, metadata={"k": "v"})
        batch = await one.until(await one.create([said], endpoint=RESPOND))
        output, _ = await one.results(batch)
        assert asked(one) == [("system", "Be brief."), ("user", "a")]
        assert output["a"]["response"]["status_code"] == 200
        body = output["a"]["response"]["body"]
        response = openai.types.responses.Response.model_validate(body)
        assert (response.object, response.status) == ("response", "completed")
        assert (response.output_text, response.metadata) == ("Hello.", {"k": "v"})
        assert response.max_output_tokens == 5
        assert batch.usage is not None
        assert response.usage is not None
        spent = (response.usage.input_tokens, response.usage.output_tokens)
        assert (batch.usage.input_tokens, batch.usage.output_tokens) == spent == (7, 1)
        # It is told what holds: it is nowhere else.
        assert body["store"] is False
        with pytest.raises(openai.NotFoundError):
            await one.client.responses.retrieve(response.id)


async def test_what_is_cut_short_is_an_answer_that_says_so() -> None:
    async with bed() as one:
        one.agent.on_payload = lambda payload: one.agent.say(payload, "He", finish="length")
        output, _ = await results(one, line("a", max_output_tokens=1))
        body = output["a"]["response"]["body"]
        assert body["status"] == "incomplete"
        assert body["incomplete_details"] == {"reason": "max_output_tokens"}


async def test_a_line_goes_on_from_a_response_that_is_kept() -> None:
    async with bed() as one:
        one.agent.answer("Four.")
        first = await one.client.responses.create(model="tiny", input="Two and two?")
        output, errors = await results(
            one,
            line("Really?", previous_response_id=first.id),
            line("lost", previous_response_id="resp_" + "0" * 24),
        )
        assert asked(one) == [
            ("user", "Two and two?"),
            ("assistant", "Four."),
            ("user", "Really?"),
        ]
        assert output["Really?"]["response"]["body"]["previous_response_id"] == first.id
        refused = errors["lost"]["response"]
        assert refused["status_code"] == 400
        assert refused["body"]["error"]["code"] == "previous_response_not_found"


async def test_a_line_takes_as_much_room_as_its_conversation() -> None:
    async with bed() as one:
        one.agent.answer("x" * 10_000)
        first = await one.client.responses.create(model="tiny", input="Hello?")
        one.answer(lambda payload, said: None)
        lines = [line("a", previous_response_id=first.id)]
        batch = await one.create(lines, endpoint=RESPOND)
        await soon(lambda: len(one.agent.payloads) == 2)
        releaser = one.fleet.gateway.batches._releaser
        assert releaser.held_bytes > 10_000
        one.agent.say(one.agent.payloads[1], "y", finish="stop")
        await one.until(batch)
        assert releaser.held_bytes == 0


async def test_anothers_response_is_none_to_go_on_from() -> None:
    async with bed(api_keys=KEYS) as one:
        one.agent.answer("Four.")
        alice, bob = (one.client.with_options(api_key=key) for key in (ALICE, BOB))
        hers = await alice.responses.create(model="tiny", input="Two and two?")
        one.client = bob
        output, errors = await results(one, line("a", previous_response_id=hers.id))
        assert (list(output), list(errors)) == ([], ["a"])
        code = errors["a"]["response"]["body"]["error"]["code"]
        assert code == "previous_response_not_found"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"background": True}, "background"),
        ({"store": True}, "store"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ],
)
async def test_what_cannot_be_is_an_error_line_that_names_it(body: Json, param: str) -> None:
    async with bed() as one:
        one.answer()
        output, errors = await results(one, line("good", store=False), line("bad", **body))
        assert list(output) == ["good"]
        refused = errors["bad"]["response"]
        assert refused["status_code"] == 400
        assert refused["body"]["error"]["param"] == param
        assert len(one.agent.payloads) == 1


async def test_an_engines_refusal_names_the_field_of_a_response() -> None:
    async with bed() as one:
        one.agent.on_payload = lambda payload: one.agent.send(
            m.AttemptEnded(
                payload.id,
                payload.attempt,
                "error",
                7,
                0,
                error="This model's maximum context length is 8 tokens. Please reduce the length of the messages.",
                error_status=400,
            )
        )
        _, errors = await results(one, line("a"))
        error = errors["a"]["response"]["body"]["error"]
        assert (error["code"], error["param"]) == ("context_length_exceeded", "input")


async def test_a_response_goes_on_over_a_restart(tmp_path: Path) -> None:
    async with life(tmp_path) as one:
        made = await one.create([line("a"), line("b")], endpoint=RESPOND)
        await soon(lambda: len(one.fleet.solver.heard(m.Arrived)) == 2)
        one.agent.pull(one.fleet.solver.heard(m.Arrived)[0].request.id)
        await soon(lambda: one.fleet.solver.heard(m.Ended))
    async with life(tmp_path) as one:
        going_on(one)
        output, _ = await one.results(await finished(one, made))
        texts = {
            id: said["response"]["body"]["output"][0]["content"] for id, said in output.items()
        }
        assert {id: part[0]["text"] for id, part in texts.items()} == {"a": "to a", "b": "to b"}


async def test_a_line_may_be_cancelled_while_its_conversation_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with bed() as one:
        one.answer()
        first = await one.client.responses.create(model="tiny", input="Hello?")
        store, begun, go = one.fleet.gateway.store, asyncio.Event(), asyncio.Event()
        chain = store.chain

        async def slow(*asked: Any) -> Any:
            begun.set()
            await go.wait()
            return await chain(*asked)

        monkeypatch.setattr(store, "chain", slow)
        lines = [line("a", previous_response_id=first.id)]
        batch = await one.create(lines, endpoint=RESPOND)
        await begun.wait()
        await one.client.batches.cancel(batch.id)
        go.set()
        batch = await one.until(batch)
        assert batch.status == "cancelled"
        _, errors = await one.results(batch)
        assert errors["a"]["error"]["code"] == "batch_cancelled"
        # Others have their turn.
        monkeypatch.undo()
        output, _ = await results(one, line("b"))
        assert list(output) == ["b"]
        arrived = [fact.request.batch for fact in one.fleet.solver.heard(m.Arrived)]
        assert batch.id not in arrived


@pytest.mark.parametrize(
    "body",
    [
        {"input": "x" * 41},
        {"input": [{"role": "user", "content": "x" * 17}], "instructions": "y" * 20},
        {
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "x" * 30}]},
                {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c", "output": "y" * 50},
            ],
            "max_output_tokens": 11,
        },
    ],
)
async def test_what_waits_is_counted_as_it_will_be_as_a_request(body: Json) -> None:
    async with bed(pulls=False) as one:
        asked = line("a", **body)["body"]
        await one.create([line("a", **body)], endpoint=RESPOND)
        await soon(lambda: one.fleet.solver.heard(m.Arrived))
        (arrived,) = one.fleet.solver.heard(m.Arrived)
        endpoint = ENDPOINTS[RESPOND]
        assert arrived.request.prompt_tokens == endpoint.prompt_tokens(asked)
        limit = endpoint.output_limit(asked)
        assert limit == body.get("max_output_tokens")
        assert limit in (None, arrived.request.max_output_tokens)


async def test_a_response_without_input_is_a_fault_of_its_file() -> None:
    async with bed() as one:
        batch = await one.until(await one.create([line("a", input=None)], endpoint=RESPOND))
        assert batch.status == "failed"
        assert batch.errors is not None
        (fault,) = batch.errors.data or ()
        assert (fault.param, fault.message) == ("body.input", "Input parameter is required.")
