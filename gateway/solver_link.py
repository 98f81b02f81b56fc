"""The session with the solver: facts up, orders down, and questions on the side.

The gateway works on without a solver. Whenever a session opens the ledger announces everything anew, so nothing needs
to be kept for a solver that is away; and one that falls too far behind is left and met again the same way.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Protocol

import grpc

import failpoints
from protos import wire
from protos.doors import Doors
from protos.identity import SOLVER
from protos.outbox import Outbox, batches
from protos.pulse import Pulse
from protos.qlm.v1 import gateway_session_service_pb2 as pb
from protos.qlm.v1 import gateway_session_service_pb2_grpc as pb_grpc
from protos.speaking import SPOKEN, speaks
from protos.stopping import being_stopped, end_if_stopped
from qlm_core import ledger as lg
from qlm_core.config import GatewayConfig
from qlm_core.errors import InvalidRequest, NotFound, Unavailable, kind_and_place
from qlm_core.messages import (
    Alive,
    BatchForecast,
    BatchQuestion,
    BulkEstimate,
    Ended,
    EstimateGiven,
    FirstToken,
    Fleet,
    GatewayFact,
    GatewayHello,
    GatewayOrder,
    Pulled,
)
from qlm_core.messages import ShedOrder as Shed
from qlm_core.model import Estimate, GatewayId, ModelName, RequestId, RequestMeta

log = logging.getLogger(__name__)

# A message is closed when its facts take this much, or the share of its limit that is below.
FACTS_BYTES_MAX = 1_048_576
_MESSAGE_SHARE = 0.5
BACKOFF_S_MIN = 0.05
BACKOFF_S_MAX = 1.0
QUESTION_TIMEOUT_S = 5.0
# Two plans of a large fleet, behind those that others ask for.
WHAT_IF_TIMEOUT_S = 30.0
UNREACHED_S = 3.0

# Of the fleet, before any solver has said anything.
UNTOLD = Fleet(())

# Facts that no decision waits for; what must be planned for is told at once, and takes these along.
_UNHURRIED = (Pulled, FirstToken, Ended)

CHANNEL_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.enable_retries", 0),
)


class Handle(Protocol):
    """Takes a ledger event."""

    def __call__(self, event: lg.Event) -> None: ...


class Bulks(Protocol):
    """The batches of the gateway, as the session has to do with them."""

    def announce(self) -> None:
        """Tell a solver that has come what waits."""

    def estimated(self, said: BulkEstimate) -> None:
        """The solver says when a batch will be done."""


class SolverLink:
    """Dials the solver for as long as the gateway runs.

    Attributes:
        bulks: the gateway's batches, once it has them.
    """

    def __init__(
        self,
        config: GatewayConfig,
        *,
        work_address: Callable[[], str],
        doors: Doors,
        rng: random.Random,
    ) -> None:
        self.bulks: Bulks | None = None
        self._config = config
        self._work_address = work_address
        self._rng = rng
        self._facts: Outbox[GatewayFact] | None = None
        self._hang_up: Callable[[], object] | None = None
        self._heard = False
        self._silent = False
        self._fleet = UNTOLD
        # Room for an announcement of everything open and all that may happen while it is read.
        self._backlog_max = 4 * config.limits.open_requests_max + 1_000
        limit = config.limits.message_bytes_max
        self._facts_bytes_max = min(FACTS_BYTES_MAX, int(limit * _MESSAGE_SHARE))
        self._doors = doors
        self._asking: Any = {"metadata": doors.metadata, "timeout": QUESTION_TIMEOUT_S}
        self._channel, self._stub = self._dial()

    @property
    def connected(self) -> bool:
        """Whether a session is open."""
        return self._facts is not None

    def models(self) -> tuple[ModelName, ...]:
        """The models that the fleet can serve, as the solver last said."""
        return self._fleet.models

    @property
    def engines_up(self) -> bool:
        """Whether an engine of any agent is up, as the solver last said."""
        return self._fleet.up

    def serves(self, model: ModelName) -> bool | None:
        """Whether the fleet serves a model and has an engine that is up, as the solver last said; None if none ever did."""
        fleet = self._fleet
        return None if fleet is UNTOLD else model in fleet.models and fleet.up

    def tell(self, fact: GatewayFact) -> None:
        """Pass a fact on; dropped while there is no session."""
        facts = self._facts
        if facts is None:
            return
        if isinstance(fact, _UNHURRIED):
            facts.put_soon(fact)
        else:
            facts.put(fact)
        if facts.broken and self._hang_up is not None:
            self._hang_up()

    async def run(self, handle: Handle) -> None:
        """Keep a session open until cancelled."""
        backoff_s = BACKOFF_S_MIN
        while True:
            await self._renew()
            await self._reached()
            self._heard = self._silent = False
            backoff_s = min(2 * backoff_s, BACKOFF_S_MAX)
            try:
                await self._session(handle)
                log.info("the solver ended the session")
            except grpc.aio.AioRpcError as error:
                said = {"code": error.code().name, "details": error.details()}
                log.warning("lost the solver", extra=said)
                # Another gateway has this id; a fight over it would help neither.
                self._heard &= error.code() is not grpc.StatusCode.ABORTED
            except asyncio.CancelledError:
                if being_stopped():
                    raise
                if self._silent:
                    log.warning("nothing is heard of the solver; dialling again")
                else:
                    log.error("the solver read too slowly and was left")
            except wire.WireError as error:
                log.error("the solver speaks another version", extra={"error": str(error)})
                self._heard = False
            except Exception as error:  # a link that ends for good ends the gateway
                said = {"reason": kind_and_place(error)}
                log.error("the link to the solver failed; dialling again", extra=said)
                self._heard = False
            finally:
                self._facts = self._hang_up = None
            end_if_stopped()
            if self._heard:
                backoff_s = BACKOFF_S_MIN
            await asyncio.sleep(backoff_s * self._rng.uniform(0.5, 1.0))

    def _dial(self) -> tuple[grpc.aio.Channel, pb_grpc.GatewaySessionServiceAsyncStub]:
        """A channel to the solver, with the certificate of now."""
        self._version = self._doors.version
        limit = self._config.limits.message_bytes_max
        options = (
            *CHANNEL_OPTIONS,
            ("grpc.max_receive_message_length", limit),
            ("grpc.max_send_message_length", limit),
        )
        channel = self._doors.channel(self._config.solver, SOLVER, options)
        stub: pb_grpc.GatewaySessionServiceAsyncStub = pb_grpc.GatewaySessionServiceStub(channel)
        return channel, stub

    async def _renew(self) -> None:
        """Dial anew where this gateway has another certificate than the channel."""
        if self._version != self._doors.version:
            old = self._channel
            self._channel, self._stub = self._dial()
            await old.close(None)

    async def _reached(self) -> None:
        """Wait until somebody listens at the solver's address; say so if that takes longer than a start."""
        try:
            # Not `wait_for`, which loses a stop that comes as the channel becomes ready: the gateway would never end.
            async with asyncio.timeout(UNREACHED_S):
                await self._channel.channel_ready()
        except TimeoutError:
            address = self._config.solver
            said = {"address": address, "found": SPOKEN[await speaks(address, timeout_s=1.0)]}
            log.warning("no solver answers; trying on", extra=said)
            await self._channel.channel_ready()

    async def _session(self, handle: Handle) -> None:
        facts: Outbox[GatewayFact] = Outbox(limit=self._backlog_max)
        self._facts = facts
        facts.put(GatewayHello(GatewayId(self._config.id), self._work_address()))
        if self.bulks is not None:
            # Before the last word of the announcement, which is the ledger's.
            self.bulks.announce()
        handle(lg.SolverConnected())
        log.info("announced to the solver", extra={"facts": len(facts)})
        messages = _messages(facts, self._facts_bytes_max)
        call = self._stub.GatewaySession(messages, metadata=self._doors.metadata)
        self._hang_up = call.cancel
        pulse = Pulse(lambda: facts.put(Alive()), on_silence=self._silence)
        pulse.start()
        try:
            async for message in call:
                pulse.heard()
                self._heard = True
                for order in wire.gateway_orders_from_wire(message):
                    self._obey(order, handle)
        finally:
            pulse.stop()
            facts.close()
            call.cancel()

    def _silence(self) -> None:
        self._silent = True
        if self._hang_up is not None:
            self._hang_up()

    def _obey(self, order: GatewayOrder, handle: Handle) -> None:
        match order:
            case EstimateGiven(id, estimate):
                handle(lg.EstimateCame(id, estimate))
            case Shed(id, reason, retry_after_s):
                handle(lg.ShedOrdered(id, reason, retry_after_s))
            case BulkEstimate():
                if self.bulks is not None:
                    self.bulks.estimated(order)
            case Fleet():
                self._fleet = order

    async def close(self) -> None:
        """Hang up."""
        await self._channel.close(None)

    # ---------------------------------------------------------------- questions

    async def estimate(self, request: RequestMeta, *, now_s: float) -> Estimate:
        """The wait of a request that is not submitted. Raises Unavailable, InvalidRequest."""
        question = pb.EstimateRequest(request=wire.meta_to_wire(request, now_s))
        try:
            answer = await self._stub.Estimate(question, **self._asking)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                raise InvalidRequest(
                    "model", "nobody serves it now", "Start an agent for it.", code="not_served"
                ) from None
            raise _no_answer(error) from None
        try:
            return wire.estimate_from_wire(answer.estimate)
        except wire.WireError as error:
            raise Unavailable(f"the solver answers what cannot be read ({error})") from None

    async def estimate_batch(self, question: BatchQuestion) -> BatchForecast:
        """When a batch would be done that is not submitted. Raises Unavailable, InvalidRequest."""
        asked = wire.batch_question_to_wire(question)
        try:
            answer = await self._stub.EstimateBatch(asked, **self._asking)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                raise InvalidRequest(
                    "model", "nobody serves it now", "Start an agent for it.", code="not_served"
                ) from None
            raise _no_answer(error) from None
        try:
            return wire.batch_forecast_from_wire(answer)
        except wire.WireError as error:
            raise Unavailable(f"the solver answers what cannot be read ({error})") from None

    async def view(self, *, groups_max: int = 0) -> bytes:
        """Groups, queues, agents and plan as JSON. Raises Unavailable.

        Args:
            groups_max: of each queue so many groups, its first; 0: as many as a message has room for.
        """
        try:
            answer = await self._stub.View(pb.ViewRequest(groups_max=groups_max), **self._asking)
        except grpc.aio.AioRpcError as error:
            raise _no_answer(error) from None
        return answer.view_json

    async def explain(self, id: RequestId) -> bytes:
        """Why a request stands where it stands, as JSON. Raises NotFound, Unavailable."""
        try:
            answer = await self._stub.Explain(pb.ExplainRequest(id=id), **self._asking)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                raise NotFound(f"id: the solver knows no request {id[:64]!r}") from None
            raise _no_answer(error) from None
        return answer.explanation_json

    async def what_if(self, changes: Mapping[str, int]) -> bytes:
        """What would change with more or fewer instances, as JSON. Raises InvalidRequest, Unavailable."""
        try:
            asking = self._asking | {"timeout": WHAT_IF_TIMEOUT_S}
            answer = await self._stub.WhatIf(pb.WhatIfRequest(changes=changes), **asking)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
                problem, _, remedy = str(error.details()).partition(". ")
                raise InvalidRequest("", problem, remedy) from None
            raise _no_answer(error) from None
        return answer.answer_json


def _no_answer(error: grpc.aio.AioRpcError) -> Unavailable:
    return Unavailable(f"the solver does not answer ({error.code().name}); try again later")


async def _messages(
    facts: Outbox[GatewayFact], bytes_max: int
) -> AsyncIterator[pb.GatewaySessionRequest]:
    loop = asyncio.get_running_loop()
    while taken := await facts.take():
        for part in batches(taken, wire.fact_bytes, bytes_max):
            yield wire.facts_to_wire(part, loop.time())
            failpoints.at("gateway.solver_link.announcing")
