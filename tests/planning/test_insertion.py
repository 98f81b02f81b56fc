"""Greedy plans and repairs: always plans, each group where it costs least, nothing else moved."""

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from qlm_core.planning import Problem, check, evaluate, greedy, repair
from qlm_core.planning.insertion import dispatch
from tests.planning.problems import problems, random_problem


@given(problems(most_groups=20, most_queues=4))
@settings(max_examples=100, deadline=None)
def test_greedy_always_plans(problem: Problem) -> None:
    assert check(problem, greedy(problem)) is None
    assert greedy(problem) == greedy(problem)


@given(problems(most_groups=20, most_queues=4))
@settings(max_examples=100, deadline=None)
def test_dispatch_plans_each_group_behind_the_queue_that_is_free_first(problem: Problem) -> None:
    plan = dispatch(problem)
    assert check(problem, plan) is None
    for queue in plan:
        assert list(queue) == sorted(queue, key=lambda i: (problem.due_s[i], i))
    if problem.groups:
        score = evaluate(problem, plan)
        last = int(np.lexsort((np.arange(problem.groups), problem.due_s))[-1])
        without = tuple(tuple(i for i in queue if i != last) for queue in plan)
        ends = []
        for number in range(problem.queues):
            if problem.fits()[last, number]:
                moved = [(*q, last) if g == number else q for g, q in enumerate(without)]
                ends.append(evaluate(problem, tuple(moved)).end_s[last])
        assert score.end_s[last] <= min(ends) + 1e-9


@given(problems(most_groups=12, most_queues=4), st.data())
@settings(max_examples=150, deadline=None)
def test_one_group_goes_where_it_costs_least(problem: Problem, data: st.DataObject) -> None:
    if problem.groups:
        goes_where_it_costs_least(problem, data.draw(st.integers(0, problem.groups - 1)))


def test_a_group_that_spares_a_long_swap_goes_where_it_costs_least() -> None:
    """Some of these problems have queues which it would shorten and cannot run on."""
    for seed in range(25):
        problem = random_problem(seed, groups=8, queues=3, models=3, rich=True)
        for missing in range(problem.groups):
            goes_where_it_costs_least(problem, missing)


def goes_where_it_costs_least(problem: Problem, missing: int) -> None:
    """A group that is missing in a plan is inserted where all of it costs least."""
    previous = tuple(tuple(i for i in queue if i != missing) for queue in greedy(problem))
    repaired = repair(problem, previous)
    assert tuple(tuple(i for i in queue if i != missing) for queue in repaired) == previous
    best = min(
        evaluate(problem, candidate).objective
        for number, queue in enumerate(previous)
        for place in range(len(queue) + 1)
        if check(
            problem,
            candidate := (
                *previous[:number],
                (*queue[:place], missing, *queue[place:]),
                *previous[number + 1 :],
            ),
        )
        is None
    )
    assert abs(evaluate(problem, repaired).objective - best) <= 1e-9 * max(1.0, best)


@given(problems(most_groups=10), st.data())
@settings(max_examples=100, deadline=None)
def test_any_previous_plan_is_repaired(problem: Problem, data: st.DataObject) -> None:
    numbers = st.integers(-2, problem.groups + 2)
    previous = data.draw(st.lists(st.lists(numbers, max_size=8), max_size=5))
    repaired = repair(problem, previous)
    assert check(problem, repaired) is None
    assert repair(problem, repaired) == repaired


def test_pinned_groups_come_first_and_stay() -> None:
    problem = replace(
        random_problem(11, groups=8),
        home=np.array([1, 0, 1, -1, -1, -1, -1, -1]),
        pinned=np.array([True, True, True, False, False, False, False, False]),
    )
    for plan in (greedy(problem), repair(problem, ((3, 2, 0), (1, 4)))):
        assert check(problem, plan) is None
        assert plan[0][:1] == (1,)
        assert plan[1][:2] == (0, 2)
    moved = list(map(list, greedy(problem)))
    moved[1].reverse()
    assert "must start with its pinned groups" in (check(problem, tuple(map(tuple, moved))) or "")


def test_moving_costs_keep_groups_at_home() -> None:
    problem = random_problem(4, groups=6)
    plan = greedy(problem)
    away = np.ones(6, np.int64)
    away[list(plan[1])] = 0
    costly = replace(problem, home=away, move_cost=np.full(6, 1e6))
    assert evaluate(costly, greedy(costly)).moves == 0
    assert evaluate(costly, plan).moves == 6


def test_of_several_new_groups_the_one_with_most_to_lose_goes_first() -> None:
    """The first may run anywhere; the second, due later, would take four times as long on the other queue."""
    problem = Problem(
        group_model=np.zeros(2, np.int64),
        group_requests=np.ones(2, np.int64),
        group_weight=np.ones(2),
        due_s=np.array([5.0, 6.0]),
        duration_s=np.array([[1.0, 1.1], [1.0, 4.0]]),
        queue_class=np.array([0, 1]),
        loaded_model=np.zeros(2, np.int64),
        busy_s=np.zeros(2),
        swap_s=np.zeros((2, 2, 1)),
    )
    assert repair(problem, ((), ())) == ((1,), (0,))


def test_no_groups_and_empty_queues() -> None:
    assert greedy(random_problem(1, groups=0, queues=3)) == ((), (), ())
    assert repair(random_problem(1, groups=0), ((0, 1), (2,))) == ((), ())
    one = random_problem(1, groups=1, queues=3)
    assert sorted(map(len, greedy(one))) == [0, 0, 1]


def test_one_huge_group_among_many() -> None:
    problem = random_problem(9, groups=12, queues=3)
    duration = problem.duration_s.copy()
    duration[5] = 1e7
    huge = replace(problem, duration_s=duration)
    plan = greedy(huge)
    queue = next(queue for queue in plan if 5 in queue)
    assert queue[-1] == 5
