"""What is counted and logged of solves."""

import logging

import pytest

from qlm_core.planning import PlanResult, StepDown, Termination
from solver.planning import PlanningCounts


def fallen(reason: str) -> PlanResult:
    step = StepDown(backend="gurobi", termination=Termination.UNAVAILABLE, reason=reason)
    return PlanResult(
        backend="highs",
        termination=Termination.OPTIMAL,
        plan=((),),
        objective=1.0,
        lower_bound=None,
        wall_s=0.1,
        step_downs=(step,),
    )


def test_every_step_down_is_counted_and_each_reason_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    counts = PlanningCounts()
    with caplog.at_level(logging.WARNING):
        for reason in ("no licence", "no licence", "too large", "too large", "no licence"):
            counts.note(fallen(reason))
    assert counts.step_downs == {("gurobi", "unavailable"): 5}
    assert counts.solves == {("highs", "optimal"): 5}
    assert [vars(record)["reason"] for record in caplog.records] == [
        "no licence",
        "too large",
        "no licence",
    ]
