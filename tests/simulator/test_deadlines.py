"""What the rivals that go by deadlines make of a request that was evicted after its first token."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qlm_core.config import SolverConfig
from qlm_core.model import REST_S, GatewayId, ModelName, RequestId, RequestMeta, Slo, SloClass
from qlm_core.sim.policies.base import Context
from qlm_core.sim.policies.shared import Edf, EdfEvict, EdfModel, LeastSlack

TIGHT = SloClass(name="tight", slo=Slo(ttft_s=5.0))
LAX = SloClass(name="lax", slo=Slo(ttft_s=60.0))
RIVALS = pytest.mark.parametrize("rival", [Edf, EdfEvict, EdfModel, LeastSlack])


def made(rival: type[Edf]) -> Edf:
    return rival(Context(config=SolverConfig(), classes=(TIGHT, LAX), foresee=lambda: (), seed=0))


def request(arrival_s: float, slo: Slo, *, produced_tokens: int = 0) -> RequestMeta:
    return RequestMeta(
        id=RequestId("r"),
        gateway=GatewayId("gateway-0"),
        model=ModelName("m"),
        slo_class="any",
        slo=slo,
        prompt_tokens=100,
        max_output_tokens=100,
        arrival_s=arrival_s,
        produced_tokens=produced_tokens,
    )


@RIVALS
def test_it_comes_after_those_that_still_owe_a_first_token(rival: type[Edf]) -> None:
    policy = made(rival)
    begun = request(0.0, TIGHT.slo, produced_tokens=7)
    assert policy.rank(replace(begun, produced_tokens=0)) < policy.rank(request(1.0, TIGHT.slo))
    assert policy.rank(begun) > policy.rank(request(1.0, TIGHT.slo))
    assert policy.rank(begun) > policy.rank(request(4.0, LAX.slo))


@RIVALS
def test_it_does_not_starve(rival: type[Edf]) -> None:
    policy = made(rival)
    begun = request(0.0, TIGHT.slo, produced_tokens=7)
    assert policy.rank(begun) < policy.rank(request(REST_S, TIGHT.slo))


@RIVALS
@pytest.mark.parametrize("slo", [Slo(ttft_s=5.0, tpot_s=0.2), Slo(ttft_s=5.0, e2e_s=30.0)])
def test_it_keeps_its_deadline_where_more_is_promised(rival: type[Edf], slo: Slo) -> None:
    policy = made(rival)
    fresh = request(0.0, slo)
    assert policy.rank(replace(fresh, produced_tokens=7)) == policy.rank(fresh)
