"""The events of a response, however its output was cut into chunks, merged and folded."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from gateway.answer import Answer
from gateway.responses import asked as ak
from gateway.responses.asked import required
from gateway.responses.cutting import PIECE_CHARS_MAX, Cutter
from gateway.responses.events import Events
from gateway.responses.from_chat import items_of
from gateway.responses.items import messages_of
from gateway.store import StoredRequest
from qlm_core.ledger import EndRecord
from qlm_core.model import Phase
from tests.gateway.test_store import request as stored_request

Json = dict[str, Any]

FINISHED = EndRecord(
    phase=Phase.FINISHED, reason="stop", prompt_tokens=7, output_tokens=3, queue_s=0.1,
    ttft_s=0.2, tpot_s=None, e2e_s=1.5, attained=True, attempts=1, evictions=0, estimate=None,
)  # fmt: skip


def request(*, background: bool) -> StoredRequest:
    said = ak.written({"metadata": {}}, [], previous="", background=background, stored=True)
    made = stored_request("resp_0123456789abcdef01234567")
    return replace(made, asked=said, service_tier="flex", created_unix_s=100)


@dataclass(frozen=True)
class Piece:
    """A piece of output: a text of a kind, a call that begins, or arguments of the last call."""

    kind: str
    text: str
    name: str = ""


words = st.text(st.sampled_from("ab \n\té漢🙂"), min_size=1, max_size=40)
texts = st.builds(Piece, st.sampled_from(["reasoning", "content", "refusal"]), words)


@st.composite
def outputs(draw: st.DrawFn) -> list[Piece]:
    """Output in the order in which a model makes it: a call's arguments follow on its name."""
    pieces: list[Piece] = []
    for number in range(draw(st.integers(0, 5))):
        if draw(st.booleans()):
            pieces.append(draw(texts))
        else:
            pieces.append(Piece("call", f"c{number}", draw(st.sampled_from("fg"))))
            pieces.append(Piece("arguments", draw(words)))
    return pieces


def deltas(pieces: list[Piece], cuts: list[int], reasoning: str) -> list[Json]:
    """Output as deltas.

    Args:
        cuts: sizes into which texts are cut, again and again.
        reasoning: the server's name for it.
    """
    found: list[Json] = []
    calls = 0
    sizes = iter(cuts * 1000)
    for piece in pieces:
        if piece.kind == "call":
            function = {"name": piece.name, "arguments": ""}
            call = {"index": calls, "id": piece.text, "type": "function", "function": function}
            found.append({"tool_calls": [call]})
            calls += 1
            continue
        start = 0
        while start < len(piece.text):
            size = next(sizes)
            text = piece.text[start : start + size]
            start += size
            if piece.kind == "arguments":
                found.append(
                    {"tool_calls": [{"index": calls - 1, "function": {"arguments": text}}]}
                )
            else:
                found.append({reasoning if piece.kind == "reasoning" else piece.kind: text})
    return found


def chunk_of(delta: Json, finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return json.dumps({"choices": [choice]}).encode()


def answer_of(chunks: list[bytes], reason: str = "stop") -> bytes:
    """The answer that is stored of these."""
    answer = Answer(chat=True, in_turns=True)
    for data in chunks:
        answer.fold(data)
    answer.fold(answer.finish(reason) or b"{}")
    return answer.response(id="x", created=1, model="m", service_tier="", record=FINISHED)


def merged(chunks: list[bytes], sizes: list[int]) -> list[bytes]:
    """Chunks folded together by so many."""
    found, start = [], 0
    for size in sizes * len(chunks):
        part = chunks[start : start + size]
        start += size
        if part:
            answer = Answer(chat=True, in_turns=True)
            for data in part:
                answer.fold(data)
            found.append(answer.chunk())
    return found


def streamed(chunks: list[bytes], *, background: bool, after: int = -1) -> list[bytes]:
    events = Events(
        request(background=background), required(request(background=background)), after=after
    )
    said = [events.begin()]
    for data in chunks:
        said += events.feed(data)
    said += events.finish(FINISHED, answer_of(chunks), None)
    return b"".join(said).split(b"\n\n")[:-1]


def read(said: list[bytes]) -> list[Json]:
    found = []
    for event in said:
        kind, data = event.split(b"\n")
        found.append(json.loads(data.removeprefix(b"data: ")))
        assert kind == b"event: " + found[-1]["type"].encode()
    return found


chunkings = st.lists(st.integers(1, 7), min_size=1, max_size=4)
names = st.sampled_from(["reasoning", "reasoning_content"])


@given(outputs(), chunkings, names, st.booleans())
def test_text_and_calls_there_and_back(
    pieces: list[Piece], cuts: list[int], reasoning: str, background: bool
) -> None:
    chunks = [chunk_of(delta) for delta in deltas(pieces, cuts, reasoning)]
    events = read(streamed(chunks, background=background))
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [events[0]["type"], events[-1]["type"]] == ["response.created", "response.completed"]
    items = events[-1]["response"]["output"]
    # What is kept of it reads the same, and so does the next turn of the conversation.
    assert items == items_of(
        request(background=background), FINISHED, json.loads(answer_of(chunks))
    )
    assert_told(events, items)
    sent = messages_of(("input", item) for item in items)

    def joined(kind: str) -> str:
        return "".join(piece.text for piece in pieces if piece.kind == kind)

    assert "".join(message.get("reasoning", "") for message in sent) == joined("reasoning")
    assert "".join(message.get("refusal", "") for message in sent) == joined("refusal")
    contents = [message["content"] or "" for message in sent]
    said = [one if isinstance(one, str) else "".join(p["text"] for p in one) for one in contents]
    assert "".join(said) == joined("content")
    calls = [call for message in sent for call in message.get("tool_calls", ())]
    assert [(call["id"], call["function"]["name"]) for call in calls] == [
        (piece.text, piece.name) for piece in pieces if piece.kind == "call"
    ]
    assert [call["function"]["arguments"] for call in calls] == [
        piece.text for piece in pieces if piece.kind == "arguments"
    ]


def assert_told(events: list[Json], items: list[Json]) -> None:
    """What the events tell, put together, is the items."""
    texts: dict[tuple[str, int], str] = {}
    done: dict[int, Json] = {}
    added: dict[int, str] = {}
    for event in events:
        kind = event["type"]
        if kind == "response.output_item.added":
            assert event["item"]["status"] == "in_progress"
            added[event["output_index"]] = event["item"]["id"]
        elif kind.endswith(".delta"):
            assert event["item_id"] == added[event["output_index"]]
            assert event["output_index"] not in done
            place = (event["item_id"], event.get("content_index", 0))
            texts[place] = texts.get(place, "") + event["delta"]
        elif kind == "response.output_item.done":
            done[event["output_index"]] = event["item"]
    assert [done[place] for place in sorted(done)] == items
    assert added == {place: item["id"] for place, item in enumerate(items)}
    for item in items:
        parts = item.get("content") or [{"text": item.get("arguments", "")}]
        for place, part in enumerate(parts):
            text = part.get("text", part.get("refusal", ""))
            assert texts.get((item["id"], place), "") == text


@given(outputs(), chunkings, chunkings, chunkings, names)
def test_events_in_the_background_do_not_depend_on_chunks(
    pieces: list[Piece], cuts: list[int], others: list[int], sizes: list[int], reasoning: str
) -> None:
    chunks = [chunk_of(delta) for delta in deltas(pieces, cuts, reasoning)]
    expected = streamed(chunks, background=True)
    assert (
        streamed([chunk_of(d) for d in deltas(pieces, others, reasoning)], background=True)
        == expected
    )
    assert streamed(merged(chunks, sizes), background=True) == expected
    made = request(background=True)
    events = Events(made, required(made))
    replayed = [events.begin(), *events.replay(FINISHED, answer_of(chunks), None)]
    assert b"".join(replayed).split(b"\n\n")[:-1] == expected


@given(outputs(), chunkings, st.integers(-1, 60))
def test_a_stream_goes_on_after_any_event(pieces: list[Piece], cuts: list[int], after: int) -> None:
    chunks = [chunk_of(delta) for delta in deltas(pieces, cuts, "reasoning")]
    whole = streamed(chunks, background=True)
    assert streamed(chunks, background=True, after=after) == whole[after + 1 :]


@given(st.text(max_size=200), chunkings)
def test_a_text_is_cut_by_itself(text: str, sizes: list[int]) -> None:
    whole = Cutter(by_chunk=False)
    expected = [*whole.add(text), *whole.rest()]
    assert "".join(expected) == text
    assert all(0 < len(piece) <= PIECE_CHARS_MAX for piece in expected)
    cutter, found, start = Cutter(by_chunk=False), list[str](), 0
    for size in sizes * (len(text) + 1):
        found += cutter.add(text[start : start + size])
        start += size
    assert [*found, *cutter.rest()] == expected


def test_words_are_told_as_they_are_finished() -> None:
    cutter = Cutter(by_chunk=False)
    assert cutter.add("Hello wor") == ["Hello"]
    assert cutter.add("ld, ho") == [" world,"]
    assert cutter.rest() == [" ho"]


# ---------------------------------------------------------------- single cases


def kinds(events: list[Json]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]


def test_the_events_of_thoughts_text_and_a_call() -> None:
    pieces = [
        Piece("reasoning", "Hm."),
        Piece("content", "One moment."),
        Piece("call", "c1", "f"),
        Piece("arguments", "{}"),
    ]
    chunks = [chunk_of(delta) for delta in deltas(pieces, [99], "reasoning")]
    assert kinds(read(streamed(chunks, background=False))) == [
        "created", "in_progress",
        "output_item.added", "content_part.added", "reasoning_text.delta",
        "reasoning_text.done", "content_part.done", "output_item.done",
        "output_item.added", "content_part.added", "output_text.delta",
        "output_text.done", "content_part.done", "output_item.done",
        "output_item.added", "function_call_arguments.delta",
        "function_call_arguments.done", "output_item.done",
        "completed",
    ]  # fmt: skip
    assert kinds(read(streamed(chunks, background=True)))[:3] == [
        "created",
        "queued",
        "in_progress",
    ]


def test_a_model_that_thinks_again_has_two_reasoning_items() -> None:
    pieces = [Piece("reasoning", "a"), Piece("content", "b"), Piece("reasoning", "c")]
    chunks = [chunk_of(delta) for delta in deltas(pieces, [9], "reasoning")]
    items = items_of(request(background=False), FINISHED, json.loads(answer_of(chunks)))
    assert [(item["type"], item["content"][0]["text"]) for item in items] == [
        ("reasoning", "a"),
        ("message", "b"),
        ("reasoning", "c"),
    ]


def test_thoughts_that_a_server_says_under_both_names_come_once() -> None:
    chunks = [chunk_of({"reasoning": "a", "reasoning_content": "a"}), chunk_of({"content": "b"})]
    items = read(streamed(chunks, background=True))[-1]["response"]["output"]
    assert [item["content"][0]["text"] for item in items] == ["a", "b"]


@pytest.mark.parametrize(
    ("finish", "status", "details"),
    [
        ("stop", "completed", None),
        ("tool_calls", "completed", None),
        ("length", "incomplete", {"reason": "max_output_tokens"}),
        ("content_filter", "incomplete", {"reason": "content_filter"}),
    ],
)
def test_how_a_chat_ends_is_how_its_response_ends(
    finish: str, status: str, details: Json | None
) -> None:
    made = request(background=True)
    events = Events(made, required(made))
    chunks = [chunk_of({"content": "x"}), chunk_of({}, finish)]
    said = [events.begin(), *(one for data in chunks for one in events.feed(data))]
    said += events.finish(FINISHED, answer_of(chunks), None)
    last = read(b"".join(said).split(b"\n\n")[:-1])[-1]
    assert last["type"] == f"response.{status}"
    response = last["response"]
    assert (response["status"], response["incomplete_details"]) == (status, details)
    assert response["output"][0]["status"] == status
    assert response["completed_at"] == (101 if status == "completed" else None)


def test_an_empty_answer_is_an_empty_message() -> None:
    events = read(streamed([chunk_of({"role": "assistant", "content": ""})], background=True))
    content = events[-1]["response"]["output"][0]["content"]
    assert content == [{"type": "output_text", "text": "", "annotations": [], "logprobs": []}]


def test_calls_without_ids_get_some_and_those_without_strings_for_arguments_too() -> None:
    call = {"index": 0, "function": {"name": "f", "arguments": {"a": 1}}}
    events = read(streamed([chunk_of({"tool_calls": [call]})], background=True))
    item = events[-1]["response"]["output"][0]
    assert item["call_id"].startswith("call_")
    assert json.loads(item["arguments"]) == {"a": 1}
    assert_told(events, [item])


def test_arguments_that_come_before_the_name_wait_for_it() -> None:
    chunks = [
        chunk_of({"tool_calls": [{"index": 0, "id": "c", "function": {"arguments": "{"}}]}),
        chunk_of({"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": "}"}}]}),
    ]
    events = read(streamed(chunks, background=False))
    item = events[-1]["response"]["output"][0]
    assert (item["name"], item["arguments"]) == ("f", "{}")
    assert_told(events, [item])


def test_log_probabilities_are_told_with_their_text() -> None:
    token = {"token": "x", "logprob": -0.5, "bytes": None, "top_logprobs": []}
    choice = {"index": 0, "delta": {"content": "x"}, "logprobs": {"content": [token]}}
    chunk = json.dumps({"choices": [choice]}).encode()
    told = [{"token": "x", "logprob": -0.5, "bytes": [], "top_logprobs": []}]
    for background in (False, True):
        events = read(streamed([chunk], background=background))
        delta = next(one for one in events if one["type"].endswith("text.delta"))
        assert delta["logprobs"] == ([] if background else told)
        assert events[-1]["response"]["output"][0]["content"][0]["logprobs"] == told


@pytest.mark.parametrize("data", [b"{}", b'{"choices": 3}', b'{"choices": [3, {"delta": "x"}]}'])
def test_chunks_of_another_shape_tell_of_nothing(data: bytes) -> None:
    made = request(background=True)
    assert [*Events(made, required(made)).feed(data)] == []
