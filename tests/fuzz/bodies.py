"""Bodies that are not quite what they should be: OpenAI's fields with other values, at any depth, and bytes that are no JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

from qlm_core.endpoint import Endpoint

CANARY = "canary-prompt-c0ffee"
MODEL = "mistral-7b"

NUMBERS = [
    0, 1, -1, 2, 15, 2**15, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30, 10**400,
    0.0, -0.0, 0.5, 1.0, 2.0, 5e-324, 1e-9, 1e300, 1.7e308, float("nan"), float("inf"), float("-inf"),
]  # fmt: skip
WORDS = [
    "", " ", "auto", "none", "default", "flex", "priority", "interactive", "nobody", "true", "0", "1e999", "text",
    "json_object", "\u0000", "\ud83d", "\udc00\ud800", "é", "\U0001f600", "\u202e", "\r\nx: y", "${HOME}", "a" * 300,
]  # fmt: skip
FIELDS = [
    "model", "prompt", "messages", "max_tokens", "max_completion_tokens", "min_tokens", "n", "best_of", "stream",
    "stream_options", "stop", "logprobs", "top_logprobs", "logit_bias", "echo", "suffix", "seed", "user", "tools",
    "tool_choice", "functions", "function_call", "response_format", "modalities", "service_tier", "metadata", "store",
    "truncate_prompt_tokens", "prompt_logprobs", "prompt_embeds", "return_token_ids", "continue_final_message",
    "add_generation_prompt", "chat_template", "ignore_eos", "include_stop_str_in_output", "qlm_sim", "temperature",
    "input", "dimensions", "encoding_format", "text_1", "text_2", "query", "documents", "top_n", "embed_dtype",
    "top_p", "presence_penalty", "safety_identifier", "guided_json", "use_beam_search", "priority", "bad_words", "\ud800",
]  # fmt: skip
INNER = [
    "role", "content", "type", "text", "name", "index", "include_usage", "continuous_usage_stats", "output_tokens",
    "image_url", "tool_calls", "function", "50256", "-1", "",
]  # fmt: skip

leaves = st.one_of(
    st.none(), st.booleans(), st.sampled_from(NUMBERS), st.sampled_from(WORDS), st.text(max_size=4)
)
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from([*INNER, *FIELDS]), inner, max_size=4)
    ),
    max_leaves=8,
)
GOOD: dict[Endpoint, dict[str, Any]] = {
    Endpoint.COMPLETIONS: {"model": MODEL, "prompt": CANARY, "max_tokens": 3},
    Endpoint.CHAT_COMPLETIONS: {
        "model": MODEL,
        "messages": [{"role": "user", "content": CANARY}],
        "max_tokens": 3,
    },
    Endpoint.EMBEDDINGS: {"model": MODEL, "input": [CANARY, "b"]},
    Endpoint.SCORE: {"model": MODEL, "text_1": CANARY, "text_2": ["b", [1, 2]]},
    Endpoint.RERANK: {"model": MODEL, "query": CANARY, "documents": ["b", {"text": "c"}]},
}


ODD: list[Any] = [
    *NUMBERS, *WORDS, None, True, False, [], {}, [None], [1, "a"], [[]], [{}], ["a", 1.5], {"type": 5}, {"a": {}},
    [[1, 2], [3]], [{"role": "user"}], [{"role": "user", "content": 5}], [{"role": 1}], [{"role": "user", "content": [5]}],
    {"include_usage": "yes"}, {"output_tokens": 2**64}, {"output_tokens": -1}, {"output_tokens": "x"},
    {str(token): 100 for token in range(10_000)},
]  # fmt: skip


def one_odd_field(endpoint: Endpoint) -> Iterator[bytes]:
    """Good bodies in each of which one field has one odd value: every field, every value."""
    for field in FIELDS:
        for value in ODD:
            yield _written(GOOD[endpoint] | {field: value}, [])


def _nested(depth: int, opening: str, core: str) -> str:
    closing = {"[": "]", '{"a":': "}"}[opening]
    return opening * depth + core + closing * depth


deep = st.builds(
    _nested,
    st.sampled_from([2, 150, 199, 200, 900, 984, 985, 990, 1000, 5000, 100_000]),
    st.sampled_from(["[", '{"a":']),
    st.sampled_from(["1", '"x"', "[]", ""]),
)


def _written(fields: dict[str, Any], extra: list[tuple[str, str]]) -> bytes:
    """As JSON, in which a key may come twice and a value may be anything."""
    parts = [f"{json.dumps(key)}:{json.dumps(value)}" for key, value in fields.items()]
    parts += [f"{json.dumps(key)}:{text}" for key, text in extra]
    return ("{" + ",".join(parts) + "}").encode("utf-8", "surrogatepass")


@st.composite
def structured(draw: st.DrawFn, endpoint: Endpoint) -> bytes:
    """A good body of which a few fields are something else."""
    fields = dict(GOOD[endpoint])
    fields |= draw(st.dictionaries(st.sampled_from(FIELDS), values, max_size=4))
    for name in draw(st.lists(st.sampled_from(sorted(GOOD[endpoint])), max_size=1)):
        del fields[name]
    raw = deep | values.map(json.dumps) | st.sampled_from(["9" * 5000, "-0", "1e99999", "NaN"])
    extra = draw(st.lists(st.tuples(st.sampled_from(FIELDS), raw), max_size=1))
    return _written(fields, extra)


@st.composite
def damaged(draw: st.DrawFn, endpoint: Endpoint) -> bytes:
    """A good body in which a few bytes are something else."""
    data = bytearray(_written(GOOD[endpoint], []))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=4))
    return bytes(data)


def bodies(endpoint: Endpoint) -> st.SearchStrategy[bytes]:
    """All kinds."""
    return st.one_of(
        structured(endpoint),
        structured(endpoint),
        damaged(endpoint),
        st.binary(max_size=40),
        deep.map(str.encode),
        values.map(lambda value: json.dumps(value).encode("utf-8", "surrogatepass")),
    )


# What is asked for, and with what.
asked = st.sampled_from(Endpoint).flatmap(
    lambda endpoint: st.tuples(st.just(endpoint), bodies(endpoint))
)
