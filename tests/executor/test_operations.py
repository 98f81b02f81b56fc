"""The four operations of the executor, each by the smallest queue that shows it."""

from __future__ import annotations

import pytest

from qlm_core.executor import (
    Drain,
    EngineDown,
    EngineReady,
    ExecutorState,
    GatewayLost,
    GatewayUp,
    JobLost,
    JobRefused,
    SwapFailed,
)
from qlm_core.messages import QueueUpdate, Refused, ReturnReason, Revoked
from qlm_core.model import GatewayId, ModelName, RequestId, Slo, SloClass
from qlm_core.outcome import PullRefusal
from tests.executor.world import GATEWAY, group, profile, ref, refs, world

M1, M2 = ModelName("m1"), ModelName("m2")


def reasons(w):  # type: ignore[no-untyped-def]
    return {one.id: one.reason for one in w.returned}


class TestPulling:
    def test_pulls_first_come_first_served_up_to_its_slots_in_one_message(self):
        w = world(profile(slots=3))
        w.queue(group(1), add=refs(1, 5))
        assert w.pulled == ["1-0", "1-1", "1-2"]
        w.grant()
        assert w.running == ["1-0", "1-1", "1-2"]

    def test_an_end_makes_room_for_the_next(self):
        w = world(profile(slots=2))
        w.queue(group(1), add=refs(1, 4))
        w.grant()
        w.finish("1-1")
        assert w.pulled == ["1-0", "1-1", "1-2"]
        assert [one.id for one in w.ended] == ["1-1"]

    def test_goes_on_with_the_next_group_of_the_same_model_and_stops_at_another(self):
        w = world(profile("m1", slots=8), profile("m2", slots=8))
        w.queue(
            group(1), group(2), group(3, "m2"), group(4),
            add=refs(1, 2) + refs(2, 2) + refs(3, 2) + refs(4, 2),
        )  # fmt: skip
        assert w.pulled == ["1-0", "1-1", "2-0", "2-1"]

    def test_admits_by_expected_not_by_largest_output(self):
        w = world(profile(slots=16, kv_tokens=1000), output_share=1.0)
        w.queue(group(1), add=refs(1, 9, prompt=100, expected=100))
        assert len(w.pulled) == 5

    def test_admits_more_at_once_if_only_a_share_of_the_output_is_foreseen(self):
        w = world(profile(slots=16, kv_tokens=1000), output_share=0.25)
        w.queue(group(1), add=refs(1, 9, prompt=100, expected=100))
        assert len(w.pulled) == 8

    def test_without_eviction_there_must_be_room_for_all_of_the_output(self):
        w = world(profile(slots=16, kv_tokens=1000), output_share=0.25, eviction=False)
        w.queue(group(1), add=refs(1, 9, prompt=100, expected=100))
        assert len(w.pulled) == 5

    def test_growth_beyond_the_expectation_takes_room(self):
        w = world(profile(slots=16, kv_tokens=1000))
        w.queue(group(1), add=refs(1, 2, prompt=100, expected=100))
        w.grant()
        w.produce("1-0", 670)
        w.queue(group(1), group(2), add=refs(2, 2))
        assert w.pulled == ["1-0", "1-1"]
        w.finish("1-0")
        assert w.pulled == ["1-0", "1-1", "2-0", "2-1"]

    def test_a_request_larger_than_the_cache_runs_alone(self):
        w = world(profile(slots=4, kv_tokens=1000))
        w.queue(group(1), add=(ref("1-0", 1, prompt=2000), ref("1-1", 1)))
        assert w.pulled == ["1-0"]

    def test_pulls_a_few_ahead_and_holds_them(self):
        w = world(profile(slots=2), pull_ahead=2)
        w.queue(group(1), add=refs(1, 6))
        w.grant()
        w.grant()
        assert w.running == ["1-0", "1-1"]
        assert list(w.executor.batch.held) == ["1-2", "1-3"]
        w.finish("1-0")
        assert w.running == ["1-1", "1-2"]

    def test_refused_is_dropped_and_the_next_one_pulled(self):
        w = world(profile(slots=1))
        w.queue(group(1), add=refs(1, 2))
        w.tell(Refused(RequestId("1-0"), PullRefusal.TAKEN))
        assert w.pulled == ["1-0", "1-1"]

    def test_unanswered_is_asked_again_and_a_late_answer_counts(self):
        w = world(profile(slots=1), pull_timeout_s=5.0)
        w.queue(group(1), add=refs(1, 2))
        w.at(5.5)
        assert w.pulled == ["1-0", "1-0"]
        w.grant("1-0")
        assert w.running == ["1-0"]
        w.tell(Refused(RequestId("1-0"), PullRefusal.TAKEN))
        assert w.running == ["1-0"]

    def test_an_older_epoch_is_ignored_and_a_snapshot_replaces_all(self):
        w = world(profile(slots=1))
        w.queue(group(1), add=refs(1, 2), epoch=5)
        w.queue(group(2), add=refs(2, 2), epoch=4)
        assert [one.id for one in w.executor.window.order] == [1]
        w.models["3"] = "m1"
        w.tell(QueueUpdate(epoch=5, snapshot=True, order=(group(3),), add=refs(3, 1)))
        assert len(w.executor.window) == 1

    def test_removed_references_are_not_pulled(self):
        w = world(profile(slots=1))
        w.queue(group(1), add=refs(1, 3))
        w.tell(QueueUpdate(epoch=1, remove=(RequestId("1-1"),)))
        w.grant()
        w.finish("1-0")
        assert w.pulled == ["1-0", "1-2"]

    def test_a_reference_to_what_is_in_flight_counts_when_the_attempt_is_revoked(self):
        """As after a restart of the gateway, when the solver hears of it before the agent does."""
        w = world(profile(slots=1))
        w.queue(group(1), add=refs(1, 1))
        w.grant()
        w.tell(QueueUpdate(epoch=1, add=refs(1, 1)))
        assert w.pulled == ["1-0"]
        w.tell(Revoked(RequestId("1-0"), 1))
        assert (w.aborted, w.pulled) == (["1-0"], ["1-0", "1-0"])

    def test_a_grant_nobody_asked_for_goes_back(self):
        w = world()
        w.models["9"] = "m1"
        w.grant("9-0")
        assert reasons(w) == {"9-0": ReturnReason.EVICTED}


class TestEviction:
    def start(self, **config):  # type: ignore[no-untyped-def]
        """Two batch requests fill the engine, with 4,000 tokens (80 s and more) to go."""
        w = world(profile(slots=2), **config)
        w.queue(group(1), add=refs(1, 3, expected=1000))
        w.grant()
        return w

    def urgent(self, w, count=1, *, due_s=20.0, epoch=2, slo_class="interactive"):  # type: ignore[no-untyped-def]
        w.queue(
            group(2, slo_class=slo_class), group(1), add=refs(2, count, due_s=due_s), epoch=epoch
        )

    def test_waits_until_the_last_moment_then_evicts_what_is_needed(self):
        w = self.start()
        self.urgent(w)
        w.at(10.0)
        assert w.aborted == []
        w.at(19.5)
        assert w.aborted == ["1-0"]
        assert w.pulled[-1] == "2-0"
        w.grant("2-0")
        assert w.running == ["1-1", "2-0"]
        assert w.now_s < 20.0

    def test_not_if_a_slot_comes_free_in_time(self):
        w = self.start()
        self.urgent(w)
        w.at(18.0)
        w.finish("1-0")
        w.grant("2-0")
        w.at(30.0)
        assert w.aborted == []

    def test_not_if_one_is_expected_to_come_free_in_time(self):
        w = world(profile(slots=2))
        w.queue(group(1), add=refs(1, 2, expected=1000))
        w.grant()
        w.at(18.0)
        w.produce("1-0", 990)
        self.urgent(w)
        w.at(19.3)
        assert w.aborted == []

    def test_never_for_a_head_that_is_late_already(self):
        w = self.start()
        w.at(30.0)
        self.urgent(w, due_s=29.0)
        w.at(60.0)
        assert w.aborted == []

    def test_never_a_stricter_class_or_an_equal_one_without_a_token(self):
        w = world(profile(slots=2))
        w.queue(group(1, slo_class="interactive"), add=refs(1, 2, expected=1000))
        w.grant()
        self.urgent(w, slo_class="batch-1", due_s=10.0)
        self.urgent(w, slo_class="interactive", due_s=10.0, epoch=3)
        w.at(12.0)
        assert w.aborted == []

    def test_least_progress_is_lost_first_and_only_as_much_as_needed(self):
        w = self.start()
        w.produce("1-0", 50)
        self.urgent(w)
        w.at(19.5)
        assert w.aborted == ["1-1"]

    def test_a_burst_starts_early_enough_for_its_own_prefills(self):
        w = self.start()
        # Two prompts of 20,000 tokens take 2.2 s each, so the second has to start by 15.6 s.
        w.queue(
            group(2, slo_class="interactive"), group(1),
            add=refs(2, 2, due_s=20.0, prompt=20_000), epoch=2,
        )  # fmt: skip
        w.at(14.0)
        assert w.aborted == []
        w.at(15.0)
        assert sorted(w.aborted) == ["1-0", "1-1"]

    def test_the_evicted_one_comes_back_only_after_the_urgent_group(self):
        w = self.start()
        self.urgent(w, count=2)
        w.at(19.5)
        w.tell(QueueUpdate(epoch=2, add=refs(1, 2, produced=1)))
        pulls = [id for id in w.pulled if id.startswith("2")]
        assert pulls == ["2-0", "2-1"]
        assert w.pulled.count("1-0") == 1

    def test_at_once_if_more_would_be_late_than_evictions_can_save(self):
        w = self.start()
        self.urgent(w, count=3)
        w.at(1.0)
        assert sorted(w.aborted) == ["1-0", "1-1"]

    def test_laxer_work_gives_way_before_the_cache_overflows(self):
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

    def test_work_of_one_class_does_not_give_way_to_itself(self):
        w = world(profile(slots=4, kv_tokens=1000), output_share=0.0)
        w.queue(group(1), add=refs(1, 2))
        w.grant()
        w.produce("1-0", 900)
        w.at(2.0)
        assert w.aborted == []

    def test_begun_work_gives_way_to_a_first_token_of_its_class(self):
        w = self.full_of_interactive()
        w.produce("1-0", 5)
        self.urgent(w, slo_class="interactive", count=2)
        w.at(19.5)
        assert w.aborted == ["1-0"]
        assert w.pulled[2:] == ["2-0"]

    def test_begun_work_of_a_class_that_promises_a_pace_does_not(self):
        pace = SloClass(name="interactive", slo=Slo(ttft_s=20.0, tpot_s=0.1))
        w = self.full_of_interactive(classes=(pace,))
        w.produce("1-0", 5)
        self.urgent(w, slo_class="interactive", count=2)
        w.at(60.0)
        assert w.aborted == []

    @pytest.mark.parametrize(("due_s", "pulled"), [(9.0, "2-0"), (11.0, "1-0")])
    def test_what_came_back_begun_lets_pass_whose_time_is_half_up(self, due_s, pulled):
        w = world(profile(slots=1))
        w.queue(
            group(1, slo_class="interactive"), group(2, slo_class="interactive"),
            add=(*refs(1, 1, produced=5), *refs(2, 1, due_s=due_s)),
        )  # fmt: skip
        assert w.pulled == [pulled]

    def full_of_interactive(self, **changes):
        w = world(profile(slots=2), **changes)
        w.queue(group(1, slo_class="interactive"), add=refs(1, 2, expected=1000))
        w.grant()
        return w

    def test_bounded_per_request(self):
        w = world(profile(slots=1), evictions_max=1)
        w.queue(group(1), add=refs(1, 1, expected=1000))
        w.grant()
        self.urgent(w)
        w.at(19.5)
        assert w.aborted == ["1-0"]
        w.grant("2-0")
        w.finish("2-0")
        w.tell(QueueUpdate(epoch=2, add=refs(1, 1, expected=1000)))
        w.grant("1-0")
        w.queue(group(3, slo_class="interactive"), group(1), add=refs(3, 1, due_s=40.0), epoch=3)
        w.at(60.0)
        assert w.aborted == ["1-0"]

    def test_can_be_switched_off(self):
        w = self.start(eviction=False)
        self.urgent(w)
        w.at(60.0)
        assert w.aborted == []

    def test_a_stale_output_of_the_evicted_attempt_changes_nothing(self):
        w = self.start()
        self.urgent(w)
        w.at(19.5)
        w.finish("1-0")
        assert [one.id for one in w.ended] == []


class TestSwapping:
    def start(self, **config):  # type: ignore[no-untyped-def]
        return world(profile("m1", slots=2), profile("m2", slots=2), **config)

    def test_drains_then_swaps_then_goes_on(self):
        w = self.start()
        w.queue(group(1), group(2, "m2"), add=refs(1, 2) + refs(2, 2))
        w.grant()
        assert w.executor.state is ExecutorState.EMPTYING
        w.finish("1-0")
        assert w.swaps == []
        w.finish("1-1")
        assert w.swaps == ["m2"]
        assert w.reports[-1].state.swapping_to == "m2"
        assert w.reports[-1].state.awake_model is None
        w.tell(EngineReady(M2, ()))
        assert w.pulled[-2:] == ["2-0", "2-1"]

    def test_a_long_drain_is_cut_short(self):
        w = self.start(drain_s_max=20.0)
        w.queue(group(1), group(2, "m2"), add=refs(1, 1, expected=900) + refs(2, 1))
        w.grant()
        w.at(19.0)
        assert w.aborted == []
        w.at(20.5)
        assert w.aborted == ["1-0"]
        assert w.swaps == ["m2"]

    def test_a_drain_that_would_make_a_stricter_head_late_is_cut_earlier(self):
        w = self.start(drain_s_max=100.0)
        w.queue(
            group(1), group(2, "m2", "interactive"), add=refs(1, 1, expected=900) + refs(2, 1, due_s=20.0)
        )  # fmt: skip
        w.grant()
        w.at(17.0)
        assert w.swaps == ["m2"]
        assert w.now_s + 3.0 < 20.5

    def test_without_eviction_it_waits(self):
        w = self.start(eviction=False)
        w.queue(group(1), group(2, "m2"), add=refs(1, 1) + refs(2, 1))
        w.grant()
        w.at(300.0)
        assert w.swaps == []
        w.finish("1-0")
        assert w.swaps == ["m2"]

    def test_a_started_group_is_finished_if_the_new_head_can_wait(self):
        w = self.start()
        w.queue(group(1), add=refs(1, 4))
        w.grant()
        w.queue(group(2, "m2"), group(1), add=refs(2, 1, due_s=3600.0), epoch=2)
        w.finish("1-0", "1-1")
        assert w.pulled == ["1-0", "1-1", "1-2", "1-3"]
        w.grant()
        w.finish("1-2", "1-3")
        assert w.swaps == ["m2"]

    def test_a_started_group_is_left_when_the_new_head_would_be_late(self):
        w = self.start()
        w.queue(group(1), add=refs(1, 40))
        w.grant()
        w.queue(group(2, "m2"), group(1), add=refs(2, 1, due_s=30.0), epoch=2)
        w.at(26.5)
        w.finish("1-0", "1-1")
        assert w.swaps == ["m2"]

    def test_a_failed_swap_lets_others_go_on_and_is_tried_again(self):
        w = self.start(swap_retry_s=10.0)
        w.queue(group(2, "m2"), group(1), add=refs(1, 1) + refs(2, 1))
        assert w.swaps == ["m2"]
        w.tell(SwapFailed(M2, "no memory"))
        assert w.pulled == ["1-0"]
        w.grant()
        w.finish("1-0")
        w.at(11.0)
        assert w.swaps == ["m2", "m2"]

    def test_hints_which_models_come_next(self):
        w = self.start()
        w.queue(group(1), group(2, "m2"), add=refs(1, 1))
        assert w.warmed[-1] == ("m2",)

    def test_groups_of_models_that_this_engine_lacks_are_passed_over(self):
        w = self.start()
        w.queue(group(7, "m7"), group(1), add=refs(7, 1) + refs(1, 1))
        assert w.pulled == ["1-0"]
        assert w.swaps == []


class TestTrouble:
    def test_engine_down_returns_everything_and_pulls_nothing_until_ready(self):
        w = world(profile(slots=2), pull_ahead=1)
        w.queue(group(1), add=refs(1, 5))
        w.grant()
        w.grant()
        w.tell(JobLost(RequestId("1-0"), 1))
        w.tell(EngineDown("crashed"))
        assert reasons(w) == dict.fromkeys(("1-0", "1-1", "1-2"), ReturnReason.ENGINE_LOST)
        late = list(w.executor.batch.pulling)
        w.grant(*late)
        assert reasons(w) == dict.fromkeys(w.pulled, ReturnReason.ENGINE_LOST)
        count = len(w.pulled)
        w.at(3.0)
        assert len(w.pulled) == count
        w.tell(EngineReady(M1, ()))
        assert len(w.pulled) > count

    def test_revoked_in_every_state(self):
        w = world(profile(slots=1), pull_ahead=1)
        w.queue(group(1), add=refs(1, 3))
        w.tell(Revoked(RequestId("1-0"), 1))
        assert "1-0" in w.executor.batch.pulling
        w.grant("1-0")
        w.grant("1-1")
        w.tell(Revoked(RequestId("1-1"), 1))
        assert not w.executor.batch.held
        w.tell(Revoked(RequestId("1-0"), 0))
        assert w.running == ["1-0"]
        w.tell(Revoked(RequestId("1-0"), 1))
        assert w.aborted == ["1-0"]
        assert w.ended == []
        assert w.returned == []

    def test_a_newer_grant_replaces_the_older_attempt(self):
        w = world(profile(slots=1))
        w.queue(group(1), add=refs(1, 1))
        w.grant()
        w.grant("1-0")
        assert w.aborted == ["1-0"]
        assert w.submitted == ["1-0", "1-0"]
        w.finish("1-0")
        assert [one.attempt for one in w.ended] == [2]

    def test_an_engine_refusal_ends_the_request(self):
        w = world()
        w.queue(group(1), add=refs(1, 1))
        w.grant()
        w.tell(JobRefused(RequestId("1-0"), 1, 400, "too long"))
        assert w.ended[0].finish_reason == "error"
        assert w.ended[0].error_status == 400

    def test_a_lost_gateways_requests_step_aside_and_come_back_in_order(self):
        other = GatewayId("other")
        w = world(profile(slots=1))
        w.tell(GatewayUp(other))
        w.queue(group(1), add=refs(1, 2, gateway=other))
        w.queue(group(1), group(2), add=refs(2, 1), epoch=2)
        w.tell(GatewayLost(other))
        assert w.pulled == ["1-0", "2-0"]
        w.grant("2-0")
        w.tell(GatewayUp(other))
        w.finish("2-0")
        assert w.pulled == ["1-0", "2-0", "1-0"]

    def test_a_gateway_away_for_too_long_is_forgotten(self):
        w = world()
        w.queue(group(1), add=refs(1, 1))
        w.grant()
        w.tell(GatewayLost(GATEWAY))
        assert w.running == ["1-0"]
        w.tell(GatewayLost(GATEWAY, forget=True))
        assert w.aborted == ["1-0"]
        assert w.returned == []

    def test_a_drain_finishes_what_runs_and_returns_the_rest(self):
        w = world(profile(slots=2), pull_ahead=1)
        w.queue(group(1), add=refs(1, 5))
        w.grant("1-0", "1-1")
        w.grant()
        w.tell(Drain(30.0))
        assert reasons(w) == {"1-2": ReturnReason.DRAINING}
        w.finish("1-0")
        w.at(31.0)
        assert reasons(w) == dict.fromkeys(("1-2", "1-1"), ReturnReason.DRAINING)
        assert w.drained
        assert w.executor.state is ExecutorState.GONE
        assert w.pulled == ["1-0", "1-1", "1-2"]

    def test_reports_at_intervals_with_rates(self):
        w = world(profile(slots=2))
        w.queue(group(1), add=refs(1, 2))
        w.grant()
        w.at(1.0)
        for id in w.running:
            w.produce(id, 50)
        w.at(2.1)
        state = w.reports[-1].state
        assert state.tokens_per_s == 100.0
        assert state.mean_batch == 2.0
        assert [one.produced_tokens for one in state.running] == [50, 50]
