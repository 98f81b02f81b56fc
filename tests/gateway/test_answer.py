"""Answers put together from chunks: nothing an engine wrote is lost, joined wrongly or made up."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.answer import Answer, BadChunkError, usage_of
from gateway.openai import chunk_of
from qlm_core.ledger import EndRecord
from qlm_core.model import Phase
from qlm_core.resume import ResumedBy

# Every value anywhere, under the names that folding knows, so that each meets each.
NAMES = st.sampled_from(
    ["index", "delta", "message", "text", "logprobs", "token_ids", "finish_reason", "content", "role", "tool_calls",
     "function", "id", "name", "arguments", "text_offset", "tokens", "usage", "odd"]
)  # fmt: skip
LEAVES = (
    st.none() | st.booleans() | st.integers(-1, 2) | st.floats(0, 1) | st.sampled_from(["", "x"])
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)
CALLS = st.lists(VALUES | st.dictionaries(NAMES, VALUES, max_size=4), max_size=2)
MESSAGES = st.fixed_dictionaries(
    {}, optional={"content": LEAVES, "tool_calls": CALLS, "odd": VALUES}
)
CHOICES = st.fixed_dictionaries(
    {},
    optional={
        "index": st.integers(0, 1) | LEAVES,
        "delta": MESSAGES | VALUES,
        "message": MESSAGES | VALUES,
        "text": LEAVES,
        "logprobs": st.dictionaries(NAMES, VALUES, max_size=3) | VALUES,
        "token_ids": st.lists(LEAVES, max_size=2) | VALUES,
        "finish_reason": VALUES,
        "odd": VALUES,
    },
)
CHUNKS = st.fixed_dictionaries(
    {"choices": st.lists(CHOICES, max_size=2) | VALUES},
    optional={"usage": st.dictionaries(NAMES, VALUES, max_size=2), "odd": VALUES},
)


def record(**more: Any) -> EndRecord:
    known: dict[str, Any] = {
        "phase": Phase.FINISHED, "reason": "stop", "prompt_tokens": 7, "output_tokens": 3, "queue_s": 0.0,
        "ttft_s": 1.0, "tpot_s": 1.0, "e2e_s": 2.0, "attained": True, "attempts": 1, "evictions": 0, "estimate": None,
    }  # fmt: skip
    return EndRecord(**known | more)


def response(*chunks: dict[str, Any], chat: bool = True, **more: Any) -> dict[str, Any]:
    answer = Answer(chat=chat)
    for chunk in chunks:
        answer.fold(json.dumps(chunk).encode())
    said = answer.response(id="i", created=1, model="m", service_tier="", record=record(**more))
    return json.loads(said)  # type: ignore[no-any-return]


def delta(finish: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def call(**fields: Any) -> dict[str, Any]:
    return delta(tool_calls=[fields])


def calls(*chunks: dict[str, Any]) -> list[dict[str, Any]]:
    return response(*chunks)["choices"][0]["message"]["tool_calls"]  # type: ignore[no-any-return]


class TestToolCalls:
    begun = call(index=0, id="c1", type="function", function={"name": "f", "arguments": ""})
    whole = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}

    @pytest.mark.parametrize(
        "rest",
        [
            {"index": 0},
            {"index": 0, "id": "", "type": "", "name": ""},
            {"index": 0, "id": None, "type": None},
            {"index": 0, "id": "c1", "type": "function"},
            {"index": 0, "id": "another-for-each-chunk"},
            {"id": "c1"},
            {},
        ],
    )
    def test_what_names_a_call_is_said_once_and_stays(self, rest: dict[str, Any]):
        later = [
            call(**rest, function={"name": "", "arguments": '{"a"'}),
            call(**rest, function={"name": None, "arguments": ":1}"}),
        ]
        if "name" in rest:
            for chunk in later:
                del chunk["choices"][0]["delta"]["tool_calls"][0]["name"]
        assert calls(self.begun, *later) == [self.whole]

    def test_calls_side_by_side_keep_apart(self):
        second = call(index=1, id="c2", type="function", function={"name": "g", "arguments": "{}"})
        rest = call(index=0, function={"arguments": '{"a":1}'})
        both = calls(self.begun, second, rest)
        assert [one["function"]["arguments"] for one in both] == ['{"a":1}', "{}"]

    def test_another_call_under_the_same_index_is_another_call(self):
        second = call(index=0, id="c2", type="function", function={"name": "g", "arguments": "{}"})
        both = calls(self.begun, second)
        assert [(one["id"], one["function"]["name"]) for one in both] == [("c1", "f"), ("c2", "g")]

    def test_beside_a_call_there_is_no_empty_content(self):
        message = response(delta(role="assistant", content=""), self.begun)["choices"][0]["message"]
        assert message["content"] is None


class TestFolding:
    def test_text_reasoning_and_unknown_fields_are_joined_or_kept(self):
        answer = response(
            {**delta(role="assistant", content="", reasoning="a"), "system_fingerprint": "f"},
            {**delta(content="x", reasoning="b"), "odd": {"n": 1}},
            delta("stop", content="y"),
        )
        assert answer["choices"][0]["message"] == {
            "role": "assistant",
            "content": "xy",
            "reasoning": "ab",
        }
        assert (answer["system_fingerprint"], answer["odd"]) == ("f", {"n": 1})

    def test_empty_fields_stay_and_nothing_replaces_something(self):
        shape = {
            "metrics": None,
            "usage": {"prompt_tokens_details": None},
            "choices": [
                {"index": 0, "stop_reason": None, "token_ids": None, "delta": {"refusal": None}}
            ],
        }
        first = {
            "choices": [{"index": 0, "delta": {"content": "x"}, "token_ids": [1], "stop_reason": 5}]
        }
        last = {
            "choices": [
                {
                    "index": 0,
                    "delta": {},
                    "token_ids": [2],
                    "stop_reason": None,
                    "finish_reason": "stop",
                }
            ]
        }
        answer = response(shape, first, last)
        assert answer["metrics"] is None
        assert answer["usage"]["prompt_tokens_details"] is None
        [choice] = answer["choices"]
        assert choice["message"]["refusal"] is None
        assert (choice["token_ids"], choice["stop_reason"]) == ([1, 2], 5)

    @pytest.mark.parametrize(
        ("first", "second", "joined"),
        [
            ("a", ["b"], ["b"]),
            (["a"], "b", "b"),
            ({"x": "a"}, "b", "b"),
            ("a", {"x": "b"}, {"x": "b"}),
            (1, "b", "b"),
            ([1], [2], [1, 2]),
        ],
    )
    def test_values_that_do_not_fit_replace_each_other(self, first: Any, second: Any, joined: Any):
        message = response(delta(odd=first), delta(odd=second))["choices"][0]["message"]
        assert message["odd"] == joined

    @pytest.mark.parametrize(
        "data",
        [b"{", b"[]", b"3", b'{"choices": 3}', b'{"choices": [3]}', b'{"choices": [{"delta": "x"}]}',
         b'{"choices": [{"delta": {"content": [1]}}]}', b'{"choices": [{"index": "x"}]}', b'{"choices": [{"text": 3}]}',
         b'{"choices": [{"message": "x"}]}', b'{"choices": [{"message": {"content": 1}}]}',
         b'{"choices": [{"message": {"tool_calls": [1]}}]}', b'{"choices": [{"message": {"tool_calls": {"a": 1}}}]}',
         b'{"choices": [{"delta": {"tool_calls": "x"}}]}', b'{"choices": [{"delta": {"tool_calls": [1]}}]}'],
    )  # fmt: skip
    def test_what_is_no_chunk_is_refused(self, data: bytes):
        with pytest.raises(BadChunkError):
            Answer(chat=True).fold(data)

    def test_a_message_of_null_is_none(self):
        named = {"choices": [{"index": 0, "message": None, "delta": {"content": "x"}}]}
        both = response(named, named)
        assert both["choices"][0]["message"]["content"] == "xx"

    def test_token_ids_that_are_no_list_are_replaced(self):
        def ids(value: Any) -> dict[str, Any]:
            return {"choices": [{"index": 0, "text": "x", "token_ids": value}]}

        whole = response(ids(5), ids([1]), ids([2]), chat=False)
        assert whole["choices"][0]["token_ids"] == [1, 2]

    def test_a_delta_goes_on_with_the_calls_of_a_whole_message(self):
        message = {"tool_calls": [{"id": "c1", "function": {"name": "f", "arguments": "{"}}]}
        rest = call(id="c1", function={"arguments": "}"})
        assert calls({"choices": [{"index": 0, "message": message}]}, rest) == [
            {"id": "c1", "function": {"name": "f", "arguments": "{}"}}
        ]

    @pytest.mark.parametrize(
        "logprobs",
        [
            {"text_offset": 5},
            {"text_offset": {"a": 1}},
            {"text_offset": [1], "tokens": {"a": 1}},
            {"text_offset": [-1]},
            {"text_offset": [2**40]},
        ],
    )
    def test_log_probabilities_of_another_kind_say_nothing(self, logprobs: dict[str, Any]):
        answer = Answer(chat=False)
        known = {"tokens": ["a"]} | logprobs
        answer.fold(json.dumps({"choices": [{"index": 0, "logprobs": known}]}).encode())
        assert answer.text_offset_chars == 0

    @settings(max_examples=500)
    @given(chunks=st.lists(st.tuples(CHUNKS, st.booleans()), max_size=4), chat=st.booleans())
    def test_only_what_is_no_chunk_is_an_error(self, chunks: list[tuple[Any, bool]], chat: bool):
        answer = Answer(chat=chat)
        for chunk, whole in chunks:
            with contextlib.suppress(BadChunkError):
                answer.fold(json.dumps(chunk).encode(), whole=whole)
            assert isinstance(answer.text, str)
            assert isinstance(answer.text_offset_chars, int)
        so_far, last = answer.chunk(), answer.finish("stop")
        if last:
            answer.fold(last)
        if so_far:
            Answer(chat=chat).fold(so_far)
        said = answer.response(id="i", created=1, model="m", service_tier="", record=record())
        assert json.loads(chunk_of(said, chat=chat))["choices"]

    def test_what_is_nested_too_deeply_is_refused(self):
        odd = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
        with pytest.raises(BadChunkError):
            Answer(chat=True).fold(b'{"choices": [{"delta": {"odd": %b}}]}' % odd)

    def test_so_is_what_could_be_read_and_not_written(self, monkeypatch: pytest.MonkeyPatch):
        """There may be less room further down the stack, where the whole is written."""

        def too_deep(_: object) -> bytes:
            raise RecursionError

        monkeypatch.setattr("gateway.answer._encode", too_deep)
        with pytest.raises(BadChunkError, match="cannot be written"):
            response(delta("stop", content="x"))

    def test_where_the_next_token_begins_follows_from_log_probabilities(self):
        answer = Answer(chat=False)
        assert answer.text_offset_chars == 0
        logprobs = {"text_offset": [0, 3], "tokens": ["abc", "de"]}
        answer.fold(
            json.dumps({"choices": [{"index": 0, "text": "abcde", "logprobs": logprobs}]}).encode()
        )
        assert answer.text_offset_chars == 5


class TestUsage:
    closing = json.dumps(
        {"usage": {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11,
                   "prompt_tokens_details": {"cached_tokens": 8}, "odd": 1}, "metrics": {"m": 1}}
    ).encode()  # fmt: skip

    def test_an_answer_of_one_attempt_is_counted_by_its_engine_alone(self):
        answer = response(delta("stop", content="x"), closing=self.closing)
        assert answer["usage"] == json.loads(self.closing)["usage"]
        assert answer["metrics"] == {"m": 1}

    def test_of_several_attempts_the_ledgers_sums_count_and_the_rest_stays(self):
        usage = usage_of(record(closing=self.closing, resumed_by=ResumedBy.IDS))
        assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (
            7,
            3,
            10,
        )
        assert usage["odd"] == 1
        # What the attempts before had produced is no cached prompt.
        assert usage["prompt_tokens_details"] == {"cached_tokens": 7}

    def test_details_that_the_last_word_leaves_out_are_null(self):
        # They were counted before the end, and what was produced since may have changed them.
        early = {"usage": {"completion_tokens": 1, "completion_tokens_details": {"odd": 1}}}
        answer = response({**delta(content="x"), **early}, delta("stop"), closing=self.closing)
        expected = json.loads(self.closing)["usage"] | {"completion_tokens_details": None}
        assert answer["usage"] == expected

    def test_a_last_word_that_cannot_be_read_leaves_the_answer_as_it_is(self):
        assert response(delta("stop", content="x"), closing=b"{")["usage"] == usage_of(record())

    def test_without_the_engines_word_the_ledger_counts(self):
        counts = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
        assert usage_of(record()) == counts
