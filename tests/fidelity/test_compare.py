"""What the comparison of two answers finds, and what it lets pass."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.fidelity_compare import Answer, differences, events_of
from benchmarks.fidelity_corpus import corpus

CHOICE = {"index": 0, "text": "ab", "finish_reason": "length", "stop_reason": None}
WHOLE = {"id": "cmpl-1", "created": 1, "model": "m", "choices": [CHOICE], "usage": {"a": 1}}


def whole(**changes: Any) -> Answer:
    return Answer(status=200, content_type="application/json", body=WHOLE | changes)


def stream(*events: Any) -> Answer:
    return Answer(status=200, content_type="text/event-stream", events=events)


def chunk(text: str, *, index: int = 0, end: str | None = None, **more: Any) -> dict[str, Any]:
    choice = {"index": index, "text": text, "finish_reason": end} | more
    return {"id": "cmpl-1", "created": 1, "model": "m", "choices": [choice]}


def paths(direct: Answer, through: Answer) -> list[str]:
    return [one.path for one in differences(direct, through)]


def test_ids_times_measurements_and_the_tier_may_differ():
    other = whole(id="x", created=9, service_tier="default")
    assert paths(whole(), other) == []
    assert paths(whole(metrics={"ms": 1}), whole(metrics={"ms": 2})) == []


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"model": "other"}, "body.model"),
        ({"usage": {"a": 1, "b": None}}, "body.usage.b"),
        ({"choices": [CHOICE | {"text": "ac"}]}, "body.choices.0.text"),
        ({"choices": [CHOICE, CHOICE | {"index": 1}]}, "body.choices.length"),
        ({"choices": [{k: v for k, v in CHOICE.items() if v is not None}]}, "body.choices.0.stop_reason"),
        ({"more": None}, "body.more"),
        ({"created": None, "id": None}, ""),
    ],
)  # fmt: skip
def test_everything_else_is_a_difference(changes: dict[str, Any], path: str):
    assert paths(whole(), whole(**changes)) == ([path] if path else [])


def test_one_is_not_true_and_nan_is_nan():
    assert paths(whole(usage={"a": 1}), whole(usage={"a": True})) == ["body.usage.a"]
    assert paths(whole(usage={"a": float("nan")}), whole(usage={"a": float("nan")})) == []


def test_ids_of_tool_calls_may_differ_but_must_be_there():
    def called(id: str) -> Answer:
        message = {"tool_calls": [{"id": id, "function": {"name": "f"}}]}
        return whole(choices=[{"message": message}])

    assert paths(called("a"), called("b")) == []
    assert paths(called("a"), called("")) == ["body.choices.0.message.tool_calls.0.id"]


def test_how_a_stream_is_cut_does_not_matter():
    direct = stream(chunk("a"), chunk("b"), chunk("c", end="stop"), "[DONE]")
    assert paths(direct, stream(chunk("a"), chunk("bc", end="stop"), "[DONE]")) == []


@pytest.mark.parametrize(
    ("events", "path"),
    [
        ((chunk("a"), chunk("x", end="stop"), "[DONE]"), "choices.0.text"),
        ((chunk("a"), chunk("b", end="length"), "[DONE]"), "choices.0.finish_reason"),
        ((chunk("a", end="stop"), chunk("b", end="stop"), "[DONE]"), "choices.0.finish_reason"),
        ((chunk("a"), chunk("b", end="stop")), "done"),
        ((chunk("a"), chunk("b", end="stop"), "[DONE]", "[DONE]"), "done"),
        ((chunk("a"), chunk("b", end="stop") | {"usage": None}, "[DONE]"), "shape.last"),
        ((chunk("a"), chunk("b", end="stop", token_ids=None), "[DONE]"), "choices.0.token_ids"),
        ((chunk("a"), chunk("b", end="stop") | {"id": "cmpl-2"}, "[DONE]"), "heads.id"),
        ((chunk("a"), "what?", chunk("b", end="stop"), "[DONE]"), "unreadable"),
        ((chunk("a"), {"error": {"message": "x"}}, chunk("b", end="stop"), "[DONE]"), "errors"),
        ((chunk("a"), chunk("b", end="stop"), {"choices": [], "usage": {}}, "[DONE]"), "usage.length"),
        ((chunk("a"), chunk("b", end="stop"), chunk("", index=1), "[DONE]"), "choices.1"),
    ],
)  # fmt: skip
def test_what_a_stream_says_matters(events: tuple[Any, ...], path: str):
    direct = stream(chunk("a"), chunk("b", end="stop"), "[DONE]")
    assert path in paths(direct, stream(*events))


def test_calls_of_tools_and_logprobs_are_joined():
    def delta(**fields: Any) -> dict[str, Any]:
        return {"choices": [{"index": 0, "delta": fields, "finish_reason": None}]}

    begun = {"index": 0, "id": "x", "type": "function", "function": {"name": "f"}}
    first = delta(tool_calls=[begun])
    rest = [
        delta(tool_calls=[{"index": 0, "function": {"arguments": part}}])
        for part in ('{"a":', "1}")
    ]
    joined = delta(tool_calls=[{"index": 0, "function": {"arguments": '{"a":1}'}}])
    assert paths(stream(first, *rest), stream(first, joined)) == []
    assert paths(stream(first, *rest), stream(first, rest[0])) == [
        "choices.0.delta.tool_calls.0.function.arguments"
    ]


def test_an_error_is_its_status_and_message_and_may_stand_in_the_stream_or_not():
    body = {"error": {"message": "no", "type": "a", "code": 400}}
    direct = Answer(status=400, content_type="application/json", body=body)
    other = Answer(
        status=400, content_type="application/json", body={"error": {"message": "no", "code": "z"}}
    )
    assert paths(direct, other) == []
    assert paths(direct, stream(body, "[DONE]")) == []
    worse = Answer(status=502, content_type="application/json", body=body)
    assert paths(direct, worse) == ["status"]
    assert paths(direct, whole()) == ["status"]


@pytest.mark.parametrize(
    ("code", "found"),
    [("invalid_type", []), ("missing_field", []), (400, ["error"]), ("z", ["error"])],
)
def test_what_qlm_refuses_itself_it_may_say_in_its_own_words(code: str | int, found: list[str]):
    direct, other = (
        Answer(
            status=400,
            content_type="application/json",
            body={"error": {"message": message, "code": code_of}},
        )
        for message, code_of in (("no", 400), ("never", code))
    )
    assert paths(direct, other) == found


def test_a_stream_is_read_event_by_event():
    text = 'data: {"a": 1}\n\n: ping\n\ndata: oops\n\ndata: [DONE]\n\n'
    assert events_of(text) == [{"a": 1}, "oops", "[DONE]"]


def test_the_corpus_names_each_case_once_and_has_both_forms_of_both_endpoints():
    cases = corpus()
    assert len({case.name for case in cases}) == len(cases) >= 150
    assert {(case.chat, case.streams) for case in cases} == {
        (chat, streams) for chat in (False, True) for streams in (False, True)
    }
