"""The output of one request, put together from its chunks.

A chunk has OpenAI's shape or is refused as a whole. Beyond that folding is total: a later value that does not fit an
earlier one takes its place. Fields that we do not know are kept, empty ones included.
"""

from __future__ import annotations

from typing import Any, TypeGuard

import msgspec

from gateway import turns as tn
from qlm_core.errors import QlmError
from qlm_core.ledger import EndRecord
from qlm_core.resume import ResumedBy

Json = dict[str, Any]

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode

# More characters than any output has, and few enough for a message to an agent.
OFFSET_MAX = 2**31 - 1
# The gateway's own words in an answer; an engine's are overwritten.
_OURS = frozenset(
    {"id", "object", "created", "model", "service_tier", "usage", "choices", tn.FIELD}
)
# Parts of a message that come whole, once; every other text comes in pieces.
_WHOLE = frozenset({"role", "id", "type", "name"})


class BadChunkError(QlmError):
    """An engine sent something that is not a chunk of OpenAI's shape."""


class Answer:
    """The output of one request, folded together from its chunks.

    Args:
        in_turns: it is read as parts in order, so what is folded says where that is not the usual one.
    """

    def __init__(self, *, chat: bool, in_turns: bool = False) -> None:
        self._chat = chat
        self._turns = tn.Turns() if in_turns else None
        self._came_whole = False
        self._extra: Json = {}
        self._usage: Json = {}
        self._choices: dict[int, Json] = {}

    def fold(self, data: bytes, *, whole: bool = False) -> None:
        """Add a chunk, or all of an answer at once. Raises BadChunkError if it is not of OpenAI's shape."""
        self._came_whole |= whole
        try:
            chunk = _decode(data)
            if not _is_chunk(chunk):
                raise BadChunkError("an engine sent a chunk that is not of OpenAI's shape")
            self._fold(chunk)
        except (ValueError, RecursionError) as error:
            raise BadChunkError(f"an engine sent a chunk that cannot be read ({error})") from None

    def _fold(self, chunk: Json) -> None:
        for key, value in chunk.items():
            if key not in _OURS:
                _replace(self._extra, key, value)
        if isinstance(chunk.get("usage"), dict):
            self._usage = _over(self._usage, chunk["usage"])
        for choice in chunk.get("choices") or ():
            self._fold_choice(choice, chunk)

    def _fold_choice(self, choice: Json, chunk: Json) -> None:
        index = choice.get("index", 0)
        whole = self._choices.setdefault(index, {"index": index})
        for key, value in choice.items():
            if key == "delta":
                message = whole.setdefault("message", {})
                calls = _calls(message)
                _join(message, value or {})
                if self._turns is not None and value and index == 0:
                    begun = _calls(message) - calls
                    told = tn.told_in(chunk)
                    self._turns.add(tn.usual(tn.texts_of(value), begun) if told is None else told)
            elif key == "text":
                whole["text"] = whole.get("text", "") + (value or "")
            elif key == "logprobs" and isinstance(value, dict):
                if not isinstance(whole.get(key), dict):
                    whole[key] = {}
                _join(whole[key], value)
            elif key == "token_ids" and isinstance(value, list):
                before = whole.get(key)
                whole[key] = [*before, *value] if isinstance(before, list) else value
            elif key == "message" and value is None:
                continue  # from a server that names every field
            elif key != "index":
                _replace(whole, key, value)

    @property
    def text(self) -> str:
        """The text of the first choice."""
        choice = self._choices.get(0, {})
        found = choice.get("message", {}).get("content") if self._chat else choice.get("text")
        return found or ""

    @property
    def text_offset_chars(self) -> int:
        """Where an engine would say that the text of the next token begins; 0 where none says so."""
        logprobs = self._choices.get(0, {}).get("logprobs")
        if not isinstance(logprobs, dict):
            return 0
        offsets, tokens = logprobs.get("text_offset"), logprobs.get("tokens")
        if not (isinstance(offsets, list) and offsets and isinstance(tokens, list) and tokens):
            return 0
        last = offsets[-1]
        if not isinstance(last, int) or not 0 <= last <= OFFSET_MAX:
            return 0
        return last + len(str(tokens[-1]))

    @property
    def unfinished(self) -> list[int]:
        """Choices that have not been given a finish_reason."""
        choices = self._choices or {0: {}}
        return [index for index, choice in choices.items() if not choice.get("finish_reason")]

    def finish(self, reason: str) -> bytes:
        """A chunk that ends every unfinished choice; b"" if there is none."""
        body: Json = {"delta": {}} if self._chat else {"text": ""}
        choices = [{"index": index, **body, "finish_reason": reason} for index in self.unfinished]
        return _encode({"choices": choices}) if choices else b""

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
        usage = {"usage": self._usage} if self._usage else {}
        return _encoded(self._extra | usage | self._told_turns() | {"choices": choices})

    def response(
        self, *, id: str, created: int, model: str, service_tier: str, record: EndRecord
    ) -> bytes:
        """The whole as an OpenAI response object."""
        choices = []
        for whole in (self._choices or {0: {"index": 0}}).values():
            choice: Json = {"logprobs": None, "finish_reason": record.reason} | whole
            if self._chat:
                message = choice.get("message", {})
                choice["message"] = message if self._came_whole else _message(message)
                _number_no_calls(choice["message"])
            else:
                choice.setdefault("text", "")
            choices.append(choice)
        head: Json = {
            "id": id,
            "object": "chat.completion" if self._chat else "text_completion",
            "created": created,
            "model": model,
            "choices": sorted(choices, key=lambda choice: choice["index"]),
            "usage": usage_of(record, self._usage),
        }
        if service_tier:
            head["service_tier"] = service_tier
        return _encoded(head | self._extra | closing_extra(record) | self._told_turns())

    def _told_turns(self) -> Json:
        return {} if self._turns is None else self._turns.told()


def usage_of(record: EndRecord, before: Json | None = None) -> Json:
    """Token usage: the engine's words, the ledger's sums over all attempts.

    An answer of one attempt is counted by its engine alone.

    Args:
        before: what was said of usage while the output came.
    """
    said = _closing(record).get("usage")
    usage = _over(before or {}, said if isinstance(said, dict) else {})
    counted = {
        "prompt_tokens": record.prompt_tokens,
        "completion_tokens": record.output_tokens,
        "total_tokens": record.prompt_tokens + record.output_tokens,
    }
    if record.resumed_by is not ResumedBy.NOTHING or not isinstance(said, dict):
        usage |= counted
        details = usage.get("prompt_tokens_details")
        if isinstance(details, dict) and isinstance(details.get("cached_tokens"), int):
            # Of a continued attempt, what was produced before is among the cached tokens.
            cached = min(details["cached_tokens"], record.prompt_tokens)
            usage["prompt_tokens_details"] = details | {"cached_tokens": cached}
        return usage
    return counted | usage


def closing_extra(record: EndRecord) -> Json:
    """What the engine's last word has beside usage and the gateway's own words."""
    closing = _closing(record)
    return {key: value for key, value in closing.items() if key not in _OURS and value is not None}


def _over(below: Json, above: Json) -> Json:
    """Fields over other fields, and details over details.

    Details that only `below` has become null: below is a shape, and an answer without details shows null.
    """
    whole = {**below, **above}
    for key, value in below.items():
        if isinstance(value, dict):
            details = above.get(key)
            whole[key] = {**value, **details} if isinstance(details, dict) else details
    return whole


def _is_chunk(chunk: Any) -> bool:
    """Whether a chunk has the parts that are worked with here, each of its kind."""
    choices = chunk.get("choices") if isinstance(chunk, dict) else 0
    return choices is None or (isinstance(choices, list) and all(map(_is_choice, choices)))


def _is_choice(choice: Any) -> bool:
    if not isinstance(choice, dict) or not isinstance(choice.get("index", 0), int):
        return False
    return (
        _is_message(choice.get("delta"))
        and _is_message(choice.get("message"))
        and isinstance(choice.get("text") or "", str)
    )


def _is_message(part: Any) -> bool:
    """Whether this is nothing, or a message or a piece of one."""
    if not isinstance(part, dict):
        return part is None
    content, calls = part.get("content"), part.get("tool_calls")
    return (content is None or isinstance(content, str)) and (
        calls is None or _is_list_of(calls, dict)
    )


def _is_list_of(value: Any, kind: type) -> TypeGuard[list[Any]]:
    return isinstance(value, list) and all(isinstance(item, kind) for item in value)


def _encoded(whole: Json) -> bytes:
    """What was put together, as JSON. Raises BadChunkError for what is nested too deeply."""
    try:
        return _encode(whole)
    except RecursionError as error:
        raise BadChunkError(f"an engine's answer cannot be written ({error})") from None


def _closing(record: EndRecord) -> Json:
    """What came beside output at the end; nothing if that cannot be read, for the answer stands without it."""
    try:
        closing = _decode(record.closing) if record.closing else {}
    except (ValueError, RecursionError):
        closing = {}
    return closing if isinstance(closing, dict) else {}


def _message(joined: Json) -> Json:
    """A chat message from its joined deltas."""
    message: Json = {"role": "assistant", "content": None} | joined
    if message.get("tool_calls"):
        # A stream begins with empty content; in a whole answer a tool call has none.
        message["content"] = message["content"] or None
    elif message["content"] is None:
        message["content"] = ""
    return message


def _number_no_calls(message: Json) -> None:
    """Leave out of tool calls what numbers them in a stream."""
    calls = message.get("tool_calls")
    if isinstance(calls, list):
        message["tool_calls"] = [
            {key: value for key, value in call.items() if key != "index"} for call in calls
        ]


def _calls(message: Json) -> int:
    """The calls that have begun, which they have with their name: what goes on with one may stand alone."""
    calls = message.get("tool_calls")
    return sum(map(tn.is_named, calls)) if _is_list_of(calls, dict) else 0


def _replace(whole: Json, key: str, value: Any) -> None:
    """Take a value over, but never nothing for something."""
    if value is not None or key not in whole:
        whole[key] = value


def _join(whole: Json, part: Json) -> None:
    """Fold one delta into what came before it: text and lists grow, the rest is replaced."""
    for key, value in part.items():
        before = whole.get(key)
        if key == "tool_calls" and isinstance(value, list):
            whole[key] = join_calls(before if _is_list_of(before, dict) else [], value)
        elif key in _WHOLE and isinstance(value, str):
            whole[key] = before or value
        elif _grow(whole, key, value):
            continue
        elif isinstance(value, dict):
            joined = whole[key] = before if isinstance(before, dict) else {}
            _join(joined, value)
        else:
            _replace(whole, key, value)


def _grow(whole: Json, key: str, value: Any) -> bool:
    """Put text behind text, or a list behind a list; whether it was one of these."""
    before = whole.get(key)
    if isinstance(value, str) and isinstance(before, str):
        whole[key] = before + value
        return True
    if isinstance(value, list) and isinstance(before, list):
        whole[key] = before + value
        return True
    return False


def join_calls(whole: list[Json], parts: list[Any]) -> list[Json]:
    """Fold deltas of tool calls into the calls that they belong to."""
    for part in parts:
        if not isinstance(part, dict):
            continue
        call = _call_of(whole, part)
        if call is None:
            call = {"index": len(whole)} | (
                {"index": part["index"]} if isinstance(part.get("index"), int) else {}
            )
            whole.append(call)
        # What came in a whole message has no number.
        index = call["index"] if "index" in call else whole.index(call)
        _join(call, {key: value for key, value in part.items() if key != "index"})
        call["index"] = index
    return whole


def _call_of(calls: list[Json], part: Json) -> Json | None:
    """The call that a delta goes on with; None for a new one.

    Servers differ: some repeat id and name, some send them empty, some leave the index out, and some begin another call under
    the same index. What names a function under another id is another call.
    """
    index, id = part.get("index"), part.get("id")
    function = part.get("function")
    names = isinstance(function, dict) and bool(function.get("name"))
    if isinstance(index, int):
        call = next((call for call in reversed(calls) if call.get("index") == index), None)
    elif id:
        call = next((call for call in calls if call.get("id") == id), None)
    else:
        call = calls[-1] if calls and not names else None
    if call is not None and names and id and call.get("id") and call["id"] != id:
        return None
    return call
