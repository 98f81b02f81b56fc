"""What a server is asked that is to go on with a job: from token ids where it can, else from text."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agents.engines.connection import Connection
from agents.engines.requests import (
    CHATS,
    COMPLETIONS,
    Abilities,
    CannotContinue,
    NothingLeft,
    Prepared,
    prepare,
)
from qlm_core.endpoint import Endpoint
from qlm_core.messages import Payload
from qlm_core.model import ModelName, RequestId
from qlm_core.resume import ResumedBy
from tests.endpoints import generating

VLLM, PLAIN = Abilities(ids=True), Abilities()
# Ids from here on are parts of characters to the stand-in.
BROKEN = 1000
CHAT = {"messages": [{"role": "user", "content": "hi"}], "temperature": 0}


class Tokens:
    """Help with tokens as vLLM gives it."""

    def __init__(self, *, detokenizes: bool = True) -> None:
        self.detokenizes = detokenizes

    async def tokenize(self, served: str, text: str) -> list[int]:
        return [len(word) for word in text.split()]

    async def detokenize(self, served: str, ids: list[int]) -> str | None:
        if not self.detokenizes:
            return None
        return "".join("\ufffd" if id >= BROKEN else "x" for id in ids)


async def continued(
    body: dict[str, Any], able: Abilities = VLLM, **job: Any
) -> tuple[dict[str, Any], Prepared]:
    """The body for an attempt after three tokens."""
    said: dict[str, Any] = {
        "resume_text": "one two",
        "produced_tokens": 3,
        "resume_ids": (7, 8, 1, 2, 3),
    } | job
    helper = said.pop("helper", Tokens())
    payload = Payload(
        RequestId("a"),
        2,
        ModelName("m"),
        generating("messages" in body),
        json.dumps(body).encode(),
        **said,
    )
    prepared = await prepare(payload, "served", helper, able)
    return json.loads(prepared.body), prepared


async def test_a_completion_goes_on_from_ids():
    body, prepared = await continued(
        {"prompt": "p", "max_tokens": 10, "min_tokens": 5, "stop": ["abc"], "seed": 1}
    )
    assert prepared.path == COMPLETIONS
    assert body["prompt"] == [7, 8, 1, 2, 3]
    assert (body["max_tokens"], body["min_tokens"]) == (7, 2)
    assert (body["stop"], body["seed"], body["return_token_ids"]) == (["abc"], 1, True)
    reading = prepared.reading
    assert (reading.resumed_by, reading.position, reading.held_chars) == (ResumedBy.IDS, 3, 2)


async def test_a_chat_goes_on_as_a_completion_of_its_ids_without_what_went_into_the_prompt():
    chat = CHAT | {
        "chat_template_kwargs": {"x": 1}, "max_completion_tokens": 10, "tools": [{}], "tool_choice": "none",
        "logprobs": True, "response_format": {"type": "text"}, "cache_salt": "s", "odd": 1,
    }  # fmt: skip
    body, prepared = await continued(chat)
    assert prepared.path == COMPLETIONS
    assert body["prompt"] == [7, 8, 1, 2, 3]
    assert (body["max_tokens"], body["logprobs"], body["cache_salt"], body["odd"]) == (7, 0, "s", 1)
    for gone in (
        "messages",
        "chat_template_kwargs",
        "max_completion_tokens",
        "tools",
        "tool_choice",
        "response_format",
    ):
        assert gone not in body
    assert prepared.reading.as_chat


async def test_a_chat_without_a_limit_goes_on_as_far_as_the_server_would_have_let_it():
    body, _ = await continued(CHAT, Abilities(ids=True, context_tokens=50))
    assert body["max_tokens"] == 45
    body, _ = await continued(CHAT, Abilities(ids=True, context_tokens=50, output_tokens_max=20))
    assert body["max_tokens"] == 17
    # Where that is not known, its text goes on without a limit.
    body, prepared = await continued(CHAT, Abilities(ids=True))
    assert prepared.path == CHATS
    assert "max_tokens" not in body


async def test_what_says_how_a_prompt_is_divided_is_of_no_use_for_ids():
    body, _ = await continued(
        {"prompt": "p", "add_special_tokens": False, "truncate_prompt_tokens": 4}
    )
    assert "add_special_tokens" not in body
    assert "truncate_prompt_tokens" not in body


@pytest.mark.parametrize("broken", [1, 2, 3])
async def test_ids_that_are_part_of_a_character_are_produced_again(broken: int):
    ids = (7, 8, 1, 2, 3)[: 5 - broken] + (BROKEN,) * broken
    body, prepared = await continued({"prompt": "p", "max_tokens": 10}, resume_ids=ids)
    assert body["prompt"] == list(ids[: 5 - broken])
    assert body["max_tokens"] == 7 + broken
    assert (prepared.reading.repeated_tokens, prepared.reading.position) == (broken, 3)


async def test_no_more_is_produced_again_than_was_produced():
    _, prepared = await continued(
        {"prompt": "p"}, resume_ids=(7, BROKEN, BROKEN, BROKEN), produced_tokens=1
    )
    assert prepared.reading.repeated_tokens == 1


async def test_a_server_that_does_not_say_what_ids_stand_for_takes_them_as_they_are():
    ids = (7, 8, BROKEN)
    body, _ = await continued({"prompt": "p"}, resume_ids=ids, helper=Tokens(detokenizes=False))
    assert body["prompt"] == list(ids)


@pytest.mark.parametrize(
    ("prompt", "goes_on"),
    [("p", "pone two"), (["p"], "pone two"), ([5, 6], [5, 6, 3, 3]), ([[5, 6]], [5, 6, 3, 3])],
)
@pytest.mark.parametrize("why", ["the server tells no ids", "they are not known"])
async def test_without_ids_a_completion_goes_on_from_its_text(prompt: Any, goes_on: Any, why: str):
    able, ids = (PLAIN, (7, 8, 1, 2, 3)) if "server" in why else (VLLM, ())
    body, prepared = await continued({"prompt": prompt, "max_tokens": 10}, able, resume_ids=ids)
    assert body["prompt"] == goes_on
    assert body["max_tokens"] == 7
    assert prepared.reading.resumed_by is ResumedBy.TEXT


@pytest.mark.parametrize(
    "beyond",
    [
        {"tools": [{"type": "function"}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
    ],
)
async def test_a_chat_that_is_more_than_text_goes_on_from_its_text(beyond: dict[str, Any]):
    body, prepared = await continued(CHAT | beyond)
    assert prepared.path == CHATS
    assert body["messages"][-1] == {"role": "assistant", "content": "one two"}
    assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)


@pytest.mark.parametrize(
    "field", [{"logprobs": 0}, {"return_token_ids": True}, {"truncate_prompt_tokens": 4}]
)
async def test_what_text_does_not_tell_cannot_go_on_from_text(field: dict[str, Any]):
    with pytest.raises(CannotContinue):
        await continued({"prompt": "p"} | field, PLAIN)


async def test_an_output_that_has_filled_the_context_lacks_nothing():
    with pytest.raises(NothingLeft):
        await continued({"prompt": "p"}, Abilities(ids=True, context_tokens=5))
    body, _ = await continued({"prompt": "p"}, Abilities(ids=True, context_tokens=6))
    assert body["prompt"] == [7, 8, 1, 2, 3]


@pytest.mark.parametrize(
    ("body", "by_text", "by_ids"),
    [
        ({"prompt": "p", "stream": True}, True, True),
        ({"prompt": "p"}, True, True),
        (CHAT, True, True),
        # How a text is divided behind ids is not known without ids.
        ({"prompt": [1, 2]}, False, True),
        # The engine would draw anew from the seed, and count penalties anew.
        ({"prompt": "p", "seed": 1, "temperature": 1.0}, True, False),
        ({"prompt": "p", "presence_penalty": 0.5}, True, False),
        # These are not streamed, so there is nothing to go on from.
        ({"prompt": "p", "prompt_logprobs": 1}, False, False),
        (CHAT | {"tools": [{"type": "function"}]}, False, False),
        (CHAT | {"tools": [{"type": "function"}], "stream": True}, True, False),
        ({"prompt": "p", "n": 2, "stream": True}, False, False),
    ],
)
def test_what_may_be_evicted_is_what_the_server_lets_go_on(
    body: dict[str, Any], by_text: bool, by_ids: bool
):
    job = Payload(
        RequestId("a"), 1, ModelName("m"), generating("messages" in body), json.dumps(body).encode()
    )
    allowed = [
        Connection("http://h", served={}, able=able).evictable(job) for able in (PLAIN, VLLM)
    ]
    assert allowed == [by_text, by_ids]


def test_a_body_that_is_none_is_not_evicted():
    job = Payload(RequestId("a"), 1, ModelName("m"), Endpoint.COMPLETIONS, b"{")
    assert not Connection("http://h", served={}, able=VLLM).evictable(job)


@pytest.mark.parametrize(("stream", "whole"), [(True, False), (False, True)])
async def test_chats_that_a_server_parses_are_asked_for_whole(stream: bool, whole: bool):
    """It puts reasoning and tool calls together in its own way."""
    job = Payload(
        RequestId("a"),
        1,
        ModelName("m"),
        Endpoint.CHAT_COMPLETIONS,
        json.dumps(CHAT | {"stream": stream}).encode(),
    )
    parsing = Abilities(ids=True, parses_chats=True)
    assert (await prepare(job, "served", Tokens(), parsing)).reading.whole is whole
    assert not (await prepare(job, "served", Tokens(), VLLM)).reading.whole
