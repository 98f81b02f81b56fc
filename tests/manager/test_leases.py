"""Leases: who is taken for lost when, and what an unknown peer is told."""

from __future__ import annotations

from qlm_core.manager.events import (
    AgentLeft,
    AgentReported,
    GatewayLeft,
    GatewaySaid,
    PartAgent,
    PartGateway,
    Slept,
    Wakeup,
)
from qlm_core.manager.leases import SILENT, UNKNOWN, Leases
from qlm_core.messages import Arrived
from qlm_core.model import AgentId, GatewayId, InstanceState, ModelName
from tests.manager.conftest import GATEWAY, Bench

READY = InstanceState(ready=True, awake_model=ModelName("m"))


def parted(bench: Bench) -> list[PartAgent | PartGateway]:
    """Who was told to join anew."""
    return [one for one in bench.effects if isinstance(one, PartAgent | PartGateway)]


def test_leases_run_out_in_the_order_in_which_they_were_taken():
    leases: Leases[AgentId] = Leases()
    for name, until_s in (("a", 2.0), ("b", 1.0), ("c", 9.0)):
        leases.renew(AgentId(name), until_s)
    assert leases.next_s == 1.0
    assert leases.expire(0.5) == []
    assert leases.expire(2.0) == ["a", "b"]
    assert (leases.next_s, leases.expire(2.0)) == (9.0, [])


def test_a_lease_is_shortened_and_never_lengthened_by_that():
    leases: Leases[AgentId] = Leases()
    leases.renew(AgentId("a"), 2.0)
    leases.shorten(AgentId("a"), 5.0)
    leases.shorten(AgentId("b"), 1.0)
    assert leases.next_s == 2.0
    leases.shorten(AgentId("a"), 1.0)
    assert leases.expire(1.0) == ["a"]


def test_a_released_lease_does_not_run_out():
    leases: Leases[GatewayId] = Leases()
    leases.renew(GatewayId("g"), 1.0)
    leases.release(GatewayId("g"))
    assert leases.expire(5.0) == []


def test_an_agent_whose_lease_ran_out_is_told_to_join_again(bench: Bench):
    a = bench.agent("a", "m")
    bench.post(Wakeup(), after_s=bench.manager.config.agent_lease_s)
    assert bench.manager.agents == {}
    assert parted(bench) == [PartAgent(a, SILENT)]


def test_an_agent_whose_stream_broke_has_nobody_to_be_told(bench: Bench):
    a = bench.agent("a", "m")
    bench.post(AgentLeft(a))
    bench.post(Wakeup(), after_s=1.0)
    assert bench.manager.agents == {}
    assert parted(bench) == []


def test_whoever_is_unknown_is_told_at_once(bench: Bench):
    stranger, lost = AgentId("stranger"), GatewayId("lost")
    bench.post(AgentReported(stranger, READY))
    request = bench.request("m")
    bench.post(GatewaySaid(lost, Arrived(request)))
    assert parted(bench) == [PartAgent(stranger, UNKNOWN), PartGateway(lost, UNKNOWN)]
    assert request.id not in bench.manager.book


def test_no_lease_runs_out_by_the_solvers_own_sleep(bench: Bench):
    a = bench.agent("a", "m")
    bench.arrive("m")
    bench.post(GatewayLeft(GATEWAY))
    bench.post(Slept(99.0), after_s=100.0)
    assert list(bench.manager.agents) == [a]
    assert list(bench.manager.gateways) == [GATEWAY]
    assert len(bench.manager.book) == 1
    lease_s = bench.manager.config.agent_lease_s
    assert bench.manager.wakeup_s is not None
    assert bench.manager.wakeup_s <= 99.0 + lease_s
    bench.post(Wakeup(), after_s=lease_s)
    assert bench.manager.agents == {}
