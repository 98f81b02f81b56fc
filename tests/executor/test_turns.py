"""Turns of models on one engine: when the awake one is left, who is cut for that, and who has to wait."""

from __future__ import annotations

from qlm_core.executor import EngineReady, ExecutorState
from qlm_core.model import ModelName, ModelTier, Slo, SloClass
from tests.executor.world import World, group, profile, ref, refs, world

M1, M2 = ModelName("m1"), ModelName("m2")
CLASSES = (
    SloClass(name="now", slo=Slo(ttft_s=1.0), weight=4.0),
    SloClass(name="chat", slo=Slo(ttft_s=20.0), weight=2.0),
    SloClass(name="paced", slo=Slo(ttft_s=20.0, tpot_s=0.05)),
    SloClass(name="ended", slo=Slo(ttft_s=20.0, e2e_s=60.0)),
    SloClass(name="batch", slo=Slo(ttft_s=3600.0)),
)
ASLEEP = ((M1, ModelTier.AWAKE), (M2, ModelTier.ASLEEP))


def start(**config: object) -> World:
    w = world(profile("m1", slots=8), profile("m2", slots=8), classes=CLASSES, **config)
    w.tell(EngineReady(M1, ASLEEP))
    return w


def running(
    w: World,
    slo_class: str,
    *,
    tokens: int = 10,
    count: int = 2,
    due_s: float = 20.0,
    expected: int = 900,
) -> None:
    w.queue(group(1, slo_class=slo_class), add=refs(1, count, due_s=due_s, expected=expected))
    w.grant()
    for id in list(w.running):
        w.produce(id, tokens)


def test_outputs_that_owe_nothing_are_cut_at_once_for_who_can_be_in_time() -> None:
    w = start()
    running(w, "chat")
    w.queue(group(1, slo_class="chat"), group(2, "m2", "chat"), add=refs(2, 1, due_s=20.0), epoch=2)
    assert w.aborted == ["1-0", "1-1"]
    assert w.swaps == ["m2"]


def test_for_who_is_late_already_they_are_let_end() -> None:
    w = start()
    running(w, "chat")
    w.at(5.0)
    w.queue(group(1, slo_class="chat"), group(2, "m2", "chat"), add=refs(2, 1, due_s=1.0), epoch=2)
    assert w.aborted == []
    assert w.executor.state is ExecutorState.EMPTYING


def test_that_another_of_the_model_can_be_in_time_is_enough() -> None:
    w = start()
    running(w, "chat")
    w.at(5.0)
    late, able = group(2, "m2", "chat"), group(3, "m2", "chat")
    w.queue(
        group(1, slo_class="chat"),
        late,
        able,
        add=(*refs(2, 1, due_s=1.0), *refs(3, 1, due_s=30.0)),
        epoch=2,
    )
    assert w.swaps == ["m2"]


def test_for_lax_work_nobody_is_cut_before_the_drain_is_over() -> None:
    """Two models with nothing but lax work left would take turns without end, and get nothing done."""
    w = start()
    running(w, "batch", due_s=3600.0)
    w.queue(group(1, slo_class="batch"), group(2, "m2", "batch"), add=refs(2, 1), epoch=2)
    w.at(w.now_s + 15.0)
    assert w.aborted == []
    w.at(w.now_s + 10.0)
    assert w.swaps == ["m2"]


def test_who_has_no_first_token_yet_is_not_cut() -> None:
    w = start()
    w.queue(group(1, slo_class="chat"), add=refs(1, 1, due_s=20.0))
    w.grant()
    w.queue(group(1, slo_class="chat"), group(2, "m2", "chat"), add=refs(2, 1, due_s=20.0), epoch=2)
    assert w.aborted == []
    w.produce("1-0", 1)
    w.at(w.now_s + 1.0)
    assert w.swaps == ["m2"]


def test_an_output_that_would_miss_its_pace_is_let_run() -> None:
    """100 tokens at 20 ms leave 2.5 s of the 5.5 s that they may take; to m2 and back takes 6 s."""
    w = start()
    running(w, "paced", count=1, expected=100)
    w.queue(
        group(1, slo_class="paced"), group(2, "m2", "chat"), add=refs(2, 1, due_s=20.0), epoch=2
    )
    assert w.aborted == []


def test_one_that_can_rest_until_the_way_back_is_cut() -> None:
    """900 tokens at 20 ms are done 18 s from now; its end was promised in 60 s."""
    w = start()
    running(w, "ended", count=1)
    w.queue(
        group(1, slo_class="ended"), group(2, "m2", "chat"), add=refs(2, 1, due_s=20.0), epoch=2
    )
    assert w.swaps == ["m2"]


def test_one_that_could_not_end_in_time_after_a_rest_is_not() -> None:
    w = start()
    running(w, "ended", count=1)
    w.at(30.0)
    w.queue(
        group(1, slo_class="ended"), group(2, "m2", "chat"), add=refs(2, 1, due_s=50.0), epoch=2
    )
    assert w.aborted == []


def test_what_was_cut_does_not_turn_the_engine_round() -> None:
    """It waits again, first of all by the plan; another request that cannot be cut is still there."""
    w = start(evictions_max=0)
    running(w, "chat", count=1)
    w.queue(
        group(1, slo_class="chat"), group(2, "m2", "chat"), add=(*refs(2, 1, due_s=20.0), ref("1-5", 1, due_s=20.0)), epoch=2
    )  # fmt: skip
    w.grant()
    held = len(w.pulled)
    for _ in range(20):
        w.queue(group(1, slo_class="chat"), group(2, "m2", "chat"), epoch=2)
        w.at(w.now_s + 0.1)
    assert len(w.pulled) <= held + 1


def test_an_eviction_for_a_turn_is_not_one_of_those_that_a_request_bears() -> None:
    w = start(evictions_max=1)
    running(w, "chat", count=1)
    for turn in range(3):
        at = 20.0 * turn
        w.at(at)
        other = group(10 + turn, "m2", "chat")
        w.queue(
            group(1, slo_class="chat"),
            other,
            add=refs(10 + turn, 1, due_s=at + 20.0),
            epoch=2 + 2 * turn,
        )
        assert len(w.swaps) == 2 * turn + 1
        w.tell(EngineReady(M2, ((M1, ModelTier.ASLEEP), (M2, ModelTier.AWAKE))))
        w.grant()
        w.finish(f"{10 + turn}-0")
        again = ref("1-0", 1, due_s=3600.0, produced=10 * (turn + 1), expected=900)
        w.queue(group(1, slo_class="chat"), add=(again,), epoch=3 + 2 * turn)
        w.tell(EngineReady(M1, ASLEEP))
        w.grant()
        w.produce("1-0", 10)


class TestStaying:
    """Chats for m1 are promised a first token in 1 s; to m2 and back takes 6 s."""

    def chats(self, w: World, *, gap_s: float, until_s: float) -> None:
        number = 0
        while w.now_s < until_s:
            number += 1
            id = f"1-{number}"
            w.queue(
                group(1, slo_class="now"),
                *self.others,
                add=(ref(id, 1, due_s=w.now_s + 1.0, expected=1),),
                epoch=1,
            )
            w.grant()
            if id in w.running:
                w.finish(id)
            w.at(w.now_s + gap_s)

    def test_lax_work_of_another_model_does_not_cost_those_who_keep_coming(self) -> None:
        w = start()
        self.others = ()
        self.chats(w, gap_s=0.5, until_s=20.0)
        self.others = (group(2, "m2", "batch"),)
        w.queue(group(1, slo_class="now"), *self.others, add=refs(2, 3, due_s=3620.0), epoch=1)
        self.chats(w, gap_s=0.5, until_s=60.0)
        assert w.swaps == []

    def test_it_is_served_once_it_is_worth_more(self) -> None:
        w = start()
        self.others = ()
        self.chats(w, gap_s=0.5, until_s=20.0)
        self.others = (group(2, "m2", "chat"),)
        w.queue(group(1, slo_class="now"), *self.others, add=refs(2, 40, due_s=60.0), epoch=1)
        assert w.swaps == ["m2"]

    def test_it_is_served_when_they_come_no_more(self) -> None:
        w = start()
        self.others = ()
        self.chats(w, gap_s=0.5, until_s=20.0)
        self.others = (group(2, "m2", "batch"),)
        w.queue(group(1, slo_class="now"), *self.others, add=refs(2, 3, due_s=3620.0), epoch=1)
        assert w.swaps == []
        w.at(w.now_s + 200.0)
        assert w.swaps == ["m2"]

    def test_nobody_waits_for_ever(self) -> None:
        w = start()
        self.others = ()
        self.chats(w, gap_s=0.5, until_s=20.0)
        self.others = (group(2, "m2", "chat"),)
        w.queue(group(1, slo_class="now"), *self.others, add=refs(2, 1, due_s=21.0), epoch=1)
        self.chats(w, gap_s=0.5, until_s=40.0)
        assert w.swaps == []
        self.chats(w, gap_s=0.5, until_s=50.0)
        assert w.swaps == ["m2"]
