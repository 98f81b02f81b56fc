"""The body of a request as one piece: no larger than allowed, there in time, and counted while it comes."""

from __future__ import annotations

import asyncio

from gateway import headers as hd
from gateway.asgi import Receive, read_body
from gateway.uploads import Uploads
from qlm_core.config import GatewayLimits
from qlm_core.errors import InvalidRequest


class Bodies:
    """Reads bodies for every resource that takes one whole."""

    def __init__(self, limits: GatewayLimits, uploads: Uploads) -> None:
        self._limits = limits
        self._uploads = uploads

    async def read(self, headers: hd.Headers, receive: Receive) -> bytes:
        """The body of a request. Raises InvalidRequest, QueueFull, and Unavailable when its client hangs up."""
        require_plain(headers)
        loop = asyncio.get_running_loop()
        came_s = loop.time()
        try:
            async with asyncio.timeout(self._limits.body_s_max) as timeout:
                with self._uploads.begin(timeout) as upload:
                    return await read_body(
                        receive, headers, self._limits.body_bytes_max, upload.grow
                    )
        except TimeoutError:
            raise InvalidRequest(
                "body",
                f"it had not arrived after {loop.time() - came_s:.0f} s",
                "Send it faster or raise gateway.limits.body_s_max.",
                code="body_too_slow",
            ) from None


def require_plain(headers: hd.Headers) -> None:
    """Raise InvalidRequest for a body that is compressed."""
    coding = hd.text(headers, b"content-encoding").lower()
    if coding not in ("", "identity"):
        raise InvalidRequest(
            "content-encoding",
            f"{coding[:32]!r} cannot be read here",
            "Send the body as it is.",
            code="unsupported_content_encoding",
        )
