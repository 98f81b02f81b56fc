"""Agents that come, go, evict and die: the client's stream goes on without a gap or a repetition."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest

from gateway.live import Live
from protos.qlm.v1 import client_service_pb2 as pb
from protos.qlm.v1 import types_pb2
from qlm_core import messages as m
from qlm_core.model import Phase, RequestId
from qlm_core.outcome import PullRefusal, ShedReason
from tests.gateway.peers import (
    WAIT_S,
    Agent,
    config,
    ended,
    fleet,
    running,
    soon,
)
from tests.gateway.test_grpc import CHAT as NEW_BODY
from tests.gateway.test_grpc import Client, collect, new, text_of
from tests.gateway.test_http import CHAT, client, post


def evict(payload: m.Payload) -> m.AttemptReturned:
    return m.AttemptReturned(payload.id, payload.attempt, m.ReturnReason.EVICTED)


async def test_an_evicted_stream_goes_on_where_it_stopped() -> None:
    async with fleet() as it, client(it) as api:
        asked = asyncio.create_task(_chat_stream(api))
        first = await it.agent.payload()
        role = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}
        it.agent.send(m.Chunk(first.id, first.attempt, json.dumps(role).encode(), 0))
        it.agent.say(first, "one ", "two ")
        it.agent.send(evict(first))
        await soon(lambda: it.solver.heard(m.Returned))
        assert it.solver.heard(m.Returned)[0].produced_tokens == 2
        it.agent.pull(first.id)
        second = await it.agent.payload(1)
        assert (second.resume_text, second.produced_tokens) == ("one two ", 2)
        assert second.attempt > first.attempt
        it.agent.say(second, "three", finish="stop")
        parts = await asked
        deltas = [part.choices[0].delta for part in parts if part.choices]
        assert "".join(delta.content or "" for delta in deltas) == "one two three"
        assert [delta.role for delta in deltas if delta.role] == ["assistant"]
        assert len({part.id for part in parts}) == 1
        assert parts[-1].usage.completion_tokens == 3
        # The second engine counted 7 prompt tokens, of which 2 were the first's output.
        assert parts[-1].usage.prompt_tokens == 5


async def test_an_evicted_answer_without_a_limit_goes_on_however_long_its_prompt_seems() -> None:
    async with fleet() as it:
        # About 1200 tokens by its size, in a model of 1000; the engine counts fewer and takes it.
        long = {"model": "tiny", "messages": [{"role": "user", "content": "    " * 1200}]}
        asked = asyncio.create_task(post(f"{it.url}/v1/chat/completions", long))
        first = await it.agent.payload()
        it.agent.say(first, "one ", "two ")
        it.agent.send(evict(first))
        await soon(lambda: it.solver.heard(m.Returned))
        it.agent.pull(first.id)
        second = await it.agent.payload(1)
        assert (second.resume_text, second.produced_tokens) == ("one two ", 2)
        assert "max_tokens" not in json.loads(second.body)
        it.agent.say(second, "three", finish="stop")
        _, answer, _ = await asked
        choice = answer["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("one two three", "stop")


async def _chat_stream(api: Any) -> list[Any]:
    stream = await api.chat.completions.create(
        **CHAT, stream=True, stream_options={"include_usage": True}
    )
    return [part async for part in stream]


async def test_a_broken_stream_is_forgiven_within_the_grace() -> None:
    async with fleet(agent_grace_s=5.0) as it:
        asked = asyncio.create_task(post(f"{it.url}/v1/chat/completions", CHAT))
        payload = await it.agent.payload()
        it.agent.say(payload, "before ")
        await soon(lambda: it.solver.heard(m.FirstToken))
        await it.agent.__aexit__()
        again = Agent(it.addresses.agents)
        again.running = (m.Attempt(payload.id, payload.attempt, 1),)
        async with again:
            again.say(payload, "after", finish="stop")
            _, answer, _ = await asked
        assert answer["choices"][0]["message"]["content"] == "before after"
        assert it.solver.heard(m.Returned) == []


async def test_a_lost_agents_work_goes_to_another() -> None:
    async with fleet(agent_grace_s=0.05) as it:
        asked = asyncio.create_task(post(f"{it.url}/v1/chat/completions", CHAT))
        payload = await it.agent.payload()
        it.agent.say(payload, "before ")
        await soon(lambda: it.solver.heard(m.FirstToken))
        await it.agent.__aexit__()
        await soon(lambda: it.solver.heard(m.Returned))
        async with Agent(it.addresses.agents, "agent-1") as other:
            other.pull(payload.id)
            resumed = await other.payload()
            assert resumed.resume_text == "before "
            other.say(resumed, "after", finish="stop")
            _, answer, _ = await asked
        assert answer["choices"][0]["message"]["content"] == "before after"
        # The first agent was only slow: what it still sends is refused.
        late = Agent(it.addresses.agents)
        late.running = (m.Attempt(payload.id, payload.attempt, 1),)
        async with late:
            await soon(lambda: m.Revoked(payload.id, payload.attempt) in late.orders)


async def test_what_cannot_be_continued_starts_over_while_unseen() -> None:
    async with fleet() as it:
        url = f"{it.url}/v1/chat/completions"
        asked = asyncio.create_task(post(url, CHAT | {"logprobs": True}))
        first = await it.agent.payload()
        it.agent.say(first, "lost")
        it.agent.send(evict(first))
        await soon(lambda: it.solver.heard(m.Returned))
        it.agent.pull(first.id)
        second = await it.agent.payload(1)
        assert (second.resume_text, second.produced_tokens) == ("", 0)
        it.agent.say(second, "whole", finish="stop")
        _, answer, _ = await asked
        assert answer["choices"][0]["message"]["content"] == "whole"


@pytest.mark.parametrize("begun", [True, False])
async def test_a_begun_tool_call_pins_a_stream_to_its_engine(begun: bool) -> None:
    async with fleet() as it:
        url = f"{it.url}/v1/chat/completions"
        call = {"index": 0, "id": "c", "type": "function", "function": {"name": "f"}}
        delta = {"tool_calls": [call] if begun else [], "content": "x"}
        data = json.dumps({"choices": [{"index": 0, "delta": delta}]}).encode()
        body = json.dumps(CHAT).encode()
        async with Client(it.addresses.grpc) as stub:
            watch = asyncio.create_task(
                collect(stub.Submit(pb.SubmitRequest(request=new(body_json=body))))
            )
            payload = await it.agent.payload()
            output = m.Chunk(payload.id, payload.attempt, data, 1, plain=not begun)
            it.agent.send(output, evict(payload))
            if begun:
                end = (await watch)[-1].ended
                assert end.phase == types_pb2.PHASE_FAILED
                assert "cannot be continued" in end.reason
            else:
                await soon(lambda: it.solver.heard(m.Returned))
                it.agent.pull(payload.id)
                again = await it.agent.payload(1)
                assert again.resume_text == "x"
                it.agent.say(again, "y", finish="stop")
                assert text_of(await watch) == "xy"
        assert url


async def test_pulls_of_taken_and_unknown_requests_are_refused() -> None:
    async with fleet() as it, Agent(it.addresses.agents, "agent-1") as other:
        asked = asyncio.create_task(post(f"{it.url}/v1/chat/completions", CHAT))
        payload = await it.agent.payload()
        other.pull(payload.id)
        other.pull("nobody's")
        await soon(lambda: len(other.orders) == 2)
        assert [order.reason.value for order in other.orders] == ["taken", "unknown"]  # type: ignore[union-attr]
        it.agent.say(payload, "x", finish="stop")
        assert (await asked)[0] == 200


async def test_a_draining_gateway_finishes_what_runs_and_keeps_what_is_durable() -> None:
    async with fleet(drain_s=5.0) as it, Client(it.addresses.grpc) as stub:
        asked = asyncio.create_task(post(f"{it.url}/v1/chat/completions", CHAT))
        payload = await it.agent.payload()
        it.solver.on_arrival = lambda id: None
        watch = asyncio.create_task(collect(stub.Submit(pb.SubmitRequest(request=new()))))
        await soon(lambda: len(it.gateway.driver.ledger) == 2)
        stopping = asyncio.create_task(it.gateway.driver.drain())
        await soon(lambda: it.gateway.driver.draining)
        assert (await post(f"{it.url}/v1/chat/completions", CHAT))[0] == 503
        it.agent.say(payload, "x", finish="stop")
        assert (await asked)[0] == 200
        await stopping
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await watch
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_ending_the_streams_of_agents_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    async with fleet() as it, Agent(it.addresses.agents, "twice") as first:
        await soon(lambda: first.joined)
        async with Agent(it.addresses.agents, "twice"):
            await soon(lambda: first.status is not None)
    assert first.status is grpc.StatusCode.ABORTED
    assert [one.getMessage() for one in caplog.records if one.levelname == "ERROR"] == []


async def test_a_durable_stream_is_told_of_the_drain_before_its_end() -> None:
    async with fleet() as it:
        asked = CHAT | {"stream": True, "stream_options": {"include_usage": True}}
        it.agent.on_payload = lambda payload: it.agent.say(payload, "begun")
        async with (
            aiohttp.ClientSession() as session,
            session.post(
                f"{it.url}/v1/chat/completions", json=asked, headers={"x-qlm-durable": "true"}
            ) as answer,
        ):
            await answer.content.readuntil(b"\n\n")
            await it.gateway.driver.drain()
            events = (await answer.text()).split("\n\n")
        assert json.loads(events[0].removeprefix("data: "))["error"]["code"] == "unavailable"
        assert events[1:] == ["data: [DONE]", ""]


@pytest.mark.parametrize("again", ["http", "grpc"])
async def test_a_key_of_a_request_that_was_shed_can_be_used_again(again: str) -> None:
    async with fleet() as it, Client(it.addresses.grpc) as stub:
        url = f"{it.url}/v1/chat/completions"
        key = {"idempotency-key": "k"}
        it.solver.on_arrival = lambda id: it.solver.orders.put(
            m.ShedOrder(id, ShedReason.SATURATED)
        )
        status, _, headers = await post(url, CHAT, key)
        assert status == 429
        it.solver.on_arrival = it.agent.pull
        it.agent.answer("ran")
        if again == "http":
            status, answer, _ = await post(url, CHAT, key)
            assert (status, answer["choices"][0]["message"]["content"]) == (200, "ran")
        same = new(idempotency_key="k", body_json=json.dumps(CHAT).encode())
        submit = pb.SubmitRequest(request=same)
        assert text_of(await collect(stub.Submit(submit))) == "ran"
        assert len(it.agent.payloads) == 1
        # The shed one is still known by its id.
        shed = pb.GetRequestRequest(id=headers["x-qlm-request-id"])  # type: ignore[index, call-overload]
        assert (await stub.GetRequest(shed)).ended.phase == types_pb2.PHASE_SHED


@pytest.mark.parametrize("again", ["http", "grpc"])
async def test_a_repeated_key_that_streams_has_seen_what_came(again: str) -> None:
    async with fleet() as it, Client(it.addresses.grpc) as stub, aiohttp.ClientSession() as session:
        url, key = f"{it.url}/v1/chat/completions", {"idempotency-key": "k"}
        # With log-probabilities a request cannot be continued elsewhere.
        body = CHAT | {"logprobs": True}
        first = asyncio.create_task(post(url, body, key))
        payload = await it.agent.payload()
        it.agent.say(payload, "one ")
        await soon(lambda: it.solver.heard(m.FirstToken))
        if again == "http":
            stream = await session.post(url, json=body | {"stream": True}, headers=key)
            assert b"one " in await stream.content.readuntil(b"\n\n")
        else:
            same = new(idempotency_key="k", body_json=json.dumps(body).encode())
            call = stub.Submit(pb.SubmitRequest(request=same))
            await call.read()
            assert text_of([(await call.read()).event]) == "one "
        it.agent.send(evict(payload))
        assert (await asyncio.wait_for(first, WAIT_S))[0] == 502
        await soon(lambda: ended(it.solver) == [Phase.FAILED])
        if again == "http":
            events = (await stream.text()).split("\n\n")
            assert "cannot be continued" in events[0]
            assert events[1:] == ["data: [DONE]", ""]


@pytest.mark.parametrize("durable", [True, False])
async def test_an_answer_that_cannot_be_put_together_ends_its_request(
    durable: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> bytes:
        raise TypeError("a mistake of ours")

    monkeypatch.setattr(Live, "response" if durable else "finish_output", broken)
    async with fleet() as it:
        it.agent.answer("x")
        headers = {"x-qlm-durable": "true"} if durable else {}
        asked = post(f"{it.url}/v1/chat/completions", CHAT, headers)
        status, said, told = await asyncio.wait_for(asked, WAIT_S)
        assert (status, said["error"]["code"]) == (502, "failed")
        assert "its log says why" in said["error"]["message"]
        id = told["x-qlm-request-id"]  # type: ignore[index, call-overload]
        assert it.gateway.driver.live(id) is None
    [line] = [one for one in caplog.records if "put an answer together" in one.getMessage()]
    assert line.request == id  # type: ignore[attr-defined]
    assert line.reason.startswith("TypeError in ")  # type: ignore[attr-defined]
    assert "broken:" in line.reason  # type: ignore[attr-defined]
    assert "a mistake of ours" not in caplog.text
    assert "Say hello." not in caplog.text


async def test_too_much_output_fails_its_request() -> None:
    async with fleet(limits={"stored_output_bytes_max": 1000}) as it:
        it.agent.answer(*["x" * 100] * 20)
        status, answer, _ = await post(f"{it.url}/v1/chat/completions", CHAT)
        assert status == 502
        assert "stored_output_bytes_max" in answer["error"]["message"]


async def test_a_payload_that_no_message_holds_fails_alone(tmp_path: Path) -> None:
    store = {"kind": "sqlite", "path": str(tmp_path / "q.sqlite")}
    body = json.dumps(json.loads(NEW_BODY) | {"image": "x" * 100_000}).encode()
    async with running(config(store=store)) as (_, at), Client(at.grpc) as stub:
        large = await stub.Enqueue(pb.EnqueueRequest(request=new(body_json=body)))
        small = await stub.Enqueue(pb.EnqueueRequest(request=new()))
    # The limits were lowered since it was stored.
    limits = {
        "body_bytes_max": 1000,
        "stored_output_bytes_max": 1000,
        "message_bytes_max": 80_000,
    }
    async with (
        running(config(store=store, limits=limits, agent_grace_s=0.0)) as (_, at),
        Client(at.grpc) as stub,
        Agent(at.agents) as agent,
    ):
        agent.answer("fine")
        agent.send(m.Pull((RequestId(large.accepted.id), RequestId(small.accepted.id))))
        async with asyncio.timeout(WAIT_S):
            watched = [
                await collect(stub.WatchRequest(pb.WatchRequestRequest(id=reply.accepted.id)))
                for reply in (large, small)
            ]
        assert watched[0][-1].ended.phase == types_pb2.PHASE_FAILED
        assert "gateway.limits.message_bytes_max (80000)" in watched[0][-1].ended.reason
        assert text_of(watched[1]) == "fine"
        assert [payload.id for payload in agent.payloads] == [small.accepted.id]
        assert m.Refused(RequestId(large.accepted.id), PullRefusal.DONE) in agent.orders
        assert agent.status is None


async def test_a_port_in_use_is_one_clear_error() -> None:
    from gateway.service import serve
    from qlm_core.errors import QlmError

    async with running(config()) as (_, at):
        taken = {"http_listen": at.http, "grpc_listen": at.grpc, "agents_listen": at.agents}
        for key, address in taken.items():
            with pytest.raises(QlmError, match=f"gateway.{key}: cannot listen on {address}"):
                await serve(config(**{key: address}))


async def test_serving_ends_cleanly_when_cancelled() -> None:
    from gateway.service import serve

    ready = asyncio.Event()
    task = asyncio.create_task(serve(config(), ready=lambda _: ready.set()))
    await ready.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
