"""POST /v1/estimate: when a batch or a request would be done that is not submitted (docs/api.md, "Estimates").

What is asked is checked here and put to the solver, which answers as it would for a batch that has just come. A request is
described by the body that it would have, at the path that it would go to, or by its size; a batch also by the body that would
create it, whose file is then read as if it did.
"""

from __future__ import annotations

import time
from dataclasses import replace

import msgspec

from gateway import body as bd
from gateway import headers as hd
from gateway import openai
from gateway.asgi import JSON, answer
from gateway.batches import asking
from gateway.batches.asking import lax_class, window_s
from gateway.batches.foreseeing import FaultyInput
from gateway.batches.index import listed
from gateway.batches.stored import Forecast
from gateway.bodies import Bodies
from gateway.call import Call
from gateway.desk import Desk
from gateway.problems import problem_of
from gateway.refusing import refuse
from gateway.uploads import Uploads
from qlm_core.endpoint import Endpoint
from qlm_core.errors import InvalidRequest, Unavailable, UnknownModel
from qlm_core.messages import BatchForecast, BatchQuestion, BulkShape
from qlm_core.model import ModelName, Slo

Json = dict[str, object]

LINES_MAX = 10_000_000
MODELS_MAX = 100
PROMPT_TOKENS_MAX = 10_000_000
_NAME_CHARS_MAX = 128
# The field by which the body of a batch is known, and those that say the same as it.
_OF_BATCHES = "input_file_id"
_OF_OTHERS = ("body", "url", "model", "models", "lines", "prompt_tokens_mean", "max_output_tokens")


class EstimateDoor:
    """Answers at /v1/estimate."""

    def __init__(self, desk: Desk, uploads: Uploads) -> None:
        self._desk = desk
        self._bodies = Bodies(desk.config.gateway.limits, uploads)

    async def answer(self, call: Call) -> None:
        """As `Resource.answer`."""
        body = await self._bodies.read(call.headers, call.receive)
        fields = bd.parse(body)
        try:
            if fields.get(_OF_BATCHES) is not None:
                question = await self._question_of_file(fields, body, call)
            elif fields.get("body") is not None:
                question = self._question_of_body(fields, call)
            else:
                question = self._question(fields, call)
        except FaultyInput as error:
            problem = msgspec.structs.replace(problem_of(error), errors=listed(error.faults))
            await refuse(self._desk.metrics, problem, call.send, call.headers)
            return
        found = await self._desk.solver.estimate_batch(question)
        told = _shown(question, found, time.time())
        if fields.get(_OF_BATCHES) is not None:
            told["qlm"] = {name: told[name] for name in Forecast.__struct_fields__}
        await answer(call.send, 200, openai.encode(told), [JSON, *hd.echoed(call.headers)])

    async def _question_of_file(self, fields: Json, body: bytes, call: Call) -> BatchQuestion:
        """What is asked by the body that would create a batch. Raises as creating one does, and FaultyInput."""
        for name in _OF_OTHERS:
            if fields.get(name) is not None:
                raise InvalidRequest(
                    name, f"given together with {_OF_BATCHES}", "Give one of the two."
                )
        asked = asking.read(body, self._desk.config.gateway.batches)
        if not self._desk.solver.connected:
            raise Unavailable("no solver is connected; try again later")
        return await self._desk.batches.question(asked, call.caller)

    def _question_of_body(self, fields: Json, call: Call) -> BatchQuestion:
        """What is asked by a body as it would be sent. Raises InvalidRequest, UnknownModel, Forbidden."""
        for name in ("model", "models", "prompt_tokens_mean", "max_output_tokens"):
            if fields.get(name) is not None:
                raise InvalidRequest(name, "given together with body", "Give one of the two.")
        path, body = _text(fields, "url") or Endpoint.CHAT_COMPLETIONS.path, fields["body"]
        endpoint = next((one for one in Endpoint if one.path == path), None)
        if endpoint is None:
            known = ", ".join(one.path for one in Endpoint)
            raise InvalidRequest(
                "url", f"{path[:_NAME_CHARS_MAX]!r} is none of {known}", "Give one."
            )
        if not isinstance(body, dict):
            raise InvalidRequest("body", "must be an object", "Give what would be sent to url.")
        wish = hd.wish(call.headers)
        draft = self._desk.intake.draft(
            openai.encode(body), endpoint, wish=wish, caller=call.caller
        )
        lines = _whole(fields.get("lines", 1), "lines", LINES_MAX)
        part = BulkShape(draft.model, lines, float(draft.prompt_tokens), draft.max_output_tokens)
        return self._asked((part,), fields, call, (draft.slo_class, draft.slo))

    def _question(self, fields: Json, call: Call) -> BatchQuestion:
        """What is asked by sizes. Raises InvalidRequest, UnknownModel, Forbidden."""
        lengths = self._desk.intake.models(call.caller)
        parts = tuple(_shape(part, where, lengths) for where, part in _parts(fields))
        names = [part.model for part in parts]
        if len(dict.fromkeys(names)) < len(names):
            raise InvalidRequest("models", "one is named twice", "Name each model once.")
        wish = hd.wish(call.headers)
        tier = _text(fields, "service_tier")
        if tier and not wish.slo_class:
            wish = replace(wish, slo_class=tier)
        return self._asked(parts, fields, call, self._desk.intake.targets(wish, call.caller))

    def _asked(
        self, parts: tuple[BulkShape, ...], fields: Json, call: Call, targets: tuple[str, Slo]
    ) -> BatchQuestion:
        """The question with the targets of a request, or of a batch where there is a window."""
        window = fields.get("completion_window")
        if window is None:
            return BatchQuestion(parts, *targets)
        if not isinstance(window, str):
            raise InvalidRequest("completion_window", "must be a string", "Write 24h, for example.")
        seconds = window_s(window, self._desk.config.gateway.batches)
        slo_class = lax_class(self._desk.config, call.caller)
        return BatchQuestion(parts, slo_class, Slo(ttft_s=seconds, e2e_s=seconds))


def _parts(fields: Json) -> list[tuple[str, Json]]:
    """The fields of each model, with what stands before their names in messages."""
    models = fields.get("models")
    if models is None:
        return [("", fields)]
    if fields.get("model") is not None:
        raise InvalidRequest("models", "given together with model", "Give one of the two.")
    if not isinstance(models, list) or not 1 <= len(models) <= MODELS_MAX:
        raise InvalidRequest(
            "models",
            f"must be a list of 1 to {MODELS_MAX} objects",
            "Give one for each model, with its lines.",
        )
    found: list[tuple[str, Json]] = []
    for number, one in enumerate(models):
        if not isinstance(one, dict):
            raise InvalidRequest(f"models[{number}]", "must be an object", "Name its model.")
        found.append((f"models[{number}].", one))
    return found


def _shape(fields: Json, where: str, lengths: dict[str, int]) -> BulkShape:
    model = _text(fields, "model", where)
    if not model:
        raise InvalidRequest(
            f"{where}model", "missing", "Name the model to use.", code="missing_field"
        )
    if model not in lengths:
        raise UnknownModel(model[:_NAME_CHARS_MAX], tuple(lengths))
    limit = fields.get("max_output_tokens")
    return BulkShape(
        ModelName(model),
        _whole(fields.get("lines", 1), f"{where}lines", LINES_MAX),
        _tokens(fields.get("prompt_tokens_mean"), f"{where}prompt_tokens_mean"),
        lengths[model]
        if limit is None
        else min(lengths[model], _whole(limit, f"{where}max_output_tokens", bd.LIMIT_MAX, least=0)),
    )


def _whole(value: object, field: str, most: int, *, least: int = 1) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise InvalidRequest(
            field,
            "out of range",
            f"Give a whole number from {least} to {most}.",
            code="invalid_value",
        )
    return value


def _tokens(value: object, field: str) -> float:
    if value is None:
        raise InvalidRequest(
            field, "missing", "Say how long prompts are, in tokens.", code="missing_field"
        )
    number = -1.0 if isinstance(value, bool) or not isinstance(value, int | float) else value
    if not 0 <= number <= PROMPT_TOKENS_MAX:
        raise InvalidRequest(
            field,
            "out of range",
            f"Give a number from 0 to {PROMPT_TOKENS_MAX}.",
            code="invalid_value",
        )
    return float(number)


def _text(fields: Json, name: str, where: str = "") -> str:
    value = fields.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InvalidRequest(f"{where}{name}", "must be a string", "Correct it or leave it out.")
    return value


def _shown(question: BatchQuestion, found: BatchForecast, unix_s: float) -> Json:
    """The answer as clients see it. Times from now, and as instants in whole seconds."""
    wait = found.wait
    shown: Json = {
        "object": "estimate",
        "slo_class": question.slo_class,
        "lines": sum(part.lines for part in question.parts),
        "wait_s": {
            "mean": round(wait.mean_s, 3),
            "p50": round(wait.p50_s, 3),
            "p90": round(wait.p90_s, 3),
            "p99": round(wait.p99_s, 3),
        },
        "feasible": found.feasible,
        "explanation": found.explanation,
    }
    for name, value in (("p50", found.finish_p50_s), ("p90", found.finish_p90_s)):
        shown[f"finish_{name}_s"] = None if value is None else round(value, 3)
        shown[f"finish_{name}_at"] = None if value is None else int(unix_s + value)
    return shown
