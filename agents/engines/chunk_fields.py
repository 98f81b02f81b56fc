"""The fields of engine chunks that QLM works with: read as what they should be, or refused.

All other fields pass as they came. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agents.engines.lenient_json import Unreadable

Json = dict[str, Any]

COUNT_MAX = 2**31 - 1
_COUNTS = ("prompt_tokens", "completion_tokens", "total_tokens")


def usage_of(value: Any) -> Json | None:
    """Usage whose counts are counts; what is not is left out."""
    if type(value) is not dict:
        return None
    for key in _COUNTS:
        count = value.get(key)
        if type(count) is int and 0 <= count <= COUNT_MAX:
            continue
        if type(count) is float and count.is_integer() and 0 <= count <= COUNT_MAX:
            value[key] = int(count)
        elif key in value:
            del value[key]
    return value


def cached_tokens_of(usage: Any) -> int | None:
    """Tokens of the prompt that came from a cache, where the server says."""
    details = usage.get("prompt_tokens_details") if isinstance(usage, dict) else None
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    return cached if type(cached) is int and 0 <= cached <= COUNT_MAX else None


def only_choice(event: Json) -> Json | None:
    """The choice of an event that is about one, the first, which goes on; None for any other event."""
    choices = event.get("choices")
    if type(choices) is not list or len(choices) != 1 or event.get("error"):
        return None
    choice = choices[0]
    if type(choice) is not dict or choice.get("finish_reason"):
        return None
    index = choice.get("index")
    return choice if type(index) is int and not index else None


def is_text_alone(choice: Json, *, chat: bool) -> bool:
    """Whether a choice has text and nothing beside it."""
    if not chat:
        text = choice.get("text")
        return type(text) is str and text != ""
    delta = choice.get("delta")
    if type(delta) is not dict or len(delta) != 1:
        return False
    content = delta.get("content")
    return type(content) is str and content != ""


def ids_of(choice: Json) -> list[int]:
    ids = choice.get("token_ids")
    return ids if isinstance(ids, list) and ids and are_ids(ids) else []


def are_ids(ids: list[Any]) -> bool:
    return all(type(id) is int and 0 <= id <= COUNT_MAX for id in ids)


def content_of(choice: Json, *, chat: bool) -> tuple[str, bool, bool]:
    """The text of a choice, whether it is nothing but text, and whether it carries output at all. Raises Unreadable."""
    if not chat:
        text = choice.get("text")
        if text is None:
            text = choice["text"] = ""
        if not isinstance(text, str):
            raise Unreadable("text that is no text")
        return text, True, bool(text)
    delta = choice.get("delta")
    if delta is None:
        # Some servers end a stream with the whole message, or send nothing but that.
        delta = choice.pop("message", None) or {}
        choice["delta"] = delta
    if not isinstance(delta, dict):
        raise Unreadable("a delta that is no JSON object")
    if not isinstance(delta.get("role", ""), str):
        delta["role"] = "assistant"
    text = delta.get("content")
    if isinstance(text, list):
        text = delta["content"] = _joined(text)
    if text is not None and not isinstance(text, str):
        raise Unreadable("content that is no text")
    calls = delta.get("tool_calls")
    if calls is not None and not (
        isinstance(calls, list) and all(isinstance(call, Mapping) for call in calls)
    ):
        raise Unreadable("tool calls that are no list of JSON objects")
    beyond = any(value for key, value in delta.items() if key not in ("role", "content"))
    return text or "", not beyond, bool(text) or beyond


def without_role(choice: Json) -> bool:
    """Take the role from the delta of a continued attempt, whose client has it; whether anything else is there."""
    delta = choice.get("delta")
    if not isinstance(delta, dict) or delta.pop("role", None) is None:
        return True
    return any(delta.values()) or bool(choice.get("finish_reason"))


def empty(fields: Json, name: str) -> None:
    if name in fields:
        fields[name] = None


def _joined(parts: list[Any]) -> str:
    """The text of content that came in parts. Raises Unreadable if it has other parts."""
    texts: list[str] = []
    for part in parts:
        text = part.get("text") if isinstance(part, Mapping) else part
        if not isinstance(text, str):
            raise Unreadable("content with parts that are no text")
        texts.append(text)
    return "".join(texts)


def chat_logprobs(logprobs: Json, top: int) -> Json:
    """A completion's log-probabilities as a chat has them."""
    tokens = _list(logprobs, "tokens")
    chosen = _list(logprobs, "token_logprobs") or [None] * len(tokens)
    tops = _list(logprobs, "top_logprobs") or [None] * len(tokens)
    content = []
    for token, logprob, others in zip(tokens, chosen, tops, strict=False):
        best = list(others.items())[:top] if isinstance(others, dict) else []
        alternatives = [_logprob(*other) for other in best]
        content.append(_logprob(str(token), logprob) | {"top_logprobs": alternatives})
    return {"content": content}


def move_offsets(logprobs: Json, chars: int) -> None:
    """Count the text offsets of log-probabilities from so many characters earlier."""
    offsets = _list(logprobs, "text_offset")
    logprobs["text_offset"] = [
        offset + chars if type(offset) is int else offset for offset in offsets
    ]


def _list(fields: Json, name: str) -> list[Any]:
    value = fields.get(name)
    return value if isinstance(value, list) else []


def _logprob(token: str, logprob: Any) -> Json:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode("utf-8", "replace"))}
