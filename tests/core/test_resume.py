"""Which requests can be continued, from what, and which of them exactly."""

from __future__ import annotations

import pytest

from qlm_core.endpoint import Endpoint
from qlm_core.resume import Resume, exact_from_ids, resume_of
from tests.endpoints import generating

USER = {"role": "user", "content": "Write JSON"}


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([USER, {"role": "assistant", "content": '{"name":'}], True),
        ([USER, {"role": "assistant", "content": [{"type": "text", "text": "{"}]}], False),
        ([USER, {"role": "assistant", "content": None}], False),
        ([USER, {"role": "assistant"}], False),
        ([USER, "{"], False),
        ([], False),
        (None, False),
    ],
)
def test_a_message_that_the_client_began_can_be_extended_if_it_is_plain_text(
    messages: object, expected: bool
):
    body = {"messages": messages, "continue_final_message": True}
    assert (resume_of(body, Endpoint.CHAT_COMPLETIONS) is Resume.FROM_TEXT) is expected


def test_what_the_last_message_holds_matters_only_if_it_is_to_be_extended():
    parts = {"role": "user", "content": [{"type": "text", "text": "x"}]}
    for body in ({"messages": [parts]}, {"messages": [parts], "continue_final_message": False}):
        assert resume_of(body, Endpoint.CHAT_COMPLETIONS) is Resume.FROM_TEXT


@pytest.mark.parametrize(
    ("body", "chat", "resume", "exact"),
    [
        ({"prompt": "p"}, False, Resume.FROM_TEXT, True),
        ({"prompt": ["p"]}, False, Resume.FROM_TEXT, True),
        ({"prompt": [1, 2]}, False, Resume.FROM_TEXT, True),
        ({"prompt": [[1, 2]]}, False, Resume.FROM_TEXT, True),
        ({"prompt": ["p", "q"]}, False, Resume.NEVER, False),
        ({"prompt": "p", "n": 2}, False, Resume.NEVER, False),
        ({"prompt": "p", "echo": True}, False, Resume.NEVER, False),
        ({"prompt": "p", "prompt_logprobs": 1}, False, Resume.NEVER, False),
        ({"prompt": "p", "logprobs": 0}, False, Resume.FROM_IDS, True),
        ({"prompt": "p", "return_token_ids": True}, False, Resume.FROM_IDS, True),
        ({"prompt": "p", "truncate_prompt_tokens": 5}, False, Resume.FROM_IDS, True),
        ({"prompt": "p", "frequency_penalty": 0.5}, False, Resume.FROM_TEXT, False),
        ({"prompt": "p", "seed": 1}, False, Resume.FROM_TEXT, False),
        ({"prompt": "p", "seed": 1, "temperature": 0}, False, Resume.FROM_TEXT, True),
        ({"prompt": "p", "frequency_penalty": 0.0}, False, Resume.FROM_TEXT, True),
        ({"messages": [USER]}, True, Resume.FROM_TEXT, True),
        ({"messages": [USER], "logprobs": False}, True, Resume.FROM_TEXT, True),
        ({"messages": [USER], "logprobs": True}, True, Resume.FROM_IDS, True),
        ({"messages": [USER], "logprobs": True, "top_logprobs": 2}, True, Resume.FROM_IDS, False),
        ({"messages": [USER], "tools": [{}]}, True, Resume.FROM_TEXT, False),
        ({"messages": [USER], "tools": [{}], "tool_choice": "none"}, True, Resume.FROM_TEXT, True),
        ({"messages": [USER], "response_format": {"type": "json_object"}}, True, Resume.NEVER, False),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, True, Resume.FROM_TEXT, False),
    ],
)  # fmt: skip
def test_from_what_a_request_goes_on_and_whether_exactly(
    body: dict[str, object], chat: bool, resume: Resume, exact: bool
):
    assert resume_of(body, generating(chat)) is resume
    assert exact_from_ids(body, generating(chat)) is exact
