"""What a client asks for when it creates a batch, checked: fields, window, metadata, and the class that its lines get.

What is wrong is told in OpenAI's words and codes. Everything here is pure.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from gateway import body as bd
from gateway.batches.endpoints import ENDPOINTS
from gateway.keys import Caller
from qlm_core.config import Config
from qlm_core.config_batches import BatchesConfig
from qlm_core.errors import InvalidRequest

Json = dict[str, Any]

METADATA_MAX, KEY_CHARS_MAX, VALUE_CHARS_MAX = 16, 64, 512
EXPIRES_S_MIN, EXPIRES_S_MAX = 3_600, 2_592_000
_SHOWN = 64
_WINDOW = re.compile(r"([1-9][0-9]{0,8})([mhd])")
_UNIT_S = {"m": 60.0, "h": 3_600.0, "d": 86_400.0}


class InvalidBatch(InvalidRequest):
    """A batch that cannot be created, in OpenAI's words."""

    def __init__(self, param: str, message: str, code: str) -> None:
        super().__init__(param, message, "", code=code)
        self.args = (message,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A batch that may be created.

    Attributes:
        window_s: what the completion window means.
        output_expires_s: after which its files expire; None: as files of their purpose do.
        fingerprint: a digest of all of it.
    """

    input_file_id: str
    endpoint: str
    completion_window: str
    window_s: float
    metadata: dict[str, str] | None
    output_expires_s: int | None
    fingerprint: str


def read(body: bytes, limits: BatchesConfig) -> Asked:
    """What a body asks for. Raises InvalidRequest."""
    fields = bd.parse(body)
    for name in ("input_file_id", "endpoint", "completion_window"):
        value = fields.get(name)
        if value is None:
            message = f"Missing required parameter: '{name}'."
            raise InvalidBatch(name, message, "missing_required_parameter")
        if not isinstance(value, str):
            raise _wrong_type(name, "a string", value)
    endpoint, window = fields["endpoint"], fields["completion_window"]
    if endpoint not in ENDPOINTS:
        *others, last = (f"'{path}'" for path in ENDPOINTS)
        raise _unsupported("endpoint", endpoint, f"{', '.join(others)} and {last}")
    asked: Json = {
        "input_file_id": fields["input_file_id"],
        "endpoint": endpoint,
        "completion_window": window,
        "metadata": _metadata(fields.get("metadata")),
        "output_expires_s": _expires_s(fields.get("output_expires_after")),
    }
    digest = hashlib.sha256(msgspec.json.encode(asked, order="sorted")).hexdigest()
    return Asked(**asked, window_s=_window_s(window, limits), fingerprint=digest)


def lax_class(config: Config, caller: Caller) -> str:
    """The class of the lines of a caller's batches: the configured one, else the laxest, of those that the caller may use."""
    classes = config.slo_classes
    mine = [name for name in classes if not caller.classes or name in caller.classes]
    configured = config.gateway.batches.slo_class
    if configured and (configured in mine or not mine):
        return configured
    return max(mine or classes, key=lambda name: classes[name].ttft_s)


def _window_s(window: str, limits: BatchesConfig) -> float:
    found = _WINDOW.fullmatch(window)
    window_s = float(found[1]) * _UNIT_S[found[2]] if found else 0.0
    if not limits.window_s_min <= window_s <= limits.window_s_max:
        least, most = _duration(limits.window_s_min), _duration(limits.window_s_max)
        known = f"a number of minutes, hours or days such as '24h', from {least} to {most}"
        raise _unsupported("completion_window", window, known)
    return window_s


def _duration(seconds: float) -> str:
    """In the largest unit of which it is a whole number, or else in minutes."""
    for unit in ("d", "h"):
        if seconds >= _UNIT_S[unit] and not seconds % _UNIT_S[unit]:
            return f"'{seconds / _UNIT_S[unit]:g}{unit}'"
    return f"'{seconds / 60:g}m'"


def _metadata(value: object) -> dict[str, str] | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise _wrong_type("metadata", "an object", value)
    if len(value) > METADATA_MAX:
        message = (
            f"Invalid 'metadata': too many properties. Expected an object with at most {METADATA_MAX} "
            f"properties, but got an object with {len(value)} properties instead."
        )
        raise InvalidBatch("metadata", message, "object_above_max_properties")
    for key, text in value.items():
        param = f"metadata.{key[:_SHOWN]}"
        if not isinstance(text, str):
            raise _wrong_type(param, "a string", text)
        for what, size, most in (
            ("property name", len(key), KEY_CHARS_MAX),
            ("value", len(text), VALUE_CHARS_MAX),
        ):
            if size > most:
                message = (
                    f"Invalid {what} of '{param}': string too long. Expected a string with maximum "
                    f"length {most}, but got a string with length {size} instead."
                )
                raise InvalidBatch(param, message, "string_above_max_length")
    return value


def _expires_s(value: object) -> int | None:
    name = "output_expires_after"
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise _wrong_type(name, "an object", value)
    if value.get("anchor") != "created_at":
        raise _unsupported(f"{name}.anchor", str(value.get("anchor")), "'created_at'")
    seconds = value.get("seconds")
    if not isinstance(seconds, int) or isinstance(seconds, bool):
        raise _wrong_type(f"{name}.seconds", "an integer", seconds)
    if not EXPIRES_S_MIN <= seconds <= EXPIRES_S_MAX:
        known = f"whole seconds from {EXPIRES_S_MIN} to {EXPIRES_S_MAX}"
        raise _unsupported(f"{name}.seconds", str(seconds), known)
    return seconds


def _wrong_type(param: str, expected: str, value: object) -> InvalidBatch:
    kinds = {
        bool: "a boolean",
        int: "an integer",
        float: "a decimal",
        str: "a string",
        list: "an array",
        dict: "an object",
        type(None): "null",
    }
    message = (
        f"Invalid type for '{param}': expected {expected}, but got {kinds[type(value)]} instead."
    )
    return InvalidBatch(param, message, "invalid_type")


def _unsupported(param: str, value: str, known: str) -> InvalidBatch:
    message = f"Invalid value: '{value[:_SHOWN]}'. Supported values are: {known}."
    return InvalidBatch(param, message, "invalid_value")
