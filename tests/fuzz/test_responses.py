"""Whatever comes to /v1/responses: it is taken or refused in so many words, and so is what is asked of a response afterwards."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.responses.output import Output
from gateway.responses.to_chat import HANDLED, PASSED, REFUSED, translated
from qlm_core.errors import InvalidRequest
from tests.fuzz.bodies import CANARY, MODEL, ODD, WORDS, values
from tests.fuzz.effort import fuzzed
from tests.fuzz.served import KEY, Fleet, serving

FIELDS = [*HANDLED, *PASSED, *REFUSED, "messages", "n", "top_k", "\ud800"]
KINDS = [
    "message", "reasoning", "function_call", "function_call_output", "item_reference", "input_text", "input_image",
    "input_file", "input_audio", "output_text", "refusal", "reasoning_text", "function", "web_search", "allowed_tools",
    "json_schema", "text",
]  # fmt: skip
INNER = [
    "type", "role", "content", "text", "refusal", "id", "call_id", "name", "arguments", "output", "image_url", "file_id",
    "file_data", "file_url", "detail", "input_audio", "encrypted_content", "summary", "parameters", "strict", "tools", "mode",
    "format", "schema", "effort", "context", "completion_window", "namespace",
]  # fmt: skip
leaves = st.sampled_from([*KINDS, "user", "assistant", "system", "msg_" + "0" * 24 + "_0"]) | values
inner = st.recursive(
    leaves,
    lambda one: (
        st.lists(one, max_size=3) | st.dictionaries(st.sampled_from(INNER), one, max_size=5)
    ),
    max_leaves=12,
)
GOOD: dict[str, Any] = {"model": MODEL, "input": CANARY, "max_output_tokens": 3}
requests = st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4).map(lambda some: GOOD | some)


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with serving() as made:
        yield made


def sent(fields: Any) -> bytes:
    return json.dumps(fields).encode("utf-8", "surrogatepass")


def read(fields: dict[str, Any]) -> None:
    """Have a request translated, or refused in so many words."""
    try:
        translated(fields, items_max=100).messages()
        return
    except InvalidRequest as error:
        refused = error
    assert len(str(refused)) < 2_000
    assert refused.field


@fuzzed
@given(requests)
def test_a_request_is_translated_or_refused_by_name(fields: dict[str, Any]) -> None:
    read(fields)


def test_no_field_with_an_odd_value_stops_the_translation() -> None:
    for field in FIELDS:
        for value in ODD:
            read(GOOD | {field: value})
            read(GOOD | {field: dict.fromkeys(INNER, value)})
    for kind in KINDS:
        for name in INNER:
            for value in ODD:
                item = {"type": kind, "role": "user", "content": "x", name: value}
                read(GOOD | {"input": [item]})
                read(GOOD | {"input": [{"role": "assistant", "content": [item]}]})
                read(GOOD | {"tools": [item]})


@fuzzed
@given(st.lists(inner, max_size=4), inner)
def test_chunks_of_any_shape_tell_something_or_nothing(deltas: list[Any], logprobs: Any) -> None:
    output = Output("key", by_chunk=False)
    told = []
    for delta in deltas:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs}
        if isinstance(delta, dict) and "tools" in delta:
            choice["delta"] = delta | {"tool_calls": delta["tools"]}
        told += output.feed({"choices": [choice]})
    told += output.finish(whole=False, answered=True)
    assert all(isinstance(event["type"], str) for event in told)


@fuzzed
@given(requests, st.booleans(), st.booleans())
def test_no_request_does_harm(
    fleet: Fleet, fields: dict[str, Any], stream: bool, background: bool
) -> None:
    asked = {"stream": stream, "background": background} | fields
    status, answer = fleet.ask("POST", "/v1/responses", sent(asked))
    assert status < 500, answer
    assert KEY.encode() not in answer
    if status == 200 and answer.startswith(b"{"):
        id = json.loads(answer)["id"]
        for path in (id, f"{id}?stream=true", f"{id}/input_items"):
            assert fleet.ask("GET", f"/v1/responses/{path}")[0] in (200, 400, 404)
        assert fleet.ask("POST", f"/v1/responses/{id}/cancel")[0] in (200, 400, 404)
    fleet.check()


queries = st.dictionaries(
    st.sampled_from(["stream", "starting_after", "limit", "order", "after", "include[]", ""]),
    st.sampled_from(["true", "0", "1", "9" * 30, "-1", "asc", "\u0663", *WORDS]),
    max_size=3,
).map(lambda query: "&".join(f"{quote(k)}={quote(v, errors='replace')}" for k, v in query.items()))


@fuzzed
@given(queries, st.sampled_from(["", "/input_items", "/cancel", "/x"]))
def test_no_query_does_harm(fleet: Fleet, query: str, below: str) -> None:
    _, answer = fleet.ask("POST", "/v1/responses", sent(GOOD | {"background": True}))
    id = json.loads(answer)["id"]
    for path in (id, "resp_" + "0" * 24, quote("é")):
        status, said = fleet.ask("GET", f"/v1/responses/{path}{below}?{query}")
        assert status < 500, said
    fleet.check()
