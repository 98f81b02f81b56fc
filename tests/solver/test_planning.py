"""What is counted and logged of solves."""

import logging
import subprocess
import sys

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


def test_what_a_library_prints_does_not_come_between_reports() -> None:
    program = (
        "import os; from solver.backends.worker import _own_output; reports = _own_output()\n"
        "os.write(1, b'Restricted license - for non-production use only'); print('banner', flush=True)\n"
        "reports.write(b'report'); reports.flush()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"report", b"")
