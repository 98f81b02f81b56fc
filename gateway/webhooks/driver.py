"""The schedule's driver: keeps what is to be told, tries to tell it, and sees to it that it is not told for ever.

An event is stored before whoever tells of it goes on, and forgotten after its receiver has taken it. A gateway that dies in
between tells it once more, under the same id.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Iterator, Sequence
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import failpoints
from gateway.metrics import Gauge, Metrics
from gateway.store import Store, StoreError
from gateway.webhooks import rows
from gateway.webhooks.rows import Row
from gateway.webhooks.sending import Lookups, Outcome, Sender
from qlm_core import webhooks as wh
from qlm_core.config import GatewayConfig
from qlm_core.config_webhooks import WebhookConfig
from qlm_core.errors import kind_and_place
from qlm_core.webhooks import Delivery

log = logging.getLogger(__name__)

RETRY_S = 1.0
# How long tries that are under way may go on when the gateway stops.
CLOSE_S = 2.0


class _Receiver:
    """A webhook, with what sends to it while the gateway runs. Its label says nothing that is secret."""

    def __init__(self, webhook: WebhookConfig) -> None:
        self.name = rows.name_of(webhook.url)
        self.events = webhook.events or wh.EVENT_TYPES
        parts = urlsplit(webhook.url)
        self.label = parts.netloc
        self.webhook = webhook
        self.sender: Sender | None = None


class Webhooks:
    """The webhooks of one gateway. `open` comes after its store's, `close` before.

    Args:
        time_s: the store's time.
    """

    def __init__(
        self,
        section: GatewayConfig,
        store: Store,
        metrics: Metrics,
        *,
        time_s: Callable[[], float],
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._time_s = time_s
        self._limits = section.limits
        self._receivers = {receiver.name: receiver for receiver in map(_Receiver, section.webhooks)}
        self._schedule = wh.Schedule(
            tries_max=self._limits.webhook_tries_max, waiting_max=self._limits.webhook_backlog_max
        )
        self._rows: dict[Delivery, Row] = {}
        self._gone: dict[Delivery, None] = {}
        self._any_gone = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self._tries: dict[asyncio.Task[None], None] = {}
        self._forgetting: asyncio.Task[None] | None = None
        self._lookups: Lookups | None = None
        self._opened = self._closed = False

    # ---------------------------------------------------------------- life of the gateway

    async def open(self) -> None:
        """Take up what the store still holds. Raises QlmError."""
        if self._receivers:
            self._lookups = Lookups()
            for receiver in self._receivers.values():
                receiver.sender = Sender(
                    receiver.webhook, self._lookups, try_s_max=self._limits.webhook_s_max
                )
            self._forgetting = self._loop.create_task(self._forget())
        # What is stored before this is taken up below, what is stored from now on is also told by who stored it.
        self._opened = True
        found, gone = await self._store.database.write(
            partial(rows.take_up, webhooks=tuple(self._receivers))
        )
        if gone:
            log.warning(
                "webhooks that are configured no more are not told", extra={"deliveries": gone}
            )
        if found:
            log.info("webhooks restored", extra={"deliveries": len(found)})
        self.kept(found)

    async def close(self) -> None:
        """Let tries that are under way end, for a moment. What was not taken waits in the store."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._tries:
            await asyncio.wait(self._tries, timeout=CLOSE_S)
        for task in (*self._tries, *self._tasks):
            task.cancel()
        if self._forgetting is not None:
            self._forgetting.cancel()
            with contextlib.suppress(StoreError):
                await self._store.database.write(partial(rows.remove, deliveries=tuple(self._gone)))
        for receiver in self._receivers.values():
            if receiver.sender is not None:
                await receiver.sender.close()
        if self._lookups is not None:
            await self._lookups.close()

    def gauges(self) -> Iterator[Gauge]:
        """What metrics read from here."""
        waiting = {receiver.label: 0.0 for receiver in self._receivers.values()}
        failing = dict(waiting)
        for name, receiver in self._receivers.items():
            waiting[receiver.label] += self._schedule.waiting(name)
            failing[receiver.label] += self._schedule.failing(name)
        if waiting:
            told = "Events that a webhook has not taken yet."
            yield "qlm_webhook_deliveries_waiting", told, ("webhook", waiting)
            told = "Whether the last try to tell a webhook failed."
            yield "qlm_webhook_failing", told, ("webhook", failing)

    # ---------------------------------------------------------------- what others tell

    async def tell(self, event_type: str, id: str, created_unix_s: int) -> None:
        """Have whoever wants to know told that this has happened; it is stored then. Raises StoreError.

        Args:
            event_type: one of `qlm_core.webhooks.EVENT_TYPES`.
            id: of the batch or the response.
        """
        told = self.deliveries(event_type, id, created_unix_s)
        if told:
            # Who waits for this may go away meanwhile, and what is stored must be known here.
            await asyncio.shield(self._spawn(self._keep(told)))

    @property
    def wanted(self) -> bool:
        """Whether anybody is to be told of anything."""
        return bool(self._receivers)

    def deliveries(self, event_type: str, id: str, created_unix_s: int) -> tuple[Row, ...]:
        """The rows of an event, to be stored by `rows.put` within another change and then said to be `kept`."""
        assert event_type in wh.EVENT_TYPES, event_type
        now = self._time_s()
        event = rows.event_id(event_type, id)
        return tuple(
            Row(event, name, event_type, id, created_unix_s, told_at=now, tries=0, due_at=now)
            for name, receiver in self._receivers.items()
            if event_type in receiver.events
        )

    def kept(self, told: Sequence[Row]) -> None:
        """These are stored."""
        if told:
            failpoints.at("gateway.webhooks.told")
        if not self._opened:
            return
        behind_s = self._time_s() - self._loop.time()
        for row in told:
            until_s, due_s = row.told_at + wh.TRIED_S - behind_s, row.due_at - behind_s
            self._rows.setdefault(row.delivery, row)
            self._handle(wh.Told(row.delivery, until_s, due_s, row.tries))

    async def _keep(self, told: Sequence[Row]) -> None:
        await self._store.database.write(partial(rows.put, rows=told))
        self.kept(told)

    # ---------------------------------------------------------------- the schedule

    def _handle(self, event: wh.Event) -> None:
        if self._closed and not isinstance(event, wh.Delivered):
            return
        for effect in self._schedule.handle(event, now_s=self._loop.time()):
            match effect:
                case wh.Try(delivery):
                    self._begin(delivery)
                case wh.Later(delivery, tries, due_s):
                    self._spawn(self._note(delivery, tries, due_s))
                case wh.Drop(delivery, why):
                    self._drop(delivery, why)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        wakeup_s = self._schedule.wakeup_s
        if wakeup_s is not None and not self._closed:
            self._timer = self._loop.call_at(wakeup_s, self._handle, wh.Woken())

    def _begin(self, delivery: Delivery) -> None:
        if self._closed:
            return
        task = self._loop.create_task(self._try(delivery))
        self._tries[task] = None
        task.add_done_callback(self._tried)

    async def _try(self, delivery: Delivery) -> None:
        receiver = self._receivers[delivery.receiver]
        assert receiver.sender is not None, "it is open"
        try:
            outcome = await receiver.sender.send(self._rows[delivery])
            if outcome.delivered:
                failpoints.at("gateway.webhooks.sent")
        except Exception as error:  # the edge: whatever it was, the others are to be told
            outcome = Outcome("unreachable", kind_and_place(error))
        self._metrics.webhook_tried(receiver.label, outcome.kind)
        failing = self._schedule.failing(receiver.name)
        if outcome.delivered:
            self._handle(wh.Delivered(delivery))
            if failing:
                log.info("a webhook takes events again", extra={"webhook": receiver.label})
        else:
            self._handle(wh.Failed(delivery, outcome.retry_after_s))
            if not failing:
                said = {"webhook": receiver.label, "reason": outcome.said}
                log.warning("a webhook does not take an event; trying again", extra=said)

    def _drop(self, delivery: Delivery, why: wh.Why) -> None:
        row = self._rows.pop(delivery)
        self._gone[delivery] = None
        self._any_gone.set()
        label = self._receivers[delivery.receiver].label
        if why is not wh.Why.DELIVERED:
            self._metrics.webhook_dropped(label, why.value)
            said = {"webhook": label, "event": row.type, "id": row.subject, "reason": why.value}
            log.error("a webhook is not told of an event", extra=said)

    # ---------------------------------------------------------------- storing

    async def _note(self, delivery: Delivery, tries: int, due_s: float) -> None:
        due_at = due_s + self._time_s() - self._loop.time()
        # Without it, a gateway that starts anew tries sooner.
        work = partial(rows.note, delivery=delivery, tries=tries, due_at=due_at)
        with contextlib.suppress(StoreError):
            await self._store.database.write(work)

    async def _forget(self) -> None:
        """Remove what is over, as much at once as has come together."""
        while True:
            await self._any_gone.wait()
            self._any_gone.clear()
            gone = tuple(self._gone)
            try:
                await self._store.database.write(partial(rows.remove, deliveries=gone))
            except StoreError as error:
                log.error("cannot forget what webhooks were told", extra={"error": str(error)})
                self._any_gone.set()
                await asyncio.sleep(RETRY_S)
            else:
                for delivery in gone:
                    del self._gone[delivery]

    # ---------------------------------------------------------------- parts

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks[task] = None
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task, None)
        if not task.cancelled():
            # Whoever waited for it has it, or has gone.
            task.exception()

    def _tried(self, task: asyncio.Task[None]) -> None:
        self._tries.pop(task, None)
        error = None if task.cancelled() else task.exception()
        if error is not None and isinstance(error, Exception):
            log.error("a task of webhooks failed", extra={"reason": kind_and_place(error)})
