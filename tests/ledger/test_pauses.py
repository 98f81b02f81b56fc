"""The longest time between two tokens of an output, as the ledger tells it."""

from __future__ import annotations

from qlm_core import ledger as lg
from qlm_core.messages import AttemptEnded
from qlm_core.resume import Resume
from tests.ledger.test_ledger import A, Clocked, R, record, returned


def test_a_pause_of_output_that_is_void_is_none() -> None:
    drive = Clocked()
    drive.submit(resume=Resume.NEVER)
    drive(lg.PullAsked(A, (R,)))
    for attempt, at_s in ((1, 1.0), (1, 50.0), (2, 60.0), (2, 62.0)):
        if attempt == 2 and at_s == 60.0:
            drive(returned(1))
            drive(lg.PullAsked(A, (R,)))
        drive.now_s = at_s
        drive.chunk(attempt)
    end = record(drive(lg.AttemptFinished(A, AttemptEnded(R, 2, "stop", 9, 2)), at=63.0))
    assert (end.pause_s, end.ttft_s) == (2.0, 60.0)
