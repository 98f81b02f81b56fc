"""A key is a tenant: what is another's is as what never was, over HTTP and gRPC, before and after a restart."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest

from gateway.routes import _BELOW, _EXACT
from protos.qlm.v1 import client_service_pb2 as pb
from protos.qlm.v1 import client_service_pb2_grpc as pb_grpc
from qlm_core import messages as m
from qlm_core.errors import SetAside
from tests.doors.beds import ADMIN, ALICE, BOB, KEYS, bearing
from tests.gateway.peers import Fleet, config, fleet, running, soon
from tests.gateway.test_grpc import Client, collect, new

BODY = {"model": "tiny", "messages": [{"role": "user", "content": "Say hello."}]}


async def ask(
    it: Fleet, method: str, path: str, key: str, body: Any = None, **headers: str
) -> tuple[int, Any, Any]:
    """Status, answer and headers of a call with a key."""
    sent = {"authorization": f"Bearer {key}"} | headers
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, it.url + path, json=body, headers=sent) as answer,
    ):
        text = await answer.text()
        return answer.status, json.loads(text) if text.startswith("{") else text, answer.headers


@pytest.fixture
async def it() -> AsyncIterator[Fleet]:
    """A gateway with tenants, whose agent pulls and does not answer by itself."""
    async with fleet(api_keys=KEYS) as made:
        made.agent.on_payload = lambda payload: None
        yield made


async def enqueued(it: Fleet, key: str, **fields: Any) -> str:
    """The id of a request of a tenant's, which its agent has pulled."""
    had = len(it.agent.payloads)
    async with Client(it.addresses.grpc) as stub:
        reply = await stub.Enqueue(pb.EnqueueRequest(request=new(**fields)), metadata=bearing(key))
    await it.agent.payload(had)
    return str(reply.accepted.id)


def looks(stub: pb_grpc.ClientServiceAsyncStub, id: str, key: str) -> dict[str, Any]:
    """Every call about one request."""
    said = {"metadata": bearing(key)}
    return {
        "get": lambda: stub.GetRequest(pb.GetRequestRequest(id=id), **said),
        "cancel": lambda: stub.CancelRequest(pb.CancelRequestRequest(id=id), **said),
        "explain": lambda: stub.ExplainRequest(pb.ExplainRequestRequest(id=id), **said),
        "watch": lambda: collect(stub.WatchRequest(pb.WatchRequestRequest(id=id), **said)),
    }


async def answers(it: Fleet, id: str, key: str) -> list[Any]:
    """What a key gets to hear of an id, by every way, with the id itself struck out."""
    heard: list[Any] = []
    async with Client(it.addresses.grpc) as stub:
        for ask_it in looks(stub, id, key).values():
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await ask_it()
            heard.append((raised.value.code(), str(raised.value.details()).replace(id, "ID")))
    for method, path in (
        *(("GET", f"requests/{id}"), ("DELETE", f"requests/{id}"), ("GET", f"queue/{id}")),
        *(("GET", f"responses/{id}"), ("DELETE", f"responses/{id}")),
        *(("GET", f"responses/{id}/input_items"), ("POST", f"responses/{id}/cancel")),
    ):
        status, body, _ = await ask(it, method, f"/v1/{path}", key)
        heard.append((status, json.dumps(body).replace(id, "ID")))
    return heard


async def test_anothers_id_answers_exactly_as_an_unknown_one(it: Fleet) -> None:
    open_id = await enqueued(it, ALICE)
    done_id = await enqueued(it, ALICE)
    payload = it.agent.payloads[1]
    it.agent.say(payload, "secret words", finish="stop")
    await soon(lambda: it.gateway.driver.live(done_id) is None)  # type: ignore[arg-type]
    unknown = await answers(it, "chatcmpl-000000000000000000000000", BOB)
    assert {code for code, _ in unknown} == {404, grpc.StatusCode.NOT_FOUND}
    assert await answers(it, open_id, BOB) == unknown
    assert await answers(it, done_id, BOB) == unknown
    # Nothing happened to it meanwhile.
    row = it.gateway.driver.ledger.row(open_id)  # type: ignore[arg-type]
    assert row is not None
    assert not row.watched
    status, body, _ = await ask(it, "GET", f"/v1/requests/{done_id}", ALICE)
    assert (status, body["response"]["choices"][0]["message"]["content"]) == (200, "secret words")


async def test_each_lists_its_own_and_an_operator_all(it: Fleet) -> None:
    hers, his, hers_too = [await enqueued(it, key) for key in (ALICE, BOB, ALICE)]
    for key, ids in ((ALICE, [hers_too, hers]), (BOB, [his]), (ADMIN, [hers_too, his, hers])):
        _, body, _ = await ask(it, "GET", "/v1/requests", key)
        assert [one["id"] for one in body["data"]] == ids
        async with Client(it.addresses.grpc) as stub:
            page, listed = "", []
            while True:
                request = pb.ListRequestsRequest(page_size=1, page_token=page)
                reply = await stub.ListRequests(request, metadata=bearing(key))
                listed += [one.id for one in reply.requests]
                page = reply.next_page_token
                if not page:
                    break
        assert listed == ids
    status, body, _ = await ask(it, "DELETE", f"/v1/requests/{his}", ADMIN)
    assert (status, body["phase"]) == (200, "cancelled")
    assert (await ask(it, "GET", "/v1/requests", BOB))[1]["data"] == []


async def test_the_view_of_a_tenant_tells_of_nobody_else(
    it: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    hers = await enqueued(it, ALICE)
    await enqueued(it, BOB)
    agent = {"id": "agent-0", "gpu": "a100", "held": 2, "running": 1, "window": 9}
    group = {"group": 1, "waiting": 7, "first_request": "chatcmpl-of-bob"}
    view = {"waiting": 7, "agents": [agent | {"queue": [group]}], "counts": {"arrived": 9}}
    why = {"id": hers, "because": "behind 1 group", "groups_ahead": [group], "group": group}

    async def viewed() -> bytes:
        return json.dumps(view).encode()

    async def explained(_: str) -> bytes:
        return json.dumps(why).encode()

    monkeypatch.setattr(it.gateway._solver, "view", viewed)
    monkeypatch.setattr(it.gateway._solver, "explain", explained)
    seen = {
        "waiting": 0,
        "held": 1,
        "agents": [{"id": "agent-0", "gpu": "a100", "held": 1, "running": 0, "queue": []}],
        "yours": [{"model": "tiny", "slo_class": "interactive", "waiting": 0, "held": 1}],
    }
    for key, expected in ((ALICE, seen), (ADMIN, view)):
        assert (await ask(it, "GET", "/v1/queue", key))[1] == expected
        async with Client(it.addresses.grpc) as stub:
            reply = await stub.ViewQueues(pb.ViewQueuesRequest(), metadata=bearing(key))
        assert json.loads(reply.view_json) == expected
    path = f"/v1/queue/{hers}"
    seen = (await ask(it, "GET", path, ALICE))[1]
    assert (seen["id"], seen["state"], seen["agent"]) == (hers, "held", "agent-0")
    assert not {"group", "groups_ahead"} & seen.keys()
    whole = (await ask(it, "GET", path, ADMIN))[1]
    assert (whole["group"], whole["groups_ahead"]) == (group, [group])


async def test_what_more_instances_would_change_is_for_operators(it: Fleet) -> None:
    asked = pb.AskWhatIfRequest(changes={"a100": 1})
    async with Client(it.addresses.grpc) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.AskWhatIf(asked, metadata=bearing(ALICE))
        assert raised.value.code() is grpc.StatusCode.PERMISSION_DENIED
        told = await stub.AskWhatIf(asked, metadata=bearing(ADMIN))
    assert json.loads(told.answer_json) == {"changes": {"a100": 1}}


async def test_a_tenant_has_so_many_open_requests_and_no_more(it: Fleet) -> None:
    ids = [await enqueued(it, ALICE) for _ in range(3)]
    status, body, headers = await ask(it, "POST", "/v1/chat/completions", ALICE, BODY)
    assert (status, body["error"]["code"]) == (429, "queue_full")
    assert int(headers["retry-after"]) >= 1
    async with Client(it.addresses.grpc) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.Enqueue(pb.EnqueueRequest(request=new()), metadata=bearing(ALICE))
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    # Others are not held up, and an end makes room.
    await enqueued(it, BOB)
    await ask(it, "DELETE", f"/v1/requests/{ids[0]}", ALICE)
    await enqueued(it, ALICE)
    assert it.gateway.driver.tenants.count("alice") == 3
    for id in await listed(it, ALICE):
        await ask(it, "DELETE", f"/v1/requests/{id}", ALICE)
    assert it.gateway.driver.tenants.count("alice") == 0


async def listed(it: Fleet, key: str) -> list[str]:
    return [one["id"] for one in (await ask(it, "GET", "/v1/requests", key))[1]["data"]]


async def test_models_and_classes_that_a_key_may_not_use_do_not_exist_for_it() -> None:
    keys = {
        "narrow": {"key": "n", "models": ["tiny"], "classes": ["batch-1", "batch-2"]},
        "own": {"key": "o", "classes": ["interactive", "explicit"]},
    }
    async with fleet(api_keys=keys) as it:
        it.agent.answer("x")
        _, body, _ = await ask(it, "GET", "/v1/models", "n")
        assert [one["id"] for one in body["data"]] == ["tiny"]
        assert (await ask(it, "GET", "/v1/models/other", "n"))[0] == 404
        chat = "/v1/chat/completions"
        for change, headers, key, expected in (
            ({}, {}, "n", 200),
            ({"model": "other"}, {}, "n", 404),
            ({"service_tier": "default"}, {}, "n", 403),
            ({}, {"x-qlm-slo-class": "interactive"}, "n", 403),
            ({}, {"x-qlm-slo-class": "batch-2"}, "n", 200),
            ({}, {"x-slo-ttft-ms": "100"}, "n", 403),
            ({}, {"x-qlm-slo-class": "batch-2", "x-slo-tpot-ms": "1"}, "n", 403),
            ({}, {"x-slo-ttft-ms": "100"}, "o", 200),
            ({"service_tier": "flex"}, {}, "o", 403),
        ):
            status, body, _ = await ask(it, "POST", chat, key, BODY | change, **headers)
            assert status == expected, (change, headers, body)
        classes = [fact.request.slo_class for fact in it.solver.heard(m.Arrived)]
        assert classes == ["batch-1", "batch-2", "explicit-0.0625s"]
        async with Client(it.addresses.grpc) as stub:
            for fields in ({"model": "other"}, {"model": "tiny", "slo_class": "interactive"}):
                request = pb.EstimateWaitRequest(**fields)
                with pytest.raises(grpc.aio.AioRpcError) as raised:
                    await stub.EstimateWait(request, metadata=bearing("n"))
                assert raised.value.code() in (
                    grpc.StatusCode.NOT_FOUND,
                    grpc.StatusCode.INVALID_ARGUMENT,
                )


async def test_ownership_survives_a_restart(tmp_path: Path) -> None:
    store = {"kind": "sqlite", "path": str(tmp_path / "q.sqlite")}
    ids = {}
    for first in (True, False):
        # A tenant by name may have another key by then.
        keys = KEYS if first else KEYS | {"alice": {"key": "renewed", "requests_max": 1}}
        async with (
            running(config(api_keys=keys, store=store)) as (gateway, at),
            Client(at.grpc) as stub,
        ):
            if first:
                for key in (ALICE, BOB):
                    request = pb.EnqueueRequest(request=new(idempotency_key="k"))
                    reply = await stub.Enqueue(request, metadata=bearing(key))
                    ids[key] = reply.accepted.id
                assert ids[ALICE] != ids[BOB]
                continue
            for key, id in (("renewed", ids[ALICE]), (BOB, ids[BOB])):
                page = await stub.ListRequests(pb.ListRequestsRequest(), metadata=bearing(key))
                assert [one.id for one in page.requests] == [id]
            assert gateway.driver.tenants.count("alice") == 1
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await stub.Enqueue(pb.EnqueueRequest(request=new()), metadata=bearing("renewed"))
            assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_whose_an_unreadable_request_was_nobody_knows(
    it: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unreadable(id: str) -> None:
        raise SetAside(id)

    unknown = await answers(it, "chatcmpl-000000000000000000000000", BOB)
    monkeypatch.setattr(it.gateway.store, "find", unreadable)
    assert await answers(it, "chatcmpl-damaged", BOB) == unknown
    status, body, _ = await ask(it, "GET", "/v1/requests/chatcmpl-damaged", ADMIN)
    assert status != 404, body


@pytest.mark.parametrize("keys", [(ALICE, ADMIN), (ADMIN, ALICE), (ALICE, ALICE), (ALICE, "no")])
async def test_who_brings_two_keys_is_nobody(keys: tuple[str, str], it: Fleet) -> None:
    said = [("authorization", f"Bearer {key}") for key in keys]
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{it.url}/v1/requests", headers=said) as answer,
    ):
        assert answer.status == 401
    async with Client(it.addresses.grpc) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.ListRequests(pb.ListRequestsRequest(), metadata=tuple(said))
    assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_plain_keys_are_tenants_each(it: Fleet) -> None:
    async with fleet(api_keys=["k1", "k2"]) as plain:
        plain.agent.on_payload = lambda payload: None
        id = await enqueued(plain, "k1")
        assert await listed(plain, "k1") == [id]
        assert await listed(plain, "k2") == []
        assert (await ask(plain, "GET", f"/v1/requests/{id}", "k2"))[0] == 404


async def test_every_path_but_a_few_asks_for_a_key(it: Fleet) -> None:
    paths = [*_EXACT, *(f"{path}x" for path in _BELOW), "/nowhere"]
    told = {path: (await ask(it, "GET", path, "wrong"))[0] for path in paths}
    # Metrics because this gateway listens on loopback; the description and an empty page are no secret.
    open_to_all = ["/health", "/healthz", "/readyz", "/metrics", "/openapi.json", "/docs"]
    open_to_all += ["/ui", "/ui/page.css", "/ui/page.js"]
    assert {path for path, status in told.items() if status != 401} == set(open_to_all)
    assert it.gateway._desk.rejections.counts == {("http", "key"): len(paths) - len(open_to_all)}


async def test_metrics_beyond_loopback_are_for_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.http.is_loopback", lambda _: False)
    async with running(config(api_keys=KEYS)) as (_, at):
        url = f"http://{at.http}/metrics"
        async with aiohttp.ClientSession() as session:
            for key, status in (("", 401), ("wrong", 401), (ALICE, 403), (ADMIN, 200)):
                headers = {"authorization": f"Bearer {key}"} if key else {}
                async with session.get(url, headers=headers) as answer:
                    assert answer.status == status
                    assert ("qlm_requests_open" in await answer.text()) is (status == 200)
