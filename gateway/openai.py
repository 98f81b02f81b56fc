"""OpenAI's shapes as they leave the gateway: chunks and errors (`answer` has whole answers).

Engines send chunk objects of many origins. What leaves the gateway is uniform: one id, one creation time and one
model name per request, over all its attempts. Everything here is pure.
"""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.answer import BadChunkError, Json, closing_extra, usage_of
from qlm_core.errors import InvalidRequest, NotFound, QueueFull, Unavailable, UnknownModel
from qlm_core.ledger import EndRecord
from qlm_core.model import Phase
from qlm_core.outcome import ShedReason

DONE_EVENT = b"data: [DONE]\n\n"

_decode_shallow = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode = msgspec.json.Decoder().decode
encode = msgspec.json.Encoder().encode


def parse(data: bytes) -> Any:
    """JSON of our own making; None for nothing."""
    return _decode(data) if data else None


class Framer:
    """Gives the chunks of one request their common head.

    Args:
        running_usage: the client wants the count of tokens in each chunk, which the engine sent.
    """

    def __init__(
        self,
        *,
        id: str,
        chat: bool,
        created: int,
        model: str,
        service_tier: str,
        running_usage: bool = False,
    ) -> None:
        kind = "chat.completion.chunk" if chat else "text_completion"
        head: Json = {"id": id, "object": kind, "created": created, "model": model}
        if service_tier:
            head["service_tier"] = service_tier
        self._running_usage = running_usage
        self._head = {key: msgspec.Raw(encode(value)) for key, value in head.items()}

    def frame(self, data: bytes) -> bytes:
        """An engine's chunk as the client gets it; b"" if there is nothing in it for the client.

        Raises BadChunkError if it is not a JSON object.
        """
        try:
            chunk = _decode_shallow(data)
        except (ValueError, RecursionError) as error:
            raise BadChunkError(f"an engine sent a chunk that cannot be read ({error})") from None
        if chunk.get("choices", _EMPTY_LIST) == _EMPTY_LIST:
            return b""
        if not self._running_usage:
            chunk.pop("usage", None)
        chunk.update(self._head)
        return encode(chunk)

    def usage(self, record: EndRecord) -> bytes:
        """The chunk that reports token usage, the last of a stream that asked for it."""
        said = {"choices": [], "usage": usage_of(record)} | closing_extra(record)
        return encode(self._head | said)


_EMPTY_LIST = msgspec.Raw(b"[]")


def chunk_of(response: bytes, *, chat: bool) -> bytes:
    """A whole answer as a single chunk, for who follows a request that has ended."""
    answer = _decode(response)
    for choice in answer["choices"] if chat else ():
        message = choice.pop("message")
        for index, call in enumerate(message.get("tool_calls") or ()):
            call["index"] = index
        choice["delta"] = message
    answer["object"] = "chat.completion.chunk" if chat else "text_completion"
    answer.pop("usage", None)
    return encode(answer)


def event(data: bytes) -> bytes:
    """A server-sent event."""
    return b"data: %b\n\n" % data


# --------------------------------------------------------------------------- errors


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """An error as HTTP says it: a status and OpenAI's error object."""

    status: int
    message: str
    type: str
    code: str
    param: str | None = None
    retry_after_s: float | None = None
    dropped: str = ""

    def body(self) -> bytes:
        """OpenAI's error body."""
        error = {
            "message": self.message,
            "type": self.type,
            "param": self.param,
            "code": self.code,
        }
        return encode({"error": error})


_STATUS_OF_CODE = {"body_too_large": 413, "body_too_slow": 408}


def problem_of(error: Exception) -> Problem:
    """What an error of ours is over HTTP."""
    message = str(error)
    match error:
        case UnknownModel():
            return Problem(
                status=404,
                message=message,
                type="invalid_request_error",
                code=error.code,
                param=error.field,
            )
        case InvalidRequest():
            return Problem(
                status=_STATUS_OF_CODE.get(error.code, 400),
                message=message,
                type="invalid_request_error",
                code=error.code,
                param=error.field or None,
            )
        case QueueFull():
            return Problem(
                status=429,
                message=message,
                type="rate_limit_error",
                code="queue_full",
                retry_after_s=error.retry_after_s,
                dropped=ShedReason.SATURATED.value,
            )
        case NotFound():
            return Problem(
                status=404, message=message, type="invalid_request_error", code="not_found"
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
        408,
        "timeout_error",
        "The request waited out its time to live.",
    ),
    ShedReason.NO_INSTANCE.value: (503, "server_error", "No instance serves this model now."),
}


def problem_of_end(record: EndRecord, retry_after_s: float) -> Problem | None:
    """What an unsuccessful end is over HTTP; None for a finished request."""
    if record.phase is Phase.FINISHED:
        return None
    if record.phase is Phase.SHED:
        status, kind, message = _SHED[record.reason]
        return Problem(
            status=status,
            message=message,
            type=kind,
            code=record.reason,
            retry_after_s=retry_after_s if status != 408 else None,
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
