"""The description of the HTTP interface: valid, complete, true of real answers, and shown without anything from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from gateway import routes
from gateway.openapi.document import document
from gateway.webhooks.rows import Row, event_id
from gateway.webhooks.sending import body_of, signed
from qlm_core import messages as m
from qlm_core.endpoint import Endpoint
from qlm_core.model import BatchId
from qlm_core.webhooks import EVENT_TYPES
from tests.gateway.peers import Fleet, config, fleet, running, soon

Json = dict[str, Any]
SAID: Json = json.loads(json.dumps(document("1.2.3")))
MEASURED = b'{"data": [{"index": 0, "embedding": [0.5], "score": 0.5}], "results": [{"index": 0, "relevance_score": 1}]}'


def operations() -> Iterator[tuple[str, str, Json]]:
    for path, methods in SAID["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def test_it_is_valid_and_names_each_operation_once() -> None:
    OpenAPIV31SpecValidator(SAID).validate()
    assert SAID["openapi"] == "3.1.0"
    ids = [operation["operationId"] for _, _, operation in operations()]
    assert len(dict.fromkeys(ids)) == len(ids)
    told = [methods["post"] for methods in SAID["webhooks"].values()]
    used = [operation for _, _, operation in operations()] + told
    tags = {tag["name"] for tag in SAID["tags"]}
    assert {tag for operation in used for tag in operation["tags"]} == tags


def test_it_has_every_route_and_no_other() -> None:
    told = {(re.sub(r"\{\w+\}", "{}", path), method) for path, method, _ in operations()}
    served = {
        (path, method.lower())
        for path, methods in routes.table().items()
        for method in methods
        if method != "HEAD"
    }
    assert told == served


@pytest.mark.parametrize("path", routes.table())
def test_the_table_is_what_is_found(path: str) -> None:
    found = routes.find(path.replace("{}", "some"))
    assert found is not None
    assert found.methods == routes.table()[path]


def check(schema: Json, value: object) -> None:
    whole = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
    Draft202012Validator(whole | {"components": SAID["components"]}).validate(value)


@pytest.mark.parametrize("type", SAID["webhooks"])
def test_webhooks_are_told_what_it_says(type: str) -> None:
    told = SAID["webhooks"][type]["post"]
    row = Row(
        event_id(type, "resp_1"), "there", type, "resp_1", 1, told_at=0.0, tries=0, due_at=0.0
    )
    body = body_of(row)
    event = json.loads(body)
    check(told["requestBody"]["content"]["application/json"]["schema"], event)
    assert event["type"] == type
    headers = signed(b"key", row.event, 1, body)
    for parameter in told["parameters"]:
        assert parameter["name"] in headers


def test_webhooks_are_those_that_there_are() -> None:
    assert tuple(SAID["webhooks"]) == EVENT_TYPES


class Caller:
    """Calls a gateway, and holds what it says against the description.

    Attributes:
        seen: operations that were called, and with which statuses they answered.
    """

    def __init__(self, it: Fleet, session: aiohttp.ClientSession) -> None:
        self.url = it.url
        self.session = session
        self.seen: dict[tuple[str, str], list[int]] = {}

    async def __call__(
        self, method: str, path: str, id: str = "", body: object = None, **more: Any
    ) -> Any:
        operation = SAID["paths"][path][method]
        if isinstance(body, dict):
            content = operation["requestBody"]["content"]["application/json"]
            check(content["schema"], body)
            more["json"] = body
        url = self.url + re.sub(r"\{\w+\}", id, path)
        async with self.session.request(method, url, **more) as answer:
            told = operation["responses"].get(str(answer.status))
            if told is None:
                told = SAID["components"]["responses"]["Refused"]
                assert answer.status >= 400
            data = await answer.read()
            for name in answer.headers:
                if name.lower().startswith(
                    ("x-qlm", "x-llm", "x-should", "retry", "location", "pref")
                ):
                    assert name.lower() in told.get("headers", {}), name
            kind = answer.content_type
            assert kind in told["content"], (path, answer.status, kind)
            self.seen.setdefault((path, method), []).append(answer.status)
            if kind != "application/json":
                return data
            value = json.loads(data)
            check(told["content"][kind]["schema"], value)
            return value


def answer_all(it: Fleet) -> None:
    def on_payload(payload: m.Payload) -> None:
        if payload.endpoint.generates:
            it.agent.say(payload, "x", finish="stop")
            return
        it.agent.send(
            m.Chunk(payload.id, payload.attempt, MEASURED, 0, plain=False, whole=True),
            m.AttemptEnded(payload.id, payload.attempt, "stop", 5, 0),
        )

    it.agent.on_payload = on_payload


BODIES: dict[Endpoint, Json] = {
    Endpoint.CHAT_COMPLETIONS: {"messages": [{"role": "user", "content": "x"}], "max_tokens": 3},
    Endpoint.COMPLETIONS: {"prompt": [[1, 2], [3]], "stop": "x", "service_tier": "fast"},
    Endpoint.EMBEDDINGS: {"input": ["x", "y"], "encoding_format": "base64"},
    Endpoint.SCORE: {"text_1": "x", "text_2": ["y", "z"]},
    Endpoint.RERANK: {"query": "x", "documents": ["y", {"text": "z"}], "top_n": 1},
}


async def test_what_it_says_is_true_of_real_answers() -> None:
    async with fleet() as it, aiohttp.ClientSession() as session:
        call = Caller(it, session)
        it.solver.estimates = True
        answer_all(it)
        for path in [path for path, route in routes._EXACT.items() if route.endpoint]:
            endpoint = routes._EXACT[path].endpoint
            assert endpoint is not None
            body = BODIES[endpoint] | {"model": "tiny"}
            await call("post", path, body=body)
            await call("post", path, body=body, headers={"x-slo-ttft-ms": "0"})
            later = await call("post", path, body=body, headers={"prefer": "respond-async"})
            await soon(lambda later=later: it.gateway.driver.live(later["id"]) is None)
            found = await call("get", "/v1/requests/{id}", later["id"])
            assert found["phase"] == "finished"
            if endpoint.generates:
                stream = await call("post", path, body=body | {"stream": True})
                assert stream.endswith(b"data: [DONE]\n\n")
        await call("post", "/v1/completions", data=b"{")
        # One that waits.
        it.agent.on_payload = lambda payload: None
        chat = BODIES[Endpoint.CHAT_COMPLETIONS] | {"model": "tiny"}
        open_one = await call(
            "post", "/v1/chat/completions", body=chat, headers={"x-qlm-async": "1"}
        )
        for query in ({}, {"status": "ended"}, {"status": "all", "limit": 1}):
            await call("get", "/v1/requests", params=query)
        await call("get", "/v1/requests/{id}", open_one["id"])
        await call("get", "/v1/queue/{id}", open_one["id"])
        await call("delete", "/v1/requests/{id}", open_one["id"])
        await call("get", "/v1/queue/{id}", open_one["id"])
        await call("get", "/v1/requests/{id}", "nobody")
        await call("get", "/v1/queue")
        for asked in ({"model": "tiny", "prompt_tokens_mean": 9}, {"body": chat}):
            await call("post", "/v1/estimate", body=asked)
            batch = asked | {"lines": 3, "completion_window": "8h"}
            await call("post", "/v1/estimate", body=batch, headers={"x-request-id": "mine"})
        await call("get", "/v1/models")
        await call("get", "/v1/models/{model}", "tiny")
        for path in ("/health", "/healthz", "/readyz", "/metrics", "/openapi.json", "/docs"):
            await call("get", path)
        await look_on(call, later["id"])
        await respond(call, it)
        await keep(call, it)
        assert set(call.seen) == {(path, method) for path, method, _ in operations()}


async def look_on(call: Caller, ended: str) -> None:
    """The page."""
    for path in ("/ui", "/ui/page.css", "/ui/page.js"):
        await call("get", path)
    story = await call("get", "/ui/requests/{id}", ended)
    assert story["steps"][-1]["what"] == "finished"
    # Events go on for as long as somebody reads them.
    async with call.session.get(f"{call.url}/ui/feed") as answer:
        [kind] = SAID["paths"]["/ui/feed"]["get"]["responses"]["200"]["content"]
        assert answer.content_type == kind
        call.seen.setdefault(("/ui/feed", "get"), []).append(answer.status)


async def respond(call: Caller, it: Fleet) -> None:
    """Responses."""
    answer_all(it)
    asked = {"model": "tiny", "input": "x"}
    made = await call("post", "/v1/responses", body=asked)
    assert made["status"] == "completed"
    stream = await call("post", "/v1/responses", body=asked | {"stream": True})
    assert b"response.completed" in stream
    for body in (asked, asked | {"background": True}):
        await call("post", "/v1/responses", body=body, headers={"prefer": "respond-async"})
    await call("get", "/v1/responses/{id}", made["id"])
    await call("get", "/v1/responses/{id}/input_items", made["id"])
    await call("delete", "/v1/responses/{id}", made["id"])
    it.agent.on_payload = lambda payload: None
    later = await call("post", "/v1/responses", body=asked | {"background": True})
    await call("get", "/v1/responses/{id}", later["id"])
    await call("post", "/v1/responses/{id}/cancel", later["id"])
    stream = await call("get", "/v1/responses/{id}", later["id"], params={"stream": "true"})
    assert b"response.failed" in stream


async def keep(call: Caller, it: Fleet) -> None:
    """Files and batches."""
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions"}
    body = BODIES[Endpoint.CHAT_COMPLETIONS] | {"model": "tiny"}
    form = aiohttp.FormData()
    form.add_field("purpose", "batch")
    form.add_field("file", json.dumps(line | {"body": body}).encode(), filename="in.jsonl")
    file = await call("post", "/v1/files", data=form)
    await call("get", "/v1/files")
    await call("get", "/v1/files/{id}", file["id"])
    await call("get", "/v1/files/{id}/content", file["id"])
    await call("get", "/v1/files/{id}/content", file["id"], headers={"range": "bytes=0-3"})
    asked = {
        "input_file_id": file["id"],
        "endpoint": "/v1/chat/completions",
        "completion_window": "8h",
        "metadata": {"a": "b"},
    }
    foreseen = await call("post", "/v1/estimate", body=asked)
    assert foreseen["qlm"]["feasible"] is True
    batch = await call("post", "/v1/batches", body=asked)
    assert batch["qlm"]["feasible"] is None
    it.solver.orders.put(m.BulkEstimate(BatchId(batch["id"]), True, 60.0, 90.0, "1 line left"))
    held = it.gateway.batches.get(BatchId(batch["id"]))
    assert held is not None
    await soon(held.foretold.is_set)
    batch = await call("get", "/v1/batches/{id}", batch["id"])
    assert batch["qlm"]["finish_p90_at"] > batch["qlm"]["finish_p50_at"] > batch["created_at"]
    await call("get", "/v1/batches")
    await call("post", "/v1/batches/{id}/cancel", batch["id"])
    await call("delete", "/v1/files/{id}", file["id"])


async def test_the_page_shows_it_without_anything_from_elsewhere() -> None:
    async with running(config(api_keys=["k"])) as (_, at), aiohttp.ClientSession() as session:
        async with session.get(f"http://{at.http}/openapi.json") as answer:
            told = await answer.json()
        assert told["paths"] == SAID["paths"]
        async with session.get(f"http://{at.http}/docs") as answer:
            page, policy = await answer.text(), answer.headers["content-security-policy"]
        assert not re.search(r"""(src|href)=["'](?!openapi\.json)|@import|url\(|\bfetch\(""", page)
        shown = re.search(r'id="document">(.*?)</script>', page, re.DOTALL)
        assert shown is not None
        assert json.loads(shown[1]) == told
        for kind in ("script", "style"):
            [code] = re.findall(rf"<{kind}>(.*?)</{kind}>", page, re.DOTALL)
            digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
            assert f"{kind}-src 'sha256-{digest}'" in policy
        assert "default-src 'none'" in policy
