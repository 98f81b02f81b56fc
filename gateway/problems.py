"""Errors as HTTP says them: a status, OpenAI's error object, and what the headers add.

One function for what a request is refused with, one for what it ends with. Everything here is pure.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from gateway.keys import Forbidden
from qlm_core.endpoint import Endpoint
from qlm_core.errors import (
    CONTEXT_CODE,
    Conflict,
    FileLost,
    InvalidRequest,
    KeyReused,
    NoRoom,
    NotFound,
    QueueFull,
    SetAside,
    ShedLate,
    TooLate,
    Unavailable,
)
from qlm_core.ledger import EndRecord
from qlm_core.model import Phase
from qlm_core.outcome import ShedReason

_encode = msgspec.json.Encoder().encode


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """An error as HTTP says it: a status and OpenAI's error object.

    Attributes:
        code: "" where OpenAI has none.
        retry_after_s: when to come back, where that helps.
        should_retry: what OpenAI's clients are told to do, where their own rule for the status would be wrong.
        dropped: the reason in the header of the dropped.
        allow: the methods that there are, with a 405.
        errors: all that is wrong with a file, of which the error object tells the first.
    """

    status: int
    message: str
    type: str
    code: str
    param: str | None = None
    retry_after_s: float | None = None
    should_retry: bool | None = None
    dropped: str = ""
    allow: str = ""
    errors: dict[str, Any] | None = None

    def body(self) -> bytes:
        """OpenAI's error body."""
        error = {
            "message": self.message,
            "type": self.type,
            "param": self.param,
            "code": self.code or None,
        }
        more = {"errors": self.errors} if self.errors else {}
        return _encode({"error": error} | more)


UNAUTHORIZED = Problem(
    status=401,
    message="Missing or unknown API key. Send the header Authorization: Bearer <key>.",
    type="authentication_error",
    code="invalid_api_key",
)

_STATUS_OF_CODE = {
    "model_not_found": 404,
    "body_too_large": 413,
    "body_too_slow": 408,
    "unsupported_content_encoding": 415,
    "class_not_allowed": 403,
    "file_quota_exceeded": 403,
    "file_too_large": 413,
}


def problem_of(error: Exception) -> Problem:
    """What an error of ours is over HTTP."""
    message = str(error)
    match error:
        case InvalidRequest():
            return Problem(
                status=_STATUS_OF_CODE.get(error.code, 400),
                message=message,
                type="invalid_request_error",
                code=error.code,
                param=error.field or None,
            )
        case KeyReused():
            # Clients of OpenAI's send a 409 again by themselves, which would not mend it.
            return Problem(
                status=409,
                message=message,
                type="invalid_request_error",
                code="idempotency_key_reused",
                param="idempotency-key",
                should_retry=False,
            )
        case Conflict():
            return Problem(
                status=409,
                message=message,
                type="invalid_request_error",
                code="",
                should_retry=False,
            )
        case QueueFull() | TooLate():
            return Problem(
                status=429,
                message=message,
                type="rate_limit_error",
                code="queue_full" if isinstance(error, QueueFull) else "too_late_for_client",
                retry_after_s=error.retry_after_s,
                dropped=ShedReason.SATURATED.value,
            )
        case Forbidden():
            return Problem(
                status=403, message=message, type="permission_error", code="operators_only"
            )
        case ShedLate():
            return Problem(
                status=429,
                message=message,
                type="rate_limit_error",
                code=ShedReason.LATE.value,
                retry_after_s=error.retry_after_s,
                dropped=ShedReason.LATE.value,
            )
        case NotFound():
            return Problem(
                status=404, message=message, type="invalid_request_error", code="not_found"
            )
        case SetAside():
            # It cannot be read the next time either.
            return Problem(
                status=500,
                message=message,
                type="server_error",
                code="request_set_aside",
                should_retry=False,
            )
        case FileLost():
            return Problem(
                status=500,
                message=message,
                type="server_error",
                code="file_lost",
                should_retry=False,
            )
        case NoRoom():
            return Problem(
                status=507,
                message=message,
                type="server_error",
                code="no_room",
                should_retry=False,
            )
        case Unavailable():
            return Problem(
                status=503,
                message=message,
                type="server_error",
                code="unavailable",
                retry_after_s=1,
            )
        case _:
            return Problem(status=500, message=message, type="server_error", code="internal")


_SHED = {
    ShedReason.SATURATED.value: (429, "rate_limit_error", "The queue is saturated."),
    ShedReason.TTL_EXPIRED.value: (
        429,
        "rate_limit_error",
        "The request waited out its time to live.",
    ),
    ShedReason.NO_ENDPOINTS.value: (
        503,
        "server_error",
        "The request waited out its time to live, and no engine serves its model.",
    ),
}

# Of what an older release stored.
_SHED_OTHERWISE = (503, "server_error", "The request was dropped from the queue.")

# How servers say that a sequence is too long for the model: OpenAI and vLLM (both of its checks), SGLang, llama.cpp,
# TGI. Clients shorten the conversation when they see the code, so it is given only where the words leave no doubt.
_TOO_LONG = re.compile(
    r"context_length_exceeded"
    r"|maximum (context|model|input|sequence) length"
    r"|longer than the (model's|maximum) (context|model) length"
    r"|exceeds? (the |model's |the model's )?(available|maximum|max|allowed)[a-z ]*"
    r"(context|model|sequence)[ _](size|length|len|window)"
    r"|exceeds? (the )?(max_model_len|context (window|length|size))"
    r"|`inputs` (tokens \+ `max_new_tokens` must be|must have less than)",
    re.IGNORECASE,
)


def is_context_overflow(status: int, message: str) -> bool:
    """Whether an engine refused a request because it is too long for the model."""
    return status in (400, 413, 422) and _TOO_LONG.search(message) is not None


def problem_of_end(record: EndRecord, retry_after_s: float, endpoint: Endpoint) -> Problem | None:
    """What an unsuccessful end is over HTTP; None for a finished request.

    Args:
        retry_after_s: when to come back, for ends that clients may try again.
        endpoint: what was asked for; it names the field to blame.
    """
    if record.phase is Phase.FINISHED:
        return None
    if record.reason == ShedReason.LATE.value:
        return problem_of(ShedLate(record.retry_after_s))
    if record.phase is Phase.SHED:
        status, kind, message = _SHED.get(record.reason, _SHED_OTHERWISE)
        # Who waited for as long as they wanted to would wait for nobody by coming back.
        over = record.reason == ShedReason.TTL_EXPIRED.value
        return Problem(
            status=status,
            message=message,
            type=kind,
            code=record.reason,
            retry_after_s=None if over else record.retry_after_s or retry_after_s,
            should_retry=False if over else None,
            dropped=record.reason,
        )
    if record.phase is Phase.CANCELLED:
        return Problem(
            status=499,
            message="The request was cancelled.",
            type="invalid_request_error",
            code="request_cancelled",
            dropped="rejected-context-cancelled",
        )
    if is_context_overflow(record.error_status, record.error):
        return Problem(
            status=400,
            message=record.error,
            type="invalid_request_error",
            code=CONTEXT_CODE,
            param=endpoint.prompt_field,
        )
    if 400 <= record.error_status < 500:
        return Problem(
            status=record.error_status,
            message=record.error,
            type="invalid_request_error",
            code="engine_refused",
        )
    return Problem(
        status=502,
        message=f"The request failed: {record.error}.",
        type="server_error",
        code="failed",
    )
