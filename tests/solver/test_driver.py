"""A solve that fails is reported as finished, or it would be the last one."""

import time
from collections.abc import Callable, Sequence

import pytest

from qlm_core.config import Config
from qlm_core.manager.events import Event, PlanFinished, StartSolve
from qlm_core.planning import Plan, PlanResult, Problem, Termination, greedy
from solver.driver import Driver
from tests.planning.problems import random_problem


class FailingPool:
    """Never answers."""

    def __init__(self, error: Exception):
        self.error = error

    async def solve(
        self,
        problem: Problem,
        *,
        warm: Plan,
        prove: bool,
        duals: Sequence[float],
        on_improvement: Callable[[Plan, float], None],
    ) -> PlanResult:
        """Nothing."""
        raise self.error


@pytest.mark.parametrize("error", [OSError(24, "too many open files"), ValueError("oops")])
async def test_whatever_ends_a_solve_the_manager_hears_of_it(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Driver(Config(), FailingPool(error), clock=time.monotonic)
    posted: list[Event] = []
    monkeypatch.setattr(driver, "post", posted.append)
    problem = random_problem(1)
    await driver._run(StartSolve(7, problem, greedy(problem)))
    [finished] = posted
    assert isinstance(finished, PlanFinished)
    assert finished.solve == 7
    assert finished.result.plan is None
    assert finished.result.termination is Termination.ERROR
    assert str(error) in finished.result.detail
