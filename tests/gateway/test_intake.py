"""What becomes of a body: its sizes, its limit on output, and what the engine gets."""

import json
from typing import Any

import pytest

from gateway.intake import Draft, Intake, Wish
from qlm_core.errors import InvalidRequest
from tests.gateway.peers import config

MODEL_LEN = 1000


def draft(body: dict[str, Any], *, chat: bool = False) -> Draft:
    intake = Intake(config(), lambda: ())
    return intake.draft(json.dumps({"model": "tiny"} | body).encode(), chat=chat, wish=Wish())


@pytest.mark.parametrize("prompt", [[1] * 600, "x" * 2400], ids=["ids", "text"])
def test_each_of_many_prompts_has_the_whole_context(prompt: object) -> None:
    assert draft({"prompt": [prompt] * 3}).prompt_tokens == 1800  # plans reckon with all of them


@pytest.mark.parametrize(
    ("prompt", "field"),
    [
        ([1] * 1001, "prompt"),
        ("x" * 6000, "prompt"),
        ([[1], [1] * 1001], "prompt[1]"),
        (["x" * 6000, "x"], "prompt[0]"),
        ([[1] * 1000, "x" * 6000], "prompt[1]"),
    ],
)
def test_a_prompt_that_cannot_fit_is_named(prompt: object, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        draft({"prompt": prompt})
    assert (caught.value.field, caught.value.code) == (field, "context_length_exceeded")


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
