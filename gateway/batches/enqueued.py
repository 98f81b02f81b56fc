"""Whether a tenant has too many prompt tokens of a model in batches, with one batch more. Everything here is pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from gateway.batches.index import Fault, Index
from gateway.batches.opened import OpenBatch

_SHOWN = 64


def too_much(
    index: Index, models: Sequence[str], others: Iterable[OpenBatch], *, tokens_max: int
) -> tuple[Fault, ...]:
    """What is wrong with a batch beside those of the same tenant.

    Args:
        models: that its lines ask for.
        others: batches of which lines that are no requests yet count.
        tokens_max: of each model; 0: without a limit.
    """
    if not tokens_max:
        return ()
    asked: Counter[str] = Counter()
    for place, tokens in zip(index.model_of, index.prompt_tokens, strict=True):
        asked[models[place]] += tokens
    waiting: Counter[str] = Counter()
    for batch in others:
        # What is not validated yet has models and no lines.
        for model, left in zip(batch.stored.models, batch.left, strict=False):
            waiting[model] += left.prompt_tokens
    return tuple(
        Fault(code="token_limit_exceeded", message=_said(model, waiting[model], tokens_max))
        for model, tokens in asked.items()
        if waiting[model] + tokens > tokens_max
    )


def _said(model: str, waiting: int, tokens_max: int) -> str:
    return (
        f"Enqueued token limit reached for {model[:_SHOWN]}. Limit: {tokens_max} enqueued tokens, "
        f"of which your other batches have {waiting}. Submit it again once some of them are over, or divide it."
    )
