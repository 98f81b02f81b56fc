"""Reading an input file: where its lines are, and every fault that a line can have."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.batches import scan as scanning
from gateway.batches.endpoints import ENDPOINTS
from gateway.batches.index import Index, Scan
from gateway.batches.scan import Limits, scan

CHAT, PLAIN = ENDPOINTS["/v1/chat/completions"], ENDPOINTS["/v1/completions"]
LIMITS = Limits(lines_max=5, inputs_max=6, line_bytes_max=600, faults_max=4)


def line(id: str = "a", **changed: Any) -> dict[str, Any]:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "twelve bytes"}]}
    said = {"custom_id": id, "method": "POST", "url": CHAT.path, "body": body} | changed
    return {key: value for key, value in said.items() if value is not ...}


def with_body(**changed: Any) -> dict[str, Any]:
    body = line()["body"] | changed
    return line(body={key: value for key, value in body.items() if value is not ...})


def scanned(*lines: dict[str, Any] | bytes) -> Scan:
    parts = [part if isinstance(part, bytes) else json.dumps(part).encode() for part in lines]
    return scan(io.BytesIO(b"\n".join(parts)), CHAT, LIMITS)


def fault_of(*lines: dict[str, Any] | bytes) -> tuple[str, str | None, int | None]:
    """The one fault of a file: code, param and line."""
    found = scanned(*lines)
    (fault,) = found.faults
    assert fault.message
    assert not found.index
    return fault.code, fault.param, fault.line


def test_lines_are_found_where_they_are_and_blank_ones_are_passed_over() -> None:
    lines = [
        line("a"),
        b"  ",
        with_body(model="other", max_completion_tokens=9) | {"custom_id": "b"},
        b"",
        line("c") | {"more": 1},
    ]
    data = b"\r\n".join(x if isinstance(x, bytes) else json.dumps(x).encode() for x in lines)
    found = scan(io.BytesIO(data), CHAT, LIMITS)
    assert not found.faults
    assert [(model.name, model.at) for model in found.models] == [("tiny", (1, 5)), ("other", (3,))]
    index = Index.unpack(found.index)
    names = [
        json.loads(data[offset : offset + size])["custom_id"]
        for offset, size in zip(index.offsets, index.sizes, strict=True)
    ]
    assert names == ["a", "b", "c"]
    assert list(index.model_of) == [0, 1, 0]
    assert list(index.prompt_tokens) == [3, 3, 3]
    assert list(index.output_limits) == [0, 9, 0]


@pytest.mark.parametrize(
    ("bad", "fault"),
    [
        (b"{", ("invalid_json_line", None)),
        (b"[1]", ("invalid_json_line", None)),
        (b'"text"', ("invalid_json_line", None)),
        (b'{"custom_id": "\xff"}', ("invalid_json_line", None)),
        (b"[" * 500, ("invalid_json_line", None)),
        (line(custom_id=...), ("missing_required_parameter", "custom_id")),
        (line(custom_id=None), ("missing_required_parameter", "custom_id")),
        (line(custom_id=7), ("invalid_type", "custom_id")),
        (line(custom_id=""), ("invalid_type", "custom_id")),
        (line(method=...), ("missing_required_parameter", "method")),
        (line(method="GET"), ("invalid_value", "method")),
        (line(url=...), ("missing_required_parameter", "url")),
        (line(url="/v1/completions"), ("invalid_url", "url")),
        (line(body=...), ("missing_required_parameter", "body")),
        (line(body=[]), ("invalid_type", "body")),
        (with_body(stream=True), ("streaming_unsupported", "body.stream")),
        (with_body(model=...), ("invalid_request", "body.model")),
        (with_body(model=""), ("invalid_request", "body.model")),
        (with_body(model="m" * 300), ("model_not_found", "body.model")),
        (with_body(messages=...), ("invalid_request", "body.messages")),
        (with_body(messages=None), ("invalid_request", "body.messages")),
        (line("good"), ("duplicate_custom_id", "custom_id")),
        (with_body(user="u" * 600), ("invalid_request", None)),
    ],
)
def test_what_is_wrong_with_a_line_is_told_with_its_number(
    bad: dict[str, Any] | bytes, fault: tuple[str, str | None]
) -> None:
    assert fault_of(line("good"), b"", bad) == (*fault, 3)


ODD = st.one_of(st.none(), st.booleans(), st.integers(), st.just(""), st.just([]), st.just({}))
MODELS = st.sampled_from(["tiny", "other", "m" * 300])
MESSAGES = line()["body"]["messages"]
BODIES = st.fixed_dictionaries(
    {"model": MODELS | ODD, "messages": st.just(MESSAGES) | ODD},
    optional={"stream": ODD, "max_tokens": ODD | st.integers(1, 2**40)},
)
LINES = st.fixed_dictionaries(
    {
        "custom_id": st.sampled_from(["a", "b", "c" * 16, "c" * 17, "d" * 40]) | ODD,
        "method": st.sampled_from(["POST", "POST", "GET"]) | ODD,
        "url": st.sampled_from([CHAT.path, CHAT.path, PLAIN.path]) | ODD,
        "body": BODIES | BODIES | ODD,
    },
    optional={"more": ODD},
)


@given(lines=st.lists(LINES.map(lambda it: json.dumps(it).encode()) | st.just(b"{"), max_size=8))
def test_the_short_way_of_sound_lines_finds_what_the_long_one_does(lines: list[bytes]) -> None:
    found = scanned(*lines)
    with pytest.MonkeyPatch.context() as there:
        there.setattr(scanning._Scanner, "_sound_body", lambda self, data: None)
        assert scanned(*lines) == found


def test_most_lines_take_the_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    examined = []
    real = scanning._Scanner._examined_body

    def noted(self: scanning._Scanner, data: bytes, number: int) -> Any:
        examined.append(number)
        return real(self, data, number)

    monkeypatch.setattr(scanning._Scanner, "_examined_body", noted)
    assert not scanned(line("a"), line("b"), line("c"), line("d"), line("e")).faults
    assert examined == [1]


def test_a_body_for_another_endpoint_is_not_judged_by_this_one() -> None:
    said = line(url=PLAIN.path, body={"model": "tiny", "prompt": "x"})
    assert fault_of(said) == ("invalid_url", "url", 1)


def test_a_stream_that_is_not_asked_for_is_no_fault() -> None:
    assert not scanned(with_body(stream=False)).faults


def test_a_byte_order_mark_spoils_the_first_line() -> None:
    first = b"\xef\xbb\xbf" + json.dumps(line()).encode()
    assert fault_of(first) == ("invalid_json_line", None, 1)


@pytest.mark.parametrize("data", [b"", b"\n \n\n"])
def test_a_file_without_a_request_is_empty(data: bytes) -> None:
    (fault,) = scan(io.BytesIO(data), CHAT, LIMITS).faults
    assert (fault.code, fault.param, fault.line) == ("empty_file", "input_file_id", None)


def test_a_file_of_too_many_requests_is_refused() -> None:
    lines = [line(str(number)) for number in range(6)]
    assert not scanned(*lines[:5]).faults
    assert fault_of(*lines) == ("too_many_tasks", "input_file_id", None)


EMBED = ENDPOINTS["/v1/embeddings"]


def embedding(*inputs: object, **more: Any) -> bytes:
    """A file for /v1/embeddings with these inputs, one line each."""
    lines = [
        line(str(number), url=EMBED.path, body={"model": "tiny", "input": one} | more)
        for number, one in enumerate(inputs)
    ]
    return b"\n".join(json.dumps(one).encode() for one in lines)


@pytest.mark.parametrize(
    ("inputs", "refused"),
    [
        ([["a"] * 6], False),
        ([["a"] * 7], True),
        ([["a"] * 3, "b", ["c", "d"]], False),
        ([["a"] * 3, "b", ["c", "d"], "e"], True),
        # Token ids are one text together; lists of these are as many texts.
        ([[1, 2, 3, 4, 5, 6, 7, 8]], False),
        ([[[1, 2]] * 7], True),
    ],
)
def test_inputs_to_embed_are_counted_over_all_lines(inputs: list[object], refused: bool) -> None:
    found = scan(io.BytesIO(embedding(*inputs)), EMBED, LIMITS)
    faults = [(fault.code, fault.param, fault.line) for fault in found.faults]
    assert faults == ([("too_many_tasks", "input_file_id", None)] if refused else [])
    if refused:
        assert "more than 6 inputs to embed" in found.faults[0].message
        assert not found.index


def test_messages_to_embed_are_one_input() -> None:
    messages = [{"role": "user", "content": "x"}] * 9
    found = scan(io.BytesIO(embedding(None, messages=messages)), EMBED, LIMITS)
    assert not found.faults


def test_several_faults_are_told_up_to_a_limit() -> None:
    found = scanned(
        line(method="GET", url="/x"), line("b"), b"{", line(custom_id=...), b"{", line("b")
    )
    assert [(fault.code, fault.line) for fault in found.faults] == [
        ("invalid_value", 1),
        ("invalid_url", 1),
        ("invalid_json_line", 3),
        ("missing_required_parameter", 4),
    ]


def test_what_follows_a_line_that_is_too_long_is_read_as_ever() -> None:
    long = with_body(user="u" * 3_000_000)
    found = scanned(long, line("b"), line("b"))
    assert [(fault.code, fault.line) for fault in found.faults] == [
        ("invalid_request", 1),
        ("duplicate_custom_id", 3),
    ]


def test_messages_repeat_only_the_beginning_of_what_a_client_wrote() -> None:
    id = "i" * 100
    (fault,) = scanned(line(id), line(id)).faults
    assert id[:64] in fault.message
    assert id[:65] not in fault.message


def test_completions_have_prompts() -> None:
    def found(body: dict[str, Any]) -> Scan:
        said = line(url=PLAIN.path, body={"model": "tiny"} | body)
        return scan(io.BytesIO(json.dumps(said).encode()), PLAIN, LIMITS)

    index = Index.unpack(found({"prompt": [1, 2, 3, 4, 5]}).index)
    assert (list(index.prompt_tokens), list(index.output_limits)) == ([5], [16])
    assert not found({"prompt_embeds": "x"}).faults
    (fault,) = found({"messages": []}).faults
    assert (fault.param, fault.message) == ("body.prompt", "Prompt parameter is required.")


def test_an_index_is_read_as_it_was_written_and_nothing_else_is() -> None:
    index = Index()
    for number in range(3):
        index.add(offset=2**40 + number, size=7, model=1, prompt_tokens=5, output_limit=number)
    again = Index.unpack(index.pack())
    assert list(again.offsets) == [2**40, 2**40 + 1, 2**40 + 2]
    assert (list(again.sizes), list(again.output_limits)) == ([7, 7, 7], [0, 1, 2])
    with pytest.raises(ValueError, match="index"):
        Index.unpack(index.pack()[:-1])


def test_a_process_of_its_own_tells_the_same(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text("\n".join(json.dumps(line(str(number))) for number in range(3)))
    limits = msgspec.json.encode(LIMITS).decode()
    done = subprocess.run(
        [sys.executable, "-m", "gateway.batches.scan", str(path), CHAT.path, limits],
        capture_output=True,
        check=True,
    )
    with path.open("rb") as file:
        assert msgspec.msgpack.decode(done.stdout, type=Scan) == scan(file, CHAT, LIMITS)
