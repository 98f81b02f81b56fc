"""The one translator between the wire and the core's values.

Each conversation of `qlm_core.messages` has a pair of functions here: `…_to_wire(values, now_s)` packs a batch into
one protobuf message, `…_from_wire(message, now_s)` yields the values. Instants become durations on the way out and
instants of the receiver's clock on the way in. Unset oneofs and unspecified enums are refused with `WireError`:
what passes here needs no further checks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from sys import intern

import msgspec

from protos.qlm.v1 import agent_session_service_pb2 as agent_pb
from protos.qlm.v1 import gateway_session_service_pb2 as gateway_pb
from protos.qlm.v1 import types_pb2 as types_pb
from protos.qlm.v1 import work_service_pb2 as work_pb
from qlm_core import messages as m
from qlm_core.errors import QlmError
from qlm_core.model import (
    AgentId,
    Estimate,
    GatewayId,
    GroupId,
    InstanceState,
    ModelName,
    ModelTier,
    Phase,
    QueuedGroup,
    RequestId,
    RequestMeta,
    RequestRef,
    RunningRequest,
    Slo,
)
from qlm_core.outcome import PullRefusal, ShedReason
from qlm_core.profile import EngineProfile


class WireError(QlmError):
    """A peer sent a message that this version cannot read; the text names the field."""


# --------------------------------------------------------------------------- shared parts

_PHASE_TO_WIRE = {phase: types_pb.Phase.Value(f"PHASE_{phase.name}") for phase in Phase}
_PHASE_FROM_WIRE: dict[int, Phase] = {number: phase for phase, number in _PHASE_TO_WIRE.items()}
_TIER_TO_WIRE = {tier: agent_pb.ModelTier.Value(f"MODEL_TIER_{tier.name}") for tier in ModelTier}
_TIER_FROM_WIRE: dict[int, ModelTier] = {number: tier for tier, number in _TIER_TO_WIRE.items()}
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


def phase_to_wire(phase: Phase) -> types_pb.Phase.ValueType:
    """The wire's number of a phase."""
    return _PHASE_TO_WIRE[phase]


def phase_from_wire(number: int) -> Phase:
    """The phase of a wire number. Raises WireError for an unspecified or unknown one."""
    phase = _PHASE_FROM_WIRE.get(number)
    if phase is None:
        raise WireError(f"phase: {number} is not a known phase")
    return phase


def slo_to_wire(slo: Slo) -> types_pb.Slo:
    """Targets on the wire."""
    return types_pb.Slo(ttft_s=slo.ttft_s, tpot_s=slo.tpot_s, e2e_s=slo.e2e_s)


def slo_from_wire(slo: types_pb.Slo) -> Slo:
    """Targets from the wire; not checked against any limit."""
    return _shared_slo(
        slo.ttft_s,
        slo.tpot_s if slo.HasField("tpot_s") else None,
        slo.e2e_s if slo.HasField("e2e_s") else None,
    )


@lru_cache(maxsize=1024)
def _shared_slo(ttft_s: float, tpot_s: float | None, e2e_s: float | None) -> Slo:
    # Few targets are in use at a time; hundreds of thousands of waiting requests share them.
    return Slo(ttft_s=ttft_s, tpot_s=tpot_s, e2e_s=e2e_s)


def estimate_to_wire(estimate: Estimate) -> types_pb.WaitEstimate:
    """An estimate on the wire."""
    return types_pb.WaitEstimate(
        mean_s=estimate.mean_s, p50_s=estimate.p50_s, p90_s=estimate.p90_s, p99_s=estimate.p99_s
    )


def estimate_from_wire(estimate: types_pb.WaitEstimate) -> Estimate:
    """An estimate from the wire."""
    return Estimate(
        mean_s=estimate.mean_s, p50_s=estimate.p50_s, p90_s=estimate.p90_s, p99_s=estimate.p99_s
    )


def meta_to_wire(request: RequestMeta, now_s: float) -> types_pb.RequestMeta:
    """A request's metadata on the wire; its gateway is the session's and does not travel."""
    return types_pb.RequestMeta(
        id=request.id,
        model=request.model,
        slo_class=request.slo_class,
        slo=slo_to_wire(request.slo),
        prompt_tokens=request.prompt_tokens,
        max_output_tokens=request.max_output_tokens,
        produced_tokens=request.produced_tokens,
        tenant=request.tenant,
        waited_s=now_s - request.arrival_s,
    )


def meta_from_wire(request: types_pb.RequestMeta, gateway: GatewayId, now_s: float) -> RequestMeta:
    """A request's metadata as `gateway` announced it."""
    return RequestMeta(
        id=RequestId(request.id),
        gateway=gateway,
        model=ModelName(intern(request.model)),
        slo_class=intern(request.slo_class),
        slo=slo_from_wire(request.slo),
        prompt_tokens=request.prompt_tokens,
        max_output_tokens=request.max_output_tokens,
        arrival_s=now_s - request.waited_s,
        tenant=request.tenant,
        produced_tokens=request.produced_tokens,
    )


# --------------------------------------------------------------------------- gateway → solver


def facts_to_wire(facts: Iterable[m.GatewayFact], now_s: float) -> gateway_pb.GatewaySessionRequest:
    """A batch of facts from a gateway."""
    return gateway_pb.GatewaySessionRequest(facts=[_fact_to_wire(fact, now_s) for fact in facts])


def _fact_to_wire(fact: m.GatewayFact, now_s: float) -> gateway_pb.GatewayFact:
    match fact:
        case m.Arrived(request):
            return gateway_pb.GatewayFact(arrived=meta_to_wire(request, now_s))
        case m.Pulled(id, agent):
            return gateway_pb.GatewayFact(pulled=gateway_pb.RequestPulled(id=id, agent_id=agent))
        case m.FirstToken(id, ttft_s):
            return gateway_pb.GatewayFact(first_token=gateway_pb.FirstToken(id=id, ttft_s=ttft_s))
        case m.Ended(id, phase, prompt_tokens, output_tokens):
            usage = types_pb.Usage(prompt_tokens=prompt_tokens, output_tokens=output_tokens)
            return gateway_pb.GatewayFact(
                ended=gateway_pb.RequestEnded(id=id, phase=_PHASE_TO_WIRE[phase], usage=usage)
            )
        case m.Returned(id, produced_tokens):
            return gateway_pb.GatewayFact(
                returned=gateway_pb.RequestReturned(id=id, produced_tokens=produced_tokens)
            )
        case m.GatewayHello(gateway, work_address):
            return gateway_pb.GatewayFact(
                hello=gateway_pb.GatewayHello(gateway_id=gateway, work_address=work_address)
            )
        case m.AnnounceDone():
            return gateway_pb.GatewayFact(announce_done=gateway_pb.AnnounceDone())


def facts_from_wire(
    message: gateway_pb.GatewaySessionRequest, gateway: GatewayId, now_s: float
) -> Iterator[m.GatewayFact]:
    """The facts of a batch, in order. What follows a hello is of the gateway that it names. Raises WireError."""
    for wired in message.facts:
        fact = _fact_from_wire(wired, gateway, now_s)
        if isinstance(fact, m.GatewayHello):
            gateway = fact.gateway
        yield fact


def _fact_from_wire(
    fact: gateway_pb.GatewayFact, gateway: GatewayId, now_s: float
) -> m.GatewayFact:
    match fact.WhichOneof("kind"):
        case "arrived":
            return m.Arrived(meta_from_wire(fact.arrived, gateway, now_s))
        case "pulled":
            return m.Pulled(RequestId(fact.pulled.id), AgentId(fact.pulled.agent_id))
        case "first_token":
            return m.FirstToken(RequestId(fact.first_token.id), fact.first_token.ttft_s)
        case "ended":
            usage = fact.ended.usage
            return m.Ended(
                RequestId(fact.ended.id),
                phase_from_wire(fact.ended.phase),
                usage.prompt_tokens,
                usage.output_tokens,
            )
        case "returned":
            return m.Returned(RequestId(fact.returned.id), fact.returned.produced_tokens)
        case "hello":
            return m.GatewayHello(GatewayId(fact.hello.gateway_id), fact.hello.work_address)
        case "announce_done":
            return m.AnnounceDone()
        case _:
            raise WireError("facts: a fact without a kind")


# --------------------------------------------------------------------------- solver → gateway


def gateway_orders_to_wire(orders: Iterable[m.GatewayOrder]) -> gateway_pb.GatewaySessionResponse:
    """A batch of orders to a gateway."""
    return gateway_pb.GatewaySessionResponse(
        orders=[_gateway_order_to_wire(order) for order in orders]
    )


def _gateway_order_to_wire(order: m.GatewayOrder) -> gateway_pb.GatewayOrder:
    match order:
        case m.EstimateGiven(id, estimate):
            given = gateway_pb.EstimateGiven(id=id, estimate=estimate_to_wire(estimate))
            return gateway_pb.GatewayOrder(estimate=given)
        case m.ShedOrder(id, reason):
            return gateway_pb.GatewayOrder(shed=gateway_pb.Shed(id=id, reason=reason.value))
        case m.Fleet(models):
            return gateway_pb.GatewayOrder(fleet=gateway_pb.Fleet(models=models))


def gateway_orders_from_wire(
    message: gateway_pb.GatewaySessionResponse,
) -> Iterator[m.GatewayOrder]:
    """The orders of a batch, in order. Raises WireError."""
    for order in message.orders:
        match order.WhichOneof("kind"):
            case "estimate":
                estimate = estimate_from_wire(order.estimate.estimate)
                yield m.EstimateGiven(RequestId(order.estimate.id), estimate)
            case "shed":
                yield m.ShedOrder(RequestId(order.shed.id), _shed_reason(order.shed.reason))
            case "fleet":
                yield m.Fleet(tuple(ModelName(model) for model in order.fleet.models))
            case _:
                raise WireError("orders: an order without a kind")


def _shed_reason(text: str) -> ShedReason:
    try:
        return ShedReason(text)
    except ValueError:
        raise WireError(f"orders.shed.reason: {text!r} is not a known reason") from None


# --------------------------------------------------------------------------- agent ↔ solver


def agent_message_to_wire(message: m.AgentMessage) -> agent_pb.AgentSessionRequest:
    """A hello or a report of an agent."""
    if isinstance(message, InstanceState):
        return agent_pb.AgentSessionRequest(report=_state_to_wire(message))
    hello = agent_pb.AgentHello(
        agent_id=message.agent,
        gpu=message.gpu,
        models=[
            agent_pb.ServedModel(model=profile.model, profile_json=msgspec.json.encode(profile))
            for profile in message.profiles
        ],
        epoch=message.epoch,
        state=_state_to_wire(message.state),
    )
    return agent_pb.AgentSessionRequest(hello=hello)


def agent_message_from_wire(message: agent_pb.AgentSessionRequest) -> m.AgentMessage:
    """A hello or a report of an agent. Raises WireError."""
    match message.WhichOneof("kind"):
        case "report":
            return _state_from_wire(message.report)
        case "hello":
            hello = message.hello
            return m.AgentHello(
                agent=AgentId(hello.agent_id),
                gpu=hello.gpu,
                profiles=tuple(_profile_from_wire(served) for served in hello.models),
                epoch=hello.epoch,
                state=_state_from_wire(hello.state),
            )
        case _:
            raise WireError("kind: neither hello nor report")


def _profile_from_wire(served: agent_pb.ServedModel) -> EngineProfile:
    try:
        return msgspec.json.decode(served.profile_json, type=EngineProfile)
    except (msgspec.DecodeError, ValueError) as error:
        raise WireError(f"hello.models[{served.model}].profile_json: {error}") from None


def _state_to_wire(state: InstanceState) -> agent_pb.AgentReport:
    return agent_pb.AgentReport(
        ready=state.ready,
        awake_model=state.awake_model or "",
        swapping_to=state.swapping_to or "",
        tiers={model: _TIER_TO_WIRE[tier] for model, tier in state.tiers},
        running=[
            agent_pb.RunningRequest(
                id=running.id, group_id=running.group, produced_tokens=running.produced_tokens
            )
            for running in state.running
        ],
        kv_used_tokens=state.kv_used_tokens,
        tokens_per_s=state.tokens_per_s,
        mean_batch=state.mean_batch,
        draining=state.draining,
    )


def _state_from_wire(report: agent_pb.AgentReport) -> InstanceState:
    tiers = []
    for model in sorted(report.tiers):
        tier = _TIER_FROM_WIRE.get(report.tiers[model])
        if tier is None:
            raise WireError(f"report.tiers[{model}]: {report.tiers[model]} is not a known tier")
        tiers.append((ModelName(model), tier))
    return InstanceState(
        ready=report.ready,
        awake_model=ModelName(report.awake_model) if report.awake_model else None,
        swapping_to=ModelName(report.swapping_to) if report.swapping_to else None,
        tiers=tuple(tiers),
        running=tuple(
            RunningRequest(
                id=RequestId(running.id),
                group=GroupId(running.group_id),
                produced_tokens=running.produced_tokens,
            )
            for running in report.running
        ),
        kv_used_tokens=report.kv_used_tokens,
        tokens_per_s=report.tokens_per_s,
        mean_batch=report.mean_batch,
        draining=report.draining,
    )


def agent_order_to_wire(order: m.AgentOrder, now_s: float) -> agent_pb.AgentSessionResponse:
    """A queue update or the list of gateways."""
    if isinstance(order, m.Gateways):
        gateways = agent_pb.Gateways(
            gateways=[
                agent_pb.GatewayAddress(gateway_id=gateway, address=address)
                for gateway, address in order.addresses
            ]
        )
        return agent_pb.AgentSessionResponse(gateways=gateways)
    update = agent_pb.QueueUpdate(
        epoch=order.epoch,
        snapshot=order.snapshot,
        order_changed=order.order is not None,
        order=[
            agent_pb.QueuedGroup(group_id=group.id, model=group.model, slo_class=group.slo_class)
            for group in order.order or ()
        ],
        add=[_ref_to_wire(ref, now_s) for ref in order.add],
        remove=order.remove,
    )
    return agent_pb.AgentSessionResponse(queue=update)


def _ref_to_wire(ref: RequestRef, now_s: float) -> agent_pb.RequestRef:
    return agent_pb.RequestRef(
        id=ref.id,
        gateway_id=ref.gateway,
        group_id=ref.group,
        prompt_tokens=ref.prompt_tokens,
        max_output_tokens=ref.max_output_tokens,
        expected_output_tokens=ref.expected_output_tokens,
        produced_tokens=ref.produced_tokens,
        due_in_s=ref.due_s - now_s,
    )


def agent_order_from_wire(message: agent_pb.AgentSessionResponse, now_s: float) -> m.AgentOrder:
    """A queue update or the list of gateways. Raises WireError."""
    match message.WhichOneof("kind"):
        case "gateways":
            return m.Gateways(
                tuple(
                    (GatewayId(gateway.gateway_id), gateway.address)
                    for gateway in message.gateways.gateways
                )
            )
        case "queue":
            return _queue_from_wire(message.queue, now_s)
        case _:
            raise WireError("kind: neither queue nor gateways")


def _queue_from_wire(update: agent_pb.QueueUpdate, now_s: float) -> m.QueueUpdate:
    order = None
    if update.order_changed:
        order = tuple(
            QueuedGroup(GroupId(group.group_id), ModelName(group.model), group.slo_class)
            for group in update.order
        )
    return m.QueueUpdate(
        epoch=update.epoch,
        snapshot=update.snapshot,
        order=order,
        add=tuple(
            RequestRef(
                id=RequestId(ref.id),
                gateway=GatewayId(ref.gateway_id),
                group=GroupId(ref.group_id),
                prompt_tokens=ref.prompt_tokens,
                max_output_tokens=ref.max_output_tokens,
                expected_output_tokens=ref.expected_output_tokens,
                produced_tokens=ref.produced_tokens,
                due_s=now_s + ref.due_in_s,
            )
            for ref in update.add
        ),
        remove=tuple(RequestId(id) for id in update.remove),
    )


# --------------------------------------------------------------------------- agent ↔ gateway


def work_to_wire(events: Iterable[m.WorkEvent]) -> work_pb.WorkRequest:
    """A batch of an agent's work events."""
    return work_pb.WorkRequest(events=[_work_event_to_wire(event) for event in events])


def _work_event_to_wire(event: m.WorkEvent) -> work_pb.WorkEvent:
    match event:
        case m.Chunk(id, attempt, data, tokens):
            chunk = work_pb.Chunk(id=id, attempt=attempt, chunk_json=data, tokens=tokens)
            return work_pb.WorkEvent(chunk=chunk)
        case m.Pull(ids):
            return work_pb.WorkEvent(pull=work_pb.Pull(ids=ids))
        case m.AttemptEnded():
            ended = work_pb.AttemptEnded(
                id=event.id,
                attempt=event.attempt,
                finish_reason=event.finish_reason,
                usage=types_pb.Usage(
                    prompt_tokens=event.prompt_tokens, output_tokens=event.output_tokens
                ),
                error=event.error,
                error_status=event.error_status,
            )
            return work_pb.WorkEvent(ended=ended)
        case m.AttemptReturned(id, attempt, reason):
            returned = work_pb.AttemptReturned(
                id=id, attempt=attempt, reason=_RETURN_TO_WIRE[reason]
            )
            return work_pb.WorkEvent(returned=returned)
        case m.WorkHello(agent, running):
            hello = work_pb.WorkHello(
                agent_id=agent,
                running=[
                    work_pb.Attempt(id=run.id, attempt=run.attempt, chunks_sent=run.chunks_sent)
                    for run in running
                ],
            )
            return work_pb.WorkEvent(hello=hello)


def work_from_wire(message: work_pb.WorkRequest) -> Iterator[m.WorkEvent]:
    """The work events of a batch, in order. Raises WireError."""
    for event in message.events:
        yield _work_event_from_wire(event)


def _work_event_from_wire(event: work_pb.WorkEvent) -> m.WorkEvent:
    match event.WhichOneof("kind"):
        case "chunk":
            chunk = event.chunk
            return m.Chunk(RequestId(chunk.id), chunk.attempt, chunk.chunk_json, chunk.tokens)
        case "pull":
            return m.Pull(tuple(RequestId(id) for id in event.pull.ids))
        case "ended":
            ended = event.ended
            return m.AttemptEnded(
                id=RequestId(ended.id),
                attempt=ended.attempt,
                finish_reason=ended.finish_reason,
                prompt_tokens=ended.usage.prompt_tokens,
                output_tokens=ended.usage.output_tokens,
                error=ended.error,
                error_status=ended.error_status,
            )
        case "returned":
            returned = event.returned
            reason = _RETURN_FROM_WIRE.get(returned.reason)
            if reason is None:
                raise WireError(f"events.returned.reason: {returned.reason} is not a known reason")
            return m.AttemptReturned(RequestId(returned.id), returned.attempt, reason)
        case "hello":
            hello = event.hello
            return m.WorkHello(
                AgentId(hello.agent_id),
                tuple(
                    m.Attempt(RequestId(run.id), run.attempt, run.chunks_sent)
                    for run in hello.running
                ),
            )
        case _:
            raise WireError("events: an event without a kind")


def work_orders_to_wire(orders: Iterable[m.WorkOrder]) -> work_pb.WorkResponse:
    """A batch of orders to an agent."""
    return work_pb.WorkResponse(orders=[_work_order_to_wire(order) for order in orders])


def _work_order_to_wire(order: m.WorkOrder) -> work_pb.WorkOrder:
    match order:
        case m.Payload():
            payload = work_pb.Payload(
                id=order.id,
                attempt=order.attempt,
                model=order.model,
                chat=order.chat,
                body_json=order.body,
                resume_text=order.resume_text,
                produced_tokens=order.produced_tokens,
            )
            return work_pb.WorkOrder(payload=payload)
        case m.Refused(id, reason):
            refused = work_pb.Refused(id=id, reason=_REFUSAL_TO_WIRE[reason])
            return work_pb.WorkOrder(refused=refused)
        case m.Revoked(id, attempt):
            return work_pb.WorkOrder(revoked=work_pb.Revoked(id=id, attempt=attempt))


def work_orders_from_wire(message: work_pb.WorkResponse) -> Iterator[m.WorkOrder]:
    """The orders of a batch, in order. Raises WireError."""
    for order in message.orders:
        match order.WhichOneof("kind"):
            case "payload":
                payload = order.payload
                yield m.Payload(
                    id=RequestId(payload.id),
                    attempt=payload.attempt,
                    model=ModelName(payload.model),
                    chat=payload.chat,
                    body=payload.body_json,
                    resume_text=payload.resume_text,
                    produced_tokens=payload.produced_tokens,
                )
            case "refused":
                reason = _REFUSAL_FROM_WIRE.get(order.refused.reason)
                if reason is None:
                    raise WireError(f"orders.refused.reason: {order.refused.reason} is unknown")
                yield m.Refused(RequestId(order.refused.id), reason)
            case "revoked":
                yield m.Revoked(RequestId(order.revoked.id), order.revoked.attempt)
            case _:
                raise WireError("orders: an order without a kind")
