"""Clocks of one part that jump. Only the time of the day does, as on real hosts; monotonic clocks go on."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from benchmarks.chaos.bed import Bed

# Answers are looked through for old ones in this time at least, with the time of keeping that the fault configures.
WAIT_S = 11.0
KEEP_S = 100.0

_FILE = "clock.txt"


def variables(folder: Path) -> Mapping[str, str]:
    """What makes a process take its time of the day by a file in this folder, which is written here."""
    (folder / _FILE).write_text("0")
    here = Path(__file__).parent / "jumping"
    paths = [str(here), os.environ.get("PYTHONPATH", "")]
    return {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "QLM_CHAOS_CLOCK": str(folder / _FILE),
    }


def jump(by_s: float) -> Callable[[Bed], Awaitable[None]]:
    """Let the clock of the part that is under it jump and stay there."""

    async def inflict(bed: Bed) -> None:
        # In one step: who reads meanwhile sees either time.
        new = bed.folder / f"{_FILE}.new"
        new.write_text(str(by_s))
        new.replace(bed.folder / _FILE)
        await asyncio.sleep(WAIT_S)

    return inflict
