"""What becomes of a body: its sizes."""

import json
from typing import Any

import pytest

from gateway.intake import Draft, Intake, Wish
from qlm_core.errors import InvalidRequest
from tests.gateway.peers import config


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
