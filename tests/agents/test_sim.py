"""What the simulated engine makes of a request's fields: it honours each or refuses it by name."""

from typing import Any

import msgspec
import pytest

from agents.engines.sim_job import choice_name, token_text
from qlm_core.endpoint import Endpoint
from qlm_core.executor import JobDone, JobRefused
from qlm_core.messages import Payload
from qlm_core.model import ModelName, RequestId
from tests.agents.harness import SimHarness
from tests.endpoints import generating

TOOL = {"type": "function", "function": {"name": "f"}}


def tokens(index: int, count: int, id: str = "a") -> list[str]:
    return [token_text(choice_name(id, index), token) for token in range(count)]


def text(index: int, count: int) -> str:
    return "".join(tokens(index, count))


class Answered:
    """All that an engine said to a request, put together choice by choice."""

    def __init__(self, events: list[Any]) -> None:
        self.end = events[-1]
        self.texts: dict[int, str] = {}
        self.reasons: dict[int, str] = {}
        self.logprobs: dict[int, list[Any]] = {}
        self.counted = sum(event.tokens for event in events[:-1])
        for event in events[:-1]:
            for choice in msgspec.json.decode(event.data)["choices"]:
                index = choice["index"]
                assert index not in self.reasons, "a choice went on after its end"
                said = choice["delta"]["content"] if "delta" in choice else choice["text"]
                self.texts[index] = self.texts.get(index, "") + said
                if choice.get("logprobs"):
                    self.logprobs.setdefault(index, []).append(choice["logprobs"])
                if choice["finish_reason"]:
                    self.reasons[index] = choice["finish_reason"]


async def ask(body: dict[str, Any], *, chat: bool = False, zero_delay: bool = True) -> Answered:
    asked = {"messages": [{"role": "user", "content": "hello"}]} if chat else {"prompt": "hello"}
    asked |= {"max_tokens": 5, "ignore_eos": True} | body
    async with SimHarness.started(zero_delay=zero_delay) as harness:
        model, data = ModelName(harness.models[0]), msgspec.json.encode(asked)
        harness.engine.submit(Payload(RequestId("a"), 1, model, generating(chat), data))
        await harness.heard.end_of("a")
        return Answered(harness.heard.of("a"))


@pytest.mark.parametrize("zero_delay", [True, False])
@pytest.mark.parametrize("chat", [True, False])
async def test_n_makes_so_many_choices(chat: bool, zero_delay: bool) -> None:
    said = await ask({"n": 3, "best_of": 3}, chat=chat, zero_delay=zero_delay)
    assert said.texts == {index: text(index, 5) for index in range(3)}
    assert said.reasons == dict.fromkeys(range(3), "length")
    assert isinstance(said.end, JobDone)
    assert (said.end.prompt_tokens, said.end.output_tokens, said.counted) == (2, 15, 15)


@pytest.mark.parametrize("zero_delay", [True, False])
async def test_each_of_many_prompts_has_its_choices(zero_delay: bool) -> None:
    body = {"prompt": ["hello", [1, 2, 3]], "n": 2}
    said = await ask(body, zero_delay=zero_delay)
    assert said.texts == {index: text(index, 5) for index in range(4)}
    assert (said.end.prompt_tokens, said.end.output_tokens) == (5, 20)


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        (Endpoint.COMPLETIONS, {"prompt": ["hello", "x" * 4000], "n": 3, "max_tokens": 1}),
        (Endpoint.EMBEDDINGS, {"input": ["x", "y", "z" * 4000, "w"]}),
    ],
)
async def test_a_job_of_choices_that_end_with_their_first_token_ends_once(
    endpoint: Endpoint, body: dict[str, Any]
) -> None:
    async with SimHarness.started() as harness:
        model, data = ModelName(harness.models[0]), msgspec.json.encode(body)
        harness.engine.submit(Payload(RequestId("a"), 1, model, endpoint, data))
        harness.engine.submit(harness.job("b", 5))
        ends = [await harness.heard.end_of(id) for id in ("a", "b")]
        assert [type(end) for end in ends] == [JobDone, JobDone]
        assert sum(isinstance(event, JobDone) for event in harness.heard.of("a")) == 1
        assert harness.engine.kv_used_tokens() == 0  # type: ignore[attr-defined]


async def test_an_abort_takes_every_choice_off() -> None:
    async with SimHarness.started() as harness:
        job = harness.job("a", 1500)
        body = msgspec.json.decode(job.body) | {"n": 3}
        data = msgspec.json.encode(body)
        harness.engine.submit(Payload(job.id, job.attempt, job.model, job.endpoint, data))
        harness.engine.submit(harness.job("b", 5))
        assert isinstance(await harness.heard.end_of("b"), JobDone)
        assert harness.engine.kv_used_tokens() > 0  # type: ignore[attr-defined]
        harness.engine.abort(RequestId("a"), 1)
        assert harness.engine.kv_used_tokens() == 0  # type: ignore[attr-defined]
        harness.engine.submit(Payload(job.id, 2, job.model, job.endpoint, job.body))


@pytest.mark.parametrize("zero_delay", [True, False])
@pytest.mark.parametrize("max_tokens", [0, 3])
async def test_an_echo_comes_before_the_output(max_tokens: int, zero_delay: bool) -> None:
    body = {"prompt": ['say "hé"\n', "x"], "echo": True, "max_tokens": max_tokens}
    said = await ask(body, zero_delay=zero_delay)
    assert said.texts == {0: 'say "hé"\n' + text(0, max_tokens), 1: "x" + text(1, max_tokens)}
    assert said.reasons == {0: "length", 1: "length"}
    assert said.end.output_tokens == said.counted == 2 * max_tokens


@pytest.mark.parametrize("zero_delay", [True, False])
@pytest.mark.parametrize(
    ("body", "expected", "count"),
    [
        ({"stop": ".2"}, 2, 3),
        ({"stop": ["nothing like it", ".4", ".2"]}, 2, 3),
        ({"stop": ".2", "include_stop_str_in_output": True}, 3, 3),
        ({"stop": "x"}, 5, 5),
        ({"stop": None}, 5, 5),
        ({"stop": []}, 5, 5),
        ({"stop": ".2", "min_tokens": 4}, 5, 5),
    ],
)
async def test_a_stop_string_ends_the_output(
    body: dict[str, Any], expected: int, count: int, zero_delay: bool
) -> None:
    said = await ask(body, zero_delay=zero_delay)
    stopped = count < 5
    whole = text(0, expected)
    if stopped and "include_stop_str_in_output" not in body:
        whole = text(0, 3).removesuffix(".2")
    assert said.texts == {0: whole}
    assert said.reasons == {0: "stop" if stopped else "length"}
    assert said.end.output_tokens == count


async def test_a_stop_string_may_lie_across_tokens() -> None:
    across = text(0, 3)[len(tokens(0, 1)[0]) - 1 : len(text(0, 2)) + 2]
    said = await ask({"stop": across})
    assert said.texts == {0: text(0, 1)[:-1]}
    assert said.end.output_tokens == 3


async def test_a_resumed_job_ends_at_the_same_stop_string() -> None:
    async with SimHarness.started(zero_delay=True) as harness:
        body = {"prompt": "hello", "max_tokens": 9, "ignore_eos": True, "stop": ".4"}
        resumed = Payload(
            id=RequestId("a"),
            attempt=2,
            model=ModelName(harness.models[0]),
            endpoint=Endpoint.COMPLETIONS,
            body=msgspec.json.encode(body),
            resume_text=text(0, 2),
            produced_tokens=2,
        )
        harness.engine.submit(resumed)
        await harness.heard.end_of("a")
        said = Answered(harness.heard.of("a"))
    assert text(0, 2) + said.texts[0] == text(0, 5).removesuffix(".4")
    assert (said.end.finish_reason, said.end.output_tokens) == ("stop", 3)


async def test_a_completions_tokens_are_certain() -> None:
    said = await ask({"logprobs": 1, "max_tokens": 3})
    parts = said.logprobs[0]
    assert [token for part in parts for token in part["tokens"]] == tokens(0, 3)
    assert [value for part in parts for value in part["token_logprobs"]] == [0.0] * 3
    assert [top for part in parts for top in part["top_logprobs"]] == [
        {token: 0.0} for token in tokens(0, 3)
    ]
    assert [offset for part in parts for offset in part["text_offset"]] == [
        len(text(0, index)) for index in range(3)
    ]
    said = await ask({"logprobs": 0, "max_tokens": 3})
    assert [part["top_logprobs"] for part in said.logprobs[0]] == [None] * 3


async def test_a_chats_tokens_are_certain() -> None:
    said = await ask({"logprobs": True, "top_logprobs": 2, "max_tokens": 3}, chat=True)
    content = [one for part in said.logprobs[0] for one in part["content"]]
    assert [one["token"] for one in content] == tokens(0, 3)
    assert [len(one["top_logprobs"]) for one in content] == [1] * 3
    assert bytes(content[0]["bytes"]).decode() == tokens(0, 1)[0]
    assert (await ask({"logprobs": False}, chat=True)).logprobs == {}


async def test_a_least_length_and_a_cut_are_kept() -> None:
    said = await ask({"min_tokens": 4, "ignore_eos": False, "qlm_sim": {"output_tokens": 1}})
    assert said.end.output_tokens == 4
    said = await ask({"prompt": [1] * 90_000, "truncate_prompt_tokens": 7})
    assert (said.end.prompt_tokens, said.end.output_tokens) == (7, 5)


@pytest.mark.parametrize(
    "body",
    [
        {"n": 1, "best_of": None, "suffix": "", "echo": False, "stop": None, "logprobs": None},
        {"tools": [TOOL], "tool_choice": "auto", "response_format": {"type": "text"}},
        {"temperature": 0.3, "seed": 1, "logit_bias": {"5": 1}, "stop_token_ids": [7]},
        {"modalities": ["text"], "prompt_logprobs": None, "guided_json": None, "n": None},
    ],
)
@pytest.mark.parametrize("chat", [True, False])
async def test_what_leaves_the_answer_valid_is_accepted(body: dict[str, Any], chat: bool) -> None:
    assert (await ask(body, chat=chat)).texts == {0: text(0, 5)}


@pytest.mark.parametrize(
    ("chat", "body", "field"),
    [
        (False, {"n": 0}, "n"),
        (False, {"n": "2"}, "n"),
        (False, {"n": 1025}, "n"),
        (False, {"n": 2, "best_of": 4}, "best_of"),
        (False, {"suffix": "end"}, "suffix"),
        (False, {"prompt_logprobs": 0}, "prompt_logprobs"),
        (False, {"logprobs": True}, "logprobs"),
        (False, {"logprobs": 1, "echo": True}, "logprobs"),
        (False, {"prompt": [1, 2], "echo": True}, "echo"),
        (False, {"max_tokens": 0}, "max_tokens"),
        (False, {"prompt": []}, "prompt"),
        (False, {"prompt": ["x", {}]}, "prompt[1]"),
        (False, {"prompt_embeds": "AAAA"}, "prompt_embeds"),
        (False, {"stop": [""]}, "stop"),
        (False, {"stop": 3}, "stop"),
        (False, {"use_beam_search": True}, "use_beam_search"),
        (False, {"return_token_ids": True}, "return_token_ids"),
        (False, {"guided_regex": "a+"}, "guided_regex"),
        (False, {"bad_words": ["x"]}, "bad_words"),
        (False, {"allowed_token_ids": [1]}, "allowed_token_ids"),
        (True, {"echo": True}, "echo"),
        (True, {"response_format": {"type": "json_object"}}, "response_format"),
        (True, {"response_format": {"type": "json_schema"}}, "response_format"),
        (True, {"structured_outputs": {"choice": ["a"]}}, "structured_outputs"),
        (True, {"tools": [TOOL], "tool_choice": "required"}, "tool_choice"),
        (True, {"tools": [TOOL], "tool_choice": TOOL}, "tool_choice"),
        (True, {"function_call": {"name": "f"}}, "function_call"),
        (True, {"modalities": ["text", "audio"]}, "modalities"),
        (True, {"modalities": 1}, "modalities"),
        (True, {"top_logprobs": 2}, "top_logprobs"),
        (True, {"logprobs": 2}, "logprobs"),
    ],
)
async def test_what_cannot_be_honoured_is_refused_by_name(
    chat: bool, body: dict[str, Any], field: str
) -> None:
    said = await ask(body, chat=chat)
    assert isinstance(said.end, JobRefused)
    assert (said.end.status, said.texts) == (400, {})
    assert said.end.error.startswith(f"{field}: ")


@pytest.mark.parametrize("depth", [984, 100_000])
@pytest.mark.parametrize("odd", [b'{"a":%s1%s}', b'{"a\xff":%s%s}'])
async def test_a_body_that_cannot_be_read_is_refused_alone(depth: int, odd: bytes) -> None:
    body = odd % (b"[" * depth, b"]" * depth)
    async with SimHarness.started(zero_delay=True) as harness:
        model = ModelName(harness.models[0])
        bad = Payload(RequestId("bad"), 1, model, Endpoint.COMPLETIONS, body)
        assert not harness.engine.evictable(bad)
        harness.engine.submit(bad)
        good = Payload(
            RequestId("good"), 1, model, Endpoint.COMPLETIONS, b'{"prompt": "x", "max_tokens": 1}'
        )
        harness.engine.submit(good)
        for id, end in (("bad", JobRefused), ("good", JobDone)):
            await harness.heard.end_of(id)
            assert isinstance(Answered(harness.heard.of(id)).end, end)
