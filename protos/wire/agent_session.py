"""Agent ↔ solver: hello and reports up; queue updates and gateways down."""

from __future__ import annotations

import msgspec

from protos.qlm.v1 import agent_session_service_pb2 as agent_pb
from protos.wire.values import WireError
from qlm_core import messages as m
from qlm_core.model import (
    AgentId,
    GatewayId,
    GroupId,
    InstanceState,
    ModelName,
    ModelTier,
    QueuedGroup,
    RequestId,
    RequestRef,
    RunningRequest,
)
from qlm_core.profile import EngineProfile

_TIER_TO_WIRE = {tier: agent_pb.ModelTier.Value(f"MODEL_TIER_{tier.name}") for tier in ModelTier}
_TIER_FROM_WIRE: dict[int, ModelTier] = {number: tier for tier, number in _TIER_TO_WIRE.items()}

# Epochs only grow, each beyond what an agent brings; this leaves room for as many again in their 64 bits.
EPOCH_MAX = 2**62


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
            if hello.epoch > EPOCH_MAX:
                raise WireError(f"hello.epoch: {hello.epoch} is more than {EPOCH_MAX}")
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
        prompt_tokens_per_s=state.prompt_tokens_per_s,
        resumed_tokens_per_s=state.resumed_tokens_per_s,
        mean_batch=state.mean_batch,
        resume_share=state.resume_share,
        draining=state.draining,
    )


def _state_from_wire(report: agent_pb.AgentReport) -> InstanceState:
    tiers = []
    for model in sorted(report.tiers):
        tier = _TIER_FROM_WIRE.get(report.tiers[model])
        if tier is None:
            raise WireError(f"report.tiers[{model}]: {report.tiers[model]} is not a known tier")
        tiers.append((ModelName(model), tier))
    resume_share = report.resume_share if report.HasField("resume_share") else 1.0
    if not 0.0 <= resume_share <= 1.0:
        raise WireError(f"report.resume_share: {resume_share} is no share")
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
        prompt_tokens_per_s=report.prompt_tokens_per_s,
        resumed_tokens_per_s=report.resumed_tokens_per_s,
        mean_batch=report.mean_batch,
        resume_share=resume_share,
        draining=report.draining,
    )


def agent_order_to_wire(order: m.AgentOrder, now_s: float) -> agent_pb.AgentSessionResponse:
    """An order to an agent."""
    if isinstance(order, m.Alive):
        return agent_pb.AgentSessionResponse()
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
    """An order to an agent. Raises WireError."""
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
        case _ if not message.ByteSize():
            return m.Alive()
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
