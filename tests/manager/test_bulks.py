"""Lines of batches that are no requests yet are planned with, and are nothing that an agent could pull."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qlm_core.config import SolverConfig, SolverLimits
from qlm_core.manager import Manager
from qlm_core.manager.events import AgentLeft, GatewayJoined, GatewayLeft, Wakeup
from qlm_core.manager.views import explain, view
from qlm_core.messages import (
    AnnounceDone,
    Arrived,
    BulkWaiting,
    Ended,
    EstimateGiven,
    GatewayHello,
    Pulled,
    Returned,
    ShedOrder,
)
from qlm_core.model import BatchId, GatewayId, ModelName, Phase, RequestId
from tests.manager.conftest import CLASSES, GATEWAY, Bench
from tests.manager.lines import (
    bulk,
    fact_of,
    known,
    line,
    look,
    release,
    run_line,
    unreleased,
)


@pytest.mark.parametrize("lines", [1_000, 1_000_000])
def test_a_batch_is_a_few_groups_whatever_its_size(bench: Bench, lines: int) -> None:
    a, b = bench.agent("a", "m"), bench.agent("b", "m")
    bench.fact(bulk(bench, lines))
    assert unreleased(bench) == lines
    assert 2 <= len(bench.manager.groups) <= 4
    assert all(bench.manager.agents[agent].queue for agent in (a, b))
    assert bench.window(a) == bench.window(b) == {}


def test_twenty_large_batches_make_no_more_groups_than_instances_and_batches_call_for(
    bench: Bench,
) -> None:
    for name in "abcd":
        bench.agent(name, "m")
    for number in range(20):
        bench.fact(bulk(bench, 50_000, batch=f"b{number}"))
    assert unreleased(bench) == 1_000_000
    assert len(bench.manager.groups) <= 40


def test_released_lines_are_what_agents_are_told_of(bench: Bench) -> None:
    a, b = bench.agent("a", "m"), bench.agent("b", "m")
    told = bulk(bench, 1_000)
    bench.fact(told)
    ids = release(bench, told, 40)
    assert sorted([*bench.window(a), *bench.window(b)]) == sorted(ids)
    assert len(bench.window(a)) == len(bench.window(b)) == 20
    assert unreleased(bench) == 960
    assert sum(group.waiting for group in bench.manager.groups.values()) == 1_000


def test_what_was_told_last_counts(bench: Bench) -> None:
    bench.agent("a", "m")
    for lines in (500, 500, 120, 700):
        bench.fact(bulk(bench, lines))
        assert unreleased(bench) == lines
    bench.fact(bulk(bench, 0))
    assert not bench.manager.groups
    assert known(bench) is None
    assert not bench.manager.agents[bench.agent("a", "m")].queue


def test_no_lines_of_a_batch_that_nobody_knows_are_no_news(bench: Bench) -> None:
    bench.agent("a", "m")
    bench.fact(bulk(bench, 0))
    assert known(bench) is None
    assert not bench.manager.groups


def test_a_batch_lasts_until_its_last_line_has_ended(bench: Bench) -> None:
    a = bench.agent("a", "m")
    told = bulk(bench, 3)
    bench.fact(told)
    ids = release(bench, told, 3)
    for id in ids[:2]:
        run_line(bench, id, a)
    bulk_now = known(bench)
    assert bulk_now is not None
    assert (bulk_now.unreleased, bulk_now.open, bulk_now.ended) == (0, 1, 2)
    run_line(bench, ids[2], a)
    assert known(bench) is None


def test_lines_that_come_back_wait_in_their_group(bench: Bench) -> None:
    a = bench.agent("a", "m")
    told = bulk(bench, 10)
    bench.fact(told)
    first, *_ = release(bench, told, 4)
    bench.fact(Pulled(first, a))
    bulk_now = known(bench)
    assert bulk_now is not None
    assert (bulk_now.waiting, bulk_now.held) == (9, 1)
    bench.fact(Returned(first, 5))
    assert (bulk_now.waiting, bulk_now.held) == (10, 0)
    held = bench.manager.book.get(first)
    assert held is not None
    assert held.group.key.batch == (GATEWAY, BatchId("b"))
    assert first in bench.window(a)


def test_a_request_that_cannot_wait_goes_before_a_million_lines(bench: Bench) -> None:
    a = bench.agent("a", "m")
    told = bulk(bench, 1_000_000)
    bench.fact(told)
    release(bench, told, 100)
    [urgent] = bench.arrive("m", "interactive")
    held = bench.manager.book.get(urgent)
    assert held is not None
    assert bench.manager.agents[a].queue[0] == held.group.id
    given = [order for order in bench.to_gateway() if isinstance(order, EstimateGiven)]
    assert [order.id for order in given] == [urgent]
    assert given[0].estimate.p50_s < 1.0


def test_ordinary_groups_are_as_small_beside_a_batch_as_without(bench: Bench) -> None:
    """Few requests wait: each is a group of its own, so that instances share them, however many lines wait beside."""
    bench.agent("a", "m")
    bench.agent("b", "m")
    told = bulk(bench, 100_000)
    bench.fact(told)
    release(bench, told, 500)
    ids = bench.arrive("m", "interactive", count=4)
    groups = {bench.manager.book.get(id).group.id: None for id in ids}  # type: ignore[union-attr]
    assert len(groups) == 4
    assert bench.manager.book.waiting == 4


def test_lines_are_no_stream_of_requests_that_goes_on(bench: Bench) -> None:
    bench.agent("a", "m")
    told = bulk(bench, 1_000)
    bench.fact(told)
    release(bench, told, 200)
    assert bench.manager.estimators.arriving(ModelName("m"), now_s=bench.now_s) == []
    bench.arrive("m")
    [stream] = bench.manager.estimators.arriving(ModelName("m"), now_s=bench.now_s)
    assert stream.key.batch is None


def test_lines_are_not_estimated_one_by_one(bench: Bench) -> None:
    bench.agent("a", "m")
    told = bulk(bench, 100)
    bench.fact(told)
    release(bench, told, 50)
    assert not [one for one in bench.to_gateway() if isinstance(one, EstimateGiven | ShedOrder)]


def test_what_needs_another_model_waits_for_the_end_of_a_bulk(bench: Bench) -> None:
    """Between two lines there may be a moment without one; an agent that knew what comes next would swap in it."""
    a = bench.agent("a", "m", "n")
    told = bulk(bench, 50)
    bench.fact(told)
    ids = release(bench, told, 10)
    later = bulk(bench, 20, batch="c", model="n", window_s=86_400.0)
    bench.fact(later)
    behind = release(bench, later, 5)
    manager = bench.manager
    assert manager.groups[manager.agents[a].queue[-1]].key.model == "n"
    assert list(bench.window(a)) == ids
    # The last of them are requests, so nothing more is to come.
    ids += release(bench, replace(told, lines=40), 40)
    for id in ids[:-1]:
        run_line(bench, id, a)
    bench.post(Wakeup(), after_s=1.0)
    assert [id for id in bench.window(a) if id in behind] == behind


def test_lines_of_a_gateway_that_releases_none_hold_nobody_up(bench: Bench) -> None:
    a = bench.agent("a", "m", "n")
    bench.fact(bulk(bench, 50))
    later = bulk(bench, 20, batch="c", model="n", window_s=86_400.0)
    bench.fact(later)
    behind = release(bench, later, 5)
    assert list(bench.window(a)) == behind


def test_released_lines_wait_where_they_are_wanted_first(bench: Bench) -> None:
    """One instance has other work for minutes before it comes to the batch: released lines go to the other."""
    busy, free = bench.agent("busy", "n", "m", slots=4), bench.agent("free", "m", slots=4)
    for number in range(400):
        bench.arrive("n", "batch-1" if number % 2 else "interactive")
    told = bulk(bench, 4_000, window_s=600.0)
    bench.fact(told)
    ids = release(bench, told, 60)
    assert not [id for id in bench.window(busy) if id in ids]
    assert sorted(id for id in bench.window(free) if id in ids) == sorted(ids)


def test_groups_are_halved_when_more_instances_could_share_them(bench: Bench) -> None:
    bench.agent("a", "m")
    bench.fact(bulk(bench, 400))
    assert [group.unreleased for group in bench.manager.groups.values()] == [200, 200]
    for name in "bcd":
        bench.agent(name, "m")
    look(bench, after_s=1.0)
    assert [group.unreleased for group in bench.manager.groups.values()] == [100] * 4
    told = bulk(bench, 400)
    release(bench, told, 10)
    assert unreleased(bench) == 390


def test_when_an_agent_is_lost_its_lines_go_elsewhere(bench: Bench) -> None:
    a, b = bench.agent("a", "m"), bench.agent("b", "m")
    told = bulk(bench, 1_000)
    bench.fact(told)
    ids = release(bench, told, 20)
    taken = next(iter(bench.window(a)))
    bench.fact(Pulled(taken, a))
    bench.post(AgentLeft(a))
    look(bench, after_s=2.0)
    assert a not in bench.manager.agents
    assert unreleased(bench) == 980
    bench.fact(Returned(taken, 0))
    assert sorted(bench.window(b)) == sorted(ids)


def test_a_gateway_that_comes_again_is_believed_anew_and_what_was_learned_is_kept(
    bench: Bench,
) -> None:
    a = bench.agent("a", "m")
    told = bulk(bench, 300)
    bench.fact(told)
    for id in release(bench, told, 40):
        run_line(bench, id, a, tokens=7)
    key = known(bench).key  # type: ignore[union-attr]
    learned = bench.manager.estimators.batch(key)
    bench.post(GatewayLeft(GATEWAY))
    bench.post(GatewayJoined(GatewayHello(GATEWAY, "127.0.0.1:1")))
    assert unreleased(bench) == 0
    bench.fact(replace(told, lines=200))
    bench.fact(AnnounceDone())
    assert unreleased(bench) == 200
    assert bench.manager.estimators.batch(key) is learned


def test_a_batch_that_is_not_announced_again_is_over(bench: Bench) -> None:
    bench.agent("a", "m")
    bench.fact(bulk(bench, 300))
    bench.post(GatewayJoined(GatewayHello(GATEWAY, "127.0.0.1:1")))
    bench.fact(AnnounceDone())
    assert known(bench) is None
    assert not bench.manager.groups


def test_lines_that_are_announced_before_their_bulk_join_it_later(bench: Bench) -> None:
    """After a restart of the solver requests are told first."""
    a = bench.agent("a", "m")
    told = bulk(bench, 100)
    early = [line(bench, told) for _ in range(5)]
    for one in early:
        bench.fact(Arrived(one))
    bench.fact(told)
    bulk_now = known(bench)
    assert bulk_now is not None
    assert (bulk_now.unreleased, bulk_now.open) == (100, 5)
    late = release(bench, told, 5)
    assert sorted(bench.window(a)) == sorted([*(one.id for one in early), *late])
    for id in bench.window(a):
        run_line(bench, id, a)
    bench.fact(replace(told, lines=0))
    assert known(bench) is None
    assert not bench.manager.groups


def test_the_batches_of_a_gateway_that_stays_away_are_forgotten(bench: Bench) -> None:
    bench.agent("a", "m")
    told = bulk(bench, 300)
    bench.fact(told)
    release(bench, told, 10)
    bench.post(GatewayLeft(GATEWAY))
    look(bench, after_s=bench.manager.config.gateway_lease_s + 1.0)
    assert known(bench) is None
    assert not bench.manager.groups
    assert not len(bench.manager.book)


def test_two_gateways_may_call_different_batches_the_same(bench: Bench) -> None:
    other = GatewayId("h")
    bench.agent("a", "m")
    bench.post(GatewayJoined(GatewayHello(other, "127.0.0.1:2")))
    told = bulk(bench, 100)
    bench.fact(told)
    bench.post(fact_of(other, replace(told, lines=50)))
    assert unreleased(bench) == 150
    theirs = line(bench, told, gateway=other)
    bench.post(fact_of(other, Arrived(theirs)))
    assert known(bench).unreleased == 100  # type: ignore[union-attr]
    bench.fact(replace(told, lines=0))
    assert unreleased(bench) == 49


def test_lines_of_several_models_are_bulks_of_their_own(bench: Bench) -> None:
    a, b = bench.agent("a", "m"), bench.agent("b", "n")
    bench.fact(bulk(bench, 100, model="m"))
    bench.fact(bulk(bench, 70, model="n"))
    counts = {
        agent: sum(bench.manager.groups[id].unreleased for id in bench.manager.agents[agent].queue)
        for agent in (a, b)
    }
    assert counts == {a: 100, b: 70}


def test_lines_that_nobody_serves_wait_for_an_agent(bench: Bench) -> None:
    told = bulk(bench, 100)
    bench.fact(told)
    ids = release(bench, told, 10)
    a = bench.agent("a", "m")
    assert sorted(bench.window(a)) == sorted(ids)
    assert unreleased(bench) == 90


def test_beyond_the_limit_only_released_lines_are_planned() -> None:
    config = SolverConfig(limits=SolverLimits(batches_max=2))
    bench = Bench(Manager(config, CLASSES, now_s=0.0))
    bench.gateway()
    a = bench.agent("a", "m")
    for name in "bcd":
        bench.fact(bulk(bench, 100, batch=name))
    assert unreleased(bench) == 200
    assert bench.manager.bulks.refused == 1
    one = line(bench, bulk(bench, 100, batch="d"))
    bench.fact(Arrived(one))
    assert one.id in bench.window(a)


def test_lines_are_learned_from_once_their_agent_has_reported(bench: Bench) -> None:
    """Those that have ended were short; how far the others are is told a moment later."""
    from qlm_core.manager.events import AgentReported
    from qlm_core.model import InstanceState

    a = bench.agent("a", "m")
    told = bulk(bench, 100)
    bench.fact(told)
    ids = release(bench, told, 20)
    lengths = bench.manager.estimators.batch(known(bench).key).lengths  # type: ignore[union-attr]
    for id in ids:
        run_line(bench, id, a, tokens=5)
    assert lengths.ended == 0
    bench.post(AgentReported(a, InstanceState(ready=True, awake_model=ModelName("m"))))
    assert lengths.ended == pytest.approx(20, rel=0.1)


def test_what_is_learned_of_a_batch_is_not_taken_for_its_class(bench: Bench) -> None:
    from qlm_core.manager.events import AgentReported
    from qlm_core.model import InstanceState

    a = bench.agent("a", "m")
    usual = bench.manager.estimators.lengths(ModelName("m"), "batch-2").expected(1000)
    told = bulk(bench, 100)
    bench.fact(told)
    for id in release(bench, told, 80):
        run_line(bench, id, a, tokens=5)
    bench.post(AgentReported(a, InstanceState(ready=True, awake_model=ModelName("m"))))
    assert bench.manager.estimators.expected_output(line(bench, told)) < 20
    assert bench.manager.estimators.lengths(ModelName("m"), "batch-2").expected(1000) == usual


def test_the_view_counts_lines_apart_from_requests(bench: Bench) -> None:
    bench.agent("a", "m")
    told = bulk(bench, 1_000, tenant="t")
    bench.fact(told)
    first, *_ = release(bench, told, 30)
    look(bench)
    seen = view(bench.manager, now_s=bench.now_s)
    assert (seen["waiting"], seen["waiting_lines"], seen["held"]) == (30, 970, 0)
    [batch] = seen["batches"]
    assert (batch["batch"], batch["tenant"], batch["gateway"]) == ("b", "t", GATEWAY)
    assert batch["models"] == [
        {"model": "m", "waiting_lines": 970, "waiting": 30, "held": 0, "ended": 0}
    ]
    assert 0.0 < batch["finish_p50_s"] <= batch["finish_p90_s"]
    why = explain(bench.manager, first, now_s=bench.now_s)
    assert why is not None
    assert why["batch"]["explanation"] == batch["explanation"] != ""


def test_what_is_said_of_lines_that_ended_elsewhere_changes_nothing(bench: Bench) -> None:
    bench.agent("a", "m")
    told = bulk(bench, 10)
    bench.fact(told)
    bench.fact(Ended(RequestId("unknown"), Phase.FINISHED, 1, 1))
    bench.fact(Pulled(RequestId("unknown"), next(iter(bench.manager.agents))))
    assert known(bench).left == 10  # type: ignore[union-attr]


def test_bulks_are_facts_of_known_gateways_alone(bench: Bench) -> None:
    told: BulkWaiting = bulk(bench, 10)
    bench.post(fact_of(GatewayId("stranger"), told))
    assert not bench.manager.groups
