"""A gateway whose engine says what a test has it say, and the client library's clients of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

import openai

from qlm_core import messages as m
from tests.gateway.peers import Fleet

Json = dict[str, Any]
HELLO: Json = {"model": "tiny", "input": "Say hello."}


def client(it: Fleet, **options: Any) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=f"{it.url}/v1", api_key=options.pop("api_key", "unused"), max_retries=0, **options
    )


def chunk(delta: Json, finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return json.dumps({"choices": [choice]}).encode()


def say(it: Fleet, payload: m.Payload, deltas: Iterable[Json], finish: str | None = "stop") -> None:
    """Send deltas, one token each, and the end, unless it goes on."""
    count = 0
    for delta in deltas:
        data = chunk(delta)
        plain = not any(delta.get(name) for name in delta if name != "content")
        it.agent.send(m.Chunk(payload.id, payload.attempt, data, 1, plain))
        count += 1
    if finish is not None:
        it.agent.send(m.AttemptEnded(payload.id, payload.attempt, finish, 7, count))


def script(it: Fleet, *answers: Iterable[Json], finish: str = "stop") -> None:
    """From now on answer each payload with the next of these, by deltas."""
    left = [list(answer) for answer in answers]
    it.agent.on_payload = lambda payload: say(it, payload, left.pop(0), finish)


def words(*texts: str) -> list[Json]:
    return [{"content": text} for text in texts]


def call(id: str, name: str, *arguments: str) -> list[Json]:
    """Deltas of a call of a function."""
    begun = {"index": 0, "id": id, "type": "function", "function": {"name": name, "arguments": ""}}
    parts = [{"index": 0, "function": {"arguments": part}} for part in arguments]
    return [{"tool_calls": [part]} for part in (begun, *parts)]


def body(it: Fleet, index: int = -1) -> Json:
    """What the engine was asked."""
    asked: Json = json.loads(it.agent.payloads[index].body)
    return asked


Soon = Callable[[], object]
