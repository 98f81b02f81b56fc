"""Agent ↔ solver: hello and reports up; queue updates and gateways down."""

from __future__ import annotations

import msgspec

from protos.qlm.v1 import agent_session_service_pb2 as agent_pb
from protos.wire import bounds as bd
from protos.wire.bounds import WireError
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
            bd.few("hello.models", hello.models, bd.MODELS_MAX)
            return m.AgentHello(
                agent=AgentId(bd.name("hello.agent_id", hello.agent_id)),
                gpu=bd.label("hello.gpu", hello.gpu),
                profiles=tuple(_profile_from_wire(served) for served in hello.models),
                epoch=bd.number("hello.epoch", hello.epoch),
                state=_state_from_wire(hello.state),
            )
        case _:
            raise WireError("kind: neither hello nor report")


def _profile_from_wire(served: agent_pb.ServedModel) -> EngineProfile:
    field = f"hello.models[{bd.name('hello.models', served.model)}].profile_json"
    try:
        profile = msgspec.json.decode(served.profile_json, type=EngineProfile)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise WireError(f"{field}: {error}") from None
    for name in (profile.model, profile.gpu, profile.adapter_of, profile.source):
        bd.label(field, name)
    return profile


def _state_to_wire(state: InstanceState) -> agent_pb.AgentReport:
    return agent_pb.AgentReport(
        ready=state.ready,
        awake_model=state.awake_model or "",
        swapping_to=state.swapping_to or "",
        tiers={model: _TIER_TO_WIRE[tier] for model, tier in state.tiers},
        running=[
            agent_pb.RunningRequest(
                id=running.id,
                group_id=running.group,
                produced_tokens=bd.fit_count(running.produced_tokens),
            )
            for running in state.running
        ],
        kv_used_tokens=min(max(0, state.kv_used_tokens), bd.NUMBER_MAX),
        tokens_per_s=bd.fit_rate(state.tokens_per_s),
        prompt_tokens_per_s=bd.fit_rate(state.prompt_tokens_per_s),
        resumed_tokens_per_s=bd.fit_rate(state.resumed_tokens_per_s),
        mean_batch=bd.fit_rate(state.mean_batch),
        resume_share=min(max(0.0, state.resume_share), 1.0),
        draining=state.draining,
    )


def _state_from_wire(report: agent_pb.AgentReport) -> InstanceState:
    bd.few("report.tiers", report.tiers, bd.MODELS_MAX)
    bd.few("report.running", report.running, bd.ITEMS_MAX)
    tiers = []
    for model in sorted(report.tiers):
        bd.name("report.tiers", model)
        tier = _TIER_FROM_WIRE.get(report.tiers[model])
        if tier is None:
            raise WireError(f"report.tiers[{model}]: {report.tiers[model]} is not a known tier")
        tiers.append((ModelName(model), tier))
    resume_share = report.resume_share if report.HasField("resume_share") else 1.0
    return InstanceState(
        ready=report.ready,
        awake_model=_model("report.awake_model", report.awake_model),
        swapping_to=_model("report.swapping_to", report.swapping_to),
        tiers=tuple(tiers),
        running=tuple(
            RunningRequest(
                id=RequestId(bd.name("report.running.id", running.id)),
                group=GroupId(bd.number("report.running.group_id", running.group_id)),
                produced_tokens=bd.count("report.running.produced_tokens", running.produced_tokens),
            )
            for running in report.running
        ),
        kv_used_tokens=bd.number("report.kv_used_tokens", report.kv_used_tokens),
        tokens_per_s=bd.rate("report.tokens_per_s", report.tokens_per_s),
        prompt_tokens_per_s=bd.rate("report.prompt_tokens_per_s", report.prompt_tokens_per_s),
        resumed_tokens_per_s=bd.rate("report.resumed_tokens_per_s", report.resumed_tokens_per_s),
        mean_batch=bd.rate("report.mean_batch", report.mean_batch),
        resume_share=bd.share("report.resume_share", resume_share),
        draining=report.draining,
    )


def _model(field: str, name: str) -> ModelName | None:
    return ModelName(bd.name(field, name)) if name else None


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
        wake=order.wake or "",
    )
    return agent_pb.AgentSessionResponse(queue=update)


def _ref_to_wire(ref: RequestRef, now_s: float) -> agent_pb.RequestRef:
    return agent_pb.RequestRef(
        id=ref.id,
        gateway_id=ref.gateway,
        group_id=ref.group,
        prompt_tokens=bd.fit_count(ref.prompt_tokens),
        max_output_tokens=bd.fit_count(ref.max_output_tokens),
        expected_output_tokens=bd.fit_count(ref.expected_output_tokens),
        produced_tokens=bd.fit_count(ref.produced_tokens),
        due_in_s=bd.fit_distance(ref.due_s - now_s),
    )


def agent_order_from_wire(message: agent_pb.AgentSessionResponse, now_s: float) -> m.AgentOrder:
    """An order to an agent. Raises WireError."""
    bd.message(message)
    match message.WhichOneof("kind"):
        case "gateways":
            gateways = message.gateways.gateways
            bd.few("gateways", gateways, bd.PEERS_MAX)
            return m.Gateways(tuple(_gateway_from_wire(gateway) for gateway in gateways))
        case "queue":
            return _queue_from_wire(message.queue, now_s)
        case _ if not message.ByteSize():
            return m.Alive()
        case _:
            raise WireError("kind: neither queue nor gateways")


def _gateway_from_wire(gateway: agent_pb.GatewayAddress) -> tuple[GatewayId, str]:
    id = GatewayId(bd.name("gateways.gateway_id", gateway.gateway_id))
    return id, bd.address("gateways.address", gateway.address)


def _queue_from_wire(update: agent_pb.QueueUpdate, now_s: float) -> m.QueueUpdate:
    for field in ("order", "add", "remove"):
        bd.few(f"queue.{field}", getattr(update, field), bd.ITEMS_MAX)
    order = tuple(map(_group_from_wire, update.order)) if update.order_changed else None
    return m.QueueUpdate(
        epoch=bd.number("queue.epoch", update.epoch),
        snapshot=update.snapshot,
        order=order,
        add=tuple(_ref_from_wire(ref, now_s) for ref in update.add),
        remove=tuple(RequestId(bd.name("queue.remove", id)) for id in update.remove),
        wake=ModelName(bd.name("queue.wake", update.wake)) if update.wake else None,
    )


def _group_from_wire(group: agent_pb.QueuedGroup) -> QueuedGroup:
    return QueuedGroup(
        GroupId(bd.number("queue.order.group_id", group.group_id)),
        ModelName(bd.name("queue.order.model", group.model)),
        bd.label("queue.order.slo_class", group.slo_class),
    )


def _ref_from_wire(ref: agent_pb.RequestRef, now_s: float) -> RequestRef:
    return RequestRef(
        id=RequestId(bd.name("queue.add.id", ref.id)),
        gateway=GatewayId(bd.name("queue.add.gateway_id", ref.gateway_id)),
        group=GroupId(bd.number("queue.add.group_id", ref.group_id)),
        prompt_tokens=bd.count("queue.add.prompt_tokens", ref.prompt_tokens),
        max_output_tokens=bd.count("queue.add.max_output_tokens", ref.max_output_tokens),
        expected_output_tokens=bd.count(
            "queue.add.expected_output_tokens", ref.expected_output_tokens
        ),
        produced_tokens=bd.count("queue.add.produced_tokens", ref.produced_tokens),
        due_s=now_s + bd.distance("queue.add.due_in_s", ref.due_in_s),
    )
