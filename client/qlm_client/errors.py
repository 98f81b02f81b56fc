"""The errors of the client, each a line that says what was wrong and what to do."""

from __future__ import annotations


class QlmError(Exception):
    """A call that was refused, or could not be made."""


class NotFound(QlmError):
    """No such request or model."""


class Unavailable(QlmError):
    """No gateway answers, or it cannot answer now."""


class Busy(QlmError):
    """The queue is full; try again after `retry_after_s`, None if that would not help."""

    def __init__(self, message: str, *, retry_after_s: float | None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
