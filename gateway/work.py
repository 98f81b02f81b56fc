"""The work streams: payloads down to agents, their output up into the ledger."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

import grpc

import failpoints
from gateway.driver import Driver
from protos import wire
from protos.doors import Claims, Rejections
from protos.outbox import Outbox, batches
from protos.pulse import Pulse
from protos.qlm.v1 import work_service_pb2 as pb
from protos.qlm.v1 import work_service_pb2_grpc as pb_grpc
from protos.stopping import GATEWAY_STOPS
from qlm_core import ledger as lg
from qlm_core.errors import kind_and_place
from qlm_core.messages import (
    Alive,
    AttemptEnded,
    AttemptReturned,
    Chunk,
    Joined,
    Payload,
    Pull,
    Refused,
    WorkEvent,
    WorkHello,
    WorkOrder,
)
from qlm_core.model import AgentId
from qlm_core.outcome import PullRefusal
from qlm_core.presence import SILENCE_S

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[pb.WorkRequest, pb.WorkResponse]

# An agent that leaves this many orders unread has its stream ended.
ORDERS_MAX = 100_000
# Payloads are the large orders; a message is closed when they reach this share of its limit.
_MESSAGE_SHARE = 0.5
# More than an order takes in a message beside its texts, and than a token id does.
_ORDER_BYTES = 128
_ID_BYTES = 5


class WorkServicer(pb_grpc.WorkServiceServicer):
    """Serves agents. One stream per agent; a newer one takes the place of the older."""

    def __init__(self, driver: Driver, *, message_bytes_max: int, rejections: Rejections) -> None:
        self._driver = driver
        self._message_bytes_max = message_bytes_max
        self._order_bytes_max = int(message_bytes_max * _MESSAGE_SHARE)
        self._streams: dict[AgentId, _Stream] = {}
        self._rejections = rejections

    async def Work(
        self, request_iterator: AsyncIterator[pb.WorkRequest], context: Context
    ) -> AsyncIterator[pb.WorkResponse]:
        """One agent's stream, until either side ends it."""
        claims = Claims(context, "agents", self._rejections)
        stream = _Stream(self._driver, self._streams, claims)
        reader = asyncio.create_task(stream.read(request_iterator))
        stream.pulse.start()
        try:
            while orders := await stream.orders.take():
                sendable = [self._sendable(order) for order in orders]
                for batch in batches(sendable, _weight, self._order_bytes_max):
                    yield wire.work_orders_to_wire(batch)
            if stream.refusal is not None:
                await context.abort(*stream.refusal)
        finally:
            stream.close()
            reader.cancel()

    def _sendable(self, order: WorkOrder) -> WorkOrder:
        """The order, or a refusal in place of a payload that no message holds.

        Sent, it would break the stream with all that runs on it. Instead its request fails, alone.
        """
        size, limit = _weight(order), self._message_bytes_max
        if not isinstance(order, Payload) or size <= limit:
            return order
        reason = (
            f"with its output so far it takes {size} bytes, more than "
            f"gateway.limits.message_bytes_max ({limit}); raise that and message_bytes_max of the agents"
        )
        self._driver.handle(lg.FailAsked(order.id, reason))
        return Refused(order.id, PullRefusal.DONE)

    def close(self) -> None:
        """End all streams; agents dial again and come back to the next start of this gateway."""
        for stream in list(self._streams.values()):
            stream.refuse(grpc.StatusCode.UNAVAILABLE, GATEWAY_STOPS)


class _Stream:
    """One agent's stream."""

    def __init__(self, driver: Driver, streams: dict[AgentId, _Stream], claims: Claims) -> None:
        self.orders: Outbox[WorkOrder] = Outbox(limit=ORDERS_MAX)
        self.refusal: tuple[grpc.StatusCode, str] | None = None
        self.pulse = Pulse(lambda: self.orders.put(Alive()), on_silence=self._silence)
        self._driver = driver
        self._streams = streams
        self._claims = claims
        self._agent: AgentId | None = None
        self._closed = False

    async def read(self, messages: AsyncIterator[pb.WorkRequest]) -> None:
        """Pass on what the agent sends, until it ends the stream or breaks the protocol."""
        try:
            async for message in messages:
                self.pulse.heard()
                for event in wire.work_from_wire(message):
                    if self._closed:
                        return
                    self._take_alone(event)
        except wire.WireError as error:
            self.refuse(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except Exception as error:
            if self._closed:
                return  # this side has ended the stream, which ends the reading too
            log.error("work stream failed", extra={"reason": kind_and_place(error)})
            self.refuse(grpc.StatusCode.INTERNAL, "the stream failed; see the gateway's log")
        finally:
            self.orders.close()

    def refuse(self, code: grpc.StatusCode, reason: str) -> None:
        """End the stream with a status."""
        if self.refusal is None:
            self.refusal = (code, reason)
        self.close()

    def close(self) -> None:
        """Nothing more is read or written; the ledger starts to wait for the agent."""
        if self._closed:
            return
        self._closed = True
        self.pulse.stop()
        self.orders.close()
        agent = self._agent
        if agent is not None and self._streams.get(agent) is self:
            del self._streams[agent]
            self._driver.disconnect(agent, self.orders)
            log.info("agent disconnected", extra={"agent": agent})

    def _silence(self) -> None:
        reason = f"nothing was heard for {SILENCE_S:g} s; join again"
        self.refuse(grpc.StatusCode.UNAVAILABLE, reason)

    def _take_alone(self, event: WorkEvent) -> None:
        """Take an event; what goes wrong with it ends its request, never the stream that others share."""
        try:
            self._take(event)
        except Exception as error:
            id = event.id if isinstance(event, Chunk | AttemptEnded | AttemptReturned) else None
            log.error("work event failed", extra={"request": id, "reason": kind_and_place(error)})
            if id is not None:
                reason = "the gateway could not handle what its engine sent"
                self._driver.handle(lg.FailAsked(id, reason))

    def _take(self, event: WorkEvent) -> None:
        agent = self._agent
        if agent is None or isinstance(event, WorkHello):
            self._open(event)
            return
        match event:
            case Chunk():
                self._driver.handle(lg.ChunkCame(agent, event))
            case Pull(ids):
                self._driver.handle(lg.PullAsked(agent, ids))
            case AttemptEnded():
                self._driver.handle(lg.AttemptFinished(agent, event))
            case AttemptReturned():
                self._driver.handle(lg.AttemptCameBack(agent, event))

    def _open(self, event: WorkEvent) -> None:
        if not isinstance(event, WorkHello):
            self.refuse(grpc.StatusCode.FAILED_PRECONDITION, "the first event must be hello")
            return
        if self._agent is not None:
            self.refuse(grpc.StatusCode.FAILED_PRECONDITION, "hello came twice")
            return
        if not event.agent:
            self.refuse(grpc.StatusCode.INVALID_ARGUMENT, "hello.agent_id: empty")
            return
        wrong = self._claims.wrong(event.agent)
        if wrong:
            self.refuse(grpc.StatusCode.PERMISSION_DENIED, wrong)
            return
        failpoints.at("gateway.work.hello_came")
        older = self._streams.get(event.agent)
        if older is not None:
            older.refuse(
                grpc.StatusCode.ABORTED,
                "a newer stream of this agent took over; names must be unique",
            )
        self._agent = event.agent
        self._streams[event.agent] = self
        self._driver.connect(event.agent, self.orders)
        log.info("agent connected", extra={"agent": event.agent, "running": len(event.running)})
        self._driver.handle(lg.AgentConnected(event.agent, event.running))


def _weight(order: WorkOrder) -> int:
    """At most this many bytes of a message."""
    if isinstance(order, Joined):
        return _ORDER_BYTES * (1 + len(order.going_on))
    if not isinstance(order, Payload):
        return _ORDER_BYTES
    texts = len(order.resume_text.encode()) + len(order.model.encode())
    texts += sum(len(name) + len(text) + 8 for name, text in order.headers)
    return _ORDER_BYTES + len(order.body) + texts + _ID_BYTES * len(order.resume_ids)
