"""Clients that wait: signs of life, how long they wait, and what they are told when that is too short."""

import asyncio
import json
from typing import Any

import aiohttp
import openai
import pytest

from gateway import exchange
from gateway.headers import patience_s, trace
from qlm_core import messages as m
from qlm_core.model import Estimate, Phase
from qlm_core.outcome import ShedReason
from tests.gateway.peers import ended, fleet, soon
from tests.gateway.test_grpc import Client, new
from tests.gateway.test_http import CHAT, client, get, post

STREAM = CHAT | {"stream": True, "stream_options": {"include_usage": True}}


async def test_a_silent_stream_gets_signs_of_life() -> None:
    async with fleet(heartbeat_s=0.01) as it:
        it.agent.on_payload = lambda payload: None
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{it.url}/v1/chat/completions", json=STREAM) as answer,
        ):
            # The head came before any output, and says what is known.
            assert answer.status == 200
            assert "x-qlm-request-id" in answer.headers
            payload = await it.agent.payload()
            said: list[bytes] = []
            for text in ("Hel", "lo"):
                for _ in range(2):
                    assert await answer.content.readuntil(b"\n\n") == b": waiting\n\n"
                it.agent.say(payload, text)
                while (event := await answer.content.readuntil(b"\n\n")) == b": waiting\n\n":
                    pass
                said.append(event)
            it.agent.say(payload, finish="stop")
            rest = (await answer.read()).split(b"\n\n")
        said += [event for event in rest if event and event != b": waiting"]
        assert said[-1] == b"data: [DONE]"
        chunks = [json.loads(event.removeprefix(b"data: ")) for event in said[:-1]]
        texts = [part["choices"][0]["delta"].get("content") for part in chunks if part["choices"]]
        assert "".join(text or "" for text in texts) == "Hello"
        assert chunks[-1]["usage"]["prompt_tokens"] == 7


async def test_the_queue_is_not_told_before_it_is_known() -> None:
    async with fleet(heartbeat_s=0.01) as it:
        it.solver.on_arrival = lambda id: None
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{it.url}/v1/chat/completions", json=STREAM) as answer,
        ):
            assert "x-llm-d-flow-queue-duration-ms" not in answer.headers
            assert "x-qlm-estimated-wait-ms" not in answer.headers
            it.agent.answer("x")
            it.agent.pull(answer.headers["x-qlm-request-id"])
            assert "[DONE]" in await answer.text()


async def test_the_openai_client_reads_over_signs_of_life() -> None:
    async with fleet(heartbeat_s=0.01) as it:
        it.agent.on_payload = lambda payload: None
        async with client(it) as api:
            stream = await api.chat.completions.create(**STREAM)
            payload = await it.agent.payload()
            for text in ("Hel", "lo"):
                await asyncio.sleep(0.03)
                it.agent.say(payload, text)
            it.agent.say(payload, finish="stop")
            parts = [part async for part in stream]
        texts = [part.choices[0].delta.content for part in parts if part.choices]
        assert "".join(text or "" for text in texts) == "Hello"


async def test_an_error_after_an_early_head_is_an_event() -> None:
    async with fleet(heartbeat_s=0.01) as it:
        it.agent.on_payload = lambda payload: None
        async with client(it) as api:
            stream = await api.chat.completions.create(**STREAM)
            payload = await it.agent.payload()
            it.agent.send(
                m.AttemptEnded(payload.id, payload.attempt, "error", error="no", error_status=400)
            )
            with pytest.raises(openai.APIError, match="no") as raised:
                async for _ in stream:
                    pass
        assert raised.value.code == "engine_refused"


async def test_an_error_at_once_keeps_its_status() -> None:
    async with fleet(heartbeat_s=30.0) as it:
        it.solver.on_arrival = lambda id: it.solver.orders.put(
            m.ShedOrder(id, ShedReason.SATURATED)
        )
        assert (await post(f"{it.url}/v1/chat/completions", STREAM))[0] == 429


# --------------------------------------------------------------------------- how long a client waits


def waits(s: float) -> Estimate:
    """A wait of which half are longer than this; the mean, which a few long ones raise, is far above."""
    return Estimate(mean_s=10 * s, p50_s=s, p90_s=2 * s, p99_s=3 * s)


@pytest.mark.parametrize("stream", [False, True])
async def test_what_begins_too_late_for_its_client_is_turned_away(stream: bool) -> None:
    async with fleet() as it:
        it.solver.estimates = True
        it.solver.estimate = waits(700.0)
        it.solver.on_arrival = lambda id: None
        url, body = f"{it.url}/v1/chat/completions", CHAT | {"stream": stream}
        headers = {"x-stainless-read-timeout": "600.0"}
        status, said, told = await post(url, body, headers)
        assert (status, said["error"]["code"]) == (429, "too_late_for_client")
        assert "in about 700 s" in said["error"]["message"]
        assert "600 s only" in said["error"]["message"]
        assert told["retry-after"] == "100"  # type: ignore[index, call-overload]
        await soon(lambda: ended(it.solver) == [Phase.SHED])
        assert 'outcome="shed",slo_class="interactive"} 1.0' in (await get(f"{it.url}/metrics"))[1]


@pytest.mark.parametrize(
    ("estimate_s", "header"), [(500.0, "600"), (700.0, ""), (700.0, "soon"), (float("inf"), "600")]
)
async def test_what_may_begin_in_time_waits(estimate_s: float, header: str) -> None:
    async with fleet() as it:
        it.solver.estimates = True
        it.solver.estimate = waits(estimate_s)
        it.solver.on_arrival = lambda id: None
        headers = {"x-stainless-read-timeout": header} if header else {}
        asked = asyncio.create_task(post(f"{it.url}/v1/chat/completions", CHAT, headers))
        await soon(lambda: it.solver.heard(m.Arrived))
        id = it.solver.heard(m.Arrived)[0].request.id
        await soon(lambda: it.gateway.driver.live(id).estimate is not None)  # type: ignore[union-attr]
        it.agent.answer("x")
        it.agent.pull(id)
        assert (await asked)[0] == 200


@pytest.mark.parametrize(("judged_s", "status"), [(0.0, 200), (60.0, 429)])
async def test_an_estimate_that_comes_late_turns_nothing_away(
    judged_s: float, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "JUDGED_S", judged_s)
    async with fleet() as it:
        it.solver.on_arrival = lambda id: None
        headers = {"x-stainless-read-timeout": "600"}
        asked = asyncio.create_task(post(f"{it.url}/v1/chat/completions", CHAT, headers))
        await soon(lambda: it.solver.heard(m.Arrived))
        id = it.solver.heard(m.Arrived)[0].request.id
        live = it.gateway.driver.live(id)
        assert live is not None
        await asyncio.sleep(0.01)
        it.solver.orders.put(m.EstimateGiven(id, waits(700.0)))
        await soon(lambda: live.estimate is not None)
        it.agent.answer("x")
        it.agent.pull(id)
        assert (await asked)[0] == status


async def test_what_runs_already_is_not_turned_away() -> None:
    async with fleet() as it:
        it.agent.on_payload = lambda payload: None
        headers = {"x-stainless-read-timeout": "600"}
        asked = asyncio.create_task(post(f"{it.url}/v1/chat/completions", CHAT, headers))
        payload = await it.agent.payload()
        it.solver.orders.put(m.EstimateGiven(payload.id, waits(700.0)))
        await soon(lambda: it.gateway.driver.live(payload.id).estimate is not None)  # type: ignore[union-attr]
        it.agent.say(payload, "x", finish="stop")
        assert (await asked)[0] == 200


@pytest.mark.parametrize("more", [{"idempotency-key": "k"}, {"x-qlm-durable": "true"}])
async def test_what_can_be_fetched_later_is_kept(more: dict[str, str]) -> None:
    async with fleet() as it:
        it.solver.estimates = True
        it.solver.estimate = waits(700.0)
        it.solver.on_arrival = lambda id: None
        headers = {"x-stainless-read-timeout": "0.02"} | more
        asked = asyncio.create_task(post(f"{it.url}/v1/chat/completions", CHAT, headers))
        await soon(lambda: it.solver.heard(m.Arrived))
        id = it.solver.heard(m.Arrived)[0].request.id
        await asyncio.sleep(0.05)
        it.agent.answer("x")
        it.agent.pull(id)
        assert (await asked)[0] == 200


async def test_a_stream_with_signs_of_life_can_wait_for_longer() -> None:
    async with fleet(heartbeat_s=0.01) as it:
        it.solver.estimates = True
        it.solver.estimate = waits(700.0)
        it.solver.on_arrival = lambda id: None
        async with client(it, timeout=600.0) as api:
            stream = await api.chat.completions.create(**STREAM)
            await soon(lambda: it.solver.heard(m.Arrived))
            it.agent.answer("x")
            it.agent.pull(it.solver.heard(m.Arrived)[0].request.id)
            assert [part async for part in stream]


async def test_work_for_a_client_that_is_gone_ends() -> None:
    """A client that waits for a whole answer is gone when its time is over, whatever stands between."""
    async with fleet() as it:
        it.agent.on_payload = lambda payload: it.agent.say(payload, "x")
        headers = {"x-stainless-read-timeout": "0.05"}
        status, said, _ = await post(f"{it.url}/v1/chat/completions", CHAT, headers)
        assert (status, said["error"]["code"]) == (429, "rejected-ttl-expired")
        # The time of a stream runs from byte to byte, and its client counts that itself.
        url, done = f"{it.url}/v1/chat/completions", asyncio.Event()

        async def later(payload: m.Payload) -> None:
            it.agent.say(payload, "x")
            await done.wait()
            it.agent.say(payload, "y", finish="stop")

        tasks: list[Any] = []
        it.agent.on_payload = lambda payload: tasks.append(asyncio.create_task(later(payload)))
        async with (
            aiohttp.ClientSession() as session,
            session.post(url, json=STREAM, headers=headers) as answer,
        ):
            await answer.content.readuntil(b"\n\n")
            await asyncio.sleep(0.1)
            done.set()
            assert "[DONE]" in await answer.text()


def test_only_a_number_of_seconds_is_a_patience() -> None:
    name = b"x-stainless-read-timeout"
    given = {said: patience_s({name: said}) for said in (b"600", b"0.5", b" 3 ")}
    assert given == {b"600": 600.0, b"0.5": 0.5, b" 3 ": 3.0}
    assert [patience_s({name: said}) for said in (b"", b"0", b"-1", b"nan", b"inf", b"x")] == (
        [None] * 6
    )
    assert patience_s({}) is None


# --------------------------------------------------------------------------- traces

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
STATE = "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7"


def test_a_trace_is_nothing_without_its_parent() -> None:
    parent, state = (b"traceparent", PARENT.encode()), (b"tracestate", STATE.encode())
    assert trace(dict([parent, state])) == (("traceparent", PARENT), ("tracestate", STATE))
    assert trace(dict([parent])) == (("traceparent", PARENT),)
    assert trace(dict([state])) == ()
    assert trace({b"traceparent": b"\x00\xff"}) == ()
    assert trace({b"traceparent": b"x" * 513}) == ()


async def test_a_clients_trace_is_kept_with_its_request() -> None:
    async with fleet() as it, Client(it.addresses.grpc) as stub:
        from protos.qlm.v1 import client_service_pb2 as pb

        it.agent.on_payload = lambda payload: None
        headers = {"traceparent": PARENT, "tracestate": STATE}
        asked = asyncio.create_task(post(f"{it.url}/v1/chat/completions", CHAT, headers))
        await it.agent.payload()
        metadata = (("traceparent", PARENT),)
        await stub.Enqueue(pb.EnqueueRequest(request=new()), metadata=metadata)
        await it.agent.payload(1)
        kept = [it.gateway.driver.live(payload.id) for payload in it.agent.payloads]
        assert [live.request.trace for live in kept if live is not None] == [
            (("traceparent", PARENT), ("tracestate", STATE)),
            (("traceparent", PARENT),),
        ]
        asked.cancel()
