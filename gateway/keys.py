"""API keys: who may come in, and whose an idempotency key is.

Both front doors hand in what the client said in `authorization`. Keys are known by their digests only from then on, so
a comparison takes the same time wherever two keys differ, and no key is stored or logged.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

# Of an idempotency key.
KEY_BYTES_MAX = 256
_SCHEME = "bearer"


class ApiKeys:
    """The keys that a gateway accepts; none at all lets everybody in."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = tuple(_digest(key.encode()) for key in keys)

    def owner(self, authorization: bytes) -> str | None:
        """Who calls: a name that is the same for the same key and tells nothing of it; None if they may not come in.

        Without configured keys whoever calls may, and is known by the key that they bring all the same; "" is who
        brings none.
        """
        token = bearer(authorization)
        if not token:
            return None if self._digests else ""
        digest = _digest(token)
        if self._digests:
            # Every key is looked at, whichever fits.
            known = [hmac.compare_digest(digest, each) for each in self._digests]
            if not any(known):
                return None
        return digest[:16].hex()


def bearer(authorization: bytes) -> bytes:
    """The token of a bearer credential, whose scheme has no case (RFC 9110, 11.1); b"" where there is none."""
    scheme, *token = authorization.split(None, 1)[:2] or [b""]
    return token[0].strip() if token and scheme.decode("latin-1").lower() == _SCHEME else b""


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()
