"""The schedule of deliveries, by events alone: tried later and later, receivers let rest, given up after three days."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from qlm_core import webhooks as wh
from qlm_core.webhooks import (
    Delivered,
    Delivery,
    Drop,
    Effect,
    Failed,
    Later,
    Schedule,
    Told,
    Try,
    Why,
    Woken,
)

DAY_S = 86_400.0


def one(number: int = 0, receiver: str = "there") -> Delivery:
    return Delivery(f"evt-{number}", receiver)


def told(delivery: Delivery, at_s: float = 0.0) -> Told:
    return Told(delivery, at_s + wh.TRIED_S, at_s)


class Run:
    """A schedule that is woken in time, with what it wanted."""

    def __init__(self, *, tries_max: int = 16, waiting_max: int = 100) -> None:
        self.schedule = Schedule(tries_max=tries_max, waiting_max=waiting_max)
        self.now_s = 0.0
        self.done: list[tuple[float, Effect]] = []

    def say(self, *events: wh.Event) -> list[Effect]:
        effects = []
        for event in events:
            effects += self.schedule.handle(event, now_s=self.now_s)
        self.done += [(self.now_s, effect) for effect in effects]
        return effects

    def until_woken(self) -> list[Effect]:
        """Let time pass until there is something to do."""
        wakeup_s = self.schedule.wakeup_s
        assert wakeup_s is not None
        self.now_s = max(self.now_s, wakeup_s)
        return self.say(Woken())

    def tries(self) -> list[float]:
        return [at_s for at_s, effect in self.done if isinstance(effect, Try)]


def tries_of(effects: Iterable[Effect]) -> list[str]:
    return [effect.delivery.event for effect in effects if isinstance(effect, Try)]


def test_what_is_told_is_tried_at_once_and_forgotten_once_it_is_taken() -> None:
    run = Run()
    assert run.say(told(one())) == [Try(one())]
    assert run.schedule.wakeup_s is None
    assert run.say(Delivered(one())) == [Drop(one(), Why.DELIVERED)]
    assert run.schedule.waiting("there") == 0
    assert run.schedule.wakeup_s is None


def test_what_is_known_is_told_once() -> None:
    run = Run()
    run.say(told(one()))
    assert run.say(told(one())) == []
    run.say(Failed(one()))
    assert run.say(told(one())) == []
    assert run.schedule.waiting("there") == 1


def test_a_delivery_is_tried_later_and_later_for_three_days_and_then_given_up() -> None:
    run = Run()
    run.say(told(one()))
    while run.schedule.waiting("there"):
        run.say(Failed(one()))
        if run.schedule.waiting("there"):
            assert Try(one()) in run.until_woken()
    tries = run.tries()
    pauses = [later - earlier for earlier, later in pairwise(tries)]
    assert wh.BACKOFF_S <= pauses[0] < 2 * wh.BACKOFF_S
    for first, second in pairwise(pauses[:9]):
        assert first < second < 2 * (1 + wh.SPREAD) * first
    assert max(pauses) <= wh.BACKOFF_S_MAX * (1 + wh.SPREAD)
    assert tries[-1] == run.now_s == wh.TRIED_S
    assert run.done[-1] == (run.now_s, Drop(one(), Why.EXPIRED))
    assert 100 < len(tries) < 300
    laters = [effect for _, effect in run.done if isinstance(effect, Later)]
    assert [later.tries for later in laters] == list(range(1, len(tries)))
    assert [later.due_s for later in laters] == tries[1:]


def test_what_was_restored_goes_on_where_it_was() -> None:
    run = Run()
    assert run.say(Told(one(), until_s=1000.0, due_s=40.0, tries=4)) == []
    assert run.schedule.wakeup_s == 40.0
    assert run.until_woken() == [Try(one())]
    run.say(Failed(one()))
    assert run.schedule.wakeup_s == pytest.approx(40.0 + 16 * wh.BACKOFF_S, rel=wh.SPREAD)


def test_so_many_are_tried_at_a_time_of_each_receiver() -> None:
    run = Run(tries_max=2)
    effects = run.say(*(told(one(number, at)) for number in range(4) for at in ("here", "there")))
    assert tries_of(effects) == ["evt-0", "evt-0", "evt-1", "evt-1"]
    assert run.schedule.wakeup_s == wh.TRIED_S
    assert tries_of(run.say(Delivered(one(1, "here")))) == ["evt-2"]
    assert tries_of(run.say(Delivered(one(0, "here")))) == ["evt-3"]
    assert run.schedule.waiting("there") == 4


def test_a_receiver_that_fails_is_tried_with_one_at_a_time_until_one_succeeds() -> None:
    run = Run(tries_max=4)
    run.say(*(told(one(number)) for number in range(10)))
    # All that is under way fails: that is one failure, and nothing is tried before its pause is over.
    for number in range(4):
        assert tries_of(run.say(Failed(one(number)))) == []
    assert run.schedule.failing("there")
    assert run.schedule.wakeup_s == wh.PAUSE_S
    assert tries_of(run.until_woken()) == ["evt-4"]
    run.now_s += 1.5
    assert tries_of(run.say(Failed(one(4)))) == []
    assert run.schedule.wakeup_s == run.now_s + 2 * wh.PAUSE_S
    assert tries_of(run.until_woken()) == ["evt-5"]
    # It is back: at once as many as may be, by when they are due.
    assert tries_of(run.say(Delivered(one(5)))) == ["evt-6", "evt-7", "evt-8", "evt-9"]
    assert not run.schedule.failing("there")


def test_a_receiver_that_is_away_for_hours_has_what_was_never_tried_within_a_minute() -> None:
    run = Run(tries_max=8, waiting_max=1000)
    run.say(*(told(one(number)) for number in range(1000)))
    for number in range(8):
        run.say(Failed(one(number)))
    while run.now_s < 4 * 3600:
        for name in tries_of(run.until_woken()):
            run.say(Failed(Delivery(name, "there")))
    tries = run.tries()
    assert max(b - a for a, b in pairwise(tries)) <= wh.PAUSE_S_MAX
    # Whatever it has, a try is rare for who fails, and frequent enough for who is back.
    assert len(tries) < 8 + 10 + 4 * 60
    back_s = run.now_s
    never = 1000 - len(dict.fromkeys(e.delivery for _, e in run.done if isinstance(e, Try)))
    taken = 0
    pending = tries_of(run.until_woken())
    assert run.now_s - back_s <= wh.PAUSE_S_MAX
    while pending:
        taken += 1
        pending += tries_of(run.say(Delivered(Delivery(pending.pop(0), "there"))))
    assert taken >= never > 700


def test_one_that_always_fails_holds_up_no_other() -> None:
    run = Run(tries_max=1)
    bad, tries, taken = Delivery("bad", "there"), 0, 0

    def answered(effects: list[Effect]) -> None:
        nonlocal tries, taken
        for event in tries_of(effects):
            tries += event == "bad"
            taken += event != "bad"
            answer = Failed(bad) if event == "bad" else Delivered(Delivery(event, "there"))
            answered(run.say(answer))

    answered(run.say(told(bad)))
    for number in range(200):
        answered(run.say(told(one(number), run.now_s)))
        while (wakeup_s := run.schedule.wakeup_s or 0.0) <= 10.0 * (number + 1):
            assert wakeup_s >= run.now_s
            answered(run.until_woken())
        run.now_s = 10.0 * (number + 1)
        # Each has been taken within these seconds.
        assert taken == number + 1
    assert 8 <= tries <= 10


def test_a_receiver_may_ask_for_rest() -> None:
    run = Run()
    run.say(told(one(0)), told(one(1)), Failed(one(0), retry_after_s=30.0))
    assert run.say(told(one(2))) == []
    run.say(Failed(one(1)))
    assert run.schedule.wakeup_s == 30.0
    (event,) = tries_of(run.until_woken())
    run.say(Failed(Delivery(event, "there"), retry_after_s=1e9))
    assert run.schedule.wakeup_s == 30.0 + wh.ASKED_S_MAX
    assert len(tries_of(run.until_woken())) == 1


def test_what_nobody_could_try_in_three_days_is_given_up() -> None:
    run = Run(tries_max=1)
    run.say(told(one(0)), told(one(1)), told(one(2)))
    run.now_s = wh.TRIED_S - 1.0
    assert tries_of(run.say(Delivered(one(0)))) == ["evt-1"]
    assert run.schedule.wakeup_s == wh.TRIED_S
    assert run.until_woken() == [Drop(one(2), Why.EXPIRED)]
    # One that is under way may still succeed.
    run.now_s += 1.0
    assert run.say(Delivered(one(1))) == [Drop(one(1), Why.DELIVERED)]


def test_the_oldest_of_too_many_gives_way() -> None:
    run = Run(tries_max=1, waiting_max=3)
    run.say(told(one(0)), told(one(1)), told(one(2)), told(one(0, "elsewhere")))
    assert run.say(told(one(3))) == [Drop(one(1), Why.CROWDED)]
    assert run.schedule.waiting("there") == 3
    assert tries_of(run.say(Delivered(one(0)))) == ["evt-2"]


class Deliveries(RuleBasedStateMachine):
    """Any order of events: what was told is tried until it is taken or given up, and no more at a time than may be."""

    def __init__(self) -> None:
        super().__init__()
        self.schedule = Schedule(tries_max=3, waiting_max=6)
        self.now_s = 0.0
        self.number = 0
        self.tried: list[Delivery] = []
        self.waiting: dict[Delivery, float] = {}

    def say(self, event: wh.Event) -> None:
        for effect in self.schedule.handle(event, now_s=self.now_s):
            match effect:
                case Try(delivery):
                    assert delivery in self.waiting
                    assert delivery not in self.tried
                    self.tried.append(delivery)
                case Later(delivery, tries, due_s):
                    assert delivery in self.waiting
                    assert tries > 0
                    assert self.now_s < due_s <= self.waiting[delivery]
                case Drop(delivery, why):
                    until_s = self.waiting.pop(delivery)
                    assert delivery not in self.tried
                    assert why is not Why.EXPIRED or until_s <= self.now_s

    @rule(receiver=st.sampled_from(["here", "there"]), lasts_s=st.sampled_from([100.0, wh.TRIED_S]))
    def tell(self, receiver: str, lasts_s: float) -> None:
        self.number += 1
        delivery = Delivery(str(self.number), receiver)
        self.waiting[delivery] = self.now_s + lasts_s
        self.say(Told(delivery, self.now_s + lasts_s, self.now_s))

    @precondition(lambda self: self.tried)
    @rule(data=st.data(), retry_after_s=st.sampled_from([None, 0.0, 7.0]))
    def end(self, data: st.DataObject, retry_after_s: float | None) -> None:
        delivery = data.draw(st.sampled_from(self.tried))
        self.tried.remove(delivery)
        failed = retry_after_s is not None
        self.say(Failed(delivery, retry_after_s or 0.0) if failed else Delivered(delivery))

    @rule(seconds=st.sampled_from([0.1, 1.0, 30.0, 2000.0]))
    def pass_time(self, seconds: float) -> None:
        end_s = self.now_s + seconds
        while (wakeup_s := self.schedule.wakeup_s) is not None and wakeup_s <= end_s:
            self.now_s = max(self.now_s, wakeup_s)
            before = wakeup_s
            self.say(Woken())
            after = self.schedule.wakeup_s
            assert after is None or after > before, "it would be woken for ever"
        self.now_s = end_s

    @invariant()
    def nothing_is_lost(self) -> None:
        for receiver in ("here", "there"):
            count = sum(delivery.receiver == receiver for delivery in self.waiting)
            assert self.schedule.waiting(receiver) == count <= 6
            assert sum(delivery.receiver == receiver for delivery in self.tried) <= 3
        if len(self.waiting) > len(self.tried):
            assert self.schedule.wakeup_s is not None


TestDeliveries = Deliveries.TestCase
TestDeliveries.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
