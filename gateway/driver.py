"""The ledger's driver: feeds it events with the time, and carries out its effects.

Everything happens on one event loop, without locks. A durable request enters the ledger once the store has it, and its
client hears of the end once the store has that: so whatever was said to a client is also true after a crash. It also
admits requests, routes orders to agents' streams, and drains.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import failpoints
from gateway.admission import Admission, Seats
from gateway.alarm import Alarm
from gateway.answer import BadChunkError
from gateway.budget import Budget
from gateway.explaining import Remembered
from gateway.intake import Draft
from gateway.keeping import Keeper, failed_record
from gateway.live import Backlog, Live, Origin
from gateway.metrics import Gauge, Metrics
from gateway.restoring import without_collector
from gateway.store import Kept, StoredEnd, StoredRequest
from gateway.tenants import Tenants
from protos.outbox import Outbox
from qlm_core import ledger as lg
from qlm_core.config import GatewayConfig
from qlm_core.errors import (
    KeyReused,
    QlmError,
    Unavailable,
    kind_and_place,
)
from qlm_core.messages import GatewayFact, Joined, Pulled, Refused, Revoked, WorkOrder
from qlm_core.model import AgentId, GatewayId, Phase, RequestId
from qlm_core.outcome import ShedReason
from qlm_core.resume import Resume

log = logging.getLogger(__name__)

# Attempt numbers of one start of the gateway: room for this many before the next start's begin.
ATTEMPTS_PER_START = 1 << 16
STARTS_MAX = 1 << 15


class Driver:
    """All open requests of one gateway.

    Args:
        keeper: of the store, not opened yet.
        tell: passes a fact to the solver, or drops it while there is none.
        admission: says who may come in.
        unread: counts output that clients have not read.

    Attributes:
        tenants: which open requests are whose.
        remembered: how the latest requests ended that are not stored.
    """

    def __init__(
        self,
        config: GatewayConfig,
        keeper: Keeper,
        metrics: Metrics,
        *,
        tell: Callable[[GatewayFact], None],
        admission: Admission,
        unread: Budget,
    ) -> None:
        self._config = config
        self._admission = admission
        limits = config.limits
        self._backlog = Backlog(
            limits.stream_backlog_chunks_max, limits.stream_backlog_bytes_max, unread
        )
        self._keeper = keeper
        self._metrics = metrics
        self._tell = tell
        self._loop = asyncio.get_running_loop()
        self._ledger = lg.Ledger()
        self._live: dict[RequestId, Live] = {}
        self._agents: dict[AgentId, Outbox[WorkOrder]] = {}
        self.tenants = Tenants()
        self.remembered = Remembered()
        self._adding = 0
        self._events: deque[lg.Event] = deque()
        self._handling = False
        self._alarm = Alarm(lambda: self.handle(lg.Woken()))
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self._starting = self._draining = False
        self._appliers: dict[type, Callable[[Any], None]] = {
            lg.Tell: self._pass_on,
            lg.Deliver: self._deliver,
            lg.Grant: self._grant,
            lg.Refuse: self._refuse,
            lg.Revoke: self._revoke,
            lg.Welcome: self._welcome,
            lg.DropOutput: lambda effect: self._live[effect.id].drop_output(),
            lg.Estimated: self._estimated,
            lg.EndRequest: self._end,
        }

    # ---------------------------------------------------------------- life of the gateway

    async def start(self) -> None:
        """Open the store and take up what it still holds. Raises QlmError."""
        starts = await self._keeper.open()
        if starts > STARTS_MAX:
            raise QlmError(
                f"gateway.store: it was opened {starts} times and has no attempt numbers left. "
                "Use a new store."
            )
        self._ledger = lg.Ledger(
            agent_grace_s=self._config.agent_grace_s,
            attempts_max=self._config.attempts_max,
            first_attempt=starts * ATTEMPTS_PER_START,
        )
        with without_collector():
            restored = await self._keeper.restore()
            self._starting = True
            for request, resume in restored:
                self._enter(request, durable=True, watched=False, resume=resume, restored=True)
            self._starting = False
            self._alarm.arm(self._ledger.wakeup_s)
        if restored:
            log.info("requests restored", extra={"requests": len(restored)})
        failpoints.at("gateway.driver.restored")
        self._spawn(self._keeper.sweep())
        self._alarm.beat()

    async def drain(self) -> None:
        """Take nothing new; wait for what clients wait for, then give the rest up."""
        self._draining = True
        failpoints.at("gateway.driver.draining")
        waiting = [live.ended for live in self._live.values() if not live.durable]
        if waiting:
            log.info("draining", extra={"requests": len(waiting)})
            await asyncio.wait(waiting, timeout=self._config.drain_s)
        for id, live in list(self._live.items()):
            if live.durable:
                live.abandon("the gateway is shutting down; the request goes on when it is back")
                continue
            self.handle(lg.FailAsked(id, "the gateway is shutting down"))
            if id in self._live:  # it has ended, and the store does not take the end
                live.abandon("the gateway is shutting down and cannot keep the answer")

    async def close(self) -> None:
        """Release everything. Durable requests stay in the store for the next start."""
        self._alarm.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._keeper.close()

    @property
    def draining(self) -> bool:
        """Whether new requests are turned away for good."""
        return self._draining

    @property
    def ledger(self) -> lg.Ledger:
        """For reading only."""
        return self._ledger

    @property
    def retry_after_s(self) -> float:
        """When a refused client may try again for whom there is no turn."""
        return self._admission.retry_after_s

    def gauges(self) -> Iterator[Gauge]:
        """What metrics read from here."""
        open_phases = (Phase.WAITING, Phase.PULLED, Phase.RUNNING)
        counts = {phase.value: float(self._ledger.count(phase)) for phase in open_phases}
        yield "qlm_requests_open", "Open requests, by phase.", ("phase", counts)
        yield "qlm_agents_connected", "Agents with a work stream.", float(len(self._agents))
        yield from self._keeper.gauges()

    # ---------------------------------------------------------------- clients

    def admit(self, draft: Draft, connections: Seats | None) -> None:
        """Whether a request may come in. Raises QueueFull or Unavailable."""
        if self._draining:
            raise Unavailable("the gateway is shutting down; send the request to another one")
        self._admission.admit(
            draft,
            open_requests=len(self._ledger) + self._adding,
            own_requests=self.tenants.count(draft.caller.tenant),
            connections=connections,
            now_s=self._loop.time(),
        )

    def submit(self, draft: Draft, *, watched: bool, connections: Seats | None = None) -> Live:
        """Take a request that lives in memory only. Raises QueueFull or Unavailable.

        Args:
            connections: how many there are, where it occupies one.
        """
        self.admit(draft, connections)
        request = draft.accepted(self._keeper.time_s())
        return self._enter(
            request,
            durable=False,
            watched=watched,
            resume=draft.resume,
            running_usage=draft.running_usage,
        )

    async def submit_durable(
        self,
        draft: Draft,
        *,
        key: str = "",
        watched: bool,
        connections: Seats | None = None,
    ) -> RequestId:
        """Take a request and return its id once the store has it; with a known key, the earlier id.

        Raises QueueFull, Unavailable (the store failed), KeyReused (the key names other content).
        """
        self.admit(draft, connections)
        # Not to be torn by a client that leaves: a stored request must get into the ledger.
        request = draft.accepted(self._keeper.time_s(), key=key)
        kept: Kept = await asyncio.shield(self._spawn(self._add(request, draft, watched)))
        if kept.fingerprint not in ("", request.fingerprint):
            raise KeyReused(key)
        if watched and kept.id != request.id:
            # Whoever came first may not have watched, and what a client has seen must not begin anew.
            self.handle(lg.OutputWatched(kept.id))
        return kept.id

    async def _add(self, request: StoredRequest, draft: Draft, watched: bool) -> Kept:
        self._adding += 1
        self._admission.bodies.take(request.held_bytes)
        try:
            with self.tenants.adding(request.owner):
                kept = await self._keeper.add(request)
        finally:
            self._adding -= 1
            self._admission.bodies.give(request.held_bytes)
        failpoints.at("gateway.driver.request_stored")
        if kept.id == request.id:
            self._enter(
                request,
                durable=True,
                watched=watched,
                resume=draft.resume,
                running_usage=draft.running_usage,
            )
        return kept

    def enter_line(
        self, request: StoredRequest, resume: Resume, origin: Origin, *, restored: bool
    ) -> None:
        """Take a request that `origin` has stored and will keep the end of; it was admitted before."""
        self._enter(
            request, durable=True, watched=False, resume=resume, origin=origin, restored=restored
        )

    def live(self, id: RequestId) -> Live | None:
        """An open request, or one whose end is being stored."""
        return self._live.get(id)

    def watch(self, id: RequestId) -> Live | None:
        """As `live`, for who is about to show the output to a client."""
        self.handle(lg.OutputWatched(id))
        return self._live.get(id)

    async def cancel(self, id: RequestId) -> Phase:
        """Cancel an open request; returns how it ended."""
        live = self._live[id]
        self.handle(lg.CancelAsked(id))
        return (await asyncio.shield(live.ended)).phase

    def turn_away(self, id: RequestId, retry_after_s: float) -> bool:
        """Shed a request that waits, as in overload, to come back then; False if it is past that."""
        self.handle(lg.ShedOrdered(id, ShedReason.SATURATED, retry_after_s))
        return self._ledger.row(id) is None

    def client_left(self, live: Live) -> None:
        """The client of a request in memory is gone."""
        self.handle(lg.CancelAsked(live.request.id))

    def _enter(
        self,
        request: StoredRequest,
        *,
        durable: bool,
        watched: bool,
        resume: Resume,
        running_usage: bool = False,
        restored: bool = False,
        origin: Origin | None = None,
    ) -> Live:
        live = Live(
            request,
            durable=durable,
            running_usage=running_usage,
            backlog=self._backlog,
            origin=origin,
        )
        self._live[request.id] = live
        self.tenants.opened(request.owner, request.id, line=origin is not None)
        self._admission.bodies.take(request.held_bytes)
        # The store's time to the loop's; an arrival never lies ahead.
        now_s, stored_s = self._loop.time(), self._keeper.time_s()
        arrival_s = now_s - max(0.0, stored_s - request.arrived_at)
        self.handle(
            lg.Submitted(
                request=request.meta(GatewayId(self._config.id), arrival_s=arrival_s),
                durable=durable,
                resume=resume,
                watched=watched,
                expires_s=now_s + (request.expires_at - stored_s),
                restored=restored,
            )
        )
        return live

    # ---------------------------------------------------------------- agents

    def connect(self, agent: AgentId, orders: Outbox[WorkOrder]) -> None:
        """Send an agent's orders here from now on, in place of an earlier stream of its own."""
        self._agents[agent] = orders

    def disconnect(self, agent: AgentId, orders: Outbox[WorkOrder]) -> None:
        """An agent's stream ended; nothing happens if another took its place."""
        if self._agents.get(agent) is orders:
            del self._agents[agent]
            self.handle(lg.AgentDisconnected(agent))

    def _pass_on(self, effect: lg.Tell) -> None:
        if type(effect.fact) is Pulled:
            origin = self._live[effect.fact.id].origin
            if origin is not None:
                origin.taken()
        self._tell(effect.fact)

    def _order(self, agent: AgentId, order: WorkOrder) -> None:
        orders = self._agents.get(agent)
        if orders is not None:
            orders.put(order)

    def _grant(self, effect: lg.Grant) -> None:
        try:
            payload = self._live[effect.id].payload(effect.attempt, effect.produced_tokens)
        except BadChunkError as error:
            self.handle(lg.FailAsked(effect.id, str(error)))
            return
        failpoints.at("gateway.driver.granted")
        self._order(effect.agent, payload)

    def _refuse(self, effect: lg.Refuse) -> None:
        self._order(effect.agent, Refused(effect.id, effect.reason))

    def _welcome(self, effect: lg.Welcome) -> None:
        self._order(effect.agent, Joined(effect.going_on))

    def _revoke(self, effect: lg.Revoke) -> None:
        self._order(effect.agent, Revoked(effect.id, effect.attempt))

    def _deliver(self, effect: lg.Deliver) -> None:
        chunk = effect.chunk
        live = self._live[chunk.id]
        failpoints.at("gateway.driver.output_counted")
        try:
            live.add(chunk)
        except BadChunkError as error:
            self.handle(lg.FailAsked(chunk.id, str(error)))
            return
        limit = self._config.limits.stored_output_bytes_max
        if live.output_bytes > limit:
            reason = f"the output exceeds gateway.limits.stored_output_bytes_max ({limit})"
            self.handle(lg.FailAsked(chunk.id, reason))

    # ---------------------------------------------------------------- the machine

    def handle(self, event: lg.Event) -> None:
        """Give the ledger an event and carry out what it wants, before anything else happens."""
        slept_s = self._alarm.slept_s()
        if slept_s:
            # Whatever woke this process first: an agent's grace must not run out by the gateway's own sleep.
            self._events.append(lg.Slept(slept_s))
        self._events.append(event)
        if self._handling:
            return
        self._handling = True
        try:
            while self._events:
                now_s = self._loop.time()
                for effect in self._ledger.handle(self._events.popleft(), now_s=now_s):
                    self._appliers[type(effect)](effect)
        finally:
            self._handling = False
        if type(event) is not lg.ChunkCame and not self._starting:
            self._alarm.arm(self._ledger.wakeup_s)

    def _estimated(self, effect: lg.Estimated) -> None:
        live = self._live[effect.id]
        if live.estimate is None:
            live.estimate = effect.estimate
        if live.origin is None:
            # A line waits since its batch was accepted, which tells nobody anything of his own wait.
            self._admission.estimated(effect.estimate)
        if live.estimated is not None and not live.estimated.done():
            live.estimated.set_result(None)

    def _end(self, effect: lg.EndRequest) -> None:
        live, record = self._live[effect.id], effect.record
        self.tenants.ended(live.request.owner, effect.id, line=live.origin is not None)
        answer = b""
        stored = effect.durable or live.keeps(record)
        try:
            if record.phase is Phase.FINISHED:
                live.finish_output(record)
            if stored:
                answer = live.response(record)
        except BadChunkError as error:
            record = failed_record(record, str(error))
        except (
            Exception
        ) as error:  # the edge: the ledger has let go of the request, so it must end here
            said = {"request": effect.id, "reason": kind_and_place(error)}
            log.error("cannot put an answer together", extra=said)
            record = failed_record(
                record, "the gateway cannot put the answer together; its log says why"
            )
        record = live.record = self._admission.ended(live.request, record, self._loop.time())
        if live.estimated is not None and not live.estimated.done():
            live.estimated.set_result(None)
        self._metrics.ended(live.request.model, live.request.slo_class, record)
        log.debug(
            "request ended",
            extra={"request": effect.id, "phase": record.phase.value, "reason": record.reason},
        )
        if not stored:
            self.remembered.add(live.request, self._keeper.time_s(), record)
            self._forget(effect.id)
            live.close(record)
            return
        ended_at = self._keeper.time_s()
        end = StoredEnd(id=effect.id, ended_at=ended_at, record=record, answer=answer)
        self._spawn(self._store_end(live, end))

    async def _store_end(self, live: Live, end: StoredEnd) -> None:
        failpoints.at("gateway.driver.end_recorded")
        if live.origin is not None:
            kept = await live.origin.keep_end(end)
        else:
            kept = await self._keeper.keep_end(end, live.request, stored=live.durable)
        failpoints.at("gateway.driver.end_stored")
        self._forget(end.id)
        live.record = kept.record
        live.close(kept.record)

    def _forget(self, id: RequestId) -> None:
        self._admission.bodies.give(self._live.pop(id).request.held_bytes)

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = self._loop.create_task(work)
        self._tasks[task] = None
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(task, None)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Exception) and not isinstance(error, QlmError):
            # Nobody need be waiting for it, and what it was to do is not done.
            log.error("a task of the gateway failed", extra={"reason": kind_and_place(error)})
