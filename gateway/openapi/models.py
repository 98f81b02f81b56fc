"""Requests to models: generated text, embeddings, scores and rankings, and the models there are."""

from __future__ import annotations

from gateway.openapi.operation import (
    EVENTS_TYPE,
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

RUN_HEADERS = (
    "SloClass",
    "SloTtft",
    "SloTpot",
    "SloE2e",
    "TimeToLive",
    "Tenant",
    "Session",
    "Durable",
    "IdempotencyKey",
    "Async",
    "Prefer",
    "RequestId",
)
RUN_ANSWER = ("RequestId", "OwnId", "QueueDuration", "EstimatedWait", "Clamped")
LATER = Answer(
    text="Stored, where the client does not wait for the answer; `location` says where it will be.",
    schema="Request",
    headers=(*RUN_ANSWER, "Location", "RetryAfter", "RetryAfterMs", "PreferenceApplied"),
)
_EVENTS = {
    EVENTS_TYPE: text(
        "With `stream`: chunks, each an event, and `[DONE]`. Comments may come between."
    )
}


def _run(path: str, name: str, tag: str, id: str, summary: str, *, streams: bool) -> Operation:
    return Operation(
        path=path,
        method="post",
        tag=tag,
        id=id,
        summary=summary,
        text="Fields that are not named here reach the engine unchanged, and what it answers beside these comes back.",
        body=f"{name}Request",
        headers=RUN_HEADERS,
        answers={
            "200": Answer(
                text="The answer.",
                schema=name,
                types=_EVENTS if streams else {},
                headers=RUN_ANSWER,
            ),
            "202": LATER,
        },
    )


OPERATIONS = (
    _run("/v1/chat/completions", "Chat", "Text", "createChat", "Answer a chat", streams=True),
    _run(
        "/v1/completions", "Completion", "Text", "createCompletion", "Complete a text", streams=True
    ),
    _run(
        "/v1/embeddings", "Embeddings", "Measures", "createEmbeddings", "Embed texts", streams=False
    ),
    _run("/v1/score", "Score", "Measures", "createScore", "Score pairs of texts", streams=False),
    _run("/score", "Score", "Measures", "createScoreAlias", "As /v1/score", streams=False),
    _run("/v1/rerank", "Rerank", "Measures", "createRerank", "Rank documents", streams=False),
    _run("/rerank", "Rerank", "Measures", "createRerankAlias", "As /v1/rerank", streams=False),
    _run("/v2/rerank", "Rerank", "Measures", "createRerankV2", "As /v1/rerank", streams=False),
    Operation(
        path="/v1/models",
        method="get",
        tag="Models",
        id="listModels",
        summary="List the models that the caller may use",
        answers={"200": Answer(text="The models.", schema="ModelList")},
    ),
    Operation(
        path="/v1/models/{model}",
        method="get",
        tag="Models",
        id="getModel",
        summary="One model",
        text="A name may have slashes in it.",
        answers={"200": Answer(text="The model.", schema="Model")},
    ),
)

MODEL = text("A model that is served.")
_USAGE = record(
    {"prompt_tokens": whole("Tokens of the prompt."), "total_tokens": whole("All tokens.")},
    {"completion_tokens": whole("Tokens of the output.")},
)
TIER = maybe(
    text(
        "Selects an SLO class: one of OpenAI's (`auto`, `default`, `flex`, `scale`, `priority`, `fast`, "
        "`ultrafast`), another that the configuration lists, or the name of a class."
    )
)
TOLD_TIER = text(
    "The tier that was used.", enum=["default", "flex", "scale", "priority", "ultrafast"]
)
_GENERATING: Json = {
    "stream": maybe(truth("Whether the answer comes as server-sent events.")),
    "stream_options": maybe(
        record({}, {"include_usage": truth("Whether the last chunk has the usage.")})
    ),
    "service_tier": TIER,
    "user": maybe(text("Who asks, where no header says it.")),
    "temperature": maybe(number("Of sampling.")),
    "stop": {"description": "Text, or a list of texts, at which the output ends."},
    "n": maybe(whole("How many choices.")),
}
_TEXTS: Json = {
    "description": "A text, token ids, or a list of these.",
    "type": ["string", "array", "object"],
}
_HEAD = {
    "id": text("The request's."),
    "created": whole("Unix seconds."),
    "model": text("As it was asked for."),
}
_MEASURED_OPTIONS: Json = {
    "service_tier": TIER,
    "user": maybe(text("Who asks, where no header says it.")),
    "truncate_prompt_tokens": maybe(whole("Texts are cut to so many tokens; -1: to what fits.")),
}

SCHEMAS: dict[str, Json] = {
    "ChatRequest": record(
        {
            "model": MODEL,
            "messages": lists(
                record(
                    {"role": text("Whose it is.")},
                    {"content": {"description": "Text, parts, or null."}},
                ),
                "The conversation so far.",
            )
            | {"minItems": 1},
        },
        _GENERATING
        | {
            "max_completion_tokens": maybe(whole("The most tokens of output.", minimum=1)),
            "max_tokens": maybe(whole("The same, by its older name.", minimum=1)),
            "tools": maybe(lists({"type": "object"}, "Functions that the model may call.")),
            "response_format": {"description": "The form of the output."},
        },
    ),
    "Chat": record(
        _HEAD
        | {
            "object": {"const": "chat.completion"},
            "choices": lists(
                record(
                    {
                        "index": whole("Of the choice, from 0."),
                        "message": record(
                            {"role": text("`assistant`.")}, {"content": maybe(text("The text."))}
                        ),
                        "finish_reason": maybe(text("Why it ended.")),
                    }
                )
            ),
            "usage": _USAGE,
        },
        {"service_tier": TOLD_TIER},
    ),
    "CompletionRequest": record(
        {"model": MODEL},
        _GENERATING
        | {
            "prompt": _TEXTS | {"type": ["string", "array", "null"]},
            "max_tokens": maybe(whole("The most tokens of output; 16 unless given.", minimum=0)),
            "echo": maybe(truth("Whether the prompt comes back.")),
        },
    ),
    "Completion": record(
        _HEAD
        | {
            "object": {"const": "text_completion"},
            "choices": lists(
                record(
                    {
                        "index": whole("Of the choice, from 0."),
                        "text": text("The text."),
                        "finish_reason": maybe(text("Why it ended.")),
                    }
                )
            ),
            "usage": _USAGE,
        },
        {"service_tier": TOLD_TIER},
    ),
    "EmbeddingsRequest": record(
        {"model": MODEL},
        _MEASURED_OPTIONS
        | {
            "input": _TEXTS,
            "messages": lists(
                {"type": "object"}, "In place of `input`, where the engine takes it."
            ),
            "encoding_format": {"enum": ["float", "base64", None]},
            "dimensions": maybe(whole("Of a vector.", minimum=1)),
        },
    ),
    "Embeddings": record(
        {
            "data": lists(
                record(
                    {
                        "index": whole("Of the input, from 0."),
                        "embedding": {
                            "type": ["array", "string"],
                            "description": "The vector, or its 32-bit floats in base64.",
                        },
                    }
                )
            )
        },
        _HEAD | {"usage": _USAGE},
    ),
    "ScoreRequest": record(
        {"model": MODEL},
        _MEASURED_OPTIONS
        | {
            "text_1": _TEXTS,
            "text_2": _TEXTS,
            "queries": _TEXTS | {"description": "In place of `text_1`; `data_1` too."},
            "documents": _TEXTS
            | {"description": "In place of `text_2`; `data_2` and `items` too."},
        },
    ),
    "Score": record(
        {"data": lists(record({"index": whole("Of the pair."), "score": number("Of the pair.")}))},
        _HEAD | {"usage": _USAGE},
    ),
    "RerankRequest": record(
        {
            "model": MODEL,
            "query": _TEXTS,
            "documents": _TEXTS | {"description": "Texts, or objects with a text."},
        },
        _MEASURED_OPTIONS | {"top_n": maybe(whole("How many of the best; 0: all.", minimum=0))},
    ),
    "Rerank": record(
        {
            "results": lists(
                record(
                    {
                        "index": whole("Of the document, as it was sent."),
                        "relevance_score": number("Higher is closer."),
                    }
                )
            )
        },
        {"id": text("The request's."), "model": text("As it was asked for."), "usage": _USAGE},
    ),
    "Model": record(
        {
            "id": text("Its name."),
            "object": {"const": "model"},
            "created": whole("0."),
            "owned_by": text("`qlm`."),
            "max_model_len": whole("Prompt and output together, in tokens."),
        }
    ),
    "ModelList": record({"object": {"const": "list"}, "data": lists(ref("Model"))}),
}
