"""Whose fault an engine's error is, and so what becomes of the job: pure, from a status and what the engine said.

One rule for HTTP statuses and for errors inside a stream, since servers report the same things in both ways:

* about the request (most of 4xx): the client gets the engine's status and words, and nothing is tried again;
* an endpoint that the server lacks, where not every server has it (404, 405, 501): likewise;
* about room (429, 503, 529): the job waits, at least as long as the server says, and no attempt is counted;
* about our access (401, 402, 403, 404, 407, redirects): the operator is told, and the job is tried elsewhere;
* anything else, and a request id that the server has not let go of yet: the job is tried again.

After the last two kinds the executor decides who is at fault: the job, if the engine serves other jobs well. So it does
where a connection broke or a proxy answered, if the server is found to be there.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp

from agents.engines.lenient_json import Unreadable, read, whole_number
from qlm_core.executor import JobLost, JobRefused, JobTurnedAway
from qlm_core.messages import Payload

Fault = JobLost | JobRefused | JobTurnedAway

_TEXT_CHARS_MAX = 2000
_REST_S_MAX = 86_400.0

_NO_ROOM = (429, 503, 529)
_OUR_ACCESS = (401, 402, 403, 404, 407)
# The same request may well succeed at another moment.
_RETRIED = (408, 409, 421, 425)
# What servers answer who do not serve an endpoint, unless they say that it is the model which they do not know.
_NOT_SERVED = (404, 405, 501)
_NO_SUCH_MODEL = re.compile(r"\bmodel\b.{0,200}\b(does not exist|not found|unknown)", re.I | re.S)
# What servers say who know a request by an id that an earlier attempt still holds.
_ID_IN_USE = re.compile(r"request.{0,3}id\b.{0,80}\b(already|in use|duplicate|exists)", re.I | re.S)
_STATUS_OF_TYPE = (
    ("rate_limit", 429),
    ("ratelimit", 429),
    ("overloaded", 503),
    ("unavailable", 503),
    ("authentication", 401),
    ("permission", 403),
    ("not_found", 404),
    ("notfound", 404),
    ("invalid_request", 400),
    ("badrequest", 400),
    ("bad_request", 400),
    ("validation", 400),
    ("unprocessable", 422),
)


@dataclass(frozen=True, slots=True)
class Said:
    """An error as an engine reports it: an HTTP status (500 where none can be made out), and its words."""

    status: int
    text: str


class EngineError(Exception):
    """An engine reported an error in place of output."""

    def __init__(self, said: Said) -> None:
        super().__init__(said.text)
        self.said = said


def unsaid(error: BaseException) -> str:
    """What went wrong with a call. The words of an HTTP client are left out: they quote what was sent, our key included,
    or what came back, which may be the same."""
    if isinstance(error, aiohttp.ClientError | OSError):
        code = error.errno if isinstance(error, OSError) else None
        said = os.strerror(code) if code else ""
    else:
        said = str(error)
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def fault_of(job: Payload, said: Said, *, rest_s: float = 0.0) -> Fault:
    """What becomes of a job after an error."""
    status = said.status
    words = f"HTTP {status}: {said.text}"
    if status in _NO_ROOM:
        return JobTurnedAway(job.id, job.attempt, words, rest_s)
    lacks = status in _NOT_SERVED and not _NO_SUCH_MODEL.search(said.text)
    if lacks and not job.endpoint.generates:
        text = (
            f"endpoint: the engine of this model does not serve {job.endpoint.path} ({words}). "
            "Use a model that is served for it."
        )
        return JobRefused(job.id, job.attempt, 404, text)
    if is_about_access(status):
        words = f"access denied to the agent, {words}"
    elif 400 <= status < 500 and status not in _RETRIED and not _ID_IN_USE.search(said.text):
        return JobRefused(job.id, job.attempt, status, said.text)
    # A proxy without its server answers for nobody.
    return JobLost(job.id, job.attempt, words, answered=status not in (502, 504))


def is_about_access(status: int) -> bool:
    """Whether a status says that the agent may not in, or asks at the wrong place."""
    return status in _OUR_ACCESS or 300 <= status < 400


def said_in(event: Mapping[str, Any]) -> Said | None:
    """The error that a JSON object reports; None if it reports none."""
    error = event.get("error")
    if error:
        if isinstance(error, Mapping):
            return Said(_status(error, event), _text(error))
        return Said(_status(event), str(error)[:_TEXT_CHARS_MAX])
    if event.get("object") == "error":
        return Said(_status(event), _text(event))
    return None


def said_by(status: int, answer: bytes) -> Said:
    """What the body of an HTTP error says."""
    try:
        body = read(answer)
    except Unreadable:
        body = None
    if isinstance(body, Mapping):
        error = body.get("error")
        text = _text(error) if isinstance(error, Mapping) else str(error or _text(body))
        return Said(status, text[:_TEXT_CHARS_MAX])
    return Said(status, answer.decode("utf-8", "replace")[:_TEXT_CHARS_MAX])


def rest_of(retry_after: str | None, *, now: datetime | None = None) -> float:
    """Seconds that a Retry-After header asks for, whether it names seconds or a date; 0 for none or an odd one."""
    if not retry_after:
        return 0.0
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            then = parsedate_to_datetime(retry_after)
        except ValueError:
            return 0.0
        then = then if then.tzinfo else then.replace(tzinfo=UTC)
        seconds = (then - (now or datetime.now(UTC))).total_seconds()  # noqa: TID251
    return min(max(0.0, seconds), _REST_S_MAX) if math.isfinite(seconds) else 0.0


def _status(*places: Mapping[str, Any]) -> int:
    """The first HTTP status in these objects, or the one that an error's type stands for."""
    for place in places:
        for key in ("code", "status", "status_code", "http_status_code", "http_code"):
            value = whole_number(place.get(key))
            if isinstance(value, int) and not isinstance(value, bool) and 300 <= value < 600:
                return value
    for place in places:
        kind = " ".join(str(place.get(key, "")) for key in ("type", "error_type", "code")).lower()
        for word, status in _STATUS_OF_TYPE:
            if word in kind:
                return status
    return 500


def _text(error: Mapping[str, Any]) -> str:
    for key in ("message", "detail", "msg"):
        value = error.get(key)
        if value:
            return str(value)[:_TEXT_CHARS_MAX]
    return str(error.get("type") or error.get("code") or "an error without a word")[
        :_TEXT_CHARS_MAX
    ]
