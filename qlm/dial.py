"""Calls of the gRPC client API: a channel, the API key, errors in one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import grpc

from protos.qlm.v1 import client_service_pb2_grpc as rpc
from qlm_core.errors import NotFound, QlmError, Unavailable

CALL_TIMEOUT_S = 10.0


class Busy(QlmError):
    """The queue is full, or the message too large; try again after `retry_after_s`, None if that would not help."""

    def __init__(self, message: str, *, retry_after_s: float | None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


@contextlib.contextmanager
def stub(address: str) -> Iterator[rpc.ClientServiceStub]:
    """A stub of the gateway at host:port. gRPC errors leave the block as QlmError."""
    with grpc.insecure_channel(address) as channel:
        try:
            yield rpc.ClientServiceStub(channel)
        except grpc.RpcError as error:
            raise readable(error, address) from None


def metadata(api_key: str) -> tuple[tuple[str, str], ...]:
    """The call metadata that carries an API key, if there is one."""
    return (("authorization", f"Bearer {api_key}"),) if api_key else ()


def readable(error: grpc.RpcError, address: str) -> QlmError:
    """What a failed call means, in one line."""
    code, details = error.code(), error.details() or ""
    if code is grpc.StatusCode.NOT_FOUND:
        return NotFound(details)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        # Pairs of strings, whatever type the two kinds of gRPC give them.
        told: Any = error.trailing_metadata() or ()
        after = dict(told).get("retry-after-s")
        return Busy(details, retry_after_s=float(after) if after else None)
    if code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNAUTHENTICATED):
        return QlmError(details)
    if code is grpc.StatusCode.UNAVAILABLE and "connect" in details.lower():
        return Unavailable(f"{address}: no gateway answers. Start one with `qlm up`.")
    return Unavailable(f"{address}: {details or code.name.lower()}")
