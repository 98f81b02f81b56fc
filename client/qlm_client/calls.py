"""The calls of the gateway's gRPC interface without their I/O: what is asked, and what answers and errors mean."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import grpc
from google.protobuf.message import Message

from qlm_client.errors import Busy, NotFound, QlmError, Unavailable
from qlm_client.values import (
    Accepted,
    Ended,
    Estimate,
    Event,
    Json,
    Output,
    Phase,
    Size,
    Slo,
    Standing,
    Submission,
)
from qlm_client.wire import client_service_pb2 as pb
from qlm_client.wire import types_pb2 as types

Answer = TypeVar("Answer")

# What is called on the wire; the messages have names of their own here, so that they clash with nobody's.
SERVICE = "qlm.v1.ClientService"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Generic[Answer]):
    """One call: its method, its request, the type of its replies, and how to read one (of a stream: each of them)."""

    method: str
    request: Message
    reply: type[Message]
    read: Callable[[Any], Answer]

    @property
    def path(self) -> str:
        """What is called."""
        return f"/{SERVICE}/{self.method}"


def submit(body: Mapping[str, Any], submission: Submission) -> Call[Event]:
    """Submit a request and follow it; a stream."""
    request = pb.SubmitRequest(request=_new_request(body, **submission))
    return Call(method="Submit", request=request, reply=pb.SubmitResponse, read=_event_of)


def enqueue(body: Mapping[str, Any], submission: Submission) -> Call[Accepted]:
    """Submit a request without following it."""
    return Call(
        method="Enqueue",
        request=pb.EnqueueRequest(request=_new_request(body, **submission)),
        reply=pb.EnqueueResponse,
        read=lambda reply: _accepted(reply.accepted),
    )


def watch(id: str) -> Call[Event]:
    """A known request from the beginning of its output; a stream."""
    request = pb.WatchRequestRequest(id=id)
    return Call(
        method="WatchRequest", request=request, reply=pb.WatchRequestResponse, read=_event_of
    )


def get(id: str) -> Call[Standing]:
    """Where a request stands."""
    request = pb.GetRequestRequest(id=id)
    return Call(method="GetRequest", request=request, reply=pb.GetRequestResponse, read=_standing)


def cancel(id: str) -> Call[Phase]:
    """Cancel a request; how it ended."""
    return Call(
        method="CancelRequest",
        request=pb.CancelRequestRequest(id=id),
        reply=pb.CancelRequestResponse,
        read=lambda reply: _phase(reply.phase),
    )


def estimate(model: str, size: Size) -> Call[tuple[Estimate, bool]]:
    """The wait of a request that is not submitted."""
    return Call(
        method="EstimateWait",
        request=_question(model, **size),
        reply=pb.EstimateWaitResponse,
        read=lambda reply: (_estimate(reply.estimate), reply.feasible),
    )


def open_requests(page: str) -> Call[tuple[list[Standing], str]]:
    """One page of what waits and runs, and the name of the next one; the first is called "", as is none."""
    return Call(
        method="ListRequests",
        request=pb.ListRequestsRequest(page_token=page),
        reply=pb.ListRequestsResponse,
        read=lambda reply: ([_view(view) for view in reply.requests], reply.next_page_token),
    )


def queues() -> Call[Json]:
    """The view of the fleet."""
    return Call(
        method="ViewQueues",
        request=pb.ViewQueuesRequest(),
        reply=pb.ViewQueuesResponse,
        read=lambda reply: _object(reply.view_json),
    )


def explain(id: str) -> Call[Json]:
    """Why a request stands where it stands."""
    return Call(
        method="ExplainRequest",
        request=pb.ExplainRequestRequest(id=id),
        reply=pb.ExplainRequestResponse,
        read=lambda reply: _object(reply.explanation_json),
    )


def what_if(changes: Mapping[str, int]) -> Call[Json]:
    """What would change with so many instances more or fewer, by GPU."""
    return Call(
        method="AskWhatIf",
        request=pb.AskWhatIfRequest(changes=changes),
        reply=pb.AskWhatIfResponse,
        read=lambda reply: _object(reply.answer_json),
    )


# --------------------------------------------------------------------------- errors

# gRPC's own words for a message that is too large, and for an answer in HTTP/1.
_TOO_LARGE = ("SERVER: Received message larger than max", "CLIENT: Sent message larger than max")
_HTTP_ANSWERED = ("http1.x server", "failed parsing http/2")
# The call itself is at fault: sent again, it would be refused again.
_REFUSED = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.PERMISSION_DENIED,
)


def readable(error: grpc.RpcError, address: str) -> QlmError:
    """What a failed call means, in one line."""
    # What both kinds of gRPC raise has these, and their common type does not say so.
    told: Any = error
    code, details = told.code(), told.details() or ""
    if code is grpc.StatusCode.NOT_FOUND:
        return NotFound(details)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and details.startswith(_TOO_LARGE):
        return QlmError(f"body: {details}. Send less, or raise gateway.limits.body_bytes_max.")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        after = dict(told.trailing_metadata() or ()).get("retry-after-s")
        return Busy(details, retry_after_s=float(after) if after else None)
    if code is grpc.StatusCode.UNAUTHENTICATED:
        return QlmError(f"{details}. Give it by api_key or QLM_API_KEY.")
    if code in _REFUSED:
        return QlmError(details)
    return _unreached(code, details, address)


def _unreached(code: grpc.StatusCode, details: str, address: str) -> Unavailable:
    said = details.lower()
    if code is grpc.StatusCode.UNIMPLEMENTED or any(sign in said for sign in _HTTP_ANSWERED):
        speaks = "is not for clients" if code is grpc.StatusCode.UNIMPLEMENTED else "speaks HTTP"
        return Unavailable(
            f"{address}: what answers there {speaks}. Give the gateway's gRPC address (port 7402 unless "
            "set otherwise)."
        )
    if code is not grpc.StatusCode.UNAVAILABLE or "connect" not in said:
        return Unavailable(f"{address}: {details or code.name.lower()}")
    if "handshake failed" in said:
        return Unavailable(
            f"{address}: no certificate of the CA is shown there. Name the gateway's CA by ca or QLM_CA, and "
            "none for a gateway without TLS."
        )
    if "socket closed" in said or "connection reset" in said:
        return Unavailable(
            f"{address}: the connection was closed at once. If the gateway has TLS, name its CA by ca or QLM_CA."
        )
    return Unavailable(f"{address}: no gateway answers. Start one with `qlm up`.")


# --------------------------------------------------------------------------- to and from the wire

# The field that tells what a body asks for; one with none of them is taken to be a completion.
_TOLD_BY = {
    "messages": types.ENDPOINT_CHAT_COMPLETIONS,
    "prompt": types.ENDPOINT_COMPLETIONS,
    "input": types.ENDPOINT_EMBEDDINGS,
    "query": types.ENDPOINT_RERANK,
    "text_1": types.ENDPOINT_SCORE,
    "data_1": types.ENDPOINT_SCORE,
    "queries": types.ENDPOINT_SCORE,
}
_PHASES = {
    types.PHASE_WAITING: Phase.WAITING,
    types.PHASE_PULLED: Phase.PULLED,
    types.PHASE_RUNNING: Phase.RUNNING,
    types.PHASE_FINISHED: Phase.FINISHED,
    types.PHASE_CANCELLED: Phase.CANCELLED,
    types.PHASE_SHED: Phase.SHED,
    types.PHASE_FAILED: Phase.FAILED,
}


def _new_request(
    body: Mapping[str, Any],
    *,
    slo_class: str = "",
    slo: Slo | None = None,
    tenant: str = "",
    key: str = "",
) -> pb.NewRequest:
    told = (endpoint for field, endpoint in _TOLD_BY.items() if field in body)
    try:
        text = json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        data = text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise QlmError(
            f"body: is no JSON ({error}). Use mappings, lists, texts and numbers."
        ) from None
    return pb.NewRequest(
        model=str(body.get("model", "")),
        body_json=data,
        endpoint=next(told, types.ENDPOINT_COMPLETIONS),
        slo_class=slo_class,
        slo=_slo(slo),
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
        slo=_slo(slo),
        prompt_tokens=prompt_tokens,
        max_output_tokens=max_output_tokens,
    )


def _slo(slo: Slo | None) -> types.Slo | None:
    return None if slo is None else types.Slo(ttft_s=slo.ttft_s, tpot_s=slo.tpot_s, e2e_s=slo.e2e_s)


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
        phase=_phase(ended.phase),
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
    return _estimate(message.estimate) if message.HasField("estimate") else None


def _estimate(said: types.WaitEstimate) -> Estimate:
    return Estimate(mean_s=said.mean_s, p50_s=said.p50_s, p90_s=said.p90_s, p99_s=said.p99_s)


def _phase(said: types.Phase.ValueType) -> Phase:
    if said not in _PHASES:
        raise QlmError(
            f"the gateway tells of a phase {said} that this client does not know. Update it."
        )
    return _PHASES[said]


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
        phase=_phase(view.phase),
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
    try:
        said = json.loads(data)
    except ValueError:
        said = None
    if not isinstance(said, dict):
        raise QlmError("the gateway's answer cannot be read. Is this client as new as it?")
    return said
