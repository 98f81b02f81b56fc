"""Bytes that come on a stream as a message and are none: they end it with `WireError`, as any message does that cannot be used.

gRPC itself would have the server log a traceback, and leave whoever reads the stream with an exception of protobuf's.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

from google.protobuf.message import DecodeError

from protos.wire import WireError

# Stands for bytes that are no message.
_NONE: Any = object()


def reading(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """A deserializer that never raises; what it could not read is found by `Messages`."""

    def read(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError:
            return _NONE

    return read


class Messages:
    """The messages of a stream whose deserializer is one of `reading`. Raises WireError at the first that is none."""

    def __init__(self, requests: AsyncIterator[Any]) -> None:
        self._requests = requests

    def __aiter__(self) -> Messages:
        return self

    async def __anext__(self) -> Any:
        message = await anext(self._requests)
        if message is _NONE:
            raise WireError("message: not of this stream's type")
        return message
