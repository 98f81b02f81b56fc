"""The Responses API: what is made, looked at, followed, cancelled and forgotten."""

from __future__ import annotations

from dataclasses import replace

from gateway.openapi.models import LATER, MODEL, RUN_ANSWER, RUN_HEADERS, TIER, TOLD_TIER
from gateway.openapi.operation import (
    EVENTS_TYPE,
    Answer,
    Json,
    Operation,
    lists,
    maybe,
    number,
    page,
    record,
    ref,
    text,
    truth,
    whole,
)

_EVENTS = {EVENTS_TYPE: text("With `stream`: events, each with its `sequence_number`.")}
_RESPONSE = Answer(text="The response.", schema="Response", headers=RUN_ANSWER)
_TOLD = Answer(text="The response.", schema="Response", types=_EVENTS, headers=RUN_ANSWER)

OPERATIONS = (
    Operation(
        path="/v1/responses",
        method="post",
        tag="Responses",
        id="createResponse",
        summary="Answer a conversation",
        text="It becomes a chat, and the chat's answer a response. Fields that are not named here reach the engine "
        "unchanged, unless they are a chat's words for what has another name here.",
        body="ResponseRequest",
        headers=RUN_HEADERS,
        answers={"200": _TOLD, "202": replace(LATER, schema="LaterResponse")},
    ),
    Operation(
        path="/v1/responses/{id}",
        method="get",
        tag="Responses",
        id="getResponse",
        summary="One response, or its events",
        query={
            "stream": truth("Whether its events come; of one in the background alone."),
            "starting_after": whole("Events behind the one with this number.", minimum=0),
        },
        answers={"200": _TOLD},
    ),
    Operation(
        path="/v1/responses/{id}",
        method="delete",
        tag="Responses",
        id="deleteResponse",
        summary="Forget a response, after cancelling it if it runs",
        answers={"200": Answer(text="It is gone.", schema="Deleted")},
    ),
    Operation(
        path="/v1/responses/{id}/cancel",
        method="post",
        tag="Responses",
        id="cancelResponse",
        summary="Cancel a response in the background",
        answers={"200": _RESPONSE},
    ),
    Operation(
        path="/v1/responses/{id}/input_items",
        method="get",
        tag="Responses",
        id="listInputItems",
        summary="The input of one response, item by item",
        query={
            "limit": whole("How many at most.", minimum=1, maximum=100, default=20),
            "order": text("By place.", enum=["asc", "desc"], default="desc"),
            "after": text("The id of the last item of the page before."),
        },
        answers={"200": Answer(text="A page.", schema="InputItemList")},
    ),
)

SCHEMAS: dict[str, Json] = {
    "ResponseRequest": record(
        {"model": MODEL},
        {
            "input": {
                "description": "A text, or a list of items; left out only where `previous_response_id` is given.",
                "type": ["string", "array", "null"],
            },
            "instructions": maybe(text("A system message before all others.")),
            "previous_response_id": maybe(text("The response that it goes on from.")),
            "max_output_tokens": maybe(whole("The most tokens of output.", minimum=1)),
            "background": maybe(truth("Whether it is durable, and its client does not wait.")),
            "store": maybe(truth("Whether it can be had by its id; true unless given.")),
            "stream": maybe(truth("Whether its events come.")),
            "tools": maybe(lists({"type": "object"}, "Functions.")),
            "text": maybe(record({}, {"format": {"type": "object"}})),
            "reasoning": maybe(record({}, {"effort": maybe(text("How much."))})),
            "metadata": maybe({"type": "object", "additionalProperties": {"type": "string"}}),
            "service_tier": TIER,
            "temperature": maybe(number("Of sampling.")),
        },
    ),
    "Response": record(
        {
            "id": text("The request's."),
            "object": {"const": "response"},
            "created_at": whole("Unix seconds."),
            "status": {
                "enum": [
                    "queued",
                    "in_progress",
                    "completed",
                    "incomplete",
                    "failed",
                    "cancelled",
                ]
            },
            "model": text("As it was asked for."),
            "output": lists({"type": "object"}, "Messages, reasoning and calls of functions."),
        },
        {
            "error": maybe(record({"code": text("Of few."), "message": text("What went wrong.")})),
            "incomplete_details": maybe(record({"reason": text("Why it is cut short.")})),
            "completed_at": maybe(whole("Unix seconds.")),
            "usage": maybe(
                record(
                    {
                        "input_tokens": whole("Tokens of the prompt."),
                        "output_tokens": whole("Tokens of the output."),
                        "total_tokens": whole("All tokens."),
                    }
                )
            ),
            "previous_response_id": maybe(text("The response that it goes on from.")),
            "background": truth("As it was asked for."),
            "store": truth("Whether it can be had by its id."),
            "metadata": {"type": "object"},
            "service_tier": TOLD_TIER,
        },
    ),
    "LaterResponse": {
        "description": "A response in the background as it is; any other as a request.",
        "anyOf": [ref("Response"), ref("Request")],
    },
    "InputItem": record({"id": text("The item's."), "type": text("Its kind.")}),
    "InputItemList": page("InputItem"),
}
