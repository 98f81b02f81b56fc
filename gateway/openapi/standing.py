"""Requests as things that are looked up: lists, one of them, and the queues that they stand in."""

from __future__ import annotations

from gateway.openapi.kept import FORESEEN
from gateway.openapi.operation import (
    Answer,
    Json,
    Operation,
    lists,
    maybe,
    number,
    record,
    ref,
    text,
    truth,
    whole,
)

OPERATIONS = (
    Operation(
        path="/v1/requests",
        method="get",
        tag="Requests",
        id="listRequests",
        summary="List requests, or find one by its idempotency key",
        text="Open ones with the latest submission first, ended ones with the latest end first. Tenants see their own.",
        query={
            "status": text("Which ones.", enum=["open", "ended", "all"], default="open"),
            "limit": whole("How many at most.", minimum=1, maximum=1000, default=100),
            "after": text("`next` of the page before, or the id of a request."),
            "idempotency_key": text("Find the one request under this key instead."),
        },
        answers={
            "200": Answer(
                text="A page of a list; with `idempotency_key` the request.",
                schema="RequestListOrRequest",
            )
        },
    ),
    Operation(
        path="/v1/requests/{id}",
        method="get",
        tag="Requests",
        id="getRequest",
        summary="Where a request stands, and its answer once it has ended",
        answers={"200": Answer(text="The request.", schema="Request")},
    ),
    Operation(
        path="/v1/requests/{id}",
        method="delete",
        tag="Requests",
        id="cancelRequest",
        summary="Cancel a request, in any state",
        answers={"200": Answer(text="How it ended, now or before.", schema="Cancelled")},
    ),
    Operation(
        path="/v1/estimate",
        method="post",
        tag="Queues",
        id="estimate",
        summary="When a request or a batch would be done that is not submitted",
        body="EstimateRequest",
        headers=("SloClass", "SloTtft", "SloTpot", "SloE2e", "RequestId"),
        answers={"200": Answer(text="The estimate.", schema="Forecast")},
    ),
    Operation(
        path="/v1/queue",
        method="get",
        tag="Queues",
        id="getQueues",
        summary="The queues as the solver sees them",
        answers={"200": Answer(text="The view.", schema="View")},
    ),
    Operation(
        path="/v1/queue/{id}",
        method="get",
        tag="Queues",
        id="explainRequest",
        summary="Why a request stands where it stands",
        answers={"200": Answer(text="The explanation, or how it ended.", schema="Explanation")},
    ),
)

_SECONDS = maybe(number("Seconds."))
_ENDED: Json = {
    "reason": text("OpenAI's finish reason, or why it was shed."),
    "error": text("What went wrong, if anything."),
    "usage": {"type": "object", "description": "Tokens."},
    "queue_s": _SECONDS | {"description": "Arrival to the first grant."},
    "ttft_s": _SECONDS | {"description": "Arrival to the first token."},
    "tpot_s": _SECONDS | {"description": "Between two tokens after the first."},
    "pause_s": _SECONDS | {"description": "The longest time between two tokens."},
    "e2e_s": _SECONDS | {"description": "Arrival to the end."},
    "attained": truth("Whether every target was met."),
    "resumed_by": text("From what it went on if it was interrupted."),
    "ended": whole("Unix seconds."),
    "response": {
        "description": "The answer of its endpoint, once it has finished.",
        "type": ["object", "null"],
    },
}
_OPEN: Json = {
    "waited_s": number("Seconds since its arrival."),
    "prompt_tokens": whole("As estimated."),
    "produced_tokens": whole("So far."),
    "agent": maybe(text("Who holds it.")),
}
_SHAPE: Json = {
    "model": text("Which is asked."),
    "lines": whole("Requests of a batch.", minimum=1, default=1),
    "prompt_tokens_mean": number("Tokens of a prompt, on average.", minimum=0),
    "max_output_tokens": maybe(whole("The limit on output of each.", minimum=0)),
}
_COUNTS: Json = {
    "attempts": whole("How often it was given to an engine."),
    "evictions": whole("How often it gave way."),
    "estimate": maybe(ref("Estimate")),
}

SCHEMAS: dict[str, Json] = {
    "Request": record(
        {
            "id": text("The request's."),
            "endpoint": maybe(text("What was asked for, by its path.")),
            "model": text("Of which model."),
            "slo_class": text("The class that was used."),
            "phase": {
                "enum": ["waiting", "pulled", "running", "finished", "cancelled", "shed", "failed"]
            },
        },
        {"created": maybe(whole("Unix seconds."))} | _OPEN | _COUNTS | _ENDED,
    ),
    "RequestListOrRequest": {"anyOf": [ref("RequestList"), ref("Request")]},
    "RequestList": record(
        {
            "object": {"const": "list"},
            "data": lists(ref("Request")),
            "has_more": truth("Whether another page follows."),
            "next": maybe(text("What `after` of the next page is.")),
        },
        {"first_id": maybe(text("On the page.")), "last_id": maybe(text("On the page."))},
    ),
    "Cancelled": record({"phase": text("How it ended.")}),
    "Estimate": record(
        {
            "mean_s": number("Seconds from its arrival to its first token."),
            "p50_s": number("Half of the time it is no more."),
            "p90_s": number("Nine times in ten it is no more."),
            "p99_s": number("99 times in a hundred it is no more."),
        }
    ),
    "EstimateRequest": record(
        {},
        _SHAPE
        | {
            "models": lists(
                record({"model": _SHAPE["model"]}, _SHAPE),
                "Of several models, each with its lines; instead of `model`.",
            ),
            "url": text("Where `body` would be sent; chat completions where it is left out."),
            "body": {
                "type": "object",
                "description": "What would be sent there; instead of a model and sizes.",
            },
            "input_file_id": text(
                "A file of purpose `batch`, with `endpoint` and `completion_window` as for a batch; instead of a model and sizes."
            ),
            "endpoint": text("The path that the lines of the file name."),
            "completion_window": maybe(text("Of a batch, such as `30m`, `8h`, `2d`.")),
            "service_tier": maybe(text("Of a request, where no header names its class.")),
        },
    ),
    "Forecast": record(
        {
            "object": {"const": "estimate"},
            "slo_class": text("The class that was used."),
            "lines": whole("Requests, all models together."),
            "wait_s": record({name: number("Seconds.") for name in ("mean", "p50", "p90", "p99")}),
            "feasible": truth("Whether it would be done in time."),
            "finish_p50_s": maybe(number("Half of the time it is done within so many seconds.")),
            "finish_p90_s": maybe(number("Nine times in ten it is.")),
            "finish_p50_at": maybe(whole("The same in Unix seconds.")),
            "finish_p90_at": maybe(whole("The same in Unix seconds.")),
            "explanation": text("What it waits behind, what limits it, what would help."),
        },
        {"qlm": record({}, FORESEEN)},
    ),
    "View": record(
        {},
        {
            "waiting": whole("Requests in queues."),
            "held": whole("Requests that agents hold."),
            "agents": lists({"type": "object"}, "Each with its queue."),
            "yours": lists({"type": "object"}, "A tenant's own requests, by model and class."),
        },
    ),
    "Explanation": record(
        {},
        {
            "id": text("The request's."),
            "state": text("`waiting`, `held`, `running`, `unplaced`, or how it ended."),
            "because": text("A sentence."),
            "age_s": number("Seconds since its arrival."),
            "waited_s": number("Seconds until it was first taken, or so far."),
            "due_in_s": number("Seconds until its target; negative once it is late."),
            "produced_tokens": whole("So far."),
            "estimate": maybe(ref("Estimate")),
            "agent": maybe(text("Who has it, or in whose queue it stands.")),
            "expected_start_in_s": maybe(number("Seconds.")),
            "phase": text("As of the request."),
        },
    ),
}
