"""When planning is left out because it could gain nothing, and which agents new groups need to look at."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from random import Random

import pytest

from qlm_core.config import SolverConfig
from qlm_core.manager.events import AgentReported, StartSolve, Wakeup
from qlm_core.manager.placing import contenders
from qlm_core.manager.planner import Planner
from qlm_core.manager.snapshot import Snapshot
from qlm_core.messages import Arrived, Ended, Pulled
from qlm_core.model import AgentId, Estimate, GroupId, ModelName, Phase, Slo
from qlm_core.planning import Plan, evaluate, repair
from tests.manager.conftest import Bench


def test_while_the_fleet_has_room_no_solve_is_asked_for(bench: Bench) -> None:
    for name in ("a", "b", "c"):
        bench.agent(name, "m")
    for slo_class in ("interactive", "batch-1"):
        bench.arrive("m", slo_class, count=1)
        bench.post(Wakeup(), after_s=0.2)
    assert not any(isinstance(effect, StartSolve) for effect in bench.effects)
    plan = bench.manager.planner.in_force
    assert plan is not None
    assert (plan.termination, plan.gap) == ("optimal", 0.0)


@pytest.mark.parametrize("seed", range(12))
def test_agents_left_out_of_a_repair_would_not_have_made_it_better(bench: Bench, seed: int) -> None:
    rng = Random(seed)
    agents = [
        bench.agent(f"a{number}", *rng.choice((("m",), ("n",), ("m", "n"))), speed=1 + number % 2)
        for number in range(24)
    ]
    for _ in range(12):
        model = rng.choice("mn")
        ids = bench.arrive(model, rng.choice(("interactive", "batch-1")), count=rng.randint(1, 3))
        for id in ids:
            if rng.random() < 0.8:
                home = bench.manager.book.get(id).group.home or rng.choice(agents)
                bench.fact(Pulled(id, home), after_s=0.01)
    manager = bench.manager
    # One more group, seen by all agents and by the contenders alone.
    manager._place = lambda: None
    bench.arrive("m", "batch-2", count=1)
    groups, everyone = manager.view()
    few = contenders(groups, everyone, new=1)
    assert len(few) < len(everyone)
    planner, objectives = manager.planner, []
    for chosen in (everyone, few):
        snapshot = planner.snapshot((groups, chosen), manager.estimators, now_s=bench.now_s)
        queues = {agent.id: agent.queue for agent in chosen}
        objectives.append(evaluate(snapshot.problem, repaired(snapshot, queues)).objective)
    assert objectives[1] == pytest.approx(objectives[0])


def test_what_was_promised_an_end_is_due_as_early_as_its_output_needs(bench: Bench) -> None:
    a = bench.agent("a", "m")
    held = bench.arrive("m", "batch-1", count=64)
    for id in held:
        bench.fact(Pulled(id, a))
    # Some outputs have to be complete when the first tokens of others are late.
    for ttft_s, e2e_s in ((60.0, None), (30.0, None), (60.0, 30.0)):
        slo = Slo(ttft_s=ttft_s, tpot_s=1.0, e2e_s=e2e_s)
        for _ in range(200):
            bench.fact(Arrived(replace(bench.request("m", "batch-1"), slo=slo)))
    groups, agents = bench.manager.view()
    snapshot = bench.manager.planner.snapshot(
        (groups, agents), bench.manager.estimators, now_s=bench.now_s
    )
    latest_s = {}
    for number, group in enumerate(groups):
        due_s = snapshot.problem.due_s[number] - snapshot.problem.tail_s[number, 0]
        latest_s[group.key.ttft_s, group.key.e2e_s] = due_s
    assert latest_s[30.0, 30.0] < latest_s[30.0, inf] < latest_s[60.0, inf]
    assert latest_s[30.0, 30.0] > 0.0
    first = bench.manager.groups[bench.manager.agents[a].queue[0]]
    assert first.key.e2e_s == 30.0


def repaired(snapshot: Snapshot, queues: dict[AgentId, list[GroupId]]) -> Plan:
    return repair(snapshot.problem, snapshot.to_plan(queues))


def test_a_group_that_fits_an_idle_agent_is_seated_on_the_freest_without_planning(
    bench: Bench,
) -> None:
    a, b = bench.agent("a", "m"), bench.agent("b", "m")
    [first] = bench.arrive("m", count=1)
    assert list(bench.window(a)) == [first]
    bench.fact(Pulled(first, a))
    [second] = bench.arrive("m", "batch-1", count=1)
    assert list(bench.window(b)) == [second]
    assert bench.manager.planner.in_force is None
    assert bench.manager.planner.repairs == 2


def test_a_burst_is_shared_with_idle_agents_before_any_solve(bench: Bench) -> None:
    a, b = bench.agent("a", "m", "n"), bench.agent("b", "n", "m")
    few = bench.arrive("m", "batch-2", count=100)
    assert not bench.manager.agents[b].queue
    bench.arrive("m", "batch-2", count=2900)
    assert not any(isinstance(effect, StartSolve) for effect in bench.effects)
    waiting = {
        id: sum(bench.manager.groups[group].waiting for group in bench.manager.agents[id].queue)
        for id in (a, b)
    }
    assert sum(waiting.values()) == 2900 + len(few)
    assert waiting[b] > 600


def test_lateness_is_the_less_certain_the_more_outputs_are_ahead(bench: Bench) -> None:
    """Its ramp is wider than what is due and what the group takes, by the spread of lengths, which grows with the root."""
    a = bench.agent("a", "m")
    for id in bench.arrive("m", "batch-1", count=64):
        bench.fact(Pulled(id, a))
    wider_s = []
    for slo_class, count in (("interactive", 25), ("batch-1", 100)):
        bench.arrive("m", slo_class, count=count)
        groups, agents = bench.manager.view()
        problem = bench.manager.planner.snapshot(
            (groups, agents), bench.manager.estimators, now_s=bench.now_s
        ).problem
        waiting = [group.waiting for group in groups]
        at = waiting.index(count)
        known_s = max(problem.due_s[at], 0.0) + problem.duration_s[at, 0]
        wider_s.append((problem.ramp_s[at] - known_s) / (problem.duration_s[at, 0] / count))
    assert wider_s[0] > 5.0
    assert wider_s[1] == pytest.approx(2.0 * wider_s[0], rel=0.1)


def test_what_is_left_of_a_started_group_costs_more_to_move(bench: Bench) -> None:
    a = bench.agent("a", "m")
    bench.agent("b", "m")
    ids = bench.arrive("m", "batch-2", count=400)
    bench.fact(Pulled(ids[-1], a))
    groups, agents = bench.manager.view()
    problem = bench.manager.planner.snapshot(
        (groups, agents), bench.manager.estimators, now_s=bench.now_s
    ).problem
    cost = {
        group.started: problem.move_cost[number] / group.waiting
        for number, group in enumerate(groups)
    }
    assert cost[True] == pytest.approx(4.0 * cost[False])


def test_a_predicted_miss_is_a_reason_to_plan_soon(bench: Bench) -> None:
    replan = SolverConfig().replan
    for p90_s, next_s in ((10.0, replan.period_s), (30.0, replan.min_interval_s)):
        planner = Planner(SolverConfig(), {})
        planner.start(([], []), bench.manager.estimators, now_s=0.0)
        estimate = Estimate(mean_s=5.0, p50_s=5.0, p90_s=p90_s, p99_s=40.0)
        request = replace(bench.request("m", "interactive"), arrival_s=0.0)
        planner.predicted(request, estimate, now_s=0.0)
        assert planner.wakeup_s == next_s


def test_large_groups_are_halved_once_a_rush_is_over(bench: Bench) -> None:
    bench.agent("a", "m")
    bench.agent("b", "m")
    ids = bench.arrive("m", "batch-2", count=2_000)
    largest = max(bench.manager.groups.values(), key=lambda group: group.waiting)
    kept = [request.id for request in largest.members()]
    for id in ids:
        if id not in kept:
            bench.fact(Ended(id, Phase.CANCELLED, 0, 0))
    assert [group.waiting for group in bench.manager.groups.values()] == [len(kept)]
    bench.post(Wakeup(), after_s=5.0)
    sizes = [group.waiting for group in bench.manager.groups.values()]
    assert sum(sizes) == len(kept)
    assert max(sizes) == (len(kept) + 1) // 2


def test_a_swap_under_way_is_done_before_one_that_would_begin_now(bench: Bench) -> None:
    """The batch of a model that is being loaded is free once it is awake, as the one of an idle instance is now."""
    swapping, idle = (bench.agent(name, "m", "n") for name in ("a", "b"))
    state = replace(
        bench.manager.agents[swapping].state, awake_model=None, swapping_to=ModelName("n")
    )
    bench.post(AgentReported(swapping, state))
    bench.now_s += 0.1
    bench.arrive("n", count=1)
    manager = bench.manager
    snapshot = manager.planner.snapshot(manager.view(), manager.estimators, now_s=bench.now_s)
    problem = snapshot.problem
    at = {agent: index for index, agent in enumerate(snapshot.agents)}
    m, n = int(problem.loaded_model[at[idle]]), int(problem.group_model[0])
    swap_s = problem.swap_s[problem.queue_class[at[idle]], m, n]
    assert problem.busy_s[at[swapping]] < problem.busy_s[at[idle]] + swap_s
