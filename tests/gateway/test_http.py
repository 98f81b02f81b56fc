"""The HTTP front door, with the unchanged OpenAI client and by hand."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import openai
import pytest

from qlm_core import messages as m
from qlm_core.model import Phase
from tests.gateway.peers import Fleet, chunk, config, ended, fleet, running, soon

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Say hello."}]}


def client(fleet: Fleet, **options: Any) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=f"{fleet.url}/v1", api_key="unused", max_retries=0, **options
    )


async def post(
    url: str, body: Any, headers: dict[str, str] | None = None
) -> tuple[int, Any, aiohttp.typedefs.LooseHeaders]:
    data = body if isinstance(body, bytes | str) else json.dumps(body)
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, data=data, headers=headers) as answer,
    ):
        return answer.status, json.loads(await answer.text()), answer.headers


async def test_the_openai_client_chats() -> None:
    async with fleet() as it:
        it.agent.answer("Hel", "lo")
        async with client(it) as api:
            whole = await api.chat.completions.create(**CHAT, extra_body={"top_k": 7})  # type: ignore[arg-type]
            assert whole.choices[0].message.content == "Hello"
            assert whole.choices[0].finish_reason == "stop"
            assert (whole.model, whole.service_tier) == ("tiny", "default")
            assert whole.usage is not None
            assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (7, 2)
            assert json.loads(it.agent.payloads[0].body)["top_k"] == 7
            stream = await api.chat.completions.create(
                **CHAT,  # type: ignore[arg-type]
                stream=True,
                stream_options={"include_usage": True},
            )
            chunks = [part async for part in stream]
        assert {part.id for part in chunks} == {it.agent.payloads[1].id}
        assert {part.model for part in chunks} == {"tiny"}
        texts = [part.choices[0].delta.content for part in chunks if part.choices]
        assert "".join(text or "" for text in texts) == "Hello"
        assert chunks[-2].choices[0].finish_reason == "stop"
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == 2


async def test_the_openai_client_completes_from_a_thread() -> None:
    async with fleet() as it:
        it.agent.answer("a", "b", "c")

        def work() -> tuple[str, str]:
            with openai.OpenAI(base_url=f"{it.url}/v1", api_key="x", max_retries=0) as api:
                whole = api.completions.create(model="tiny", prompt=[1, 2, 3])
                stream = api.completions.create(model="tiny", prompt="abc", stream=True)
                return whole.choices[0].text, "".join(part.choices[0].text for part in stream)

        assert await asyncio.to_thread(work) == ("abc", "abc")


CALLS: list[dict[str, Any]] = [
    {"role": "assistant", "content": None},
    {"tool_calls": [{"index": 0, "id": "c1", "type": "function", "function": {"name": "f"}}]},
    {"tool_calls": [{"index": 0, "function": {"arguments": '{"a"'}}]},
    {"tool_calls": [{"index": 0, "function": {"arguments": ": 1}"}}]},
]


def with_nulls(delta: dict[str, Any]) -> dict[str, Any]:
    """As servers write it that name every field."""
    calls = [
        {"id": None, "type": None}
        | call
        | {"function": {"name": None, "arguments": None} | call["function"]}
        for call in delta.get("tool_calls", ())
    ]
    named = {"role": None, "content": None, "function_call": None, "tool_calls": calls or None}
    return named | {key: value for key, value in delta.items() if key != "tool_calls"}


@pytest.mark.parametrize(
    "deltas", [CALLS, [with_nulls(delta) for delta in [*CALLS, {}]]], ids=["bare", "with nulls"]
)
async def test_tool_calls_are_put_together(deltas: list[dict[str, Any]]) -> None:
    async with fleet() as it:

        def call(payload: m.Payload) -> None:
            for delta in deltas:
                data = json.dumps({"choices": [{"index": 0, "delta": delta}]}).encode()
                it.agent.send(m.Chunk(payload.id, 1, data, 1))
            it.agent.send(
                *[
                    m.Chunk(payload.id, payload.attempt, data, 1)
                    for data in (
                        json.dumps({"choices": [{"index": 0, "delta": d}]}).encode() for d in deltas
                    )
                ],
                m.AttemptEnded(payload.id, payload.attempt, "tool_calls", 7, 4),
            )

        it.agent.on_payload = call
        async with client(it) as api:
            whole = await api.chat.completions.create(**CHAT)  # type: ignore[arg-type]
        message = whole.choices[0].message
        assert message.tool_calls is not None
        assert [call.id for call in message.tool_calls] == ["c1"]
        assert message.tool_calls[0].function.name == "f"  # type: ignore[union-attr]
        assert json.loads(message.tool_calls[0].function.arguments) == {"a": 1}  # type: ignore[union-attr]
        assert whole.choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize(
    ("path", "body", "status", "param", "code"),
    [
        ("completions", {"model": "nope", "prompt": "x"}, 404, "model", "model_not_found"),
        ("completions", {"prompt": "x"}, 400, "model", "missing_field"),
        ("completions", {"model": "tiny"}, 400, "prompt", "missing_field"),
        ("completions", {"model": "tiny", "prompt": [1, "x"]}, 400, "prompt", "invalid_type"),
        (
            "completions",
            {"model": "tiny", "prompt": [1] * 1001},
            400,
            "prompt",
            "context_length_exceeded",
        ),
        (
            "chat/completions",
            {"model": "tiny", "messages": []},
            400,
            "messages",
            "empty_prompt",
        ),
        (
            "chat/completions",
            {"model": "tiny", "messages": [{"content": "x"}]},
            400,
            "messages[0]",
            "invalid_type",
        ),
        ("completions", b"{not json", 400, "body", "invalid_json"),
        ("completions", b"[1]", 400, "body", "invalid_json"),
        ("completions", b'"' + b"x" * 5000 + b'"', 413, "body", "body_too_large"),
        (
            "completions",
            {"model": "tiny", "prompt": "x", "service_tier": "gold"},
            400,
            "service_tier",
            "unknown_service_tier",
        ),
        (
            "completions",
            {"model": "tiny", "prompt": "x", "max_tokens": -1},
            400,
            "max_tokens",
            "invalid_value",
        ),
        (
            "completions",
            {"model": "tiny", "prompt": "x", "stream": "yes"},
            400,
            "stream",
            "invalid_type",
        ),
    ],
)
async def test_bad_bodies_are_told_what_to_mend(
    path: str, body: Any, status: int, param: str, code: str
) -> None:
    limits = {"body_bytes_max": 8000 if status != 413 else 4000}
    async with running(config(limits=limits)) as (gateway, at):
        got, answer, _ = await post(f"http://{at.http}/v1/{path}", body)
        assert (got, answer["error"]["param"], answer["error"]["code"]) == (status, param, code)
        assert answer["error"]["message"].endswith(".")
        assert len(gateway.driver.ledger) == 0
        if code == "model_not_found":
            assert "tiny, other" in answer["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/completions", 405, "method_not_allowed"),
        ("POST", "/v1/models", 405, "method_not_allowed"),
        ("POST", "/v1/moderations", 404, "not_found"),
        ("GET", "/", 404, "not_found"),
        ("DELETE", "/v1/requests/unknown", 404, "not_found"),
    ],
)
async def test_wrong_routes_and_methods(method: str, path: str, status: int, code: str) -> None:
    async with (
        running(config()) as (_, at),
        aiohttp.ClientSession() as session,
        session.request(method, f"http://{at.http}{path}") as answer,
    ):
        assert (answer.status, (await answer.json())["error"]["code"]) == (status, code)


async def test_a_body_of_unknown_length_is_cut_off_at_the_limit() -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b" " * 1000

    async with running(config(limits={"body_bytes_max": 4000})) as (_, at):
        url = f"http://{at.http}/v1/completions"
        async with aiohttp.ClientSession() as session, session.post(url, data=endless()) as answer:
            assert answer.status == 413
            assert json.loads(await answer.text())["error"]["code"] == "body_too_large"
        status, _, _ = await post(url, {"model": "nope", "prompt": "x"})
        assert status == 404


async def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    async with running(config(limits={"body_s_max": 0.05})) as (_, at):
        host, port = at.http.split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
        answer = await asyncio.wait_for(reader.read(), 5.0)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b'"code":"body_too_slow"' in answer
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize(
    "body",
    [b"", b"\xff\xfe", b'{"model": "tiny", "prompt": "\xc3("}', b'{"a":' + b"[" * 100_000],
    ids=["empty", "binary", "broken text", "too deep"],
)
async def test_rubbish_is_not_json(body: bytes) -> None:
    async with running(config()) as (_, at):
        status, answer, _ = await post(f"http://{at.http}/v1/completions", body)
        assert (status, answer["error"]["code"]) == (400, "invalid_json")


@pytest.mark.parametrize(
    ("headers", "param"),
    [
        ({"x-qlm-slo-class": "gold"}, "slo_class"),
        ({"x-llm-d-slo-ttft-ms": "nan"}, "x-llm-d-slo-ttft-ms"),
        ({"x-qlm-slo-e2e-ms": "inf"}, "x-qlm-slo-e2e-ms"),
        ({"x-llm-d-slo-ttft-ms": "soon"}, "x-llm-d-slo-ttft-ms"),
        ({"x-llm-d-inference-ttl": "5 apples"}, "x-llm-d-inference-ttl"),
        ({"x-qlm-durable": "maybe"}, "x-qlm-durable"),
        ({"x-qlm-tenant": "t" * 300}, "tenant"),
        ({"idempotency-key": "k" * 300}, "idempotency-key"),
        ({"content-encoding": "zstd"}, "content-encoding"),
    ],
)
async def test_bad_headers_are_told_what_to_mend(headers: dict[str, str], param: str) -> None:
    async with running(config()) as (_, at):
        url = f"http://{at.http}/v1/chat/completions"
        status, answer, _ = await post(url, CHAT, headers)
        expected = 415 if param == "content-encoding" else 400
        assert (status, answer["error"]["param"]) == (expected, param)


@pytest.mark.parametrize(
    ("fields", "headers", "slo_class", "ttft_s", "tier"),
    [
        ({}, {}, "interactive", 20.0, "default"),
        ({"service_tier": "auto"}, {}, "interactive", 20.0, "default"),
        ({"service_tier": "priority"}, {}, "interactive", 20.0, "priority"),
        ({"service_tier": "flex"}, {}, "batch-1", 60.0, "flex"),
        ({"service_tier": "batch-2"}, {}, "batch-2", 3600.0, "default"),
        ({"service_tier": "background"}, {}, "batch-2", 3600.0, "default"),
        ({"service_tier": "flex"}, {"x-qlm-slo-class": "batch-2"}, "batch-2", 3600.0, "default"),
        ({}, {"x-llm-d-inference-objective": "batch-1"}, "batch-1", 60.0, "flex"),
        ({}, {"x-gateway-inference-objective": "batch-1"}, "batch-1", 60.0, "flex"),
        ({}, {"x-llm-d-slo-ttft-ms": "5000"}, "explicit-4s", 5.0, "default"),
        ({}, {"x-slo-ttft-ms": "250", "x-slo-tpot-ms": "30"}, "explicit-0.25s", 0.25, "default"),
    ],
)
async def test_targets_come_from_headers_or_tier(
    fields: dict[str, str], headers: dict[str, str], slo_class: str, ttft_s: float, tier: str
) -> None:
    async with fleet() as it:
        it.agent.answer("x")
        url = f"{it.url}/v1/chat/completions"
        status, answer, _ = await post(url, CHAT | fields, headers | {"x-tenant-id": "t"})
        assert (status, answer["service_tier"]) == (200, tier)
        request = it.solver.heard(m.Arrived)[0].request
        assert (request.slo_class, request.slo.ttft_s) == (slo_class, ttft_s)
        assert request.tenant == "t"


async def test_answers_carry_ids_and_queue_time() -> None:
    async with fleet() as it:
        it.agent.answer("x")
        url = f"{it.url}/v1/chat/completions"
        _, answer, headers = await post(url, CHAT, {"x-request-id": "mine"})
        assert headers["x-request-id"] == "mine"  # type: ignore[index, call-overload]
        assert headers["x-qlm-request-id"] == answer["id"]  # type: ignore[index, call-overload]
        assert int(headers["x-llm-d-flow-queue-duration-ms"]) >= 0  # type: ignore[index, call-overload]


async def test_answers_carry_the_wait_that_was_estimated() -> None:
    async with fleet() as it:
        it.solver.estimates = True
        it.agent.on_payload = lambda payload: None
        asked = asyncio.create_task(post(f"{it.url}/v1/chat/completions", CHAT))
        payload = await it.agent.payload()
        await soon(lambda: it.gateway.driver.live(payload.id).estimate is not None)  # type: ignore[union-attr]
        it.agent.say(payload, "x", finish="stop")
        _, _, headers = await asked
        expected = "mean=1500, p50=1000, p90=2000, p99=3000"
        assert headers["x-qlm-estimated-wait-ms"] == expected  # type: ignore[index, call-overload]


async def test_a_client_that_hangs_up_cancels() -> None:
    async with fleet() as it:
        it.agent.on_payload = lambda payload: it.agent.say(payload, "first")
        url = f"{it.url}/v1/chat/completions"
        async with aiohttp.ClientSession() as session:
            answer = await session.post(url, json=CHAT | {"stream": True})
            await answer.content.readline()
            answer.close()
        await soon(lambda: ended(it.solver) == [Phase.CANCELLED])
        payload = it.agent.payloads[0]
        await soon(lambda: m.Revoked(payload.id, payload.attempt) in it.agent.orders)


async def test_a_client_that_hangs_up_while_waiting_cancels() -> None:
    async with fleet() as it:
        it.solver.on_arrival = lambda id: None
        asked = asyncio.create_task(post(f"{it.url}/v1/chat/completions", CHAT))
        await soon(lambda: len(it.gateway.driver.ledger) == 1)
        asked.cancel()
        await soon(lambda: ended(it.solver) == [Phase.CANCELLED])


async def test_an_engines_refusal_reaches_the_client() -> None:
    async with fleet() as it:
        it.agent.on_payload = lambda payload: it.agent.send(
            m.AttemptEnded(payload.id, 1 << 16, "error", error="no such lora", error_status=400)
        )
        status, answer, _ = await post(f"{it.url}/v1/chat/completions", CHAT)
        assert (status, answer["error"]["message"]) == (400, "no such lora")


async def test_rubbish_from_an_engine_fails_its_request_alone() -> None:
    async with fleet() as it:
        url = f"{it.url}/v1/chat/completions"
        for rubbish in (b"{", b"[]", b'{"choices": 3}', b'{"choices": [{"delta": "x"}]}'):

            def answer(payload: m.Payload, data: bytes = rubbish) -> None:
                it.agent.send(
                    m.Chunk(payload.id, payload.attempt, data, 1),
                    m.AttemptEnded(payload.id, payload.attempt, "stop", 1, 1),
                )

            it.agent.on_payload = answer
            status, said, _ = await post(url, CHAT)
            assert (status, said["error"]["code"]) == (502, "failed")
        it.agent.answer("fine")
        assert (await post(url, CHAT))[0] == 200


async def test_shed_requests_say_when_to_come_back() -> None:
    from qlm_core.outcome import ShedReason

    async with fleet() as it:
        it.solver.on_arrival = lambda id: it.solver.orders.put(
            m.ShedOrder(id, ShedReason.SATURATED)
        )
        status, answer, headers = await post(f"{it.url}/v1/chat/completions", CHAT)
        assert (status, answer["error"]["code"]) == (429, "rejected-saturated")
        assert headers["x-llm-d-request-dropped-reason"] == "rejected-saturated"  # type: ignore[index, call-overload]
        assert int(headers["retry-after"]) >= 1  # type: ignore[index, call-overload]


async def test_a_full_queue_turns_requests_away() -> None:
    async with running(config(limits={"open_requests_max": 1})) as (gateway, at):
        url = f"http://{at.http}/v1/chat/completions"
        first = asyncio.create_task(post(url, CHAT))
        await soon(lambda: len(gateway.driver.ledger) == 1)
        status, answer, headers = await post(url, CHAT)
        assert (status, answer["error"]["code"]) == (429, "queue_full")
        assert int(headers["retry-after"]) >= 1  # type: ignore[index, call-overload]
        first.cancel()
        await soon(lambda: len(gateway.driver.ledger) == 0)


async def test_the_time_to_live_can_be_shortened() -> None:
    async with running(config()) as (_, at):
        url = f"http://{at.http}/v1/chat/completions"
        status, answer, _ = await post(url, CHAT, {"x-llm-d-inference-ttl": "20ms"})
        # Nobody is there who could have served it.
        assert (status, answer["error"]["code"]) == (503, "rejected-no-endpoints")


async def test_keys_are_asked_for_where_configured() -> None:
    async with running(config(api_keys=["secret"])) as (_, at):
        url = f"http://{at.http}/v1/completions"
        body = {"model": "nope", "prompt": "x"}
        assert (await post(url, body))[0] == 401
        assert (await post(url, body, {"authorization": "Bearer wrong"}))[0] == 401
        assert (await post(url, body, {"authorization": "Bearer secret"}))[0] == 404


async def get(url: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        return answer.status, await answer.text()


async def test_the_views() -> None:
    async with fleet() as it:
        it.agent.answer("x")
        await post(f"{it.url}/v1/chat/completions", CHAT)
        status, body = await get(f"{it.url}/v1/models")
        assert status == 200
        assert [model["id"] for model in json.loads(body)["data"]] == ["tiny", "other", "elsewhere"]
        assert (await get(f"{it.url}/v1/models/tiny"))[0] == 200
        assert (await get(f"{it.url}/v1/models/none"))[0] == 404
        assert await get(f"{it.url}/health") == (200, '{"status":"ok","solver":true}')
        assert await get(f"{it.url}/v1/queue") == (200, '{"queues": []}')
        status, body = await get(f"{it.url}/nowhere")
        assert (status, json.loads(body)["error"]["code"]) == (404, "not_found")
        assert (await get(f"{it.url}/v1/completions"))[0] == 405
        status, body = await get(f"{it.url}/metrics")
        wanted = 'qlm_requests_total{model="tiny",outcome="finished",slo_class="interactive"} 1.0'
        assert wanted in body
        assert 'qlm_requests_open{phase="waiting"} 0.0' in body
        assert "qlm_solver_connected 1.0" in body


async def test_open_requests_can_be_seen_explained_and_cancelled() -> None:
    async with fleet() as it:
        it.solver.on_arrival = lambda id: None
        asked = asyncio.create_task(post(f"{it.url}/v1/chat/completions", CHAT))
        await soon(lambda: len(it.gateway.driver.ledger) == 1)
        listed = json.loads((await get(f"{it.url}/v1/requests"))[1])["data"]
        assert [row["phase"] for row in listed] == ["waiting"]
        id = listed[0]["id"]
        assert json.loads((await get(f"{it.url}/v1/requests/{id}"))[1])["id"] == id
        assert json.loads((await get(f"{it.url}/v1/queue/{id}"))[1])["why"] == "test"
        async with (
            aiohttp.ClientSession() as session,
            session.delete(f"{it.url}/v1/requests/{id}") as answer,
        ):
            assert await answer.json() == {"phase": "cancelled"}
        status, answer_body, _ = await asked
        assert (status, answer_body["error"]["code"]) == (499, "request_cancelled")


async def test_a_slow_reader_gets_everything_in_fewer_chunks() -> None:
    async with fleet(limits={"stream_backlog_chunks_max": 10}) as it:
        words = [f"w{number} " for number in range(200)]
        async with client(it) as api:
            asked = asyncio.create_task(api.chat.completions.create(**CHAT, stream=True))  # type: ignore[call-overload]
            payload = await it.agent.payload()
            live = it.gateway.driver.live(payload.id)
            assert live is not None
            follower = live.follow()
            it.agent.say(payload, *words, finish="stop")
            await soon(lambda: live.record is not None)
            assert len(follower) <= 11
            stream = await asked
            parts = [part async for part in stream]
        assert "".join(part.choices[0].delta.content or "" for part in parts) == "".join(words)
        kept = [json.loads(output.data) for output in await follower.take()]
        text = "".join(part["choices"][0]["delta"].get("content") or "" for part in kept)
        assert text == "".join(words)


async def test_chunks_lose_the_engines_own_names() -> None:
    async with fleet() as it:
        it.agent.on_payload = lambda payload: it.agent.send(
            m.Chunk(payload.id, payload.attempt, chunk(payload, "x", finish="stop"), 1),
            m.AttemptEnded(payload.id, payload.attempt, "stop", 1, 1),
        )
        async with client(it) as api:
            stream = await api.chat.completions.create(**CHAT, stream=True)  # type: ignore[call-overload]
            parts = [part async for part in stream]
        assert [part.choices[0].finish_reason for part in parts] == ["stop"]
        assert parts[0].model == "tiny"
        assert parts[0].created > 1
