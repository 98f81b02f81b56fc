"""Pictures of the Manager: when groups are worked on, how many are expected late, and which plans there were."""

from __future__ import annotations

from itertools import pairwise

import pytest

from qlm_core.manager.events import PlanFinished, StartSolve, Wakeup
from qlm_core.manager.views import view
from qlm_core.model import ModelName
from qlm_core.planning import PlanResult, Termination
from tests.manager.conftest import Bench


def test_groups_follow_each_other_with_model_changes_before_them(bench: Bench) -> None:
    bench.agent("a", "m", "n")
    for _ in range(20):
        bench.arrive("m", "batch-1")
    for _ in range(20):
        bench.arrive("n", "batch-1")
    [agent] = view(bench.manager, now_s=bench.now_s)["agents"]
    queue = agent["queue"]
    assert len(queue) >= 2
    for one, following in pairwise(queue):
        assert one["starts_in_s"] <= one["ends_in_s"] <= following["starts_in_s"]
    changes = [group["swap_s"] > 0.0 for group in queue]
    models = [ModelName("m"), *(group["model"] for group in queue)]
    assert changes == [old != new for old, new in pairwise(models)]
    assert agent["queue_waiting"] == sum(group["waiting"] for group in queue)
    assert (agent["batch_max"], agent["kv_cache_tokens"]) == (64, 100_000)


def test_so_many_groups_are_shown_and_all_are_counted(bench: Bench) -> None:
    bench.agent("a", "m", "n")
    for model in ("m", "n"):
        for slo_class in ("interactive", "batch-1", "batch-2"):
            bench.arrive(model, slo_class)
    whole = view(bench.manager, now_s=bench.now_s)["agents"][0]
    short = view(bench.manager, now_s=bench.now_s, groups_max=1)["agents"][0]
    assert short["queue"] == whole["queue"][:1]
    assert short["queue_groups"] == whole["queue_groups"] > 1
    assert short["queue_waiting"] == whole["queue_waiting"]


@pytest.mark.parametrize("later_s", [0.0, 10.0, 1000.0])
def test_who_cannot_be_in_time_any_more_is_expected_late_before_it_is(
    bench: Bench, later_s: float
) -> None:
    bench.agent("a", "m", slots=1)
    for _ in range(200):
        bench.arrive("m", "interactive")
    bench.now_s += later_s
    shown = view(bench.manager, now_s=bench.now_s)
    [agent] = shown["agents"]
    late, waiting = agent["queue_expected_late"], agent["queue_waiting"]
    assert shown["classes"]["interactive"]["waiting"] == waiting == 200
    assert shown["classes"]["interactive"]["oldest_s"] == pytest.approx(bench.now_s, abs=1.0)
    # One at a time: nobody is late yet, and most will be.
    assert 0 < late <= waiting
    if later_s > 20.0:
        assert late == waiting
    else:
        assert late < waiting


def test_nobody_is_expected_late_while_there_is_room(bench: Bench) -> None:
    bench.agent("a", "m")
    bench.arrive("m", "interactive")
    [agent] = view(bench.manager, now_s=bench.now_s)["agents"]
    assert agent["queue_expected_late"] == 0


def test_plans_of_a_planner_are_remembered(bench: Bench) -> None:
    bench.agent("a", "m", "n", slots=1)
    for number in range(30):
        bench.arrive(("m", "n")[number % 2], "interactive")
    bench.agent("b", "m", "n", slots=1)
    assert view(bench.manager, now_s=bench.now_s)["plans"] == []
    for _ in range(20):
        bench.manager.planner.changed()
        bench.post(Wakeup(), after_s=0.2)
        orders = [effect for effect in bench.effects if isinstance(effect, StartSolve)]
        bench.effects.clear()
        for order in orders:
            # Model by model, which is better than turns.
            plan: list[list[int]] = [[], []]
            for group, model in enumerate(order.problem.group_model.tolist()):
                plan[model % 2].append(group)
            result = PlanResult(
                plan=tuple(map(tuple, plan)),
                objective=0.0,
                lower_bound=0.5,
                termination=Termination.LIMIT,
                backend="highs",
                wall_s=0.1,
            )
            bench.post(PlanFinished(order.solve, result))
    shown = view(bench.manager, now_s=bench.now_s)
    assert shown["planner"]["adopted"] == len(shown["plans"]) > 0
    assert {(plan["backend"], plan["lower_bound"]) for plan in shown["plans"]} == {("highs", 0.5)}
