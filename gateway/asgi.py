"""HTTP in small: the types of ASGI, a whole answer, a whole body, a client that hangs up."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from qlm_core.errors import InvalidRequest, Unavailable

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
RawHeaders = list[tuple[bytes, bytes]]

JSON = (b"content-type", b"application/json")


async def answer(send: Send, status: int, body: bytes, headers: RawHeaders) -> None:
    """Send a whole answer. The server leaves the body of one to HEAD out."""
    length = (b"content-length", b"%d" % len(body))
    await send({"type": "http.response.start", "status": status, "headers": [length, *headers]})
    await send({"type": "http.response.body", "body": body})


def telling(send: Send, more: RawHeaders) -> Send:
    """A `send` whose answer has more headers."""

    async def told(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message = message | {"headers": [*message["headers"], *more]}
        await send(message)

    return told if more else send


async def read_body(
    receive: Receive,
    headers: Mapping[bytes, bytes],
    bytes_max: int,
    held: Callable[[int], None],
) -> bytes:
    """The request's body. Raises InvalidRequest as soon as it is known to be too long, and what `held` raises.

    Args:
        held: is told of bytes that are kept while others are awaited.
    """
    announced = headers.get(b"content-length", b"0")
    parts: list[bytes] = []
    size = int(announced) if announced.isdigit() else 0
    if size <= bytes_max:
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Unavailable("the client hung up")
            parts.append(message["body"])
            size += len(message["body"])
            if size > bytes_max or not message.get("more_body"):
                break
            held(len(message["body"]))
    if size > bytes_max:
        raise InvalidRequest(
            "body",
            f"more than {bytes_max} bytes",
            "Send a shorter prompt or raise gateway.limits.body_bytes_max.",
            code="body_too_large",
        )
    return b"".join(parts)


async def hung_up(receive: Receive) -> None:
    """Return when the client disconnects."""
    while (await receive())["type"] != "http.disconnect":
        pass
