"""What a server reads of a stream: messages, and two ends of it that gRPC would have logged as a traceback.

Bytes that are no message end a stream with `WireError`, as any message does that cannot be used. A stream of a server that
stops, or of a call that is over, ends as if its peer had ended it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
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
    """The messages of a stream whose deserializer is one of `reading`. Raises WireError at the first that is none.

    Where gRPC says no more than that the call is over, there are no further messages.
    """

    def __init__(self, requests: AsyncIterator[Any]) -> None:
        self._requests = requests

    def __aiter__(self) -> Messages:
        return self

    async def __anext__(self) -> Any:
        try:
            message = await anext(self._requests)
        except grpc.aio.UsageError:
            raise
        except grpc.aio.BaseError:
            # The reader may outlive its call, and then nobody is there to take the exception.
            raise StopAsyncIteration from None
        if message is _NONE:
            raise WireError("message: not of this stream's type")
        return message
