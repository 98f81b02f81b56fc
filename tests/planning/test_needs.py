"""How many instances it takes, held against plans for fleets of that size and one less."""

from dataclasses import replace
from itertools import count

import numpy as np
import pytest

from qlm_core.planning import (
    Limits,
    PlanResult,
    Problem,
    Termination,
    UnplaceableGroup,
    evaluate,
    greedy,
)
from qlm_core.planning.exact import Toolbox, solve_exact
from qlm_core.planning.needs import dealt, instances_needed, resized
from qlm_core.planning.search import search
from solver.backends.order import Done, done_of, pack, read_report, result_of
from tests.planning.problems import random_problem


def backlog(groups: int, queues: int, *, due_s: float = 30.0) -> Problem:
    """Equal groups of ten seconds on equal queues of one model, all due after a while, of late weight 1 each."""
    return Problem(
        group_model=np.zeros(groups, np.int64),
        group_requests=np.ones(groups, np.int64),
        group_weight=np.ones(groups),
        due_s=np.full(groups, due_s),
        duration_s=np.full((groups, 1), 10.0),
        queue_class=np.zeros(queues, np.int64),
        loaded_model=np.zeros(queues, np.int64),
        busy_s=np.zeros(queues),
        swap_s=np.zeros((1, 2, 1)),
        alpha=30.0,
        beta=0.02,
    )


def needed(problem: Problem, saves: float = 60.0, until_s: float = 1e9) -> tuple[int | None, ...]:
    ticks = count()
    return instances_needed(
        problem,
        greedy(problem),
        (saves,) * problem.classes,
        clock=lambda: float(next(ticks)),
        until_s=until_s,
    )


@pytest.mark.parametrize("saves", [1.0, 60.0, 1e6])
def test_a_backlog_needs_as_many_as_end_it_in_time(saves: float) -> None:
    # Three groups fit on a queue before they are due: twelve groups need four queues, whatever the duals suppose.
    assert needed(backlog(12, 2), saves) == (2,)
    assert needed(backlog(12, 3), saves) == (1,)
    assert needed(backlog(12, 4), saves) == (0,)


def test_fewer_do_where_there_is_time() -> None:
    assert needed(backlog(12, 9)) == (-5,)
    # One has to stay for what waits, and none where nothing does.
    assert needed(backlog(2, 5)) == (-4,)


def test_what_no_instance_could_save_calls_for_none() -> None:
    late = backlog(12, 4)
    hopeless = replace(late, due_s=np.where(np.arange(12) < 6, -5.0, 30.0))
    # The six others fit on two queues.
    assert needed(hopeless) == (-2,)
    assert needed(replace(late, due_s=np.full(12, -5.0))) == (-3,)


def test_a_class_that_helps_nobody_is_not_asked_for() -> None:
    assert needed(backlog(12, 2), saves=0.0) == (0,)


def test_without_time_nothing_is_said() -> None:
    assert needed(backlog(12, 2), until_s=-1.0) == (None,)
    pinned = replace(
        backlog(4, 2), pinned=np.array([True, *[False] * 3]), home=np.array([0, -1, -1, -1])
    )
    assert needed(pinned) == (None,)


@pytest.mark.parametrize("seed", range(8))
def test_the_size_keeps_targets(seed: int) -> None:
    problem = random_problem(seed, groups=12, alpha=30.0)
    for number, more in enumerate(needed(problem)):
        assert more is not None
        present = int((problem.queue_class == number).sum())
        after = resized(problem, number, present + more)
        best = search(after, Limits(work=20_000), seed=1, clock=lambda: 0.0).plan
        assert best is not None
        late = evaluate(after, best).late_weight
        if more > 0:
            assert late < evaluate(problem, greedy(problem)).late_weight


def test_resizing_keeps_groups_placeable() -> None:
    problem = backlog(3, 2)
    assert resized(problem, 0, 5).queues == 5
    assert resized(problem, 0, 1).queues == 1
    with pytest.raises(UnplaceableGroup):
        resized(problem, 0, 0)


def test_who_plans_again_is_told_with_the_bound() -> None:
    slow = backlog(12, 2)
    # A tenth of the time, which the bound follows in steps of a tenth of a second.
    problem = replace(slow, duration_s=slow.duration_s / 10.0, due_s=slow.due_s / 10.0)
    ticks = count()
    tools = Toolbox(clock=lambda: next(ticks) * 1e-3)
    limits = Limits(wall_s=0.25)
    told = solve_exact(problem, limits, seed=0, tools=tools, duals=(float("nan"),) * 12)
    assert told.needed == (2,)
    assert solve_exact(problem, limits, seed=0, tools=tools).needed == ()


def test_a_new_instance_has_its_room_and_a_model_awake_that_is_waited_for() -> None:
    # Each queue is busy for twenty seconds; an empty one has room for two groups at once beside.
    problem = replace(backlog(12, 2), busy_s=np.full(2, 20.0), empty_s=np.array([-20.0]))
    grown = resized(problem, 0, 3)
    assert grown.busy_s.tolist() == [40.0, 40.0, 0.0]
    assert grown.due_s.tolist() == [50.0] * 12
    assert grown.loaded_model.tolist() == [0, 0, 0]
    # On each of the two there is time for one, on a new one for five.
    assert needed(problem) == (2,)
    assert dealt([3.0, 1.0, 0.0], 5) == [0, 0, 0, 1, 0]
    assert dealt([0.0], 2) == [-1, -1]


def test_it_comes_through_from_the_planners_process() -> None:
    found = PlanResult(
        plan=((0,),),
        objective=1.0,
        lower_bound=0.5,
        termination=Termination.LIMIT,
        backend="highs",
        capacity_values=(3.0, 0.0),
        needed=(2, None),
    )
    done = read_report(pack(done_of(7, found))[4:])
    assert isinstance(done, Done)
    assert result_of(done) == found
