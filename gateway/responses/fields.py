"""Fields of a request to /v1/responses by their kind, and how those are refused that are of another kind or not served."""

from __future__ import annotations

from typing import Any

from qlm_core.errors import InvalidRequest

Json = dict[str, Any]


def wrong(field: str, problem: str, remedy: str = "Correct it.") -> InvalidRequest:
    """The refusal of a value of the wrong kind."""
    return InvalidRequest(field, problem, remedy, code="invalid_type")


def missing(field: str) -> InvalidRequest:
    """The refusal of an object that lacks a field."""
    return InvalidRequest(field, "missing", "Give it.", code="missing_field")


def unsupported(field: str, found: object, remedy: str) -> InvalidRequest:
    """The refusal of what is OpenAI's and has no counterpart here."""
    return InvalidRequest(
        field, f"{found!r:.64} is not served here", remedy, code="unsupported_value"
    )


def object_of(fields: Json, name: str) -> Json:
    """An object, empty where it is left out. Raises InvalidRequest."""
    value = fields.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise wrong(name, "must be an object", "Leave it out or correct it.")
    return value


def list_of(fields: Json, name: str) -> list[Any]:
    """A list, empty where it is left out. Raises InvalidRequest."""
    value = fields.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise wrong(name, "must be a list", "Leave it out or correct it.")
    return value


def text_of(fields: Json, name: str) -> str:
    """A text, "" where it is left out. Raises InvalidRequest."""
    value = fields.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise wrong(name, "must be text", "Leave it out or correct it.")
    return value


def required_text(field: str, fields: Json, name: str) -> str:
    """A text that must be there. Raises InvalidRequest.

    Args:
        field: where the object stands that it is in.
    """
    value = fields.get(name)
    if value is None:
        raise missing(f"{field}.{name}")
    if not isinstance(value, str):
        raise wrong(f"{field}.{name}", "must be text")
    return value
