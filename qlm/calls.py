"""The calls of a gateway's gRPC client API without their I/O: what is asked, what answers and errors mean.

`qlm.client` carries them out, blocking or on an asyncio loop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic, TypedDict, TypeVar

import grpc
import msgspec
from google.protobuf.message import Message

from protos import wire
from protos.qlm.v1 import client_service_pb2 as pb
from protos.speaking import HTTP_ANSWERED
from qlm_core.endpoint import Endpoint
from qlm_core.errors import NotFound, QlmError, Unavailable
from qlm_core.model import Estimate, Phase, Slo
from qlm_core.tokens import FIRST_TEXTS

CALL_TIMEOUT_S = 10.0
MESSAGE_BYTES_MAX = 16_777_216
CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    # A gateway that was started again is found within a second, not within the library's two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)

Json = dict[str, Any]
Answer = TypeVar("Answer")


# --------------------------------------------------------------------------- values


class Busy(QlmError):
    """The queue is full, or the message too large; try again after `retry_after_s`, None if that would not help."""

    def __init__(self, message: str, *, retry_after_s: float | None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


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


class Target(TypedDict, total=False):
    """What a request is promised; without either the gateway's default class.

    slo_class: the name of a class.
    slo: explicit targets, which count before those of a class.
    """

    slo_class: str
    slo: Slo | None


class Submission(Target, total=False):
    """What is said of a request beside its body.

    tenant: who asks.
    key: names this submission; repeating a key attaches to its first submission.
    """

    tenant: str
    key: str


class Size(Target, total=False):
    """What is said of a request whose wait is asked for; unknown sizes are 0."""

    prompt_tokens: int
    max_output_tokens: int


# --------------------------------------------------------------------------- calls


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Generic[Answer]):
    """One call: the name of its method, its request, and how to read an answer (of a stream: each of them)."""

    method: str
    request: Message
    read: Callable[[Any], Answer]


def submit(body: Mapping[str, Any], submission: Submission) -> Call[Event]:
    """Submit a request and follow it; a stream."""
    request = pb.SubmitRequest(request=_new_request(body, **submission))
    return Call(method="Submit", request=request, read=_event_of)


def enqueue(body: Mapping[str, Any], submission: Submission) -> Call[Accepted]:
    """Submit a request without following it."""
    request = pb.EnqueueRequest(request=_new_request(body, **submission))
    return Call(method="Enqueue", request=request, read=lambda reply: _accepted(reply.accepted))


def watch(id: str) -> Call[Event]:
    """A known request from the beginning of its output; a stream."""
    return Call(method="WatchRequest", request=pb.WatchRequestRequest(id=id), read=_event_of)


def get(id: str) -> Call[Standing]:
    """Where a request stands."""
    return Call(method="GetRequest", request=pb.GetRequestRequest(id=id), read=_standing)


def cancel(id: str) -> Call[Phase]:
    """Cancel a request; how it ended."""
    return Call(
        method="CancelRequest",
        request=pb.CancelRequestRequest(id=id),
        read=lambda reply: wire.phase_from_wire(reply.phase),
    )


def estimate(model: str, size: Size) -> Call[tuple[Estimate, bool]]:
    """The wait of a request that is not submitted."""
    return Call(
        method="EstimateWait",
        request=_question(model, **size),
        read=lambda reply: (wire.estimate_from_wire(reply.estimate), reply.feasible),
    )


def open_requests(page: str) -> Call[tuple[list[Standing], str]]:
    """One page of what waits and runs, and the name of the next one; the first is called "", as is none."""
    return Call(
        method="ListRequests",
        request=pb.ListRequestsRequest(page_token=page),
        read=lambda reply: ([_view(view) for view in reply.requests], reply.next_page_token),
    )


def queues() -> Call[Json]:
    """The view of the fleet."""
    return Call(
        method="ViewQueues",
        request=pb.ViewQueuesRequest(),
        read=lambda reply: _object(reply.view_json),
    )


def explain(id: str) -> Call[Json]:
    """Why a request stands where it stands."""
    return Call(
        method="ExplainRequest",
        request=pb.ExplainRequestRequest(id=id),
        read=lambda reply: _object(reply.explanation_json),
    )


def what_if(changes: Mapping[str, int]) -> Call[Json]:
    """What would change with so many instances more or fewer, by GPU."""
    return Call(
        method="AskWhatIf",
        request=pb.AskWhatIfRequest(changes=changes),
        read=lambda reply: _object(reply.answer_json),
    )


def metadata(api_key: str) -> tuple[tuple[str, str], ...]:
    """The call metadata that carries an API key, if there is one."""
    return (("authorization", f"Bearer {api_key}"),) if api_key else ()


# gRPC's own words for a message that is larger than the gateway reads, or than is sent at all.
_TOO_LARGE = ("SERVER: Received message larger than max", "CLIENT: Sent message larger than max")

# The call itself is at fault: sent again, it would be refused again.
_REFUSED = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.PERMISSION_DENIED,
)


def no_gateway(address: str) -> Unavailable:
    """Nobody answers where a gateway should."""
    return Unavailable(f"{address}: no gateway answers. Start one with `qlm up`.")


def untrusted(address: str) -> Unavailable:
    """Whoever answers there does not prove to be the gateway."""
    return Unavailable(
        f"{address}: no certificate of the CA is shown there. Name the gateway's CA by --ca or "
        "QLM_CA, and none for a gateway without gateway.tls."
    )


def hung_up(address: str) -> Unavailable:
    """Somebody is there and wants no call without TLS."""
    return Unavailable(
        f"{address}: the connection was closed at once. If the gateway has gateway.tls, name its "
        "CA by --ca or QLM_CA."
    )


def speaks_grpc(address: str) -> Unavailable:
    """A port that speaks gRPC was asked in HTTP."""
    return Unavailable(
        f"{address}: what answers there speaks gRPC. Give the gateway's HTTP address "
        "(gateway.http_listen, port 7400 unless set otherwise)."
    )


def speaks_http(address: str) -> Unavailable:
    """A port that speaks HTTP was asked in gRPC."""
    return Unavailable(
        f"{address}: what answers there speaks HTTP. Give the gateway's gRPC address "
        "(gateway.grpc_listen, port 7402 unless set otherwise)."
    )


def _other_service(address: str) -> Unavailable:
    return Unavailable(
        f"{address}: what answers there is not for clients: a solver's port, or the one for agents. Give the "
        "gateway's gRPC address (gateway.grpc_listen, port 7402 unless set otherwise)."
    )


def readable(error: grpc.RpcError, address: str) -> QlmError:
    """What a failed call means, in one line."""
    code, details = error.code(), error.details() or ""
    if code is grpc.StatusCode.NOT_FOUND:
        return NotFound(details)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and details.startswith(_TOO_LARGE):
        # gRPC answers a message that is too large with the status of a full queue.
        return QlmError(f"body: {details}. Send less, or raise gateway.limits.body_bytes_max.")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        # Pairs of strings, whatever type the two kinds of gRPC give them.
        told: Any = error.trailing_metadata() or ()
        after = dict(told).get("retry-after-s")
        return Busy(details, retry_after_s=float(after) if after else None)
    if code is grpc.StatusCode.UNAUTHENTICATED:
        return QlmError(f"{details}. `qlm` takes one from --api-key or QLM_API_KEY.")
    if code in _REFUSED:
        return QlmError(details)
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return _other_service(address)
    if any(sign in details.lower() for sign in HTTP_ANSWERED):
        return speaks_http(address)
    if code is grpc.StatusCode.UNAVAILABLE and "connect" in details.lower():
        return _unreached(address, details.lower())
    return Unavailable(f"{address}: {details or code.name.lower()}")


def _unreached(address: str, details: str) -> Unavailable:
    # gRPC says no more than this of a gateway that asks for TLS, or shows another CA's certificate.
    if "handshake failed" in details:
        return untrusted(address)
    if "socket closed" in details or "connection reset" in details:
        return hung_up(address)
    return no_gateway(address)


# --------------------------------------------------------------------------- to and from the wire


# The field that tells what a body asks for; one with none of them is taken to be a completion.
_TOLD_BY = {
    "messages": Endpoint.CHAT_COMPLETIONS,
    "prompt": Endpoint.COMPLETIONS,
    "input": Endpoint.EMBEDDINGS,
    "query": Endpoint.RERANK,
    **dict.fromkeys(FIRST_TEXTS, Endpoint.SCORE),
}


def _endpoint_of(body: Mapping[str, Any]) -> Endpoint:
    told = (endpoint for field, endpoint in _TOLD_BY.items() if field in body)
    return next(told, Endpoint.COMPLETIONS)


def _new_request(
    body: Mapping[str, Any],
    *,
    slo_class: str = "",
    slo: Slo | None = None,
    tenant: str = "",
    key: str = "",
) -> pb.NewRequest:
    return pb.NewRequest(
        model=str(body.get("model", "")),
        body_json=msgspec.json.encode(body),
        endpoint=wire.endpoint_to_wire(_endpoint_of(body)),
        slo_class=slo_class,
        slo=None if slo is None else wire.slo_to_wire(slo),
        tenant=tenant,
        idempotency_key=key,
    )


def _question(
    model: str,
    *,
    slo_class: str = "",
    slo: Slo | None = None,
    prompt_tokens: int = 0,
    max_output_tokens: int = 0,
) -> pb.EstimateWaitRequest:
    return pb.EstimateWaitRequest(
        model=model,
        slo_class=slo_class,
        slo=None if slo is None else wire.slo_to_wire(slo),
        prompt_tokens=prompt_tokens,
        max_output_tokens=max_output_tokens,
    )


def _event_of(reply: pb.SubmitResponse | pb.WatchRequestResponse) -> Event:
    event = reply.event
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
