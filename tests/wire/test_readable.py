"""Streams end for their readers as ends, not as exceptions of gRPC's or protobuf's."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import pytest

from protos.qlm.v1 import work_service_pb2 as pb
from protos.readable import Messages, reading
from protos.wire import WireError


async def stream_that_ends_by(error: Exception) -> AsyncIterator[str]:
    """One message, then what gRPC raises."""
    yield "message"
    raise error


@pytest.mark.parametrize("kind", [grpc.aio.BaseError, grpc.aio.AbortError, grpc.aio.InternalError])
async def test_a_call_that_is_over_has_no_more_messages(kind: type[Exception]) -> None:
    stream = stream_that_ends_by(kind("Server already stopped."))
    assert [message async for message in Messages(stream)] == ["message"]


@pytest.mark.parametrize("error", [grpc.aio.UsageError("read twice"), ZeroDivisionError()])
async def test_a_fault_of_ours_is_no_end(error: Exception) -> None:
    with pytest.raises(type(error)):
        [message async for message in Messages(stream_that_ends_by(error))]


async def test_bytes_that_are_no_message_end_the_stream_with_their_name() -> None:
    async def stream() -> AsyncIterator[object]:
        yield reading(pb.WorkRequest.FromString)(b"\xff\xff")

    with pytest.raises(WireError, match="message: not of this stream's type"):
        await anext(Messages(stream()))
