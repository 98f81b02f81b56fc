"""Gateway ↔ solver: facts up; estimates, orders to shed and the fleet down."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from protos.qlm.v1 import gateway_session_service_pb2 as gateway_pb
from protos.qlm.v1 import types_pb2 as types_pb
from protos.wire import bounds as bd
from protos.wire.bounds import WireError
from protos.wire.bulk import (
    bulk_estimate_from_wire,
    bulk_estimate_to_wire,
    bulk_from_wire,
    bulk_to_wire,
)
from protos.wire.values import (
    estimate_from_wire,
    estimate_to_wire,
    meta_from_wire,
    meta_to_wire,
    phase_from_wire,
    phase_to_wire,
)
from qlm_core import messages as m
from qlm_core.model import AgentId, GatewayId, ModelName, RequestId
from qlm_core.outcome import ShedReason

# What has a form of its own on the wire.
_SaidFact = (
    m.GatewayHello
    | m.Arrived
    | m.Pulled
    | m.Returned
    | m.FirstToken
    | m.Ended
    | m.BulkWaiting
    | m.AnnounceDone
)
_SaidOrder = m.EstimateGiven | m.ShedOrder | m.BulkEstimate | m.Fleet
# More than a fact or an order takes in a message beside its names, each of whose characters may take four bytes.
_FACT_BYTES = 384
_CHAR_BYTES = 4


def fact_bytes(fact: m.GatewayFact) -> int:
    """At most this many bytes of a message."""
    if isinstance(fact, m.Arrived):
        request = fact.request
        names = len(request.model) + len(request.slo_class) + len(request.tenant)
        return _FACT_BYTES + _CHAR_BYTES * (len(request.id) + names + len(request.batch))
    if isinstance(fact, m.BulkWaiting):
        names = len(fact.model) + len(fact.slo_class) + len(fact.tenant)
        return _FACT_BYTES + _CHAR_BYTES * (len(fact.batch) + names)
    return _FACT_BYTES


def order_bytes(order: m.GatewayOrder) -> int:
    """At most this many bytes of a message."""
    if isinstance(order, m.Fleet):
        return _FACT_BYTES + sum(8 + _CHAR_BYTES * len(model) for model in order.models)
    if isinstance(order, m.BulkEstimate):
        return _FACT_BYTES + _CHAR_BYTES * (len(order.batch) + len(order.explanation))
    return _FACT_BYTES


def facts_to_wire(facts: Iterable[m.GatewayFact], now_s: float) -> gateway_pb.GatewaySessionRequest:
    """A batch of facts from a gateway."""
    return gateway_pb.GatewaySessionRequest(
        facts=[_fact_to_wire(fact, now_s) for fact in facts if not isinstance(fact, m.Alive)]
    )


def _fact_to_wire(fact: _SaidFact, now_s: float) -> gateway_pb.GatewayFact:
    match fact:
        case m.Arrived(request, estimated):
            arrived = meta_to_wire(request, now_s)
            return gateway_pb.GatewayFact(arrived=arrived, estimated=estimated)
        case m.Pulled(id, agent):
            return gateway_pb.GatewayFact(pulled=gateway_pb.RequestPulled(id=id, agent_id=agent))
        case m.FirstToken(id, ttft_s):
            first = gateway_pb.FirstToken(id=id, ttft_s=bd.fit_seconds(ttft_s))
            return gateway_pb.GatewayFact(first_token=first)
        case m.Ended(id, phase, prompt_tokens, output_tokens):
            usage = types_pb.Usage(
                prompt_tokens=bd.fit_count(prompt_tokens),
                output_tokens=bd.fit_count(output_tokens),
            )
            return gateway_pb.GatewayFact(
                ended=gateway_pb.RequestEnded(id=id, phase=phase_to_wire(phase), usage=usage)
            )
        case m.Returned(id, produced_tokens):
            returned = gateway_pb.RequestReturned(
                id=id, produced_tokens=bd.fit_count(produced_tokens)
            )
            return gateway_pb.GatewayFact(returned=returned)
        case m.BulkWaiting():
            return gateway_pb.GatewayFact(bulk_waiting=bulk_to_wire(fact, now_s))
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
    bd.few("facts", message.facts, bd.ITEMS_MAX)
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
            return m.Arrived(meta_from_wire(fact.arrived, gateway, now_s), fact.estimated)
        case "pulled":
            return m.Pulled(
                RequestId(bd.name("pulled.id", fact.pulled.id)),
                AgentId(bd.name("pulled.agent_id", fact.pulled.agent_id)),
            )
        case "first_token":
            return m.FirstToken(
                RequestId(bd.name("first_token.id", fact.first_token.id)),
                bd.seconds("first_token.ttft_s", fact.first_token.ttft_s),
            )
        case "ended":
            usage = fact.ended.usage
            return m.Ended(
                RequestId(bd.name("ended.id", fact.ended.id)),
                phase_from_wire(fact.ended.phase),
                bd.count("ended.usage.prompt_tokens", usage.prompt_tokens),
                bd.count("ended.usage.output_tokens", usage.output_tokens),
            )
        case "returned":
            return m.Returned(
                RequestId(bd.name("returned.id", fact.returned.id)),
                bd.count("returned.produced_tokens", fact.returned.produced_tokens),
            )
        case "bulk_waiting":
            return bulk_from_wire(fact.bulk_waiting, now_s)
        case "hello":
            return m.GatewayHello(
                GatewayId(bd.name("hello.gateway_id", fact.hello.gateway_id)),
                bd.address("hello.work_address", fact.hello.work_address),
            )
        case "announce_done":
            return m.AnnounceDone()
        case _:
            raise WireError("facts: a fact without a kind")


def gateway_orders_to_wire(orders: Iterable[m.GatewayOrder]) -> gateway_pb.GatewaySessionResponse:
    """A batch of orders to a gateway."""
    return gateway_pb.GatewaySessionResponse(
        orders=[_gateway_order_to_wire(order) for order in orders if not isinstance(order, m.Alive)]
    )


def _gateway_order_to_wire(order: _SaidOrder) -> gateway_pb.GatewayOrder:
    match order:
        case m.EstimateGiven(id, estimate):
            given = gateway_pb.EstimateGiven(id=id, estimate=estimate_to_wire(estimate))
            return gateway_pb.GatewayOrder(estimate=given)
        case m.ShedOrder(id, reason, retry_after_s):
            shed = gateway_pb.Shed(
                id=id, reason=reason.value, retry_after_s=bd.fit_seconds(retry_after_s)
            )
            return gateway_pb.GatewayOrder(shed=shed)
        case m.BulkEstimate():
            return gateway_pb.GatewayOrder(bulk_estimate=bulk_estimate_to_wire(order))
        case m.Fleet(models, up):
            return gateway_pb.GatewayOrder(fleet=gateway_pb.Fleet(models=models, down=not up))


def gateway_orders_from_wire(
    message: gateway_pb.GatewaySessionResponse,
) -> Iterator[m.GatewayOrder]:
    """The orders of a batch, in order. Raises WireError."""
    bd.message(message)
    bd.few("orders", message.orders, bd.ITEMS_MAX)
    for order in message.orders:
        match order.WhichOneof("kind"):
            case "estimate":
                estimate = estimate_from_wire(order.estimate.estimate)
                yield m.EstimateGiven(
                    RequestId(bd.name("estimate.id", order.estimate.id)), estimate
                )
            case "shed":
                shed = order.shed
                id = RequestId(bd.name("shed.id", shed.id))
                retry_after_s = bd.seconds("shed.retry_after_s", shed.retry_after_s)
                yield m.ShedOrder(id, _shed_reason(shed.reason), retry_after_s)
            case "bulk_estimate":
                yield bulk_estimate_from_wire(order.bulk_estimate)
            case "fleet":
                bd.few("fleet.models", order.fleet.models, bd.MODELS_MAX)
                models = tuple(
                    ModelName(bd.name("fleet.models", model)) for model in order.fleet.models
                )
                yield m.Fleet(models, not order.fleet.down)
            case _:
                raise WireError("orders: an order without a kind")


def _shed_reason(text: str) -> ShedReason:
    try:
        return ShedReason(text)
    except ValueError:
        raise WireError(f"orders.shed.reason: {text[:64]!r} is not a known reason") from None
