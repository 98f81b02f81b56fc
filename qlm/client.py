"""The Python client of a gateway's gRPC interface: `Client` blocks, `AsyncClient` is its twin for asyncio.

Every request submitted here is durable: once it is accepted it is run and its answer kept, whatever becomes of this
client or of any process of the fleet. Bodies are those of OpenAI's API, with `messages` for a chat or `prompt` for a
completion. Calls raise QlmError: `Busy` when the queue is full, `NotFound` for an unknown id or model, `Unavailable` when
no gateway answers. docs/api.md has examples.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, TypeVar

import grpc
import msgspec

from protos import wire
from protos.qlm.v1 import client_service_pb2 as pb
from protos.qlm.v1 import client_service_pb2_grpc as rpc
from qlm import dial
from qlm.dial import Busy
from qlm_core.model import Estimate, Phase, Slo

__all__ = [
    "Accepted",
    "AsyncClient",
    "Busy",
    "Client",
    "Ended",
    "Event",
    "Output",
    "Standing",
]

Json = dict[str, Any]
Reply = TypeVar("Reply")

MESSAGE_BYTES_MAX = 16_777_216
_OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """The request is durable. `estimate` is of its wait; None while no solver is connected."""

    id: str
    slo_class: str
    estimate: Estimate | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """Some output: the text of the first choice, the tokens in it, and the whole OpenAI chunk object."""

    text: str
    tokens: int
    chunk: Json


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a request ended; seconds count from its arrival at the gateway.

    Attributes:
        reason: OpenAI's finish_reason, or why it was shed or failed.
        attained: whether it finished and met every target.
        estimate: the wait estimated at arrival.
    """

    phase: Phase
    reason: str
    prompt_tokens: int
    output_tokens: int
    ttft_s: float | None
    e2e_s: float
    attained: bool
    evictions: int
    estimate: Estimate | None


Event = Accepted | Output | Ended


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where a request stands. `ended` is set once it is over, `response` (OpenAI's object) if it finished."""

    id: str
    model: str
    slo_class: str
    phase: Phase
    waited_s: float
    prompt_tokens: int
    produced_tokens: int
    agent: str
    response: Json | None = None
    ended: Ended | None = None


class Client:
    """A blocking client; may be shared by threads. Use as a context manager, or `close` it.

    Args:
        address: host:port of the gateway's gRPC listener.
        api_key: sent as a bearer token unless empty.
        timeout_s: of calls with one answer; streams have no limit.
    """

    def __init__(self, address: str, *, api_key: str = "", timeout_s: float = dial.CALL_TIMEOUT_S):
        self._address = address
        self._metadata = dial.metadata(api_key)
        self._timeout_s = timeout_s
        self._channel = grpc.insecure_channel(address, options=_OPTIONS)
        self._stub = rpc.ClientServiceStub(self._channel)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up. Requests that were accepted go on."""
        self._channel.close()

    def submit(
        self,
        body: Mapping[str, Any],
        *,
        slo_class: str = "",
        slo: Slo | None = None,
        tenant: str = "",
        key: str = "",
    ) -> Iterator[Event]:
        """Submit a request and follow it: `Accepted`, its output, `Ended`.

        Leaving the iteration does not cancel the request; `watch` takes it up again.

        Args:
            key: names this submission; repeating a key attaches to its first submission.
        """
        request = _new_request(body, slo_class, slo, tenant, key)
        try:
            replies = self._stub.Submit(pb.SubmitRequest(request=request), metadata=self._metadata)
            for reply in replies:
                yield _event(reply.event)
        except grpc.RpcError as error:
            raise dial.readable(error, self._address) from None

    def enqueue(
        self,
        body: Mapping[str, Any],
        *,
        slo_class: str = "",
        slo: Slo | None = None,
        tenant: str = "",
        key: str = "",
    ) -> Accepted:
        """Submit a request and return once it is durable. Arguments as of `submit`."""
        request = _new_request(body, slo_class, slo, tenant, key)
        return _accepted(
            self._call(self._stub.Enqueue, pb.EnqueueRequest(request=request)).accepted
        )

    def watch(self, id: str) -> Iterator[Event]:
        """The output of a known request from its beginning, and its end."""
        try:
            question = pb.WatchRequestRequest(id=id)
            for reply in self._stub.WatchRequest(question, metadata=self._metadata):
                yield _event(reply.event)
        except grpc.RpcError as error:
            raise dial.readable(error, self._address) from None

    def wait(self, id: str) -> Standing:
        """Wait for the end of a request, however long it takes."""
        for _ in self.watch(id):
            continue
        return self.get(id)

    def get(self, id: str) -> Standing:
        """Where a request stands, and its answer once it has ended."""
        return _standing(self._call(self._stub.GetRequest, pb.GetRequestRequest(id=id)))

    def cancel(self, id: str) -> Phase:
        """Cancel a request in any state; returns how it ended, now or before."""
        answer = self._call(self._stub.CancelRequest, pb.CancelRequestRequest(id=id))
        return wire.phase_from_wire(answer.phase)

    def estimate(
        self,
        model: str,
        *,
        slo_class: str = "",
        slo: Slo | None = None,
        prompt_tokens: int = 0,
        max_output_tokens: int = 0,
    ) -> tuple[Estimate, bool]:
        """How long such a request would wait if it came now, and whether that meets its target at p90."""
        question = _question(model, slo_class, slo, prompt_tokens, max_output_tokens)
        answer = self._call(self._stub.EstimateWait, question)
        return wire.estimate_from_wire(answer.estimate), answer.feasible

    def open_requests(self) -> Iterator[Standing]:
        """What waits and runs, newest first."""
        token = ""
        while True:
            page = self._call(self._stub.ListRequests, pb.ListRequestsRequest(page_token=token))
            yield from map(_view, page.requests)
            token = page.next_page_token
            if not token:
                return

    def queues(self) -> Json:
        """The virtual queues as the solver sees them."""
        return _object(self._call(self._stub.ViewQueues, pb.ViewQueuesRequest()).view_json)

    def explain(self, id: str) -> Json:
        """Why a request stands where it stands."""
        question = pb.ExplainRequestRequest(id=id)
        return _object(self._call(self._stub.ExplainRequest, question).explanation_json)

    def _call(self, method: Callable[..., Reply], request: object) -> Reply:
        try:
            return method(request, metadata=self._metadata, timeout=self._timeout_s)
        except grpc.RpcError as error:
            raise dial.readable(error, self._address) from None


class AsyncClient:
    """As `Client`, on an asyncio loop: calls are awaited, streams are asynchronous iterators."""

    def __init__(self, address: str, *, api_key: str = "", timeout_s: float = dial.CALL_TIMEOUT_S):
        self._address = address
        self._metadata = dial.metadata(api_key)
        self._timeout_s = timeout_s
        self._channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        self._stub: rpc.ClientServiceAsyncStub = rpc.ClientServiceStub(self._channel)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """As `Client.close`."""
        await self._channel.close(None)

    async def submit(
        self,
        body: Mapping[str, Any],
        *,
        slo_class: str = "",
        slo: Slo | None = None,
        tenant: str = "",
        key: str = "",
    ) -> AsyncIterator[Event]:
        """As `Client.submit`."""
        request = _new_request(body, slo_class, slo, tenant, key)
        try:
            replies = self._stub.Submit(pb.SubmitRequest(request=request), metadata=self._metadata)
            async for reply in replies:
                yield _event(reply.event)
        except grpc.RpcError as error:
            raise dial.readable(error, self._address) from None

    async def enqueue(
        self,
        body: Mapping[str, Any],
        *,
        slo_class: str = "",
        slo: Slo | None = None,
        tenant: str = "",
        key: str = "",
    ) -> Accepted:
        """As `Client.enqueue`."""
        request = _new_request(body, slo_class, slo, tenant, key)
        answer = await self._call(self._stub.Enqueue, pb.EnqueueRequest(request=request))
        return _accepted(answer.accepted)

    async def watch(self, id: str) -> AsyncIterator[Event]:
        """As `Client.watch`."""
        try:
            question = pb.WatchRequestRequest(id=id)
            async for reply in self._stub.WatchRequest(question, metadata=self._metadata):
                yield _event(reply.event)
        except grpc.RpcError as error:
            raise dial.readable(error, self._address) from None

    async def wait(self, id: str) -> Standing:
        """As `Client.wait`."""
        async for _ in self.watch(id):
            continue
        return await self.get(id)

    async def get(self, id: str) -> Standing:
        """As `Client.get`."""
        return _standing(await self._call(self._stub.GetRequest, pb.GetRequestRequest(id=id)))

    async def cancel(self, id: str) -> Phase:
        """As `Client.cancel`."""
        answer = await self._call(self._stub.CancelRequest, pb.CancelRequestRequest(id=id))
        return wire.phase_from_wire(answer.phase)

    async def estimate(
        self,
        model: str,
        *,
        slo_class: str = "",
        slo: Slo | None = None,
        prompt_tokens: int = 0,
        max_output_tokens: int = 0,
    ) -> tuple[Estimate, bool]:
        """As `Client.estimate`."""
        question = _question(model, slo_class, slo, prompt_tokens, max_output_tokens)
        answer = await self._call(self._stub.EstimateWait, question)
        return wire.estimate_from_wire(answer.estimate), answer.feasible

    async def open_requests(self) -> AsyncIterator[Standing]:
        """As `Client.open_requests`."""
        token = ""
        while True:
            question = pb.ListRequestsRequest(page_token=token)
            page = await self._call(self._stub.ListRequests, question)
            for view in page.requests:
                yield _view(view)
            token = page.next_page_token
            if not token:
                return

    async def queues(self) -> Json:
        """As `Client.queues`."""
        return _object((await self._call(self._stub.ViewQueues, pb.ViewQueuesRequest())).view_json)

    async def explain(self, id: str) -> Json:
        """As `Client.explain`."""
        answer = await self._call(self._stub.ExplainRequest, pb.ExplainRequestRequest(id=id))
        return _object(answer.explanation_json)

    async def _call(self, method: Callable[..., Awaitable[Reply]], request: object) -> Reply:
        try:
            return await method(request, metadata=self._metadata, timeout=self._timeout_s)
        except grpc.RpcError as error:
            raise dial.readable(error, self._address) from None


# --------------------------------------------------------------------------- to and from the wire


def _new_request(
    body: Mapping[str, Any], slo_class: str, slo: Slo | None, tenant: str, key: str
) -> pb.NewRequest:
    chat = "messages" in body
    return pb.NewRequest(
        model=str(body.get("model", "")),
        body_json=msgspec.json.encode(body),
        endpoint=pb.ENDPOINT_CHAT_COMPLETIONS if chat else pb.ENDPOINT_COMPLETIONS,
        slo_class=slo_class,
        slo=None if slo is None else wire.slo_to_wire(slo),
        tenant=tenant,
        idempotency_key=key,
    )


def _question(
    model: str, slo_class: str, slo: Slo | None, prompt_tokens: int, max_output_tokens: int
) -> pb.EstimateWaitRequest:
    return pb.EstimateWaitRequest(
        model=model,
        slo_class=slo_class,
        slo=None if slo is None else wire.slo_to_wire(slo),
        prompt_tokens=prompt_tokens,
        max_output_tokens=max_output_tokens,
    )


def _event(event: pb.RequestEvent) -> Event:
    kind = event.WhichOneof("kind")
    if kind == "accepted":
        return _accepted(event.accepted)
    if kind == "ended":
        return _ended(event.ended)
    chunk = _object(event.chunk.chunk_json)
    return Output(text=_text(chunk), tokens=event.chunk.tokens, chunk=chunk)


def _accepted(accepted: pb.Accepted) -> Accepted:
    return Accepted(
        id=accepted.id, slo_class=accepted.slo_class, estimate=_given_estimate(accepted)
    )


def _ended(ended: pb.Ended) -> Ended:
    return Ended(
        phase=wire.phase_from_wire(ended.phase),
        reason=ended.reason,
        prompt_tokens=ended.usage.prompt_tokens,
        output_tokens=ended.usage.output_tokens,
        ttft_s=ended.ttft_s if ended.HasField("ttft_s") else None,
        e2e_s=ended.e2e_s,
        attained=ended.attained,
        evictions=ended.evictions,
        estimate=_given_estimate(ended),
    )


def _given_estimate(message: pb.Accepted | pb.Ended) -> Estimate | None:
    return wire.estimate_from_wire(message.estimate) if message.HasField("estimate") else None


def _standing(answer: pb.GetRequestResponse) -> Standing:
    return replace(
        _view(answer.request),
        response=_object(answer.response_json) if answer.response_json else None,
        ended=_ended(answer.ended) if answer.HasField("ended") else None,
    )


def _view(view: pb.RequestView) -> Standing:
    return Standing(
        id=view.id,
        model=view.model,
        slo_class=view.slo_class,
        phase=wire.phase_from_wire(view.phase),
        waited_s=view.waited_s,
        prompt_tokens=view.prompt_tokens,
        produced_tokens=view.produced_tokens,
        agent=view.agent,
    )


def _text(chunk: Json) -> str:
    for choice in chunk.get("choices", ()):
        if choice.get("index", 0) == 0:
            return choice.get("text") or (choice.get("delta") or {}).get("content") or ""
    return ""


def _object(data: bytes) -> Json:
    return msgspec.json.decode(data, type=Json)
