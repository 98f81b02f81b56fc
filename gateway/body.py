"""The fields of a request's body that the gateway itself needs: is there a prompt, may it fit, how much output is asked for.

What an engine may accept is left to the engine: lengths are refused only where the prompt cannot fit whatever the
engine's tokenizer, and counted as an estimate for plans. Everything here is pure.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from qlm_core.errors import ContextExceeded, InvalidRequest
from qlm_core.nesting import LEVELS_MAX, is_too_deep
from qlm_core.tokens import (
    COMPLETION_DEFAULT_LIMIT,
    chat_texts,
    completion_prompts,
    is_token_ids,
    prompt_tokens,
)

Json = dict[str, Any]

# No tokenizer puts more bytes than this into a token, white space apart. The longest entries of the vocabularies in
# use are runs of one character, 128 bytes in those of GPT-4, Llama 3 and Qwen; this is eight times as much. Each run of
# white space counts as one byte, since some tokenizers make one blank of it first. So a text that exceeds this cannot fit;
# of any other the engine decides, which counts exactly, and `body_bytes_max` bounds what it is asked about.
BYTES_PER_TOKEN_MAX = 1024
LIMIT_MAX = 2**31 - 1
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


def check_prompt(fields: Json, *, chat: bool) -> Any:
    """The prompt or the messages, after checking that there are any, of the right form; None for given embeddings.

    Raises:
        InvalidRequest: naming the field.
    """
    field = "messages" if chat else "prompt"
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


def measure_prompt(fields: Json, *, chat: bool, model_len: int | None, prompts_max: int) -> int:
    """Tokens of the prompt, or of all prompts, after checking that there is one and that each may fit.

    Args:
        model_len: tokens of the model's longest sequence; None if nobody here knows.
        prompts_max: how many prompts there may be.

    Raises:
        InvalidRequest: naming the field; ContextExceeded for one that cannot fit.
    """
    prompt = check_prompt(fields, chat=chat)
    if prompt is None:
        return 1
    # What is too long by our estimate and runs all the same takes no more room than there is.
    most = LIMIT_MAX if model_len is None else model_len
    # A prompt that the engine is told to cut fits whatever its length.
    measured = model_len is not None and fields.get("truncate_prompt_tokens") is None
    if chat:
        if measured and "chat_template" not in fields:
            _check_questions(prompt, most)
        return min(prompt_tokens(fields, chat=True), most)
    prompts = completion_prompts(prompt)
    # Each is a sequence of its own to an engine, and measuring very many would keep other clients waiting.
    if len(prompts) > prompts_max:
        raise InvalidRequest(
            "prompt",
            f"has {len(prompts)} prompts, at most {prompts_max} are accepted",
            "Send them as several requests or raise gateway.limits.prompts_max.",
        )
    total = 0
    for index, part in enumerate(prompts):
        if measured:
            _check_length("prompt" if part is prompt else f"prompt[{index}]", part, most)
        total += min(prompt_tokens({"prompt": part}, chat=False), most)
    return max(1, total)


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


def with_limits(body: bytes, fields: Json, *, chat: bool) -> tuple[bytes, int | None]:
    """A body whose limits on output every engine understands, and the one that counts; None where the client gave none.

    A completion without a limit gets the one that OpenAI's API has then: engines differ in what they take none or null
    to mean. A completion may ask for nothing but its echo.
    """
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
                f"must be a whole number of at least {least}, not {value!r:.40}",
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
