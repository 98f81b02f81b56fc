"""Keys that are compared and never shown: known by their digests only, so that a comparison takes the same time
wherever two keys differ."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

from qlm_core.secret import Secret

_SCHEME = "bearer"


class KeyRing:
    """Some keys, in order."""

    def __init__(self, keys: Iterable[Secret]) -> None:
        self._digests = tuple(digest(key.reveal().encode()) for key in keys)

    def __len__(self) -> int:
        return len(self._digests)

    def place(self, given: bytes) -> int | None:
        """Which of the keys this is, from 0; None if it is none. Every key is looked at, whichever fits."""
        asked = digest(given)
        fits = [hmac.compare_digest(asked, each) for each in self._digests]
        return fits.index(True) if any(fits) else None


def bearer(authorization: bytes) -> bytes:
    """The token of a bearer credential, whose scheme has no case (RFC 9110, 11.1); b"" where there is none."""
    scheme, *token = authorization.split(None, 1)[:2] or [b""]
    return token[0].strip() if token and scheme.decode("latin-1").lower() == _SCHEME else b""


def digest(key: bytes) -> bytes:
    """What a key is known by."""
    return hashlib.sha256(key).digest()
