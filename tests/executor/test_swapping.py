"""When the executor swaps models, and how it empties the engine before that."""

from __future__ import annotations

from qlm_core.executor import EngineReady, ExecutorState, SwapFailed
from qlm_core.messages import QueueUpdate, ReturnReason
from qlm_core.model import ModelName, QueuedGroup
from tests.executor.world import World, group, profile, refs, world

M2 = ModelName("m2")


def start(**config: object) -> World:
    return world(profile("m1", slots=2), profile("m2", slots=2), **config)


def test_drains_then_swaps_then_goes_on():
    w = start()
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


def test_a_long_drain_is_cut_short():
    w = start(drain_s_max=20.0)
    w.queue(group(1), group(2, "m2"), add=refs(1, 1, expected=900) + refs(2, 1))
    w.grant()
    w.at(19.0)
    assert w.aborted == []
    w.at(20.5)
    assert w.aborted == ["1-0"]
    assert w.swaps == ["m2"]


def test_a_drain_that_would_make_a_stricter_head_late_is_cut_earlier():
    w = start(drain_s_max=100.0)
    w.queue(
        group(1), group(2, "m2", "interactive"), add=refs(1, 1, expected=900) + refs(2, 1, due_s=20.0)
    )  # fmt: skip
    w.grant()
    w.at(17.0)
    assert w.swaps == ["m2"]
    assert w.now_s + 3.0 < 20.5


def test_what_lands_after_the_drain_is_over_goes_back_at_once():
    w = start(drain_s_max=2.0)
    w.queue(group(1), group(2, "m2"), add=refs(1, 1) + refs(2, 1))
    w.at(4.0)
    assert w.swaps == []
    w.grant("1-0")
    assert w.submitted == []
    assert w.reasons == {"1-0": ReturnReason.EVICTED}
    assert w.swaps == ["m2"]


def test_without_eviction_it_waits():
    w = start(eviction=False)
    w.queue(group(1), group(2, "m2"), add=refs(1, 1) + refs(2, 1))
    w.grant()
    w.at(300.0)
    assert w.swaps == []
    w.finish("1-0")
    assert w.swaps == ["m2"]


def test_a_started_group_is_finished_if_the_new_head_can_wait():
    w = start()
    w.queue(group(1), add=refs(1, 4))
    w.grant()
    w.queue(group(2, "m2"), group(1), add=refs(2, 1, due_s=3600.0), epoch=2)
    w.finish("1-0", "1-1")
    assert w.pulled == ["1-0", "1-1", "1-2", "1-3"]
    w.grant()
    w.finish("1-2", "1-3")
    assert w.swaps == ["m2"]


def test_a_started_group_is_left_when_the_new_head_would_be_late():
    w = start()
    w.queue(group(1), add=refs(1, 40))
    w.grant()
    w.queue(group(2, "m2"), group(1), add=refs(2, 1, due_s=30.0), epoch=2)
    w.at(26.5)
    w.finish("1-0", "1-1")
    assert w.swaps == ["m2"]


def test_a_failed_swap_lets_others_go_on_and_is_tried_again():
    w = start(swap_retry_s=10.0)
    w.queue(group(2, "m2"), group(1), add=refs(1, 1) + refs(2, 1))
    assert w.swaps == ["m2"]
    w.tell(SwapFailed(M2, "no memory"))
    assert w.pulled == ["1-0"]
    w.grant()
    w.finish("1-0")
    w.at(11.0)
    assert w.swaps == ["m2", "m2"]


def test_hints_which_models_come_next():
    w = start()
    w.queue(group(1), group(2, "m2"), add=refs(1, 1))
    assert w.warmed[-1] == ("m2",)


def test_groups_of_models_that_this_engine_lacks_are_passed_over():
    w = start()
    w.queue(group(7, "m7"), group(1), add=refs(7, 1) + refs(1, 1))
    assert w.pulled == ["1-0"]
    assert w.swaps == []


def wake(w: World, model: str | None, *groups: QueuedGroup, epoch: int = 2) -> None:
    w.models.update({str(one.id): one.model for one in groups})
    w.tell(QueueUpdate(epoch=epoch, order=groups, wake=None if model is None else ModelName(model)))


def test_with_nothing_left_to_do_it_turns_to_the_model_that_it_is_told():
    w = start()
    wake(w, "m2")
    assert w.swaps == ["m2"]
    w.tell(EngineReady(M2, ()))
    assert w.executor.state is ExecutorState.SERVING
    w.at(10.0)
    assert w.swaps == ["m2"]


def test_what_runs_or_waits_for_the_model_that_is_awake_comes_first():
    w = start()
    w.queue(group(1), add=refs(1, 1))
    w.grant()
    wake(w, "m2", group(1))
    assert w.swaps == []
    w.finish("1-0")
    assert w.swaps == ["m2"]


def test_what_is_awake_or_cannot_be_woken_is_no_reason_to_turn():
    w = start()
    wake(w, "m1")
    wake(w, "elsewhere", epoch=3)
    assert w.swaps == []
    wake(w, "m2", epoch=4)
    w.tell(SwapFailed(M2, "no memory"))
    w.tell(EngineReady(ModelName("m1"), ()))
    assert w.swaps == ["m2"]


def test_the_next_order_takes_back_what_was_told():
    w = start()
    w.queue(group(1), add=refs(1, 1))
    w.grant()
    wake(w, "m2", group(1))
    wake(w, None, group(1), epoch=3)
    w.finish("1-0")
    assert w.swaps == []
