"""What waits to be sent on one stream: batched while the stream is busy, sent at once when it is idle.

A writer takes everything that has accumulated and sends it as one message, so that under load many small events share
the cost of a message, and alone each leaves immediately. What nobody waits for may linger, to travel with what comes
next. The outbox has a limit: a peer that does not read is dropped rather than buffered for without end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")

LINGER_S = 0.005


class Outbox(Generic[T]):
    """An unbounded-looking, bounded queue of one consumer. Owned by one event loop.

    Args:
        limit: most items held; above it the outbox breaks.
    """

    __slots__ = ("_due", "_items", "_limit", "_linger", "_ready", "broken", "closed")

    def __init__(self, *, limit: int):
        self._items: list[T] = []
        self._limit = limit
        self._ready = asyncio.Event()
        self._due = False
        self._linger: asyncio.TimerHandle | None = None
        self.broken = False
        self.closed = False

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T) -> None:
        """Add an item. Above the limit the outbox breaks: what it holds is dropped, `take` ends."""
        self._add(item)
        self._send()

    def put_soon(self, item: T) -> None:
        """Add an item that may wait up to `LINGER_S` for others to share its message."""
        self._add(item)
        if self.broken:
            self._send()
        elif not self._due and self._linger is None:
            self._linger = asyncio.get_running_loop().call_later(LINGER_S, self._send)

    def close(self) -> None:
        """Nothing more will be added; `take` hands out the rest and then ends."""
        self.closed = True
        self._send()

    async def take(self) -> list[T]:
        """Everything that has accumulated, in order; empty once closed or broken."""
        while not (self._due and self._items) and not self.closed and not self.broken:
            self._ready.clear()
            await self._ready.wait()
        self._due = False
        items, self._items = self._items, []
        return items

    def _add(self, item: T) -> None:
        if self.closed or self.broken:
            return
        if len(self._items) >= self._limit:
            self.broken = True
            self._items.clear()
        else:
            self._items.append(item)

    def _send(self) -> None:
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None
        self._due = True
        self._ready.set()


def batches(items: Sequence[T], weight: Callable[[T], int], bytes_max: int) -> list[list[T]]:
    """Split what goes out so that no message becomes too large to send; one item alone may be.

    Args:
        weight: how many bytes of a message an item takes at most.
    """
    split: list[list[T]] = [[]]
    size = 0
    for item in items:
        own = weight(item)
        if split[-1] and size + own > bytes_max:
            split.append([])
            size = 0
        split[-1].append(item)
        size += own
    return split
