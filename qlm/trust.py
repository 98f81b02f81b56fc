"""Whom a client trusts to be the gateway: a CA's certificate in a file, or the CAs that the system trusts."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc

from qlm_core.errors import QlmError

# In place of a file: the CAs that the system trusts.
SYSTEM = "system"

Options = Sequence[tuple[str, Any]]


def channel(address: str, ca: str, options: Options) -> grpc.Channel:
    """A blocking channel to a gateway, with TLS where there is a `ca`. Raises QlmError."""
    if not ca:
        return grpc.insecure_channel(address, options=options)
    return grpc.secure_channel(address, _credentials(ca), options=options)


def aio_channel(address: str, ca: str, options: Options) -> grpc.aio.Channel:
    """As `channel`, for asyncio."""
    if not ca:
        return grpc.aio.insecure_channel(address, options=options)
    return grpc.aio.secure_channel(address, _credentials(ca), options=options)


def https(ca: str) -> ssl.SSLContext:
    """What a client of https:// checks with; without a `ca` as the system does. Raises QlmError."""
    pem = None if ca in ("", SYSTEM) else _read(ca).decode("ascii", "replace")
    try:
        return ssl.create_default_context(cadata=pem)
    except (ssl.SSLError, ValueError) as error:
        raise QlmError(f"--ca: {ca} holds no certificate ({error}). Give a file in PEM.") from None


def _credentials(ca: str) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(None if ca == SYSTEM else _read(ca))


def _read(ca: str) -> bytes:
    try:
        return Path(ca).read_bytes()
    except OSError as error:
        raise QlmError(
            f"--ca: {ca} cannot be read: {error.strerror}. Give the CA's certificate, or `{SYSTEM}`."
        ) from None
