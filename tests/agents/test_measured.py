"""Endpoints that generate nothing, before a real server: what it is asked, and what becomes of what it answers."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from agents.engines.calls import Calls
from qlm_core.endpoint import Endpoint
from qlm_core.executor import JobDone, JobLost, JobOutput, JobRefused
from qlm_core.messages import Payload
from qlm_core.model import ModelName, RequestId
from tests.agents.fake_vllm import FakeServer
from tests.agents.harness import OpenAIHarness, config_of, running, serving

MODEL = "mistral-7b"
# Numbers as no writer of ours would write them.
NUMBERS = b"[1.0e-3, 0.10, -2E+1, 5e-08]"
EMBEDDED = (
    b'{"id": "embd-theirs", "object": "list", "model": "served",\n "data": [{"object": "embedding", "index": 0, '
    b'"embedding": %b}], "usage": {"prompt_tokens": 5, "total_tokens": 5, "completion_tokens": 0}}'
    % NUMBERS
)


class Server(FakeServer):
    """Answers each path but the usual ones by what it was given for it: a status and bytes; 404 where nothing was."""

    def __init__(self, answers: dict[str, tuple[int, bytes]]) -> None:
        super().__init__(MODEL)
        self.answers = answers
        self.asked_at: list[str] = []
        for path in ("/v1/embeddings", "/v1/score", "/v1/rerank"):
            self.app.router.add_post(path, self.measure)

    async def generate(self, request: web.Request) -> web.StreamResponse:
        if "/v1/completions" in self.answers:
            return await self.measure(request)
        return await super().generate(request)

    async def measure(self, request: web.Request) -> web.Response:
        self.asked_at.append(request.path)
        self.bodies.append(await request.json())
        status, data = self.answers.get(request.path, (404, b'{"detail": "Not Found"}'))
        return web.Response(status=status, body=data, content_type="application/json")


class Harness(OpenAIHarness):
    server: Server


@asynccontextmanager
async def serves(answers: dict[str, tuple[int, bytes]]) -> AsyncIterator[Harness]:
    server = Server(answers)
    runner, port = await serving(server)
    try:
        engine = {"kind": "openai", "openai": {"base_url": f"http://127.0.0.1:{port}"}}
        async with running(Harness, config_of((MODEL,), engine)) as harness:
            harness.server = server
            server.asked_at.clear()
            server.bodies.clear()
            yield harness
    finally:
        await runner.cleanup()


async def ask(harness: Harness, endpoint: Endpoint, **body: Any) -> Any:
    data = json.dumps({"model": "theirs", "input": "x", **body}).encode()
    job = Payload(RequestId("a"), 1, ModelName(MODEL), endpoint, data)
    assert not harness.engine.evictable(job)
    harness.engine.submit(job)
    return await harness.heard.end_of("a")


def outputs(harness: Harness) -> list[JobOutput]:
    return [event for event in harness.heard.of("a") if isinstance(event, JobOutput)]


async def test_an_answer_passes_byte_for_byte() -> None:
    async with serves({"/v1/embeddings": (200, EMBEDDED)}) as harness:
        end = await ask(
            harness, Endpoint.EMBEDDINGS, encoding_format="base64", stream=True, dimensions=4, prompt="stray"
        )  # fmt: skip
        assert isinstance(end, JobDone)
        assert (end.finish_reason, end.prompt_tokens, end.output_tokens) == ("stop", 5, 0)
        [output] = outputs(harness)
        assert (output.data, output.tokens, output.whole, output.plain) == (
            EMBEDDED,
            0,
            True,
            False,
        )
        [asked] = harness.server.bodies
        # Nothing but the model's name is the agent's.
        assert asked == {
            "model": MODEL, "input": "x", "encoding_format": "base64", "stream": True, "dimensions": 4, "prompt": "stray",
        }  # fmt: skip


@pytest.mark.parametrize(
    ("endpoint", "answer"),
    [
        (Endpoint.SCORE, b'{"object": "list", "data": [{"index": 0, "score": 0.5}]}'),
        (Endpoint.RERANK, b'{"id": "x", "results": [], "meta": {}}'),
        (Endpoint.EMBEDDINGS, b' {"data": []} '),
    ],
)
async def test_each_endpoint_is_asked_at_its_own_path(endpoint: Endpoint, answer: bytes) -> None:
    async with serves({endpoint.path: (200, answer)}) as harness:
        assert isinstance(await ask(harness, endpoint), JobDone)
        assert harness.server.asked_at == [endpoint.path]
        assert [output.data.strip() for output in outputs(harness)] == [answer.strip()]


async def test_what_no_strict_reader_takes_is_mended() -> None:
    async with serves({"/v1/embeddings": (200, b'{"data": [[NaN, 1.5]]}')}) as harness:
        assert isinstance(await ask(harness, Endpoint.EMBEDDINGS), JobDone)
        assert json.loads(outputs(harness)[0].data) == {"data": [[None, 1.5]]}


@pytest.mark.parametrize(
    ("status", "answer", "expected"),
    [
        (404, {"detail": "Not Found"}, (JobRefused, 404, "does not serve /v1/embeddings")),
        (404, {"error": {"message": "Not Found", "code": 404}}, (JobRefused, 404, "does not serve")),
        (405, {"detail": "Method Not Allowed"}, (JobRefused, 404, "does not serve")),
        (501, {"error": {"message": "no pooling"}}, (JobRefused, 404, "no pooling")),
        (400, {"error": {"message": "The model does not support it"}}, (JobRefused, 400, "support")),
        (404, {"error": {"message": "The model `x` does not exist."}}, (JobLost, 0, "access denied")),
        (500, {"detail": "boom"}, (JobLost, 0, "boom")),
        (200, {"error": {"message": "odd", "code": 422}}, (JobRefused, 422, "odd")),
        (200, {"object": "error", "message": "odd", "code": 400}, (JobRefused, 400, "odd")),
        (200, {"choices": []}, (JobRefused, 502, "without data")),
        (200, [1], (JobRefused, 502, "no server-sent events|no JSON object|a stream")),
    ],
)  # fmt: skip
async def test_whose_fault_it_is(status: int, answer: Any, expected: tuple[type, int, str]) -> None:
    kind, told, words = expected
    async with serves({"/v1/embeddings": (status, json.dumps(answer).encode())}) as harness:
        end = await ask(harness, Endpoint.EMBEDDINGS)
        assert isinstance(end, kind), end
        said = end.error if isinstance(end, JobRefused) else end.reason
        assert any(part in said for part in words.split("|")), said
        assert getattr(end, "status", 0) == told
        assert harness.server.asked_at == ["/v1/embeddings"]
        assert not outputs(harness)


@pytest.mark.parametrize(
    ("answers", "asked", "problem"),
    [
        ({"/v1/completions": (404, b"{}"), "/v1/embeddings": (200, EMBEDDED)}, 2, ""),
        ({"/v1/completions": (404, b"{}"), "/v1/score": (200, b"{}")}, 3, ""),
        ({"/v1/completions": (500, b'{"detail": "boom"}')}, 1, "HTTP 500: boom"),
        ({"/v1/completions": (400, b'{"detail": "first"}')}, 3, "HTTP 400: first"),
    ],
)
async def test_a_model_that_generates_nothing_is_tried_out_by_what_it_does(
    answers: dict[str, tuple[int, bytes]], asked: int, problem: str
) -> None:
    server = Server(answers)
    runner, port = await serving(server)
    calls = Calls(f"http://127.0.0.1:{port}", api_key="", connect_timeout_s=5.0)
    calls.connect()
    try:
        assert await calls.try_out(MODEL, timeout_s=5.0) == problem
        assert len(server.asked_at) == asked
    finally:
        await calls.hang_up()
        await runner.cleanup()
