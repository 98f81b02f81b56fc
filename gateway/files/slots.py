"""Uploads under way: how many there may be, of all tenants and of one.

Where all slots are taken, the slowest upload gives way to a newcomer, if it has had its time and is slower than anybody with
a use for the file would be. So uploads that never end keep nobody out for long.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from qlm_core.config_files import FilesConfig
from qlm_core.errors import QueueFull

# Where there is no slot for others, an upload that is slower than this after so long gives way.
CROWDED_BYTES_PER_S = 131_072
PATIENCE_S = 10.0


class Slots:
    """All uploads of one gateway."""

    def __init__(self, limits: FilesConfig) -> None:
        self._limits = limits
        self._taken: dict[Slot, None] = {}

    @property
    def taken(self) -> int:
        """How many uploads are under way."""
        return len(self._taken)

    def take(self, owner: str, timeout: asyncio.Timeout) -> Slot:
        """A slot for an upload that ends early if `timeout` does; to be used as a context. Raises QueueFull."""
        most = self._limits.tenant_uploads_max
        if sum(slot.owner == owner for slot in self._taken) >= most:
            raise QueueFull("gateway.files.tenant_uploads_max", most, PATIENCE_S)
        if len(self._taken) >= self._limits.uploads_max and not self._relieve():
            raise QueueFull("gateway.files.uploads_max", self._limits.uploads_max, PATIENCE_S)
        slot = Slot(self, owner, timeout)
        self._taken[slot] = None
        return slot

    def leave(self, slot: Slot) -> None:
        """An upload has ended. Idempotent."""
        self._taken.pop(slot, None)

    def _relieve(self) -> bool:
        """Have one give way; False if none has to."""
        now_s = asyncio.get_running_loop().time()
        slow = [
            _Pace(slot.size / (now_s - slot.began_s), slot)
            for slot in self._taken
            if now_s - slot.began_s >= PATIENCE_S
        ]
        slowest = min(slow, key=lambda pace: pace.bytes_per_s, default=None)
        if slowest is None or slowest.bytes_per_s >= CROWDED_BYTES_PER_S:
            return False
        slowest.slot.give_way()
        return True


class Slot:
    """One upload.

    Attributes:
        size: bytes of it that have come, to be kept up to date by whoever reads them.
    """

    __slots__ = ("_slots", "_timeout", "began_s", "owner", "size")

    def __init__(self, slots: Slots, owner: str, timeout: asyncio.Timeout) -> None:
        self._slots = slots
        self._timeout = timeout
        self.owner = owner
        self.began_s = asyncio.get_running_loop().time()
        self.size = 0

    def give_way(self) -> None:
        """End it as too slow, for others."""
        self._slots.leave(self)
        if not self._timeout.expired():
            self._timeout.reschedule(asyncio.get_running_loop().time())

    def __enter__(self) -> Slot:
        return self

    def __exit__(self, *_: object) -> None:
        self._slots.leave(self)


class _Pace(NamedTuple):
    bytes_per_s: float
    slot: Slot
