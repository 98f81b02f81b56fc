"""A batch that is not over, as the gateway holds it: its stored form, where its lines are, and what is still to be told of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gateway.batches.endpoints import ENDPOINTS, BatchEndpoint
from gateway.batches.index import Index
from gateway.batches.stored import Forecast, StoredBatch


@dataclass(slots=True)
class Left:
    """Prompt tokens and limits of the lines of a model that are no requests yet, in all."""

    prompt_tokens: int = 0
    output_limits: int = 0


@dataclass(slots=True, eq=False)
class OpenBatch:
    """One batch.

    Attributes:
        number: as the store has it.
        input: a name of the input file that only this batch knows, so that deleting the file takes nothing from it.
        index: where its lines are, once that is known.
        left: by the place of the model among those of the batch.
        foretold: done once its finish time is known, or it will never be.
        dirty: whether `stored` has changed since it was last written.
        over: done once the batch has ended and that is stored.
    """

    number: int
    stored: StoredBatch
    input: Path
    forecast: Forecast
    index: Index = field(default_factory=Index)
    left: list[Left] = field(default_factory=list)
    foretold: asyncio.Event = field(default_factory=asyncio.Event)
    dirty: bool = False
    saving: asyncio.Task[None] | None = None
    validating: asyncio.Task[None] | None = None
    over: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def endpoint(self) -> BatchEndpoint:
        """What its lines are requests of."""
        return ENDPOINTS[self.stored.endpoint]

    def know(self, index: Index, lengths: Sequence[int]) -> None:
        """Take over where its lines are.

        Args:
            lengths: of each model the tokens of its longest sequence, the limit of lines that name none.
        """
        self.index = index
        self.left = in_all(index, lengths, generates=self.endpoint.asks.generates)

    def count(self, line: int, sign: int) -> None:
        """A line is a request from now on or has ended (-1), or is none any more (1)."""
        index = self.index
        left = self.left[index.model_of[line]]
        left.prompt_tokens += sign * index.prompt_tokens[line]
        left.output_limits += sign * index.output_limits[line]


def in_all(index: Index, lengths: Sequence[int], *, generates: bool) -> list[Left]:
    """What all lines come to, by the place of their model; lines that name no limit get one in the index.

    Args:
        lengths: of each model the tokens of its longest sequence, which is that limit.
        generates: whether the endpoint has outputs.
    """
    if generates and 0 in index.output_limits:
        for line, limit in enumerate(index.output_limits):
            if not limit:
                index.output_limits[line] = lengths[index.model_of[line]]
    if len(lengths) == 1:
        return [Left(sum(index.prompt_tokens), sum(index.output_limits))]
    left = [Left() for _ in lengths]
    for place, tokens, limit in zip(
        index.model_of, index.prompt_tokens, index.output_limits, strict=True
    ):
        left[place].prompt_tokens += tokens
        left[place].output_limits += limit
    return left
