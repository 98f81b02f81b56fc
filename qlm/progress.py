"""Live progress of a run: a bar on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator

from qlm.load import Counts
from qlm.report import Fate

REFRESH_S = 0.25
LINE_S = 5.0


@contextlib.asynccontextmanager
async def shown(counts: Counts, total: int) -> AsyncIterator[None]:
    """Show `counts` of a run of `total` requests while the block runs."""
    watch = _bar(counts, total) if sys.stderr.isatty() else _lines(counts, total)
    task = asyncio.create_task(watch)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def _ended(counts: Counts) -> int:
    return sum(counts.fates.values())


def _text(counts: Counts) -> str:
    other = ", ".join(
        f"{count} {fate.value}"
        for fate, count in counts.fates.items()
        if count and fate is not Fate.FINISHED
    )
    text = f"{counts.sent} sent, {counts.in_flight} waiting or running, "
    text += f"{counts.fates[Fate.FINISHED]} finished, {counts.output_tokens} tokens"
    return f"{text}, {other}" if other else text


async def _bar(counts: Counts, total: int) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TimeElapsedColumn(), BarColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False) as progress:
        task = progress.add_task("", total=total)
        try:
            while True:
                progress.update(task, completed=_ended(counts), description=_text(counts))
                progress.refresh()
                await asyncio.sleep(REFRESH_S)
        finally:
            progress.update(task, completed=_ended(counts), description=_text(counts))
            progress.refresh()


async def _lines(counts: Counts, total: int) -> None:
    loop = asyncio.get_running_loop()
    started_s = loop.time()
    while True:
        await asyncio.sleep(LINE_S)
        elapsed_s = loop.time() - started_s
        line = f"{elapsed_s:5.0f} s  {_ended(counts)}/{total} done: {_text(counts)}"
        print(line, file=sys.stderr, flush=True)
