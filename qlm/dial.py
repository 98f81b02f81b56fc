"""Calls of the gRPC client API for commands: one channel, errors in one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import grpc

from protos.qlm.v1 import client_service_pb2_grpc as rpc
from qlm_core.errors import NotFound, QlmError, Unavailable

CALL_TIMEOUT_S = 10.0


@contextlib.contextmanager
def stub(address: str) -> Iterator[rpc.ClientServiceStub]:
    """A stub of the gateway at host:port. gRPC errors leave the block as QlmError."""
    with grpc.insecure_channel(address) as channel:
        try:
            yield rpc.ClientServiceStub(channel)
        except grpc.RpcError as error:
            raise _readable(error, address) from None


def metadata(api_key: str) -> tuple[tuple[str, str], ...]:
    """The call metadata that carries an API key, if there is one."""
    return (("authorization", f"Bearer {api_key}"),) if api_key else ()


def _readable(error: grpc.RpcError, address: str) -> QlmError:
    code, details = error.code(), error.details() or ""
    if code is grpc.StatusCode.NOT_FOUND:
        return NotFound(details)
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        return QlmError(details)
    if code is grpc.StatusCode.UNAVAILABLE and "connect" in details.lower():
        return Unavailable(f"{address}: no gateway answers. Start one with `qlm up`.")
    return Unavailable(f"{address}: {details or code.name.lower()}")
