"""Files and batches."""

from __future__ import annotations

from gateway.openapi.operation import (
    Answer,
    Json,
    Operation,
    lists,
    maybe,
    page,
    record,
    text,
    truth,
    whole,
)

_BYTES: Json = {"type": "string", "format": "binary"}

OPERATIONS = (
    Operation(
        path="/v1/files",
        method="post",
        tag="Files",
        id="createFile",
        summary="Upload a file",
        form="FileForm",
        answers={"200": Answer(text="The file.", schema="File")},
    ),
    Operation(
        path="/v1/files",
        method="get",
        tag="Files",
        id="listFiles",
        summary="List files",
        query={
            "purpose": text("Only those of this purpose."),
            "limit": whole("How many at most.", minimum=1, maximum=10_000, default=10_000),
            "order": text("By creation.", enum=["asc", "desc"], default="desc"),
            "after": text("The id of the last file of the page before."),
        },
        answers={"200": Answer(text="A page.", schema="FileList")},
    ),
    Operation(
        path="/v1/files/{id}",
        method="get",
        tag="Files",
        id="getFile",
        summary="One file",
        answers={"200": Answer(text="The file.", schema="File")},
    ),
    Operation(
        path="/v1/files/{id}",
        method="delete",
        tag="Files",
        id="deleteFile",
        summary="Delete a file",
        answers={"200": Answer(text="It is gone.", schema="Deleted")},
    ),
    Operation(
        path="/v1/files/{id}/content",
        method="get",
        tag="Files",
        id="getFileContent",
        summary="The bytes of a file",
        answers={
            "200": Answer(text="All of them.", types={"application/octet-stream": _BYTES}),
            "206": Answer(text="Those of the `range`.", types={"application/octet-stream": _BYTES}),
        },
    ),
    Operation(
        path="/v1/batches",
        method="post",
        tag="Batches",
        id="createBatch",
        summary="Run the lines of a file",
        body="BatchRequest",
        headers=("IdempotencyKey", "RequestId"),
        answers={"200": Answer(text="The batch.", schema="Batch")},
    ),
    Operation(
        path="/v1/batches",
        method="get",
        tag="Batches",
        id="listBatches",
        summary="List batches, newest first",
        query={
            "limit": whole("How many at most.", minimum=1, maximum=100, default=20),
            "after": text("The id of the last batch of the page before."),
        },
        answers={"200": Answer(text="A page.", schema="BatchList")},
    ),
    Operation(
        path="/v1/batches/{id}",
        method="get",
        tag="Batches",
        id="getBatch",
        summary="One batch",
        answers={"200": Answer(text="The batch.", schema="Batch")},
    ),
    Operation(
        path="/v1/batches/{id}/cancel",
        method="post",
        tag="Batches",
        id="cancelBatch",
        summary="Cancel a batch",
        answers={"200": Answer(text="The batch, `cancelling` or `cancelled`.", schema="Batch")},
    ),
)

_AT = maybe(whole("Unix seconds."))
FORESEEN: Json = {
    "feasible": maybe(truth("Whether it will be done within its window.")),
    "finish_p50_at": _AT,
    "finish_p90_at": _AT,
    "explanation": text("A sentence."),
}

SCHEMAS: dict[str, Json] = {
    "FileForm": record(
        {"file": _BYTES, "purpose": text("What it is for.", enum=["batch", "user_data"])},
        {
            "expires_after[anchor]": text("", enum=["created_at"]),
            "expires_after[seconds]": whole("", minimum=3600, maximum=2_592_000),
        },
    ),
    "File": record(
        {
            "id": text("Begins with `file-`."),
            "object": {"const": "file"},
            "bytes": whole("Its size."),
            "created_at": whole("Unix seconds."),
            "filename": text("As it was uploaded."),
            "purpose": text("What it is for."),
            "status": text("Always `processed`."),
        },
        {"expires_at": _AT},
    ),
    "FileList": page("File"),
    "Deleted": record(
        {"id": text("Of what is gone."), "object": text("What it was."), "deleted": {"const": True}}
    ),
    "BatchRequest": record(
        {
            "input_file_id": text("A file of purpose `batch`: a request on each line."),
            "endpoint": text("The path that its lines name."),
            "completion_window": text("Such as `30m`, `8h`, `2d`."),
        },
        {
            "metadata": maybe({"type": "object", "additionalProperties": {"type": "string"}}),
            "output_expires_after": maybe(
                record({"anchor": {"const": "created_at"}, "seconds": whole("From 3600.")})
            ),
        },
    ),
    "Batch": record(
        {
            "id": text("Begins with `batch_`."),
            "object": {"const": "batch"},
            "endpoint": text("The path that its lines name."),
            "input_file_id": text("Where they are."),
            "completion_window": text("As it was asked for."),
            "status": {
                "enum": [
                    "validating",
                    "failed",
                    "in_progress",
                    "finalizing",
                    "completed",
                    "expired",
                    "cancelling",
                    "cancelled",
                ]
            },
            "created_at": whole("Unix seconds."),
            "request_counts": record(
                {
                    "total": whole("Lines."),
                    "completed": whole("With an answer."),
                    "failed": whole("With an error."),
                }
            ),
        },
        {
            "model": maybe(text("Where all lines ask the same.")),
            "errors": maybe(
                record({"object": {"const": "list"}, "data": lists({"type": "object"})})
            ),
            "output_file_id": maybe(text("The answers.")),
            "error_file_id": maybe(text("The errors.")),
            "usage": {"type": "object", "description": "Tokens."},
            "metadata": maybe({"type": "object"}),
            "qlm": maybe(record({}, FORESEEN)),
        }
        | {
            f"{moment}_at": _AT
            for moment in (
                "in_progress",
                "expires",
                "finalizing",
                "completed",
                "failed",
                "expired",
                "cancelling",
                "cancelled",
            )
        },
    ),
    "BatchList": page("Batch"),
}
