"""Who waits for room at the agent, payload or not, is served by urgency, however many requests were pulled ahead."""

from __future__ import annotations

import pytest

from tests.executor.world import World, group, profile, refs, world

AHEAD = pytest.mark.parametrize("pull_ahead", [0, 2, 8])


def one_slot(pull_ahead: int) -> World:
    """A background request of 20 s runs on the only slot; others wait, as many as may be pulled ahead and more."""
    w = world(profile(slots=1), pull_ahead=pull_ahead)
    w.queue(group(1), add=refs(1, 12, expected=1000))
    w.grant()
    w.grant()
    assert w.running == ["1-0"]
    assert len(w.executor.batch.held) == pull_ahead
    return w


def urgent(w: World, count: int = 1, *, slo_class: str = "interactive", id: int = 2) -> None:
    due_s = 60.0 if slo_class == "batch-1" else 20.0
    add = refs(id, count, due_s=w.now_s + due_s)
    w.queue(group(id, slo_class=slo_class), group(1), add=add, epoch=id)


@AHEAD
def test_the_lax_one_gives_way_in_time_whatever_was_pulled_ahead(pull_ahead: int) -> None:
    w = one_slot(pull_ahead)
    urgent(w)
    w.grant()
    w.at(16.0)
    assert w.aborted == []
    w.at(19.5)
    w.grant()
    assert w.aborted == ["1-0"]
    assert w.running == ["2-0"]


@AHEAD
def test_what_is_freed_by_an_end_goes_to_the_urgent_one(pull_ahead: int) -> None:
    w = one_slot(pull_ahead)
    urgent(w)
    w.grant()
    w.finish("1-0")
    w.grant()
    assert w.running == ["2-0"]


@AHEAD
def test_held_lax_work_does_not_take_what_an_urgent_one_on_its_way_was_promised(
    pull_ahead: int,
) -> None:
    """Its payload is still under way when the slot is free."""
    w = one_slot(pull_ahead)
    urgent(w)
    w.at(19.5)
    assert w.aborted == ["1-0"]
    assert w.running == []
    w.grant("2-0")
    assert w.running == ["2-0"]


def test_of_those_held_the_strictest_class_starts_first_and_in_it_who_is_due_first() -> None:
    w = one_slot(2)
    urgent(w, slo_class="batch-1")
    w.grant()
    w.at(1.0)
    urgent(w, count=2, id=3)
    w.grant()
    started = []
    for _ in range(4):
        w.finish(*w.running)
        started += w.running
    assert started == ["3-1", "2-0", "1-1", "1-2"]


def test_as_many_of_each_class_are_pulled_ahead_as_if_laxer_ones_were_not_there() -> None:
    w = one_slot(2)
    urgent(w, count=5)
    assert w.pulled == ["1-0", "1-1", "1-2", "2-0", "2-1"]


def test_held_ones_of_each_class_are_looked_at() -> None:
    """Nobody of the strictest class presses; of the next one somebody does."""
    w = one_slot(2)
    urgent(w, slo_class="batch-1")
    w.grant()
    w.at(50.0)
    urgent(w, id=3)
    w.grant()
    w.at(59.5)
    assert w.aborted == ["1-0"]
