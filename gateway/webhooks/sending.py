"""One try to tell a webhook, signed as Standard Webhooks have it (https://www.standardwebhooks.com).

What a URL of the configuration leads to is decided by DNS, and by whoever answers there. So each address is judged as the
connection to it is made, and nobody is followed elsewhere; no proxy of the environment stands between. Who is told
learns ids and nothing else, and what it answers is not read beyond its head.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import math
import socket
import ssl
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import aiohttp
import msgspec
from aiohttp.abc import AbstractResolver, ResolveResult

from gateway.webhooks.rows import Row
from qlm_core.config_webhooks import WebhookConfig, secret_key
from qlm_core.errors import kind_and_place
from qlm_core.reach import may_reach, networks_of

# Look-ups of names cannot be cut short, so they have threads of their own to get stuck in.
LOOKUPS_MAX = 4
# Statuses with which a receiver says when it will be well again.
_BUSY = (429, 503)


class Outcome(NamedTuple):
    """How a try went.

    Attributes:
        kind: delivered, answered (and not with success), unreachable or forbidden.
        said: what went wrong, for a log.
        retry_after_s: how long the receiver asks for rest.
    """

    kind: str
    said: str = ""
    retry_after_s: float = 0.0

    @property
    def delivered(self) -> bool:
        """Whether the receiver has taken it."""
        return self.kind == "delivered"


class ForbiddenAddressError(OSError):
    """A name leads where webhooks do not go."""

    def __init__(self) -> None:
        super().__init__("its address is none that it may have")


class Lookups(AbstractResolver):
    """Looks names up, in a few threads that nobody else waits for."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(LOOKUPS_MAX, thread_name_prefix="qlm-webhooks")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """The addresses of a host. Raises OSError."""
        look = partial(socket.getaddrinfo, host, port, family=family, type=socket.SOCK_STREAM)
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._threads, look)
        except UnicodeError:
            raise OSError("its name is none") from None
        return [
            ResolveResult(
                hostname=host,
                host=str(address[0]),
                port=port,
                family=kind,
                proto=protocol,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for kind, _, protocol, _, address in found
        ]

    async def close(self) -> None:
        """Wait for none of them. Idempotent."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class Sender:
    """Tells one webhook.

    Args:
        try_s_max: how long a try may take, from the look-up of the name to the head of the answer.
    """

    def __init__(self, webhook: WebhookConfig, lookups: Lookups, *, try_s_max: float) -> None:
        key = secret_key(webhook.secret)
        assert key is not None, "the configuration was checked"
        self._key = key
        self._url = webhook.url
        self._networks = networks_of(webhook.networks)
        # What is not encrypted stays within networks that the configuration names.
        self._public = urlsplit(webhook.url).scheme == "https"
        connector = aiohttp.TCPConnector(
            resolver=lookups,
            use_dns_cache=False,
            force_close=True,
            limit=0,
            ssl=ssl.create_default_context(),
            socket_factory=self._socket,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=try_s_max),
            auto_decompress=False,
            trust_env=False,
        )

    async def send(self, row: Row) -> Outcome:
        """Tell it once."""
        body = body_of(row)
        try:
            async with self._session.post(
                self._url,
                data=body,
                headers=signed(self._key, row.event, int(time.time()), body),
                allow_redirects=False,
            ) as response:
                return _judged(response)
        except aiohttp.ClientConnectorError as error:
            forbidden = isinstance(error.os_error, ForbiddenAddressError)
            said = error.os_error.strerror or str(error.os_error)
            return Outcome("forbidden" if forbidden else "unreachable", said)
        except TimeoutError:
            return Outcome("unreachable", "no answer in time")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            # What these say may quote what was sent.
            return Outcome("unreachable", kind_and_place(error))

    async def close(self) -> None:
        """Give up its connections."""
        await self._session.close()

    def _socket(self, address: tuple[Any, ...]) -> socket.socket:
        family, kind, protocol, _, where = address
        if not may_reach(str(where[0]), self._networks, public=self._public):
            raise ForbiddenAddressError
        made = socket.socket(family, kind, protocol)
        made.setblocking(False)
        return made


def body_of(row: Row) -> bytes:
    """What is sent of an event, the same at every try."""
    event = {
        "id": row.event,
        "object": "event",
        "created_at": row.created_unix_s,
        "type": row.type,
        "data": {"id": row.subject},
    }
    return msgspec.json.encode(event)


def signed(key: bytes, event: str, unix_s: int, body: bytes) -> dict[str, str]:
    """The headers of a try: they prove who has sent this body, and when."""
    said = f"{event}.{unix_s}.".encode() + body
    signature = base64.b64encode(hmac.new(key, said, hashlib.sha256).digest()).decode()
    return {
        "content-type": "application/json",
        "user-agent": "QLM-Webhooks",
        "webhook-id": event,
        "webhook-timestamp": str(unix_s),
        "webhook-signature": f"v1,{signature}",
    }


def _judged(response: aiohttp.ClientResponse) -> Outcome:
    if 200 <= response.status < 300:
        return Outcome("delivered")
    after_s = 0.0
    if response.status in _BUSY:
        after_s = _seconds(response.headers.get("retry-after", ""))
    return Outcome("answered", f"it answered {response.status}", after_s)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        return 0.0
    return seconds if math.isfinite(seconds) and seconds > 0 else 0.0
