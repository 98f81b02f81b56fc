"""What webhooks are told, as the description has it: requests that others answer."""

from __future__ import annotations

from gateway.openapi.operation import JSON_TYPE, Json, Operation, record, ref, text, whole
from qlm_core.webhooks import EVENT_TYPES

TAG = "Webhooks"
_HEADERS = {
    "webhook-id": "The event's id, the same however often it is told.",
    "webhook-timestamp": "When it is told, Unix seconds.",
    "webhook-signature": "`v1,` and the base64 of an HMAC-SHA256 over id, timestamp and body.",
}

OPERATIONS: tuple[Operation, ...] = ()
SCHEMAS: dict[str, Json] = {
    "Event": record(
        {
            "id": text("Of the event."),
            "object": {"const": "event"},
            "created_at": whole("When it happened, Unix seconds."),
            "type": {"enum": list(EVENT_TYPES)},
            "data": record({"id": text("Of the batch or the response.")}),
        }
    )
}


def webhooks() -> Json:
    """What is told, by its type."""
    return {type: {"post": _told(type)} for type in EVENT_TYPES}


def _told(type: str) -> Json:
    kind, _, end = type.partition(".")
    return {
        "tags": [TAG],
        "operationId": f"told_{kind}_{end}",
        "summary": f"A {kind} is {end}.",
        "parameters": [
            {
                "name": name,
                "in": "header",
                "required": True,
                "description": description,
                "schema": {"type": "string"},
            }
            for name, description in _HEADERS.items()
        ],
        "requestBody": {"required": True, "content": {JSON_TYPE: {"schema": ref("Event")}}},
        "responses": {"2XX": {"description": "Taken. Anything else is told again, for 72 hours."}},
    }
