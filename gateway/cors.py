"""Cross-origin requests: which pages may talk to the gateway from a browser (WHATWG Fetch, CORS protocol).

Off unless `gateway.cors_origins` names origins. Credentials in the sense of that protocol (cookies) are never allowed: an
API key travels in `authorization`, which a page must bring itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from gateway.asgi import RawHeaders, Send, telling

_METHODS = b"GET, HEAD, POST, DELETE"
_MAX_AGE_S = 600


class Cors:
    """The origins that are allowed, `*` for all.

    Args:
        exposed: names of our headers that a page may read.
    """

    def __init__(self, origins: Iterable[str], *, exposed: Iterable[bytes]) -> None:
        self._origins = frozenset(origin.encode() for origin in origins)
        self._all = b"*" in self._origins
        self._exposed = (b"access-control-expose-headers", b", ".join(exposed))

    def __bool__(self) -> bool:
        return bool(self._origins)

    def admits(self, origin: bytes) -> bool:
        """Whether pages from there may use the gateway."""
        return self._all or origin in self._origins

    def allowed(self, origin: bytes) -> RawHeaders:
        """What tells a browser that the page may have the answer; without it, it may not."""
        if self._all:
            return [(b"access-control-allow-origin", b"*")]
        # What is answered depends on who asks, so no cache may give one origin's answer to another.
        told = [(b"vary", b"Origin")]
        if self.admits(origin):
            told.append((b"access-control-allow-origin", origin))
        return told

    def preflight(self, headers: Mapping[bytes, bytes]) -> RawHeaders | None:
        """The answer's headers to a browser that asks what it may send; None if it asks for something else."""
        origin = headers.get(b"origin", b"")
        if not origin or b"access-control-request-method" not in headers:
            return None
        told = self.allowed(origin)
        if not self.admits(origin):
            return told
        asked = headers.get(b"access-control-request-headers", b"")
        if asked:
            # All that it asks for: `*` would leave out authorization.
            told.append((b"access-control-allow-headers", asked))
            told.append((b"vary", b"Access-Control-Request-Headers"))
        told.append((b"access-control-allow-methods", _METHODS))
        told.append((b"access-control-max-age", b"%d" % _MAX_AGE_S))
        return told

    def sending(self, send: Send, origin: bytes) -> Send:
        """`send`, with what a browser needs on every answer, errors as well."""
        return telling(send, [*self.allowed(origin), self._exposed])
