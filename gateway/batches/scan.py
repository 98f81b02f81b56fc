"""Reads an input file once, line by line, and tells what is on its lines or what is wrong with them.

Run as a process of its own (`python -m gateway.batches.scan`), since decoding 200 MB of JSON would keep everything else in the
gateway waiting. It holds one line at a time, and of each `custom_id` a digest. Most lines are sound, and a batch begins once all
are known to be; so that is found out with few steps, and only what is not takes the way on which each fault has its words.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import Annotated, Any, BinaryIO, Literal

import msgspec

from gateway.batches.endpoints import ENDPOINTS, BatchEndpoint, Body
from gateway.batches.index import COUNT_MAX, AskedModel, Fault, Index, Scan

NAME_BYTES_MAX = 256
# How much of a client's words is repeated in a fault.
_SHOWN = 64
_TOLD_MODELS_MAX = 8
_DIGEST_BYTES = 16
_NICE = 5


class _Line(msgspec.Struct):
    """A line as a file has it; keys that are not known are overlooked."""

    custom_id: Any = None
    method: Any = None
    url: Any = None
    body: Any = None


class _WellFormed(msgspec.Struct):
    """A line that has all it needs, each of the right type: what nearly every line is."""

    custom_id: Annotated[str, msgspec.Meta(min_length=1)]
    method: Literal["POST"]
    url: str
    body: dict[str, Any]


_decode = msgspec.json.Decoder(_Line).decode
_decode_well_formed = msgspec.json.Decoder(_WellFormed).decode


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How many lines a file may have and inputs to embed in all, how long a line may be, and how many faults are told."""

    lines_max: int
    inputs_max: int
    line_bytes_max: int
    faults_max: int


def scan(file: BinaryIO, endpoint: BatchEndpoint, limits: Limits) -> Scan:
    """Read a file from its beginning. Raises OSError."""
    return _Scanner(endpoint, limits).read(file)


class _Scanner:
    def __init__(self, endpoint: BatchEndpoint, limits: Limits) -> None:
        self._endpoint = endpoint
        self._limits = limits
        self._first_fields = tuple(names[0] for names in endpoint.required)
        self._faults: list[Fault] = []
        self._index = Index()
        self._inputs = 0
        self._models: dict[str, int] = {}
        self._at: list[list[int]] = []
        self._known: dict[bytes | str, None] = {}

    def read(self, file: BinaryIO) -> Scan:
        offset, number = 0, 0
        while len(self._faults) < self._limits.faults_max:
            line = file.readline(self._limits.line_bytes_max + 1)
            if not line:
                break
            number += 1
            size = len(line)
            if size > self._limits.line_bytes_max:
                size += _skip(file, line)
                self._fault("invalid_request", self._too_long(), None, number)
            elif not line.isspace():
                if len(self._index) == self._limits.lines_max:
                    self._fault("too_many_tasks", self._too_many(), "input_file_id", None)
                    break
                self._line(line, offset, number)
                if self._inputs > self._limits.inputs_max:
                    self._fault("too_many_tasks", self._too_many_inputs(), "input_file_id", None)
                    break
            offset += size
        if not (self._faults or len(self._index)):
            self._fault("empty_file", _EMPTY, "input_file_id", None)
        if self._faults:
            return Scan(faults=tuple(self._faults[: self._limits.faults_max]))
        models = tuple(
            AskedModel(name=name, at=tuple(self._at[place])) for name, place in self._models.items()
        )
        return Scan(models=models, index=self._index.pack())

    def _line(self, data: bytes, offset: int, number: int) -> None:
        body = self._sound_body(data) or self._examined_body(data, number)
        if body is None:
            return
        self._inputs += self._endpoint.inputs(body)
        limit = self._endpoint.output_limit(body) or 0
        self._index.add(
            offset=offset,
            size=len(data),
            model=self._model(body["model"], number),
            prompt_tokens=min(self._endpoint.prompt_tokens(body), COUNT_MAX),
            output_limit=min(max(0, limit), COUNT_MAX),
        )

    def _sound_body(self, data: bytes) -> Body | None:
        """The body of a line with which nothing is wrong; None where that is not plain at a glance."""
        try:
            line = _decode_well_formed(data)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return None
        body, name = line.body, _key(line.custom_id)
        # A model that was seen already was found to have a name.
        if (
            line.url != self._endpoint.path
            or name in self._known
            or body.get("stream")
            or not isinstance(model := body.get("model"), str)
            or model not in self._models
            or None in map(body.get, self._first_fields)
        ):
            return None
        self._known[name] = None
        return body

    def _examined_body(self, data: bytes, number: int) -> Body | None:
        """The body of a line, after its faults were told; None if it has any."""
        try:
            line = _decode(data)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            self._fault("invalid_json_line", _NO_JSON, None, number)
            return None
        faults = len(self._faults)
        for code, message, param in self._wrong(line):
            self._fault(code, message, param, number)
        return line.body if len(self._faults) == faults else None

    def _wrong(self, line: _Line) -> Iterator[tuple[str, str, str | None]]:
        """Code, message and field of all that is wrong with a line."""
        if None in (line.custom_id, line.method, line.url, line.body):
            for name in ("custom_id", "method", "url", "body"):
                if getattr(line, name) is None:
                    message = f"Missing required parameter: '{name}'."
                    yield "missing_required_parameter", message, name
        if line.custom_id is not None:
            yield from self._wrong_id(line.custom_id)
        if line.method not in (None, "POST"):
            shown = str(line.method)[:_SHOWN]
            message = f"Invalid value: '{shown}'. Supported values are: 'POST'."
            yield "invalid_value", message, "method"
        elsewhere = line.url is not None and line.url != self._endpoint.path
        if elsewhere:
            yield "invalid_url", _OTHER_URL, "url"
        if line.body is not None:
            yield from self._wrong_body(line.body, elsewhere=elsewhere)

    def _wrong_id(self, id: object) -> Iterator[tuple[str, str, str | None]]:
        if not isinstance(id, str) or not id:
            yield "invalid_type", "Invalid type for 'custom_id': expected text.", "custom_id"
            return
        name = _key(id)
        if name in self._known:
            message = (
                f"The custom_id '{id[:_SHOWN]}' is a duplicate of another request. "
                "Please make sure every custom_id is unique in the file."
            )
            yield "duplicate_custom_id", message, "custom_id"
        self._known[name] = None

    def _wrong_body(
        self, body: object, *, elsewhere: bool
    ) -> Iterator[tuple[str, str, str | None]]:
        """Of a body; of one for another endpoint alone what is wrong with it at any."""
        if not isinstance(body, dict):
            yield "invalid_type", "Invalid type for 'body': expected an object.", "body"
            return
        if body.get("stream"):
            message = f"{self._endpoint.title}: Streaming is not supported in the Batch API."
            yield "streaming_unsupported", message, "body.stream"
        model = body.get("model")
        if not isinstance(model, str) or not model:
            yield "invalid_request", "Model parameter is required.", "body.model"
        elif len(model.encode("utf-8", "surrogatepass")) > NAME_BYTES_MAX:
            yield "model_not_found", unknown_model(model), "body.model"
        for names in () if elsewhere else self._endpoint.required:
            if all(body.get(name) is None for name in names):
                message = f"{names[0].capitalize()} parameter is required."
                yield "invalid_request", message, f"body.{names[0]}"

    def _model(self, name: str, number: int) -> int:
        place = self._models.setdefault(name, len(self._models))
        if place == len(self._at):
            self._at.append([])
        if len(self._at[place]) < self._limits.faults_max:
            self._at[place].append(number)
        return place

    def _fault(self, code: str, message: str, param: str | None, line: int | None) -> None:
        self._faults.append(Fault(code=code, message=message, param=param, line=line))

    def _too_long(self) -> str:
        return f"This line has more than {self._limits.line_bytes_max} bytes."

    def _too_many(self) -> str:
        most = self._limits.lines_max
        return f"The input file has more than {most} requests. Please divide it into several."

    def _too_many_inputs(self) -> str:
        return (
            f"The lines of the input file have more than {self._limits.inputs_max} inputs to embed together "
            "(gateway.batches.embedding_inputs_max). Please divide it into several files."
        )


def _key(id: str) -> bytes | str:
    """What is kept of a custom_id: itself, or a digest of one that is longer than that."""
    if len(id) <= _DIGEST_BYTES:
        return id
    return blake2b(id.encode("utf-8", "surrogatepass"), digest_size=_DIGEST_BYTES).digest()


def unknown_model(name: str, served: Sequence[str] = ()) -> str:
    """What is said of a model that is not served, with some that are."""
    said = f"The provided model '{name[:_SHOWN]}' is not supported by the Batch API."
    some = ", ".join(other[:_SHOWN] for other in served[:_TOLD_MODELS_MAX])
    return f"{said} Use one of: {some}." if some else said


def _skip(file: BinaryIO, begun: bytes) -> int:
    """Read a line to its end; returns the size of what was left of it."""
    size, part = 0, begun
    while part and not part.endswith(b"\n"):
        part = file.readline(1 << 20)
        size += len(part)
    return size


_EMPTY = "The input file is empty. Please ensure that your batch contains at least one request."
_NO_JSON = "This line is not parseable as valid JSON."
_OTHER_URL = "The URL provided for this request does not match the batch endpoint."


def main(arguments: list[str]) -> int:
    """Scan the file of the first argument for the endpoint of the second, within the limits of the third, as JSON."""
    path, endpoint, limits = arguments
    with contextlib.suppress(OSError):
        os.nice(_NICE)
    with open(path, "rb", buffering=1 << 20) as file:
        found = scan(file, ENDPOINTS[endpoint], msgspec.json.decode(limits, type=Limits))
    sys.stdout.buffer.write(msgspec.msgpack.encode(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
