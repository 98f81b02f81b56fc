"""Prompts that wait for a moment, so that outputs under way keep the pace that was promised of them."""

from __future__ import annotations

from qlm_core.model import Slo, SloClass
from tests.executor.world import World, group, profile, ref, world

PACE_S = 0.05
CLASSES = (
    SloClass(name="paced", slo=Slo(ttft_s=60.0, tpot_s=PACE_S)),
    SloClass(name="batch", slo=Slo(ttft_s=3600.0)),
)
FITS = 200
"""Tokens of a prompt beside one output: 45 ms of 50 are used, and 20 ms of them for the iteration itself; a tenth each."""


def with_an_output(*, produced: int = 1, expected: int = 100) -> World:
    """An engine on which an output with a promised pace has begun."""
    w = world(profile(slots=64), classes=CLASSES)
    w.queue(group(1, slo_class="paced"), add=(ref("1-0", 1, due_s=60.0, expected=expected),))
    w.grant()
    w.produce("1-0", produced)
    return w


def come(w: World, *prompts: int, due_s: float = 3600.0) -> World:
    add = tuple(ref(f"2-{i}", 2, due_s=due_s, prompt=tokens) for i, tokens in enumerate(prompts))
    w.queue(group(2, slo_class="batch"), add=add, epoch=2)
    w.grant()
    return w


def test_a_burst_of_prompts_goes_to_the_engine_a_part_at_a_time() -> None:
    w = come(with_an_output(), *[FITS // 2] * 6)
    assert w.running == ["1-0", "2-0", "2-1"]
    w.produce("2-0", 1)
    w.grant()
    assert w.running == ["1-0", "2-0", "2-1", "2-2"]


def test_where_no_pace_was_promised_it_goes_at_once() -> None:
    w = world(profile(slots=64), classes=CLASSES)
    assert len(come(w, *[FITS // 2] * 6).running) == 6


def test_a_long_prompt_waits_until_the_output_can_bear_the_pause() -> None:
    # 0.1 s, beside an output that has used up its pace: a token every 50 ms, and a hundred are to come at 20 ms each.
    w = with_an_output(expected=2)
    w.now_s += PACE_S
    w.produce("1-0", 1)
    come(w, 1000)
    assert w.running == ["1-0"]
    ahead = come(with_an_output(expected=100), 1000)
    assert ahead.running == ["1-0", "2-0"]


def test_who_has_to_have_a_first_token_now_disturbs() -> None:
    w = come(with_an_output(), *[FITS // 2] * 6, due_s=1.0)
    assert len(w.running) == 7


def test_an_output_that_is_late_already_holds_nobody_up() -> None:
    w = with_an_output(expected=10)
    w.now_s += 60.0
    assert come(w, 1000).running == ["1-0", "2-0"]


def test_a_turn_is_used_while_another_model_waits_for_its_own() -> None:
    w = with_an_output()
    add = tuple(ref(f"2-{i}", 2, prompt=FITS // 2) for i in range(6))
    w.queue(
        group(2, slo_class="batch"),
        group(3, model="m2", slo_class="batch"),
        add=(*add, ref("3-0", 3)),
        epoch=2,
    )
    w.grant()
    assert len(w.running) == 7
