"""Ends of long queues move where that lowers the objective, and nothing else changes."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlm_core.planning import Plan, Problem, as_plan, check, evaluate, greedy, level, repair
from tests.planning.problems import problems, random_problem


def dealt(problem: Problem, seed: int) -> Plan:
    """Any plan."""
    rng = np.random.default_rng(seed)
    fits = problem.fits()
    queues: list[list[int]] = [[] for _ in range(problem.queues)]
    for group in rng.permutation(problem.groups).tolist():
        queues[int(rng.choice(np.flatnonzero(fits[group])))].append(group)
    return as_plan(queues)


def ends_moved(problem: Problem, plan: Plan, number: int) -> list[Plan]:
    """The plans that differ by the last 1, 2, 4, ... groups of a queue, or all of it, which stand behind another one."""
    queue = plan[number]
    lengths = [1 << power for power in range(len(queue).bit_length()) if 1 << power < len(queue)]
    found = []
    for length in [*lengths, len(queue)]:
        for target in range(problem.queues):
            if target != number:
                rows = list(plan)
                cut = len(queue) - length
                rows[number], rows[target] = queue[:cut], plan[target] + queue[cut:]
                if check(problem, tuple(rows)) is None:
                    found.append(tuple(rows))
    return found


def last_model(problem: Problem, plan: Plan, number: int) -> int:
    """The model that a queue ends with."""
    queue = plan[number]
    return int(problem.group_model[queue[-1]] if queue else problem.loaded_model[number])


@given(problems(most_groups=12, most_queues=4), st.integers(0, 99))
@settings(max_examples=150, deadline=None)
def test_no_end_is_left_whose_move_would_pay(problem: Problem, seed: int) -> None:
    # With no tails, and moves free, whoever ends later is never the better place.
    problem = replace(
        problem,
        tail_s=np.zeros_like(problem.tail_s),
        move_cost=np.zeros_like(problem.move_cost),
    )
    number = seed % problem.queues
    before = dealt(problem, seed)
    after = level(problem, before, [number])
    assert check(problem, after) is None
    objective = evaluate(problem, after).objective
    assert objective <= evaluate(problem, before).objective + 1e-9
    assert after[number] == before[number][: len(after[number])]
    if after[number]:
        ends = evaluate(problem, after).end_s
        last_s = ends[after[number][-1]]
        for other in ends_moved(problem, after, number):
            target = next(g for g in range(problem.queues) if len(other[g]) > len(after[g]))
            behind_s = ends[after[target][-1]] if after[target] else problem.busy_s[target]
            if behind_s < last_s and last_model(problem, after, target) != last_model(
                problem, after, number
            ):
                assert evaluate(problem, other).objective >= objective - 1e-6 * max(1.0, objective)


@given(problems(most_groups=12, most_queues=4), st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_levelling_never_costs(problem: Problem, seed: int) -> None:
    plan = dealt(problem, seed)
    levelled = level(problem, plan, range(problem.queues))
    assert check(problem, levelled) is None
    before, after = evaluate(problem, plan).objective, evaluate(problem, levelled).objective
    assert after <= before + 1e-9 * max(1.0, before)


def backlog(groups: int) -> Problem:
    """Groups of one model and four equal queues, two of which have another one loaded; no group alone is worth a swap."""
    return Problem(
        group_model=np.zeros(groups, np.int64),
        group_requests=np.full(groups, 60),
        group_weight=np.ones(groups),
        due_s=np.full(groups, 3600.0),
        duration_s=np.full((groups, 1), 5.0),
        queue_class=np.zeros(4, np.int64),
        loaded_model=np.array([0, 0, 1, 1]),
        busy_s=np.zeros(4),
        swap_s=np.array([[[0.0, 30.0], [30.0, 0.0], [20.0, 20.0]]]),
        alpha=30.0,
        beta=0.02,
    )


def test_a_backlog_is_shared_with_instances_that_have_to_swap_for_it() -> None:
    problem = backlog(80)
    inserted = greedy(problem)
    assert [len(queue) for queue in inserted] == [40, 40, 0, 0]
    levelled = level(problem, inserted, range(4))
    assert min(len(queue) for queue in levelled) >= 10
    assert evaluate(problem, levelled).swaps == 2
    assert evaluate(problem, levelled).objective < 0.8 * evaluate(problem, inserted).objective


def test_a_short_backlog_is_not_worth_a_swap() -> None:
    problem = backlog(8)
    assert level(problem, greedy(problem), range(4)) == greedy(problem)


def test_pinned_groups_stay() -> None:
    problem = backlog(80)
    pinned = np.arange(80) < 60
    problem = replace(problem, home=np.where(pinned, 0, -1), pinned=pinned)
    levelled = level(problem, repair(problem, ((), (), (), ())), range(4))
    assert check(problem, levelled) is None
    assert levelled[0][:60] == tuple(range(60))


@pytest.mark.parametrize("queues", [1, 3])
def test_nothing_to_level(queues: int) -> None:
    nothing = random_problem(1, groups=0, queues=queues)
    assert level(nothing, ((),) * queues, range(queues)) == ((),) * queues
