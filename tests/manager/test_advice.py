"""What autoscalers are told: what waits has to start in time, and nothing that is busy is advised away."""

from dataclasses import replace

from qlm_core.manager.advice import advice
from qlm_core.manager.events import AgentReported, PlanFinished, Wakeup
from qlm_core.manager.views import view
from qlm_core.messages import Ended, Pulled
from qlm_core.model import Phase
from tests.manager.conftest import GATEWAY, Bench
from tests.manager.test_prices import answer, crowd


def advised(bench: Bench) -> tuple[int, int]:
    """Instances, and how many are needed."""
    [one] = advice(bench.manager, now_s=bench.now_s)
    assert one.gpu == "test"
    return one.instances, one.needed


def told(bench: Bench, *needed: int | None) -> None:
    """A crowd waits, and the bound says how many more of each class it takes."""
    order = crowd(bench)
    classes = order.problem.classes
    result = replace(answer(order), needed=(needed * classes)[:classes])
    bench.post(PlanFinished(order.solve, result), after_s=0.1)


def test_what_waits_asks_for_more(bench: Bench) -> None:
    told(bench, 3)
    assert advised(bench) == (2, 5)
    assert view(bench.manager, now_s=bench.now_s)["advice"] == [
        {"gpu": "test", "instances": 2, "needed": 5, "busy": 2.0}
    ]


def test_of_the_classes_of_a_gpu_the_one_that_takes_fewest_counts(bench: Bench) -> None:
    order = crowd(bench)
    assert order.problem.classes == 2
    result = replace(answer(order), needed=(4, 1))
    bench.post(PlanFinished(order.solve, result), after_s=0.1)
    assert advised(bench) == (2, 3)


def test_a_class_that_needs_none_does_not_hide_one_that_does(bench: Bench) -> None:
    order = crowd(bench)
    result = replace(answer(order), needed=(0, 2))
    bench.post(PlanFinished(order.solve, result), after_s=0.1)
    assert advised(bench) == (2, 4)


def test_what_is_busy_is_not_advised_away(bench: Bench) -> None:
    told(bench, -1)
    assert advised(bench) == (2, 2)


def test_without_an_answer_late_work_keeps_what_there_is(bench: Bench) -> None:
    told(bench, None)
    assert advised(bench) == (2, 2)


def test_an_idle_fleet_needs_what_its_work_fills(bench: Bench) -> None:
    names = ("a", "b", "c", "d")
    for name in names:
        bench.agent(name, "m")
    assert advised(bench) == (4, 0)
    ids = bench.arrive(count=8)
    for number, id in enumerate(ids):
        bench.fact(Pulled(id, bench.manager.agents[names[number % 4]].id))
    instances, needed = advised(bench)
    assert (instances, needed) == (4, 1)


def test_when_nothing_waits_any_more_the_last_bound_is_void(bench: Bench) -> None:
    told(bench, 3)
    [one] = advice(bench.manager, now_s=bench.now_s)
    assert one.saves_late_weight > 0.0
    for id in list(bench.manager.book.of_gateway(GATEWAY)):
        bench.fact(Pulled(id, bench.manager.agents["a"].id))
    [one] = advice(bench.manager, now_s=bench.now_s)
    assert one.saves_late_weight == 0.0
    assert one.needed <= one.instances


def test_draining_instances_are_none(bench: Bench) -> None:
    bench.agent("a", "m")
    agent = bench.agent("b", "m")
    state = replace(bench.manager.agents[agent].state, draining=True)
    bench.post(AgentReported(agent, state))
    assert advised(bench)[0] == 1


def test_where_nothing_waits_for_anything_more_instances_save_nothing(bench: Bench) -> None:
    told(bench, 3)
    for id in list(bench.manager.book.of_gateway(GATEWAY)):
        bench.fact(Ended(id, Phase.FINISHED, 100, 10))
    bench.arrive("m", "batch-2", count=1)
    bench.arrive("n", "batch-2", count=1)
    bench.post(Wakeup(), after_s=1.0)
    plan = bench.manager.planner.in_force
    assert plan is not None
    assert plan.termination == "optimal"
    assert [one.saves_late_weight for one in plan.capacity] == [0.0]
    assert advised(bench)[1] <= 2
