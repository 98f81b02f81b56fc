"""The answer of a chat as a response object, at each moment of a response's life. Everything here is pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gateway import openai
from gateway.problems import Problem
from gateway.responses.asked import Asked, key_of
from gateway.responses.fields import Json
from gateway.responses.output import Output
from gateway.store import StoredRequest
from qlm_core.ledger import EndRecord
from qlm_core.model import Phase

QUEUED, IN_PROGRESS, COMPLETED = "queued", "in_progress", "completed"
INCOMPLETE, FAILED, CANCELLED = "incomplete", "failed", "cancelled"

# Finish reasons of chats that mean that the output is not whole, and what a response calls them.
_CUT_SHORT = {"length": "max_output_tokens", "content_filter": "content_filter"}


def finish_reason(answer: Json) -> str:
    """Why the answer of a chat ends; "" where it does not say."""
    for choice in answer.get("choices") or ():
        reason = choice.get("finish_reason") if isinstance(choice, dict) else None
        return reason if isinstance(reason, str) else ""
    return ""


def status_of(record: EndRecord, reason: str) -> str:
    """The status of a response that has ended.

    Args:
        reason: the chat's finish reason.
    """
    if record.phase is Phase.CANCELLED:
        return CANCELLED
    if record.phase is not Phase.FINISHED:
        return FAILED
    return INCOMPLETE if reason in _CUT_SHORT else COMPLETED


def unfinished(request: StoredRequest, asked: Asked, status: str) -> Json:
    """A response that has not ended."""
    return _response(request, asked, status=status, output=[])


def ended(
    request: StoredRequest,
    asked: Asked,
    record: EndRecord,
    answer: Json,
    problem: Problem | None,
    output: list[Json] | None = None,
) -> Json:
    """A response that has ended.

    Args:
        answer: the chat's, as far as there is one.
        problem: what its end is over HTTP, where it is none of a finished request.
        output: its items, where somebody has them.
    """
    reason = finish_reason(answer)
    status = status_of(record, reason)
    finished = record.phase is Phase.FINISHED
    if output is None:
        output = items_of(request, record, answer)
    whole = _response(request, asked, status=status, output=output)
    if status == INCOMPLETE:
        whole["incomplete_details"] = {"reason": _CUT_SHORT[reason]}
    if status == FAILED and problem is not None:
        whole["error"] = error_of(problem)
    if status == COMPLETED:
        whole["completed_at"] = request.created + int(record.e2e_s)
    if finished:
        whole["usage"] = usage_of(answer.get("usage"))
    return whole


def items_of(request: StoredRequest, record: EndRecord, answer: Json) -> list[Json]:
    """The output items of an answer."""
    output = Output(key_of(request.id), by_chunk=True)
    for _ in events_of(output, record, answer):
        pass
    return output.items


def events_of(output: Output, record: EndRecord, answer: Json) -> Iterator[Json]:
    """The events of a whole answer, which the output takes."""
    if answer:
        yield from output.feed(openai.as_chunk(answer, chat=True))
    yield from closing_events(output, record, answer)


def closing_events(output: Output, record: EndRecord, answer: Json) -> Iterator[Json]:
    """The events of an output's end."""
    status = status_of(record, finish_reason(answer))
    answered = record.phase is Phase.FINISHED
    yield from output.finish(whole=status == COMPLETED, answered=answered)


def error_of(problem: Problem) -> Json:
    """The error of a response, in the few codes that it may have."""
    code = "server_error"
    if problem.status == 429:
        code = "rate_limit_exceeded"
    elif 400 <= problem.status < 500 and problem.status != 408:
        code = "invalid_prompt"
    return {"code": code, "message": problem.message}


def usage_of(usage: Any) -> Json | None:
    """The usage of a chat in a response's words."""
    if not isinstance(usage, dict):
        return None
    return {
        "input_tokens": _count(usage, "prompt_tokens"),
        "input_tokens_details": {
            "cached_tokens": _count(usage.get("prompt_tokens_details"), "cached_tokens"),
            "cache_write_tokens": 0,
        },
        "output_tokens": _count(usage, "completion_tokens"),
        "output_tokens_details": {
            "reasoning_tokens": _count(usage.get("completion_tokens_details"), "reasoning_tokens")
        },
        "total_tokens": _count(usage, "total_tokens"),
    }


def _response(request: StoredRequest, asked: Asked, *, status: str, output: list[Json]) -> Json:
    head: Json = {
        "id": request.id,
        "object": "response",
        "created_at": request.created,
        "status": status,
        "error": None,
        "incomplete_details": None,
        "completed_at": None,
        "model": request.model,
        "output": output,
        "usage": None,
    }
    tier = {"service_tier": request.service_tier} if request.service_tier else {}
    return asked.told | head | tier


def _count(counts: Any, name: str) -> int:
    value = counts.get(name) if isinstance(counts, dict) else None
    return value if isinstance(value, int) else 0
