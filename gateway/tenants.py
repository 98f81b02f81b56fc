"""Which open requests are whose: for listing them, and for the limit that a tenant may have."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from qlm_core.model import RequestId


class Tenants:
    """The open requests of each tenant, in order of their submission."""

    def __init__(self) -> None:
        self._open: dict[str, dict[RequestId, None]] = {}
        self._adding: dict[str, int] = {}

    def count(self, owner: str) -> int:
        """How many are open, or on their way into the store."""
        return len(self._open.get(owner, ())) + self._adding.get(owner, 0)

    def newest(self, owner: str) -> Iterator[RequestId]:
        """Those that are open, latest submission first."""
        return reversed(self._open.get(owner, {}))

    @contextmanager
    def adding(self, owner: str) -> Iterator[None]:
        """Count a request while it is being stored."""
        self._adding[owner] = self._adding.get(owner, 0) + 1
        try:
            yield
        finally:
            self._adding[owner] -= 1
            if not self._adding[owner]:
                del self._adding[owner]

    def opened(self, owner: str, id: RequestId) -> None:
        """A request is open from now on."""
        self._open.setdefault(owner, {})[id] = None

    def ended(self, owner: str, id: RequestId) -> None:
        """A request is no longer open."""
        mine = self._open.get(owner, {})
        mine.pop(id, None)
        if not mine:
            self._open.pop(owner, None)
