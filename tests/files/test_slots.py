"""Slots of uploads: how many there are, and who gives way."""

from __future__ import annotations

import asyncio

import pytest

from gateway.files import slots
from gateway.files.slots import CROWDED_BYTES_PER_S, PATIENCE_S, Slots
from qlm_core.config_files import FilesConfig
from qlm_core.errors import QueueFull

LIMITS = FilesConfig(uploads_max=3, tenant_uploads_max=2)


class Timeout(asyncio.Timeout):
    """Remembers whether it was called for."""

    def __init__(self) -> None:
        super().__init__(None)
        self.called = False

    def reschedule(self, when: float | None) -> None:
        self.called = True


async def test_there_are_so_many_and_a_tenant_has_its_share() -> None:
    taken = Slots(LIMITS)
    with taken.take("alice", Timeout()), taken.take("alice", Timeout()):
        with pytest.raises(QueueFull, match="tenant_uploads_max"):
            taken.take("alice", Timeout())
        with taken.take("bob", Timeout()):
            with pytest.raises(QueueFull, match=r"gateway\.files\.uploads_max") as raised:
                taken.take("carol", Timeout())
            assert raised.value.retry_after_s == PATIENCE_S
        assert taken.taken == 2
        taken.take("carol", Timeout())


async def test_the_slowest_gives_way_once_it_has_had_its_time() -> None:
    taken = Slots(LIMITS)
    timeouts = [Timeout() for _ in range(3)]
    held = [taken.take(f"tenant-{at}", timeout) for at, timeout in enumerate(timeouts)]
    for slot, pace in zip(held, (0.9, 0.5, 2.0), strict=True):
        slot.began_s -= PATIENCE_S
        slot.size = int(pace * CROWDED_BYTES_PER_S * PATIENCE_S)
    newcomer = taken.take("carol", Timeout())
    assert [one.called for one in timeouts] == [False, True, False]
    taken.leave(held[1])
    assert taken.taken == 3
    newcomer.began_s -= PATIENCE_S
    newcomer.size = held[2].size
    taken.take("dave", Timeout())
    assert [one.called for one in timeouts] == [True, True, False]
    # The others are worth waiting for.
    with pytest.raises(QueueFull):
        taken.take("erin", Timeout())


async def test_who_has_only_begun_does_not_give_way() -> None:
    taken = Slots(LIMITS)
    for at in range(3):
        taken.take(f"tenant-{at}", Timeout()).began_s -= slots.PATIENCE_S - 1.0
    with pytest.raises(QueueFull):
        taken.take("carol", Timeout())
