"""The rows of a store as values: written by whichever release, read by this one, or found to be unreadable.

What makes a row unreadable is told by the place, never by the content, for it goes into logs.
"""

from __future__ import annotations

import math
import re
from typing import Any, TypeVar

import msgspec
from msgspec.structs import replace

from gateway.store.base import Ending, StoredEnd, StoredRequest
from qlm_core.endpoint import Endpoint
from qlm_core.errors import QlmError
from qlm_core.ledger import EndRecord
from qlm_core.model import RequestId

COUNT_MAX = 2**31 - 1
_PLACE = re.compile(r" - at `([^`]*)`$")

T = TypeVar("T")


class _Owned(msgspec.Struct):
    owner: str = msgspec.field(default="", name="key_owner")


class _Ending(msgspec.Struct):
    id: RequestId
    ended_at: float
    record: EndRecord


class UnreadableRowError(QlmError):
    """A row that does not say what it should; the message names the place."""


def head_of(request: StoredRequest) -> bytes:
    """What a row keeps of a request apart from its body."""
    return msgspec.msgpack.encode(replace(request, body=b""))


def ended_of(end: StoredEnd) -> bytes:
    """What a row keeps of an end."""
    return msgspec.msgpack.encode(end)


def read_request(id: object, head: object, body: object) -> StoredRequest:
    """The request of a row. Raises UnreadableRowError."""
    if not isinstance(body, bytes):
        raise UnreadableRowError("body: it is not bytes")
    request = _read_head(head)
    if request.id != id:
        raise UnreadableRowError("head.id: it is another request's")
    for name in ("arrived_at", "expires_at"):
        if not math.isfinite(getattr(request, name)):
            raise UnreadableRowError(f"head.{name}: it is no time")
    for name in ("prompt_tokens", "max_output_tokens"):
        if not 0 <= getattr(request, name) <= COUNT_MAX:
            raise UnreadableRowError(f"head.{name}: it is no count of tokens")
    slo = request.slo
    for target_s in (slo.ttft_s, slo.tpot_s, slo.e2e_s):
        if target_s is not None and not (math.isfinite(target_s) and target_s > 0):
            raise UnreadableRowError("head.slo: a target is no time")
    return replace(request, body=body)


def _read_head(head: object) -> StoredRequest:
    """What a row keeps of a request; one from before there were more than two endpoints said whether it was a chat."""
    try:
        return _decoded(head, StoredRequest, "head")
    except UnreadableRowError:
        fields = _decoded(head, dict[str, Any], "head")
        if "endpoint" in fields or not isinstance(fields.get("chat"), bool):
            raise
        endpoint = Endpoint.CHAT_COMPLETIONS if fields["chat"] else Endpoint.COMPLETIONS
        brought_up = msgspec.msgpack.encode(fields | {"endpoint": endpoint})
        return _decoded(brought_up, StoredRequest, "head")


def owner_of(head: object) -> str:
    """Whose request a row is, "" where it does not say."""
    try:
        return _decoded(head, _Owned, "head").owner
    except UnreadableRowError:
        return ""


def read_ending(request: StoredRequest, ended: object) -> Ending:
    """How the request of a row ended, without its answer. Raises UnreadableRowError."""
    ending = _decoded(ended, _Ending, "ended")
    if ending.id != request.id:
        raise UnreadableRowError("ended.id: it is another request's")
    return Ending(request, ending.ended_at, ending.record)


def read_end(request: StoredRequest, ended: object) -> StoredEnd:
    """The end of a request's row. Raises UnreadableRowError."""
    end = _decoded(ended, StoredEnd, "ended")
    if end.id != request.id:
        raise UnreadableRowError("ended.id: it is another request's")
    if end.answer and not _is_answer(end.answer, request.endpoint):
        raise UnreadableRowError("ended.answer: it is no answer of a model's")
    return end


def _is_answer(data: bytes, endpoint: Endpoint) -> bool:
    """Whether this is a response object of that endpoint, as far as it is looked at here."""
    try:
        if not endpoint.generates:
            return bool(msgspec.json.decode(data, type=dict[str, msgspec.Raw]))
        answer = msgspec.json.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return False
    choices = answer.get("choices") if isinstance(answer, dict) else None
    return isinstance(choices, list) and all(isinstance(choice, dict) for choice in choices)


def _decoded(data: object, kind: type[T], column: str) -> T:
    if not isinstance(data, bytes):
        raise UnreadableRowError(f"{column}: it is not bytes")
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.MsgspecError, ValueError, TypeError, OverflowError, RecursionError) as error:
        place = _PLACE.search(str(error))
        where = f"{column}.{place[1].removeprefix('$.')}" if place else column
        raise UnreadableRowError(f"{where}: not as this release writes it") from None
