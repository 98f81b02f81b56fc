"""The Manager by events and effects."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qlm_core.manager.events import (
    AgentLeft,
    AgentReported,
    GatewayJoined,
    GatewayLeft,
    PlanFinished,
    StartSolve,
    Wakeup,
)
from qlm_core.manager.views import explain, view
from qlm_core.messages import (
    AnnounceDone,
    Arrived,
    Ended,
    EstimateGiven,
    FirstToken,
    Fleet,
    GatewayHello,
    Pulled,
    QueueUpdate,
    Returned,
    ShedOrder,
)
from qlm_core.model import (
    AgentId,
    GroupId,
    InstanceState,
    ModelName,
    Phase,
    RequestId,
    RunningRequest,
    Slo,
)
from qlm_core.planning import PlanResult, Termination
from tests.manager.conftest import GATEWAY, Bench, profile


def test_a_request_reaches_the_agent_that_serves_its_model(bench: Bench) -> None:
    a, b = bench.agent("a", "m"), bench.agent("b", "other")
    ids = bench.arrive("m", count=3)
    assert list(bench.window(a)) == ids
    assert bench.window(b) == {}


def test_an_estimate_follows_every_placed_arrival(bench: Bench) -> None:
    bench.agent("a", "m")
    ids = bench.arrive("m", count=2)
    given = [order for order in bench.to_gateway() if isinstance(order, EstimateGiven)]
    assert [order.id for order in given] == ids
    assert all(0.0 < order.estimate.p50_s <= order.estimate.p99_s for order in given)


def test_who_has_an_estimate_is_given_no_other(bench: Bench) -> None:
    a = bench.agent("a", "m")
    known, new = bench.request("m"), bench.request("m")
    bench.fact(Arrived(known, estimated=True))
    bench.fact(Arrived(new))
    given = [order.id for order in bench.to_gateway() if isinstance(order, EstimateGiven)]
    assert given == [new.id]
    assert list(bench.window(a)) == [known.id, new.id]


def test_a_wait_counts_the_prompt_of_its_own(bench: Bench) -> None:
    bench.agent("a", "m")
    bench.agent("b", "m")
    for tokens in (10, 2000):
        bench.fact(Arrived(bench.request("m", prompt_tokens=tokens)))
    short, long = [
        order.estimate for order in bench.to_gateway() if isinstance(order, EstimateGiven)
    ]
    more_s = profile("m").prefill_s(2000) - profile("m").prefill_s(10)
    assert long.mean_s - short.mean_s == pytest.approx(more_s)


def test_a_wait_counts_from_the_arrival_however_late_the_solver_hears_of_it(bench: Bench) -> None:
    bench.agent("a", "m")
    request = bench.request("m")
    late = replace(request, arrival_s=request.arrival_s - 0.75, id=RequestId("late"))
    for one in (request, late):
        bench.fact(Arrived(one))
    at_once, waited = [
        order.estimate for order in bench.to_gateway() if isinstance(order, EstimateGiven)
    ]
    assert waited.mean_s == pytest.approx(at_once.mean_s + 0.75, abs=0.1)
    assert waited.p50_s == pytest.approx(at_once.p50_s + 0.75, abs=0.1)
    assert waited.p99_s - waited.p50_s == pytest.approx(at_once.p99_s - at_once.p50_s, abs=0.1)


def test_waits_grow_once_the_batch_is_full(bench: Bench) -> None:
    bench.agent("a", "m")
    bench.arrive("m", "batch-2", count=280)
    given = [order for order in bench.to_gateway() if isinstance(order, EstimateGiven)]
    assert given[279].estimate.mean_s > 2.0 * given[139].estimate.mean_s > given[0].estimate.mean_s


def test_first_tokens_that_press_wait_for_half_of_their_target_at_most(bench: Bench) -> None:
    """Begun outputs give way to them from then on; not so where more than a first token was promised of those."""
    a = bench.agent("a", "m")
    for id in bench.arrive("m", "batch-2", count=64):
        bench.fact(Pulled(id, a))

    def last_mean_s(slo: Slo) -> float:
        for _ in range(150):
            bench.fact(Arrived(replace(bench.request("m", "interactive"), slo=slo)))
        given = [order for order in bench.to_gateway() if isinstance(order, EstimateGiven)]
        return given[-1].estimate.mean_s

    assert last_mean_s(Slo(ttft_s=20.0)) == pytest.approx(10.0)
    assert last_mean_s(Slo(ttft_s=20.0, tpot_s=0.5)) > 20.0


def test_those_who_go_first_cost_no_more_than_their_prompts_while_there_is_room(
    bench: Bench,
) -> None:
    bench.agent("a", "m")
    # Far more than the engine completes in that time.
    for _ in range(30):
        bench.fact(Arrived(bench.request("m", "interactive")), after_s=0.01)
    [id] = bench.arrive("m", "batch-2", count=1)
    estimate = bench.to_gateway()[-1]
    assert isinstance(estimate, EstimateGiven)
    assert estimate.id == id
    assert estimate.estimate.mean_s < 2.0


def test_a_fresh_batch_takes_one_prompt_after_the_other(bench: Bench) -> None:
    """All find room at once, yet the engine has to compute the prompts of those before them."""
    bench.agent("a", "m")
    bench.arrive("m", count=40)
    given = [order for order in bench.to_gateway() if isinstance(order, EstimateGiven)]
    waits = [order.estimate.mean_s for order in given]
    assert waits == sorted(waits)
    prompt_s = profile("m").prefill_s(100)
    assert waits[-1] - waits[0] > 39 * 0.2 * prompt_s


def test_requests_without_an_agent_wait_until_one_joins(bench: Bench) -> None:
    ids = bench.arrive("m", count=2)
    assert view(bench.manager, now_s=0.0)["unplaced"][0]["waiting"] == 2
    a = bench.agent("a", "m")
    assert list(bench.window(a)) == ids


def test_the_fleet_is_announced_when_models_come_and_go(bench: Bench) -> None:
    a = bench.agent("a", "m", "n")
    bench.post(AgentLeft(a))
    bench.post(Wakeup(), after_s=2.0)
    fleets = [order.models for order in bench.to_gateway() if isinstance(order, Fleet)]
    assert fleets == [(), ("m", "n"), ()]


def test_it_is_announced_whether_any_engine_is_up(bench: Bench) -> None:
    a, b = bench.agent("a", "m"), bench.agent("b", "m")
    for agent, ready in ((a, False), (b, False), (a, True)):
        state = replace(bench.manager.agents[agent].state, ready=ready)
        bench.post(AgentReported(agent, state))
    fleets = [order.up for order in bench.to_gateway() if isinstance(order, Fleet)]
    assert fleets == [False, True, False, True]


def test_a_lost_agents_groups_go_to_another(bench: Bench) -> None:
    a = bench.agent("a", "m")
    ids = bench.arrive("m", count=5)
    b = bench.agent("b", "m")
    assert set(bench.window(a)) == set(ids)
    bench.fact(Pulled(ids[0], a))
    bench.post(AgentLeft(a))
    bench.post(Wakeup(), after_s=2.0)
    bench.fact(Returned(ids[0], 7))
    assert set(bench.window(b)) == set(ids)
    returned = next(
        ref
        for order in bench.to_agent(b)
        if isinstance(order, QueueUpdate)
        for ref in order.add
        if ref.id == ids[0]
    )
    assert returned.produced_tokens == 7


def test_an_agent_that_comes_back_without_a_model_gives_its_groups_away(bench: Bench) -> None:
    a, b = bench.agent("a", "m", "n"), bench.agent("b", "m", "n", awake="n")
    for model, holder in (("m", a), ("n", b)):
        for id in bench.arrive(model, "batch-2", count=64):
            bench.fact(Pulled(id, holder))
    waiting = bench.arrive("m", "interactive", count=3)
    assert {bench.manager.book.get(id).group.home for id in waiting} == {a}
    bench.post(AgentLeft(a), after_s=0.1)
    bench.agent("a", "n")
    assert {bench.manager.book.get(id).group.home for id in waiting} == {b}
    assert not bench.manager.agents[a].queue
    # Whoever asks next is told a wait, though of the engines counted a moment ago one lacks the model now.
    bench.arrive("m", "batch-1", count=20)
    given = [order for order in bench.to_gateway() if isinstance(order, EstimateGiven)]
    assert len(given) == 64 + 64 + 3 + 20


def test_members_that_came_back_are_not_split_off(bench: Bench) -> None:
    a = bench.agent("a", "m")
    bench.agent("b", "m")
    ids = bench.arrive("m", count=600)
    group = max(bench.manager.groups.values(), key=lambda one: one.waiting)
    members = [request.id for request in group.members()]
    back = members[:10]
    for id in back:
        bench.fact(Pulled(id, group.home or a))
        bench.fact(Returned(id, 0))
    for id in ids:
        if id not in back:
            bench.fact(Ended(id, Phase.FINISHED, 10, 10))
    for _ in range(20):
        bench.manager.planner.changed()
        for effect in bench.post(Wakeup(), after_s=0.2):
            if isinstance(effect, StartSolve):
                bench.post(
                    PlanFinished(
                        effect.solve,
                        PlanResult(
                            plan=None,
                            objective=0.0,
                            lower_bound=None,
                            termination=Termination.LIMIT,
                            backend="search",
                        ),
                    )
                )
    assert not any(one.empty for one in bench.manager.groups.values())
    for id in back:
        bench.fact(Ended(id, Phase.FINISHED, 10, 10))
    assert bench.manager.groups == {}
    assert [agent.queue for agent in bench.manager.agents.values()] == [[], []]


def test_a_reconnecting_agent_keeps_its_queue_and_gets_a_fresh_window(bench: Bench) -> None:
    a = bench.agent("a", "m")
    ids = bench.arrive("m", count=3)
    bench.post(AgentLeft(a))
    bench.effects.clear()
    bench.now_s += 0.5
    bench.agent("a", "m")
    assert list(bench.window(a)) == ids


def test_what_is_sent_first_in_a_session_replaces_all_that_the_agent_has(bench: Bench) -> None:
    """Of an earlier solver it has groups with the same ids, whose requests must not be taken for this one's."""
    agent = bench.agent("a", "m")
    bench.arrive()
    bench.arrive()
    updates = [order for order in bench.to_agent(agent) if isinstance(order, QueueUpdate)]
    assert [update.snapshot for update in updates] == [True] + [False] * (len(updates) - 1)
    bench.effects.clear()
    bench.agent("a", "m")
    [again] = [order for order in bench.to_agent(agent) if isinstance(order, QueueUpdate)]
    assert again.snapshot
    assert len(again.add) == 2


def test_the_window_is_bounded_and_topped_up(bench: Bench) -> None:
    a = bench.agent("a", "m")
    ids = bench.arrive("m", "batch-2", count=1000)
    size = bench.manager.config.window_requests
    held = list(bench.window(a))
    assert size <= len(held) < 1000
    assert held == ids[: len(held)]
    for id in held[: len(held) - size // 2 + 1]:
        bench.fact(Pulled(id, a))
    fresh = [id for id in bench.window(a) if id not in held]
    assert fresh == ids[len(held) : len(held) + len(fresh)]
    assert fresh


def test_an_ended_request_is_forgotten_and_its_length_learned(bench: Bench) -> None:
    a = bench.agent("a", "m")
    (id,) = bench.arrive("m")
    bench.fact(Pulled(id, a))
    bench.fact(FirstToken(id, 0.4), after_s=0.4)
    lengths = bench.manager.estimators.lengths(ModelName("m"), "interactive")
    before = lengths.hazards
    bench.fact(Ended(id, Phase.FINISHED, 100, 321))
    assert id not in bench.manager.book
    assert bench.manager.groups == {}
    change = [now - then for now, then in zip(lengths.hazards, before, strict=True)]
    assert sum(one > 1e-3 for one in change) == 1
    assert all(one < 0.0 for one in change[: change.index(max(change))])


def test_lengths_are_learned_from_what_still_runs(bench: Bench) -> None:
    a = bench.agent("a", "m")
    (id,) = bench.arrive("m")
    bench.fact(Pulled(id, a))
    lengths = bench.manager.estimators.lengths(ModelName("m"), "interactive")
    before = lengths.hazards[0]
    running = (RunningRequest(id=id, group=GroupId(1), produced_tokens=500),)
    report = AgentReported(
        a, InstanceState(ready=True, awake_model=ModelName("m"), running=running)
    )
    bench.post(report)
    after = lengths.hazards[0]
    assert after < before
    bench.post(report)
    assert lengths.hazards[0] == after


def test_a_cancelled_waiting_request_leaves_the_window(bench: Bench) -> None:
    bench.agent("a", "m")
    ids = bench.arrive("m", count=2)
    bench.fact(Ended(ids[0], Phase.CANCELLED, 0, 0))
    agent = next(iter(bench.manager.agents.values()))
    assert list(agent.window) == ids[1:]


def test_re_announcing_is_idempotent(bench: Bench) -> None:
    bench.agent("a", "m")
    request = bench.request()
    bench.fact(Arrived(request))
    bench.fact(Arrived(request))
    assert len(bench.manager.book) == 1


def test_a_returning_gateway_starts_from_what_it_announces(bench: Bench) -> None:
    a = bench.agent("a", "m")
    ids = bench.arrive("m", count=4)
    bench.post(GatewayLeft(GATEWAY))
    bench.post(GatewayJoined(GatewayHello(GATEWAY, "127.0.0.1:1")))
    kept = bench.request()
    bench.fact(Arrived(kept))
    bench.fact(AnnounceDone())
    assert len(bench.manager.book) == 1
    assert list(bench.manager.agents[a].window) == [kept.id]
    assert set(bench.window(a)) & set(ids) == set()


def test_a_gateway_that_stays_away_takes_its_requests_along(bench: Bench) -> None:
    bench.agent("a", "m")
    bench.arrive("m", count=4)
    bench.post(GatewayLeft(GATEWAY))
    agent = next(iter(bench.manager.agents))
    for _ in range(8):
        bench.post(
            AgentReported(agent, InstanceState(ready=True, awake_model=ModelName("m"))), after_s=5.0
        )
    assert len(bench.manager.book) == 0
    assert bench.manager.groups == {}


def test_nothing_is_published_before_it_is_known(bench: Bench) -> None:
    from qlm_core.manager import Manager

    fresh = Bench(Manager(bench.manager.config, (), now_s=0.0))
    a = fresh.agent("a", "m")
    fresh.post(GatewayJoined(GatewayHello(GATEWAY, "127.0.0.1:1")))
    fresh.arrive("m", count=3)
    assert [o for o in fresh.to_agent(a) if isinstance(o, QueueUpdate)] == []
    fresh.fact(AnnounceDone())
    assert len(fresh.window(a)) == 3


def test_an_agent_is_sent_epochs_above_what_it_has_seen_and_nobody_else_is(bench: Bench) -> None:
    from qlm_core.manager.events import AgentJoined
    from qlm_core.messages import AgentHello
    from tests.manager.conftest import profile

    bench.agent("a", "m")
    seen = 2**62 - 100
    hello = AgentHello(
        agent=AgentId("b"),
        gpu="test",
        profiles=(profile("n"),),
        epoch=seen,
        state=InstanceState(ready=True, awake_model=ModelName("n")),
    )
    bench.post(AgentJoined(hello))
    bench.arrive("m", count=2)
    bench.arrive("n", count=2)
    sent = {
        agent: [one.epoch for one in bench.to_agent(agent) if isinstance(one, QueueUpdate)]
        for agent in bench.manager.agents
    }
    assert all(seen < epoch < 2**62 for epoch in sent[AgentId("b")])
    assert all(epoch < 100 for epoch in sent[AgentId("a")])
    assert all(sent.values())
    assert bench.manager.epoch < 100


def test_above_the_limit_arrivals_are_shed(bench: Bench) -> None:
    import msgspec

    from qlm_core.config import SolverLimits
    from qlm_core.manager import Manager

    config = msgspec.structs.replace(
        bench.manager.config, limits=SolverLimits(waiting_requests_max=2)
    )
    small = Bench(Manager(config, (), now_s=0.0))
    small.gateway()
    ids = small.arrive("m", count=3)
    shed = [order.id for order in small.to_gateway() if isinstance(order, ShedOrder)]
    assert shed == ids[2:]


def test_a_draining_agent_gives_its_groups_away(bench: Bench) -> None:
    a = bench.agent("a", "m")
    ids = bench.arrive("m", count=4)
    b = bench.agent("b", "m")
    bench.post(
        AgentReported(a, InstanceState(ready=True, awake_model=ModelName("m"), draining=True))
    )
    assert set(bench.window(b)) == set(ids)
    assert bench.window(a) == {}


def test_a_solve_is_asked_for_and_its_answer_adopted_only_if_better(bench: Bench) -> None:
    bench.agent("a", "m", "n")
    bench.agent("b", "m", "n", awake="n")
    for model in ("m", "n"):
        for slo_class in ("interactive", "batch-1", "batch-2"):
            bench.arrive(model, slo_class, count=40)
    bench.post(Wakeup(), after_s=0.1)
    starts = [effect for effect in bench.effects if isinstance(effect, StartSolve)]
    assert len(starts) == 1
    before = [list(agent.queue) for agent in bench.manager.agents.values()]
    order = starts[0]
    worst = tuple(tuple(reversed(queue)) for queue in reversed(order.warm))
    bench.post(PlanFinished(order.solve, _result(worst)), after_s=0.05)
    assert [list(agent.queue) for agent in bench.manager.agents.values()] == before
    assert bench.manager.planner.adopted == 0


def _result(plan: tuple[tuple[int, ...], ...]) -> PlanResult:
    return PlanResult(
        plan=plan,
        objective=0.0,
        lower_bound=None,
        termination=Termination.LIMIT,
        backend="test",
    )


def test_explain_names_what_is_ahead(bench: Bench) -> None:
    a = bench.agent("a", "m", "n")
    bench.arrive("m", "interactive", count=3)
    ids = bench.arrive("n", "batch-2", count=2)
    answer = explain(bench.manager, ids[1], now_s=bench.now_s)
    assert answer is not None
    assert answer["agent"] == a
    assert answer["place_in_queue"] == 1
    assert answer["place_in_group"] == 1
    assert answer["model_swap_to"] == "n"
    bench.fact(Pulled(ids[1], a))
    held = explain(bench.manager, ids[1], now_s=bench.now_s)
    assert held is not None
    assert held["state"] == "held"
    assert explain(bench.manager, RequestId("nobody"), now_s=bench.now_s) is None
