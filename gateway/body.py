"""The fields of a request's body that the gateway itself needs: is there a prompt, may it fit, how much output is asked for.

What an engine may accept is left to the engine: lengths are refused only where the prompt cannot fit whatever the
engine's tokenizer, and counted as an estimate for plans. Everything here is pure.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from qlm_core.endpoint import Endpoint
from qlm_core.errors import ContextExceeded, InvalidRequest
from qlm_core.nesting import LEVELS_MAX, is_too_deep
from qlm_core.tokens import (
    COMPLETION_DEFAULT_LIMIT,
    FIRST_TEXTS,
    SECOND_TEXTS,
    chat_texts,
    completion_prompts,
    is_token_ids,
    measured_tokens,
    prompt_tokens,
    scored_texts,
)

Json = dict[str, Any]

# No tokenizer puts more bytes than this into a token, white space apart. The longest entries of the vocabularies in
# use are runs of one character, 128 bytes in those of GPT-4, Llama 3 and Qwen; this is eight times as much. Each run of
# white space counts as one byte, since some tokenizers make one blank of it first. So a text that exceeds this cannot fit;
# of any other the engine decides, which counts exactly, and `body_bytes_max` bounds what it is asked about.
BYTES_PER_TOKEN_MAX = 1024
LIMIT_MAX = 2**31 - 1
# Answers travel as JSON; vLLM has formats that are not.
_ENCODINGS = ("float", "base64")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_BLANKS = re.compile(r"\s+")

_decode = msgspec.json.Decoder().decode
_decode_shallow = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode


def parse(body: bytes) -> Json:
    """A body as an object. Raises InvalidRequest."""
    try:
        fields = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        remedy = "Send a JSON object."
        if _SURROGATE.search(body):
            remedy = "Text that was cut inside an emoji leaves half a pair of \\u escapes; take that out."
        raise InvalidRequest(
            "body", f"not valid JSON ({error})", remedy, code="invalid_json"
        ) from None
    if is_too_deep(body, fields):
        raise InvalidRequest(
            "body", f"nested deeper than {LEVELS_MAX} levels", "Flatten it.", code="invalid_json"
        )
    if not isinstance(fields, dict):
        raise InvalidRequest("body", "not a JSON object", "Send one.", code="invalid_json")
    return fields


def raw_fields(body: bytes) -> dict[str, msgspec.Raw]:
    """The fields of a body that can be parsed, each as it was written: numbers keep their digits."""
    return _decode_shallow(body)


def check_prompt(fields: Json, endpoint: Endpoint) -> Any:
    """The prompt or the messages, after checking that there are any, of the right form; None for given embeddings.

    Of endpoints that generate nothing the texts are checked, and nothing is returned.

    Raises:
        InvalidRequest: naming the field.
    """
    if not endpoint.generates:
        _check_texts(fields, endpoint)
        return None
    chat, field = endpoint.chat, endpoint.prompt_field
    prompt = fields.get(field)
    if prompt is None:
        if not chat and fields.get("prompt_embeds") is not None:
            return None
        raise InvalidRequest(field, "missing", f"Give {field}.", code="missing_field")
    if chat:
        _check_messages(prompt)
    else:
        _check_prompts(prompt)
    return prompt


def measure_prompt(
    fields: Json, endpoint: Endpoint, *, model_len: int | None, prompts_max: int
) -> int:
    """Tokens of the prompt, or of all prompts, after checking that there is one and that each may fit.

    Args:
        model_len: tokens of the model's longest sequence; None if nobody here knows.
        prompts_max: how many prompts there may be.

    Raises:
        InvalidRequest: naming the field; ContextExceeded for one that cannot fit.
    """
    prompt = check_prompt(fields, endpoint)
    # What is too long by our estimate and runs all the same takes no more room than there is.
    most = LIMIT_MAX if model_len is None else model_len
    if not endpoint.generates:
        return _measure_texts(fields, endpoint, most=most, prompts_max=prompts_max)
    if prompt is None:
        return 1
    # A prompt that the engine is told to cut fits whatever its length.
    measured = model_len is not None and fields.get("truncate_prompt_tokens") is None
    if endpoint.chat:
        if measured and "chat_template" not in fields:
            _check_questions(prompt, most)
        return min(prompt_tokens(fields, chat=True), most)
    prompts = completion_prompts(prompt)
    _check_count("prompt", len(prompts), prompts_max)
    total = 0
    for index, part in enumerate(prompts):
        if measured:
            _check_length("prompt" if part is prompt else f"prompt[{index}]", part, most)
        total += min(prompt_tokens({"prompt": part}, chat=False), most)
    return max(1, total)


def _measure_texts(fields: Json, endpoint: Endpoint, *, most: int, prompts_max: int) -> int:
    """Tokens of everything that is to be measured. What is too long for the model is cut or refused by its engine."""
    if endpoint is Endpoint.EMBEDDINGS:
        count = len(completion_prompts(fields.get("input")))
    else:
        count = max(map(len, scored_texts(fields)))
    _check_count(endpoint.prompt_field, count, prompts_max)
    return sum(min(tokens, most) for tokens in measured_tokens(fields, endpoint))


def _check_count(field: str, count: int, prompts_max: int) -> None:
    # Each is a sequence of its own to an engine, and measuring very many would keep other clients waiting.
    if count > prompts_max:
        raise InvalidRequest(
            field,
            f"has {count} prompts, at most {prompts_max} are accepted",
            "Send them as several requests or raise gateway.limits.prompts_max.",
        )


def _check_length(field: str, part: object, model_len: int) -> None:
    if isinstance(part, str):
        _check_text(field, part, model_len)
    elif is_token_ids(part) and len(part) > model_len:
        raise ContextExceeded(field, model_len, f"{len(part)} tokens")


def _check_text(field: str, text: str, model_len: int) -> None:
    bytes_max = model_len * BYTES_PER_TOKEN_MAX
    if 4 * len(text) <= bytes_max:
        return
    size = len(_BLANKS.sub(" ", text).encode("utf-8", "surrogatepass"))
    if size > bytes_max:
        found = f"{size} bytes, more than any tokenizer puts into so few tokens"
        raise ContextExceeded(field, model_len, found)


def _check_questions(messages: list[Json], model_len: int) -> None:
    """What the user said reaches the model; a template may leave out parts of other messages, such as earlier thoughts."""
    for message in messages:
        if message["role"] == "user":
            for text in chat_texts([message]):
                _check_text("messages", text, model_len)


def _check_messages(messages: object) -> None:
    if not isinstance(messages, list):
        raise InvalidRequest("messages", "must be a list", "Give messages.", code="invalid_type")
    if not messages:
        # OpenAI's API refuses it, and what renders chats for engines breaks on it.
        raise InvalidRequest("messages", "empty", "Give a message.", code="empty_prompt")
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise InvalidRequest(
                f"messages[{index}]",
                "must be an object with a role",
                'Write {"role": "user", "content": "..."}.',
                code="invalid_type",
            )


def _check_prompts(prompt: object) -> None:
    """Text, token ids, or a list of these; ids are counted exactly, so they must be ids throughout."""
    if isinstance(prompt, str):
        return
    if not isinstance(prompt, list):
        raise InvalidRequest(
            "prompt", "must be text or a list of token ids", "Correct prompt.", code="invalid_type"
        )
    kinds = {type(part) for part in prompt}
    if kinds != {int} and kinds - {str, list}:
        raise InvalidRequest(
            "prompt",
            "must be text, token ids, or a list of these",
            "Correct prompt.",
            code="invalid_type",
        )


def _check_texts(fields: Json, endpoint: Endpoint) -> None:
    """Whether there is something to measure, and the answer is one that can be passed on."""
    if endpoint is Endpoint.EMBEDDINGS:
        if fields.get("input") is None and fields.get("messages") is not None:
            _check_messages(fields["messages"])
        else:
            _require_texts(fields, ("input",))
        encoding = fields.get("encoding_format")
        if encoding is not None and encoding not in _ENCODINGS:
            raise InvalidRequest(
                "encoding_format",
                f"{encoding!r:.40} is not one in which an answer is passed on",
                f"Use {' or '.join(_ENCODINGS)}.",
            )
    elif endpoint is Endpoint.RERANK:
        _require_texts(fields, ("query",))
        _require_texts(fields, ("documents",))
    else:
        _require_texts(fields, FIRST_TEXTS)
        _require_texts(fields, SECOND_TEXTS)


def _require_texts(fields: Json, names: tuple[str, ...]) -> None:
    """Raise InvalidRequest unless there is text, or something like it, under one of the names."""
    name = next((name for name in names if fields.get(name) is not None), None)
    if name is None:
        others = f" (or {', '.join(names[1:])})" if names[1:] else ""
        raise InvalidRequest(names[0], "missing", f"Give {names[0]}{others}.", code="missing_field")
    texts = fields[name]
    if not isinstance(texts, str | list | dict):
        raise InvalidRequest(
            name,
            "must be text, token ids, or a list of these",
            f"Correct {name}.",
            code="invalid_type",
        )
    if isinstance(texts, list) and not texts:
        raise InvalidRequest(name, "empty", f"Give {name}.", code="empty_prompt")


def with_limits(body: bytes, fields: Json, endpoint: Endpoint) -> tuple[bytes, int | None]:
    """A body whose limits on output every engine understands, and the one that counts; None where the client gave none.

    Where nothing is generated the limit is 0.

    A completion without a limit gets the one that OpenAI's API has then: engines differ in what they take none or null
    to mean. A completion may ask for nothing but its echo.
    """
    if not endpoint.generates:
        return body, 0
    chat = endpoint.chat
    names = ("max_completion_tokens", "max_tokens") if chat else ("max_tokens",)
    least = 1 if chat else 0
    said: dict[str, int] = {}
    mended: dict[str, int] = {}
    for name in names:
        value = fields.get(name)
        if value is None:
            continue
        if isinstance(value, float) and value.is_integer():
            value = mended[name] = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**63:
            raise InvalidRequest(
                name,
                f"must be a whole number of at least {least} and below 2^63, not {value!r:.40}",
                "Correct it.",
            )
        said[name] = value
    if not (said or chat):
        said["max_tokens"] = mended["max_tokens"] = COMPLETION_DEFAULT_LIMIT
    if mended:
        whole = _decode_shallow(body)
        whole.update((name, msgspec.Raw(_encode(limit))) for name, limit in mended.items())
        body = _encode(whole)
    return body, next(iter(said.values()), None)


def flag(fields: Json, name: str) -> bool:
    """Whether a field says true; null is no. Raises InvalidRequest."""
    value = fields.get(name)
    if value is None or isinstance(value, bool):
        return bool(value)
    raise InvalidRequest(name, "must be true or false", "Correct it.", code="invalid_type")
