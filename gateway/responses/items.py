"""Input items as the messages of a chat.

A turn of the assistant is several items here (thoughts, text, calls) and one message there, so items that follow on each
other are gathered. What has no counterpart in a chat is refused by its place, as in `input[3].content[0].type`; what is
told of an item beside its content (ids, status, phase, annotations, hints for OpenAI's caches) is of no use to an engine
and left out. Everything here is pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gateway.responses.fields import Json, missing, required_text, unsupported, wrong
from qlm_core.errors import InvalidRequest

# Templates know no developer, whom OpenAI's own API takes for the system where a model does.
_ROLES = {
    "user": "user",
    "assistant": "assistant",
    "system": "system",
    "developer": "system",
}
_REMEDY_ITEM = (
    "Send messages, function_call, function_call_output and reasoning items; leave this one out."
)
_REMEDY_PART = "Send input_text, input_image, input_audio, or input_file with file_data."
_REMEDY_FILE = "Send its content: image_url with a URL or a data URL, or file_data."


def messages_of(items: Iterable[tuple[str, Any]], *, thoughts_from: int = 0) -> list[Json]:
    """The messages of a conversation.

    Args:
        items: each with the name of the field that it stands in.
        thoughts_from: reasoning items before the one with this number are left out.

    Raises:
        InvalidRequest: naming the part of an item that has no counterpart.
    """
    chat = _Chat()
    for number, (field, item) in enumerate(items):
        if not isinstance(item, dict):
            raise wrong(field, "must be an object", 'Write {"role": "user", "content": "..."}.')
        kind = item.get("type") or "message"
        match kind:
            case "message" if "role" in item:
                _add_message(chat, field, item)
            case "function_call":
                _add_call(chat, field, item)
            case "function_call_output":
                _add_output(chat, field, item)
            case "reasoning":
                text = _thought(field, item)
                if number >= thoughts_from:
                    chat.think(text)
            case "message":
                raise missing(f"{field}.role")
            case _:
                raise unsupported(f"{field}.type", kind, _REMEDY_ITEM)
    chat.close()
    return chat.messages


def last_user_number(items: list[Any]) -> int:
    """The number of the last item that a user said; 0 where there is none."""
    numbers = [
        number
        for number, item in enumerate(items)
        if isinstance(item, dict) and item.get("role") == "user"
    ]
    return numbers[-1] if numbers else 0


class _Chat:
    """Messages so far, and the assistant's turn that is being gathered."""

    def __init__(self) -> None:
        self.messages: list[Json] = []
        self._turn: Json | None = None

    def add(self, message: Json) -> None:
        """A message of somebody else's."""
        self.close()
        self.messages.append(message)

    def think(self, text: str) -> None:
        """A thought before what the assistant says or calls next."""
        if not text:
            return
        turn = self._turn
        if turn is not None and (turn.get("content") is not None or "tool_calls" in turn):
            self.close()
        turn = self._begun()
        # Engines read the one name or the other.
        turn["reasoning"] = turn["reasoning_content"] = turn.get("reasoning", "") + text

    def say(self, content: Any, refusal: str) -> None:
        """A text of the assistant's."""
        turn = self._turn
        if turn is not None and (turn.get("content") is not None or "tool_calls" in turn):
            self.close()
        turn = self._begun()
        turn["content"] = content
        if refusal:
            turn["refusal"] = refusal

    def call(self, call: Json) -> None:
        """A call of the assistant's, together with those beside it."""
        self._begun().setdefault("tool_calls", []).append(call)

    def close(self) -> None:
        """The assistant's turn is over."""
        turn, self._turn = self._turn, None
        if turn is None:
            return
        if turn["content"] is None and "tool_calls" not in turn:
            turn["content"] = ""  # thoughts alone: its output ended in them
        self.messages.append(turn)

    def _begun(self) -> Json:
        if self._turn is None:
            self._turn = {"role": "assistant", "content": None}
        return self._turn


def _add_message(chat: _Chat, field: str, item: Json) -> None:
    said = item["role"]
    role = _ROLES.get(said) if isinstance(said, str) else None
    if role is None:
        remedy = "Say user, assistant, system or developer."
        raise InvalidRequest(f"{field}.role", f"{said!r:.32} is no role", remedy)
    content = item.get("content")
    if isinstance(content, list):
        parts, refusal = _parts(f"{field}.content", content)
        content = _shortest(parts)
    elif isinstance(content, str):
        refusal = ""
    else:
        raise wrong(f"{field}.content", "must be text or a list of parts")
    if role == "assistant":
        chat.say(content, refusal)
    elif refusal:
        raise unsupported(f"{field}.content", "refusal", "Only the assistant refuses.")
    else:
        chat.add({"role": role, "content": content})


def _add_call(chat: _Chat, field: str, item: Json) -> None:
    if item.get("namespace") is not None:
        raise unsupported(f"{field}.namespace", item["namespace"], "Call functions by their names.")
    function = {name: required_text(field, item, name) for name in ("name", "arguments")}
    chat.call(
        {"id": required_text(field, item, "call_id"), "type": "function", "function": function}
    )


def _add_output(chat: _Chat, field: str, item: Json) -> None:
    id, output = required_text(field, item, "call_id"), item.get("output")
    if isinstance(output, list):
        parts, refusal = _parts(f"{field}.output", output)
        if refusal:
            raise unsupported(f"{field}.output", "refusal", _REMEDY_PART)
        output = _shortest(parts)
    elif not isinstance(output, str):
        raise wrong(f"{field}.output", "must be text or a list of parts")
    chat.add({"role": "tool", "tool_call_id": id, "content": output})


def _thought(field: str, item: Json) -> str:
    """The text of a reasoning item. Raises InvalidRequest for one whose text nobody here can read."""
    content = item.get("content")
    if not content:
        if item.get("encrypted_content"):
            raise unsupported(
                f"{field}.encrypted_content",
                "encrypted reasoning",
                "Send reasoning items with their content as they came from here, or leave them out.",
            )
        return ""
    if not isinstance(content, list):
        raise wrong(f"{field}.content", "must be a list")
    texts = []
    for number, part in enumerate(content):
        text = part.get("text") if isinstance(part, dict) else None
        if not isinstance(text, str):
            raise wrong(f"{field}.content[{number}]", "must have a text")
        texts.append(text)
    return "".join(texts)


def _parts(field: str, content: list[Any]) -> tuple[list[Json], str]:
    """The parts of a message as a chat has them, and what was refused in it."""
    parts: list[Json] = []
    refusals: list[str] = []
    for number, part in enumerate(content):
        where = f"{field}[{number}]"
        if not isinstance(part, dict):
            raise wrong(where, "must be an object", _REMEDY_PART)
        match part.get("type"):
            case "input_text" | "output_text" | "text":
                parts.append({"type": "text", "text": required_text(where, part, "text")})
            case "refusal":
                refusals.append(required_text(where, part, "refusal"))
            case "input_image":
                parts.append(_image(where, part))
            case "input_audio":
                parts.append({"type": "input_audio", "input_audio": part.get("input_audio")})
            case "input_file":
                parts.append(_file(where, part))
            case kind:
                raise unsupported(f"{where}.type", kind, _REMEDY_PART)
    return parts, "".join(refusals)


def _image(field: str, part: Json) -> Json:
    if part.get("file_id") is not None:
        raise unsupported(f"{field}.file_id", part["file_id"], _REMEDY_FILE)
    image: Json = {"url": required_text(field, part, "image_url")}
    if part.get("detail") not in (None, "auto"):
        image["detail"] = part["detail"]
    return {"type": "image_url", "image_url": image}


def _file(field: str, part: Json) -> Json:
    for name in ("file_id", "file_url"):
        if part.get(name) is not None:
            raise unsupported(f"{field}.{name}", part[name], _REMEDY_FILE)
    file: Json = {"file_data": required_text(field, part, "file_data")}
    if part.get("filename") is not None:
        file["filename"] = part["filename"]
    return {"type": "file", "file": file}


def _shortest(parts: list[Json]) -> str | list[Json]:
    """Text alone as text, which every template takes."""
    if not parts:
        return ""
    if len(parts) == 1 and parts[0]["type"] == "text":
        text: str = parts[0]["text"]
        return text
    return parts
