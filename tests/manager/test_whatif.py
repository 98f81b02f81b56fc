"""What other instances would change, planned from the state as it is and without touching it."""

import pytest

from qlm_core.errors import InvalidRequest
from qlm_core.manager.views import view
from qlm_core.manager.whatif import question
from qlm_core.messages import Pulled
from tests.manager.conftest import Bench


def crowd(bench: Bench, *, agents: int = 2) -> None:
    """More than so many instances start in time."""
    for number in range(agents):
        bench.agent(f"a{number}", "m", "n", speed=0.04)
    for model in ("m", "n"):
        bench.arrive(model, "interactive", count=200)
        bench.arrive(model, "batch-2", count=50)


def test_more_instances_are_less_late_and_wait_less(bench: Bench) -> None:
    crowd(bench)
    answers = [
        question(bench.manager, {"test": more}, now_s=bench.now_s).answer() for more in (1, 4)
    ]
    one, four = answers
    assert one["before"] == four["before"]
    assert (one["before"]["instances"], one["after"]["instances"]) == ({"test": 2}, {"test": 3})
    assert four["after"]["instances"] == {"test": 6}
    sides = [one["before"], one["after"], four["after"]]
    late = [side["late_weight"] for side in sides]
    waits = [side["classes"]["interactive"]["wait_mean_s"] for side in sides]
    assert late == sorted(late, reverse=True)
    assert waits == sorted(waits, reverse=True)
    assert late[0] > late[2]
    assert waits[0] > waits[2]
    for side in sides:
        assert side["classes"]["interactive"]["waiting"] == 400
        assert side["unplaced"] == 0


def test_fewer_instances_wait_longer_and_the_idlest_goes(bench: Bench) -> None:
    crowd(bench, agents=3)
    told = question(bench.manager, {"test": -2}, now_s=bench.now_s).answer()
    before, after = told["before"], told["after"]
    assert after["instances"] == {"test": 1}
    assert after["late_weight"] > before["late_weight"]
    # With one instance for two models it has to change.
    assert after["swaps"] >= 1


def test_a_model_that_nobody_would_serve_is_counted(bench: Bench) -> None:
    bench.agent("a", "m")
    busy = bench.agent("b", "n")
    # Both are alike by their GPU; the one without work goes.
    ids = bench.arrive("n", count=70)
    bench.fact(Pulled(ids[0], busy))
    bench.arrive("m", count=5)
    asked = question(bench.manager, {"test": -1}, now_s=bench.now_s)
    assert asked.after.snapshot.agents == (busy,)
    assert asked.answer()["after"]["unplaced"] == 5


def test_asking_changes_nothing(bench: Bench) -> None:
    crowd(bench)
    before = view(bench.manager, now_s=bench.now_s)
    question(bench.manager, {"test": 3}, now_s=bench.now_s).answer()
    assert view(bench.manager, now_s=bench.now_s) == before
    again = question(bench.manager, {"test": 3}, now_s=bench.now_s)
    assert again.answer() == again.answer()


def test_with_nothing_waiting_there_is_nothing_to_gain(bench: Bench) -> None:
    bench.agent("a", "m")
    told = question(bench.manager, {"test": 1}, now_s=bench.now_s).answer()
    assert told["before"]["classes"] == told["after"]["classes"] == {}
    assert told["after"]["late_weight"] == 0.0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "Give 1 to"),
        ({"tast": 1}, "Did you mean 'test'?"),
        ({"test": -3}, "at most 2"),
        ({"test": 10_000}, "out of range"),
        ({"test": -2}, "Leave one"),
    ],
)
def test_what_cannot_be_is_refused(bench: Bench, changes: dict[str, int], words: str) -> None:
    bench.agent("a", "m")
    bench.agent("b", "m")
    with pytest.raises(InvalidRequest, match=words.replace("?", r"\?")):
        question(bench.manager, changes, now_s=bench.now_s)


def test_newcomers_have_the_models_awake_that_are_waited_for(bench: Bench) -> None:
    bench.agent("a", "m", "n")
    bench.arrive("m", count=20)
    bench.arrive("n", count=80)
    asked = question(bench.manager, {"test": 3}, now_s=bench.now_s)
    problem = asked.after.snapshot.problem
    models = ["m", "n"]
    assert [models[one] for one in problem.loaded_model.tolist()] == ["m", "n", "n", "n"]
    # An empty instance that is up has room for a batch at once, as a queue that is added to a problem has.
    assert problem.busy_s[1] == pytest.approx(problem.busy_s.min())
    assert problem.empty_s[0] >= problem.busy_s.min() - 1e-9
