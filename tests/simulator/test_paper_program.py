"""The paper's program as `qlm-paper` solves it, and as the MILP it is compared with."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from benchmarks.paper_milp import impossible, lateness_s, paper_milp, waits_s
from benchmarks.paper_program import record
from qlm_core.grouping import GroupKey, RequestGroup
from qlm_core.model import GatewayId, GroupId, ModelName, RequestId, RequestMeta, Slo
from qlm_core.planning import Plan, Problem, Termination, check, evaluate
from qlm_core.sim.policies.paper import earliest_deadline_first, first_solution, owed_by_s
from solver.backends.highs import solve_program
from tests.simulator.beds import crowded, scenario


@st.composite
def programs(draw: st.DrawFn) -> Problem:
    """Up to five groups of two models on two queues of two classes, as `paper_program` makes them."""
    groups = draw(st.integers(1, 5))
    seconds = st.integers(1, 9)

    def several(element: st.SearchStrategy[int], count: int) -> list[int]:
        return draw(st.lists(element, min_size=count, max_size=count))

    duration = np.array(several(seconds, 2 * groups), float).reshape(groups, 2)
    swap = np.zeros((2, 3, 2))
    swap[:, 0, 1], swap[:, 1, 0] = draw(seconds), draw(seconds)
    swap[:, 2, :] = draw(seconds)
    return Problem(
        group_model=np.array(several(st.integers(0, 1), groups)),
        group_requests=np.ones(groups, np.int64),
        group_weight=np.ones(groups),
        due_s=np.array(several(st.integers(0, 30), groups), float),
        duration_s=duration,
        tail_s=-duration,
        queue_class=np.array([0, 1]),
        loaded_model=np.array(several(st.integers(-1, 1), 2)),
        busy_s=np.array(several(st.integers(0, 4), 2), float),
        swap_s=swap,
        alpha=1e6,
        beta=0.0,
        kappa=0.0,
        eps=1.0,
    )


def every_plan(problem: Problem) -> list[Plan]:
    found = []
    for where in product(range(2), repeat=problem.groups):
        parts = [[i for i in range(problem.groups) if where[i] == queue] for queue in range(2)]
        found += [tuple(plan) for plan in product(*(permutations(part) for part in parts))]
    return found


@settings(max_examples=40, deadline=None)
@given(programs())
def test_the_milp_is_the_program(problem: Problem) -> None:
    waits = [
        waits_s(problem, plan)
        for plan in every_plan(problem)
        if evaluate(problem, plan).late_weight == 0.0
    ]
    program = paper_milp(problem, None)
    answer = solve_program(program, 60.0, None, lambda _: None, presolve=False)
    if not waits:
        assert answer.termination is Termination.INFEASIBLE
        return
    assert not impossible(problem)
    assert answer.termination is Termination.OPTIMAL
    plan = program.decode(answer.vector)
    assert check(problem, plan) is None
    assert lateness_s(problem, plan) <= 1e-6
    assert waits_s(problem, plan) == pytest.approx(min(waits))
    assert answer.bound == pytest.approx(min(waits))


def misleading() -> Problem:
    """With this one and 17 s as known, the presolve of HiGHS 1.15.1 cut off the optimum."""
    swap = np.zeros((2, 3, 2))
    swap[:, 0, 1], swap[:, 1, 0], swap[:, 2, :] = 5.0, 1.0, 1.0
    return Problem(
        group_model=np.array([0, 0, 0, 1]),
        group_requests=np.ones(4, np.int64),
        group_weight=np.ones(4),
        due_s=np.array([0.0, 5.0, 6.0, 10.0]),
        duration_s=np.ones((4, 2)),
        tail_s=-np.ones((4, 2)),
        queue_class=np.array([0, 1]),
        loaded_model=np.array([0, 1]),
        busy_s=np.array([0.0, 4.0]),
        swap_s=swap,
        alpha=1e6,
        beta=0.0,
        kappa=0.0,
        eps=1.0,
    )


@settings(max_examples=40, deadline=None)
@given(programs())
@example(misleading())
def test_a_known_solution_does_not_cut_off_better_ones(problem: Problem) -> None:
    waits = [
        waits_s(problem, plan)
        for plan in every_plan(problem)
        if evaluate(problem, plan).late_weight == 0.0
    ]
    if waits:
        program = paper_milp(problem, max(waits))
        answer = solve_program(program, 60.0, None, lambda _: None, presolve=False)
        assert answer.termination is Termination.OPTIMAL
        assert waits_s(problem, program.decode(answer.vector)) == pytest.approx(min(waits))


@settings(max_examples=100, deadline=None)
@given(programs())
def test_the_search_starts_from_no_worse_than_deadline_order(problem: Problem) -> None:
    start = first_solution(problem, [[], []])
    assert check(problem, start) is None
    deadlines = evaluate(problem, earliest_deadline_first(problem)).objective
    assert evaluate(problem, start).objective <= deadlines


def test_groups_that_fit_in_deadline_order_are_a_first_solution() -> None:
    """Appended as they came, both would be late; in order of due times neither is."""
    problem = Problem(
        group_model=np.zeros(3, np.int64),
        group_requests=np.ones(3, np.int64),
        group_weight=np.ones(3),
        due_s=np.array([10.0, 4.0, 0.0]),
        duration_s=np.full((3, 1), 5.0),
        tail_s=np.full((3, 1), -5.0),
        queue_class=np.array([0]),
        loaded_model=np.array([0]),
        busy_s=np.zeros(1),
        swap_s=np.zeros((1, 2, 1)),
        alpha=1e6,
        beta=0.0,
        kappa=0.0,
        eps=1.0,
    )
    assert impossible(problem)
    problem.due_s[1] = 5.0
    assert not impossible(problem)
    start = first_solution(problem, [[0, 1, 2]])
    assert start == ((2, 1, 0),)
    assert evaluate(problem, start).late_weight == 0.0


def request(number: int, arrival_s: float) -> RequestMeta:
    return RequestMeta(
        id=RequestId(f"r{number}"),
        gateway=GatewayId("gateway-0"),
        model=ModelName("mistral-7b"),
        slo_class="batch-1",
        slo=Slo(ttft_s=60.0),
        prompt_tokens=100,
        max_output_tokens=1000,
        arrival_s=arrival_s,
    )


def test_what_was_evicted_after_its_first_token_owes_nothing() -> None:
    old, new = request(0, 0.0), request(1, 30.0)
    group = RequestGroup(GroupId(1), GroupKey.of(old), 0.0)
    group.add(old)
    group.add(new)
    assert owed_by_s(group) == old.due_s
    group.give_back(replace(old, produced_tokens=7))
    assert owed_by_s(group) == new.due_s
    group.give_back(replace(new, produced_tokens=1))
    assert owed_by_s(group) > new.due_s + 1e5


def test_programs_of_a_run_are_recorded_with_their_answers() -> None:
    solved = record(scenario(crowded()), 0)
    assert solved
    for one in solved:
        assert check(one.problem, one.plan) is None
        assert (one.problem.group_requests == 1).all()
        if one.feasible:
            assert not impossible(one.problem)
            assert lateness_s(one.problem, one.plan) <= 1e-6
