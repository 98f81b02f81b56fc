"""Bounds lie below every plan, proofs are proofs, and columns cost what plans cost."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlm_core.planning import Limits, Problem, Termination, evaluate, greedy
from qlm_core.planning.bound import Pricing, ascend, reach_of, removal_prices, unhindered
from qlm_core.planning.columns import Column, Partition, Picked, all_routes, column_cost
from qlm_core.planning.compiled import compiled_kernels, compiled_pricing
from qlm_core.planning.exact import Toolbox, solve_exact
from qlm_core.planning.score import Plan
from tests.planning.problems import best_objective, problems, random_problem


def pricing_of(problem: Problem) -> Pricing:
    score = evaluate(problem, greedy(problem))
    return Pricing(problem, compiled_pricing(), reach_of(problem, score))


@given(problems(most_groups=5), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_any_prices_give_a_bound(problem: Problem, seed: int) -> None:
    if problem.groups == 0:
        return
    optimum = best_objective(problem)
    pricing = pricing_of(problem)
    prices = np.random.default_rng(seed).random(problem.groups) * optimum
    assert pricing.price(prices).bound <= optimum * (1 + 1e-9)
    start = removal_prices(problem, greedy(problem))
    counted = itertools.count()
    ascent = ascend(pricing, start, optimum * 1.1, keep_going=lambda: next(counted) < 60)
    assert ascent.bound <= optimum * (1 + 1e-9)
    assert ascent.bound >= pricing.price(start).bound - 1e-9


@given(problems(most_groups=5))
@settings(max_examples=100, deadline=None)
def test_no_plan_beats_groups_that_are_all_first(problem: Problem) -> None:
    assert unhindered(problem) <= best_objective(problem) * (1 + 1e-9) + 1e-9


def test_groups_with_a_free_queue_each_reach_the_bound_of_all_first() -> None:
    problem = dataclasses.replace(
        random_problem(3, groups=3, queues=6, models=1, alpha=5.0),
        busy_s=np.zeros(6),
        loaded_model=np.zeros(6, np.int64),
        queue_class=np.zeros(6, np.int64),
    )
    plan = greedy(problem)
    assert max(map(len, plan)) == 1
    assert evaluate(problem, plan).objective == pytest.approx(unhindered(problem))


@given(problems(most_groups=7))
@settings(max_examples=60, deadline=None)
def test_columns_add_up_to_plans(problem: Problem) -> None:
    plan = greedy(problem)
    total = sum(column_cost(problem, Column(g, q)) for g, q in enumerate(plan))
    assert total == pytest.approx(evaluate(problem, plan).objective)


@pytest.mark.parametrize("seed", range(8))
def test_routes_hold_every_better_plan(seed: int) -> None:
    problem = random_problem(seed, groups=5, alpha=2.0, rich=seed % 2 == 1, grid_s=0.037)
    pricing = pricing_of(problem)
    prices = removal_prices(problem, greedy(problem))
    optimum = best_objective(problem)
    routes = all_routes(problem, pricing, prices, optimum, 1_000_000)
    assert routes is not None
    assert pick_by_hand(problem, routes) == pytest.approx(optimum)
    for column, cost in routes.items():
        assert cost == pytest.approx(column_cost(problem, column))


def pick_by_hand(problem: Problem, routes: dict[Column, float]) -> float:
    """The cheapest exact cover by a dynamic program over sets of groups."""
    best = {frozenset(): 0.0}
    for queue in range(problem.queues):
        step = dict(best)
        for column, cost in routes.items():
            if column.queue != queue:
                continue
            groups = frozenset(column.groups)
            for done, spent in best.items():
                if not done & groups:
                    joined = done | groups
                    step[joined] = min(step.get(joined, np.inf), spent + cost)
        best = step
    return best[frozenset(range(problem.groups))]


def choose_by_hand(problem: Problem):
    def choose(partition: Partition, wall_s: float, start: Plan | None) -> Picked:
        best, chosen = np.inf, None
        numbers = [
            [None, *(j for j, c in enumerate(partition.columns) if c.queue == g)]
            for g in range(partition.queues)
        ]
        for pick in itertools.product(*numbers):
            some = [j for j in pick if j is not None]
            groups = [i for j in some for i in partition.columns[j].groups]
            if sorted(groups) == list(range(partition.groups)):
                cost = float(partition.cost[some].sum())
                if cost < best:
                    best, chosen = cost, partition.plan_of(some)
        return Picked(plan=chosen, termination=Termination.OPTIMAL, bound=best)

    return choose


@pytest.mark.parametrize("seed", range(6))
def test_exact_proves_the_optimum(seed: int) -> None:
    problem = random_problem(seed, groups=4, alpha=2.0, rich=seed % 2 == 0)
    ticks = itertools.count()
    result = solve_exact(
        problem,
        Limits(wall_s=40.0),
        seed=0,
        tools=Toolbox(
            clock=lambda: next(ticks) * 0.05,
            kernels=compiled_kernels(),
            pricing=compiled_pricing(),
            partition=choose_by_hand(problem),
        ),
    )
    assert result.objective == pytest.approx(best_objective(problem))
    assert result.termination is Termination.OPTIMAL
    assert result.lower_bound == result.objective


def test_a_bound_without_a_partition_solver_and_duals_to_go_on_from() -> None:
    problem = random_problem(3, groups=7, queues=3)

    def solve(rounds: float, duals: tuple[float, ...] = ()):
        ticks = itertools.count()
        return solve_exact(
            problem,
            Limits(wall_s=rounds),
            seed=0,
            tools=Toolbox(
                clock=lambda: next(ticks) * 0.01,
                kernels=compiled_kernels(),
                pricing=compiled_pricing(),
            ),
            duals=duals,
        )

    first = solve(20.0)
    assert first.lower_bound is not None
    assert first.lower_bound <= first.objective
    assert len(first.duals) == 7
    assert len(first.queue_values) == 3
    from_nothing = solve(0.3)
    again = solve(0.3, first.duals)
    assert from_nothing.lower_bound is not None
    assert again.lower_bound is not None
    assert again.lower_bound > from_nothing.lower_bound
    unknown = (float("nan"), *first.duals[1:])
    assert solve(0.3, unknown).lower_bound is not None


def test_remembered_groups_lift_the_bound_and_keep_it_one() -> None:
    lifted = 0
    for seed in range(12):
        problem = random_problem(seed, groups=5, alpha=2.0 * (seed % 2), rich=seed % 3 == 0)
        optimum = best_objective(problem)
        plain, remembering = pricing_of(problem), pricing_of(problem)
        assert remembering.remember(np.array([0, 2, 3]))
        for scale in (0.8, 1.5, 4.0):
            prices = scale * removal_prices(problem, greedy(problem)) + 1.0
            before, after = plain.price(prices), remembering.price(prices)
            assert before.bound - 1e-9 <= after.bound <= optimum + 1e-9
            lifted += after.bound > before.bound + 1e-6
            for path in after.paths:
                counts = np.bincount(path, minlength=5)
                assert counts[[0, 2, 3]].max(initial=0) <= 1
    assert lifted > 0


def test_routes_found_with_remembered_groups_are_fewer_and_hold_the_optimum() -> None:
    for seed in range(4):
        problem = random_problem(seed, groups=5, alpha=2.0, rich=seed % 2 == 1)
        optimum = best_objective(problem)
        prices = removal_prices(problem, greedy(problem))
        counts = []
        for remembered in ([], [0, 1, 2, 3, 4]):
            pricing = pricing_of(problem)
            if remembered:
                assert pricing.remember(np.array(remembered))
            routes = all_routes(problem, pricing, prices, optimum, 1_000_000)
            assert routes is not None
            assert pick_by_hand(problem, routes) == pytest.approx(optimum)
            counts.append(len(routes))
        assert counts[1] <= counts[0]
    assert all_routes(problem, pricing, prices, optimum, 1) is None
