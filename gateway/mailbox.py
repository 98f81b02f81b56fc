"""A queue with one reader that takes whatever has accumulated.

Every stream of the gateway writes this way: while the peer is busy items pile up, and the next message carries them
all; when it is idle an item leaves at once. Putting never waits and costs next to nothing.
"""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Mailbox(Generic[Item]):
    """Items for one reader, in order."""

    __slots__ = ("_closed", "_items", "_waiter")

    def __init__(self) -> None:
        self._items: list[Item] = []
        self._closed = False
        self._waiter: asyncio.Future[None] | None = None

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: Item) -> None:
        """Add an item; dropped once the mailbox is closed."""
        if not self._closed:
            self._items.append(item)
            self._wake()

    def close(self) -> None:
        """Nothing more comes. Idempotent."""
        self._closed = True
        self._wake()

    async def take(self) -> list[Item]:
        """Everything there is, as soon as there is something; [] once closed and empty."""
        while not self._items and not self._closed:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        items, self._items = self._items, []
        return items

    def replace(self, items: list[Item]) -> None:
        """Put these in place of everything that waits."""
        self._items = items

    def peek(self) -> list[Item]:
        """What waits, for reading only."""
        return self._items

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
