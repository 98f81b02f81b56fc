"""What a bound leaves behind: prices for the next one, and what more instances would be worth."""

from dataclasses import replace
from math import isnan

import pytest

from qlm_core.manager.events import PlanFinished, StartSolve, Wakeup
from qlm_core.manager.views import explain, view
from qlm_core.planning import PlanResult, Termination, evaluate
from tests.manager.conftest import Bench


def solves(bench: Bench) -> list[StartSolve]:
    return [effect for effect in bench.effects if isinstance(effect, StartSolve)]


def answer(order: StartSolve) -> PlanResult:
    objective = evaluate(order.problem, order.warm).objective
    return PlanResult(
        plan=order.warm,
        objective=objective,
        lower_bound=0.5 * objective,
        termination=Termination.LIMIT,
        backend="test",
        duals=tuple(10.0 + number for number in range(order.problem.groups)),
        queue_values=(-3.0,) * order.problem.queues,
        capacity_values=tuple(60.0 + number for number in range(order.problem.classes)),
    )


def crowd(bench: Bench) -> StartSolve:
    bench.agent("a", "m")
    bench.agent("b", "m", "n", awake="n")
    for model in ("m", "n"):
        for slo_class in ("interactive", "batch-1", "batch-2"):
            bench.arrive(model, slo_class, count=60)
    bench.post(Wakeup(), after_s=0.2)
    return solves(bench)[-1]


def test_prices_carry_over_to_the_next_bound_by_group(bench: Bench) -> None:
    first = crowd(bench)
    assert first.prove
    assert all(isnan(price) for price in first.duals)
    bench.post(PlanFinished(first.solve, answer(first)), after_s=0.1)
    bench.arrive("m", "batch-1", count=60)
    bench.post(Wakeup(), after_s=0.2)
    unproven = solves(bench)[-1]
    assert not unproven.prove
    assert unproven.duals == ()
    bench.post(PlanFinished(unproven.solve, replace(answer(unproven), duals=())), after_s=0.1)
    bench.post(Wakeup(), after_s=60.0)
    again = solves(bench)[-1]
    assert again.prove
    assert len(again.duals) == again.problem.groups
    known = [price for price in again.duals if not isnan(price)]
    assert 0 < len(known) <= first.problem.groups
    assert dict.fromkeys(known).keys() <= dict.fromkeys(answer(first).duals).keys()


def test_capacity_is_told_by_gpu_in_late_requests(bench: Bench) -> None:
    order = crowd(bench)
    plan = view(bench.manager, now_s=bench.now_s)["plan"]
    assert plan["capacity"] == []
    bench.post(PlanFinished(order.solve, answer(order)), after_s=0.1)
    plan = view(bench.manager, now_s=bench.now_s)["plan"]
    assert plan["gap"] == pytest.approx(0.5)
    assert sum(one["instances"] for one in plan["capacity"]) == 2
    best = max(one["saves_cost"] for one in plan["capacity"])
    assert best == 60.0 + order.problem.classes - 1
    for one in plan["capacity"]:
        assert one["saves_late_weight"] == pytest.approx(
            one["saves_cost"] / order.problem.alpha, abs=1e-3
        )


def test_explanations_price_the_other_places(bench: Bench) -> None:
    order = crowd(bench)
    waiting = [
        told
        for group in bench.manager.groups.values()
        for id in [member.id for member in group.members()][:1]
        if (told := explain(bench.manager, id, now_s=bench.now_s)) and told["state"] == "waiting"
    ]
    priced = [other for told in waiting for other in told["alternatives"]]
    assert "b" in {other["agent"] for other in priced}
    assert all(other["extra_cost"] > -order.problem.groups for other in priced)
    assert any(other["extra_cost"] > 0 for other in priced)
