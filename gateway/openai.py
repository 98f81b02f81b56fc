"""OpenAI's shapes as they leave the gateway: chunks (`answer` has whole answers, `problems` errors).

Engines send chunk objects of many origins. What leaves the gateway is uniform: one id, one creation time and one
model name per request, over all its attempts. Everything here is pure.
"""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.answer import BadChunkError, Json, closing_extra, usage_of
from qlm_core.ledger import EndRecord

DONE_EVENT = b"data: [DONE]\n\n"

_decode_shallow = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode = msgspec.json.Decoder().decode
encode = msgspec.json.Encoder().encode


def parse(data: bytes) -> Any:
    """JSON of our own making; None for nothing."""
    return _decode(data) if data else None


class Framer:
    """Gives the chunks of one request their common head.

    Args:
        running_usage: the client wants the count of tokens in each chunk, which the engine sent.
    """

    def __init__(
        self,
        *,
        id: str,
        chat: bool,
        created: int,
        model: str,
        service_tier: str,
        running_usage: bool = False,
    ) -> None:
        kind = "chat.completion.chunk" if chat else "text_completion"
        head: Json = {"id": id, "object": kind, "created": created, "model": model}
        if service_tier:
            head["service_tier"] = service_tier
        self._running_usage = running_usage
        self._values = head
        # Encoded once it is needed: thousands of requests wait that have no chunk yet.
        self._encoded: dict[str, msgspec.Raw] = {}

    @property
    def _head(self) -> dict[str, msgspec.Raw]:
        if not self._encoded:
            values = self._values.items()
            self._encoded = {key: msgspec.Raw(encode(value)) for key, value in values}
        return self._encoded

    def frame(self, data: bytes) -> bytes:
        """An engine's chunk as the client gets it; b"" if there is nothing in it for the client.

        Raises BadChunkError if it is not a JSON object.
        """
        try:
            chunk = _decode_shallow(data)
        except (ValueError, RecursionError) as error:
            raise BadChunkError(f"an engine sent a chunk that cannot be read ({error})") from None
        if chunk.get("choices", _EMPTY_LIST) == _EMPTY_LIST:
            return b""
        if not self._running_usage:
            chunk.pop("usage", None)
        chunk.update(self._head)
        return encode(chunk)

    def usage(self, record: EndRecord) -> bytes:
        """The chunk that reports token usage, the last of a stream that asked for it."""
        said = {"choices": [], "usage": usage_of(record)} | closing_extra(record)
        return encode(self._head | said)


_EMPTY_LIST = msgspec.Raw(b"[]")


def chunk_of(response: bytes, *, chat: bool) -> bytes:
    """A whole answer as a single chunk, for who follows a request that has ended."""
    return encode(as_chunk(_decode(response), chat=chat))


def as_chunk(answer: Json, *, chat: bool) -> Json:
    """As `chunk_of`, of an answer that has been read."""
    choices = [_as_part(choice) for choice in answer["choices"]] if chat else answer["choices"]
    kind = "chat.completion.chunk" if chat else "text_completion"
    chunk = answer | {"object": kind, "choices": choices}
    chunk.pop("usage", None)
    return chunk


def _as_part(choice: Json) -> Json:
    """The choice of a chat's answer as a stream has it."""
    message: Json = choice.get("message") or {}
    calls = [{"index": index, **call} for index, call in enumerate(message.get("tool_calls") or ())]
    part = {key: value for key, value in choice.items() if key != "message"}
    return part | {"delta": message | ({"tool_calls": calls} if calls else {})}


def event(data: bytes) -> bytes:
    """A server-sent event."""
    return b"data: %b\n\n" % data
