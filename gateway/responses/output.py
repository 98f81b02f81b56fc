"""The output items of a response, built up from the chunks of a chat, and the events that tell of it.

Thoughts become a reasoning item, text and refusals a message, calls an item each. An item of text is closed when something
else begins, and what comes later of its kind is another item; calls stay open to the end. So the items, and with a text
that is cut by itself the events as well, follow from what came in which order, and not from how it was divided into chunks.
Everything here is pure, and total for chunks of OpenAI's shape.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from gateway import turns as tn
from gateway.answer import join_calls
from gateway.responses.asked import item_id
from gateway.responses.cutting import Cutter
from gateway.responses.fields import Json

_encode = msgspec.json.Encoder().encode

_MESSAGE, _REASONING, _CALL = "message", "reasoning", "function_call"


class Output:
    """The output of one response.

    Args:
        key: what the ids of its items are made of.
        by_chunk: each chunk's text is an event; else text is cut by itself.

    Attributes:
        items: as far as they have come; the last ones may be in progress.
    """

    def __init__(self, key: str, *, by_chunk: bool) -> None:
        self.items: list[Json] = []
        self._key = key
        self._by_chunk = by_chunk
        self._text: _Text | None = None
        self._joined: list[Json] = []
        self._calls: list[_Call] = []

    def feed(self, chunk: Json) -> Iterator[Json]:
        """Take a chunk; gives the events that tell of it, without their numbers."""
        choices = chunk.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            delta = choice.get("delta") if isinstance(choice, dict) else None
            if isinstance(delta, dict) and choice.get("index", 0) == 0:
                yield from self._feed(delta, chunk, _logprobs_of(choice))

    def finish(self, *, whole: bool, answered: bool) -> Iterator[Json]:
        """The output is over; gives the events that close what is open.

        Args:
            whole: the model came to its own end; else what it was at last about is incomplete.
            answered: there is an answer, if an empty one.
        """
        if answered and not self.items and not self._calls:
            yield from self._open_text(tn.CONTENT)
        broken: _Text | _Call | None = None
        if not whole:
            broken = self._text or (self._calls[-1] if self._calls else None)
        yield from self._close_text(whole=broken is None or broken is not self._text)
        for call in self._calls:
            yield from self._open_call(call)
            yield from call.close(whole=broken is not call)

    def _feed(self, delta: Json, chunk: Json, logprobs: list[Json]) -> Iterator[Json]:
        texts = tn.texts_of(delta)
        taken = dict.fromkeys(texts, 0)
        begun = self._join(delta.get("tool_calls"))
        if delta.get("tool_calls"):
            # A model makes one thing after the other, so what belongs to earlier calls came first.
            for call in self._calls:
                yield from call.go_on()
        for kind, size in tn.told_in(chunk) or [*tn.usual(texts, len(begun))]:
            if kind == tn.CALLS:
                for call in begun[:size]:
                    yield from self._open_call(call)
                    yield from call.go_on()
                del begun[:size]
            elif kind in texts:
                piece = texts[kind][taken[kind] : taken[kind] + size]
                taken[kind] += size
                yield from self._say(kind, piece, logprobs if kind == tn.CONTENT else [])
                logprobs = [] if kind == tn.CONTENT else logprobs
        for call in begun:
            yield from self._open_call(call)
            yield from call.go_on()

    # ---------------------------------------------------------------- text

    def _say(self, kind: str, text: str, logprobs: list[Json]) -> Iterator[Json]:
        if not text:
            return
        yield from self._open_text(kind)
        assert self._text is not None
        yield from self._text.add(text, logprobs)

    def _open_text(self, kind: str) -> Iterator[Json]:
        """See to it that the open part is of this kind."""
        text = self._text
        if text is not None and text.kind == kind:
            return
        if text is not None and text.is_message and kind != tn.REASONING:
            yield from text.close_part()
        else:
            yield from self._close_text(whole=True)
            item_kind = _REASONING if kind == tn.REASONING else _MESSAGE
            text = self._text = _Text(
                self._new_item(item_kind), len(self.items) - 1, by_chunk=self._by_chunk
            )
            yield text.added()
        yield text.open_part(kind)

    def _close_text(self, *, whole: bool) -> Iterator[Json]:
        text, self._text = self._text, None
        if text is not None:
            yield from text.close_part()
            yield text.done(whole=whole)

    # ---------------------------------------------------------------- calls

    def _join(self, parts: Any) -> list[_Call]:
        """Take what a delta says of calls; gives those that it begins. Some servers send arguments before the name."""
        if not isinstance(parts, list):
            return []
        join_calls(self._joined, parts)
        for joined in self._joined[len(self._calls) :]:
            self._calls.append(_Call(joined, Cutter(by_chunk=self._by_chunk)))
        return [call for call in self._calls if call.item is None and tn.is_named(call.joined)]

    def _open_call(self, call: _Call) -> Iterator[Json]:
        """Give a call its item."""
        if call.item is not None:
            return
        yield from self._close_text(whole=True)
        item = self._new_item(_CALL)
        call.begin(item, len(self.items) - 1, tn.name_of(call.joined))
        given = call.joined.get("id")
        item["call_id"] = given if isinstance(given, str) and given else f"call_{item['id'][3:]}"
        yield call.added()

    def _new_item(self, kind: str) -> Json:
        id = item_id(kind, self._key, len(self.items))
        item: Json = {"id": id, "type": kind, "status": "in_progress"}
        if kind == _MESSAGE:
            item |= {"role": "assistant", "content": []}
        elif kind == _REASONING:
            item |= {"summary": [], "content": []}
        else:
            item |= {"call_id": "", "name": "", "arguments": ""}
        self.items.append(item)
        return item


class _Text:
    """An open item of text: a message, or thoughts."""

    def __init__(self, item: Json, place: int, *, by_chunk: bool) -> None:
        self.kind = ""
        self._item = item
        self._place = {"item_id": item["id"], "output_index": place}
        self._by_chunk = by_chunk
        self._part: Json = {}
        self._cutter = Cutter(by_chunk=by_chunk)
        self._text: list[str] = []

    @property
    def is_message(self) -> bool:
        return bool(self._item["type"] == _MESSAGE)

    def added(self) -> Json:
        return _added(self._item, self._place)

    def open_part(self, kind: str) -> Json:
        self.kind, self._text = kind, []
        self._part = _part(kind)
        self._item["content"].append(self._part)
        return {"type": "response.content_part.added", **self._at(), "part": _part(kind)}

    def add(self, text: str, logprobs: list[Json]) -> Iterator[Json]:
        self._text.append(text)
        if logprobs:
            self._part["logprobs"] += logprobs
        for piece in self._cutter.add(text):
            # What is cut by itself no longer shows which tokens it is made of; they are told at the end.
            yield self._delta(piece, logprobs if self._by_chunk else [])

    def close_part(self) -> Iterator[Json]:
        if not self.kind:
            return
        for piece in self._cutter.rest():
            yield self._delta(piece, [])
        name = _TEXT_OF[self.kind]
        self._part[name] = "".join(self._text)
        said: Json = {name: self._part[name]}
        if self.kind == tn.CONTENT:
            said["logprobs"] = self._part["logprobs"]
        yield {"type": f"{_EVENT[self.kind]}.done", **self._at(), **said}
        yield {"type": "response.content_part.done", **self._at(), "part": self._part}
        self.kind = ""

    def done(self, *, whole: bool) -> Json:
        return _done(self._item, self._place, whole=whole)

    def _delta(self, piece: str, logprobs: list[Json]) -> Json:
        event = {"type": f"{_EVENT[self.kind]}.delta", **self._at(), "delta": piece}
        if self.kind == tn.CONTENT:
            event["logprobs"] = logprobs
        return event

    def _at(self) -> Json:
        return self._place | {"content_index": len(self._item["content"]) - 1}


class _Call:
    """A call, as far as it has come.

    Attributes:
        joined: as the deltas say it.
        item: None until its name has come.
    """

    def __init__(self, joined: Json, cutter: Cutter) -> None:
        self.joined = joined
        self.item: Json | None = None
        self._cutter = cutter
        self._place: Json = {}
        self._taken = 0

    def begin(self, item: Json, place: int, name: str) -> None:
        item["name"] = name
        self.item = item
        self._place = {"item_id": item["id"], "output_index": place}

    def added(self) -> Json:
        assert self.item is not None
        return _added(self.item, self._place)

    def go_on(self) -> Iterator[Json]:
        """Tell of what has come since the last time."""
        if self.item is None:
            return
        arguments = _arguments_of(self.joined)
        if isinstance(arguments, str) and len(arguments) > self._taken:
            yield from map(self._delta, self._cutter.add(arguments[self._taken :]))
            self._taken = len(arguments)

    def close(self, *, whole: bool) -> Iterator[Json]:
        assert self.item is not None
        arguments = _arguments_of(self.joined)
        if not isinstance(arguments, str):
            # From a server that sends them as they are meant, which can be told only in the end.
            arguments = _encode(arguments).decode()
        yield from map(self._delta, self._cutter.add(arguments[self._taken :]))
        yield from map(self._delta, self._cutter.rest())
        self.item["arguments"] = arguments
        said = {"name": self.item["name"], "arguments": arguments}
        yield {"type": "response.function_call_arguments.done", **self._place, **said}
        yield _done(self.item, self._place, whole=whole)

    def _delta(self, piece: str) -> Json:
        kind = "response.function_call_arguments.delta"
        return {"type": kind, **self._place, "delta": piece}


_EVENT = {
    tn.CONTENT: "response.output_text",
    tn.REASONING: "response.reasoning_text",
    tn.REFUSAL: "response.refusal",
}
_TEXT_OF = {tn.CONTENT: "text", tn.REASONING: "text", tn.REFUSAL: "refusal"}


def _part(kind: str) -> Json:
    if kind == tn.CONTENT:
        return {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    if kind == tn.REASONING:
        return {"type": "reasoning_text", "text": ""}
    return {"type": "refusal", "refusal": ""}


def _added(item: Json, place: Json) -> Json:
    # As it is now: what it becomes is told by other events.
    return {
        "type": "response.output_item.added",
        "output_index": place["output_index"],
        "item": item | ({"content": []} if "content" in item else {}),
    }


def _done(item: Json, place: Json, *, whole: bool) -> Json:
    item["status"] = "completed" if whole else "incomplete"
    return {
        "type": "response.output_item.done",
        "output_index": place["output_index"],
        "item": item,
    }


def _arguments_of(call: Json) -> Any:
    function = call.get("function")
    arguments = function.get("arguments") if isinstance(function, dict) else None
    return "" if arguments is None else arguments


def _logprobs_of(choice: Json) -> list[Json]:
    """The log-probabilities of a choice's text; what is not of OpenAI's shape is left out."""
    logprobs = choice.get("logprobs")
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not isinstance(content, list):
        return []
    return [_logprob(token) for token in content if isinstance(token, dict)]


def _logprob(token: Json) -> Json:
    read = {name: token.get(name) for name in ("token", "logprob")}
    tops = token.get("top_logprobs")
    tops = tops if isinstance(tops, list) else []
    return {
        **read,
        "bytes": token.get("bytes") or [],
        "top_logprobs": [_logprob(top) for top in tops if isinstance(top, dict)],
    }
