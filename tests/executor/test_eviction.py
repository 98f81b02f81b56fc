"""Whom the executor evicts, when, and whom it spares."""

from __future__ import annotations

import pytest

from qlm_core.messages import QueueUpdate
from qlm_core.model import Slo, SloClass
from tests.executor.world import World, group, profile, refs, world


def start(**config: object) -> World:
    """Two batch requests fill the engine, with 4,000 tokens (80 s and more) to go."""
    w = world(profile(slots=2), **config)
    w.queue(group(1), add=refs(1, 3, expected=1000))
    w.grant()
    return w


def urgent(
    w: World, count: int = 1, *, due_s: float = 20.0, epoch: int = 2, slo_class: str = "interactive"
) -> None:
    w.queue(group(2, slo_class=slo_class), group(1), add=refs(2, count, due_s=due_s), epoch=epoch)


def test_waits_until_the_last_moment_then_evicts_what_is_needed():
    w = start()
    urgent(w)
    w.at(10.0)
    assert w.aborted == []
    w.at(19.5)
    assert w.aborted == ["1-0"]
    assert w.pulled[-1] == "2-0"
    w.grant("2-0")
    assert w.running == ["1-1", "2-0"]
    assert w.now_s < 20.0


def test_not_if_a_slot_comes_free_in_time():
    w = start()
    urgent(w)
    w.at(16.0)
    w.finish("1-0")
    w.grant("2-0")
    w.at(30.0)
    assert w.aborted == []


@pytest.mark.parametrize(("expected", "aborted"), [(1000, []), (600, ["1-1"])])
def test_an_end_is_counted_on_only_where_the_limit_makes_it_certain(expected, aborted):
    """Ten tokens short of its limit of 1,000 an output will end in time; short of its expectation it may go on."""
    w = world(profile(slots=2))
    w.queue(group(1), add=refs(1, 2, expected=expected))
    w.grant()
    w.at(18.0)
    w.produce("1-0", expected - 10)
    urgent(w)
    w.at(19.3)
    assert w.aborted == aborted


@pytest.mark.parametrize("before", [[], [9]])
def test_never_what_the_plan_puts_first(before: list[int]):
    w = world(profile(slots=2))
    first = [*map(group, before), group(1)]
    w.queue(*first, add=refs(1, 2, expected=1000))
    w.grant()
    w.queue(*first, group(2, slo_class="interactive"), add=refs(2, 1, due_s=20.0), epoch=2)
    w.at(30.0)
    assert w.aborted == []


def test_never_for_a_head_that_is_late_already():
    w = start()
    w.at(30.0)
    urgent(w, due_s=29.0)
    w.at(60.0)
    assert w.aborted == []


def test_never_a_stricter_class_or_an_equal_one_without_a_token():
    w = world(profile(slots=2))
    w.queue(group(1, slo_class="interactive"), add=refs(1, 2, expected=1000))
    w.grant()
    urgent(w, slo_class="batch-1", due_s=10.0)
    urgent(w, slo_class="interactive", due_s=10.0, epoch=3)
    w.at(12.0)
    assert w.aborted == []


def test_least_progress_is_lost_first_and_only_as_much_as_needed():
    w = start()
    w.produce("1-0", 50)
    urgent(w)
    w.at(19.5)
    assert w.aborted == ["1-1"]


def test_a_burst_starts_early_enough_for_its_own_prefills():
    w = start()
    # Two prompts of 20,000 tokens take 2.2 s each, so the second has to start by 15.6 s.
    w.queue(
        group(2, slo_class="interactive"), group(1),
        add=refs(2, 2, due_s=20.0, prompt=20_000), epoch=2,
    )  # fmt: skip
    w.at(12.0)
    assert w.aborted == []
    w.at(13.0)
    assert sorted(w.aborted) == ["1-0", "1-1"]


def test_the_evicted_one_comes_back_only_after_the_urgent_group():
    w = start()
    urgent(w, count=2)
    w.at(19.5)
    w.tell(QueueUpdate(epoch=2, add=refs(1, 2, produced=1)))
    pulls = [id for id in w.pulled if id.startswith("2")]
    assert pulls == ["2-0", "2-1"]
    assert w.pulled.count("1-0") == 1


def test_at_once_if_more_would_be_late_than_evictions_can_save():
    w = start()
    urgent(w, count=3)
    w.at(1.0)
    assert sorted(w.aborted) == ["1-0", "1-1"]


def test_laxer_work_gives_way_before_the_cache_overflows():
    w = world(profile(slots=4, kv_tokens=1000), output_share=0.0)
    strict = group(2, slo_class="interactive")
    w.queue(strict, group(1), add=(*refs(2, 2, due_s=99.0), *refs(1, 2)))
    w.grant()
    w.produce("2-0", 350)
    w.produce("1-0", 250)
    w.at(1.0)
    assert w.aborted == []
    w.produce("2-1", 50)
    w.at(2.0)
    assert w.aborted == ["1-1"]


def test_work_of_one_class_does_not_give_way_to_itself():
    w = world(profile(slots=4, kv_tokens=1000), output_share=0.0)
    w.queue(group(1), add=refs(1, 2))
    w.grant()
    w.produce("1-0", 900)
    w.at(2.0)
    assert w.aborted == []


def test_begun_work_gives_way_to_a_first_token_of_its_class():
    w = full_of_interactive()
    w.produce("1-0", 5)
    urgent(w, slo_class="interactive", count=2)
    w.at(19.5)
    assert w.aborted == ["1-0"]
    assert w.pulled[2:] == ["2-0"]


def test_begun_work_of_a_class_that_promises_a_pace_does_not():
    pace = SloClass(name="interactive", slo=Slo(ttft_s=20.0, tpot_s=0.1))
    w = full_of_interactive(classes=(pace,))
    w.produce("1-0", 5)
    urgent(w, slo_class="interactive", count=2)
    w.at(60.0)
    assert w.aborted == []


def test_begun_work_of_which_more_is_promised_gives_way_last():
    """Even to work of a stricter class than what gives way instead."""
    promised = SloClass(name="batch-2", slo=Slo(ttft_s=3600.0, e2e_s=7200.0))
    first_only = SloClass(name="batch-1", slo=Slo(ttft_s=60.0))
    strict = SloClass(name="interactive", slo=Slo(ttft_s=20.0))
    w = world(profile(slots=2), classes=(promised, first_only, strict))
    w.queue(
        group(1, slo_class="batch-2"), group(3, slo_class="batch-1"),
        add=(*refs(1, 1, expected=1000), *refs(3, 1, expected=1000, due_s=60.0)),
    )  # fmt: skip
    w.grant()
    w.produce("1-0", 5)
    w.produce("3-0", 500)
    w.queue(
        group(2, slo_class="interactive"), group(1, slo_class="batch-2"),
        add=refs(2, 1, due_s=20.0), epoch=2,
    )  # fmt: skip
    w.at(19.5)
    assert w.aborted == ["3-0"]


def test_a_class_is_as_lax_as_the_sooner_of_its_first_token_and_its_end():
    """Its `ttft_s` is the largest of all, and yet it does not give way."""
    sooner = SloClass(name="batch-1", slo=Slo(ttft_s=3600.0, e2e_s=10.0))
    strict = SloClass(name="interactive", slo=Slo(ttft_s=20.0))
    w = world(profile(slots=1), classes=(sooner, strict))
    w.queue(group(1, slo_class="batch-1"), add=refs(1, 1, expected=1000))
    w.grant()
    w.produce("1-0", 5)
    w.queue(
        group(2, slo_class="interactive"), group(1, slo_class="batch-1"),
        add=refs(2, 1, due_s=20.0), epoch=2,
    )  # fmt: skip
    w.at(19.5)
    assert w.aborted == []


@pytest.mark.parametrize(("due_s", "pulled"), [(9.0, "2-0"), (11.0, "1-0")])
def test_what_came_back_begun_lets_pass_whose_time_is_half_up(due_s, pulled):
    w = world(profile(slots=1))
    w.queue(
        group(1, slo_class="interactive"), group(2, slo_class="interactive"),
        add=(*refs(1, 1, produced=5), *refs(2, 1, due_s=due_s)),
    )  # fmt: skip
    assert w.pulled == [pulled]


def full_of_interactive(**changes):
    w = world(profile(slots=2), **changes)
    w.queue(group(1, slo_class="interactive"), add=refs(1, 2, expected=1000))
    w.grant()
    return w


def test_bounded_per_request():
    w = world(profile(slots=1), evictions_max=1)
    w.queue(group(1), add=refs(1, 1, expected=1000))
    w.grant()
    urgent(w)
    w.at(19.5)
    assert w.aborted == ["1-0"]
    w.grant("2-0")
    w.finish("2-0")
    w.tell(QueueUpdate(epoch=2, add=refs(1, 1, expected=1000)))
    w.grant("1-0")
    w.queue(group(3, slo_class="interactive"), group(1), add=refs(3, 1, due_s=40.0), epoch=3)
    w.at(60.0)
    assert w.aborted == ["1-0"]


def test_can_be_switched_off():
    w = start(eviction=False)
    urgent(w)
    w.at(60.0)
    assert w.aborted == []


def test_a_stale_output_of_the_evicted_attempt_changes_nothing():
    w = start()
    urgent(w)
    w.at(19.5)
    w.finish("1-0")
    assert [one.id for one in w.ended] == []
