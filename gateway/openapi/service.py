"""The gateway itself: whether it is well and ready, its metrics, and its description."""

from __future__ import annotations

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

_HEALTH = {
    "200": Answer(text="It serves.", schema="Health"),
    "503": Answer(text="It drains.", schema="Health"),
}

OPERATIONS = (
    Operation(
        path="/health",
        method="get",
        tag="Service",
        id="getHealth",
        summary="Whether the gateway serves",
        answers=_HEALTH,
        open=True,
    ),
    Operation(
        path="/healthz",
        method="get",
        tag="Service",
        id="getHealthAlias",
        summary="As /health",
        answers=_HEALTH,
        open=True,
    ),
    Operation(
        path="/readyz",
        method="get",
        tag="Service",
        id="getReadiness",
        summary="Whether a request could be served now",
        answers={
            "200": Answer(text="It could.", schema="Readiness"),
            "503": Answer(text="It could not, for the reason given.", schema="Readiness"),
        },
        open=True,
    ),
    Operation(
        path="/metrics",
        method="get",
        tag="Service",
        id="getMetrics",
        summary="Metrics for Prometheus",
        text="On loopback it needs no key, beyond it an operator's.",
        answers={
            "200": Answer(text="The metrics.", types={"text/plain": {"type": "string"}}),
        },
    ),
    Operation(
        path="/openapi.json",
        method="get",
        tag="Service",
        id="getDescription",
        summary="This description",
        answers={"200": Answer(text="OpenAPI 3.1.", schema="Description")},
        open=True,
    ),
    Operation(
        path="/docs",
        method="get",
        tag="Service",
        id="getPage",
        summary="This description as a page",
        answers={"200": Answer(text="The page.", types={"text/html": {"type": "string"}})},
        open=True,
    ),
    Operation(
        path="/ui",
        method="get",
        tag="Page",
        id="getUi",
        summary="The live page",
        answers={"200": Answer(text="The page.", types={"text/html": {"type": "string"}})},
        open=True,
    ),
    Operation(
        path="/ui/page.css",
        method="get",
        tag="Page",
        id="getUiStyle",
        summary="How the page looks",
        answers={"200": Answer(text="Its style.", types={"text/css": {"type": "string"}})},
        open=True,
    ),
    Operation(
        path="/ui/page.js",
        method="get",
        tag="Page",
        id="getUiProgram",
        summary="What the page runs",
        answers={"200": Answer(text="Its program.", types={"text/javascript": {"type": "string"}})},
        open=True,
    ),
    Operation(
        path="/ui/feed",
        method="get",
        tag="Page",
        id="getUiFeed",
        summary="What the page shows, as server-sent events",
        text="A `whole`, then a `change` at every gateway.ui.refresh_s. Its form may change from one version to the next.",
        answers={
            "200": Answer(text="Events.", types={"text/event-stream": {"type": "string"}}),
        },
    ),
    Operation(
        path="/ui/requests/{id}",
        method="get",
        tag="Page",
        id="getUiStory",
        summary="What happened to a request, and why it waits",
        answers={"200": Answer(text="Its story.", schema="Story")},
    ),
)

SCHEMAS: dict[str, Json] = {
    "Health": record(
        {
            "status": text("`ok` or `draining`."),
            "solver": truth("Whether a solver is connected."),
        }
    ),
    "Readiness": record(
        {"status": text("`ready` or `unready`."), "reason": text("Why not; empty if it is.")}
    ),
    "Story": record(
        {
            "request": ref("Request"),
            "steps": lists(
                record(
                    {
                        "at_s": number("Seconds after its arrival."),
                        "what": text(
                            "`arrived`, `pulled`, `resumed`, `first token`, `evicted`, `lost`, or how it ended."
                        ),
                        "agent": maybe(text("By whom or from whom.")),
                        "output_tokens": maybe(whole("That its client had by then.")),
                    }
                ),
                "None for a request that is not among the last `gateway.ui.stories_max`.",
            ),
            "left_out": whole("Steps that are not listed."),
            "why": maybe(ref("Explanation")),
        }
    ),
    "Description": record({"openapi": {"const": "3.1.0"}, "info": {"type": "object"}}),
    "Error": record(
        {
            "error": record(
                {
                    "message": text("The problem and the remedy."),
                    "type": text("Its kind."),
                    "param": {"type": ["string", "null"], "description": "The field to blame."},
                    "code": {"type": ["string", "null"], "description": "For programs."},
                }
            )
        }
    ),
}
