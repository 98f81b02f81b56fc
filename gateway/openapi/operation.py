"""What is said of one method at one path, and of the values that go in and out: the words of which a description is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]

JSON_TYPE = "application/json"
EVENTS_TYPE = "text/event-stream"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One status that an operation answers with.

    Attributes:
        schema: of the body as JSON, by its name; "" for a body of another kind or none.
        types: other media types that the body may have, each with its schema.
        headers: names of common response headers.
    """

    text: str
    schema: str = ""
    types: Mapping[str, Json] = field(default_factory=dict)
    headers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """A method at a path.

    Attributes:
        path: with {names} for what differs.
        tag: what it belongs to.
        body: the schema of the body as JSON, by its name; "" for none, or for a form.
        form: the schema of a body of multipart/form-data, by its name.
        headers: names of common request headers.
        query: parameters behind the path: their names, and what is said of each.
        answers: by status.
        open: whether it needs no key.
    """

    path: str
    method: str
    tag: str
    id: str
    summary: str
    text: str = ""
    body: str = ""
    form: str = ""
    headers: tuple[str, ...] = ()
    query: Mapping[str, Json] = field(default_factory=dict)
    answers: Mapping[str, Answer]
    open: bool = False


def ref(name: str) -> Json:
    """A schema by its name."""
    return {"$ref": f"#/components/schemas/{name}"}


def text(description: str, **more: Any) -> Json:
    """A text."""
    return {"type": "string", "description": description} | more


def number(description: str, **more: Any) -> Json:
    """A number."""
    return {"type": "number", "description": description} | more


def whole(description: str, **more: Any) -> Json:
    """A whole number."""
    return {"type": "integer", "description": description} | more


def truth(description: str) -> Json:
    """True or false."""
    return {"type": "boolean", "description": description}


def maybe(schema: Json) -> Json:
    """That, or null."""
    if "type" in schema:
        return schema | {"type": [schema["type"], "null"]}
    return {"anyOf": [schema, {"type": "null"}]}


def lists(schema: Json, description: str = "") -> Json:
    """A list."""
    return {"type": "array", "items": schema} | (
        {"description": description} if description else {}
    )


def record(required: Mapping[str, Json], optional: Mapping[str, Json] | None = None) -> Json:
    """An object with these fields; others are allowed."""
    made: Json = {"type": "object", "properties": {**required, **(optional or {})}}
    return made | ({"required": list(required)} if required else {})


def page(item: str) -> Json:
    """A page of a list, as OpenAI has it."""
    id = maybe(text("Of the first and the last on the page."))
    return record(
        {"object": {"const": "list"}, "data": lists(ref(item))},
        {"first_id": id, "last_id": id, "has_more": truth("Whether another page follows.")},
    )
