"""What a gateway finds of batches when it starts: rows of those that are not over, and files that nobody needs any more."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from msgspec.structs import replace

from gateway.batches import rows
from gateway.batches.asking import lax_class
from gateway.batches.index import Index
from gateway.batches.rows import Numbered, Records
from gateway.batches.stored import StoredBatch
from gateway.keys import Caller
from gateway.store import Database, StoreError
from qlm_core import batches as bt
from qlm_core.batches import NO_USAGE
from qlm_core.config import Config
from qlm_core.errors import QlmError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Found:
    """A batch that is not over; `index` is None where its lines were not known yet."""

    number: int
    stored: StoredBatch
    index: Index | None
    records: Records

    def event(self, due_s: float) -> bt.RestoredBatch:
        """What the book is told of it."""
        stored = self.stored
        return bt.RestoredBatch(
            batch=stored.id,
            tenant=stored.owner,
            due_s=due_s,
            status=stored.status,
            models=() if self.index is None else stored.models,
            model_of=() if self.index is None else self.index.model_of,
            ended=self.records.lines,
            usage=self.records.usage,
            released=stored.released,
            unrun=stored.unrun,
        )


async def read(database: Database, config: Config) -> list[Found]:
    """All batches that are not over and can be read. Raises QlmError if the store cannot be."""
    found = []
    try:
        for numbered in await database.read(rows.open_batches):
            try:
                found.append(await _read(database, config, numbered))
            except StoreError as error:
                said = {"batch": numbered.batch.id, "error": str(error)}
                log.error("a batch cannot be taken up and stays as it is", extra=said)
    except StoreError as error:
        raise QlmError(f"gateway.store.path: batches cannot be read: {error}.") from None
    return found


async def _read(database: Database, config: Config, numbered: Numbered) -> Found:
    number, stored = numbered
    if stored.slo_class not in config.slo_classes:
        # The configuration has lost it since.
        stored = replace(stored, slo_class=lax_class(config, Caller(tenant=stored.owner)))
    if not stored.models:
        return Found(number, stored, None, Records([], NO_USAGE))
    index = await database.read(partial(rows.index, number=number))
    if index is None or not index.is_sound(len(stored.models)):
        raise StoreError("where its lines are is not in the store")
    records = await database.read(partial(rows.records, number=number))
    if records.lines and records.lines[-1][0] >= len(index):
        raise StoreError("a line has ended that it does not have")
    return Found(number, stored, index, records)


def tidy(folder: Path, ids: Sequence[str]) -> None:
    """Remove what batches left in a folder that are over. Blocks; raises OSError."""
    known = dict.fromkeys(f"{id}.jsonl" for id in ids)
    remove(path for path in folder.iterdir() if path.name not in known)


def remove(paths: Iterable[Path]) -> None:
    """Delete files. Those that are gone already do not matter. Blocks; raises OSError."""
    for path in paths:
        path.unlink(missing_ok=True)
