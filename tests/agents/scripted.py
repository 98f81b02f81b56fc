"""A model server that follows a script: what it answers at each attempt, event by event, and how it breaks off."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from tests.agents.fake_vllm import FakeServer
from tests.agents.harness import OpenAIHarness, config_of, running, serving

# Ways for a stream to go on that are no event. The first is one before it begins.
DROP, CUT, HANG, END = "drop", "cut", "hang", "end"
DONE = b"[DONE]"


def text(
    text: str | None, finish: str | None = None, index: int = 0, **more: Any
) -> dict[str, Any]:
    """A chunk of a completion."""
    choice = {"index": index, "text": text, "finish_reason": finish, **more}
    return {"choices": [choice]}


def delta(finish: str | None = None, index: int = 0, **delta: Any) -> dict[str, Any]:
    """A chunk of a chat."""
    return {"choices": [{"index": index, "delta": delta, "finish_reason": finish}]}


def usage(prompt: Any, completion: Any, **more: Any) -> dict[str, Any]:
    """The chunk that closes a stream."""
    counts = {"prompt_tokens": prompt, "completion_tokens": completion, **more}
    return {"choices": [], "usage": counts}


@dataclass
class Answer:
    """What is answered once: a status with a body, or a stream of events."""

    events: Sequence[Any] = ()
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: Any = None


class ScriptedServer(FakeServer):
    """Answers the requests whose prompt begins with `script` by the script, all others as ever."""

    def __init__(self, *answers: Answer | Sequence[Any], model: str = "mistral-7b") -> None:
        super().__init__(model)
        self.script = [
            answer if isinstance(answer, Answer) else Answer(list(answer)) for answer in answers
        ]
        self.told: list[dict[str, Any]] = []
        self.ids: list[str] = []

    async def generate(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if "script" not in str(body.get("prompt") or body.get("messages")):
            return await super().generate(request)
        self.told.append(body)
        self.headers.append(dict(request.headers))
        self.ids.append(request.headers["X-Request-Id"])
        answer = self.script[min(len(self.told), len(self.script)) - 1]
        if DROP in answer.events:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if answer.status != 200 or answer.body is not None:
            data = (
                answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
            )
            return web.Response(
                status=answer.status,
                body=data,
                headers=answer.headers,
                content_type="application/json",
            )
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for event in answer.events:
            if event == HANG:
                await asyncio.Event().wait()
            if event == CUT:
                assert request.transport is not None
                request.transport.abort()
                return response
            if event == END:
                return response
            data = event if isinstance(event, bytes) else json.dumps(event).encode()
            await response.write(b"data: " + data + b"\n\n")
        return response


class ScriptedHarness(OpenAIHarness):
    """An engine before such a server."""

    server: ScriptedServer


@asynccontextmanager
async def scripted(
    *answers: Answer | Sequence[Any], dialect: str = "openai", owner: str = "", **engine: Any
) -> AsyncIterator[ScriptedHarness]:
    """An engine before a scripted server, without any extension of OpenAI's interface unless `dialect` says so."""
    server = ScriptedServer(*answers)
    server.owner = owner
    runner, port = await serving(server)
    section = {"base_url": f"http://127.0.0.1:{port}", "dialect": dialect}
    try:
        config = config_of(("mistral-7b",), {"kind": "openai", "openai": section, **engine})
        async with running(ScriptedHarness, config) as harness:
            harness.server, harness.runner = server, runner
            yield harness
    finally:
        await runner.cleanup()
