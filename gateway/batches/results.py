"""What stands on a line: read from an input file, and written into an output or an error file."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.batches.stored import line_id
from gateway.problems import Problem
from qlm_core.batches import Unrun, Usage
from qlm_core.errors import QlmError
from qlm_core.model import BatchId, RequestId

_COUNT_MAX = 2**53
_encode = msgspec.json.Encoder().encode

UNRUN = {
    Unrun.EXPIRED: "This request could not be executed before the completion window expired.",
    Unrun.CANCELLED: "This request was not executed because the batch was cancelled.",
}
# What ends a line to some reader or other. As they are, the first two are only between the parts of an answer, as some engines
# write it; the others may be in a text, and Python's `splitlines` and what is built on it divide it there.
_ENDINGS = (
    (b"\n", b" "),
    (b"\r", b" "),
    ("\u2028".encode(), b"\\u2028"),
    ("\u2029".encode(), b"\\u2029"),
    ("\u0085".encode(), b"\\u0085"),
)
# Of a line whose record is not there although it ended: the store was tampered with.
_LOST = "batch_failed", "The result of this request cannot be read."


class UnreadableLineError(QlmError):
    """A line is not as it was when its file was found to be sound."""


class InputLine(msgspec.Struct, frozen=True):
    """A line of an input file, as far as running it takes."""

    custom_id: str
    body: msgspec.Raw


class _Named(msgspec.Struct):
    """A line of an input file, as far as naming it takes."""

    custom_id: str


class _Usage(msgspec.Struct):
    prompt_tokens: Any = None
    completion_tokens: Any = None
    input_tokens: Any = None
    output_tokens: Any = None
    prompt_tokens_details: Any = None
    completion_tokens_details: Any = None
    input_tokens_details: Any = None
    output_tokens_details: Any = None


class _Answer(msgspec.Struct):
    usage: _Usage | None = None


_decode_line = msgspec.json.Decoder(InputLine).decode
_decode_name = msgspec.json.Decoder(_Named).decode
_decode_answer = msgspec.json.Decoder(_Answer).decode


def read(data: bytes) -> InputLine:
    """A line to be run. Raises UnreadableLineError."""
    try:
        return _decode_line(data)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise UnreadableLineError("a line of an input file cannot be read any more") from None


def name_of(data: bytes) -> str:
    """The custom_id of a line; "" for one that cannot be read any more."""
    try:
        return _decode_name(data).custom_id
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return ""


def answered(batch: BatchId, line: int, custom_id: str, id: RequestId, answer: bytes) -> bytes:
    """The line of an answer, for the output file."""
    response = {"status_code": 200, "request_id": id, "body": msgspec.Raw(answer)}
    return _line(batch, line, custom_id, response, None)


def refused(batch: BatchId, line: int, custom_id: str, id: RequestId, problem: Problem) -> bytes:
    """The line of a request that has no answer, for the error file."""
    body = msgspec.Raw(problem.body())
    response = {"status_code": problem.status, "request_id": id, "body": body}
    return _line(batch, line, custom_id, response, None)


def never_run(batch: BatchId, line: int, custom_id: str, unrun: Unrun | None) -> bytes:
    """The line of a request that was not run to its end, for the error file."""
    code, message = _LOST if unrun is None else (unrun.value, UNRUN[unrun])
    return _line(batch, line, custom_id, None, {"code": code, "message": message})


def usage_of(answer: bytes) -> Usage:
    """The tokens of an answer, as far as it names them."""
    try:
        said = _decode_answer(answer).usage
    except (msgspec.MsgspecError, ValueError, RecursionError):
        said = None
    if said is None:
        return Usage()
    before = said.prompt_tokens_details or said.input_tokens_details
    after = said.completion_tokens_details or said.output_tokens_details
    return Usage(
        input_tokens=_count(said.prompt_tokens) or _count(said.input_tokens),
        cached_tokens=_count(_detail(before, "cached_tokens")),
        output_tokens=_count(said.completion_tokens) or _count(said.output_tokens),
        reasoning_tokens=_count(_detail(after, "reasoning_tokens")),
    )


def _line(
    batch: BatchId,
    line: int,
    custom_id: str,
    response: dict[str, Any] | None,
    error: dict[str, str] | None,
) -> bytes:
    said = {
        "id": line_id(batch, line),
        "custom_id": custom_id,
        "response": response,
        "error": error,
    }
    return _unbroken(_encode(said)) + b"\n"


def _unbroken(data: bytes) -> bytes:
    """JSON that says the same on one line."""
    for ending, instead in _ENDINGS:
        if ending in data:
            data = data.replace(ending, instead)
    return data


def _detail(details: object, name: str) -> object:
    return details.get(name) if isinstance(details, dict) else None


def _count(value: object) -> int:
    """A count of tokens as an engine says it; 0 for what is none."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _COUNT_MAX:
        return value
    return 0
