"""The link to one gateway: one work stream, dialled again whenever it breaks.

What is to be sent, and sent again after a break, is kept by a `WorkLog` that outlives streams; a stream takes all that has
accumulated as one message whenever it is free. The attempts of a gateway that stays away too long are forgotten.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

import grpc

import failpoints
from agents.driver import Driver
from agents.streams import WRITTEN, Backoff, begin, is_takeover, open_channel, reason_of
from protos import wire
from protos.doors import Doors
from protos.identity import Part, Role
from protos.outbox import batches
from protos.pulse import Pulse
from protos.qlm.v1 import work_service_pb2 as work_pb
from protos.qlm.v1 import work_service_pb2_grpc as work_grpc
from protos.stopping import being_stopped, end_if_stopped, said_so
from qlm_core.config import AgentConfig
from qlm_core.executor import GatewayLost, GatewayUp, Granted
from qlm_core.executor.work_log import Outgoing, WorkLog
from qlm_core.messages import (
    Alive,
    Attempt,
    AttemptEnded,
    AttemptReturned,
    Chunk,
    Joined,
    Payload,
    Pull,
    Revoked,
    WorkEvent,
    WorkHello,
    WorkOrder,
)
from qlm_core.model import AgentId, GatewayId

log = logging.getLogger("qlm.agent")

_WorkCall = grpc.aio.StreamStreamCall[work_pb.WorkRequest, work_pb.WorkResponse]

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
        doors: Doors,
        on_away: Callable[[], None],
    ) -> None:
        self.gateway = gateway
        self.address = address
        self.connected = False
        self.away = True
        self._on_away = on_away
        self._agent = agent
        self._doors = doors
        self._driver = driver
        self._log = WorkLog(
            kept_bytes_max=agent.backlog_bytes_max, events_max=agent.backlog_events_max
        )
        self._ready = asyncio.Event()
        self._forget: asyncio.TimerHandle | None = None
        self._closing = False
        self._task = asyncio.create_task(self._run(), name=f"gateway {gateway}")

    def put(self, event: Outgoing) -> None:
        """Send an event, in order, when the stream allows."""
        self._log.put(event, now_s=self._driver.now_s())
        self._ready.set()

    async def close(self) -> None:
        """Send what is left, then hang up."""
        self._closing = True
        self._ready.set()
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
                self.address,
                to=Part(Role.GATEWAY, self.gateway),
                doors=self._doors,
                message_bytes_max=self._agent.message_bytes_max,
            ) as channel:
                taken_over = False
                try:
                    stub = work_grpc.WorkServiceStub(channel)
                    await self._session(stub.Work(WRITTEN, metadata=self._doors.metadata))
                except (grpc.aio.AioRpcError, TimeoutError, wire.WireError) as error:
                    taken_over = is_takeover(error)
                    said = {"gateway": self.gateway, "reason": reason_of(error)}
                    leaving = self._driver.executor.instance_state().draining
                    if self.connected and (leaving or said_so(error)):
                        log.info("gateway stream ended", extra=said)
                    elif self.connected:
                        log.warning("gateway stream broke", extra=said)
                    elif backoff.worth_telling():
                        said["address"] = self.address
                        log.warning("cannot join the gateway; trying on", extra=said)
                except asyncio.CancelledError:
                    if self._closing or being_stopped():
                        raise
                except Exception as error:  # a link that ends for good makes the agent useless
                    kind = type(error).__name__
                    said = {"gateway": self.gateway, "reason": kind}
                    log.error("gateway link failed; dialling again", extra=said)
                finally:
                    if self.connected and not taken_over:
                        backoff.reset()
                    self._lost()
            end_if_stopped()
            if not self._closing:
                await asyncio.sleep(backoff.pause_s())

    async def _session(self, call: _WorkCall) -> None:
        """One stream from its hello to its end. Raises when it breaks."""
        pulse = Pulse(lambda: self.put(Alive()), on_silence=lambda: self._silence(call))
        pulse.start()
        try:
            running = self._log.hello()
            hello = WorkHello(AgentId(self._agent.name), running)
            await begin(call, wire.work_to_wire([hello]))
            failpoints.at("agents.gateway_link.hello_sent")
            writer = asyncio.create_task(self._write(call))
            # An agent that reads and cannot write would look well and be mute.
            writer.add_done_callback(lambda done: self._written(done, call))
            try:
                async for message in call:
                    pulse.heard()
                    for order in wire.work_orders_from_wire(message):
                        self._obey(order)
            finally:
                writer.cancel()
                await asyncio.wait([writer])
        finally:
            pulse.stop()
            call.cancel()

    def _silence(self, call: _WorkCall) -> None:
        said = {"gateway": self.gateway, "address": self.address}
        log.warning("nothing is heard of the gateway; dialling again", extra=said)
        call.cancel()

    def _obey(self, order: WorkOrder) -> None:
        match order:
            case Joined(going_on):
                self._joined(going_on)
            case Payload():
                failpoints.at("agents.gateway_link.payload_came")
                continued = order.produced_tokens > 0
                self._log.begin(order.id, order.attempt, continued=continued)
                evictable = self._driver.engine.evictable(order)
                self._driver.post(Granted(self.gateway, order, evictable))
            case Revoked(id, attempt):
                self._log.forget(id, attempt)
                self._driver.post(order)
            case Alive():
                pass
            case _:
                self._driver.post(order)

    def _written(self, writer: asyncio.Task[None], call: _WorkCall) -> None:
        """The writer has ended. A broken stream tells its reader too; of anything else nobody else would know."""
        error = None if writer.cancelled() else writer.exception()
        if error is None:
            return
        call.cancel()
        if not isinstance(error, grpc.aio.AioRpcError | asyncio.InvalidStateError):
            kind = type(error).__name__
            log.error("writer failed", extra={"gateway": self.gateway, "reason": kind})

    async def _write(self, call: _WorkCall) -> None:
        while True:
            await self._ready.wait()
            self._ready.clear()
            if self._log.full:
                log.warning("gateway reads too slowly", extra={"gateway": self.gateway})
                call.cancel()
                return
            events = self._log.take()
            if events:
                await self._send(call, events)
                _pass_moments(events)
            if self._closing and not len(self._log):
                await call.done_writing()
                return

    async def _send(self, call: _WorkCall, events: Sequence[WorkEvent]) -> None:
        """Write events in order, in messages that are not too large."""
        bytes_max = int(self._agent.message_bytes_max * _MESSAGE_SHARE)
        for batch in batches(events, _weight, bytes_max):
            await call.write(wire.work_to_wire(batch))

    def _joined(self, going_on: Sequence[Attempt]) -> None:
        """The gateway has answered the hello."""
        if self._forget is not None:
            self._forget.cancel()
            self._forget = None
        self.connected = True
        self.away = False
        self._log.welcome(going_on)
        self._ready.set()
        said = {"gateway": self.gateway, "address": self.address, "going_on": len(going_on)}
        log.info("gateway joined", extra=said)
        self._driver.post(GatewayUp(self.gateway))

    def _lost(self) -> None:
        if not self.connected:
            return
        self.connected = False
        self._driver.post(GatewayLost(self.gateway))
        if not self._closing:
            self._wait_for(self._driver.awake_s() + self._agent.gateway_grace_s)

    def _wait_for(self, until_awake_s: float) -> None:
        """Give the gateway until then to come back, in time that this process is awake."""
        left_s = until_awake_s - self._driver.awake_s()
        loop = asyncio.get_running_loop()
        if left_s > 0.0:
            self._forget = loop.call_later(left_s, self._wait_for, until_awake_s)
            return
        self._forget = None
        self.away = True
        self._give_up("away too long")
        self._on_away()

    def _give_up(self, reason: str) -> None:
        """Forget the gateway's attempts: nobody can take their output."""
        log.warning("attempts given up", extra={"gateway": self.gateway, "reason": reason})
        self._driver.post(GatewayLost(self.gateway, forget=True))
        self._log.clear()


def _pass_moments(events: Sequence[WorkEvent]) -> None:
    """Name what has just been sent."""
    for event in events:
        if isinstance(event, Pull):
            failpoints.at("agents.gateway_link.after_pull")
        elif isinstance(event, AttemptEnded | AttemptReturned):
            failpoints.at("agents.gateway_link.end_sent")


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
    if isinstance(event, WorkHello):
        return _EVENT_BYTES * (1 + len(event.running))
    return _EVENT_BYTES
