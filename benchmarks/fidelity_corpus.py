"""The requests that a server must answer alike with and without QLM before it: a list of named cases.

Pure data. Nearly every case exists whole and streamed. All are greedy unless they name a seed, so a server gives the same
answer each time; what it answers does not matter, and models with random weights (deploy/vllm-cpu/make_model.py)
answer with broken characters, which is welcome. Token ids are below
2048, the size of their vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.fidelity_chats import (
    CHAT,
    CHATS,
    EMOJI,
    LONG_TEXT,
    SEEDED,
    SHARED,
    THOUGHTS,
    Body,
)

PLAIN = "tiny-llama"
THINKER = "tiny-thinker"
USAGE: Body = {"stream": True, "stream_options": {"include_usage": True}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One request.

    Attributes:
        body: without `model`.
        model: one of the models of deploy/vllm-cpu/prepare.py; `THINKER` is served with a reasoning parser.
    """

    name: str
    chat: bool
    body: Mapping[str, Any]
    model: str = PLAIN

    @property
    def path(self) -> str:
        """The endpoint."""
        return "/v1/chat/completions" if self.chat else "/v1/completions"

    @property
    def streams(self) -> bool:
        """Whether it asks for a stream."""
        return bool(self.body.get("stream"))


COMPLETION: Body = {"prompt": "def main():\n    import os", "max_tokens": 24, "temperature": 0}
# Bodies of completions, over COMPLETION. A value of None takes a field away.
COMPLETIONS: dict[str, Body] = SHARED | {
    "default-limit": {"max_tokens": None},
    "seeded": SEEDED | {"max_tokens": 80},
    "top-p-top-k-min-p": SEEDED | {"top_p": 0.8, "top_k": 40, "min_p": 0.01},
    "n-3-logprobs": SEEDED | {"n": 3, "logprobs": 2, "max_tokens": 6},
    "best-of": {"best_of": 2},
    "suffix": {"suffix": "\nmain()"},
    "stop-never": {"stop": ["not in this text"]},
    "end-of-sequence": {"allowed_token_ids": [4, 70, 71, 72]} | SEEDED,
    "ignored-end-of-sequence": {"allowed_token_ids": [4, 70, 71], "ignore_eos": True} | SEEDED,
    "logprobs-0": {"logprobs": 0, "max_tokens": 6},
    "logprobs-1": {"logprobs": 1, "max_tokens": 6},
    "logprobs-5": {"logprobs": 5, "max_tokens": 6},
    "logprobs-broken-utf8": {"logprobs": 2, "temperature": 1.8, "seed": 3, "max_tokens": 40},
    "logprob-token-ids": {"logprobs": 1, "logprob_token_ids": [65, 66, 900], "max_tokens": 4},
    "prompt-logprobs-0": {"prompt_logprobs": 0, "max_tokens": 4},
    "echo": {"echo": True},
    "echo-logprobs": {"echo": True, "logprobs": 2, "max_tokens": 4},
    "echo-only": {"echo": True, "max_tokens": 0},
    "echo-only-logprobs": {"echo": True, "max_tokens": 0, "logprobs": 1},
    "echo-n": SEEDED | {"echo": True, "n": 2},
    "echo-ids": {"echo": True, "prompt": [50, 60, 70]},
    "prompts": {"prompt": ["one", "two and a half", "three"]},
    "prompts-n": SEEDED | {"prompt": ["one", "two"], "n": 2, "max_tokens": 8},
    "prompts-logprobs": {"prompt": ["one", "two"], "logprobs": 1, "max_tokens": 4},
    "prompts-echo": {"prompt": ["one", "two"], "echo": True, "max_tokens": 4},
    "one-prompt-in-a-list": {"prompt": ["one"]},
    "ids": {"prompt": [50, 60, 70, 80, 1000]},
    "lists-of-ids": {"prompt": [[50, 60, 70], [80, 90]]},
    "long-prompt": {"prompt": LONG_TEXT, "max_tokens": 8},
    "unicode": {"prompt": EMOJI * 6},
    "emoji-split-over-tokens": {"prompt": "a", "logit_bias": {str(t): 40 for t in range(130, 260)}}
    | SEEDED
    | {"max_tokens": 60},
    "allowed-token-ids": {"allowed_token_ids": [65, 66, 67]},
    "special-tokens-hidden": SEEDED | {"allowed_token_ids": [0, 1, 2, 3, 70], "ignore_eos": True},
    "no-spaces-between": {"spaces_between_special_tokens": False},
    "token-ids-prompts": {"return_token_ids": True, "prompt": ["one", "two"], "max_tokens": 5},
    "tokens-as-ids": {"return_tokens_as_token_ids": True, "logprobs": 2, "max_tokens": 5},
    "no-special-tokens-added": {"add_special_tokens": False},
    "truncated-prompt": {"prompt": LONG_TEXT, "truncate_prompt_tokens": 20, "max_tokens": 4},
    "json-object": {"response_format": {"type": "json_object"}, "max_tokens": 20},
    "priority": {"priority": -5},
    "kv-transfer-params": {"kv_transfer_params": {"do_remote_decode": False}, "max_tokens": 4},
    "xargs": {"vllm_xargs": {"a": 1, "b": ["c", 2.5]}},
    "user-and-metadata": {"user": "somebody", "metadata": {"a": "b"}},
    "unknown-fields": {"a_field_of_tomorrow": {"deep": [1, None, "x"]}, "another": 1e-300},
    "request-id": {"request_id": "mine"},
    "stream-interval": {"stream_interval": 5},
    "repetition-detection": {
        "repetition_detection": {"max_pattern_size": 2, "min_pattern_size": 1, "min_count": 3},
        "allowed_token_ids": [65],
    },
    "bad-top-p": {"top_p": 1.5},
    "bad-logprobs": {"logprobs": 500},
    "bad-min-tokens": {"min_tokens": 50, "max_tokens": 10},
    "bad-regex": {"structured_outputs": {"regex": "[a-z"}},
    "bad-allowed-token-ids": {"allowed_token_ids": [999_999]},
    "bad-logit-bias": {"logit_bias": {"999999": 1}},
    "bad-ids": {"prompt": [50, 999_999]},
    "bad-type-of-limit": {"max_tokens": "many"},
    "bad-stop": {"stop": 5},
    "bad-stream-options": {"stream_options": {"include_usage": True}},
    "empty-prompt": {"prompt": ""},
    "empty-list-of-prompts": {"prompt": []},
    "no-prompt": {"prompt": None},
    "long-limit": {"max_tokens": 5000},
    "prompt-too-long": {"prompt": "words " * 4000},
}

# Streams that ask for their usage in other ways than all the others, over the body of the endpoint.
STREAM_OPTIONS: dict[str, Body] = {
    "without-options": {"stream": True},
    "null-options": {"stream": True, "stream_options": None},
    "empty-options": {"stream": True, "stream_options": {}},
    "usage-refused": {"stream": True, "stream_options": {"include_usage": False}},
    "continuous-usage": {
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    },
    "continuous-usage-alone": {"stream": True, "stream_options": {"continuous_usage_stats": True}},
    "continuous-usage-n": {
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        "n": 2,
    }
    | SEEDED,
    "bad-options": {"stream": True, "stream_options": {"include_usage": "perhaps"}},
}


def corpus() -> list[Case]:
    """All cases, in order; names are unique."""
    return [
        *_cases("completions", COMPLETION, COMPLETIONS, chat=False),
        *_cases("chat", CHAT, CHATS, chat=True),
        *_cases("thoughts", CHAT, THOUGHTS, chat=True, model=THINKER),
        *_streams("completions", COMPLETION, chat=False),
        *_streams("chat", CHAT, chat=True),
    ]


def _cases(
    kind: str, base: Body, bodies: dict[str, Body], *, chat: bool, model: str = PLAIN
) -> Iterator[Case]:
    for name, fields in bodies.items():
        body = _over(base, fields)
        yield Case(name=f"{kind}/{name}", chat=chat, body=body, model=model)
        if "stream_options" not in fields:
            yield Case(name=f"{kind}/{name}/stream", chat=chat, body=body | USAGE, model=model)


def _streams(kind: str, base: Body, *, chat: bool) -> Iterator[Case]:
    for name, fields in STREAM_OPTIONS.items():
        yield Case(name=f"{kind}/{name}/stream", chat=chat, body=base | fields)


def _over(base: Body, fields: Body) -> Body:
    """Fields over a body; None takes a field away."""
    return {key: value for key, value in (base | fields).items() if value is not None}
