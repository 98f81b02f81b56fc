"""One submission named twice while it runs: whoever saw output sees one output, or is told that there will be none."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from protos.qlm.v1 import client_service_pb2 as pb
from protos.qlm.v1 import types_pb2
from qlm_core import messages as m
from tests.gateway.peers import Fleet, fleet, soon
from tests.gateway.test_grpc import CHAT as CHAT_BODY
from tests.gateway.test_grpc import Client, collect, new, text_of
from tests.gateway.test_http import CHAT, get, post

# An output of a shape of its own cannot be taken up in the middle.
WHOLE_ONLY = {"response_format": {"type": "json_object"}}
KEY = {"idempotency-key": "k"}

Watch = Callable[[Fleet, str], Any]


def request(key: str = "k") -> pb.NewRequest:
    body = json.dumps(json.loads(CHAT_BODY) | WHOLE_ONLY).encode()
    return new(body_json=body, idempotency_key=key)


async def submitted(it: Fleet, _: str) -> tuple[str, bool]:
    async with Client(it.addresses.grpc) as stub:
        events = await collect(stub.Submit(pb.SubmitRequest(request=request())))
    return text_of(events), events[-1].ended.phase == types_pb2.PHASE_FINISHED


async def watched(it: Fleet, id: str) -> tuple[str, bool]:
    async with Client(it.addresses.grpc) as stub:
        events = await collect(stub.WatchRequest(pb.WatchRequestRequest(id=id)))
    return text_of(events), events[-1].ended.phase == types_pb2.PHASE_FINISHED


async def streamed(it: Fleet, _: str) -> tuple[str, bool]:
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            f"{it.url}/v1/chat/completions", json=CHAT | WHOLE_ONLY | {"stream": True}, headers=KEY
        ) as answer,
    ):
        events = [
            json.loads(event.removeprefix("data: "))
            for event in (await answer.text()).split("\n\n")
            if event.startswith("data: {")
        ]
    text = "".join(
        choice["delta"].get("content") or ""
        for event in events
        for choice in event.get("choices", ())
    )
    return text, not any("error" in event for event in events)


async def view_of(url: str, id: str) -> tuple[int, Any]:
    """What the gateway says of a request."""
    status, text = await get(f"{url}/v1/requests/{id}")
    return status, json.loads(text)


async def enqueue(it: Fleet) -> str:
    async with Client(it.addresses.grpc) as stub:
        reply = await stub.Enqueue(pb.EnqueueRequest(request=request()))
    return str(reply.accepted.id)


async def post_whole(it: Fleet) -> str:
    """A keyed submission over HTTP whose client is gone before the answer is there."""
    asked = asyncio.create_task(post(f"{it.url}/v1/chat/completions", CHAT | WHOLE_ONLY, KEY))
    payload = await it.agent.payload()
    asked.cancel()
    return str(payload.id)


@asynccontextmanager
async def half_done(submit: Callable[[Fleet], Any]) -> AsyncIterator[tuple[Fleet, m.Payload]]:
    """A request that nobody has watched so far, with half of its output."""
    async with fleet() as it:
        id = await submit(it)
        payload = await it.agent.payload()
        assert payload.id == id
        it.agent.say(payload, "HALF1 ", "HALF2 ")
        await soon(lambda: it.gateway.driver.ledger.row(payload.id).output_tokens == 2)  # type: ignore[union-attr]
        yield it, payload


def lose(it: Fleet, payload: m.Payload) -> None:
    """The engine dies, and another attempt may begin."""
    lost = m.AttemptReturned(payload.id, payload.attempt, m.ReturnReason.ENGINE_LOST)
    it.agent.send(lost, m.Pull((payload.id,)))


def followed(it: Fleet, payload: m.Payload) -> bool:
    row = it.gateway.driver.ledger.row(payload.id)
    return row is not None and row.watched


@pytest.mark.parametrize(
    ("submit", "watch"),
    [
        (enqueue, submitted),
        (enqueue, watched),
        (post_whole, streamed),
        (post_whole, watched),
    ],
)
async def test_an_output_that_was_shown_does_not_begin_anew(
    submit: Callable[[Fleet], Any], watch: Watch
) -> None:
    async with half_done(submit) as (it, payload):
        watching = asyncio.create_task(watch(it, payload.id))
        await soon(lambda: followed(it, payload))
        lose(it, payload)
        assert await watching == ("HALF1 HALF2 ", False)
        status, view = await view_of(it.url, payload.id)
        assert (status, view["phase"]) == (200, "failed")
        assert "cannot be continued" in view["error"]
        assert len(it.agent.payloads) == 1


@pytest.mark.parametrize("watch", [submitted, watched, streamed])
async def test_who_comes_after_the_loss_sees_the_second_output_alone(watch: Watch) -> None:
    submit = post_whole if watch is streamed else enqueue
    async with half_done(submit) as (it, payload):
        lose(it, payload)
        second = await it.agent.payload(1)
        watching = asyncio.create_task(watch(it, payload.id))
        await soon(lambda: followed(it, payload))
        it.agent.say(second, "F1 ", "F2 ", "F3", finish="stop")
        assert await watching == ("F1 F2 F3", True)
        _, view = await view_of(it.url, payload.id)
        assert view["response"]["choices"][0]["message"]["content"] == "F1 F2 F3"
