"""Token counts of a request body before any tokenizer has seen it.

The gateway holds no tokenizer: a prompt given as token ids is counted exactly, text is estimated from
its size in UTF-8. Everything that needs the figure before the engine reports the real one (admission,
estimator, simulated engine) uses these functions, so they agree.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any, TypeGuard

from qlm_core.endpoint import Endpoint

BYTES_PER_TOKEN = 4

# /v1/completions generates this much where the client sets no limit (OpenAI's API reference).
COMPLETION_DEFAULT_LIMIT = 16


# The two sides of a pair to be scored, by the names that vLLM knows them by.
FIRST_TEXTS = ("text_1", "data_1", "queries")
SECOND_TEXTS = ("text_2", "data_2", "documents", "items")


def text_tokens(text: str) -> int:
    """Estimated tokens of a text: a token for every four bytes, rounded up."""
    return -(-_size(text) // BYTES_PER_TOKEN)


def prompt_tokens(body: Mapping[str, Any], *, chat: bool) -> int:
    """Prompt tokens of an OpenAI request body, at least 1.

    Token ids count exactly, text by `text_tokens`. A list of prompts counts as the sum of its parts.
    Parts that are not text (images, audio) are not counted.
    """
    if chat:
        size = sum(map(_size, chat_texts(body.get("messages"))))
        return max(1, -(-size // BYTES_PER_TOKEN))
    prompt = body.get("prompt")
    return max(1, text_tokens(prompt) if isinstance(prompt, str) else _completion_tokens(prompt))


def measured_tokens(body: Mapping[str, Any], endpoint: Endpoint) -> list[int]:
    """Prompt tokens, at least 1, of each sequence that an engine computes for an endpoint that generates nothing.

    That is one for each input to embed, and one for each pair of texts to score.
    """
    if endpoint is Endpoint.EMBEDDINGS:
        if body.get("input") is None:
            return [max(1, text_tokens("".join(chat_texts(body.get("messages")))))]
        return [max(1, _part_tokens(part)) for part in completion_prompts(body["input"])]
    firsts, seconds = scored_texts(body)
    first = [_part_tokens(part) for part in firsts]
    second = [_part_tokens(part) for part in seconds]
    # A single text stands before each of the others.
    lone = first[0] if len(first) == 1 else 0
    return [max(1, sum(pair)) for pair in zip_longest(first, second, fillvalue=lone)]


def scored_texts(body: Mapping[str, Any]) -> tuple[Sequence[object], Sequence[object]]:
    """The first and the second texts of the pairs to score."""
    return _side(body, (*FIRST_TEXTS, "query")), _side(body, SECOND_TEXTS)


def output_limit(body: Mapping[str, Any], *, chat: bool) -> int | None:
    """The client's limit on output tokens, or None where only the model's length limits it."""
    if chat:
        limit = body.get("max_completion_tokens")
        limit = body.get("max_tokens") if limit is None else limit
    else:
        limit = body.get("max_tokens")
        limit = COMPLETION_DEFAULT_LIMIT if limit is None else limit
    return limit if isinstance(limit, int) and not isinstance(limit, bool) else None


def completion_prompts(prompt: object) -> Sequence[object]:
    """The prompts in a completion's `prompt`; each is a sequence of its own to an engine."""
    return prompt if isinstance(prompt, list) and not is_token_ids(prompt) else [prompt]


def is_token_ids(prompt: object) -> TypeGuard[Sequence[int]]:
    """Whether a completion prompt is one list of token ids."""
    return isinstance(prompt, Sequence) and bool(prompt) and isinstance(prompt[0], int)


def chat_texts(messages: object) -> Iterator[str]:
    """Every piece of text in the messages of a chat request, in order."""
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, Mapping) else None
        if isinstance(content, str):
            yield content
        elif isinstance(content, list):
            for part in content:
                if isinstance(part, Mapping) and isinstance(part.get("text"), str):
                    yield part["text"]


def _size(text: str) -> int:
    """Bytes in UTF-8; most text is ASCII, whose size is known."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _completion_tokens(prompt: object) -> int:
    return sum(max(1, _sequence_tokens(part)) for part in completion_prompts(prompt))


def _side(body: Mapping[str, Any], names: Sequence[str]) -> Sequence[object]:
    found: object = next((body[name] for name in names if body.get(name) is not None), [])
    return completion_prompts(found)


def _part_tokens(part: object) -> int:
    """Tokens of one input: text, token ids, or an object with text somewhere in it."""
    if isinstance(part, Mapping):
        return sum(_part_tokens(part[name]) for name in ("text", "content") if name in part)
    if isinstance(part, list) and not is_token_ids(part):
        return sum(map(_part_tokens, part))
    return _sequence_tokens(part)


def _sequence_tokens(prompt: object) -> int:
    if isinstance(prompt, str):
        return text_tokens(prompt)
    return len(prompt) if is_token_ids(prompt) else 0
