"""The light client against a real gateway: both kinds of it say and hear the same, and errors say what to do."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Callable
from typing import Any, TypeVar

import pytest

import qlm.client
from gateway.grpc_client import ClientServicer
from qlm_client import (
    Accepted,
    AsyncClient,
    Busy,
    Client,
    Ended,
    NotFound,
    Output,
    Phase,
    Slo,
    calls,
)
from qlm_client.dialling import dialled
from qlm_client.errors import QlmError, Unavailable
from tests.gateway.peers import Fleet, config, fleet, running

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Say hello."}]}
Said = TypeVar("Said")


async def blocking(it: Fleet, ask: Callable[[Client], Said], **options: Any) -> Said:
    """What a blocking client gets, while this loop serves it."""

    def asked() -> Said:
        with Client(it.addresses.grpc, **options) as client:
            return ask(client)

    return await asyncio.to_thread(asked)


async def test_a_request_is_followed_from_its_acceptance_to_its_end() -> None:
    async with fleet() as it:
        it.solver.estimates = True
        it.agent.answer("Hel", "lo")
        events = await blocking(it, lambda client: list(client.submit(CHAT, tenant="t")))
        async with AsyncClient(it.addresses.grpc) as client:
            same = [event async for event in client.submit(CHAT, slo=Slo(ttft_s=5.0, e2e_s=9.0))]
            by_hand = [event async for event in client.watch(events[0].id)]  # type: ignore[union-attr]
        for told in (events, same):
            accepted, ended = told[0], told[-1]
            assert isinstance(accepted, Accepted)
            assert isinstance(ended, Ended)
            assert accepted.estimate is not None
            assert accepted.estimate.mean_s == 1.5
            assert ended.estimate == accepted.estimate
            assert (ended.phase, ended.reason, ended.attained) == (Phase.FINISHED, "stop", True)
            assert "".join(e.text for e in told if isinstance(e, Output)) == "Hello"
        assert same[0].slo_class.startswith("explicit")  # type: ignore[union-attr]
        assert "".join(e.text for e in by_hand if isinstance(e, Output)) == "Hello"


async def test_a_request_is_left_found_explained_and_cancelled() -> None:
    async with fleet(pulls=False) as it:
        async with AsyncClient(it.addresses.grpc) as client:
            left = await client.enqueue(CHAT, slo_class="batch-2", key="k")
            assert (await client.enqueue(CHAT, slo_class="batch-2", key="k")).id == left.id
            assert [one.id async for one in client.open_requests()] == [left.id]
            standing = await client.get(left.id)
            assert (standing.phase, standing.slo_class) == (Phase.WAITING, "batch-2")
            assert (await client.explain(left.id))["state"] == "waiting"
            assert await client.queues() == {"queues": []}
            assert await client.what_if({"a100": 2}) == {"changes": {"a100": 2}}
            estimate, feasible = await client.estimate("tiny", slo_class="interactive")
            assert (estimate.p90_s, feasible) == (2.0, True)
        assert await blocking(it, lambda client: client.cancel(left.id)) is Phase.CANCELLED
        over = await blocking(it, lambda client: client.wait(left.id))
        assert over.ended is not None
        assert over.ended.phase is Phase.CANCELLED
        assert await blocking(it, lambda client: list(client.open_requests())) == []


async def test_who_leaves_a_stream_leaves_the_request_running() -> None:
    async with fleet() as it:
        async with AsyncClient(it.addresses.grpc) as client:
            stream = client.submit(CHAT)
            accepted = await anext(stream)
            assert isinstance(accepted, Accepted)
            await stream.aclose()  # type: ignore[attr-defined]
            payload = await it.agent.payload()
            it.agent.say(payload, "x", finish="stop")
            standing = await client.wait(accepted.id)
        assert standing.response is not None
        assert standing.response["choices"][0]["message"]["content"] == "x"


async def test_refusals_say_what_to_do() -> None:
    async with fleet(pulls=False, api_keys=["k"], limits={"open_requests_max": 1}) as it:
        with pytest.raises(QlmError, match="Give it by api_key or QLM_API_KEY"):
            await blocking(it, lambda client: client.enqueue(CHAT))
        async with AsyncClient(it.addresses.grpc, api_key="k") as client:
            with pytest.raises(NotFound, match="Use one of: tiny"):
                await client.enqueue(CHAT | {"model": "tinny"})
            with pytest.raises(NotFound):
                await client.get("nothing")
            with pytest.raises(QlmError, match="body: is no JSON"):
                await client.enqueue(CHAT | {"n": object()})
            await client.enqueue(CHAT)
            with pytest.raises(Busy) as full:
                await client.enqueue(CHAT)
        assert full.value.retry_after_s is not None
        assert full.value.retry_after_s >= 1
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1: no gateway answers"):
        await asyncio.to_thread(lambda: Client("127.0.0.1:1").get("x"))


async def test_a_wrong_port_is_recognised() -> None:
    async with running(config()) as (_, at):
        for address, words in ((at.http, "speaks HTTP"), (at.agents, "is not for clients")):
            async with AsyncClient(address) as client:
                with pytest.raises(Unavailable, match=f"{words}. Give the gateway's gRPC address"):
                    await client.get("x")


def test_the_environment_says_what_is_not_given() -> None:
    environ = {"QLM_ADDRESS": "head", "QLM_API_KEY": "k", "QLM_CA": "c"}
    to = dialled(None, None, None, environ)
    assert (to.address, to.api_key, to.ca) == ("head:7402", "k", "c")
    assert to.metadata == (("authorization", "Bearer k"),)
    to = dialled("other:1", "", "", environ)
    assert (to.address, to.api_key, to.ca, to.metadata) == ("other:1", "", "", ())
    assert dialled(None, None, None, {}).address == "127.0.0.1:7402"
    with pytest.raises(QlmError, match="ca: /no/such cannot be read"):
        Client(ca="/no/such")


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_it_has_every_method_of_the_servers_own_client(kind: type) -> None:
    def methods(of: type) -> set[str]:
        return {name for name, _ in inspect.getmembers(of) if not name.startswith("_")}

    assert methods(kind) == methods(qlm.client.Client)


def test_every_call_of_the_service_is_made() -> None:
    made = {
        calls.submit(CHAT, {}).path,
        calls.enqueue(CHAT, {}).path,
        calls.estimate("tiny", {}).path,
        calls.open_requests("").path,
        calls.queues().path,
        calls.what_if({"a100": 1}).path,
        *(call("x").path for call in (calls.watch, calls.get, calls.cancel, calls.explain)),
    }
    served = {name for name in vars(ClientServicer) if name[0].isupper()}
    assert made == {f"/qlm.v1.ClientService/{name}" for name in served}


@pytest.mark.parametrize(
    ("field", "endpoint"),
    [("messages", 2), ("prompt", 1), ("input", 3), ("text_1", 4), ("query", 5), ("odd", 1)],
)
def test_a_body_tells_what_it_asks_for_as_it_does_the_server(field: str, endpoint: int) -> None:
    request: Any = calls.enqueue({field: "ü"}, {}).request
    assert request.request.endpoint == endpoint
    assert json.loads(request.request.body_json) == {field: "ü"}
