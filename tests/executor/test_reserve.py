"""Room that lax work leaves to requests that are promised a first token soon: how much, for how long, and at whose expense."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qlm_core.executor.reserve import Uses
from qlm_core.messages import QueueUpdate
from qlm_core.model import Slo, SloClass
from tests.executor.world import World, group, profile, ref, refs, world

CLASSES = (
    SloClass(name="chat", slo=Slo(ttft_s=1.0, tpot_s=0.05)),
    SloClass(name="interactive", slo=Slo(ttft_s=20.0)),
    SloClass(name="batch-1", slo=Slo(ttft_s=60.0)),
    SloClass(name="batch-2", slo=Slo(ttft_s=3600.0)),
)


def busy(lax: str = "batch-2", *, due_s: float = 3600.0, **config: object) -> World:
    """Eight slots run lax work that has begun, and more of it waits."""
    w = world(profile(slots=8), classes=CLASSES, **config)
    w.queue(group(1, slo_class=lax), add=refs(1, 40, due_s=due_s, expected=1000))
    w.grant()
    for id in w.running:
        w.produce(id, 10)
    return w


class Chats:
    """Chats that come one by one."""

    def __init__(self, w: World, lax: str = "batch-2", slo_class: str = "chat") -> None:
        self.w, self.count = w, 0
        self.order = group(2, slo_class=slo_class), group(1, slo_class=lax)

    def come(self, count: int = 1, *, in_s: float = 1.0, granted: bool = True) -> list[str]:
        names = [f"2-{self.count + number}" for number in range(count)]
        self.count += count
        add = tuple(ref(name, 2, due_s=self.w.now_s + in_s) for name in names)
        self.w.queue(*self.order, add=add, epoch=1 + self.count)
        if granted:
            self.w.grant()
        return names

    def end(self, *names: str) -> None:
        self.w.finish(*names)
        self.w.grant()


def test_lax_work_gives_way_at_once_to_a_prompt_request_that_finds_no_slot() -> None:
    """Well before it would be late, and although room may come free in time."""
    w = busy()
    w.produce("1-7", 985)
    [chat] = Chats(w).come()
    assert len(w.aborted) == 1
    assert chat in w.running


def test_what_ends_while_they_come_is_kept_for_the_next_one() -> None:
    w = busy()
    chats = Chats(w)
    for _ in range(8):
        chats.end(*chats.come())
        w.at(w.now_s + 0.3)
    assert len(w.running) == 7
    [chat] = chats.come()
    assert chat in w.running


def test_when_none_comes_any_more_lax_work_takes_all_slots() -> None:
    w = busy()
    chats = Chats(w)
    for _ in range(8):
        chats.end(*chats.come())
        w.at(w.now_s + 0.3)
    w.at(w.now_s + 30.0)
    w.grant()
    assert len(w.running) == 8


def test_with_the_slot_comes_the_kv_cache_that_it_needs() -> None:
    """Eight lax requests fill the cache, not the slots; what a chat needs of it is kept free all the same."""
    # Without a promised pace, which so many prompts would not leave room for.
    classes = (SloClass(name="chat", slo=Slo(ttft_s=1.0)), *CLASSES[1:])
    engine = replace(profile(slots=16, kv_tokens=8 * 1002), max_num_batched_tokens=16_384)
    w = world(engine, classes=classes)
    w.queue(group(1), add=refs(1, 40, due_s=3600.0, prompt=1000, expected=2))
    w.grant()
    assert len(w.running) == 8
    chats = Chats(w)
    for _ in range(8):
        chats.end(*chats.come())
        w.at(w.now_s + 0.3)
    assert len(w.running) == 7


def test_one_that_takes_the_last_free_slot_is_followed_by_an_eviction() -> None:
    w = busy()
    chats = Chats(w)
    for _ in range(8):
        chats.end(*chats.come())
        w.at(w.now_s + 0.3)
    evicted = len(w.aborted)
    [chat] = chats.come()
    assert chat in w.running
    assert len(w.aborted) == evicted + 1
    assert len(w.running) == 7


def test_what_is_owed_no_more_than_is_out_gives_way_whenever_it_is_due() -> None:
    w = busy(due_s=50.0)
    came = Chats(w).come()
    w.at(0.01)
    w.tell(QueueUpdate(epoch=2, add=(ref("2-9", 2, due_s=1.01),)))
    w.grant()
    assert len(w.aborted) == 2
    assert {*came, "2-9"} < set(w.running)


def test_nobody_is_evicted_more_often_than_allowed() -> None:
    w = busy(evictions_max=0)
    [chat] = Chats(w).come()
    assert (w.aborted, chat in w.running) == ([], False)


def test_what_comes_back_is_no_arrival() -> None:
    w = busy()
    for number in range(8):
        name = f"2-{number}"
        w.queue(
            group(2, slo_class="chat"),
            group(1),
            add=(ref(name, 2, due_s=w.now_s + 1.0, produced=5),),
            epoch=2 + number,
        )
        w.finish(*w.running[:1])
        w.grant()
        w.finish(name)
        w.grant()
        w.at(w.now_s + 0.3)
    assert len(w.running) == 8


@pytest.mark.parametrize("slo_class", ["interactive", "of no known class"])
def test_nothing_is_kept_where_no_class_is_that_prompt(slo_class: str) -> None:
    w = busy()
    chats = Chats(w, slo_class=slo_class)
    for _ in range(8):
        chats.come(in_s=20.0)
        w.at(w.now_s + 0.3)
        w.finish(*w.running[:1])
        w.grant()
        assert len(w.running) == 8
    assert w.aborted == []


@pytest.mark.parametrize(("lax", "due_s"), [("batch-1", 60.0), ("batch-2", 50.0)])
def test_nor_at_the_expense_of_work_that_is_due_itself(lax: str, due_s: float) -> None:
    w = world(profile(slots=8), classes=CLASSES)
    w.queue(group(1, slo_class=lax), add=refs(1, 40, due_s=due_s, expected=1000))
    w.grant()
    chats = Chats(w, lax)
    for _ in range(8):
        chats.come(granted=False)
        w.finish(*w.running[:1])
        w.grant()
        w.at(w.now_s + 0.1)
    chats.end(*[id for id in w.running if id.startswith("2")])
    assert len(w.running) == 8


def test_nor_without_eviction() -> None:
    w = busy(eviction=False)
    chats = Chats(w)
    for _ in range(8):
        chats.come(granted=False)
        w.finish(*w.running[:1])
        w.grant()
        w.at(w.now_s + 0.1)
    chats.end(*[id for id in w.running if id.startswith("2")])
    assert (w.aborted, len(w.running)) == ([], 8)


def test_at_most_a_quarter_of_the_slots_is_kept() -> None:
    w = busy()
    chats = Chats(w)
    for _ in range(5):
        chats.end(*chats.come(5))
        w.at(w.now_s + 0.2)
    assert len(w.running) == 6


def after(uses: Uses, *, gap_s: float, together: int = 1, times: int = 60) -> int:
    for number in range(times):
        for _ in range(together):
            uses.arrived(number * gap_s)
        uses.slots(number * gap_s)
    return uses.slots(times * gap_s)


@pytest.mark.parametrize(
    ("gap_s", "together", "slots"),
    [(30.0, 1, 0), (0.5, 1, 1), (0.1, 1, 2), (0.03, 1, 5), (0.5, 3, 3)],
)
def test_as_many_are_kept_as_come_together_often_enough(
    gap_s: float, together: int, slots: int
) -> None:
    assert after(Uses(), gap_s=gap_s, together=together) == slots


def test_a_place_is_kept_a_little_longer_than_it_is_won() -> None:
    """Else arrivals that are just often enough would win and lose it in turn, an eviction each."""
    uses = Uses()
    after(uses, gap_s=0.9, times=60)
    kept = {uses.slots(54.0 + step * 0.05) for step in range(20)}
    assert kept == {1}
    assert uses.slots(90.0) == 0


def test_nobody_gives_way_to_a_prompt_request_that_is_late_already() -> None:
    """It waits like all others; an expired target makes nothing urgent."""
    w = busy()
    [late] = Chats(w).come(in_s=-0.1)
    assert w.aborted == []
    assert late not in w.running


def test_no_slot_is_kept_for_those_that_come_too_late() -> None:
    w = busy()
    chats = Chats(w)
    for _ in range(8):
        chats.come(in_s=-0.1, granted=False)
        w.at(w.now_s + 0.3)
    w.finish("1-0")
    w.grant()
    assert w.aborted == []
    assert len(w.running) == 8
