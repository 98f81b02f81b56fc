"""What a client asked for, checked and completed: model, targets, sizes.

Both front doors bring a body and a `Wish` here and get a `Draft` or an `InvalidRequest` that names the field and the
remedy. Only what the gateway itself needs is checked; other fields of the body reach the engine unread.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from qlm_core.config import Config, ModelConfig
from qlm_core.errors import InvalidRequest, UnknownModel
from qlm_core.model import ModelName, Slo
from qlm_core.resume import Resume, resume_of
from qlm_core.tokens import completion_prompts, is_token_ids, output_limit, prompt_tokens

Json = dict[str, Any]

EXPLICIT = "explicit"
NAME_BYTES_MAX = 256
# A text's token count is an estimate. It must exceed the model's length by this much before a prompt is refused here;
# in between the engine, which counts exactly, decides.
ESTIMATE_SLACK = 1.25

_decode = msgspec.json.Decoder().decode
_decode_shallow = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a client says beside the body. Times are seconds; None and "" mean not said.

    Attributes:
        ttl_s: how long it may wait and run at most; it can only shorten the configured time.
    """

    slo_class: str = ""
    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None
    ttl_s: float | None = None
    tenant: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A request that may be accepted.

    Attributes:
        body: the client's; a completion that names no limit on output has OpenAI's default added.
        max_output_tokens: the limit in the body, or the model's length where there is none.
        service_tier: the tier to report in the answer.
    """

    chat: bool
    body: bytes
    model: ModelName
    slo_class: str
    slo: Slo
    prompt_tokens: int
    max_output_tokens: int
    tenant: str
    service_tier: str
    ttl_s: float
    resume: Resume
    stream: bool
    include_usage: bool
    running_usage: bool


class Intake:
    """Checks requests against the configuration and the models that agents announced."""

    def __init__(self, config: Config, fleet: Callable[[], tuple[ModelName, ...]]):
        self._config = config
        self._limits = config.gateway.limits
        self._fleet = fleet
        self._class_of_tier = {
            tier: name
            for name, section in config.slo_classes.items()
            for tier in section.service_tiers
        }

    def models(self) -> dict[str, int]:
        """Every known model and its longest sequence in tokens, configured or announced."""
        lengths = {name: model.max_model_len for name, model in self._config.models.items()}
        for name in self._fleet():
            lengths.setdefault(name, ModelConfig().max_model_len)
        return lengths

    def draft(self, body: bytes, *, chat: bool, wish: Wish, model: str | None = None) -> Draft:
        """Check a body and complete it. `model` overrides the body's.

        Raises:
            InvalidRequest: naming the field and the remedy. UnknownModel for a model not served.
        """
        limit = self._limits.body_bytes_max
        if len(body) > limit:
            raise InvalidRequest(
                "body",
                f"it has {len(body)} bytes, at most {limit} are accepted",
                "Send a shorter prompt or raise gateway.limits.body_bytes_max.",
                code="body_too_large",
            )
        fields = _object(body)
        name, model_len = self._model(fields.get("model") if model is None else model)
        prompt = _prompt(fields, chat=chat, model_len=model_len)
        output = _output(fields, chat=chat)
        if not chat and fields.get("max_tokens") is None:
            body = _with_max_tokens(body, output)
        stream = _flag(fields, "stream")
        options = fields.get("stream_options")
        if options is not None and not isinstance(options, dict):
            raise InvalidRequest("stream_options", "must be an object", "Leave it out or fix it.")
        slo_class, slo, tier = self._targets(fields, wish)
        return Draft(
            chat=chat,
            body=body,
            model=name,
            slo_class=slo_class,
            slo=slo,
            prompt_tokens=prompt,
            # Not less by the prompt, whose count is an estimate: output that reaches this limit is taken to be whole.
            max_output_tokens=model_len if output is None else output,
            tenant=_tenant(fields, wish),
            service_tier=tier,
            ttl_s=self._ttl(wish),
            resume=resume_of(fields, chat=chat),
            stream=stream,
            include_usage=bool(options and options.get("include_usage")),
            running_usage=bool(
                options and options.get("include_usage") and options.get("continuous_usage_stats")
            ),
        )

    def targets(self, wish: Wish) -> tuple[str, Slo]:
        """The class and targets of a wish alone. Raises InvalidRequest."""
        slo_class, slo, _ = self._targets({}, wish)
        return slo_class, slo

    def _model(self, name: object) -> tuple[ModelName, int]:
        if name is None or name == "":
            raise InvalidRequest("model", "missing", "Name the model to use.", code="missing_field")
        if not isinstance(name, str):
            raise InvalidRequest("model", "must be a string", "Name the model to use.")
        section = self._config.models.get(name)
        if section is not None:
            return ModelName(name), section.max_model_len
        known = self.models()
        if name not in known:
            raise UnknownModel(name[:NAME_BYTES_MAX], tuple(known))
        return ModelName(name), known[name]

    # ---------------------------------------------------------------- targets

    def _targets(self, fields: Json, wish: Wish) -> tuple[str, Slo, str]:
        """Class, targets and reported tier. What is said beside the body goes first."""
        tier = fields.get("service_tier")
        if tier is not None and not isinstance(tier, str):
            raise InvalidRequest("service_tier", "must be a string", self._known_classes())
        name = self._class_of(wish.slo_class, tier or "")
        base = self._config.slo_class(name).slo
        reported = tier if tier and tier != "auto" and not wish.slo_class else self._tier_of(name)
        explicit_ttft = wish.ttft_s is not None
        slo = Slo(
            ttft_s=self._seconds("slo.ttft_s", wish.ttft_s, base.ttft_s),
            tpot_s=self._seconds("slo.tpot_s", wish.tpot_s, base.tpot_s),
            e2e_s=self._seconds("slo.e2e_s", wish.e2e_s, None if explicit_ttft else base.e2e_s),
        )
        if not explicit_ttft:
            return name, slo, reported
        return explicit_class(slo.ttft_s), slo, reported

    def _class_of(self, asked: str, tier: str) -> str:
        classes = self._config.slo_classes
        if asked:
            name = asked if asked in classes else self._class_of_tier.get(asked, "")
            if not name:
                raise InvalidRequest(
                    "slo_class",
                    f"{asked[:NAME_BYTES_MAX]!r} is not a known class",
                    self._known_classes(),
                    code="unknown_slo_class",
                )
            return name
        if tier:
            name = self._class_of_tier.get(tier, tier if tier in classes else "")
            if not name:
                raise InvalidRequest(
                    "service_tier",
                    f"{tier[:NAME_BYTES_MAX]!r} selects no SLO class",
                    self._known_classes(),
                    code="unknown_service_tier",
                )
            return name
        return self._config.default_slo_class

    def _tier_of(self, slo_class: str) -> str:
        tiers = self._config.slo_classes[slo_class].service_tiers
        if "default" in tiers:
            return "default"
        return tiers[0] if tiers else slo_class

    def _known_classes(self) -> str:
        names = ", ".join(self._config.slo_classes)
        tiers = ", ".join(self._class_of_tier) or "none"
        return f"Use one of the classes {names}, or one of the tiers {tiers}."

    def _seconds(self, field: str, value: float | None, default: Any) -> Any:
        if value is None:
            return default
        limit = self._limits.slo_ttft_s_max
        if not (math.isfinite(value) and 0 < value <= limit):
            raise InvalidRequest(
                field,
                f"must be above 0 and at most {limit:g} seconds, not {value:g}",
                "Give a target in that range.",
                code="invalid_slo",
            )
        return value

    def _ttl(self, wish: Wish) -> float:
        longest = self._config.gateway.request_ttl_s
        if wish.ttl_s is None:
            return longest
        if not (math.isfinite(wish.ttl_s) and wish.ttl_s > 0):
            raise InvalidRequest("ttl", f"must be above 0, not {wish.ttl_s:g}", "Give seconds.")
        return min(wish.ttl_s, longest)


def explicit_class(ttft_s: float) -> str:
    """The class of an explicit target: requests whose targets are within a factor of two share it.

    The name gives the power of two at or below the target; all below 1/64 s are one class.
    """
    return f"{EXPLICIT}-{2.0 ** max(-6, math.floor(math.log2(ttft_s))):g}s"


# --------------------------------------------------------------------------- fields of the body


def _object(body: bytes) -> Json:
    try:
        fields = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(
            "body", f"not valid JSON ({error})", "Send a JSON object.", code="invalid_json"
        ) from None
    if not isinstance(fields, dict):
        raise InvalidRequest("body", "not a JSON object", "Send one.", code="invalid_json")
    return fields


def _prompt(fields: Json, *, chat: bool, model_len: int) -> int:
    """Tokens of the prompt, or of all prompts, after checking that there is one and that each can fit."""
    field = "messages" if chat else "prompt"
    prompt = fields.get(field)
    if prompt is None:
        raise InvalidRequest(field, "missing", f"Give {field}.", code="missing_field")
    if chat:
        _check_messages(prompt)
    elif not isinstance(prompt, str | list):
        raise InvalidRequest(
            field, "must be text or a list of token ids", f"Correct {field}.", code="invalid_type"
        )
    if not prompt:
        raise InvalidRequest(field, "empty", f"Give a {field} with content.", code="empty_prompt")
    if isinstance(prompt, list) and not chat:
        _check_prompts(prompt)
    total = 0
    for index, part in enumerate([prompt] if chat else completion_prompts(prompt)):
        name = field if part is prompt else f"{field}[{index}]"
        tokens = prompt_tokens({field: part}, chat=chat)
        _check_length(name, tokens, model_len, exact=not chat and is_token_ids(part))
        total += tokens
    return total


def _check_length(field: str, tokens: int, model_len: int, *, exact: bool) -> None:
    if tokens > model_len * (1.0 if exact else ESTIMATE_SLACK):
        about = "" if exact else "about "
        raise InvalidRequest(
            field,
            f"{about}{tokens} tokens, more than the model's {model_len}",
            "Shorten it or use a model with a longer context.",
            code="context_length_exceeded",
        )


def _check_messages(messages: object) -> None:
    if not isinstance(messages, list):
        raise InvalidRequest("messages", "must be a list", "Give messages.", code="invalid_type")
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise InvalidRequest(
                f"messages[{index}]",
                "must be an object with a role",
                'Write {"role": "user", "content": "..."}.',
                code="invalid_type",
            )
    if messages and not any(
        message.get("content") or message.get("tool_calls") for message in messages
    ):
        raise InvalidRequest(
            "messages", "empty", "Give a message with content.", code="empty_prompt"
        )


def _check_prompts(prompt: list[Any]) -> None:
    """Token ids, or a list of prompts; ids are counted exactly, so they must be ids throughout."""
    kinds = {type(part) for part in prompt}
    if kinds == {int}:
        return
    if kinds - {str, list} or "" in prompt or [] in prompt:
        raise InvalidRequest(
            "prompt",
            "must be text, token ids, or a list of these without empty ones",
            "Correct prompt.",
            code="invalid_type",
        )


def _output(fields: Json, *, chat: bool) -> int | None:
    names = ("max_completion_tokens", "max_tokens") if chat else ("max_tokens",)
    for name in names:
        value = fields.get(name)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
            raise InvalidRequest(
                name, f"must be a whole number of at least 1, not {value!r:.40}", "Correct it."
            )
    return output_limit(fields, chat=chat)


def _with_max_tokens(body: bytes, limit: int | None) -> bytes:
    """A body that says how much output it asks for: engines differ in what they take none or null to mean."""
    fields = _decode_shallow(body)
    fields["max_tokens"] = msgspec.Raw(_encode(limit))
    return _encode(fields)


def _flag(fields: Json, name: str) -> bool:
    value = fields.get(name)
    if value is None or isinstance(value, bool):
        return bool(value)
    raise InvalidRequest(name, "must be true or false", "Correct it.", code="invalid_type")


def _tenant(fields: Json, wish: Wish) -> str:
    tenant = wish.tenant or fields.get("safety_identifier") or fields.get("user") or ""
    if not isinstance(tenant, str) or len(tenant.encode()) > NAME_BYTES_MAX:
        raise InvalidRequest(
            "tenant", f"must be text of at most {NAME_BYTES_MAX} bytes", "Use a shorter name."
        )
    return tenant
