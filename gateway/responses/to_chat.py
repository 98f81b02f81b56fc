"""A request to /v1/responses as a request for a chat.

Each field that OpenAI's API has is translated, passed on, or refused with its name and the remedy; docs/responses.md has the
table, and a test holds it against the client library's own types. Fields that nobody knows reach the engine, as on the
other endpoints, except those by which a chat says what is said here in another way. Everything here is pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gateway import body as bd
from gateway.responses.fields import Json, list_of, object_of, text_of, unsupported, wrong
from gateway.responses.items import last_user_number, messages_of
from gateway.responses.told import told
from gateway.responses.tools import format_of, tools_of
from qlm_core.errors import InvalidRequest

# Translated below, or told in the response object alone.
HANDLED = (
    "background",
    "background_options",
    "include",
    "input",
    "instructions",
    "max_output_tokens",
    "max_tool_calls",
    "metadata",
    "parallel_tool_calls",
    "previous_response_id",
    "reasoning",
    "store",
    "stream",
    "stream_options",
    "text",
    "tool_choice",
    "tools",
    "top_logprobs",
    "truncation",
)
# A chat has the same.
PASSED = (
    "model",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "temperature",
    "top_p",
    "user",
)
# Refused unless null, with what to do instead.
REFUSED = {
    "access_programs": "Leave it out.",
    "context_management": "Send a shorter conversation in input.",
    "conversation": "Use previous_response_id, or send the conversation in input.",
    "image": "Leave it out; images are passed on as they are.",
    "moderation": "Leave it out; moderate in the client.",
    "prompt": "Send the text itself in instructions and input.",
}
# How a chat says what is said here in another way, or asks for what a response has no place for.
_OF_CHATS = {
    "messages": "Use input.",
    "max_tokens": "Use max_output_tokens.",
    "max_completion_tokens": "Use max_output_tokens.",
    "response_format": "Use text.format.",
    "reasoning_effort": "Use reasoning.effort.",
    "verbosity": "Use text.verbosity.",
    "logprobs": 'Use include with "message.output_text.logprobs".',
    "functions": "Use tools.",
    "function_call": "Use tool_choice.",
    "n": "A response has one output; send several requests.",
    "audio": "A response has text.",
    "modalities": "A response has text.",
    "prompt_logprobs": "Use /v1/chat/completions for it.",
    "return_token_ids": "Use /v1/chat/completions for it.",
    "kv_transfer_params": "Use /v1/chat/completions for it.",
    "use_beam_search": "Use /v1/chat/completions for it.",
}
INCLUDABLE = (
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "web_search_call.action.sources",
    "web_search_call.results",
)
_LOGPROBS = "message.output_text.logprobs"
# Seconds that a background response may take, by `background_options.completion_window`.
_WINDOWS_S = {"soonest": None, "2h": 7_200.0, "8h": 28_800.0}
_TOP_LOGPROBS_MAX = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Translated:
    """A request to /v1/responses, read.

    Attributes:
        chat: the fields of the chat, without its messages.
        items: the input as a list of items.
        told: what the response object tells of the request.
        previous: the response that it goes on from; "" for none.
        within_s: how long it may take, where it says so.
        thoughts_of_turn: only reasoning of the present turn reaches the model.
    """

    chat: Json
    items: list[Any]
    told: Json
    previous: str
    background: bool
    stored: bool
    within_s: float | None
    instructions: str
    thoughts_of_turn: bool

    def messages(self, before: Sequence[Any] = ()) -> list[Json]:
        """The messages of the chat. Raises InvalidRequest.

        Args:
            before: the items of the conversation that it goes on from.
        """
        items = [*before, *self.items]
        begins = len(before)
        named = [
            (f"input[{number - begins}]" if number >= begins else "previous_response_id", item)
            for number, item in enumerate(items)
        ]
        first = last_user_number(items) if self.thoughts_of_turn else 0
        said = [{"role": "system", "content": self.instructions}] if self.instructions else []
        return [*said, *messages_of(named, thoughts_from=first)]


def translated(fields: Json, *, items_max: int) -> Translated:
    """Read a request. Raises InvalidRequest, naming the field and the remedy.

    Args:
        items_max: how many items its input may have.
    """
    _refuse(fields)
    background, stored = bd.flag(fields, "background"), _stored(fields)
    if background and not stored:
        remedy = "Leave store out: what is answered in the background is fetched later."
        raise InvalidRequest("store", "false together with background", remedy)
    previous = text_of(fields, "previous_response_id")
    instructions = text_of(fields, "instructions")
    items = _items(fields, items_max, optional=bool(previous))
    reasoning = _reasoning(fields)
    ours = (*HANDLED, *REFUSED)
    chat = {name: value for name, value in fields.items() if name not in ours}
    chat |= tools_of(fields) | format_of(fields) | _logprobs(fields)
    if reasoning.get("effort") is not None:
        chat["reasoning_effort"] = reasoning["effort"]
    limit = fields.get("max_output_tokens")
    if limit is not None:
        chat["max_completion_tokens"] = limit
    chat["stream"] = bd.flag(fields, "stream")
    return Translated(
        chat=chat,
        items=items,
        told=told(fields, stored=stored, background=background),
        previous=previous,
        background=background,
        stored=stored,
        within_s=_within_s(fields, background=background),
        instructions=instructions,
        thoughts_of_turn=reasoning.get("context") == "current_turn",
    )


def field_of(chat_field: str) -> str:
    """The name of a field of the chat as the client of a response knows it."""
    renamed = {
        "messages": "input",
        "max_completion_tokens": "max_output_tokens",
        "response_format": "text.format",
        "reasoning_effort": "reasoning.effort",
    }
    return renamed.get(chat_field, chat_field)


# --------------------------------------------------------------------------- fields


def _refuse(fields: Json) -> None:
    """Raise InvalidRequest for a field that is not served."""
    for name, remedy in (*REFUSED.items(), *_OF_CHATS.items()):
        if fields.get(name) is not None:
            raise InvalidRequest(name, "not served here", remedy, code="unsupported_parameter")
    if fields.get("truncation") not in (None, "disabled"):
        raise unsupported("truncation", fields["truncation"], "Send a shorter conversation.")
    options = object_of(fields, "stream_options")
    for name, value in options.items():
        if name != "include_obfuscation" or value not in (None, False):
            raise unsupported(f"stream_options.{name}", value, "Leave it out.")
    cache = object_of(fields, "prompt_cache_options")
    for name in ("prewarm", "comparison_response_id"):
        if cache.get(name) not in (None, False):
            raise unsupported(f"prompt_cache_options.{name}", cache[name], "Leave it out.")
    for number, name in enumerate(list_of(fields, "include")):
        if name not in INCLUDABLE:
            raise unsupported(f"include[{number}]", name, f"Use one of {', '.join(INCLUDABLE)}.")
    for name in ("temperature", "top_p"):
        if not isinstance(fields.get(name), int | float | None) or isinstance(
            fields.get(name), bool
        ):
            raise wrong(name, "must be a number")
    for name in ("max_output_tokens", "max_tool_calls"):
        value = fields.get(name)
        if value is not None and (
            not isinstance(value, int) or isinstance(value, bool) or value < 1
        ):
            problem = f"must be a whole number of at least 1, not {value!r:.40}"
            raise InvalidRequest(name, problem, "Correct it.")


def _stored(fields: Json) -> bool:
    return fields.get("store") is None or bd.flag(fields, "store")


def _items(fields: Json, items_max: int, *, optional: bool) -> list[Any]:
    said = fields.get("input")
    if said is None and optional:
        return []
    if said is None:
        raise InvalidRequest("input", "missing", "Give input.", code="missing_field")
    if isinstance(said, str):
        return [{"type": "message", "role": "user", "content": said}]
    if not isinstance(said, list):
        raise wrong("input", "must be text or a list of items")
    if not said and not optional:
        raise InvalidRequest("input", "empty", "Give a message.", code="empty_prompt")
    if len(said) > items_max:
        raise InvalidRequest(
            "input",
            f"has {len(said)} items, at most {items_max} are accepted",
            "Send fewer or raise gateway.limits.response_items_max.",
        )
    return said


def _reasoning(fields: Json) -> Json:
    reasoning = object_of(fields, "reasoning")
    for name, value in reasoning.items():
        # A summary is what OpenAI shows in place of the reasoning, which is shown here.
        if name in ("effort", "summary", "generate_summary") or value is None:
            continue
        known = {"mode": ("standard",), "context": ("auto", "all_turns", "current_turn")}
        if value not in known.get(name, ()):
            raise unsupported(f"reasoning.{name}", value, "Leave it out.")
    return reasoning


def _logprobs(fields: Json) -> Json:
    top = fields.get("top_logprobs")
    if top is None:
        return {"logprobs": True} if _LOGPROBS in list_of(fields, "include") else {}
    if not isinstance(top, int) or isinstance(top, bool) or not 0 <= top <= _TOP_LOGPROBS_MAX:
        raise InvalidRequest(
            "top_logprobs", f"must be 0 to {_TOP_LOGPROBS_MAX}, not {top!r:.32}", "Correct it."
        )
    return {"logprobs": True, "top_logprobs": top}


def _within_s(fields: Json, *, background: bool) -> float | None:
    options = object_of(fields, "background_options")
    for name, value in options.items():
        if name != "completion_window" and value is not None:
            raise unsupported(f"background_options.{name}", value, "Leave it out.")
    window = options.get("completion_window") or "soonest"
    if not isinstance(window, str) or window not in _WINDOWS_S:
        remedy = f"Use one of {', '.join(_WINDOWS_S)}, or the header x-qlm-slo-e2e-ms."
        raise unsupported("background_options.completion_window", window, remedy)
    within_s = _WINDOWS_S[window]
    if within_s is not None and not background:
        raise InvalidRequest(
            "background_options.completion_window",
            f"{window!r} without background",
            "Say background: true.",
        )
    return within_s
