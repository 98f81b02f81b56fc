"""What becomes of a body: its sizes, its limit on output, and what the engine gets."""

import json
from typing import Any

import pytest

from gateway.intake import Draft, Intake, Wish
from gateway.keys import Caller
from qlm_core.config import GatewayLimits
from qlm_core.endpoint import Endpoint
from qlm_core.errors import ContextExceeded, InvalidRequest
from qlm_core.model import ModelName
from tests.endpoints import generating
from tests.gateway.peers import config

MODEL_LEN = 1000
ANYONE = Caller(tenant="", operator=True)


def draft(body: dict[str, Any], *, chat: bool = False) -> Draft:
    return made(json.dumps({"model": "tiny"} | body).encode(), chat=chat)


def made(body: bytes, *, chat: bool = False) -> Draft:
    return Intake(config(), lambda: ()).draft(body, generating(chat), wish=Wish(), caller=ANYONE)


@pytest.mark.parametrize("prompt", [[1] * 600, "x" * 2400], ids=["ids", "text"])
def test_each_of_many_prompts_has_the_whole_context(prompt: object) -> None:
    assert draft({"prompt": [prompt] * 3}).prompt_tokens == 1800  # plans reckon with all of them


@pytest.mark.parametrize(
    ("prompt", "field"),
    [
        ([1] * 1001, "prompt"),
        ("x" * 1_024_001, "prompt"),
        ([[1], [1] * 1001], "prompt[1]"),
        (["é" * 600_000, "x"], "prompt[0]"),
        ([[1] * 1000, "x" * 1_024_001], "prompt[1]"),
    ],
)
def test_a_prompt_that_cannot_fit_is_named(prompt: object, field: str) -> None:
    with pytest.raises(ContextExceeded) as caught:
        draft({"prompt": prompt})
    assert (caught.value.field, caught.value.code) == (field, "context_length_exceeded")
    # LiteLLM and others know it by this beginning.
    said = f"This model's maximum context length is 1000 tokens. However, your {field} has "
    assert str(caught.value).startswith(said)
    # What the engine is told to cut may be of any length.
    assert draft({"prompt": prompt, "truncate_prompt_tokens": 10})


def test_a_list_of_very_many_prompts_is_refused_before_they_are_measured() -> None:
    most = GatewayLimits().prompts_max
    assert draft({"prompt": ["x"] * most}).prompt_tokens == most
    with pytest.raises(InvalidRequest, match=f"prompt: has {most + 1} prompts") as caught:
        draft({"prompt": [[1]] * most + ["x" * 1_024_001]})
    assert (caught.value.field, caught.value.code) == ("prompt", "invalid_value")


RULED = ("+" + "-" * 120 + "+\n|" + " " * 120 + "|\n") * 500
CODE = ("        " * 3 + "return self.things[index]\n") * 900


@pytest.mark.parametrize(
    "text", [RULED, CODE, "x" * 1_024_000, " \n" * 2_000_000], ids=["ruled", "code", "x", "blanks"]
)
def test_text_that_a_tokenizer_may_make_fit_is_the_engines_to_judge(text: str) -> None:
    assert draft({"prompt": text}).prompt_tokens == MODEL_LEN  # plans reckon with no more than fits
    messages = [{"role": "user", "content": text}]
    assert draft({"messages": messages}, chat=True).prompt_tokens == MODEL_LEN


def test_only_what_surely_reaches_the_model_is_measured() -> None:
    """A template may leave out what an assistant thought, or be another one altogether."""
    long = "x" * 1_024_001
    asked = {"role": "user", "content": "x"}
    draft({"messages": [{"role": "assistant", "content": long}, asked]}, chat=True)
    messages = [{"role": "user", "content": [{"type": "text", "text": long}]}]
    draft({"messages": messages, "chat_template": "x"}, chat=True)
    with pytest.raises(ContextExceeded):
        draft({"messages": messages}, chat=True)


@pytest.mark.parametrize(
    ("chat", "body"),
    [
        (False, {"prompt": ""}),
        (False, {"prompt": []}),
        (False, {"prompt": ["", "x"]}),
        (False, {"prompt": [[]]}),
        (False, {"prompt": None, "prompt_embeds": "AAAA"}),
        (False, {"prompt_embeds": ["AAAA"]}),
        (False, {"prompt": "x", "echo": True, "max_tokens": 0}),
        (False, {"prompt": "x", "n": 0}),
        (False, {"prompt": "x", "stream": None, "stream_options": None}),
        (False, {"prompt": "x", "stream": True, "stream_options": {}}),
        (False, {"prompt": "x", "user": 7, "safety_identifier": None}),
        (False, {"prompt": "x", "user": "ü" * 300}),
        (False, {"prompt": "x", "max_tokens": 2**40}),
        (True, {"messages": [{"role": "user", "content": ""}]}),
        (True, {"messages": [{"role": "user", "name": "x"}]}),
        (True, {"messages": [{"role": "assistant", "tool_calls": [{}]}]}),
        (True, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
    ],
)
def test_what_an_engine_may_accept_is_left_to_it(chat: bool, body: dict[str, Any]) -> None:
    made = draft(body, chat=chat)
    limit = {} if chat else {"max_tokens": 16}
    assert json.loads(made.body) == {"model": "tiny"} | limit | body
    assert made.prompt_tokens >= 1
    assert 1 <= made.max_output_tokens < 2**31
    assert len(made.tenant.encode()) <= 256


def test_a_limit_that_is_written_as_a_fraction_is_a_whole_number_to_the_engine() -> None:
    made = draft({"prompt": "x", "max_tokens": 7.0})
    assert made.max_output_tokens == 7
    assert made.body == b'{"model":"tiny","prompt":"x","max_tokens":7}'
    for value in (7.5, True, "7", -1, 2**63):
        with pytest.raises(InvalidRequest, match="max_tokens: must be a whole number"):
            draft({"prompt": "x", "max_tokens": value})
    with pytest.raises(InvalidRequest, match="max_tokens: must be a whole number of at least 1"):
        draft({"messages": [{"role": "user"}], "max_tokens": 0}, chat=True)


def test_nothing_is_refused_by_a_length_that_nobody_told() -> None:
    intake = Intake(config(), lambda: (ModelName("announced"),))
    body = json.dumps({"model": "announced", "prompt": [1] * 20_000}).encode()
    assert (
        intake.draft(body, Endpoint.COMPLETIONS, wish=Wish(), caller=ANYONE).prompt_tokens == 20_000
    )


@pytest.mark.parametrize("text", ["emoji \\ud83d", "x \\ude00 y"])
def test_half_an_emoji_is_named(text: str) -> None:
    intake = Intake(config(), lambda: ())
    body = b'{"model": "tiny", "prompt": "%b"}' % text.encode()
    with pytest.raises(InvalidRequest, match="cut inside an emoji") as caught:
        intake.draft(body, Endpoint.COMPLETIONS, wish=Wish(), caller=ANYONE)
    assert caught.value.code == "invalid_json"
    assert draft({"prompt": "a whole \U0001f600"})


def test_a_byte_order_mark_is_overlooked() -> None:
    body = b'{"model": "tiny", "prompt": "x", "max_tokens": 3}'
    intake = Intake(config(), lambda: ())
    assert (
        intake.draft(b"\xef\xbb\xbf" + body, Endpoint.COMPLETIONS, wish=Wish(), caller=ANYONE).body
        == body
    )


def fingerprint(body: str, *, chat: bool = False, **wish: Any) -> str:
    intake = Intake(config(), lambda: ())
    return intake.draft(
        body.encode(), generating(chat), wish=Wish(**wish), caller=ANYONE, keyed=True
    ).fingerprint


def test_a_fingerprint_is_of_what_is_asked_for() -> None:
    plain = fingerprint('{"model": "tiny", "prompt": "x", "seed": 1}')
    same = [
        '{"seed":1,"prompt":"x","model":"tiny"}',
        '{"model": "tiny", "prompt": "\\u0078", "seed": 1, "stream": true}',
        '{"model": "tiny", "prompt": "x", "seed": 1, "stream_options": {"include_usage": true}}',
    ]
    assert {fingerprint(body) for body in same} == {plain}
    assert fingerprint(same[0], tenant="t", ttl_s=3.0, trace=(("traceparent", "x"),)) == plain
    other = [
        fingerprint('{"model": "tiny", "prompt": "y", "seed": 1}'),
        fingerprint('{"model": "tiny", "prompt": "x"}'),
        fingerprint('{"model": "tiny", "prompt": "x", "seed": 1, "service_tier": "flex"}'),
        fingerprint('{"model": "other", "prompt": "x", "seed": 1}'),
        fingerprint(same[0], slo_class="batch-1"),
        fingerprint(same[0], ttft_s=3.0),
        fingerprint('{"model": "tiny", "prompt": "x", "messages": [{"role": "user"}]}', chat=True),
    ]
    assert len({plain, *other}) == len(other) + 1
    assert draft({"prompt": "x"}).fingerprint == ""


@pytest.mark.parametrize("said", [{}, {"max_tokens": None}])
def test_a_completion_without_a_limit_asks_the_engine_for_the_default(said: dict[str, Any]) -> None:
    body = {"prompt": "é", "top_k": 7, "seed": None, "temperature": 0.30}
    made = draft(body | said)
    assert made.max_output_tokens == 16
    assert json.loads(made.body) == {"model": "tiny", "max_tokens": 16} | body


@pytest.mark.parametrize("chat", [True, False])
def test_a_limit_is_passed_on_as_the_client_wrote_it(chat: bool) -> None:
    body = {"messages": [{"role": "user", "content": "x"}], "prompt": "x", "max_tokens": 3}
    made = draft(body, chat=chat)
    assert made.max_output_tokens == 3
    assert made.body == json.dumps({"model": "tiny"} | body).encode()


@pytest.mark.parametrize("said", [{}, {"max_tokens": None}])
@pytest.mark.parametrize("prompt_bytes", [4, 4_800])
def test_only_the_models_length_limits_a_chat_that_names_no_limit(
    said: dict[str, Any], prompt_bytes: int
) -> None:
    messages = [{"role": "user", "content": "x" * prompt_bytes}]
    made = draft({"messages": messages} | said, chat=True)
    assert made.max_output_tokens == MODEL_LEN
    assert made.body == json.dumps({"model": "tiny", "messages": messages} | said).encode()


@pytest.mark.parametrize(
    ("levels", "taken"), [(200, True), (201, False), (984, False), (10**5, False)]
)
def test_a_body_is_nested_so_deep_that_everybody_can_read_it(levels: int, taken: bool) -> None:
    body = b'{"model": "tiny", "prompt": "x", "metadata": %b%b}' % (
        b"[" * (levels - 1),
        b"]" * (levels - 1),
    )
    if taken:
        assert made(body).body
        return
    with pytest.raises(InvalidRequest, match=r"^body: (nested|not valid JSON)") as refused:
        made(body)
    assert refused.value.code == "invalid_json"


def test_brackets_in_a_text_are_no_levels() -> None:
    assert draft({"prompt": "[{" * 5000})
    assert draft({"prompt": [[1]] * 500})
