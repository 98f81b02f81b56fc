"""The endpoints that a batch may name, one entry each: what their bodies must have, and how they become requests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from qlm_core import tokens
from qlm_core.endpoint import Endpoint

Body = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchEndpoint:
    """An endpoint, as batches have to do with it.

    Attributes:
        path: as a batch and its lines name it.
        asks: what its requests ask of a model.
        title: as messages name it.
        required: of each group of fields a body has at least one; the first is the one that is asked for.
        prompt_tokens: an estimate of a body's.
        output_limit: the body's own limit on output tokens, if it has one.
        inputs: how many texts a body has embedded; 0 where it is no matter of that.
        responds: whether its requests are responses, which are translated to what they ask, and their answers back.
    """

    path: str
    asks: Endpoint
    title: str
    required: tuple[tuple[str, ...], ...]
    prompt_tokens: Callable[[Body], int]
    output_limit: Callable[[Body], int | None]
    inputs: Callable[[Body], int] = lambda body: 0  # noqa: ARG005
    responds: bool = False


def _response_tokens(body: Body) -> int:
    """Prompt tokens of a response without the conversation that it goes on from, which nobody has read yet."""
    said = body.get("input")
    items = said if isinstance(said, list) else [{"content": said}]
    messages: list[object] = [{"content": body.get("instructions")}]
    messages += [
        {"content": item.get("content", item.get("output"))}
        for item in items
        if isinstance(item, Mapping)
    ]
    return tokens.prompt_tokens({"messages": messages}, chat=True)


def _response_limit(body: Body) -> int | None:
    return tokens.output_limit({"max_tokens": body.get("max_output_tokens")}, chat=True)


def _embedded(body: Body) -> int:
    # Messages are one text together.
    return 1 if body.get("input") is None else len(tokens.completion_prompts(body["input"]))


_ALL = (
    BatchEndpoint(
        path=Endpoint.CHAT_COMPLETIONS.path,
        asks=Endpoint.CHAT_COMPLETIONS,
        title="Chat Completions",
        required=(("messages",),),
        prompt_tokens=partial(tokens.prompt_tokens, chat=True),
        output_limit=partial(tokens.output_limit, chat=True),
    ),
    BatchEndpoint(
        path=Endpoint.COMPLETIONS.path,
        asks=Endpoint.COMPLETIONS,
        title="Completions",
        required=(("prompt", "prompt_embeds"),),
        prompt_tokens=partial(tokens.prompt_tokens, chat=False),
        output_limit=partial(tokens.output_limit, chat=False),
    ),
    BatchEndpoint(
        path=Endpoint.EMBEDDINGS.path,
        asks=Endpoint.EMBEDDINGS,
        title="Embeddings",
        required=(("input", "messages"),),
        prompt_tokens=lambda body: sum(tokens.measured_tokens(body, Endpoint.EMBEDDINGS)),
        output_limit=lambda body: 0,  # noqa: ARG005
        inputs=_embedded,
    ),
    BatchEndpoint(
        path="/v1/responses",
        asks=Endpoint.CHAT_COMPLETIONS,
        title="Responses",
        required=(("input", "previous_response_id"),),
        prompt_tokens=_response_tokens,
        output_limit=_response_limit,
        responds=True,
    ),
)
ENDPOINTS = {endpoint.path: endpoint for endpoint in _ALL}
