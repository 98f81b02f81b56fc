"""Batches for a bare Manager: what a gateway says of them, and what becomes of their lines."""

from __future__ import annotations

from dataclasses import replace

from qlm_core.manager.bulks import Bulk
from qlm_core.manager.events import GatewaySaid, Wakeup
from qlm_core.messages import Arrived, BulkEstimate, BulkWaiting, Ended, Pulled
from qlm_core.model import (
    AgentId,
    BatchId,
    GatewayId,
    ModelName,
    Phase,
    RequestId,
    RequestMeta,
    Slo,
)
from tests.manager.conftest import GATEWAY, Bench

WINDOW_S = 3600.0


def bulk(
    bench: Bench,
    lines: int,
    *,
    batch: str = "b",
    model: str = "m",
    window_s: float = WINDOW_S,
    tenant: str = "",
    prompt_tokens: float = 100.0,
    max_output_tokens: int = 1000,
) -> BulkWaiting:
    """So many lines of a batch that came at the beginning."""
    return BulkWaiting(
        batch=BatchId(batch),
        model=ModelName(model),
        slo_class="batch-2",
        slo=Slo(ttft_s=window_s, e2e_s=window_s),
        lines=lines,
        prompt_tokens_mean=prompt_tokens,
        max_output_tokens=max_output_tokens,
        arrival_s=0.0,
        tenant=tenant,
    )


def line(bench: Bench, told: BulkWaiting, *, gateway: GatewayId = GATEWAY) -> RequestMeta:
    """A line of it as a request."""
    made = bench.request(told.model, told.slo_class, prompt_tokens=round(told.prompt_tokens_mean))
    return replace(
        made,
        gateway=gateway,
        slo=told.slo,
        max_output_tokens=told.max_output_tokens,
        arrival_s=told.arrival_s,
        tenant=told.tenant,
        batch=told.batch,
    )


def release(bench: Bench, told: BulkWaiting, count: int) -> list[RequestId]:
    """So many lines become requests, and the gateway says what is left."""
    lines = [line(bench, told) for _ in range(count)]
    for one in lines:
        bench.fact(Arrived(one))
    bench.fact(replace(told, lines=told.lines - count))
    return [one.id for one in lines]


def run_line(
    bench: Bench, id: RequestId, agent: AgentId, *, tokens: int = 50, phase: Phase = Phase.FINISHED
) -> None:
    """An agent takes a line, and it ends."""
    bench.fact(Pulled(id, agent))
    bench.fact(Ended(id, phase, 100, tokens))


def known(bench: Bench, *, batch: str = "b", model: str = "m") -> Bulk | None:
    """What the Manager knows of a batch."""
    return bench.manager.bulks.of((GATEWAY, BatchId(batch)), ModelName(model))


def unreleased(bench: Bench) -> int:
    """Lines that stand in groups and are no requests."""
    return sum(group.unreleased for group in bench.manager.groups.values())


def said(bench: Bench, batch: str = "b") -> list[BulkEstimate]:
    """Everything that a gateway was told of a batch."""
    orders = bench.to_gateway()
    return [one for one in orders if isinstance(one, BulkEstimate) and one.batch == batch]


def look(bench: Bench, *, after_s: float = 0.1) -> None:
    """Time passes."""
    bench.post(Wakeup(), after_s=after_s)


def fact_of(gateway: GatewayId, fact: BulkWaiting | Arrived) -> GatewaySaid:
    """The same from another gateway."""
    return GatewaySaid(gateway, fact)
