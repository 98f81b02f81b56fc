"""What clients may ask of batches: create, foresee, look, list, cancel.

Another tenant's batch is looked for in vain, with the same answer as one that never was.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import failpoints
from gateway.batches import rows
from gateway.batches.asking import Asked, InvalidBatch, lax_class
from gateway.batches.driver import Batches
from gateway.batches.endpoints import ENDPOINTS
from gateway.batches.foreseeing import FaultyInput, shapes
from gateway.batches.index import Index
from gateway.batches.restoring import remove
from gateway.batches.rows import Numbered
from gateway.batches.stored import BATCH_PREFIX, Forecast, StoredBatch, is_id, shown
from gateway.batches.validating import FAILED
from gateway.files import BATCH, StoredFile
from gateway.keys import Caller
from qlm_core.batches import BatchStatus
from qlm_core.errors import Conflict, KeyReused, NotFound, QueueFull, Unavailable
from qlm_core.messages import BatchQuestion
from qlm_core.model import BatchId, Slo

log = logging.getLogger(__name__)

Json = dict[str, Any]

# When to come back where too many batches are open: some batch may be over by then.
_RETRY_AFTER_S = 60.0


class Page(NamedTuple):
    """Some of the batches that are listed, as they are shown, and whether there are more."""

    batches: list[Json]
    has_more: bool


class BatchDesk:
    """The batches of one gateway, for who asks."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches
        self._limits = batches.config.gateway.batches
        self._creating: dict[str, int] = {}

    async def create(self, asked: Asked, caller: Caller, *, key: str = "") -> Json:
        """Create a batch; with a known key, the earlier one.

        Raises InvalidBatch (the file is of another purpose), QueueFull, Unavailable (the store failed), KeyReused (the key names
        other content).
        """
        with self._counted(caller.tenant):
            # Not to be torn by a client that leaves: what is stored must begin.
            made = await asyncio.shield(asyncio.create_task(self._create(asked, caller, key)))
        batch = self._batches.get(made.id)
        if batch is not None and batch.stored.status is BatchStatus.VALIDATING:
            await self._batches.foretold(batch)
            made = batch.stored
        return self._shown(made)

    async def question(self, asked: Asked, caller: Caller) -> BatchQuestion:
        """What the solver is to be asked of a batch that is not created; while its file is read it counts as an open one.

        Raises what `create` does without a key, InvalidRequest for too many models, and FaultyInput for what would fail it.
        """
        owner, id = caller.tenant, asked.input_file_id
        with self._counted(owner):
            file = await self._input(id, caller)
            # Where there is no file, nothing can be read at a path that was never one.
            path = self._batches.folder / "none" if file is None else self._batches.files.path(file)
            scan = await self._batches.read(path, asked.endpoint, file_id=id, owner=owner)
        index, models = Index.unpack(scan.index), [model.name for model in scan.models]
        faults = scan.faults or self._batches.too_much(index, models, owner)
        if faults and faults[0].code == FAILED:
            raise Unavailable(faults[0].message)
        if faults:
            raise FaultyInput(faults)
        parts = shapes(
            index, models, self._batches.lengths(models, owner), ENDPOINTS[asked.endpoint]
        )
        slo = Slo(ttft_s=asked.window_s, e2e_s=asked.window_s)
        return BatchQuestion(parts, lax_class(self._batches.config, caller), slo)

    async def get(self, id: str, caller: Caller) -> Json:
        """A batch. Raises NotFound, Unavailable."""
        return self._shown(await self._find(id, caller))

    async def cancel(self, id: str, caller: Caller) -> Json:
        """Give a batch up. Raises NotFound, Unavailable, Conflict for one that has ended otherwise."""
        stored = await self._find(id, caller)
        batch = self._batches.get(stored.id)
        if batch is not None:
            await self._batches.cancel(batch)
            stored = batch.stored
        if stored.status.terminal and stored.status is not BatchStatus.CANCELLED:
            raise Conflict(f"Cannot cancel a batch with status '{stored.status.value}'.")
        return self._shown(stored)

    async def list(self, caller: Caller, *, after: str, limit: int) -> Page:
        """Batches that the caller may see, newest first. Raises NotFound, Unavailable.

        Args:
            after: begin behind this id; "" for the newest.
        """
        before = None
        if after:
            before = (await self._row(after, caller)).number
        owner = None if caller.operator else caller.tenant
        work = partial(rows.page, owner=owner, before=before, limit=limit + 1)
        found = await self._batches.database.read(work)
        return Page([self._shown(one.batch) for one in found[:limit]], len(found) > limit)

    # ---------------------------------------------------------------- parts

    @contextmanager
    def _counted(self, owner: str) -> Iterator[None]:
        """Count one more batch of a tenant for a while. Raises QueueFull."""
        self._require_room(owner)
        self._creating[owner] = self._creating.get(owner, 0) + 1
        try:
            yield
        finally:
            self._creating[owner] -= 1
            if not self._creating[owner]:
                del self._creating[owner]

    def _require_room(self, owner: str) -> None:
        mine = sum(batch.stored.owner == owner for batch in self._batches)
        total = sum(1 for _ in self._batches) + sum(self._creating.values())
        for name, limit, count in (
            (
                "tenant_open_batches_max",
                self._limits.tenant_open_batches_max,
                mine + self._creating.get(owner, 0),
            ),
            ("open_batches_max", self._limits.open_batches_max, total),
        ):
            if count >= limit:
                raise QueueFull(f"gateway.batches.{name}", limit, _RETRY_AFTER_S)

    async def _create(self, asked: Asked, caller: Caller, key: str) -> StoredBatch:
        id = BatchId(f"{BATCH_PREFIX}{os.urandom(12).hex()}")
        file = await self._input(asked.input_file_id, caller)
        stored = StoredBatch(
            id=id,
            owner=caller.tenant,
            endpoint=asked.endpoint,
            input_file_id=asked.input_file_id,
            completion_window=asked.completion_window,
            window_s=asked.window_s,
            slo_class=lax_class(self._batches.config, caller),
            arrived_at=self._batches.time_s(),
            created_unix_s=int(time.time()),
            input_bytes=0 if file is None else file.bytes_count,
            metadata=asked.metadata,
            output_expires_s=asked.output_expires_s,
            idempotency_key=key,
            fingerprint=asked.fingerprint,
        )
        link = self._batches.folder / f"{id}.jsonl"
        await self._link(file, link)
        failpoints.at("gateway.batches.linked")
        kept: Numbered | None = None
        try:
            kept = await self._batches.database.write(partial(rows.insert, batch=stored))
        finally:
            if kept is None or kept.batch.id != id:
                await asyncio.to_thread(remove, [link])
        if kept.batch.fingerprint != asked.fingerprint:
            raise KeyReused(key)
        failpoints.at("gateway.batches.stored")
        if kept.batch.id == id:
            self._batches.begin(kept)
        return kept.batch

    async def _input(self, file_id: str, caller: Caller) -> StoredFile | None:
        """The file that a batch is to read; None where there is none. Raises InvalidBatch, QueueFull, Unavailable."""
        try:
            file = await self._batches.files.find(file_id, caller)
        except NotFound:
            return None
        if file.purpose != BATCH:
            raise InvalidBatch(
                "input_file_id",
                f"Invalid value: the purpose of '{file.id}' is '{file.purpose}'. "
                f"Upload the file with the purpose '{BATCH}' and give the id that it gets then.",
                "invalid_value",
            )
        # They are kept until their batches are over, also if their owner deletes them meanwhile.
        inputs = {
            batch.stored.input_file_id: batch.stored.input_bytes
            for batch in self._batches
            if batch.stored.owner == caller.tenant
        } | {file.id: file.bytes_count}
        limit = self._batches.config.gateway.files.tenant_bytes_max
        if sum(inputs.values()) > limit:
            raise QueueFull(
                "gateway.files.tenant_bytes_max, by inputs of open batches", limit, _RETRY_AFTER_S
            )
        return file

    async def _link(self, file: StoredFile | None, link: Path) -> None:
        """Give the input a name of the batch's own, as far as there is an input. Raises Unavailable."""
        if file is None:
            return
        try:
            await asyncio.to_thread(_link, self._batches.files.path(file), link)
        except OSError as error:
            log.error("cannot link the input of a batch", extra={"error": str(error)})
            raise Unavailable(
                f"the gateway's disk fails: {error.strerror}; try again later"
            ) from None

    async def _find(self, id: str, caller: Caller) -> StoredBatch:
        """A batch as it is now."""
        batch = self._batches.get(BatchId(id))
        if batch is not None and caller.sees(batch.stored.owner):
            return batch.stored
        return (await self._row(id, caller)).batch

    async def _row(self, id: str, caller: Caller) -> Numbered:
        found = None
        if is_id(id):
            found = await self._batches.database.read(partial(rows.find, id=id))
        if found is None or not caller.sees(found.batch.owner):
            raise NotFound(f"No batch found with id '{id[:64]}'.")
        return found

    def _shown(self, stored: StoredBatch) -> Json:
        batch = self._batches.get(stored.id)
        if batch is None:
            return shown(stored, None, Forecast())
        return shown(batch.stored, self._batches.standing(batch), batch.forecast)


def _link(source: Path, link: Path) -> None:
    """Blocks; raises OSError."""
    try:
        os.link(source, link)
    except FileNotFoundError:
        # Deleted just now, or lost: then there is no such file.
        return
    except OSError:
        # A file system without links.
        shutil.copyfile(source, link)
