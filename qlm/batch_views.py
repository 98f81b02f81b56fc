"""Batches in words: where one stands, when it will be done, and a bar or lines while one is watched.

Texts are pure: `now_s` is the present as Unix seconds, by which it is told which day a time is on.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

from qlm import look
from qlm.batch_client import OVER

Json = dict[str, Any]

POLL_S = 1.0
LINE_S = 5.0


def counts(batch: Json) -> str:
    """How many lines there are, and what has become of them."""
    said = batch["request_counts"]
    if not said["total"]:
        return "lines not counted yet" if batch["status"] not in OVER else "no lines"
    text = f"{said['completed'] + said['failed']}/{said['total']} lines done"
    return f"{text}, {said['failed']} failed" if said["failed"] else text


def finish(batch: Json, now_s: float) -> str:
    """When it will be done, as far as the solver says so; "" if it does not."""
    said = batch.get("qlm") or {}
    p50, p90 = said.get("finish_p50_at"), said.get("finish_p90_at")
    if p50 is None or p90 is None:
        return str(said.get("explanation") or "")
    text = f"done at {clock(p50, now_s)}, by {clock(p90, now_s)} nine times in ten"
    return text if said.get("feasible") else f"{text}: too late for its window"


def clock(unix_s: float, now_s: float) -> str:
    """A time of day here, with the date where that is another day."""
    when = datetime.fromtimestamp(unix_s).astimezone()
    today = datetime.fromtimestamp(now_s).astimezone().date()
    return when.strftime("%H:%M:%S" if when.date() == today else "%Y-%m-%d %H:%M")


def line(batch: Json, now_s: float) -> str:
    """Where a batch stands, in one line."""
    parts = [batch["status"], counts(batch)]
    if batch["status"] not in OVER:
        parts.append(finish(batch, now_s))
    return ", ".join(part for part in parts if part)


def table(batch: Json, now_s: float) -> str:
    """All that a person wants to know of a batch, one fact a line."""
    rows = [
        ("batch", batch["id"]),
        ("status", batch["status"]),
        ("lines", counts(batch)),
        ("model", batch["model"] or ("" if not batch["request_counts"]["total"] else "several")),
        ("endpoint", batch["endpoint"]),
        ("created", clock(batch["created_at"], now_s)),
        ("window", f"{batch['completion_window']}, until {clock(batch['expires_at'], now_s)}"),
    ]
    said = batch.get("qlm") or {}
    rows += [("finish", finish(batch, now_s)), ("why", str(said.get("explanation") or ""))]
    if batch["status"] in OVER:
        ended = batch[f"{batch['status']}_at"]
        usage = batch["usage"]
        tokens = f"{usage['input_tokens']} in, {usage['output_tokens']} out"
        rows += [("ended", clock(ended, now_s)), ("tokens", tokens)]
    rows += [("output", batch["output_file_id"] or ""), ("errors", batch["error_file_id"] or "")]
    for key, value in (batch["metadata"] or {}).items():
        rows.append((f"metadata.{key}", value))
    for fault in (batch["errors"] or {}).get("data", ()):
        where = f"line {fault['line']}: " if fault["line"] else ""
        rows.append(("fault", f"{where}{fault['message']}"))
    return look.facts(rows)


def foreseen(said: Json, now_s: float) -> str:
    """When a batch that is not submitted would be done, one fact a line."""
    rows = [
        ("lines", str(said["lines"])),
        ("class", said["slo_class"]),
        ("finish", finish(said, now_s)),
        ("why", said["explanation"]),
    ]
    return look.facts(rows)


async def watch(batch: Json, again: Callable[[str], Awaitable[Json]]) -> Json:
    """Show a batch until it is over; returns what it is then. A bar on a terminal, a line every few seconds elsewhere."""
    return await (_bar if sys.stderr.isatty() else _lines)(batch, again)


async def _bar(batch: Json, again: Callable[[str], Awaitable[Json]]) -> Json:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TimeElapsedColumn(), BarColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False) as progress:
        task = progress.add_task("", total=None)
        while True:
            said = batch["request_counts"]
            progress.update(
                task,
                total=said["total"] or None,
                completed=said["completed"] + said["failed"],
                description=line(batch, time.time()),
            )
            progress.refresh()
            if batch["status"] in OVER:
                return batch
            await asyncio.sleep(POLL_S)
            batch = await again(batch["id"])


async def _lines(batch: Json, again: Callable[[str], Awaitable[Json]]) -> Json:
    loop = asyncio.get_running_loop()
    due_s = loop.time()
    while batch["status"] not in OVER:
        if loop.time() >= due_s:
            print(line(batch, time.time()), file=sys.stderr, flush=True)
            due_s += LINE_S
        await asyncio.sleep(POLL_S)
        batch = await again(batch["id"])
    print(line(batch, time.time()), file=sys.stderr, flush=True)
    return batch
