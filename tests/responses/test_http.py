"""The Responses API over HTTP, with the client library as it is."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import openai
import pydantic
import pytest

from gateway import keeping
from gateway.store import MemoryStore, StoreError
from qlm_core import messages as m
from qlm_core.model import Phase
from tests.gateway.peers import ended, fleet, soon
from tests.gateway.test_http import get, post
from tests.responses.beds import HELLO, body, call, client, say, script, words

WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "description": "Tells the weather.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": True,
}


async def test_a_response_whole() -> None:
    async with fleet() as it, client(it) as api:
        it.agent.answer("Hel", "lo")
        made = await api.responses.create(
            **HELLO,
            instructions="Be brief.",
            metadata={"a": "b"},
            temperature=0.5,
            max_output_tokens=20,
            service_tier="flex",
            user="somebody",
            extra_body={"top_k": 7, "seed": 2**70},
        )
        assert (made.status, made.output_text) == ("completed", "Hello")
        assert made.id.startswith("resp_")
        assert (made.model, made.service_tier, made.temperature) == ("tiny", "flex", 0.5)
        assert (made.instructions, made.metadata, made.user) == (
            "Be brief.",
            {"a": "b"},
            "somebody",
        )
        assert made.usage is not None
        assert (made.usage.input_tokens, made.usage.output_tokens) == (7, 2)
        asked = body(it)
        assert asked["messages"] == [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Say hello."},
        ]
        assert (asked["max_completion_tokens"], asked["temperature"]) == (20, 0.5)
        assert (asked["top_k"], asked["seed"], asked["user"]) == (7, 2**70, "somebody")
        assert not {"input", "instructions", "metadata", "store", "text"} & {*asked}
        request = it.solver.heard(m.Arrived)[0].request
        assert (request.slo_class, request.tenant) == ("batch-1", "somebody")
        assert await api.responses.retrieve(made.id) == made


async def test_a_response_as_a_stream() -> None:
    async with fleet() as it, client(it) as api:
        script(it, [{"reasoning": "Hm."}, *words("Hel", "lo")])
        async with api.responses.stream(**HELLO) as stream:
            events = [event async for event in stream]
            final = await stream.get_final_response()
        assert [event.sequence_number for event in events] == list(range(len(events)))
        deltas = [one.delta for one in events if one.type == "response.output_text.delta"]
        assert deltas == ["Hel", "lo"]
        assert final.output_text == "Hello"
        assert final.output[0].type == "reasoning"
        assert final.output[0].content[0].text == "Hm."  # type: ignore[index]
        stored = await api.responses.retrieve(final.id)
        assert stored.to_dict()["output"][0] == final.to_dict()["output"][0]  # type: ignore[index]
        assert stored.output_text == "Hello"


async def test_a_thread_may_use_it_too() -> None:
    async with fleet() as it:
        it.agent.answer("a", "b")

        def work() -> list[str]:
            with openai.OpenAI(base_url=f"{it.url}/v1", api_key="x", max_retries=0) as api:
                whole = api.responses.create(**HELLO)
                with api.responses.stream(**HELLO) as stream:
                    streamed = stream.get_final_response()
                again = api.responses.retrieve(whole.id)
                items = [item.type for item in api.responses.input_items.list(whole.id)]
                api.responses.delete(whole.id)
                return [whole.output_text, streamed.output_text, again.output_text, *items]

        assert await asyncio.to_thread(work) == ["ab", "ab", "ab", "message"]


class City(pydantic.BaseModel):
    name: str
    rainy: bool


async def test_structured_output() -> None:
    async with fleet() as it, client(it) as api:
        it.agent.answer('{"name": "Delft",', ' "rainy": true}')
        made = await api.responses.parse(**HELLO, text_format=City)
        assert made.output_parsed == City(name="Delft", rainy=True)
        shape = body(it)["response_format"]
        assert (shape["type"], shape["json_schema"]["name"]) == ("json_schema", "City")
        assert shape["json_schema"]["strict"] is True
        assert shape["json_schema"]["schema"]["required"] == ["name", "rainy"]
        assert made.text is not None
        assert made.text.format.type == "json_schema"  # type: ignore[union-attr]


@pytest.mark.parametrize("stream", [False, True])
async def test_tools_there_and_back(stream: bool) -> None:
    async with fleet() as it, client(it) as api:
        script(it, call("c1", "weather", '{"city"', ': "Delft"}'), words("It rains."))
        conversation: list[Any] = [{"role": "user", "content": "Weather in Delft?"}]
        asked: dict[str, Any] = {"model": "tiny", "tools": [WEATHER]}
        if stream:
            async with api.responses.stream(input=conversation, **asked) as events:
                made: Any = await events.get_final_response()
        else:
            made = await api.responses.create(input=conversation, **asked)
        (item,) = made.output
        assert (item.type, item.name, item.call_id) == ("function_call", "weather", "c1")
        assert json.loads(item.arguments) == {"city": "Delft"}
        assert body(it)["tools"][0]["function"]["name"] == "weather"
        conversation += [item.to_dict() for item in made.output]
        conversation.append({"type": "function_call_output", "call_id": "c1", "output": "Rain."})
        made = await api.responses.create(input=conversation, **asked)
        assert made.output_text == "It rains."
        function = {"name": "weather", "arguments": '{"city": "Delft"}'}
        assert body(it)["messages"][1:] == [
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "c1", "type": "function", "function": function}],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "Rain."},
        ]


async def test_a_picture_passes() -> None:
    async with fleet() as it, client(it) as api:
        it.agent.answer("A cat.")
        picture = "data:image/png;base64,AA=="
        parts: Any = [
            {"type": "input_text", "text": "What is this?"},
            {"type": "input_image", "image_url": picture, "detail": "low"},
        ]
        await api.responses.create(model="tiny", input=[{"role": "user", "content": parts}])
        shown = {"url": picture, "detail": "low"}
        assert body(it)["messages"][0]["content"][1] == {"type": "image_url", "image_url": shown}


# ---------------------------------------------------------------- what is kept


async def test_a_conversation_goes_on_from_what_is_stored() -> None:
    async with fleet() as it, client(it) as api:
        script(it, call("c1", "weather", "{}"), words("Rain."), words("Yes."))
        first = await api.responses.create(**HELLO, instructions="One.", tools=[WEATHER])
        output: Any = {"type": "function_call_output", "call_id": "c1", "output": "Wet."}
        second = await api.responses.create(
            model="tiny", input=[output], previous_response_id=first.id, instructions="Two."
        )
        third = await api.responses.create(
            model="tiny", input="Really?", previous_response_id=second.id
        )
        assert third.previous_response_id == second.id
        assert [(one["role"], one["content"]) for one in body(it)["messages"]] == [
            ("user", "Say hello."),
            ("assistant", None),
            ("tool", "Wet."),
            ("assistant", "Rain."),
            ("user", "Really?"),
        ]
        # Each keeps its own input alone.
        items = await api.responses.input_items.list(second.id)
        assert [item.type for item in items.data] == ["function_call_output"]
        await api.responses.delete(first.id)
        with pytest.raises(openai.BadRequestError) as caught:
            await api.responses.create(**HELLO, previous_response_id=third.id)
        assert (caught.value.code, caught.value.param) == (
            "previous_response_not_found",
            "previous_response_id",
        )
        assert first.id in str(caught.value)


async def test_items_can_be_referred_to() -> None:
    async with fleet() as it, client(it) as api:
        script(it, [{"reasoning": "Hm."}, *words("Hello.")], words("Yes."))
        first = await api.responses.create(**HELLO)
        asked = (await api.responses.input_items.list(first.id)).data
        given = [{"type": "item_reference", "id": item.id} for item in (*asked, *first.output)]
        later: Any = [*given, {"role": "user", "content": "Really?"}]
        second = await api.responses.create(model="tiny", input=later)
        said = [(one["role"], one["content"]) for one in body(it)["messages"]]
        assert said == [("user", "Say hello."), ("assistant", "Hello."), ("user", "Really?")]
        assert body(it)["messages"][1]["reasoning"] == "Hm."
        # What was referred to is kept, not the reference.
        await api.responses.delete(first.id)
        items = await api.responses.input_items.list(second.id, order="asc")
        assert [item.type for item in items.data] == ["message", "reasoning", "message", "message"]
        with pytest.raises(openai.BadRequestError, match="no item") as caught:
            await api.responses.create(model="tiny", input=later)
        assert caught.value.param == "input[0].id"


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"response_chain_max": 2}, "response_chain_max"),
        ({"body_bytes_max": 4000}, "body_bytes_max"),
    ],
)
async def test_a_conversation_has_a_limit(limits: dict[str, int], words: str) -> None:
    async with fleet(limits=limits) as it, client(it) as api:
        it.agent.answer("x" * 1000)
        last = await api.responses.create(**HELLO)
        refused: openai.BadRequestError | None = None
        for _ in range(5):
            try:
                last = await api.responses.create(**HELLO, previous_response_id=last.id)
            except openai.BadRequestError as error:
                refused = error
                break
        assert refused is not None
        assert refused.param == "previous_response_id"
        assert words in str(refused)


async def test_what_is_not_to_be_stored_is_not() -> None:
    async with fleet() as it, client(it) as api:
        it.agent.answer("x")
        made = await api.responses.create(**HELLO, store=False)
        assert made.to_dict()["store"] is False
        with pytest.raises(openai.NotFoundError):
            await api.responses.retrieve(made.id)
        with pytest.raises(openai.BadRequestError, match="not found"):
            await api.responses.create(**HELLO, previous_response_id=made.id)
        url = f"{it.url}/v1/responses"
        kept = await post(url, HELLO | {"store": False}, {"x-qlm-durable": "true"})
        assert (await get(f"{url}/{kept[1]['id']}"))[0] == 404


async def test_input_items_come_in_pages() -> None:
    async with fleet() as it, client(it) as api:
        it.agent.answer("x")
        said: Any = [{"role": "user", "content": str(number)} for number in range(5)]
        made = await api.responses.create(model="tiny", input=said)
        page = await api.responses.input_items.list(made.id, limit=2)
        assert page.has_more
        found = [item async for item in page]
        assert [item.content[0].text for item in found] == ["4", "3", "2", "1", "0"]  # type: ignore[union-attr, index]
        page = await api.responses.input_items.list(made.id, order="asc", after=found[1].id)
        assert [item.id for item in page.data] == [found[0].id]
        assert not page.has_more
        for wrong in ({"limit": 101}, {"after": "x"}, {"order": "up"}):
            with pytest.raises(openai.BadRequestError) as caught:
                await api.responses.input_items.list(made.id, extra_query=wrong)
            assert caught.value.param == next(iter(wrong))


async def test_a_deleted_response_is_as_one_that_never_was() -> None:
    async with fleet() as it, client(it) as api:
        it.agent.answer("x")
        made = await api.responses.create(**HELLO)
        await api.responses.delete(made.id)
        for act in (api.responses.retrieve, api.responses.delete, api.responses.cancel):
            with pytest.raises(openai.NotFoundError, match="not found"):
                await act(made.id)
        assert (await get(f"{it.url}/v1/requests/{made.id}"))[0] == 404


async def test_chats_are_no_responses() -> None:
    async with fleet() as it, client(it) as api:
        it.agent.answer("x")
        chat = await api.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "x"}],
            extra_headers={"x-qlm-durable": "true"},
        )
        for id in (chat.id, "resp_0", "%2e%2e"):
            with pytest.raises(openai.NotFoundError):
                await api.responses.retrieve(id)
        with pytest.raises(openai.BadRequestError, match="not found"):
            await api.responses.create(**HELLO, previous_response_id=chat.id)


async def test_an_answer_is_told_once_it_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []
    keep = MemoryStore.keep

    async def failing(self: MemoryStore, request: Any, end: Any) -> bool:
        tried.append(request.id)
        if len(tried) < 3:
            raise StoreError("the disk is full")
        return await keep(self, request, end)

    monkeypatch.setattr(keeping, "STORE_RETRY_S", 0.01)
    monkeypatch.setattr(MemoryStore, "keep", failing)
    async with fleet() as it, client(it) as api:
        it.agent.answer("x")
        made = await api.responses.create(**HELLO)
        assert tried == [made.id] * 3
        assert await api.responses.retrieve(made.id) == made
        made = await api.responses.create(**HELLO, store=False)
        assert len(tried) == 3


async def test_a_gateway_that_stops_waits_for_no_store(monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(*_: object) -> bool:
        raise StoreError("the disk is full")

    monkeypatch.setattr(MemoryStore, "keep", full)
    async with fleet() as it, client(it) as api:
        it.agent.answer("x")
        asked = asyncio.create_task(api.responses.create(**HELLO))
        await soon(lambda: ended(it.solver) == [Phase.FINISHED])
        await it.gateway.driver.drain()
        with pytest.raises(openai.InternalServerError, match="cannot keep the answer"):
            await asked


# ---------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize(
    ("fields", "status", "param", "code"),
    [
        ({"model": "nope"}, 404, "model", "model_not_found"),
        ({"input": None}, 400, "input", "missing_field"),
        ({"tools": [{"type": "web_search"}]}, 400, "tools[0].type", "unsupported_value"),
        ({"conversation": "conv_1"}, 400, "conversation", "unsupported_parameter"),
        ({"service_tier": "gold"}, 400, "service_tier", "unknown_service_tier"),
        ({"max_output_tokens": -1}, 400, "max_output_tokens", "invalid_value"),
        ({"max_output_tokens": 2**70}, 400, "max_output_tokens", "invalid_value"),
    ],
)
async def test_what_cannot_be_used_is_refused_by_name(
    fields: dict[str, Any], status: int, param: str, code: str
) -> None:
    async with fleet() as it:
        got, answer, _ = await post(f"{it.url}/v1/responses", HELLO | fields)
        assert (got, answer["error"]["param"], answer["error"]["code"]) == (status, param, code)
        # A field of the chat that it becomes is none that its client knows.
        assert "max_completion_tokens" not in answer["error"]["message"]
        assert len(it.gateway.driver.ledger) == 0


async def test_what_cannot_fit_is_said_to_be_too_long() -> None:
    async with fleet() as it, client(it) as api:
        with pytest.raises(openai.BadRequestError) as caught:
            await api.responses.create(model="tiny", input="x" * 1_100_000)
        assert (caught.value.param, caught.value.code) == ("input", "context_length_exceeded")


async def test_an_engines_refusal_reaches_the_client() -> None:
    async with fleet() as it, client(it) as api:
        it.agent.on_payload = lambda payload: it.agent.send(
            m.AttemptEnded(
                payload.id, payload.attempt, "error",
                error="This model's maximum context length is 9 tokens.", error_status=400,
            )
        )  # fmt: skip
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError) as caught:
                await api.responses.create(**HELLO, stream=stream)  # type: ignore[call-overload]
            assert (caught.value.param, caught.value.code) == ("input", "context_length_exceeded")


async def test_what_fails_in_the_middle_of_a_stream_is_an_event() -> None:
    async with fleet() as it, client(it) as api:

        def fail(payload: m.Payload) -> None:
            say(it, payload, words("Hel"), None)
            it.agent.send(m.AttemptEnded(payload.id, payload.attempt, "error", error_status=422))

        it.agent.on_payload = fail
        stream = await api.responses.create(**HELLO, stream=True)
        events = [event async for event in stream]
        assert events[-1].type == "response.failed"
        response = events[-1].response
        assert (response.status, response.error.code) == ("failed", "invalid_prompt")  # type: ignore[union-attr]
        assert response.output[0].status == "incomplete"  # type: ignore[union-attr]
        # It is not kept: its client has been told, and nobody waits for it.
        with pytest.raises(openai.NotFoundError):
            await api.responses.retrieve(response.id)


async def test_output_that_is_cut_short_is_incomplete() -> None:
    async with fleet() as it, client(it) as api:
        script(it, words("Hel", "lo"), finish="length")
        made = await api.responses.create(**HELLO, max_output_tokens=2)
        assert (made.status, made.incomplete_details.reason) == ("incomplete", "max_output_tokens")  # type: ignore[union-attr]
        assert made.output[0].status == "incomplete"  # type: ignore[union-attr]


async def test_a_client_that_hangs_up_cancels() -> None:
    async with fleet() as it:
        it.agent.on_payload = lambda payload: say(it, payload, words("first"), None)
        async with aiohttp.ClientSession() as session:
            answer = await session.post(f"{it.url}/v1/responses", json=HELLO | {"stream": True})
            first = await answer.content.readline()
            assert first == b"event: response.created\n"
            id = json.loads((await answer.content.readline())[6:])["response"]["id"]
            answer.close()
        await soon(lambda: ended(it.solver) == [Phase.CANCELLED])
        assert (await get(f"{it.url}/v1/responses/{id}"))[0] == 404


async def test_only_what_runs_in_the_background_can_be_cancelled_or_streamed_again() -> None:
    async with fleet() as it, client(it) as api:
        it.agent.answer("x")
        made = await api.responses.create(**HELLO)
        with pytest.raises(openai.BadRequestError, match="Cannot cancel a synchronous response"):
            await api.responses.cancel(made.id)
        with pytest.raises(openai.BadRequestError, match="background") as caught:
            await api.responses.retrieve(made.id, stream=True)
        assert caught.value.param == "stream"


async def test_a_response_that_is_running_can_be_looked_at() -> None:
    async with fleet() as it, client(it) as api:
        it.agent.on_payload = lambda payload: say(it, payload, words("Hel"), None)
        stream = await api.responses.create(**HELLO, stream=True)
        first = await anext(aiter(stream))
        found = await api.responses.retrieve(first.response.id)  # type: ignore[union-attr]
        assert (found.status, found.output) == ("in_progress", [])
        with pytest.raises(openai.BadRequestError, match="has not ended"):
            await api.responses.create(**HELLO, previous_response_id=found.id)
        say(it, it.agent.payloads[0], words("lo"))
        async for event in stream:
            last = event
        assert last.type == "response.completed"


# ---------------------------------------------------------------- keys


async def test_a_key_names_a_response() -> None:
    async with fleet() as it:
        it.agent.answer("Hel", "lo")
        url, key = f"{it.url}/v1/responses", {"idempotency-key": "k"}
        first, again = await post(url, HELLO, key), await post(url, HELLO, key)
        assert (first[0], again[0]) == (200, 200)
        assert again[1] == first[1]
        assert len(it.agent.payloads) == 1
        async with (
            aiohttp.ClientSession() as session,
            session.post(url, json=HELLO | {"stream": True}, headers=key) as answer,
        ):
            events = [
                json.loads(line[6:])
                for line in (await answer.text()).split("\n")
                if line.startswith("data:")
            ]
        assert events[-1]["response"] == first[1]
        for other in (HELLO | {"metadata": {"a": "b"}}, HELLO | {"input": "x"}):
            status, said, _ = await post(url, other, key)
            assert (status, said["error"]["code"]) == (409, "idempotency_key_reused")
        chat = {"model": "tiny", "messages": [{"role": "user", "content": "Say hello."}]}
        status, said, _ = await post(f"{it.url}/v1/chat/completions", chat, key)
        assert (status, said["error"]["code"]) == (409, "idempotency_key_reused")


async def test_output_that_was_merged_is_told_in_its_order() -> None:
    async with fleet(limits={"stream_backlog_chunks_max": 5}) as it, client(it) as api:
        deltas = [{"reasoning": "a"}, *words("b", "c"), {"reasoning": "d"}, *words("e")] * 20
        script(it, deltas)
        stream = await api.responses.create(**HELLO, stream=True)
        events = [event async for event in stream]
        told = [event for event in events if event.type.endswith(".delta")]
        assert len(told) < len(deltas)
        final = events[-1].response  # type: ignore[union-attr]
        kept = await api.responses.retrieve(final.id)
        assert [item.to_dict() for item in final.output] == [item.to_dict() for item in kept.output]
        texts = [item.content[0].text for item in kept.output]  # type: ignore[union-attr, index]
        assert texts == ["a", "bc", "d", "e"] * 20
