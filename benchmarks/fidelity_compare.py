"""Where two answers to one request differ: whole answers field by field, streams folded and by the shape of their chunks.

Pure. Of an answer's own words only ids, times and measurements may differ, which are masked (their presence counts), and
`service_tier`, which is left out. How a stream is cut into chunks may differ, since a server merges tokens when its
client or itself is slow; joined texts and lists, and which keys chunks have (any, the
last of a choice, the one with the usage), may not. Of errors, status and message are compared: type and code
are each server's own words. An error which QLM refuses itself, with one of its own codes, is compared by status alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Json = Any

ABSENT = "<absent>"
_MASKED = {"id": "<id>", "created": "<time>", "metrics": "<measurements>"}
_LEFT_OUT = ("service_tier",)
_SHOWN_CHARS = 70
_DONE = "[DONE]"
# What QLM calls the mistakes that it refuses at the door.
_OUR_CODES = (
    "missing_field",
    "invalid_type",
    "invalid_value",
    "empty_prompt",
    "invalid_json",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back: of a stream its events, in order; else the body.

    Attributes:
        body: decoded JSON, or the text if it is none; None of a stream.
        events: decoded events of a stream; `[DONE]` is kept as text.
    """

    status: int
    content_type: str
    body: Json = None
    events: Sequence[Json] = field(default=())


@dataclass(frozen=True, slots=True)
class Difference:
    """A place in the answer, and what either side has there, shortened."""

    path: str
    direct: str
    through: str

    def __str__(self) -> str:
        return f"{self.path}: {self.direct} | {self.through}"


def events_of(text: str) -> list[Json]:
    """The events of a server-sent stream; one that is not JSON is kept as text."""
    found: list[Json] = []
    for line in text.split("\n"):
        if line.startswith("data:"):
            data = line[5:].strip()
            try:
                found.append(json.loads(data))
            except ValueError:
                found.append(data)
    return found


def differences(direct: Answer, through: Answer) -> list[Difference]:
    """Every difference between an answer and the same with QLM in between.

    Answers of different status or form (error, whole, stream) differ in that alone.
    """
    one, other = comparable(direct), comparable(through)
    if one["status"] != other["status"] or one.keys() != other.keys():
        return [Difference("status", _summary(one), _summary(other))]
    if "error" in other and _refused_at_the_door(through.body):
        return []
    return list(_differ("", one, other))


def comparable(answer: Answer) -> dict[str, Json]:
    """What of an answer has to be equal.

    A stream that begins with an error event is that error: who has not sent a status line yet can send the right one.
    """
    head: dict[str, Json] = {"status": answer.status}
    if answer.status != 200:
        return head | {"error": _message_of(answer.body)}
    first = answer.events[0] if answer.events else None
    if isinstance(first, dict) and first.get("error"):
        return {"status": first["error"].get("code", 500), "error": _message_of(first)}
    head["content_type"] = answer.content_type
    if answer.body is not None:
        return head | {"body": _masked(answer.body)}
    return head | folded(answer.events)


def _refused_at_the_door(body: Json) -> bool:
    """Whether QLM refused a request itself, in its own words: one that no engine could take should not wait to be told so."""
    error = body.get("error") if isinstance(body, dict) else None
    return isinstance(error, dict) and error.get("code") in _OUR_CODES


def _summary(whole: dict[str, Json]) -> str:
    """Status and form of an answer, and the message of an error."""
    if "error" in whole:
        return _short(f"{whole['status']} {json.dumps(whole['error'], ensure_ascii=False)}")
    return f"{whole['status']} {'whole' if 'body' in whole else 'stream'}"


def folded(events: Sequence[Json]) -> dict[str, Json]:
    """A stream's choices put together, its usage, its other words and the shapes of its chunks."""
    stream = _Stream()
    for event in events:
        stream.take(event)
    return stream.whole()


def _message_of(body: Json) -> Json:
    error = body.get("error", body) if isinstance(body, dict) else body
    return error.get("message", error) if isinstance(error, dict) else error


def _masked(body: Json) -> Json:
    """A whole answer without what may differ."""
    if not isinstance(body, dict):
        return body
    whole: dict[str, Json] = {k: _MASKED.get(k, v) for k, v in body.items() if k not in _LEFT_OUT}
    if isinstance(whole.get("choices"), list):
        whole["choices"] = [_without_call_ids(choice) for choice in whole["choices"]]
    return whole


def _without_call_ids(choice: Json) -> Json:
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict) or not message.get("tool_calls"):
        return choice
    calls = [call | {"id": "<id>"} if call.get("id") else call for call in message["tool_calls"]]
    return choice | {"message": message | {"tool_calls": calls}}


class _Stream:
    """Takes the events of a stream and folds them."""

    def __init__(self) -> None:
        self._choices: dict[int, dict[str, Json]] = {}
        self._words: dict[str, list[Json]] = {}
        self._masked: dict[str, list[Json]] = {}
        self._usage: list[Json] = []
        self._running_usage: dict[int, Json] = {}
        self._shapes: dict[str, dict[str, None]] = {}
        self._errors: list[Json] = []
        self._done = 0
        self._after_done = 0
        self._unreadable = 0

    def take(self, event: Json) -> None:
        self._after_done += self._done > 0
        if event == _DONE:
            self._done += 1
        elif not isinstance(event, dict):
            self._unreadable += 1
        elif event.get("error") is not None:
            self._errors.append(_message_of(event))
        else:
            self._chunk(event)

    def whole(self) -> dict[str, Json]:
        return {
            "choices": {str(index): self._choices[index] for index in sorted(self._choices)},
            "chunk": {
                key: values[0] if len(values) == 1 else values
                for key, values in self._words.items()
            },
            # One id and one time for the whole stream.
            "heads": {key: len(values) for key, values in self._masked.items()},
            "usage": self._usage,
            "running_usage": {str(i): usage for i, usage in sorted(self._running_usage.items())},
            "shape": {kind: sorted(keys) for kind, keys in self._shapes.items()},
            "errors": self._errors,
            "done": self._done,
            "after_done": self._after_done,
            "unreadable": self._unreadable,
        }

    def _chunk(self, chunk: dict[str, Json]) -> None:
        choices = chunk.get("choices") or []
        kinds = [self._choice(choice) for choice in choices] or ["usage"]
        for key, value in chunk.items():
            if key in _LEFT_OUT:
                continue
            for kind in kinds:
                self._shape(kind, f"{key}:null" if key == "usage" and value is None else key)
            if key in _MASKED:
                _add_new(
                    self._masked.setdefault(key, []), _MASKED[key] if key == "metrics" else value
                )
            elif key not in ("choices", "usage"):
                _add_new(self._words.setdefault(key, []), value)
        if "usage" in chunk and not choices:
            self._usage.append(chunk["usage"])
        elif chunk.get("usage") is not None:
            self._running_usage[choices[0].get("index", 0)] = chunk["usage"]

    def _shape(self, kind: str, key: str) -> None:
        for shape in (kind, "any") if kind == "last" else (kind,):
            self._shapes.setdefault(shape, {})[key] = None

    def _choice(self, choice: dict[str, Json]) -> str:
        """Fold a choice of a chunk into what came before it; returns which kind of chunk it is."""
        index = choice.get("index", 0)
        kind = "any" if choice.get("finish_reason") is None else "last"
        whole = self._choices.setdefault(index, {})
        for key, value in choice.items():
            self._shape(kind, f"choices.{key}")
            if key == "delta":
                for name in value or {}:
                    # Whether the last chunk has text of its own is a matter of how the stream is cut.
                    self._shape("any", f"choices.delta.{name}")
                _join(whole.setdefault("delta", {}), value or {})
            elif key in ("finish_reason", "stop_reason"):
                if value is not None:
                    whole.setdefault(key, []).append(value)
            elif key != "index":
                _join(whole, {key: value})
        return kind


def _join(whole: dict[str, Json], part: Mapping[str, Json]) -> None:
    """Texts and lists grow; of numbers and the like the last counts."""
    for key, value in part.items():
        if value is None:
            whole.setdefault(key, None)
        elif key == "role":
            whole[key] = [*(whole.get(key) or []), value]
        elif key == "tool_calls":
            whole[key] = _join_calls(whole.get(key) or {}, value)
        elif isinstance(value, str):
            whole[key] = (whole.get(key) or "") + value
        elif isinstance(value, list):
            whole[key] = (whole.get(key) or []) + value
        elif isinstance(value, dict):
            whole[key] = whole.get(key) or {}
            _join(whole[key], value)
        else:
            whole[key] = value


def _join_calls(whole: dict[str, Json], parts: Sequence[Json]) -> dict[str, Json]:
    """Calls of tools by their index; an id counts by being there, a name and a type by being said once."""
    for part in parts:
        call = whole.setdefault(str(part.get("index")), {})
        for key, value in part.items():
            if key == "id":
                call["ids"] = call.get("ids", 0) + (1 if value else 0)
            elif key == "function":
                _join(call.setdefault("function", {}), value or {})
            elif key != "index":
                _join(call, {key: value})
    return whole


def _add_new(values: list[Json], value: Json) -> None:
    if value not in values:
        values.append(value)


def _differ(path: str, direct: Json, through: Json) -> Iterator[Difference]:
    if isinstance(direct, dict) and isinstance(through, dict):
        for key in [*direct, *(key for key in through if key not in direct)]:
            inner = f"{path}.{key}" if path else str(key)
            yield from _differ(inner, direct.get(key, ABSENT), through.get(key, ABSENT))
    elif isinstance(direct, list) and isinstance(through, list):
        yield from _differ_lists(path, direct, through)
    elif type(direct) is not type(through) or not _same(direct, through):
        yield Difference(path, *_shown(direct, through))


def _differ_lists(path: str, direct: list[Any], through: list[Any]) -> Iterator[Difference]:
    """The lengths and the first item that differs: a list that has slipped differs everywhere behind it."""
    if all(isinstance(item, str) for item in [*direct, *through]):
        if direct != through:
            gone = [item for item in direct if item not in through]
            new = [item for item in through if item not in direct]
            shown = (gone, new) if gone or new else (direct, through)
            yield Difference(path, *(_short(json.dumps(part)) for part in shown))
        return
    if len(direct) != len(through):
        yield Difference(f"{path}.length", str(len(direct)), str(len(through)))
    for index, (one, other) in enumerate(zip(direct, through, strict=False)):
        found = list(_differ(f"{path}.{index}", one, other))
        if found:
            yield from found
            return


def _same(direct: Json, through: Json) -> bool:
    # NaN, which servers do send, equals itself here.
    if isinstance(direct, float) and math.isnan(direct):
        return math.isnan(through)
    return bool(direct == through)


def _shown(direct: Json, through: Json) -> tuple[str, str]:
    """Both values, long texts from shortly before where they part."""
    if isinstance(direct, str) and isinstance(through, str) and ABSENT not in (direct, through):
        pairs = zip(direct, through, strict=False)
        parted = next(
            (i for i, (a, b) in enumerate(pairs) if a != b), min(len(direct), len(through))
        )
        start = max(0, parted - 15) if max(len(direct), len(through)) > _SHOWN_CHARS else 0
        lead = "…" if start else ""
        return (
            lead + _short(json.dumps(direct[start:], ensure_ascii=False)),
            lead + _short(json.dumps(through[start:], ensure_ascii=False)),
        )
    return _short(_text(direct)), _short(_text(through))


def _text(value: Json) -> str:
    return value if value == ABSENT else json.dumps(value, ensure_ascii=False)


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 1] + "…"
