"""What waits to be sent on one stream: batched while the stream is busy, sent at once when it is idle.

A writer takes everything that has accumulated and sends it as one message, so that under load many small events share
the cost of a message, and alone each leaves immediately. The outbox has a limit: a peer that does not read is
dropped rather than buffered for without end.
"""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

T = TypeVar("T")


class Outbox(Generic[T]):
    """An unbounded-looking, bounded queue of one consumer. Owned by one event loop.

    Args:
        limit: most items held; above it the outbox breaks.
    """

    __slots__ = ("_items", "_limit", "_ready", "broken", "closed")

    def __init__(self, *, limit: int):
        self._items: list[T] = []
        self._limit = limit
        self._ready = asyncio.Event()
        self.broken = False
        self.closed = False

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T) -> None:
        """Add an item. Above the limit the outbox breaks: what it holds is dropped, `take` ends."""
        if self.closed or self.broken:
            return
        if len(self._items) >= self._limit:
            self.broken = True
            self._items.clear()
        else:
            self._items.append(item)
        self._ready.set()

    def close(self) -> None:
        """Nothing more will be added; `take` hands out the rest and then ends."""
        self.closed = True
        self._ready.set()

    async def take(self) -> list[T]:
        """Everything that has accumulated, in order; empty once closed or broken."""
        while not self._items and not self.closed and not self.broken:
            self._ready.clear()
            await self._ready.wait()
        items, self._items = self._items, []
        return items
