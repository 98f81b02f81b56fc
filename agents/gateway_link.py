"""The link to one gateway: one work stream, dialled again whenever it breaks.

What is to be sent accumulates in an outbox that outlives streams; a stream takes all of it as one message
whenever it is free. A new stream begins with the attempts that are still here, each with the number of chunks
sent so far, and repeats the ends that may have been lost with the old stream. The attempts of a gateway that stays away
too long are forgotten.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence

import grpc

from agents.driver import Driver, Run
from agents.streams import WRITTEN, Backoff, is_takeover, open_channel
from protos import wire
from protos.outbox import Outbox, batches
from protos.qlm.v1 import work_service_pb2 as work_pb
from protos.qlm.v1 import work_service_pb2_grpc as work_grpc
from qlm_core.config import AgentConfig
from qlm_core.executor import GatewayLost, GatewayUp, Granted
from qlm_core.messages import (
    Attempt,
    AttemptEnded,
    AttemptReturned,
    Chunk,
    Payload,
    Pull,
    WorkEvent,
    WorkHello,
)
from qlm_core.model import AgentId, GatewayId, RequestId

log = logging.getLogger("qlm.agent")

_WorkCall = grpc.aio.StreamStreamCall[work_pb.WorkRequest, work_pb.WorkResponse]
_End = AttemptEnded | AttemptReturned
_Outgoing = Chunk | Pull | _End

# Ends that a broken stream may have swallowed: the newest ones sent within this time.
_REPEATED_S = 10.0
_REPEATED_MAX = 2048
# A message is closed when its chunks reach this share of its limit.
_MESSAGE_SHARE = 0.5
# More than an event takes in a message beside its texts, and than a token id does.
_EVENT_BYTES = 128
_ID_BYTES = 5
# A gateway has this long to end its side once the agent has sent all.
_HANG_UP_S = 2.0


class GatewayLink:
    """Talks to one gateway until it is closed or abandoned.

    Args:
        on_away: called when the gateway has been away for longer than its grace.

    Attributes:
        away: whether that is so, or the gateway was never reached: nothing of its is here.
    """

    def __init__(
        self,
        gateway: GatewayId,
        address: str,
        agent: AgentConfig,
        driver: Driver,
        *,
        on_away: Callable[[], None],
    ) -> None:
        self.gateway = gateway
        self.address = address
        self.connected = False
        self.away = True
        self._on_away = on_away
        self._agent = agent
        self._driver = driver
        self._outbox = self._new_outbox()
        # Ended attempts whose end is not sent yet, and ends that were sent lately.
        self._ending: dict[RequestId, Run] = {}
        self._ends: deque[tuple[float, _End, int]] = deque(maxlen=_REPEATED_MAX)
        self._forget: asyncio.TimerHandle | None = None
        self._closing = False
        self._task = asyncio.create_task(self._run(), name=f"gateway {gateway}")

    def put(self, event: _Outgoing) -> None:
        """Send an event, in order, when the stream allows."""
        self._outbox.put(event)
        if isinstance(event, AttemptEnded | AttemptReturned):
            run = self._driver.runs.get(event.id)
            if run is None or run.attempt != event.attempt:
                run = Run(event.id, event.attempt, self)
            self._ending[event.id] = run

    async def close(self) -> None:
        """Send what is left, then hang up."""
        self._closing = True
        self._outbox.close()
        if not self.connected:
            self._task.cancel()
        if self._forget is not None:
            self._forget.cancel()
        await asyncio.wait([self._task], timeout=_HANG_UP_S)
        self._task.cancel()
        await asyncio.wait([self._task])

    def abandon(self, reason: str) -> asyncio.Task[None]:
        """Forget the gateway at once; the task that is returned ends when the connection is closed."""
        said = {"gateway": self.gateway, "address": self.address, "reason": reason}
        log.info("gateway abandoned", extra=said)
        self._closing = True
        self.connected = False
        if self._forget is not None:
            self._forget.cancel()
        if not self.away:
            self._give_up(reason)
        self._task.cancel()
        return self._task

    def move(self, address: str) -> None:
        """The gateway has come back elsewhere: dial there from now on."""
        self.address = address

    async def _run(self) -> None:
        backoff = Backoff(self._agent.reconnect_s_max)
        while not self._closing:
            async with open_channel(
                self.address, message_bytes_max=self._agent.message_bytes_max
            ) as channel:
                taken_over = False
                try:
                    await self._session(work_grpc.WorkServiceStub(channel).Work(WRITTEN))
                except (grpc.aio.AioRpcError, wire.WireError) as error:
                    taken_over = is_takeover(error)
                    said = {"gateway": self.gateway, "reason": _reason(error)}
                    if self.connected:
                        log.warning("gateway stream broke", extra=said)
                    elif backoff.worth_telling():
                        said["address"] = self.address
                        log.warning("cannot join the gateway; trying on", extra=said)
                except asyncio.CancelledError:
                    task = asyncio.current_task()
                    if self._closing or (task is not None and task.cancelling()):
                        raise
                except Exception as error:  # a link that ends for good makes the agent useless
                    kind = type(error).__name__
                    said = {"gateway": self.gateway, "reason": kind}
                    log.error("gateway link failed; dialling again", extra=said)
                finally:
                    if self.connected and not taken_over:
                        backoff.reset()
                    self._lost()
            if not self._closing:
                await asyncio.sleep(backoff.pause_s())

    async def _session(self, call: _WorkCall) -> None:
        """One stream from its hello to its end. Raises when it breaks."""
        hello, repeated = self._hello()
        try:
            await self._send(call, [hello, *repeated])
            self._joined()
            writer = asyncio.create_task(self._write(call))
            # An agent that reads and cannot write would look well and be mute.
            writer.add_done_callback(lambda done: self._written(done, call))
            try:
                await self._read(call)
            finally:
                writer.cancel()
                await asyncio.wait([writer])
        finally:
            call.cancel()

    def _written(self, writer: asyncio.Task[None], call: _WorkCall) -> None:
        """The writer has ended. A broken stream tells its reader too; of anything else nobody else would know."""
        error = None if writer.cancelled() else writer.exception()
        if error is None:
            return
        call.cancel()
        if not isinstance(error, grpc.aio.AioRpcError | asyncio.InvalidStateError):
            kind = type(error).__name__
            log.error("writer failed", extra={"gateway": self.gateway, "reason": kind})

    def _hello(self) -> tuple[WorkHello, list[_End]]:
        """What is still here of this gateway's, and the ends to repeat."""
        runs = [run for run in self._driver.runs.values() if run.link is self]
        going_on = [
            Attempt(run.id, run.attempt, run.chunks_sent) for run in (*runs, *self._ending.values())
        ]
        held = [
            Attempt(item.ref.id, item.attempt)
            for item in self._driver.executor.batch.held.values()
            if item.ref.gateway == self.gateway
        ]
        since_s = self._driver.now_s() - _REPEATED_S
        repeated = [(end, sent) for sent_s, end, sent in self._ends if sent_s >= since_s]
        over = [Attempt(end.id, end.attempt, sent) for end, sent in repeated]
        hello = WorkHello(AgentId(self._agent.name), (*going_on, *held, *over))
        return hello, [end for end, _ in repeated]

    async def _read(self, call: _WorkCall) -> None:
        async for message in call:
            for order in wire.work_orders_from_wire(message):
                if isinstance(order, Payload):
                    evictable = self._driver.engine.evictable(order)
                    self._driver.post(Granted(self.gateway, order, evictable))
                else:
                    self._driver.post(order)

    async def _write(self, call: _WorkCall) -> None:
        while events := await self._outbox.take():
            # All count as sent: what a breaking stream swallows is then missed on the other side.
            self._count(events)
            await self._send(call, events)
        if self._closing:
            await call.done_writing()
        else:
            # Too much has piled up: what is missing cannot be made good, so start anew.
            self._give_up("backlog")
            call.cancel()

    async def _send(self, call: _WorkCall, events: Sequence[WorkEvent]) -> None:
        """Write events in order, in messages that are not too large."""
        bytes_max = int(self._agent.message_bytes_max * _MESSAGE_SHARE)
        for batch in batches(events, _weight, bytes_max):
            await call.write(wire.work_to_wire(batch))

    def _count(self, events: list[_Outgoing]) -> None:
        """Note what goes out with the next message."""
        runs, ending = self._driver.runs, self._ending
        for event in events:
            if type(event) is Chunk:
                run = runs.get(event.id) or ending.get(event.id)
                if run is not None and run.attempt == event.attempt:
                    run.chunks_sent += 1
            elif isinstance(event, AttemptEnded | AttemptReturned):
                run = ending.pop(event.id, None)
                sent = run.chunks_sent if run is not None else 0
                self._ends.append((self._driver.now_s(), event, sent))

    def _joined(self) -> None:
        if self._forget is not None:
            self._forget.cancel()
            self._forget = None
        self.connected = True
        self.away = False
        log.info("gateway joined", extra={"gateway": self.gateway, "address": self.address})
        self._driver.post(GatewayUp(self.gateway))

    def _lost(self) -> None:
        if not self.connected:
            return
        self.connected = False
        self._driver.post(GatewayLost(self.gateway))
        if not self._closing:
            loop = asyncio.get_running_loop()
            self._forget = loop.call_later(self._agent.gateway_grace_s, self._stayed_away)

    def _stayed_away(self) -> None:
        self._forget = None
        self.away = True
        self._give_up("away too long")
        self._on_away()

    def _give_up(self, reason: str) -> None:
        """Forget the gateway's attempts: nobody can take their output."""
        log.warning("attempts given up", extra={"gateway": self.gateway, "reason": reason})
        self._driver.post(GatewayLost(self.gateway, forget=True))
        self._outbox = self._new_outbox()
        self._ends.clear()
        self._ending.clear()

    def _new_outbox(self) -> Outbox[_Outgoing]:
        return Outbox(limit=self._agent.backlog_events_max)


def _weight(event: WorkEvent) -> int:
    """At most this many bytes of a message, but for what a pull asks for."""
    if isinstance(event, Chunk):
        ids = event.ids
        told = 0 if ids is None else len(ids.output) + len(ids.prompt)
        return _EVENT_BYTES + len(event.data) + _ID_BYTES * told
    if isinstance(event, AttemptEnded):
        return _EVENT_BYTES + len(event.closing) + 4 * len(event.error)
    if isinstance(event, AttemptReturned):
        return _EVENT_BYTES + 4 * len(event.detail)
    return _EVENT_BYTES


def _reason(error: Exception) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return str(error)
