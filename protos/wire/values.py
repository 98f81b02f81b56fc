"""Values that several conversations share: endpoints, phases, targets, estimates, metadata of requests."""

from __future__ import annotations

from functools import lru_cache
from sys import intern

from protos.qlm.v1 import types_pb2 as types_pb
from protos.wire import bounds as bd
from protos.wire.bounds import WireError
from qlm_core.endpoint import Endpoint
from qlm_core.model import (
    BatchId,
    Estimate,
    GatewayId,
    ModelName,
    Phase,
    RequestId,
    RequestMeta,
    Slo,
)

_PHASE_TO_WIRE = {phase: types_pb.Phase.Value(f"PHASE_{phase.name}") for phase in Phase}
_PHASE_FROM_WIRE: dict[int, Phase] = {number: phase for phase, number in _PHASE_TO_WIRE.items()}
_ENDPOINT_TO_WIRE = {one: types_pb.Endpoint.Value(f"ENDPOINT_{one.name}") for one in Endpoint}
_ENDPOINT_FROM_WIRE: dict[int, Endpoint] = {
    number: endpoint for endpoint, number in _ENDPOINT_TO_WIRE.items()
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


def endpoint_to_wire(endpoint: Endpoint) -> types_pb.Endpoint.ValueType:
    """The wire's number of an endpoint."""
    return _ENDPOINT_TO_WIRE[endpoint]


def endpoint_from_wire(number: int) -> Endpoint | None:
    """The endpoint of a wire number; None for an unspecified or unknown one."""
    return _ENDPOINT_FROM_WIRE.get(number)


def slo_to_wire(slo: Slo) -> types_pb.Slo:
    """Targets on the wire."""
    return types_pb.Slo(ttft_s=slo.ttft_s, tpot_s=slo.tpot_s, e2e_s=slo.e2e_s)


def slo_from_wire(slo: types_pb.Slo) -> Slo:
    """Targets as a client gives them; not checked against any limit."""
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
        mean_s=bd.fit_seconds(estimate.mean_s),
        p50_s=bd.fit_seconds(estimate.p50_s),
        p90_s=bd.fit_seconds(estimate.p90_s),
        p99_s=bd.fit_seconds(estimate.p99_s),
    )


def estimate_from_wire(estimate: types_pb.WaitEstimate) -> Estimate:
    """An estimate from the wire. Raises WireError."""
    p50_s, p90_s, p99_s = estimate.p50_s, estimate.p90_s, estimate.p99_s
    if not 0.0 <= p50_s <= p90_s <= p99_s <= bd.SECONDS_MAX:
        raise WireError(
            f"estimate: its quantiles {p50_s:g}, {p90_s:g}, {p99_s:g} s do not ascend from 0 "
            f"to {bd.SECONDS_MAX:g}"
        )
    mean_s = bd.seconds("estimate.mean_s", estimate.mean_s)
    return Estimate(mean_s=mean_s, p50_s=p50_s, p90_s=p90_s, p99_s=p99_s)


def meta_to_wire(request: RequestMeta, now_s: float) -> types_pb.RequestMeta:
    """A request's metadata on the wire; its gateway is the session's and does not travel."""
    return types_pb.RequestMeta(
        id=request.id,
        model=request.model,
        slo_class=request.slo_class,
        slo=slo_to_wire(request.slo),
        prompt_tokens=bd.fit_count(request.prompt_tokens),
        max_output_tokens=bd.fit_count(request.max_output_tokens),
        produced_tokens=bd.fit_count(request.produced_tokens),
        tenant=request.tenant,
        waited_s=bd.fit_seconds(now_s - request.arrival_s),
        batch_id=request.batch,
    )


def meta_from_wire(request: types_pb.RequestMeta, gateway: GatewayId, now_s: float) -> RequestMeta:
    """A request's metadata as `gateway` announced it. Raises WireError."""
    return RequestMeta(
        id=RequestId(bd.name("request.id", request.id)),
        gateway=gateway,
        model=ModelName(intern(bd.name("request.model", request.model))),
        slo_class=intern(bd.label("request.slo_class", request.slo_class)),
        slo=checked_slo(slo_from_wire(request.slo), "request.slo"),
        prompt_tokens=bd.count("request.prompt_tokens", request.prompt_tokens),
        max_output_tokens=bd.count("request.max_output_tokens", request.max_output_tokens),
        arrival_s=now_s - bd.seconds("request.waited_s", request.waited_s),
        tenant=bd.label("request.tenant", request.tenant),
        produced_tokens=bd.count("request.produced_tokens", request.produced_tokens),
        batch=BatchId(intern(bd.label("request.batch_id", request.batch_id))),
    )


def checked_slo(slo: Slo, field: str) -> Slo:
    """Targets within bounds. Raises WireError."""
    bd.target(f"{field}.ttft_s", slo.ttft_s)
    if slo.tpot_s is not None:
        bd.target(f"{field}.tpot_s", slo.tpot_s)
    if slo.e2e_s is not None:
        bd.target(f"{field}.e2e_s", slo.e2e_s)
    return slo
