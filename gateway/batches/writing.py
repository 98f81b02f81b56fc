"""Writes the output and the error file of a batch that is over, and makes them files of its tenant.

Results come from the store, in order of the lines; what has none is read from the input file for its name. Whoever dies in
between writes both anew: until they are files nobody has seen them, and what is a file already stays it.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import BinaryIO

import failpoints
from gateway.batches import results, rows
from gateway.batches.opened import OpenBatch
from gateway.batches.rows import Result
from gateway.files import FileStore
from gateway.store import Database
from qlm_core.batches import Unrun

# Lines are looked at so many at a time: other users of the store get their turn in between.
_PAGE_LINES = 500


class Writer:
    """Writes the files of batches.

    Args:
        folder: for what is being written.
    """

    def __init__(self, database: Database, files: FileStore, folder: Path) -> None:
        self._database = database
        self._files = files
        self._folder = folder

    def parts(self, batch: OpenBatch) -> tuple[Path, Path]:
        """Where the output and the errors of a batch are written."""
        names = (f"{batch.stored.id}_output.jsonl", f"{batch.stored.id}_error.jsonl")
        return self._folder / names[0], self._folder / names[1]

    async def write(self, batch: OpenBatch, unrun: Unrun | None) -> None:
        """Write both files and keep those that have lines. Raises QlmError, OSError; then nothing is kept, or one is."""
        counts = await self._write_parts(batch, unrun)
        stored = batch.stored
        for path, id, lines in zip(self.parts(batch), stored.file_ids, counts, strict=True):
            if not lines:
                await asyncio.to_thread(path.unlink, missing_ok=True)
                continue
            await self._files.put(
                path,
                owner=stored.owner,
                filename=path.name,
                expires_in_s=stored.output_expires_s,
                id=id,
            )
            failpoints.at("gateway.batches.file_kept")

    async def _write_parts(self, batch: OpenBatch, unrun: Unrun | None) -> list[int]:
        """Write all lines; returns how many there are in each file."""
        counts = [0, 0]
        output, errors = await asyncio.to_thread(_open_both, self.parts(batch))
        with output, errors:
            for first in range(0, len(batch.index), _PAGE_LINES):
                last = min(first + _PAGE_LINES, len(batch.index)) - 1
                found = await self._database.read(
                    lambda connection, first=first, last=last: rows.results(  # type: ignore[misc]
                        connection, batch.number, first, last
                    )
                )
                lines = await asyncio.to_thread(_completed, batch, found, first, last, unrun)
                for place, file in enumerate((output, errors)):
                    part = [line.data for line in lines if line.failed == bool(place)]
                    counts[place] += len(part)
                    await asyncio.to_thread(file.writelines, part)
                failpoints.at("gateway.batches.writing", OSError)
            # Closing writes the rest, which a full disk may refuse.
            await asyncio.to_thread(output.close)
            await asyncio.to_thread(errors.close)
        return counts


def _open_both(paths: tuple[Path, Path]) -> tuple[BinaryIO, BinaryIO]:
    output, errors = paths
    return output.open("wb"), errors.open("wb")


def _completed(
    batch: OpenBatch, found: list[Result], first: int, last: int, unrun: Unrun | None
) -> list[Result]:
    """Results of all lines from the first to the last; made here for those that have none. Blocks; raises OSError."""
    if len(found) == last - first + 1:
        return found
    known = {result.line: result for result in found}
    index, id = batch.index, batch.stored.id
    whole = []
    with batch.input.open("rb") as file:
        for line in range(first, last + 1):
            result = known.get(line)
            if result is None:
                file.seek(index.offsets[line])
                name = results.name_of(file.read(index.sizes[line]))
                result = Result(line, True, results.never_run(id, line, name, unrun))
            whole.append(result)
    return whole
