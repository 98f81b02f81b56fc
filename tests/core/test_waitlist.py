"""Whom a waitlist tells to come back when: whether that is true for who does, and what becomes of turns that nobody takes."""

from __future__ import annotations

import heapq
import itertools
import random

import pytest

from qlm_core.waitlist import Waitlist

CAPACITY = 100
SERVED_PER_S = 10.0
LOAD = 5.0


def test_without_anybody_on_it_only_room_counts() -> None:
    waitlist = Waitlist()
    assert waitlist.admits(1, 1, 0.0)
    assert not waitlist.admits(1, 0, 0.0)


def test_a_turn_is_kept_for_who_comes_back_in_time() -> None:
    waitlist = Waitlist()
    told_s = waitlist.refuse(1, 0.0)
    assert told_s == 1.0
    # Room that is there before may be had by anybody; later it is for the one who was told, as far as it goes.
    assert waitlist.admits(2, 1, 0.4)
    assert not waitlist.admits(2, 1, 1.0)
    assert waitlist.admits(2, 2, 1.0)
    assert waitlist.admits(1, 1, 1.0)
    assert waitlist.admits(2, 1, 1.0)


def test_a_turn_that_nobody_takes_is_void_after_a_while() -> None:
    waitlist = Waitlist()
    waitlist.refuse(1, 0.0)
    assert not waitlist.admits(2, 1, 2.0)
    # It is not kept free for long, though it may be taken for longer.
    assert waitlist.admits(2, 1, 4.0)
    assert len(waitlist) == 1
    assert waitlist.admits(2, 1, 10.0)
    assert len(waitlist) == 0


def test_turns_follow_each_other_at_the_pace_of_ends() -> None:
    waitlist = Waitlist()
    for end_s in range(1, 11):
        waitlist.ended(2.0 * end_s)
    told = [waitlist.refuse(key, 20.0) for key in range(4)]
    steps = [later - sooner for sooner, later in itertools.pairwise(told)]
    assert steps == pytest.approx([1.8] * 3)
    # What the solver knows of lateness comes before the pace.
    assert waitlist.refuse(9, 20.0, in_s=100.0) == 100.0


def test_where_others_take_the_room_it_is_told() -> None:
    waitlist = Waitlist()
    for end_s in range(10):
        waitlist.ended(float(end_s))
    assert waitlist.refuse(0, 10.0) == 1.0
    # Nobody has come in for half a minute, whatever ended before.
    for second in range(11, 40):
        assert not waitlist.admits(second, 0, float(second))
        waitlist.refuse(second, float(second))
    assert waitlist.refuse(1, 40.0) >= 30.0


def test_who_asks_too_early_is_told_the_same_instant() -> None:
    waitlist = Waitlist()
    assert waitlist.refuse(1, 0.0, in_s=30.0) == 30.0
    assert waitlist.refuse(1, 10.0) == 20.0
    # At the same moment it is another one who says the same.
    assert waitlist.refuse(2, 20.0, in_s=30.0) == 30.0
    assert waitlist.refuse(2, 20.1, in_s=30.0) >= 30.0
    assert len(waitlist) == 3


def run(comes_back: float, *, until_s: float = 120.0, seed: int = 1) -> tuple[list[float], int]:
    """A server of limited capacity under overload, whose clients come back when told with some probability.

    Returns how long after they were first told each of those was admitted, over what it was told; and how many were served.
    """
    draw = random.Random(seed)
    waitlist, used, served = Waitlist(), CAPACITY, 0
    truth: list[float] = []
    events: list[tuple[float, int, str, int, float, float]] = []
    heapq.heappush(events, (0.0, 0, "end", 0, 0.0, 0.0))
    heapq.heappush(events, (0.0, 1, "new", 1, 0.0, 0.0))
    number = 2
    while events and events[0][0] < until_s:
        now_s, _, kind, key, first_s, told_s = heapq.heappop(events)
        if kind == "end":
            if used:
                waitlist.ended(now_s)
                used, served = used - 1, served + 1
            next_s = now_s + draw.expovariate(SERVED_PER_S)
            heapq.heappush(events, (next_s, number, "end", 0, 0.0, 0.0))
            number += 1
            continue
        if kind == "new":
            next_s = now_s + draw.expovariate(LOAD * SERVED_PER_S)
            heapq.heappush(events, (next_s, number, "new", number, 0.0, 0.0))
            number += 1
        if waitlist.admits(key, CAPACITY - used, now_s):
            used += 1
            if told_s:
                truth.append((now_s - first_s) / told_s)
            continue
        retry_s = waitlist.refuse(key, now_s)
        first_s, told_s = (first_s, told_s) if told_s else (now_s, retry_s)
        if draw.random() < comes_back:
            heapq.heappush(events, (now_s + retry_s, number, "again", key, first_s, told_s))
            number += 1
    return truth, served


@pytest.mark.parametrize("comes_back", [1.0, 0.5])
def test_under_overload_it_is_true_for_who_comes_back(comes_back: float) -> None:
    truth, _ = run(comes_back)
    assert len(truth) > 500
    assert sum(0.5 <= one <= 2.0 for one in truth) / len(truth) >= 0.9


def test_capacity_is_used_even_if_nobody_comes_back() -> None:
    _, served = run(0.0)
    assert served > 0.9 * 120.0 * SERVED_PER_S
    assert run(0.5)[1] > 0.9 * 120.0 * SERVED_PER_S
    waitlist = Waitlist()
    for second in range(200):
        waitlist.ended(float(second))
        waitlist.admits(1000 + second, 10, float(second))
        waitlist.refuse(second, float(second))
    # Nearly nobody comes, so turns lie close together and those who do come are not sent far away.
    assert waitlist.refuse(999, 200.0) < 20.0
