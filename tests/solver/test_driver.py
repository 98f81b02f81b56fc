"""A solve that fails is reported as finished, or it would be the last one; and no lease runs out by the solver's own sleep."""

import time
from collections.abc import Callable, Sequence

import pytest

from qlm_core.config import Config
from qlm_core.manager.events import AgentJoined, Event, PlanFinished, StartSolve, Wakeup
from qlm_core.messages import AgentHello
from qlm_core.model import AgentId, InstanceState, ModelName
from qlm_core.planning import Plan, PlanResult, Problem, Termination, greedy
from solver.driver import Driver
from tests.manager.conftest import profile
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


@pytest.mark.parametrize("asleep", [True, False])
async def test_a_solver_that_slept_takes_nobody_for_lost(asleep: bool) -> None:
    now_s = 0.0
    driver = Driver(Config(), FailingPool(OSError()), clock=lambda: now_s)
    state = InstanceState(ready=True, awake_model=ModelName("m"))
    hello = AgentHello(AgentId("a"), "test", (profile("m"),), epoch=0, state=state)
    driver.post(AgentJoined(hello))
    # As long as its lease, in one piece or pulse by pulse.
    pieces = 1 if asleep else 8
    for _ in range(pieces):
        now_s += 8.0 / pieces
        driver.post(Wakeup())
    assert (AgentId("a") in driver.manager.agents) is asleep
    await driver.close()
