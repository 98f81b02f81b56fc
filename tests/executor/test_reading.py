"""What an engine is given of prompts, and who goes first when not all can be in time."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qlm_core.executor.reading import Reading
from qlm_core.model import Slo, SloClass
from tests.executor.world import World, group, profile, ref, world

CHUNK = 2048
PAST_S, SOON_S, LATER_S = 0.0, 20.0, 30.0
CLASSES = (
    SloClass(name="chat", slo=Slo(ttft_s=20.0)),
    SloClass(name="batch", slo=Slo(ttft_s=3600.0)),
)


def start(slots: int = 16, **config: object) -> World:
    return world(profile(slots=slots), classes=CLASSES, **config)


def chats(w: World, *dues_s: float, prompt: int = 100) -> None:
    add = tuple(ref(f"1-{i}", 1, due_s=due_s, prompt=prompt) for i, due_s in enumerate(dues_s))
    w.queue(group(1, slo_class="chat"), add=add)


def test_an_engine_is_given_what_it_reads_and_an_iterations_worth_behind_that() -> None:
    w = start()
    chats(w, *[SOON_S] * 10, prompt=1000)
    w.grant()
    # One is being read; three of 1,000 tokens are more than the 2,048 of an iteration.
    assert w.running == ["1-0", "1-1", "1-2", "1-3"]
    w.produce("1-0", 1)
    w.grant()
    assert w.running == ["1-0", "1-1", "1-2", "1-3", "1-4"]


def test_a_long_prompt_keeps_nobody_waiting_who_is_due_before_it() -> None:
    w = start()
    w.queue(group(1, slo_class="batch"), add=(ref("1-0", 1, prompt=50_000),))
    w.grant()
    w.queue(
        group(1, slo_class="batch"),
        group(2, slo_class="chat"),
        add=(ref("2-0", 2, due_s=SOON_S, prompt=3000),),
        epoch=2,
    )
    w.grant()
    assert w.running == ["1-0", "2-0"]


def test_who_can_be_in_time_is_asked_for_before_who_cannot() -> None:
    w = start(slots=1)
    chats(w, PAST_S, PAST_S, SOON_S)
    assert w.pulled == ["1-2"]


def test_also_from_a_later_group_of_the_class_but_not_of_another_model() -> None:
    w = world(profile("m1", slots=1), profile("m2", slots=1), classes=CLASSES)
    w.queue(
        group(1, slo_class="chat"),
        group(2, slo_class="batch"),
        group(3, slo_class="chat"),
        group(4, "m2", "chat"),
        add=(
            ref("1-0", 1, due_s=PAST_S),
            ref("2-0", 2),
            ref("3-0", 3, due_s=SOON_S),
            ref("4-0", 4, due_s=SOON_S),
        ),
    )
    assert w.pulled == ["3-0"]


def test_who_cannot_is_served_all_the_same_when_nobody_can() -> None:
    w = start(slots=1)
    chats(w, PAST_S, SOON_S)
    w.grant()
    w.produce("1-1", 1)
    w.finish("1-1")
    assert w.pulled == ["1-1", "1-0"]


def test_who_turned_late_while_waiting_here_starts_after_who_did_not() -> None:
    w = start(slots=1, pull_ahead=2, eviction=False)
    chats(w, SOON_S, SOON_S, LATER_S)
    w.grant()
    w.grant()
    w.produce("1-0", 1)
    w.at(21.0)
    w.finish("1-0")
    assert w.running == ["1-2"]


def test_the_large_one_that_cannot_be_in_time_is_read_after_the_small_ones_that_can() -> None:
    w = start(pull_ahead=4)
    w.at(18.0)
    small = tuple(ref(f"1-{i}", 1, due_s=SOON_S, prompt=400) for i in range(8))
    large = ref("1-large", 1, due_s=SOON_S, prompt=16_000)
    w.queue(group(1, slo_class="chat"), add=(*small[:4], large, *small[4:]))
    w.grant()
    for id in ("1-0", "1-1", "1-2", "1-3"):
        w.produce(id, 1)
        w.grant()
    assert w.submitted[:8] == [one.id for one in small]


def test_the_engine_reads_who_is_late_as_if_he_had_just_come() -> None:
    w = start()
    w.at(5.0)
    chats(w, 1.0, SOON_S)
    w.grant()
    assert w.priorities == {"1-0": 25_000, "1-1": 20_000}


def reading(**change: object) -> Reading:
    made = Reading()
    made.engine(replace(profile(), **change))  # type: ignore[arg-type]
    return made


def test_a_first_token_may_take_a_quarter_longer_than_the_profile_says() -> None:
    one = reading()
    request = ref("a", 1, due_s=10.0, prompt=2000)
    by_profile_s = 2000 * one.token_s
    assert one.in_time(request, 10.0 - 1.3 * by_profile_s)
    assert not one.in_time(request, 10.0 - 1.2 * by_profile_s)


def test_who_has_begun_is_never_late() -> None:
    begun = replace(ref("a", 1, due_s=10.0), produced_tokens=1)
    assert reading().in_time(begun, 1000.0)


def test_a_first_token_is_foreseen_behind_what_the_engine_has_to_read_before() -> None:
    one = reading()
    request = ref("a", 1, due_s=10.0, prompt=100)
    now_s = 10.0 - 4.0 * CHUNK * one.token_s
    assert one.in_time(request, now_s)
    one.begin(ref("later", 1, due_s=11.0), 4 * CHUNK, 11.0)
    assert one.in_time(request, now_s)
    one.begin(ref("before", 1, due_s=9.0), 4 * CHUNK, 9.0)
    assert not one.in_time(request, now_s)


@pytest.mark.parametrize(("cached", "many"), [(0, 4), (None, 4), (900, 16)])
def test_prompts_that_are_cached_leave_room_for_more(cached: int | None, many: int) -> None:
    one = reading()
    for _ in range(100):
        one.cached(1000, cached)
    given = 0
    while one.takes(10.0) and given < 16:
        one.begin(ref(f"{given}", 1, prompt=1000), 1000, 10.0)
        given += 1
    assert given == many
