"""Explanations agree with the evaluator; capacity has the right sign and order."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from qlm_core.planning import Problem, capacity_values, evaluate, explain, greedy
from qlm_core.planning.bound import removal_prices
from tests.planning.problems import problems, random_problem


@given(problems(most_groups=8))
@settings(max_examples=50, deadline=None)
def test_alternatives_cost_what_they_say(problem: Problem) -> None:
    plan = greedy(problem)
    base = evaluate(problem, plan)
    for group in range(problem.groups):
        why = explain(problem, plan, group, most=9)
        assert plan[why.queue][why.place] == group
        assert why.behind == plan[why.queue][: why.place]
        assert why.end_s == base.end_s[group]
        for other in why.alternatives:
            moved = [[i for i in queue if i != group] for queue in plan]
            moved[other.queue].insert(other.place, group)
            objective = evaluate(problem, tuple(map(tuple, moved))).objective
            assert objective - base.objective == pytest.approx(other.extra_cost, abs=1e-6)


def test_pinned_groups_have_no_alternatives() -> None:
    problem = random_problem(3)
    pinned = np.array([True, False, False, False, False])
    fixed = replace(problem, pinned=pinned, home=np.array([1, -1, -1, -1, -1]))
    why = explain(fixed, greedy(fixed), 0)
    assert why.pinned
    assert why.alternatives == ()
    assert (why.queue, why.place) == (1, 0)


def test_more_capacity_is_worth_more_when_it_is_scarce() -> None:
    problem = random_problem(6, groups=12, queues=2)
    prices = tuple(removal_prices(problem, greedy(problem)).tolist())
    values = capacity_values(problem, prices)
    assert len(values) == 2
    assert max(values) > 0
    assert min(values) >= 0
    assert capacity_values(problem, (0.0,) * 12) == (0.0, 0.0)
    assert capacity_values(problem, ()) == (0.0, 0.0)
