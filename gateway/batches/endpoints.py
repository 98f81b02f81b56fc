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
        asks: what its requests ask of a model.
        title: as messages name it.
        required: of each group of fields a body has at least one; the first is the one that is asked for.
        prompt_tokens: an estimate of a body's.
        output_limit: the body's own limit on output tokens, if it has one.
    """

    asks: Endpoint
    title: str
    required: tuple[tuple[str, ...], ...]
    prompt_tokens: Callable[[Body], int]
    output_limit: Callable[[Body], int | None]

    @property
    def path(self) -> str:
        """As a batch and its lines name it."""
        return self.asks.path


_ALL = (
    BatchEndpoint(
        asks=Endpoint.CHAT_COMPLETIONS,
        title="Chat Completions",
        required=(("messages",),),
        prompt_tokens=partial(tokens.prompt_tokens, chat=True),
        output_limit=partial(tokens.output_limit, chat=True),
    ),
    BatchEndpoint(
        asks=Endpoint.COMPLETIONS,
        title="Completions",
        required=(("prompt", "prompt_embeds"),),
        prompt_tokens=partial(tokens.prompt_tokens, chat=False),
        output_limit=partial(tokens.output_limit, chat=False),
    ),
    BatchEndpoint(
        asks=Endpoint.EMBEDDINGS,
        title="Embeddings",
        required=(("input", "messages"),),
        prompt_tokens=lambda body: sum(tokens.measured_tokens(body, Endpoint.EMBEDDINGS)),
        output_limit=lambda body: 0,  # noqa: ARG005
    ),
)
ENDPOINTS = {endpoint.path: endpoint for endpoint in _ALL}
