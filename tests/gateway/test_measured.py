"""Embeddings, scores and rankings through a gateway: queued by their prompts, answered as the engine answered."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from typing import Any

import aiohttp
import openai
import pytest

from protos.qlm.v1 import client_service_pb2 as pb
from protos.qlm.v1 import types_pb2
from qlm_core import messages as m
from qlm_core.endpoint import Endpoint
from qlm_core.model import Phase
from tests.gateway.peers import Agent, Fleet, config, ended, fleet, running, soon
from tests.gateway.test_grpc import Client, collect
from tests.gateway.test_http import client, get, post

NUMBERS = b"[1.0e-3, 0.10, -2E+1]"


def answered(numbers: bytes = NUMBERS, count: int = 1) -> bytes:
    """An answer as an engine writes it, with a head of its own."""
    data = b", ".join(
        b'{"object": "embedding", "index": %d, "embedding": %b}' % (index, numbers)
        for index in range(count)
    )
    usage = b'{"prompt_tokens": 5, "total_tokens": 5, "completion_tokens": 0}'
    return (
        b'{"id": "embd-theirs", "object": "list", "created": 1, "model": "theirs", "data": [%b], '
        b'"usage": %b, "extra": 1E2}' % (data, usage)
    )


def measure(it: Fleet, answer: bytes) -> None:
    """From now on the agent answers everything with this."""
    it.agent.on_payload = lambda payload: say(it.agent, payload, answer)


def say(agent: Agent, payload: m.Payload, answer: bytes) -> None:
    agent.send(
        m.Chunk(payload.id, payload.attempt, answer, 0, plain=False, whole=True),
        m.AttemptEnded(payload.id, payload.attempt, "stop", 5, 0),
    )


async def test_the_openai_client_embeds() -> None:
    vector = [0.25, -1.0, 3.5]
    packed = json.dumps(base64.b64encode(struct.pack("<3f", *vector)).decode()).encode()
    async with fleet() as it:
        measure(it, answered(packed, count=2))
        async with client(it) as api:
            # The client asks for base64 of itself, and reads it.
            made = await api.embeddings.create(model="tiny", input=["a", "b"], dimensions=3)
        assert [one.embedding for one in made.data] == [vector, vector]
        assert (made.model, made.usage.prompt_tokens, made.usage.total_tokens) == ("tiny", 5, 5)
        [payload] = it.agent.payloads
        assert payload.endpoint is Endpoint.EMBEDDINGS
        assert json.loads(payload.body)["encoding_format"] == "base64"
        assert payload.id.startswith("embd-")


async def test_numbers_stay_as_they_were_written() -> None:
    async with fleet() as it:
        measure(it, answered())
        body = {"model": "tiny", "input": "x", "encoding_format": "float", "stream": True}
        async with asyncio.timeout(5), client(it) as api:
            raw = await api.embeddings.with_raw_response.create(
                model="tiny", input="x", encoding_format="float", extra_body={"stream": True}
            )
        assert NUMBERS in raw.content
        assert b"1E2" in raw.content
        told = json.loads(raw.content)
        id = it.agent.payloads[0].id
        assert (told["id"], told["model"]) == (id, "tiny")
        assert told["created"] > 1
        assert raw.headers["x-qlm-request-id"] == id
        # What an engine does not say is not said for it.
        measure(it, b'{"data": [], "model": "theirs"}')
        assert (await post(f"{it.url}/v1/embeddings", body))[1] == {"data": [], "model": "tiny"}


@pytest.mark.parametrize(
    ("path", "body", "endpoint", "tokens"),
    [
        ("/v1/embeddings", {"input": "x" * 40}, Endpoint.EMBEDDINGS, 10),
        # LangChain sends lists of token ids.
        ("/v1/embeddings", {"input": [[1] * 900, [2] * 900]}, Endpoint.EMBEDDINGS, 1800),
        ("/v1/embeddings", {"input": [1] * 5000}, Endpoint.EMBEDDINGS, 1000),
        ("/v1/score", {"text_1": "x" * 8, "text_2": ["y" * 8] * 3}, Endpoint.SCORE, 12),
        ("/score", {"queries": "x" * 8, "documents": ["y" * 8]}, Endpoint.SCORE, 4),
        ("/v1/rerank", {"query": "x" * 8, "documents": ["y" * 8] * 2}, Endpoint.RERANK, 8),
        ("/rerank", {"query": "x" * 8, "documents": ["y" * 8]}, Endpoint.RERANK, 4),
        ("/v2/rerank", {"query": "x" * 8, "documents": ["y" * 8]}, Endpoint.RERANK, 4),
    ],
)
async def test_the_solver_is_told_of_all_prompts_and_of_no_output(
    path: str, body: dict[str, Any], endpoint: Endpoint, tokens: int
) -> None:
    async with fleet() as it:
        answer = b'{"data": [], "results": []}'
        measure(it, answer)
        status, told, _ = await post(f"{it.url}{path}", body | {"model": "tiny"})
        assert (status, told) == (200, json.loads(answer))
        [arrived] = it.solver.heard(m.Arrived)
        assert (arrived.request.prompt_tokens, arrived.request.max_output_tokens) == (tokens, 0)
        assert it.agent.payloads[0].endpoint is endpoint
        # What was promised is the answer.
        await soon(lambda: it.solver.heard(m.FirstToken))
        assert ended(it.solver) == [Phase.FINISHED]


@pytest.mark.parametrize(
    ("path", "body", "param", "code"),
    [
        ("embeddings", {}, "input", "missing_field"),
        ("embeddings", {"input": []}, "input", "empty_prompt"),
        ("embeddings", {"input": 3}, "input", "invalid_type"),
        ("embeddings", {"input": ["x"] * 9}, "input", "invalid_value"),
        ("embeddings", {"messages": []}, "messages", "empty_prompt"),
        ("embeddings", {"input": "x", "encoding_format": "bytes"}, "encoding_format", "invalid_value"),
        ("score", {"text_2": "x"}, "text_1", "missing_field"),
        ("score", {"text_1": "x", "documents": []}, "documents", "empty_prompt"),
        ("score", {"text_1": "x", "text_2": ["x"] * 9}, "text_2", "invalid_value"),
        ("rerank", {"documents": ["x"]}, "query", "missing_field"),
        ("rerank", {"query": "x"}, "documents", "missing_field"),
    ],
)  # fmt: skip
async def test_what_cannot_be_measured_is_named(
    path: str, body: dict[str, Any], param: str, code: str
) -> None:
    async with running(config(limits={"prompts_max": 8})) as (gateway, at):
        status, told, _ = await post(f"http://{at.http}/v1/{path}", {"model": "tiny"} | body)
        error = told["error"]
        assert (status, error["param"], error["code"]) == (400, param, code)
        assert len(gateway.driver.ledger) == 0


async def test_an_engine_without_the_endpoint_is_asked_once() -> None:
    async with fleet() as it:
        words = "endpoint: the engine of this model does not serve /v1/embeddings"
        it.agent.on_payload = lambda payload: it.agent.send(
            m.AttemptEnded(payload.id, payload.attempt, "error", error=words, error_status=404)
        )
        async with client(it) as api:
            with pytest.raises(openai.NotFoundError, match="does not serve /v1/embeddings"):
                await api.embeddings.create(model="tiny", input="x")
        assert len(it.agent.payloads) == 1


async def test_one_that_was_broken_off_begins_anew_and_is_answered_once() -> None:
    """Somebody follows it, and the answer had come when the engine was lost."""
    async with fleet() as it, Client(it.addresses.grpc) as stub:

        def lose_the_first(payload: m.Payload) -> None:
            if payload.attempt > 1:
                assert (payload.produced_tokens, payload.resume_text) == (0, "")
                say(it.agent, payload, answered(b"[2]"))
                return
            chunk = m.Chunk(payload.id, 1, answered(b"[1]"), 0, plain=False, whole=True)
            lost = m.AttemptReturned(payload.id, 1, m.ReturnReason.ENGINE_LOST)
            it.agent.send(chunk, lost, m.Pull((payload.id,)))

        it.agent.on_payload = lose_the_first
        request = pb.NewRequest(
            model="tiny", body_json=b'{"input": "x"}', endpoint=types_pb2.ENDPOINT_EMBEDDINGS
        )
        events = await collect(stub.Submit(pb.SubmitRequest(request=request)))
        assert [event.WhichOneof("kind") for event in events] == ["accepted", "chunk", "ended"]
        answer = json.loads(events[1].chunk.chunk_json)
        assert answer["data"][0]["embedding"] == [2]
        id = events[0].accepted.id
        assert answer["id"] == id
        late = await collect(stub.WatchRequest(pb.WatchRequestRequest(id=id)))
        assert json.loads(late[0].chunk.chunk_json) == answer
        found = await stub.GetRequest(pb.GetRequestRequest(id=id))
        assert json.loads(found.response_json) == answer


async def test_an_answer_is_kept_as_it_came(tmp_path: Any) -> None:
    store = {"kind": "sqlite", "path": str(tmp_path / "q.sqlite")}
    async with fleet(store=store) as it:
        measure(it, answered())
        headers = {"idempotency-key": "k"}
        body = {"model": "tiny", "input": "x"}
        _, first, told = await post(f"{it.url}/v1/embeddings", body, headers)
        assert (await post(f"{it.url}/v1/embeddings", body, headers))[1] == first
        assert len(it.agent.payloads) == 1
        # Under the same key nothing else is asked for.
        same_key = {"model": "tiny", "text_1": "x", "text_2": "x", "input": "x"}
        assert (await post(f"{it.url}/v1/score", same_key, headers))[0] == 409
        status, text = await get(f"{it.url}/v1/requests/{told['x-qlm-request-id']}")
        assert status == 200
        assert NUMBERS.decode() in text
        assert json.loads(text)["usage"]["prompt_tokens"] == 5


async def test_an_end_without_an_answer_is_a_failure() -> None:
    async with fleet() as it:
        it.agent.on_payload = lambda payload: it.agent.say(payload, finish="stop")
        status, told, _ = await post(f"{it.url}/v1/embeddings", {"model": "tiny", "input": "x"})
        assert (status, told["error"]["code"]) == (502, "failed")
        assert "gave no answer" in told["error"]["message"]


@pytest.mark.parametrize("durable", [True, False])
async def test_what_an_engine_refuses_is_told_in_its_words(durable: bool) -> None:
    async with fleet() as it:
        it.agent.on_payload = lambda payload: it.agent.send(
            m.AttemptEnded(payload.id, payload.attempt, "error", error="odd!", error_status=422)
        )
        headers = {"x-qlm-durable": "true"} if durable else {}
        body = {"model": "tiny", "input": "x"}
        status, told, _ = await post(f"{it.url}/v1/embeddings", body, headers)
        assert (status, told["error"]["message"]) == (422, "odd!")


async def test_a_stored_one_that_is_cancelled_is_cancelled_and_not_failed() -> None:
    async with fleet(pulls=False) as it:
        body, later = {"model": "tiny", "input": "x"}, {"x-qlm-async": "true"}
        _, told, _ = await post(f"{it.url}/v1/embeddings", body, later)
        where = f"{it.url}/v1/requests/{told['id']}"
        async with aiohttp.ClientSession() as session, session.delete(where) as answer:
            assert (await answer.json())["phase"] == "cancelled"
        _, text = await get(where)
        found = json.loads(text)
        assert (found["phase"], found["response"]) == ("cancelled", None)


async def test_an_answer_that_is_too_long_is_refused_by_the_limit() -> None:
    limits = {"stored_output_bytes_max": 1000, "body_bytes_max": 1000}
    async with fleet(limits=limits) as it:
        measure(it, answered(b"[" + b"1.5, " * 300 + b"1.5]"))
        status, told, _ = await post(f"{it.url}/v1/embeddings", {"model": "tiny", "input": "x"})
        assert status == 502
        assert "stored_output_bytes_max" in told["error"]["message"]
