"""The requests of a trace as one batch: all at once and due at the end of a window, whatever their arrivals and classes were."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from qlm import batch_views, load
from qlm.batch_client import BatchClient
from qlm_core.sim.workload import WorkloadRequest

ENDPOINT = "/v1/completions"


class BatchReport(msgspec.Struct, frozen=True, kw_only=True):
    """How a batch fared. Seconds count from its creation.

    Attributes:
        said_p50_s, said_p90_s: when the solver said first that it would be done; None where it said nothing.
        errors: the first of what was wrong with its file.
    """

    id: str
    status: str
    lines: int
    completed: int
    failed: int
    input_tokens: int
    output_tokens: int
    elapsed_s: float
    window_s: int
    said_p50_s: int | None
    said_p90_s: int | None
    errors: tuple[str, ...]


async def run(
    requests: Sequence[WorkloadRequest], client: BatchClient, *, bodies: load.Bodies, window: str
) -> BatchReport:
    """Submit the requests, show their progress and report. Raises QlmError."""
    with tempfile.TemporaryDirectory(prefix="qlm-batch-") as folder:
        path = Path(folder) / "trace.jsonl"
        write(path, requests, bodies)
        file_id = await client.upload(path)
    began_s = asyncio.get_running_loop().time()
    batch = await client.create(file_id, endpoint=ENDPOINT, window=window, metadata={})
    first: dict[str, Any] = {}

    async def again(id: str) -> dict[str, Any]:
        found = await client.get_patiently(id)
        said = found.get("qlm") or {}
        if not first and said.get("finish_p50_at") is not None:
            first.update(said)
        return found

    batch = await batch_views.watch(batch, again)
    elapsed_s = asyncio.get_running_loop().time() - began_s
    said, usage, created = batch["request_counts"], batch["usage"], batch["created_at"]
    faults = (batch["errors"] or {}).get("data", ())
    return BatchReport(
        id=batch["id"],
        status=batch["status"],
        lines=said["total"],
        completed=said["completed"],
        failed=said["failed"],
        input_tokens=usage["input_tokens"],
        output_tokens=usage["output_tokens"],
        elapsed_s=round(elapsed_s, 3),
        window_s=batch["expires_at"] - created,
        said_p50_s=first["finish_p50_at"] - created if first else None,
        said_p90_s=first["finish_p90_at"] - created if first else None,
        errors=tuple(fault["message"] for fault in faults[:10]),
    )


def write(path: Path, requests: Sequence[WorkloadRequest], bodies: load.Bodies) -> None:
    """The requests as an input file."""
    with path.open("wb") as file:
        for number, given in enumerate(requests):
            line = {
                "custom_id": f"request-{number}",
                "method": "POST",
                "url": ENDPOINT,
                "body": bodies.fields(number, bodies.fitted(given)),
            }
            file.write(msgspec.json.encode(line) + b"\n")


def shown(report: BatchReport) -> str:
    """A report in words."""
    lines = [
        f"batch        {report.id}: {report.status}",
        f"lines        {report.lines} = {report.completed} completed, {report.failed} failed",
        f"tokens       {report.input_tokens} in, {report.output_tokens} out",
        f"took         {report.elapsed_s:.1f} s of a window of {report.window_s} s",
    ]
    if report.said_p50_s is not None:
        said = f"{report.said_p50_s} s, and within {report.said_p90_s} s nine times in ten"
        lines.append(f"estimated    {said}")
    if report.elapsed_s > 0:
        rate = report.output_tokens / report.elapsed_s
        lines.append(f"throughput   {rate:.0f} output tokens/s")
    return "\n".join([*lines, *(f"error        {error}" for error in report.errors)])
