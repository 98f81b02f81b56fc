"""When planning is left out because it could gain nothing, and which agents new groups need to look at."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from random import Random

import pytest

from qlm_core.manager.events import StartSolve, Wakeup
from qlm_core.manager.placing import contenders
from qlm_core.manager.snapshot import Snapshot
from qlm_core.messages import Arrived, Pulled
from qlm_core.model import AgentId, GroupId, Slo
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
