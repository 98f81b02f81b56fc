"""OpenAI's shapes, read and written: chunks and whole answers.

Engines send chunk objects of many origins. What leaves the gateway is uniform: one id, one creation time and one
model name per request, over all its attempts, and token usage from the ledger. Everything here is pure.
"""

from __future__ import annotations

from typing import Any

import msgspec

from qlm_core.errors import QlmError
from qlm_core.ledger import EndRecord

Json = dict[str, Any]

DONE_EVENT = b"data: [DONE]\n\n"

_decode_shallow = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode = msgspec.json.Decoder().decode
encode = msgspec.json.Encoder().encode


def parse(data: bytes) -> Any:
    """JSON of our own making; None for nothing."""
    return _decode(data) if data else None


# The gateway's own words in an answer; an engine's are overwritten.
_OURS = frozenset({"id", "object", "created", "model", "service_tier", "usage", "choices"})
# Parts of a chat delta that come whole; every other text comes in pieces.
_WHOLE = frozenset({"role", "id", "type", "name"})


class BadChunkError(QlmError):
    """An engine sent something that is not a chunk of OpenAI's shape."""


class Framer:
    """Gives the chunks of one request their common head."""

    def __init__(
        self, *, id: str, chat: bool, created: int, model: str, service_tier: str, usage: bool
    ) -> None:
        kind = "chat.completion.chunk" if chat else "text_completion"
        head: Json = {"id": id, "object": kind, "created": created, "model": model}
        if service_tier:
            head["service_tier"] = service_tier
        if usage:
            head["usage"] = None
        self._head = {key: msgspec.Raw(encode(value)) for key, value in head.items()}

    def frame(self, data: bytes) -> bytes:
        """An engine's chunk as the client gets it; b"" if there is nothing in it for the client.

        Raises BadChunkError if it is not a JSON object.
        """
        try:
            chunk = _decode_shallow(data)
        except msgspec.DecodeError as error:
            raise BadChunkError(f"an engine sent a chunk that cannot be read ({error})") from None
        if chunk.get("choices", _EMPTY_LIST) == _EMPTY_LIST:
            return b""
        chunk.pop("usage", None)
        chunk.update(self._head)
        return encode(chunk)

    def usage(self, record: EndRecord) -> bytes:
        """The chunk that reports token usage, the last of a stream that asked for it."""
        return encode(self._head | {"choices": [], "usage": usage_of(record)})


_EMPTY_LIST = msgspec.Raw(b"[]")


class Answer:
    """The output of one request, folded together from its chunks."""

    def __init__(self, *, chat: bool) -> None:
        self._chat = chat
        self._extra: Json = {}
        self._choices: dict[int, Json] = {}

    def fold(self, data: bytes) -> None:
        """Add a chunk. Raises BadChunkError if it is not of OpenAI's shape."""
        try:
            self._fold(_decode(data))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise BadChunkError(f"an engine sent a chunk that cannot be read ({error})") from None

    def _fold(self, chunk: Json) -> None:
        for key, value in chunk.items():
            if key not in _OURS and value is not None:
                self._extra[key] = value
        for choice in chunk.get("choices") or ():
            self._fold_choice(choice)

    def _fold_choice(self, choice: Json) -> None:
        index = choice.get("index", 0)
        whole = self._choices.setdefault(index, {"index": index})
        for key, value in choice.items():
            if key == "delta":
                _join(whole.setdefault("message", {}), value or {})
            elif key == "text":
                whole["text"] = whole.get("text", "") + (value or "")
            elif key == "logprobs":
                if value is not None:
                    _join(whole.setdefault("logprobs", {}), value)
            elif key == "token_ids":
                whole.setdefault(key, []).extend(value or ())
            elif key != "index" and value is not None:
                whole[key] = value

    @property
    def text(self) -> str:
        """The text of the first choice."""
        choice = self._choices.get(0, {})
        found = choice.get("message", {}).get("content") if self._chat else choice.get("text")
        return found or ""

    @property
    def is_text_only(self) -> bool:
        """Whether another engine can continue it: one choice, of nothing but text."""
        for index, choice in self._choices.items():
            message = choice.get("message", {})
            if (
                index
                or choice.get("logprobs")
                or any(value for key, value in message.items() if key not in ("role", "content"))
            ):
                return False
        return True

    @property
    def unfinished(self) -> list[int]:
        """Choices that have not been given a finish_reason."""
        choices = self._choices or {0: {}}
        return [index for index, choice in choices.items() if not choice.get("finish_reason")]

    def finish(self, reason: str) -> bytes:
        """A chunk that ends every unfinished choice; b"" if there is none."""
        body: Json = {"delta": {}} if self._chat else {"text": ""}
        choices = [{"index": index, **body, "finish_reason": reason} for index in self.unfinished]
        return encode({"choices": choices}) if choices else b""

    def chunk(self) -> bytes:
        """Everything so far as one chunk; b"" if there is nothing."""
        if not self._choices:
            return b""
        choices = []
        for whole in self._choices.values():
            choice: Json = {"finish_reason": None} | whole
            if self._chat:
                choice["delta"] = choice.pop("message", {})
            choices.append(choice)
        return encode(self._extra | {"choices": choices})

    def response(
        self, *, id: str, created: int, model: str, service_tier: str, record: EndRecord
    ) -> bytes:
        """The whole as an OpenAI response object."""
        choices = []
        for whole in (self._choices or {0: {"index": 0}}).values():
            choice: Json = {"logprobs": None, "finish_reason": record.reason} | whole
            if self._chat:
                choice["message"] = _message(choice.get("message", {}))
            else:
                choice.setdefault("text", "")
            choices.append(choice)
        head: Json = {
            "id": id,
            "object": "chat.completion" if self._chat else "text_completion",
            "created": created,
            "model": model,
            "choices": sorted(choices, key=lambda choice: choice["index"]),
            "usage": usage_of(record),
        }
        if service_tier:
            head["service_tier"] = service_tier
        return encode(head | self._extra)


def _message(joined: Json) -> Json:
    """A chat message from its joined deltas."""
    message: Json = {"role": "assistant", "content": None} | joined
    calls = message.get("tool_calls")
    if calls:
        message["tool_calls"] = [
            {key: value for key, value in call.items() if key != "index"} for call in calls
        ]
    elif message["content"] is None:
        message["content"] = ""
    return message


def _join(whole: Json, part: Json) -> None:
    """Fold one delta into what came before it: text and lists grow, the rest is replaced."""
    for key, value in part.items():
        if value is None:
            whole.setdefault(key, None)
        elif key == "tool_calls":
            whole[key] = _join_calls(whole.get(key) or [], value)
        elif isinstance(value, str) and key not in _WHOLE:
            whole[key] = (whole.get(key) or "") + value
        elif isinstance(value, list):
            whole[key] = (whole.get(key) or []) + value
        elif isinstance(value, dict):
            if not isinstance(whole.get(key), dict):
                whole[key] = {}
            _join(whole[key], value)
        else:
            whole[key] = value


def _join_calls(whole: list[Json], parts: list[Json]) -> list[Json]:
    for part in parts:
        index = part.get("index")
        if index is None:
            index = len(whole)
        call = next((call for call in whole if call["index"] == index), None)
        if call is None:
            call = {"index": index}
            whole.append(call)
        _join(call, part)
    return whole


def strip_roles(data: bytes) -> bytes:
    """A chunk of a continued attempt without the roles, which the client has; b"" if empty then."""
    chunk = _decode(data)
    choices = []
    for choice in chunk.get("choices") or ():
        delta = choice.get("delta")
        had_role = isinstance(delta, dict) and delta.pop("role", None) is not None
        if not had_role or any(delta.values()) or choice.get("finish_reason"):
            choices.append(choice)
    return encode(chunk | {"choices": choices}) if choices else b""


def chunk_of(response: bytes, *, chat: bool) -> bytes:
    """A whole answer as a single chunk, for who follows a request that has ended."""
    answer = _decode(response)
    for choice in answer["choices"] if chat else ():
        message = choice.pop("message")
        for index, call in enumerate(message.get("tool_calls") or ()):
            call["index"] = index
        choice["delta"] = message
    answer["object"] = "chat.completion.chunk" if chat else "text_completion"
    answer.pop("usage", None)
    return encode(answer)


def usage_of(record: EndRecord) -> Json:
    """Token usage in OpenAI's words."""
    return {
        "prompt_tokens": record.prompt_tokens,
        "completion_tokens": record.output_tokens,
        "total_tokens": record.prompt_tokens + record.output_tokens,
    }


def event(data: bytes) -> bytes:
    """A server-sent event."""
    return b"data: %b\n\n" % data
