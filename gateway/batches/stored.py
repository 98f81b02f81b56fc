"""A batch as the store has it, and how it is shown: OpenAI's batch object, with a field of ours for its finish time."""

from __future__ import annotations

import re
from typing import Any, Literal

import msgspec

from gateway.batches.endpoints import ENDPOINTS
from gateway.batches.index import Fault, listed
from gateway.store import StoreError
from qlm_core.batches import BatchStatus, Standing, Unrun, Usage
from qlm_core.model import BatchId, ModelName

Json = dict[str, Any]

BATCH_PREFIX, LINE_PREFIX = "batch_", "batch_req_"
# Of a row that was written here no time and no count is beyond these.
SECONDS_MAX, COUNT_MAX = 1e11, 2**53
_ID = re.compile(r"batch_[0-9a-f]{24}")

_READING, _UNSAID = "its lines are being read", "no solver has said yet"

Moment = Literal[
    "in_progress",
    "finalizing",
    "completed",
    "failed",
    "expired",
    "cancelling",
    "cancelled",
]


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """Lines and tokens of a batch that is over; the tokens are those of its answers."""

    total: int = 0
    completed: int = 0
    failed: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0

    @staticmethod
    def of(completed: int, failed: int, usage: Usage, total: int | None = None) -> Totals:
        """Counts and usage as one; without a total it is that of the lines that have ended."""
        return Totals(
            total=completed + failed if total is None else total,
            completed=completed,
            failed=failed,
            input_tokens=usage.input_tokens,
            cached_tokens=usage.cached_tokens,
            output_tokens=usage.output_tokens,
            reasoning_tokens=usage.reasoning_tokens,
        )


class StoredBatch(msgspec.Struct, frozen=True, kw_only=True):
    """A batch.

    Attributes:
        owner: the tenant whose batch it is, as `gateway.keys` names them.
        completion_window: as its client wrote it; `window_s` is what that means.
        input_bytes: of the input file.
        output_expires_s: after which the files that it writes expire; None: as files of their purpose do.
        slo_class: of its lines.
        arrived_at: seconds of the store's clock at which it was accepted.
        created_unix_s: the same by the wall clock, as it is shown.
        idempotency_key, fingerprint: as of a request.
        models: those that its lines ask for; empty before they are known.
        released: of each model how many lines were released at least.
        unrun: why lines have no record, once that is decided.
        moments: when it came into each state, Unix seconds.
        file_ids: of its output and its error file, noted before they are written.
        totals: once it is over.
    """

    id: BatchId
    owner: str
    endpoint: str
    input_file_id: str
    completion_window: str
    window_s: float
    slo_class: str
    arrived_at: float
    created_unix_s: int
    input_bytes: int = 0
    metadata: dict[str, str] | None = None
    output_expires_s: int | None = None
    idempotency_key: str = ""
    fingerprint: str = ""
    status: BatchStatus = BatchStatus.VALIDATING
    models: tuple[ModelName, ...] = ()
    released: tuple[int, ...] = ()
    unrun: Unrun | None = None
    moments: dict[Moment, int] = {}
    faults: tuple[Fault, ...] = ()
    file_ids: tuple[str, str] = ("", "")
    totals: Totals = Totals()

    @property
    def due_at(self) -> float:
        """Seconds of the store's clock at which its window is over."""
        return self.arrived_at + self.window_s

    @property
    def owned_key(self) -> str | None:
        """The idempotency key as the store has it; None for none."""
        return f"{self.owner}/{self.idempotency_key}" if self.idempotency_key else None


class Forecast(msgspec.Struct, frozen=True, kw_only=True):
    """When a batch will be done, as the solver said last. Times are Unix seconds; None where nobody knows."""

    feasible: bool | None = None
    finish_p50_at: int | None = None
    finish_p90_at: int | None = None
    explanation: str = ""


def is_id(text: str) -> bool:
    """Whether a text could be the id of a batch."""
    return _ID.fullmatch(text) is not None


def line_id(batch: BatchId, line: int) -> str:
    """The id of a line, the same in each life of the gateway."""
    return f"{LINE_PREFIX}{batch.removeprefix(BATCH_PREFIX)}_{line}"


def head_of(batch: StoredBatch) -> bytes:
    """What a row keeps of a batch."""
    return msgspec.msgpack.encode(batch)


def read_head(data: object) -> StoredBatch:
    """The batch of a row. Raises StoreError."""
    try:
        batch = msgspec.msgpack.decode(data, type=StoredBatch) if isinstance(data, bytes) else None
    except (msgspec.MsgspecError, ValueError, TypeError, OverflowError, RecursionError):
        batch = None
    if batch is None or not _is_sound(batch):
        raise StoreError("a row of a batch is not as this release writes it")
    return batch


def _is_sound(batch: StoredBatch) -> bool:
    """Whether the values of a row make sense, as far as others rely on that."""
    totals = msgspec.structs.astuple(batch.totals)
    times = (batch.created_unix_s, *batch.moments.values(), *totals, *batch.released)
    return (
        is_id(batch.id)
        and batch.endpoint in ENDPOINTS
        and 0 < batch.window_s <= SECONDS_MAX
        and abs(batch.arrived_at) <= SECONDS_MAX
        and all(0 <= value <= COUNT_MAX for value in times)
        and len(batch.released) in (0, len(batch.models))
        and 0 <= (batch.output_expires_s or 0) <= SECONDS_MAX
    )


def shown(batch: StoredBatch, standing: Standing | None, forecast: Forecast) -> Json:
    """A batch as OpenAI shows it.

    Args:
        standing: of one that is not over.
    """
    over = batch.status.terminal
    totals = batch.totals
    if standing is not None and not over:
        totals = Totals.of(standing.completed, standing.failed, standing.usage, standing.total)
    output_id, error_id = batch.file_ids
    moments = batch.moments
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "model": batch.models[0] if len(batch.models) == 1 else None,
        "errors": listed(batch.faults),
        "input_file_id": batch.input_file_id,
        "completion_window": batch.completion_window,
        "status": batch.status.value,
        "output_file_id": output_id if over and totals.completed else None,
        "error_file_id": error_id if over and totals.failed else None,
        "created_at": batch.created_unix_s,
        "in_progress_at": moments.get("in_progress"),
        "expires_at": batch.created_unix_s + int(batch.window_s),
        "finalizing_at": moments.get("finalizing"),
        "completed_at": moments.get("completed"),
        "failed_at": moments.get("failed"),
        "expired_at": moments.get("expired"),
        "cancelling_at": moments.get("cancelling"),
        "cancelled_at": moments.get("cancelled"),
        "request_counts": {
            "total": totals.total,
            "completed": totals.completed,
            "failed": totals.failed,
        },
        "usage": {
            "input_tokens": totals.input_tokens,
            "input_tokens_details": {"cached_tokens": totals.cached_tokens},
            "output_tokens": totals.output_tokens,
            "output_tokens_details": {"reasoning_tokens": totals.reasoning_tokens},
            "total_tokens": totals.input_tokens + totals.output_tokens,
        },
        "metadata": batch.metadata,
        "qlm": None if over else _foretold(batch, forecast),
    }


def _foretold(batch: StoredBatch, forecast: Forecast) -> Json:
    shown: Json = msgspec.to_builtins(forecast)
    if forecast.feasible is None:
        reading = batch.status is BatchStatus.VALIDATING
        shown["explanation"] = _READING if reading else _UNSAID
    return shown
