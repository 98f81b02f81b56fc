"""Measurements of engines in files: logs of requests, and iterations of known content."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from qlm.tables import Row, TableError, columns_of, require_columns, rows_of
from qlm_core.sim.fidelity import RUN_S_MAX, MeasuredRequest
from qlm_core.sim.fit import MeasuredIteration

LOG = ("arrival_s", "prompt_tokens", "output_tokens", "ttft_ms", "tpot_ms")
POINTS = ("prefill_tokens", "decode_batch", "iter_ms")


def read_request_log(path: Path) -> list[MeasuredRequest]:
    """A log of requests with the columns of `LOG`; arrivals count from the first one, in seconds.

    TTFT counts from `queued_s`, when the engine received the request, where there is that column, else from
    `arrival_s`. Without `tpot_ms`, or where it is empty, the time per token follows from `e2e_ms`.

    Raises:
        TableError: the file, a column or a value is unusable, there is no row, or the last arrival is
            more than `RUN_S_MAX` after the first.
    """
    columns = columns_of(path)
    wanted = tuple(name for name in LOG if name != "tpot_ms" or "e2e_ms" not in columns)
    require_columns(path, columns, wanted)
    received = "queued_s" if "queued_s" in columns else "arrival_s"
    log: list[MeasuredRequest] = []
    first_s, last_s, last = float("inf"), 0.0, None
    for row in rows_of(path):
        request = _request(row, received)
        first_s = min(first_s, request.arrival_s)
        if request.arrival_s >= last_s:
            last_s, last = request.arrival_s, row
        log.append(request)
    if last is None:
        raise TableError(f"{path}: it holds no request. Give a log with at least one row.")
    if last_s - first_s > RUN_S_MAX:
        raise last.error(
            received,
            f"{last_s:.15g} is more than {RUN_S_MAX:g} s after the first arrival",
            "Give seconds of one clock, and a run at a time.",
        )
    return [replace(request, arrival_s=request.arrival_s - first_s) for request in log]


def _request(row: Row, received: str) -> MeasuredRequest:
    return MeasuredRequest(
        arrival_s=row.number(received),
        prompt_tokens=row.count("prompt_tokens", least=1),
        output_tokens=row.count("output_tokens", least=1),
        ttft_s=row.number("ttft_ms") / 1e3,
        tpot_s=_tpot_s(row),
    )


def _tpot_s(row: Row) -> float:
    """Time per token after the first; 0 where none came later, as of outputs that came in one piece."""
    if row.text("tpot_ms") is not None:
        return row.number("tpot_ms") / 1e3
    gaps = row.count("output_tokens", least=1) - 1
    if not gaps:
        return 0.0
    return max(0.0, row.number("e2e_ms") - row.number("ttft_ms")) / 1e3 / gaps


def read_iterations(path: Path) -> list[MeasuredIteration]:
    """Measured iterations: the columns of `POINTS`, and where they apply `prefix_tokens` and
    `context_tokens` (or `total_context_tokens`).

    Raises:
        TableError: the file, a column or a value is unusable.
    """
    columns = columns_of(path)
    require_columns(path, columns, POINTS)
    context = next(
        (name for name in ("context_tokens", "total_context_tokens") if name in columns), None
    )
    return [
        MeasuredIteration(
            iteration_ms=row.number("iter_ms", least=1e-6),
            prefill_tokens=row.count("prefill_tokens"),
            prefix_tokens=row.count("prefix_tokens") if "prefix_tokens" in columns else 0,
            decode_batch=row.count("decode_batch"),
            context_tokens=row.count(context, most=10**9) if context else 0,
        )
        for row in rows_of(path)
    ]
