"""What goes on between a gateway and its store behind requests: opening it, its clock, ends, and old answers.

A store that fails for a while costs nothing that was acknowledged: new durable requests are refused by whoever asked,
ends are kept here and stored once it takes them, and only then do clients hear of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator
from dataclasses import replace as replace_record
from functools import partial
from typing import Protocol

from msgspec.structs import replace

from gateway.metrics import Gauge
from gateway.restoring import resume_again
from gateway.store import Kept, Seen, Store, StoreClock, StoredEnd, StoredRequest, StoreError
from gateway.webhooks.rows import Row, put
from qlm_core.config import GatewayConfig
from qlm_core.errors import InvalidRequest, QlmError, kind_and_place
from qlm_core.ledger import EndRecord
from qlm_core.model import Phase
from qlm_core.outcome import FinishReason
from qlm_core.resume import Resume

log = logging.getLogger(__name__)

STORE_RETRY_S = 1.0
SWEEP_PERIOD_S = 60.0
# What the clock may differ by between two runs before it is worth a word.
_CLOCK_SLACK_S = 5.0
_UNKEPT = "the gateway cannot keep how it ended; its log says why"


class News(Protocol):
    """Whoever tells others of ends."""

    def of_end(self, request: StoredRequest, end: StoredEnd) -> tuple[Row, ...]:
        """What is to be told of one, which is stored with it."""

    def kept(self, told: tuple[Row, ...]) -> None:
        """That is stored."""


class Keeper:
    """Keeps one gateway's store. `open` comes first, `close` last.

    Attributes:
        news: who tells others of ends, if anybody.
    """

    def __init__(self, config: GatewayConfig, store: Store) -> None:
        self._config = config
        self._store = store
        self._loop = asyncio.get_running_loop()
        self._clock: StoreClock | None = None
        self._ends_waiting = 0
        self._failing = False
        self.news: News | None = None

    async def open(self) -> int:
        """Open the store; returns the number of this start. Raises QlmError."""
        opened = await self._store.open()
        clock = StoreClock(opened.seen, unix_s=time.time(), now_s=self._loop.time())
        self._clock = clock
        if abs(clock.down_s - clock.counted_s) > _CLOCK_SLACK_S:
            said = {"down_s": round(clock.down_s), "counted_s": round(clock.counted_s)}
            log.warning("not all that the clock says has passed is counted as age", extra=said)
        if opened.rows_aside:
            path = self._config.store.path
            said_aside = {"requests": opened.rows_aside, "store": path}
            log.warning("the store has requests that were set aside", extra=said_aside)
        try:
            await self._note()
        except StoreError as error:
            raise self._refused(error) from None
        return opened.starts

    async def restore(self) -> list[tuple[StoredRequest, Resume]]:
        """What is to go on, and how it may; whatever cannot is set aside. Raises QlmError."""
        restored: list[tuple[StoredRequest, Resume]] = []
        try:
            for request in await self._store.open_requests():
                try:
                    restored.append((request, resume_again(request)))
                except InvalidRequest as error:
                    reason = f"body: refused today for its field {error.field[:64]!r}"
                    await self._store.set_aside(request.id, reason)
        except StoreError as error:
            raise self._refused(error) from None
        return restored

    async def add(self, request: StoredRequest) -> Kept:
        """As the store's. Raises StoreError."""
        try:
            kept = await self._store.add(request)
        except StoreError as error:
            self._fails(error)
            raise
        self._works()
        return kept

    def time_s(self) -> float:
        """The store's time."""
        assert self._clock is not None, "the store is not open"
        return self._clock.read(self._loop.time())

    async def keep_end(self, end: StoredEnd, request: StoredRequest, *, stored: bool) -> StoredEnd:
        """Store an end, however long that takes; returns what is stored of it.

        Args:
            request: what ended.
            stored: whether the store has it already.
        """
        self._ends_waiting += 1
        try:
            while True:
                try:
                    if stored:
                        await self._end(end, request)
                    else:
                        await self._store.keep(request, end)
                    break
                except StoreError as error:
                    self._fails(error)
                    await asyncio.sleep(STORE_RETRY_S)
                except Exception as error:  # the edge: the request must end, whatever is in its end
                    said = {"request": end.id, "reason": kind_and_place(error)}
                    log.error("cannot write an end down", extra=said)
                    end = _bare(end)
        finally:
            self._ends_waiting -= 1
        self._works()
        return end

    async def _end(self, end: StoredEnd, request: StoredRequest) -> None:
        """Store an end, and with it what others are told of that."""
        told = () if self.news is None else self.news.of_end(request, end)
        if self.news is None or not told:
            await self._store.end(end)
        elif await self._store.end(end, partial(put, rows=told)):
            self.news.kept(told)

    async def sweep(self) -> None:
        """Delete old answers, a few at a time, and note the time, for ever."""
        keep_s = self._config.store.keep_finished_s
        while True:
            deleted = 0
            try:
                deleted = await self._store.sweep(self.time_s() - keep_s)
                if not deleted:
                    await self._note()
            except StoreError as error:
                log.error("cannot delete old answers", extra={"error": str(error)})
            await asyncio.sleep(0.1 if deleted else min(SWEEP_PERIOD_S, max(1.0, keep_s / 10)))

    async def close(self) -> None:
        """Note the time for the next start and release the store."""
        if self._clock is not None:
            with contextlib.suppress(StoreError):
                await self._note()
        await self._store.close()

    def gauges(self) -> Iterator[Gauge]:
        """What metrics read from here."""
        yield (
            "qlm_store_ends_waiting",
            "Ends that the store has not taken yet.",
            float(self._ends_waiting),
        )
        yield (
            "qlm_store_rows_set_aside",
            "Stored requests that cannot be read.",
            float(self._store.rows_aside),
        )

    async def _note(self) -> None:
        await self._store.note(Seen(self.time_s(), time.time()))

    def _refused(self, error: StoreError) -> QlmError:
        return QlmError(
            f"gateway.store.path: cannot use {self._config.store.path}: {error}. "
            "Make room or repair it, put a copy of the store in its place, or give another path."
        )

    def _fails(self, error: StoreError) -> None:
        if not self._failing:
            self._failing = True
            said = {"store": self._config.store.path, "error": str(error)}
            log.error("the store takes nothing; requests are refused and ends wait", extra=said)

    def _works(self) -> None:
        if self._failing:
            self._failing = False
            log.info("the store works again", extra={"ends_waiting": self._ends_waiting})


def failed_record(record: EndRecord, error: str) -> EndRecord:
    """The end of a request that turned out to have failed."""
    reason = FinishReason.ERROR.value
    return replace_record(record, phase=Phase.FAILED, reason=reason, error=error, attained=False)


def _bare(end: StoredEnd) -> StoredEnd:
    """The end of a request whose own end cannot be written down."""
    record = replace_record(failed_record(end.record, _UNKEPT), closing=b"")
    return replace(end, record=record, answer=b"")
