"""Load over gRPC: one Submit stream per request, taken up again with WatchRequest when the connection is lost."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterable
from types import TracebackType

import grpc

from protos import wire
from protos.qlm.v1 import client_service_pb2 as pb
from protos.qlm.v1 import client_service_pb2_grpc as rpc
from protos.qlm.v1 import types_pb2 as types
from protos.speaking import speaks
from qlm import calls, trust
from qlm.load import Shot
from qlm.report import Fate, Outcome

CONNECT_S = 5.0
RETRY_FIRST_S = 0.1
RETRY_LAST_S = 2.0
RETRY_STATUSES = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.CANCELLED,
)
_FATES = {
    types.PHASE_FINISHED: Fate.FINISHED,
    types.PHASE_CANCELLED: Fate.CANCELLED,
    types.PHASE_SHED: Fate.SHED,
    types.PHASE_FAILED: Fate.FAILED,
}


class GrpcTransport:
    """A gateway's gRPC client API.

    Args:
        address: host:port of the gateway.
        api_key: sent as a bearer token unless empty.
        ca: as of `qlm.client.Client`.
        patience_s: how long a request may be out of touch before it is given up as lost.
    """

    def __init__(
        self, address: str, *, api_key: str = "", ca: str = "", patience_s: float = 60.0
    ) -> None:
        self._address = address
        self._ca = ca
        self._metadata = calls.metadata(api_key)
        self._patience_s = patience_s
        self._run = uuid.uuid4().hex[:12]

    async def __aenter__(self) -> GrpcTransport:
        self._channel = trust.aio_channel(
            self._address,
            self._ca,
            calls.CHANNEL_OPTIONS,
        )
        try:
            async with asyncio.timeout(CONNECT_S):
                await self._channel.channel_ready()
        except TimeoutError:
            await self._channel.close(None)
            if await speaks(self._address) == "http":
                raise calls.speaks_http(self._address) from None
            raise calls.no_gateway(self._address) from None
        self._stub = rpc.ClientServiceStub(self._channel)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._channel.close(None)

    async def send(self, shot: Shot, outcome: Outcome) -> None:
        """Send one request; a lost stream is taken up again where the service still knows it."""
        loop = asyncio.get_running_loop()
        following = _Following(outcome, loop.time())
        last_touch_s = loop.time()
        pause_s = RETRY_FIRST_S
        while True:
            try:
                async for reply in self._stream(shot, following.id):
                    last_touch_s, pause_s = loop.time(), RETRY_FIRST_S
                    following.take(reply.event, last_touch_s)
                    if following.ended:
                        return
                outcome.reason = "the stream ended early"
            except grpc.aio.AioRpcError as error:
                outcome.reason = f"{error.code().name}: {error.details()}"
                if error.code() not in RETRY_STATUSES:
                    outcome.fate = _refused(error.code(), known=following.id != "")
                    return
            if loop.time() - last_touch_s > self._patience_s:
                outcome.fate = Fate.LOST
                return
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, RETRY_LAST_S)

    def _stream(
        self, shot: Shot, id: str
    ) -> AsyncIterable[pb.SubmitResponse] | AsyncIterable[pb.WatchRequestResponse]:
        if id:
            return self._stub.WatchRequest(pb.WatchRequestRequest(id=id), metadata=self._metadata)
        request = pb.NewRequest(
            model=shot.request.model,
            body_json=shot.body,
            endpoint=types.ENDPOINT_COMPLETIONS,
            slo_class=shot.request.slo_class,
            idempotency_key=f"{self._run}-{shot.number}",
        )
        return self._stub.Submit(pb.SubmitRequest(request=request), metadata=self._metadata)


class _Following:
    """What is known of one request while its events come in."""

    def __init__(self, outcome: Outcome, sent_s: float) -> None:
        self.id = ""
        self.ended = False
        self._outcome = outcome
        self._sent_s = sent_s

    def take(self, event: pb.RequestEvent, now_s: float) -> None:
        outcome = self._outcome
        kind = event.WhichOneof("kind")
        if kind == "chunk":
            if event.chunk.tokens:
                outcome.token_came(now_s - self._sent_s)
        elif kind == "accepted":
            self.id = event.accepted.id
            if event.accepted.HasField("estimate"):
                outcome.estimate = wire.estimate_from_wire(event.accepted.estimate)
        elif kind == "ended":
            self.ended = True
            outcome.fate = _FATES.get(event.ended.phase, Fate.FAILED)
            outcome.reason = event.ended.reason
            outcome.e2e_s = now_s - self._sent_s
            outcome.output_tokens = event.ended.usage.output_tokens
            outcome.evictions = event.ended.evictions
            if event.ended.HasField("estimate"):
                outcome.estimate = wire.estimate_from_wire(event.ended.estimate)


def _refused(code: grpc.StatusCode, *, known: bool) -> Fate:
    """What a final status means: a request that was accepted and is no longer known is lost."""
    if known:
        return Fate.LOST
    return Fate.SHED if code is grpc.StatusCode.RESOURCE_EXHAUSTED else Fate.FAILED
