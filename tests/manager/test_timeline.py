"""Who is expected to go before whom, of those that have not arrived yet."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest

from qlm_core.config import ObjectiveConfig, RwtConfig, SolverConfig
from qlm_core.grouping import GroupKey
from qlm_core.manager import Manager
from qlm_core.manager.events import AgentReported
from qlm_core.manager.timeline import Clocks, _Stream
from qlm_core.messages import Arrived, EstimateGiven, Pulled
from qlm_core.model import (
    AgentId,
    InstanceState,
    ModelName,
    RequestId,
    RequestMeta,
    RunningRequest,
    Slo,
)
from tests.manager.conftest import CLASSES, Bench

SHORT, LONG = 100, 900


def stream(ttft_s: float, worth: float) -> _Stream:
    return _Stream(ttft_s, 10.0, Clocks(0.5, 0.5, 0.5), worth)


@pytest.mark.parametrize(
    ("other", "own", "first_s"),
    [
        # Among equals by due time.
        (stream(20.0, 1.0), stream(60.0, 1.0), 40.0),
        (stream(60.0, 1.0), stream(20.0, 1.0), -40.0),
        (stream(20.0, 1.0), stream(20.0, 1.0), 0.0),
        # Of equal targets those that need less of an engine, or weigh more, nearly until the other one is late.
        (stream(20.0, 10.0), stream(20.0, 1.0), 18.0),
        (stream(60.0, 10.0), stream(20.0, 1.0), 14.0),
        # Those that need much only once they are nearly late.
        (stream(20.0, 1.0), stream(60.0, 4.0), -20.0),
        # Who weighs nothing goes before nobody else.
        (stream(20.0, 0.0), stream(60.0, 1.0), -inf),
        (stream(60.0, 1.0), stream(20.0, 0.0), 20.0),
        (stream(20.0, 0.0), stream(60.0, 0.0), 40.0),
    ],
)
def test_for_how_long_new_requests_go_first(other: _Stream, own: _Stream, first_s: float) -> None:
    assert other.first_before_s(own) == pytest.approx(first_s)


def request(bench: Bench, slo_class: str, prompt_tokens: int) -> RequestMeta:
    return bench.request("m", slo_class, prompt_tokens=prompt_tokens)


def test_long_prompts_are_overtaken_by_short_ones_of_their_class(bench: Bench) -> None:
    a = bench.agent("a", "m")
    for id in bench.arrive("m", "batch-2", count=64):
        bench.fact(Pulled(id, a))
    for _ in range(20):
        for tokens in (SHORT, LONG):
            bench.fact(Arrived(request(bench, "interactive", tokens)), after_s=0.05)
    manager = bench.manager
    keys = {tokens: GroupKey.of(request(bench, "interactive", tokens)) for tokens in (SHORT, LONG)}
    overtaking = {
        tokens: manager.timeline._overtakers(manager.agents[a], key, manager.agents, bench.now_s)
        for tokens, key in keys.items()
    }
    assert not any(overtaking[SHORT])
    [paced, pressed, computed] = overtaking[LONG]
    assert [len(clock) for clock in (paced, pressed, computed)] == [1, 1, 1]
    assert 10.0 < pressed[0].first_s < 20.0
    # Lax requests let both go first, for as long as their targets are apart, or longer.
    lax = GroupKey.of(request(bench, "batch-2", SHORT))
    before_lax = manager.timeline._overtakers(manager.agents[a], lax, manager.agents, bench.now_s)
    assert len(before_lax[0]) == 2
    assert all(one.first_s > 3500.0 for one in before_lax[0])


def test_a_kind_that_has_not_arrived_yet_is_overtaken_too(bench: Bench) -> None:
    a = bench.agent("a", "m")
    for _ in range(20):
        bench.fact(Arrived(request(bench, "interactive", SHORT)), after_s=0.05)
    manager = bench.manager
    key = GroupKey.of(request(bench, "batch-1", LONG))
    [[one], *_] = manager.timeline._overtakers(manager.agents[a], key, manager.agents, bench.now_s)
    assert 40.0 < one.first_s < 60.0


@pytest.mark.parametrize(
    "config",
    [
        SolverConfig(),
        SolverConfig(rwt=RwtConfig(token_throughput={"m": 1000.0})),
        SolverConfig(
            rwt=RwtConfig(token_throughput={"m": 1000.0}), objective=ObjectiveConfig(rest_share=0.0)
        ),
    ],
)
@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_waits_are_told_where_weights_and_prompts_cost_nothing(
    config: SolverConfig, weight: float
) -> None:
    classes = tuple(replace(one, weight=weight) for one in CLASSES[1:])
    bench = Bench(Manager(config, (CLASSES[0], *classes), now_s=0.0))
    bench.gateway()
    a = bench.agent("a", "m")
    for id in bench.arrive("m", "batch-2", count=64):
        bench.fact(Pulled(id, a))
    for _ in range(10):
        for slo_class in ("interactive", "batch-1", "batch-2"):
            bench.fact(Arrived(request(bench, slo_class, SHORT)), after_s=0.05)
    given = [order for order in bench.to_gateway() if isinstance(order, EstimateGiven)]
    assert len(given) == 64 + 30
    assert all(0.0 <= one.estimate.mean_s < inf for one in given)


def test_targets_that_clients_name_are_not_each_a_kind_of_their_own(bench: Bench) -> None:
    bench.agent("a", "m")
    for number in range(300):
        slo = Slo(ttft_s=16.0 + number / 20.0)
        one = replace(request(bench, "interactive", SHORT), slo_class="explicit-16s", slo=slo)
        bench.fact(Arrived(one), after_s=0.01)
    [one] = bench.manager.estimators.arriving(one.model, now_s=bench.now_s)
    assert one.per_s == pytest.approx(100.0, rel=0.1)
    assert one.key.ttft_s == 16.0


def full(bench: Bench, slo_class: str, count: int = 64) -> None:
    """An engine whose slots are all taken by requests that have begun."""
    a = bench.agent("a", "m")
    ids = bench.arrive("m", slo_class, count=count)
    for id in ids:
        bench.fact(Pulled(id, a))
    book = bench.manager.book
    running = []
    for id in ids:
        held = book.get(id)
        assert held is not None
        running.append(RunningRequest(id=id, group=held.group.id, produced_tokens=5))
    state = InstanceState(ready=True, awake_model=ModelName("m"), running=tuple(running))
    bench.post(AgentReported(a, state))


def told(bench: Bench, slo_class: str) -> EstimateGiven:
    bench.arrive("m", slo_class)
    order = bench.to_gateway()[-1]
    assert isinstance(order, EstimateGiven)
    return order


def test_whoever_finds_every_slot_taken_is_told_of_the_next_end(bench: Bench) -> None:
    full(bench, "batch-2", count=63)
    assert told(bench, "batch-2").estimate.mean_s < 0.05
    bench.fact(Pulled(RequestId("r64"), AgentId("a")))
    rate = bench.manager.estimators.rate(
        bench.manager.agents[AgentId("a")].profiles[ModelName("m")], None, now_s=bench.now_s
    )
    assert told(bench, "batch-2").estimate.mean_s > rate.seconds_per_request


def test_behind_laxer_work_nobody_is_told_of_a_wait_that_eviction_cuts_short(bench: Bench) -> None:
    """The quantiles of a full engine's next ends reach beyond the target; laxer work gives way before it."""
    full(bench, "batch-2")
    for _ in range(40):
        estimate = told(bench, "interactive").estimate
    assert estimate.p99_s < 21.0
