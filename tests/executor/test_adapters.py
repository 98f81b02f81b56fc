"""How the executor serves a base and its LoRA adapters together, and what happens when one does not load."""

from __future__ import annotations

from dataclasses import replace

from qlm_core.executor import EngineDown, EngineReady, ExecutorState, SwapFailed
from qlm_core.messages import ReturnReason
from qlm_core.model import ModelName, ModelTier
from tests.executor.world import World, group, profile, refs, world

A1, A2, M2 = ModelName("a1"), ModelName("a2"), ModelName("m2")


def start(*, places: int = 0, slots: int = 8, **config: object) -> World:
    """An engine with two models, one of which has three adapters."""
    base = replace(profile("m1", slots=slots), adapters_max=places)
    adapters = [base.adapter(name, load_s=0.02) for name in ("a1", "a2", "a3")]
    return world(base, *adapters, profile("m2", slots=slots), **config)


def test_a_base_and_its_adapters_share_a_batch_without_a_swap():
    w = start()
    w.queue(group(1, "a1"), group(2), group(3, "a2"), add=refs(1, 2) + refs(2, 1) + refs(3, 1))
    w.grant()
    assert w.running == ["1-0", "1-1", "2-0", "3-0"]
    assert w.swaps == []
    assert w.executor.instance_state().awake_model == "m1"


def test_a_swap_to_an_adapter_is_one_to_its_base():
    w = start()
    w.tell(EngineReady(M2, ((M2, ModelTier.AWAKE), (A1, ModelTier.ASLEEP))))
    w.queue(group(1, "a1"), group(2), add=refs(1, 1) + refs(2, 1))
    assert w.swaps == ["m1"]
    assert w.reports[-1].state.swapping_to == "m1"
    w.tell(EngineReady(ModelName("m1"), ()))
    assert w.pulled == ["1-0", "2-0"]


def test_another_base_still_waits_for_an_empty_batch():
    w = start()
    w.queue(group(1, "a1"), group(2, "m2"), add=refs(1, 1) + refs(2, 1))
    w.grant()
    assert w.executor.state is ExecutorState.EMPTYING
    w.finish("1-0")
    assert w.swaps == ["m2"]


def test_the_bases_that_come_next_are_hinted_at_and_adapters_are_not():
    w = start()
    w.queue(group(1, "a1"), group(2, "m2"), group(3, "a2"))
    assert w.warmed[-1] == ("m2",)
    w.tell(EngineReady(M2, ()))
    assert w.warmed[-1] == ("m1",)


def test_one_adapter_more_than_there_are_places_waits_for_one():
    w = start(places=2)
    w.queue(
        group(1, "a1"), group(2, "a2"), group(3), group(4, "a3"), group(5, "a1"),
        add=refs(1, 2) + refs(2, 1) + refs(3, 1) + refs(4, 2) + refs(5, 1),
    )  # fmt: skip
    w.grant()
    # Neither the third adapter nor, behind it, what would have a place.
    assert w.running == ["1-0", "1-1", "2-0", "3-0"]
    w.finish("1-0")
    assert w.pulled == ["1-0", "1-1", "2-0", "3-0"]
    w.finish("2-0")
    assert w.pulled[4:] == ["4-0", "4-1", "5-0"]


def test_an_adapter_leaves_the_batch_when_a_more_urgent_one_would_be_late():
    w = start(places=2, evict_margin_s=3.0)
    w.queue(
        group(1, "a1"), group(2, "a2"), add=refs(1, 2, expected=900) + refs(2, 1, expected=900)
    )  # fmt: skip
    w.grant()
    w.queue(
        group(3, "a3", "interactive"), group(1, "a1"), group(2, "a2"),
        add=refs(3, 1, due_s=20.0), epoch=2,
    )  # fmt: skip
    w.at(16.5)
    assert w.aborted == []
    w.at(17.5)
    # That of which least has to be computed again.
    assert w.aborted == ["2-0"]
    assert w.reasons == {"2-0": ReturnReason.EVICTED}
    assert w.pulled[-1] == "3-0"


def test_an_adapter_stays_that_the_plan_puts_first():
    w = start(places=1)
    w.queue(
        group(9), group(1, "a1"), group(2, "a2", "interactive"),
        add=refs(1, 1, expected=900) + refs(2, 1, due_s=20.0),
    )  # fmt: skip
    w.grant()
    w.at(19.0)
    assert w.aborted == []


def test_no_adapter_leaves_for_work_that_is_no_stricter():
    w = start(places=1)
    w.queue(group(1, "a1"), group(2, "a2"), add=refs(1, 1, expected=900) + refs(2, 1, due_s=20.0))
    w.grant()
    w.at(60.0)
    assert w.aborted == []


def test_an_adapter_that_does_not_load_is_passed_over_and_hurts_nobody():
    w = start(swap_retry_s=10.0)
    w.queue(group(1, "a1"), group(2), group(3, "a2"), add=refs(1, 2) + refs(2, 1) + refs(3, 1))
    w.grant("1-0", "2-0", "3-0")
    w.tell(SwapFailed(A1, "no such file"))
    assert w.executor.state is ExecutorState.SERVING
    assert w.reasons == {"1-0": ReturnReason.EVICTED}
    assert w.running == ["2-0", "3-0"]
    # Its payload was on the way.
    w.grant("1-1")
    assert w.submitted == ["1-0", "2-0", "3-0"]
    assert w.reasons["1-1"] is ReturnReason.EVICTED
    again = refs(1, 1)
    w.queue(group(1, "a1"), group(4), add=again + refs(4, 1), epoch=2)
    assert w.pulled[4:] == ["4-0"]
    w.grant()
    w.finish("2-0", "3-0", "4-0")
    w.at(10.5)
    assert w.pulled[4:] == ["4-0", "1-0"]


def test_an_adapter_that_fails_while_its_base_leaves_does_not_end_the_swap():
    w = start()
    w.queue(group(1, "m2"), add=refs(1, 1))
    assert w.executor.state is ExecutorState.SWAPPING
    w.tell(SwapFailed(A1, "no such file"))
    assert w.executor.state is ExecutorState.SWAPPING


def test_the_adapters_of_a_base_that_does_not_come_are_passed_over_with_it():
    w = start()
    w.tell(EngineReady(M2, ()))
    w.queue(
        group(1, "a1"), group(2, "a2"), group(3, "m2"), add=refs(1, 1) + refs(2, 1) + refs(3, 1)
    )
    assert w.swaps == ["m1"]
    w.tell(SwapFailed(ModelName("m1"), "no memory"))
    assert w.swaps == ["m1"]
    assert w.pulled == ["3-0"]


def test_a_base_that_comes_back_has_its_adapters_tried_again():
    w = start()
    w.queue(group(1, "a1"), add=refs(1, 1))
    w.tell(SwapFailed(A1, "no such file"))
    w.tell(EngineDown("died"))
    w.queue(group(1, "a1"), add=refs(1, 1), epoch=2)
    w.tell(EngineReady(ModelName("m1"), ()))
    assert w.pulled[-1] == "1-0"
