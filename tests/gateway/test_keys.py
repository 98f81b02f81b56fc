"""API keys, and idempotency keys, which belong to an API key and to a request's content."""

import asyncio
import json
from typing import Any

import grpc
import openai
import pytest

from gateway.keys import ApiKeys, Caller
from protos.keyring import bearer
from protos.qlm.v1 import client_service_pb2 as pb
from qlm_core.config import GatewayConfig
from qlm_core.secret import Secret
from tests.gateway.peers import config, fleet, running
from tests.gateway.test_grpc import Client, collect, new, text_of
from tests.gateway.test_http import CHAT, get, post

OTHER = CHAT | {"messages": [{"role": "user", "content": "Say goodbye."}]}


def test_a_bearer_has_no_case_and_any_blanks() -> None:
    for said in (b"Bearer k1", b"bearer k1", b"BEARER  k1", b" bEaReR\tk1 "):
        assert bearer(said) == b"k1"
    for said in (b"", b"k1", b"Basic k1", b"Bearer", b"Bearer ", b"Bearerk1"):
        assert bearer(said) == b""
    assert bearer(b"bearer a b") == b"a b"


def test_an_owner_is_who_brings_a_key_that_is_known() -> None:
    keys = ApiKeys(GatewayConfig(api_keys=(Secret("k1"), Secret("k2"))))
    callers = [keys.caller(said) for said in (b"Bearer k1", b"bearer k1", b"Bearer k2")]
    assert callers[0] == callers[1] != callers[2]
    assert "k1" not in str(callers)
    assert [keys.caller(said) for said in (b"", b"Bearer k", b"Bearer k12", b"k1")] == [None] * 4
    anyone = ApiKeys(GatewayConfig())
    assert anyone.caller(b"") == Caller(tenant="", operator=True)
    assert callers[0] is not None
    assert anyone.caller(b"Bearer k1") == Caller(tenant=callers[0].tenant, operator=True)


async def test_keys_are_accepted_as_the_standard_has_them() -> None:
    async with running(config(api_keys=["k0", "k1"])) as (_, at), Client(at.grpc) as stub:
        url = f"http://{at.http}/v1/completions"
        body = {"model": "nope", "prompt": "x"}
        for said in ("bearer k1", "BEARER   k0", "Bearer k1 "):
            assert (await post(url, body, {"authorization": said}))[0] == 404
            metadata = (("authorization", said),)
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await stub.GetRequest(pb.GetRequestRequest(id="x"), metadata=metadata)
            assert raised.value.code() is grpc.StatusCode.NOT_FOUND
        for said in ("k1", "Basic k1", "Bearer k1 k1"):
            assert (await post(url, body, {"authorization": said}))[0] == 401


async def test_a_key_with_other_content_is_a_conflict() -> None:
    async with fleet() as it, Client(it.addresses.grpc) as stub:
        url = f"{it.url}/v1/chat/completions"
        it.agent.on_payload = lambda payload: None
        first = asyncio.create_task(post(url, CHAT, {"idempotency-key": "k"}))
        payload = await it.agent.payload()
        for ended in (False, True):
            for body, path, more in (
                (OTHER, "chat/completions", {}),
                (CHAT | {"prompt": "x"}, "completions", {}),
                (CHAT, "chat/completions", {"x-qlm-slo-class": "batch-2"}),
            ):
                headers = {"idempotency-key": "k"} | more
                status, said, told = await post(f"{it.url}/v1/{path}", body, headers)
                assert (status, said["error"]["code"]) == (409, "idempotency_key_reused")
                assert said["error"]["param"] == "idempotency-key"
                assert told["x-should-retry"] == "false"  # type: ignore[index, call-overload]
            submit = pb.SubmitRequest(request=new(idempotency_key="k"))
            enqueue = pb.EnqueueRequest(request=new(idempotency_key="k"))
            for call in (collect(stub.Submit(submit)), stub.Enqueue(enqueue)):
                with pytest.raises(grpc.aio.AioRpcError) as raised:
                    await call
                assert raised.value.code() is grpc.StatusCode.ALREADY_EXISTS
            if not ended:
                it.agent.say(payload, "one", finish="stop")
                await first
        # What was asked for first is still there, in whatever order and form it is asked for again.
        again: Any = dict(reversed(CHAT.items()))
        _, said, _ = await post(url, json.dumps(again, indent=4), {"idempotency-key": "k"})
        assert said["choices"][0]["message"]["content"] == "one"
        same = new(idempotency_key="k", body_json=json.dumps(CHAT).encode())
        assert text_of(await collect(stub.Submit(pb.SubmitRequest(request=same)))) == "one"
        assert len(it.agent.payloads) == 1


async def test_the_openai_client_does_not_send_a_conflict_again() -> None:
    async with fleet() as it:
        it.agent.answer("one")
        async with openai.AsyncOpenAI(base_url=f"{it.url}/v1", api_key="x") as api:
            headers = {"idempotency-key": "k"}
            await api.chat.completions.create(**CHAT, extra_headers=headers)  # type: ignore[arg-type]
            with pytest.raises(openai.ConflictError):
                await api.chat.completions.create(**OTHER, extra_headers=headers)  # type: ignore[arg-type]
        refused = 'qlm_requests_refused_total{code="idempotency_key_reused"} 1.0'
        assert refused in (await get(f"{it.url}/metrics"))[1]


@pytest.mark.parametrize("configured", [True, False])
async def test_the_same_key_of_another_is_another(configured: bool) -> None:
    async with fleet(api_keys=["a", "b"] if configured else []) as it:
        async with Client(it.addresses.grpc) as stub:
            url = f"{it.url}/v1/chat/completions"
            answers = []
            for who in ("a", "b", "a"):
                it.agent.answer(f"{who}{len(answers)}")
                headers = {"idempotency-key": "k", "authorization": f"Bearer {who}"}
                _, said, _ = await post(url, CHAT, headers)
                answers.append(said["choices"][0]["message"]["content"])
            assert answers == ["a0", "b1", "a0"]
            same = new(idempotency_key="k", body_json=json.dumps(CHAT).encode())
            for who, text in (("a", "a0"), ("b", "b1")):
                call = stub.Submit(
                    pb.SubmitRequest(request=same), metadata=(("authorization", f"bearer {who}"),)
                )
                assert text_of(await collect(call)) == text
        assert len(it.agent.payloads) == 2
