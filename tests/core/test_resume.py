"""Which requests can be continued from the text that they produced."""

from __future__ import annotations

import pytest

from qlm_core.resume import resumable

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
    assert resumable(body, chat=True) is expected


def test_what_the_last_message_holds_matters_only_if_it_is_to_be_extended():
    parts = {"role": "user", "content": [{"type": "text", "text": "x"}]}
    assert resumable({"messages": [parts]}, chat=True)
    assert resumable({"messages": [parts], "continue_final_message": False}, chat=True)
