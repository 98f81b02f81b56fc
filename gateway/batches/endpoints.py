"""The endpoints that a batch may name, one entry each: what their bodies must have, and how they become requests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from qlm_core import tokens

Body = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchEndpoint:
    """An endpoint, as batches have to do with it.

    Attributes:
        path: as a batch and its lines name it.
        title: as messages name it.
        required: of each group of fields a body has at least one; the first is the one that is asked for.
        chat: whether its requests are chats.
        prompt_tokens: an estimate of a body's.
        output_limit: the body's own limit on output tokens, if it has one.
    """

    path: str
    title: str
    required: tuple[tuple[str, ...], ...]
    chat: bool
    prompt_tokens: Callable[[Body], int]
    output_limit: Callable[[Body], int | None]


_ALL = (
    BatchEndpoint(
        path="/v1/chat/completions",
        title="Chat Completions",
        required=(("messages",),),
        chat=True,
        prompt_tokens=partial(tokens.prompt_tokens, chat=True),
        output_limit=partial(tokens.output_limit, chat=True),
    ),
    BatchEndpoint(
        path="/v1/completions",
        title="Completions",
        required=(("prompt", "prompt_embeds"),),
        chat=False,
        prompt_tokens=partial(tokens.prompt_tokens, chat=False),
        output_limit=partial(tokens.output_limit, chat=False),
    ),
)
ENDPOINTS = {endpoint.path: endpoint for endpoint in _ALL}
