"""The evaluator against its definition, and what it refuses."""

import numpy as np
import pytest
from hypothesis import given, settings

from qlm_core.planning import (
    InvalidProblem,
    Plan,
    Problem,
    UnplaceableGroup,
    check,
    evaluate,
    from_instance,
    greedy,
    plan_from_json,
    to_instance,
)
from tests.planning.problems import problems, random_problem, slow_objective


@given(problems(most_groups=9))
@settings(max_examples=150, deadline=None)
def test_objective_is_the_definition(problem: Problem) -> None:
    plan = greedy(problem)
    score = evaluate(problem, plan)
    assert score.objective == pytest.approx(slow_objective(problem, plan))
    parts = problem.alpha * score.late_weight + problem.beta * score.tardiness_s
    parts += problem.kappa * score.swap_s + problem.eps * score.weighted_end_s + score.move_cost
    assert score.objective == pytest.approx(parts)
    by_group = float(score.group_cost.sum()) + problem.kappa * score.swap_s
    assert score.objective == pytest.approx(by_group)


def test_ending_exactly_when_due_is_in_time() -> None:
    problem = random_problem(1, groups=1, queues=1, models=1, alpha=1.0)
    end = evaluate(problem, ((0,),)).end_s
    on_time = Problem(**{**_fields(problem), "due_s": end.copy()})
    assert evaluate(on_time, ((0,),)).late_weight == 0.0
    early = Problem(**{**_fields(problem), "due_s": end - 1e-6})
    assert evaluate(early, ((0,),)).late_weight > 0.0


def _fields(problem: Problem) -> dict:
    return {name: getattr(problem, name) for name in problem.__dataclass_fields__}


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        (((0, 1),), "has 1 queues"),
        (((0, 1, 2), (3,)), "group 4 appears 0 times"),
        (((0, 1, 2), (3, 4, 4)), "group 4 appears 2 times"),
        (((0, 1, 2), (3, 5)), "outside"),
        (((0, 1, 2), (3, -1)), "outside"),
    ],
)
def test_check_names_what_is_wrong(plan: Plan, says: str) -> None:
    problem = random_problem(3)
    error = check(problem, plan)
    assert error is not None
    assert says in error
    with pytest.raises(InvalidProblem, match="plan: "):
        evaluate(problem, plan)


def test_a_group_that_fits_nowhere_is_named() -> None:
    values = _fields(random_problem(5))
    values["duration_s"] = values["duration_s"].copy()
    values["duration_s"][3] = np.inf
    with pytest.raises(UnplaceableGroup, match="group 3") as caught:
        Problem(**values)
    assert caught.value.group == 3


def test_a_class_without_queues_does_not_count() -> None:
    values = _fields(random_problem(5, queues=2))
    values["duration_s"] = values["duration_s"].copy()
    values["duration_s"][2, 0] = np.inf
    values["queue_class"] = np.array([0, 0])
    with pytest.raises(UnplaceableGroup, match="group 2"):
        Problem(**values)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("due_s", np.zeros(3), r"due_s: must have shape \[5\]"),
        ("group_model", np.array([0, 1, 0, 1, 7]), r"group_model\[4\]"),
        ("busy_s", np.array([0.0, -1.0]), "busy_s: must not be negative"),
        ("busy_s", np.array([0.0, np.nan]), "busy_s: must be finite"),
        ("eps", -1.0, "eps: must be finite and >= 0"),
        ("swap_s", np.ones((2, 3, 2)), "itself must take 0 s"),
        ("due_s", ["soon"] * 5, "due_s: not an array"),
    ],
)
def test_bad_fields_are_named(name: str, value: object, says: str) -> None:
    values = _fields(random_problem(5))
    values[name] = value
    with pytest.raises(InvalidProblem, match=says):
        Problem(**values)


@given(problems())
@settings(max_examples=40, deadline=None)
def test_instances_round_trip(problem: Problem) -> None:
    again = from_instance({"problem": to_instance(problem)})
    plan = greedy(problem)
    assert evaluate(again, plan).objective == evaluate(problem, plan).objective


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ({"d": None}, "d: must be a list"),
        ({"loaded": ["a", 0]}, "loaded: must be a list of whole numbers"),
        ({"p_by_type": [[1.0]]}, "p_by_type"),
        ({"swap_by_type": "x"}, "swap_by_type"),
        ({"alpha": "much"}, "alpha: must be a number"),
    ],
)
def test_bad_documents_are_named(damage: dict, says: str) -> None:
    document = to_instance(random_problem(2)) | damage
    with pytest.raises(InvalidProblem, match=says):
        from_instance(document)
    with pytest.raises(InvalidProblem, match="missing"):
        from_instance({"problem": {}})


def test_plans_are_read_from_every_form() -> None:
    assert plan_from_json([[0, 1], []]) == ((0, 1), ())
    assert plan_from_json({"plan": [[1]]}) == ((1,),)
    assert plan_from_json({"problem": {}, "best": {"plan": [[2]]}}) == ((2,),)
    with pytest.raises(InvalidProblem):
        plan_from_json({"plan": [["a"]]})
    with pytest.raises(InvalidProblem):
        plan_from_json(3)
