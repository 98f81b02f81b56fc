"""The description of the HTTP interface, put together from what is said of each operation. Everything here is pure."""

from __future__ import annotations

import re
from typing import Any

from gateway.openapi import kept, models, responses, service, standing, told
from gateway.openapi.operation import JSON_TYPE, Answer, Json, Operation, ref

_PARTS = (models, responses, standing, kept, service, told)
OPERATIONS: tuple[Operation, ...] = tuple(
    operation for part in _PARTS for operation in part.OPERATIONS
)
_SCHEMAS = {name: schema for part in _PARTS for name, schema in part.SCHEMAS.items()}

_TAGS = {
    "Text": "Text that a model generates.",
    "Responses": "Answers as items, kept for the next turn.",
    "Measures": "Texts that a model measures.",
    "Models": "What there is to ask.",
    "Files": "What batches read and write.",
    "Batches": "Many requests at once, done in time.",
    "Requests": "What was asked for, and what became of it.",
    "Queues": "What waits, and why.",
    "Service": "The gateway itself.",
    "Page": "The live page, and what it is fed.",
    told.TAG: "Who is told that something is over, as `gateway.webhooks` says.",
}
_REQUEST_HEADERS = {
    "SloClass": ("x-qlm-slo-class", "string", "The SLO class, or a tier of it."),
    "SloTtft": ("x-llm-d-slo-ttft-ms", "number", "Target for the first token, ms from arrival."),
    "SloTpot": ("x-llm-d-slo-tpot-ms", "number", "Target for each token after it, ms."),
    "SloE2e": ("x-qlm-slo-e2e-ms", "number", "Target for the end, ms from arrival."),
    "TimeToLive": ("x-llm-d-inference-ttl", "string", "Give up after so long, such as 1m30s."),
    "Tenant": ("x-qlm-tenant", "string", "Who asks."),
    "Session": ("x-claude-code-session-id", "string", "Who asks, where nothing else says it."),
    "Durable": ("x-qlm-durable", "boolean", "Store the request before it runs."),
    "IdempotencyKey": ("idempotency-key", "string", "The same key names the same submission."),
    "Async": ("x-qlm-async", "boolean", "Answer 202 at once; the answer is fetched later."),
    "Prefer": ("prefer", "string", "`respond-async`: likewise."),
    "RequestId": ("x-request-id", "string", "Echoed."),
}
_RESPONSE_HEADERS = {
    "RequestId": ("x-request-id", "string", "The client's id, or ours."),
    "OwnId": ("x-qlm-request-id", "string", "Ours."),
    "QueueDuration": ("x-llm-d-flow-queue-duration-ms", "integer", "Time in the queue."),
    "EstimatedWait": ("x-qlm-estimated-wait-ms", "string", "As estimated at the arrival."),
    "Clamped": ("x-qlm-clamped", "string", "Targets that were brought within their range."),
    "Location": ("location", "string", "Where the request is found."),
    "RetryAfter": ("retry-after", "integer", "Come back after so many seconds, 120 at most."),
    "RetryAfterMs": ("retry-after-ms", "integer", "The same in milliseconds."),
    "ShouldRetry": ("x-should-retry", "boolean", "Whether OpenAI's libraries come back."),
    "DroppedReason": ("x-llm-d-request-dropped-reason", "string", "Why it was dropped."),
    "PreferenceApplied": ("preference-applied", "string", "`respond-async`."),
}
_ERROR_HEADERS = ("RequestId", "RetryAfter", "RetryAfterMs", "ShouldRetry", "DroppedReason")
_NAMED = re.compile(r"\{(\w+)\}")


def document(version: str) -> Json:
    """The whole, as JSON. OpenAPI 3.1.0.

    Args:
        version: of the package.
    """
    paths: dict[str, Json] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "QLM",
            "version": version,
            "description": "A queue manager for LLM serving, in OpenAI's terms. HEAD works where GET does.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{}, {"key": []}],
        "tags": [{"name": name, "description": text} for name, text in _TAGS.items()],
        "paths": paths,
        "webhooks": told.webhooks(),
        "components": {
            "schemas": _SCHEMAS,
            "parameters": {name: _parameter(*said) for name, said in _REQUEST_HEADERS.items()},
            "headers": {name: _header(*said) for name, said in _RESPONSE_HEADERS.items()},
            "responses": {
                "Refused": _answer(
                    Answer(
                        text="What was wrong, in OpenAI's form.",
                        schema="Error",
                        headers=_ERROR_HEADERS,
                    )
                )
            },
            "securitySchemes": {
                "key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "Where `gateway.api_keys` names keys.",
                }
            },
        },
    }


def _operation(operation: Operation) -> Json:
    made: Json = {
        "tags": [operation.tag],
        "operationId": operation.id,
        "summary": operation.summary,
    }
    if operation.text:
        made["description"] = operation.text
    parameters: list[Json] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in _NAMED.findall(operation.path)
    ]
    parameters += [_query(name, schema) for name, schema in operation.query.items()]
    parameters += [{"$ref": f"#/components/parameters/{name}"} for name in operation.headers]
    if parameters:
        made["parameters"] = parameters
    if operation.body or operation.form:
        kind = JSON_TYPE if operation.body else "multipart/form-data"
        schema = ref(operation.body or operation.form)
        made["requestBody"] = {"required": True, "content": {kind: {"schema": schema}}}
    refused = {"$ref": "#/components/responses/Refused"}
    made["responses"] = {
        **{status: _answer(answer) for status, answer in operation.answers.items()},
        "4XX": refused,
        "5XX": refused,
    }
    if operation.open:
        made["security"] = []
    return made


def _answer(answer: Answer) -> Json:
    content = {kind: {"schema": schema} for kind, schema in answer.types.items()}
    if answer.schema:
        content = {JSON_TYPE: {"schema": ref(answer.schema)}} | content
    made: Json = {"description": answer.text}
    if content:
        made["content"] = content
    if answer.headers:
        names = {_RESPONSE_HEADERS[name][0]: name for name in answer.headers}
        made["headers"] = {
            header: {"$ref": f"#/components/headers/{name}"} for header, name in names.items()
        }
    return made


def _query(name: str, schema: Json) -> Json:
    said: dict[str, Any] = dict(schema)
    return {"name": name, "in": "query", "description": said.pop("description"), "schema": said}


def _parameter(name: str, kind: str, description: str) -> Json:
    return {"name": name, "in": "header", "description": description, "schema": {"type": kind}}


def _header(_: str, kind: str, description: str) -> Json:
    return {"description": description, "schema": {"type": kind}}
