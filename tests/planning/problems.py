"""Small random problems, and the slow but obvious ways to judge them."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from hypothesis import strategies as st

from qlm_core.planning import Plan, Problem, check


def random_problem(
    seed: int,
    *,
    groups: int = 5,
    queues: int = 2,
    models: int = 2,
    alpha: float = 0.0,
    rich: bool = False,
    grid_s: float = 0.1,
) -> Problem:
    """A feasible problem; `rich` adds tails, ramps, homes, move costs, misfits and swaps that are longer than two others."""
    r = np.random.default_rng(seed)
    classes = min(2, queues)

    def times(*shape: int, most: float = 10.0) -> Any:
        return np.round(r.random(shape) * most / grid_s) * grid_s

    duration = times(groups, classes) + grid_s
    swap = times(classes, models + 1, models, most=3.0) + 3.0
    swap[:, np.arange(models), np.arange(models)] = 0.0
    extra: dict[str, Any] = {}
    if rich:
        misfit = r.random((groups, classes)) < 0.2
        misfit[:, 0] = False
        if r.random() < 0.5:
            swap = np.where(swap > 0.0, times(*swap.shape), 0.0)
        duration = np.where(misfit, np.inf, duration)
        extra = {
            "tail_s": -np.where(np.isfinite(duration), duration, 0.0) * (r.random() < 0.5),
            "ramp_s": np.where(r.random(groups) < 0.5, times(groups), 0.0),
            "home": r.integers(-1, queues, groups),
            "move_cost": times(groups, most=20.0),
        }
    queue_class = np.arange(queues) % classes
    return Problem(
        group_model=r.integers(0, models, groups),
        group_requests=r.integers(1, 9, groups),
        group_weight=r.choice([1.0, 2.0, 4.0], groups),
        due_s=times(groups, most=30.0) - 3.0,
        duration_s=duration,
        queue_class=queue_class,
        loaded_model=r.integers(-1, models, queues),
        busy_s=times(queues, most=4.0),
        swap_s=swap,
        alpha=alpha,
        name=f"random-{seed}",
        **extra,
    )


@st.composite
def problems(draw: st.DrawFn, most_groups: int = 6, most_queues: int = 3) -> Problem:
    """Any small problem."""
    return random_problem(
        draw(st.integers(0, 10_000)),
        groups=draw(st.integers(0, most_groups)),
        queues=draw(st.integers(1, most_queues)),
        models=draw(st.integers(1, 3)),
        alpha=draw(st.sampled_from([0.0, 5.0])),
        rich=draw(st.booleans()),
    )


def slow_objective(problem: Problem, plan: Plan) -> float:
    """The objective, step by step, from its definition."""
    total = 0.0
    for queue, groups in enumerate(plan):
        number = problem.queue_class[queue]
        now, model = problem.busy_s[queue], problem.loaded_model[queue]
        for i in groups:
            own = problem.group_model[i]
            if own != model:
                total += problem.kappa * problem.swap_s[number, model, own]
                now += problem.swap_s[number, model, own]
            model = own
            now += problem.duration_s[i, number]
            late = now + problem.tail_s[i, number] - problem.due_s[i]
            ramp = problem.ramp_s[i]
            risk = float(late > 1e-9)
            if ramp > 0:
                risk = min(1.0, max(0.0, late / ramp + 0.5))
            weight = problem.group_requests[i] * problem.group_weight[i]
            late = late if late > 1e-9 else 0.0
            total += weight * (problem.alpha * risk + problem.beta * late + problem.eps * now)
            if problem.home[i] not in (-1, queue):
                total += problem.move_cost[i]
    return float(total)


def every_plan(problem: Problem) -> list[Plan]:
    """All plans of a tiny problem."""
    plans = []
    for order in itertools.permutations(range(problem.groups)):
        for cuts in itertools.combinations_with_replacement(
            range(problem.groups + 1), problem.queues - 1
        ):
            edges = (0, *cuts, problem.groups)
            plan = tuple(order[a:b] for a, b in itertools.pairwise(edges))
            if check(problem, plan) is None:
                plans.append(plan)
    return plans


def best_objective(problem: Problem) -> float:
    """The optimum, by looking at everything."""
    return min(slow_objective(problem, plan) for plan in every_plan(problem))
