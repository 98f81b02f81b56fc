"""The life of a request as a table: which step leads from which phase to which.

A pair that is not in the table is illegal and changes nothing; late, repeated and stale messages are
the normal case between processes that can be killed at any time.
"""

from __future__ import annotations

from enum import Enum

from qlm_core.model import Phase


class Step(Enum):
    """What can happen to a request."""

    GRANT = "grant"
    OUTPUT = "output"
    RETURN = "return"
    FINISH = "finish"
    FAIL = "fail"
    CANCEL = "cancel"
    SHED = "shed"
    EXPIRE = "expire"


TRANSITIONS: dict[tuple[Phase, Step], Phase] = {
    (Phase.WAITING, Step.GRANT): Phase.PULLED,
    (Phase.WAITING, Step.FAIL): Phase.FAILED,
    (Phase.WAITING, Step.CANCEL): Phase.CANCELLED,
    (Phase.WAITING, Step.SHED): Phase.SHED,
    (Phase.WAITING, Step.EXPIRE): Phase.SHED,
    (Phase.PULLED, Step.OUTPUT): Phase.RUNNING,
    (Phase.PULLED, Step.RETURN): Phase.WAITING,
    (Phase.PULLED, Step.FINISH): Phase.FINISHED,
    (Phase.PULLED, Step.FAIL): Phase.FAILED,
    (Phase.PULLED, Step.CANCEL): Phase.CANCELLED,
    (Phase.PULLED, Step.EXPIRE): Phase.SHED,
    (Phase.RUNNING, Step.RETURN): Phase.WAITING,
    (Phase.RUNNING, Step.FINISH): Phase.FINISHED,
    (Phase.RUNNING, Step.FAIL): Phase.FAILED,
    (Phase.RUNNING, Step.CANCEL): Phase.CANCELLED,
    (Phase.RUNNING, Step.EXPIRE): Phase.SHED,
}
