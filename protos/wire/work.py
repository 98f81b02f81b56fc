"""Agent ↔ gateway: pulls, chunks and ends up; payloads, refusals and revocations down."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from protos.qlm.v1 import types_pb2 as types_pb
from protos.qlm.v1 import work_service_pb2 as work_pb
from protos.wire import bounds as bd
from protos.wire.bounds import WireError
from protos.wire.values import endpoint_from_wire, endpoint_to_wire
from qlm_core import messages as m
from qlm_core.endpoint import Endpoint
from qlm_core.model import AgentId, ModelName, RequestId
from qlm_core.outcome import PullRefusal
from qlm_core.resume import ResumedBy

_REFUSAL_TO_WIRE = {
    reason: work_pb.PullRefusal.Value(f"PULL_REFUSAL_{reason.name}") for reason in PullRefusal
}
_REFUSAL_FROM_WIRE: dict[int, PullRefusal] = {
    number: reason for reason, number in _REFUSAL_TO_WIRE.items()
}
_RETURN_TO_WIRE = {
    reason: work_pb.ReturnReason.Value(f"RETURN_REASON_{reason.name}") for reason in m.ReturnReason
}
_RETURN_FROM_WIRE: dict[int, m.ReturnReason] = {
    number: reason for reason, number in _RETURN_TO_WIRE.items()
}
_RESUMED_TO_WIRE = {
    ResumedBy.NOTHING: work_pb.RESUMED_BY_UNSPECIFIED,
    ResumedBy.IDS: work_pb.RESUMED_BY_TOKEN_IDS,
    ResumedBy.TEXT: work_pb.RESUMED_BY_TEXT,
}
_RESUMED_FROM_WIRE: dict[int, ResumedBy] = {
    number: resumed_by for resumed_by, number in _RESUMED_TO_WIRE.items()
}

# What has a form of its own on the wire.
_SaidWork = m.WorkHello | m.Pull | m.Chunk | m.AttemptEnded | m.AttemptReturned
_SaidOrder = m.Joined | m.Payload | m.Refused | m.Revoked


def work_to_wire(events: Iterable[m.WorkEvent]) -> work_pb.WorkRequest:
    """A batch of an agent's work events."""
    return work_pb.WorkRequest(
        events=[_work_event_to_wire(event) for event in events if not isinstance(event, m.Alive)]
    )


def _work_event_to_wire(event: _SaidWork) -> work_pb.WorkEvent:
    match event:
        case m.Chunk():
            chunk = work_pb.Chunk(
                id=event.id,
                attempt=event.attempt,
                chunk_json=event.data,
                tokens=bd.fit_count(event.tokens),
                beyond_text=not event.plain,
                ids=None if event.ids is None else _ids_to_wire(event.ids),
                whole=event.whole,
            )
            return work_pb.WorkEvent(chunk=chunk)
        case m.Pull(ids):
            return work_pb.WorkEvent(pull=work_pb.Pull(ids=ids))
        case m.AttemptEnded():
            ended = work_pb.AttemptEnded(
                id=event.id,
                attempt=event.attempt,
                finish_reason=bd.fit_text(event.finish_reason, bd.NAME_CHARS_MAX),
                usage=types_pb.Usage(
                    prompt_tokens=bd.fit_count(event.prompt_tokens),
                    output_tokens=bd.fit_count(event.output_tokens),
                ),
                error=bd.fit_text(event.error),
                error_status=min(max(0, event.error_status), bd.STATUS_MAX),
                closing_json=event.closing,
                resumed_by=_RESUMED_TO_WIRE[event.resumed_by],
            )
            return work_pb.WorkEvent(ended=ended)
        case m.AttemptReturned():
            returned = work_pb.AttemptReturned(
                id=event.id,
                attempt=event.attempt,
                reason=_RETURN_TO_WIRE[event.reason],
                detail=bd.fit_text(event.detail),
                rest_s=bd.fit_seconds(event.rest_s),
            )
            return work_pb.WorkEvent(returned=returned)
        case m.WorkHello(agent, running):
            hello = work_pb.WorkHello(
                agent_id=agent,
                running=[_attempt_to_wire(run) for run in running],
            )
            return work_pb.WorkEvent(hello=hello)


def work_from_wire(message: work_pb.WorkRequest) -> Iterator[m.WorkEvent]:
    """The work events of a batch, in order. Raises WireError."""
    bd.few("events", message.events, bd.ITEMS_MAX)
    for event in message.events:
        yield _work_event_from_wire(event)


def _work_event_from_wire(event: work_pb.WorkEvent) -> m.WorkEvent:
    match event.WhichOneof("kind"):
        case "chunk":
            chunk = event.chunk
            return m.Chunk(
                RequestId(bd.name("events.chunk.id", chunk.id)),
                chunk.attempt,
                chunk.chunk_json,
                bd.count("events.chunk.tokens", chunk.tokens),
                not chunk.beyond_text,
                _ids_from_wire(chunk.ids) if chunk.HasField("ids") else None,
                chunk.whole,
            )
        case "pull":
            ids = event.pull.ids
            bd.few("events.pull.ids", ids, bd.ITEMS_MAX)
            return m.Pull(tuple(RequestId(bd.name("events.pull.ids", id)) for id in ids))
        case "ended":
            ended = event.ended
            resumed_by = _RESUMED_FROM_WIRE.get(ended.resumed_by)
            if resumed_by is None:
                raise WireError(f"events.ended.resumed_by: {ended.resumed_by} is not known")
            return m.AttemptEnded(
                id=RequestId(bd.name("events.ended.id", ended.id)),
                attempt=ended.attempt,
                finish_reason=bd.label("events.ended.finish_reason", ended.finish_reason),
                prompt_tokens=bd.count(
                    "events.ended.usage.prompt_tokens", ended.usage.prompt_tokens
                ),
                output_tokens=bd.count(
                    "events.ended.usage.output_tokens", ended.usage.output_tokens
                ),
                error=bd.text("events.ended.error", ended.error),
                error_status=bd.count(
                    "events.ended.error_status", ended.error_status, bd.STATUS_MAX
                ),
                closing=ended.closing_json,
                resumed_by=resumed_by,
            )
        case "returned":
            returned = event.returned
            reason = _RETURN_FROM_WIRE.get(returned.reason)
            if reason is None:
                raise WireError(f"events.returned.reason: {returned.reason} is not a known reason")
            return m.AttemptReturned(
                RequestId(bd.name("events.returned.id", returned.id)),
                returned.attempt,
                reason,
                bd.text("events.returned.detail", returned.detail),
                bd.seconds("events.returned.rest_s", returned.rest_s),
            )
        case "hello":
            hello = event.hello
            bd.few("events.hello.running", hello.running, bd.ITEMS_MAX)
            return m.WorkHello(
                AgentId(bd.name("hello.agent_id", hello.agent_id)),
                tuple(_attempt_from_wire(run) for run in hello.running),
            )
        case _:
            raise WireError("events: an event without a kind")


def _attempt_to_wire(run: m.Attempt) -> work_pb.Attempt:
    return work_pb.Attempt(
        id=run.id,
        attempt=run.attempt,
        chunks=run.chunks,
        first_chunk=run.first_chunk,
        continued=run.continued,
    )


def _attempt_from_wire(run: work_pb.Attempt) -> m.Attempt:
    id = RequestId(bd.name("events.hello.running.id", run.id))
    return m.Attempt(id, run.attempt, run.chunks, run.first_chunk, run.continued)


def _ids_to_wire(ids: m.TokenIds) -> work_pb.TokenIds:
    return work_pb.TokenIds(position=ids.position, output=ids.output, prompt=ids.prompt)


def _ids_from_wire(ids: work_pb.TokenIds) -> m.TokenIds:
    return m.TokenIds(
        bd.count("events.chunk.ids.position", ids.position),
        bd.token_ids("events.chunk.ids.output", ids.output),
        bd.token_ids("events.chunk.ids.prompt", ids.prompt),
    )


def work_orders_to_wire(orders: Iterable[m.WorkOrder]) -> work_pb.WorkResponse:
    """A batch of orders to an agent."""
    return work_pb.WorkResponse(
        orders=[_work_order_to_wire(order) for order in orders if not isinstance(order, m.Alive)]
    )


def _work_order_to_wire(order: _SaidOrder) -> work_pb.WorkOrder:
    match order:
        case m.Payload():
            payload = work_pb.Payload(
                id=order.id,
                attempt=order.attempt,
                model=order.model,
                chat=order.chat,
                endpoint=endpoint_to_wire(order.endpoint),
                body_json=order.body,
                resume_text=order.resume_text,
                produced_tokens=bd.fit_count(order.produced_tokens),
                resume_ids=order.resume_ids,
                text_offset_chars=bd.fit_count(order.text_offset_chars),
                headers=[work_pb.Header(name=name, value=text) for name, text in order.headers],
            )
            return work_pb.WorkOrder(payload=payload)
        case m.Refused(id, reason):
            refused = work_pb.Refused(id=id, reason=_REFUSAL_TO_WIRE[reason])
            return work_pb.WorkOrder(refused=refused)
        case m.Revoked(id, attempt):
            return work_pb.WorkOrder(revoked=work_pb.Revoked(id=id, attempt=attempt))
        case m.Joined(going_on):
            joined = work_pb.Joined(going_on=[_attempt_to_wire(run) for run in going_on])
            return work_pb.WorkOrder(joined=joined)


def work_orders_from_wire(message: work_pb.WorkResponse) -> Iterator[m.WorkOrder]:
    """The orders of a batch, in order. Raises WireError."""
    bd.message(message)
    bd.few("orders", message.orders, bd.ITEMS_MAX)
    for order in message.orders:
        match order.WhichOneof("kind"):
            case "payload":
                yield _payload_from_wire(order.payload)
            case "refused":
                reason = _REFUSAL_FROM_WIRE.get(order.refused.reason)
                if reason is None:
                    raise WireError(f"orders.refused.reason: {order.refused.reason} is unknown")
                yield m.Refused(RequestId(bd.name("orders.refused.id", order.refused.id)), reason)
            case "revoked":
                id = RequestId(bd.name("orders.revoked.id", order.revoked.id))
                yield m.Revoked(id, order.revoked.attempt)
            case "joined":
                going_on = order.joined.going_on
                bd.few("orders.joined.going_on", going_on, bd.ITEMS_MAX)
                yield m.Joined(tuple(_attempt_from_wire(run) for run in going_on))
            case _:
                raise WireError("orders: an order without a kind")


def _payload_from_wire(payload: work_pb.Payload) -> m.Payload:
    return m.Payload(
        id=RequestId(bd.name("orders.payload.id", payload.id)),
        attempt=payload.attempt,
        model=ModelName(bd.name("orders.payload.model", payload.model)),
        endpoint=_endpoint_from_wire(payload),
        body=payload.body_json,
        resume_text=payload.resume_text,
        produced_tokens=bd.count("orders.payload.produced_tokens", payload.produced_tokens),
        resume_ids=bd.token_ids("orders.payload.resume_ids", payload.resume_ids),
        text_offset_chars=bd.count("orders.payload.text_offset_chars", payload.text_offset_chars),
        headers=tuple(_header_from_wire(header) for header in payload.headers),
    )


def _endpoint_from_wire(payload: work_pb.Payload) -> Endpoint:
    if not payload.endpoint:
        return Endpoint.CHAT_COMPLETIONS if payload.chat else Endpoint.COMPLETIONS
    endpoint = endpoint_from_wire(payload.endpoint)
    if endpoint is None:
        raise WireError(f"orders.payload.endpoint: {payload.endpoint} is not known")
    return endpoint


def _header_from_wire(header: work_pb.Header) -> tuple[str, str]:
    field = "orders.payload.headers"
    name, value = bd.name(field, header.name), bd.text(field, header.value)
    if not (name + value).isascii() or not (name + value).isprintable():
        raise WireError(f"{field}: not printable ASCII, which no header is without")
    return name, value
