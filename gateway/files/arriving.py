"""The body of an upload as it arrives, however long that takes, as long as something comes.

Its client is heard at the pace at which what came is dealt with; only waiting for the client counts against it. One that is
refused in the middle is told so at once, and then heard out for a while: clients that read nothing before they have sent
everything would find their connection reset, and no answer on it.
"""

from __future__ import annotations

import asyncio
from typing import Any

from gateway import headers as hd
from gateway.asgi import Receive, Send
from gateway.files.slots import Slot
from qlm_core.errors import InvalidRequest, Unavailable

# What a client has to bring within the idle limit, unless the end comes first.
PACE_BYTES = 65_536
# How long a client that was refused is heard.
LINGER_S = 15.0


class Arriving:
    """One body.

    Args:
        idle_s: how long less than PACE_BYTES may come.
        bytes_max: of all of it; more is refused.

    Attributes:
        ended: whether all of it has come, or its client is gone.
        idle: whether its client was given up because it brought too little.
        slot: is told how much has come.
    """

    def __init__(self, receive: Receive, headers: hd.Headers, *, idle_s: float, bytes_max: int):
        self._receive = receive
        self._idle_s = idle_s
        self._bytes_max = bytes_max
        self._came = 0
        self._waited_s = 0.0
        self._paced = 0
        self.ended = self.idle = False
        self.slot: Slot | None = None
        announced = headers.get(b"content-length", b"0")
        self._announced = int(announced) if announced.isdigit() else 0

    async def next(self) -> bytes:
        """The next piece, b"" after the last.

        Raises InvalidRequest for what is too large or too slow, Unavailable if the client hangs up.
        """
        if max(self._announced, self._came) > self._bytes_max:
            raise InvalidRequest(
                "body",
                f"more than {self._bytes_max} bytes",
                "Divide the file into several, or raise gateway.files.file_bytes_max.",
                code="file_too_large",
            )
        while not self.ended:
            message = await self._message()
            if message["type"] == "http.disconnect":
                self.ended = True
                raise Unavailable("the client hung up")
            self.ended = not message.get("more_body")
            data: bytes = message["body"]
            self._came += len(data)
            if self.slot is not None:
                self.slot.size = self._came
            if data:
                return data
        return b""

    def too_slow(self, why: str) -> InvalidRequest:
        """Give its client up; the error for it."""
        self.idle = True
        return InvalidRequest(
            "body",
            why,
            "Send it faster or raise gateway.files.upload_idle_s_max.",
            code="body_too_slow",
        )

    def lingering(self, send: Send) -> Send:
        """`send`, of which the last word of an answer is followed by silence until the body has come, or for a while."""

        async def send_and_listen(message: dict[str, Any]) -> None:
            last = message["type"] == "http.response.body" and not message.get("more_body")
            if not last:
                await send(message)
                return
            await send(message | {"more_body": True})
            await self._hear_out()
            await send({"type": "http.response.body", "body": b""})

        return send_and_listen

    async def _message(self) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        try:
            async with asyncio.timeout(self._idle_s - self._waited_s):
                message = await self._receive()
        except TimeoutError:
            raise self.too_slow(
                f"less than {PACE_BYTES} bytes of it came within {self._idle_s:g} s"
            ) from None
        self._waited_s += loop.time() - began_s
        self._paced += len(message.get("body", b""))
        if self._paced >= PACE_BYTES:
            self._waited_s, self._paced = 0.0, 0
        return message

    async def _hear_out(self) -> None:
        """Read what is still coming, to no purpose; as much as the largest body at most."""
        heard = 0
        try:
            async with asyncio.timeout(LINGER_S):
                while not self.ended and heard <= self._bytes_max:
                    message = await self._receive()
                    self.ended = not message.get("more_body")
                    heard += len(message.get("body", b""))
        except TimeoutError:
            return
