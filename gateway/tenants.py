"""Which open requests are whose: for listing them, and for the limit that a tenant may have.

Lines of batches are listed and do not count: how many of them are open is for the gateway to say, not for their tenant.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from qlm_core.model import RequestId


class Tenants:
    """The open requests of each tenant, in order of their submission."""

    def __init__(self) -> None:
        self._open: dict[str, dict[RequestId, None]] = {}
        self._adding: dict[str, int] = {}
        self._lines: dict[str, int] = {}

    def count(self, owner: str) -> int:
        """How many are open, or on their way into the store."""
        opened = len(self._open.get(owner, ())) - self._lines.get(owner, 0)
        return opened + self._adding.get(owner, 0)

    def newest(self, owner: str) -> Iterator[RequestId]:
        """Those that are open, latest submission first."""
        return reversed(self._open.get(owner, {}))

    @contextmanager
    def adding(self, owner: str) -> Iterator[None]:
        """Count a request while it is being stored."""
        _add(self._adding, owner, 1)
        try:
            yield
        finally:
            _add(self._adding, owner, -1)

    def opened(self, owner: str, id: RequestId, *, line: bool = False) -> None:
        """A request is open from now on; `line` says whether it is one of a batch."""
        self._open.setdefault(owner, {})[id] = None
        if line:
            _add(self._lines, owner, 1)

    def ended(self, owner: str, id: RequestId, *, line: bool = False) -> None:
        """A request is no longer open."""
        mine = self._open.get(owner, {})
        mine.pop(id, None)
        if not mine:
            self._open.pop(owner, None)
        if line:
            _add(self._lines, owner, -1)


def _add(counts: dict[str, int], owner: str, more: int) -> None:
    """Count on; whoever has none is forgotten."""
    counts[owner] = counts.get(owner, 0) + more
    if not counts[owner]:
        del counts[owner]
