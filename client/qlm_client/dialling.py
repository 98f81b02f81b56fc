"""Where the gateway is and how it is dialled: what is given, else the environment; with TLS where there is a CA."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio

from qlm_client.errors import QlmError

# In place of a file: the CAs that the system trusts.
SYSTEM = "system"
ADDRESS = "127.0.0.1:7402"
PORT = "7402"
MESSAGE_BYTES_MAX = 16_777_216

_OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    # A gateway that was started again is found within a second, not within the library's two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialled:
    """Whom to dial, and what to show there."""

    address: str
    api_key: str
    ca: str

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What carries the API key, if there is one."""
        return (("authorization", f"Bearer {self.api_key}"),) if self.api_key else ()


def dialled(
    address: str | None,
    api_key: str | None,
    ca: str | None,
    environ: Mapping[str, str] = os.environ,
) -> Dialled:
    """What is given, else what QLM_ADDRESS, QLM_API_KEY and QLM_CA say, else a gateway of this machine."""
    where = address or environ.get("QLM_ADDRESS") or ADDRESS
    if not where.rpartition("]")[2].rpartition(":")[2].isdecimal():
        where = f"{where}:{PORT}"
    return Dialled(
        address=where,
        api_key=environ.get("QLM_API_KEY", "") if api_key is None else api_key,
        ca=environ.get("QLM_CA", "") if ca is None else ca,
    )


def channel(to: Dialled) -> grpc.Channel:
    """A blocking channel. Raises QlmError."""
    if not to.ca:
        return grpc.insecure_channel(to.address, options=_OPTIONS)
    return grpc.secure_channel(to.address, _credentials(to.ca), options=_OPTIONS)


def aio_channel(to: Dialled) -> grpc.aio.Channel:
    """As `channel`, for asyncio."""
    if not to.ca:
        return grpc.aio.insecure_channel(to.address, options=_OPTIONS)
    return grpc.aio.secure_channel(to.address, _credentials(to.ca), options=_OPTIONS)


def hang_up(channel: grpc.Channel) -> None:
    """Close a blocking channel."""
    channel.close()


async def aio_hang_up(channel: grpc.aio.Channel) -> None:
    """As `hang_up`, for asyncio."""
    await channel.close(None)


def _credentials(ca: str) -> grpc.ChannelCredentials:
    try:
        return grpc.ssl_channel_credentials(None if ca == SYSTEM else Path(ca).read_bytes())
    except OSError as error:
        raise QlmError(
            f"ca: {ca} cannot be read: {error.strerror}. Give the CA's certificate, or `{SYSTEM}`."
        ) from None
