"""A batch that is not created: what its lines come to, for the solver to say when they would be done, or why it would fail."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from gateway.batches.endpoints import BatchEndpoint
from gateway.batches.index import Fault, Index
from gateway.batches.opened import in_all
from protos.wire.bounds import BATCH_MODELS_MAX
from qlm_core.errors import InvalidRequest
from qlm_core.messages import BulkShape
from qlm_core.model import ModelName


class FaultyInput(InvalidRequest):
    """A batch of this file would fail.

    Attributes:
        faults: all that is wrong; the error has the words of the first.
    """

    def __init__(self, faults: tuple[Fault, ...]) -> None:
        first = faults[0]
        super().__init__(first.param or "", first.message, "", code=first.code)
        self.args = (f"Line {first.line}: {first.message}" if first.line else first.message,)
        self.faults = faults


def shapes(
    index: Index, models: Sequence[str], lengths: Sequence[int], endpoint: BatchEndpoint
) -> tuple[BulkShape, ...]:
    """What would be told of a batch's lines once it was accepted, by model. Raises InvalidRequest for too many of these.

    Args:
        models: that the lines ask for.
        lengths: as of `in_all`.
    """
    if len(models) > BATCH_MODELS_MAX:
        raise InvalidRequest(
            "input_file_id",
            f"its lines ask for {len(models)} models, and at most {BATCH_MODELS_MAX} can be foreseen together",
            "Divide it.",
        )
    counts = Counter(index.model_of)
    left = in_all(index, lengths, generates=endpoint.asks.generates)
    return tuple(
        BulkShape(
            ModelName(name),
            counts[place],
            left[place].prompt_tokens / counts[place],
            round(left[place].output_limits / counts[place]),
        )
        for place, name in enumerate(models)
    )
