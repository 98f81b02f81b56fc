"""What the executor pulls: in which order, how much at once, and what it does with the answers."""

from __future__ import annotations

from qlm_core.messages import QueueUpdate, Refused, ReturnReason, Revoked
from qlm_core.model import RequestId
from qlm_core.outcome import PullRefusal
from tests.executor.world import group, profile, ref, refs, world


def test_pulls_first_come_first_served_up_to_its_slots_in_one_message():
    w = world(profile(slots=3))
    w.queue(group(1), add=refs(1, 5))
    assert w.pulled == ["1-0", "1-1", "1-2"]
    w.grant()
    assert w.running == ["1-0", "1-1", "1-2"]


def test_the_engine_is_told_what_is_due_first():
    w = world(profile(slots=4))
    late = (ref("1-0", 1, due_s=50.0), ref("1-1", 1, due_s=20.5), ref("1-2", 1, due_s=3600.0))
    w.queue(group(1), add=late)
    w.grant()
    assert w.priorities == {"1-0": 50_000, "1-1": 20_500, "1-2": 3_600_000}


def test_an_end_makes_room_for_the_next():
    w = world(profile(slots=2))
    w.queue(group(1), add=refs(1, 4))
    w.grant()
    w.finish("1-1")
    assert w.pulled == ["1-0", "1-1", "1-2"]
    assert [one.id for one in w.ended] == ["1-1"]


def test_goes_on_with_the_next_group_of_the_same_model_and_stops_at_another():
    w = world(profile("m1", slots=8), profile("m2", slots=8))
    w.queue(
        group(1), group(2), group(3, "m2"), group(4),
        add=refs(1, 2) + refs(2, 2) + refs(3, 2) + refs(4, 2),
    )  # fmt: skip
    assert w.pulled == ["1-0", "1-1", "2-0", "2-1"]


def test_admits_by_expected_not_by_largest_output():
    w = world(profile(slots=16, kv_tokens=1000), output_share=1.0)
    w.queue(group(1), add=refs(1, 9, prompt=100, expected=100))
    assert len(w.pulled) == 5


def test_admits_more_at_once_if_only_a_share_of_the_output_is_foreseen():
    w = world(profile(slots=16, kv_tokens=1000), output_share=0.25)
    w.queue(group(1), add=refs(1, 9, prompt=100, expected=100))
    assert len(w.pulled) == 8


def test_without_eviction_there_must_be_room_for_all_of_the_output():
    w = world(profile(slots=16, kv_tokens=1000), output_share=0.25, eviction=False)
    w.queue(group(1), add=refs(1, 9, prompt=100, expected=100))
    assert len(w.pulled) == 5


def test_growth_beyond_the_expectation_takes_room():
    w = world(profile(slots=16, kv_tokens=1000))
    w.queue(group(1), add=refs(1, 2, prompt=100, expected=100))
    w.grant()
    w.produce("1-0", 670)
    w.queue(group(1), group(2), add=refs(2, 2))
    assert w.pulled == ["1-0", "1-1"]
    w.finish("1-0")
    assert w.pulled == ["1-0", "1-1", "2-0", "2-1"]


def test_a_request_larger_than_the_cache_runs_alone():
    w = world(profile(slots=4, kv_tokens=1000))
    w.queue(group(1), add=(ref("1-0", 1, prompt=2000), ref("1-1", 1)))
    assert w.pulled == ["1-0"]


def test_pulls_a_few_ahead_and_holds_them():
    w = world(profile(slots=2), pull_ahead=2)
    w.queue(group(1), add=refs(1, 6))
    w.grant()
    w.grant()
    assert w.running == ["1-0", "1-1"]
    assert list(w.executor.batch.held) == ["1-2", "1-3"]
    w.finish("1-0")
    assert w.running == ["1-1", "1-2"]


def test_refused_is_dropped_and_the_next_one_pulled():
    w = world(profile(slots=1))
    w.queue(group(1), add=refs(1, 2))
    w.tell(Refused(RequestId("1-0"), PullRefusal.TAKEN))
    assert w.pulled == ["1-0", "1-1"]


def test_unanswered_is_asked_again_and_a_late_answer_counts():
    w = world(profile(slots=1), pull_timeout_s=5.0)
    w.queue(group(1), add=refs(1, 2))
    w.at(5.5)
    assert w.pulled == ["1-0", "1-0"]
    w.grant("1-0")
    assert w.running == ["1-0"]
    w.tell(Refused(RequestId("1-0"), PullRefusal.TAKEN))
    assert w.running == ["1-0"]


def test_an_older_epoch_is_ignored_and_a_snapshot_replaces_all():
    w = world(profile(slots=1))
    w.queue(group(1), add=refs(1, 2), epoch=5)
    w.queue(group(2), add=refs(2, 2), epoch=4)
    assert [one.id for one in w.executor.window.order] == [1]
    w.models["3"] = "m1"
    w.tell(QueueUpdate(epoch=5, snapshot=True, order=(group(3),), add=refs(3, 1)))
    assert len(w.executor.window) == 1


def test_removed_references_are_not_pulled():
    w = world(profile(slots=1))
    w.queue(group(1), add=refs(1, 3))
    w.tell(QueueUpdate(epoch=1, remove=(RequestId("1-1"),)))
    w.grant()
    w.finish("1-0")
    assert w.pulled == ["1-0", "1-2"]


def test_a_reference_to_what_is_in_flight_counts_when_the_attempt_is_revoked():
    """As after a restart of the gateway, when the solver hears of it before the agent does."""
    w = world(profile(slots=1))
    w.queue(group(1), add=refs(1, 1))
    w.grant()
    w.tell(QueueUpdate(epoch=1, add=refs(1, 1)))
    assert w.pulled == ["1-0"]
    w.tell(Revoked(RequestId("1-0"), 1))
    assert (w.aborted, w.pulled) == (["1-0"], ["1-0", "1-0"])


def test_a_grant_nobody_asked_for_goes_back():
    w = world()
    w.models["9"] = "m1"
    w.grant("9-0")
    assert w.reasons == {"9-0": ReturnReason.EVICTED}
