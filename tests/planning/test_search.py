"""The search: never worse than its start, the same from the same seed, compiled or not."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings

from qlm_core.planning import Limits, Problem, check, evaluate, greedy, repair, to_instance
from qlm_core.planning.compiled import compiled_kernels
from qlm_core.planning.search import Tuning, search
from tests.planning.problems import best_objective, problems, random_problem

ROOT = Path(__file__).resolve().parents[2]


def stopped() -> float:
    return 0.0


@given(problems(most_groups=14, most_queues=4))
@settings(max_examples=30, deadline=None)
def test_never_worse_than_its_start(problem: Problem) -> None:
    start = greedy(problem)
    heard: list[float] = []
    result = search(
        problem,
        Limits(work=600),
        seed=1,
        clock=stopped,
        start=start,
        on_improvement=lambda plan, objective: heard.append(objective),
    )
    assert result.plan is not None
    assert check(problem, result.plan) is None
    assert result.objective == evaluate(problem, result.plan).objective
    assert result.objective <= evaluate(problem, start).objective * (1 + 1e-9)
    assert heard == [objective for _, objective in result.history]
    assert heard == sorted(heard, reverse=True)


@pytest.mark.parametrize("alpha", [0.0, 5.0])
@pytest.mark.parametrize("seed", range(6))
def test_finds_the_optimum_of_tiny_problems(seed: int, alpha: float) -> None:
    problem = random_problem(seed, groups=5, alpha=alpha, rich=seed % 2 == 1)
    result = search(problem, Limits(work=20_000), seed=0, clock=stopped)
    assert result.objective == pytest.approx(best_objective(problem))


@pytest.mark.parametrize("rich", [False, True])
def test_compiled_and_interpreted_agree(rich: bool) -> None:
    compiled = compiled_kernels()
    if compiled is None:
        pytest.skip("numba is not installed")
    for groups in (9, 80):
        problem = random_problem(3, groups=groups, queues=4, models=3, alpha=2.0, rich=rich)
        results = [
            search(problem, Limits(work=20_000), seed=5, clock=stopped, compiled=kernels)
            for kernels in (None, compiled)
        ]
        assert results[0].plan == results[1].plan
        assert results[0].objective == results[1].objective
        assert results[0].history == results[1].history


def test_work_is_what_was_asked_for() -> None:
    problem = random_problem(7, groups=10, queues=3)
    result = search(problem, Limits(work=12_345), seed=0, clock=stopped)
    assert result.work == 12_345


def test_starts_from_a_stale_plan() -> None:
    problem = random_problem(8, groups=10, queues=3)
    stale = ((0, 17, 3), (-1, 4, 4), (), (2,))
    result = search(problem, Limits(work=1), seed=0, clock=stopped, start=stale)
    assert result.objective <= evaluate(problem, repair(problem, stale)).objective + 1e-9


def test_pins_hold() -> None:
    problem = random_problem(12, groups=10, queues=3)
    pinned = np.zeros(10, bool)
    pinned[[2, 7]] = True
    home = np.full(10, -1)
    home[[2, 7]] = 1
    fixed = Problem(
        **{name: getattr(problem, name) for name in problem.__dataclass_fields__}
        | {"pinned": pinned, "home": home}
    )
    result = search(fixed, Limits(work=5_000), seed=0, clock=stopped)
    assert result.plan is not None
    assert result.plan[1][:2] == (2, 7)


def test_the_same_plan_under_any_hash_seed(tmp_path: Path) -> None:
    import json

    file = tmp_path / "problem.json"
    file.write_text(json.dumps(to_instance(random_problem(21, groups=40, queues=5, models=3))))
    script = (
        "import json, sys; from qlm_core.planning import *;"
        "from qlm_core.planning.search import search;"
        "p = from_instance(json.load(sys.stdin));"
        "r = search(p, Limits(work=4000), seed=3, clock=lambda: 0.0);"
        "print(r.plan, r.objective, greedy(p))"
    )
    answers = {
        subprocess.run(
            [sys.executable, "-c", script],
            input=file.read_text(),
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": value},
        ).stdout
        for value in ("0", "1", "4242")
    }
    assert len(answers) == 1


def mean_objective(*, groups: int, work: int, warm: bool, tuning: Tuning) -> float:
    """Of plans sought for so long on several problems: from nothing, or from a plan that was good a moment ago."""
    found = []
    for seed in range(8):
        problem = random_problem(seed, groups=groups, queues=4, models=3, alpha=3.0, rich=True)
        start = None
        if warm:
            first = search(problem, Limits(work=8 * work), seed=5, clock=stopped)
            start = first.plan
        result = search(
            problem, Limits(work=work), seed=0, clock=stopped, start=start, tuning=tuning
        )
        found.append(result.objective)
    return sum(found) / len(found)


def test_on_small_plans_ruin_and_recreate_finds_what_annealing_does_not() -> None:
    with_it = mean_objective(groups=20, work=2_000, warm=False, tuning=Tuning())
    without = mean_objective(groups=20, work=2_000, warm=False, tuning=Tuning(ruin_groups=0))
    assert with_it < 0.995 * without


def test_a_good_plan_is_refined_from_a_cool_start_rather_than_forgotten() -> None:
    cool = mean_objective(groups=80, work=3_000, warm=True, tuning=Tuning())
    hot = mean_objective(groups=80, work=3_000, warm=True, tuning=Tuning(warm=0.1))
    assert cool < hot
