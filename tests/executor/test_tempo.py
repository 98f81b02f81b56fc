"""Batches that keep promised paces: how many run together, and beside whom."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlm_core.executor.tempo import Tempo
from qlm_core.model import Slo, SloClass
from qlm_core.profile import PACE_AIM, EngineProfile, IterationTime
from tests.executor.world import World, group, profile, refs, world

CLASSES = (
    SloClass(name="paced", slo=Slo(ttft_s=60.0, tpot_s=0.05)),
    SloClass(name="batch", slo=Slo(ttft_s=3600.0)),
)


def slow(slots: int = 64) -> EngineProfile:
    """20 ms an iteration and 2 ms more for each request in it; prompts cost next to nothing."""
    times = IterationTime(
        base_ms=20.0, per_token_ms=1e-4, per_sequence_ms=2.0, per_context_token_ms=0.0
    )
    return replace(
        profile(slots=slots),
        iteration=times,
        async_scheduling=False,
        max_num_batched_tokens=16_384,
    )


def start(slo_class: str, count: int = 40) -> World:
    w = world(slow(), classes=CLASSES, pull_ahead=0)
    w.queue(group(1, slo_class=slo_class), add=refs(1, count, expected=500))
    w.grant()
    return w


def test_no_more_run_together_than_the_promised_pace_allows() -> None:
    # 45 ms of 50 are used: 20 ms and twelve times 2 ms.
    assert len(start("paced").running) == 12


def test_where_no_pace_is_promised_the_engine_is_filled() -> None:
    assert len(start("batch").running) == 40


@pytest.mark.parametrize("limit", [0, 1])
def test_what_ends_with_its_prompt_has_no_pace_to_keep(limit: int) -> None:
    w = world(slow(), classes=CLASSES, pull_ahead=0)
    w.queue(group(1, slo_class="paced"), add=refs(1, 40, expected=1, limit=limit))
    w.grant()
    assert len(w.running) == 40


def test_lax_work_does_not_slow_down_who_was_promised_a_pace() -> None:
    w = start("paced", 4)
    w.queue(
        group(1, slo_class="paced"), group(2, slo_class="batch"), add=refs(2, 40, expected=500), epoch=2
    )  # fmt: skip
    w.grant()
    assert len(w.running) == 12


def test_when_those_with_a_pace_have_ended_lax_work_fills_the_engine() -> None:
    w = start("paced", 4)
    w.queue(
        group(1, slo_class="paced"), group(2, slo_class="batch"), add=refs(2, 40, expected=500), epoch=2
    )  # fmt: skip
    w.grant()
    w.finish(*[id for id in w.running if id.startswith("1-")])
    w.grant()
    assert len(w.running) == 40


def test_a_pace_that_the_engine_cannot_keep_for_one_alone_bounds_nothing() -> None:
    hopeless = SloClass(name="hopeless", slo=Slo(ttft_s=60.0, tpot_s=0.001))
    w = world(slow(), classes=(hopeless, *CLASSES), pull_ahead=0)
    w.queue(group(1, slo_class="hopeless"), add=refs(1, 40, expected=500))
    w.grant()
    assert len(w.running) == 40
    # One that it can keep counts beside it.
    w = world(slow(), classes=(hopeless, *CLASSES), pull_ahead=0)
    w.queue(
        group(1, slo_class="hopeless"), group(2, slo_class="paced"),
        add=refs(1, 4, expected=500) + refs(2, 40, expected=500),
    )  # fmt: skip
    w.grant()
    assert len(w.running) == 12


@given(
    paces=st.lists(st.sampled_from([0.03, 0.05, 0.2, inf]), min_size=1, max_size=30),
    leave=st.integers(0, 29),
)
def test_the_strictest_pace_in_flight_counts_and_is_forgotten_with_its_last(
    paces: list[float], leave: int
) -> None:
    tempo = Tempo()
    tempo.engine(slow())
    for pace_s in paces:
        tempo.count(1, prompt_tokens=100, output_tokens=500, pace_s=pace_s)
    for pace_s in paces[: min(leave, len(paces) - 1)]:
        tempo.count(-1, prompt_tokens=100, output_tokens=500, pace_s=pace_s)
    left = paces[min(leave, len(paces) - 1) :]
    if min(left) == inf:
        assert tempo.slots(1000) == inf
        return
    slots = tempo.slots(100 * len(left))
    assert slots == slow().slots_at_pace(
        PACE_AIM * min(left), mean_prompt=100, mean_output=500, resident_tokens=100
    )


@given(pace_s=st.floats(0.021, 0.5), output=st.floats(1.0, 2000.0))
def test_one_more_than_fits_would_be_too_slow(pace_s: float, output: float) -> None:
    engine = slow()
    slots = engine.slots_at_pace(
        pace_s, mean_prompt=200.0, mean_output=output, resident_tokens=300.0
    )

    def iteration_s(size: int) -> float:
        return engine.mean_iteration_s(
            prompts=size / output,
            mean_prompt=200.0,
            decode_batch=size,
            context_tokens=size * 300.0,
        )

    assert slots == 1 or iteration_s(slots) <= pace_s
    assert slots == engine.max_num_seqs or iteration_s(slots + 1) > pace_s


def test_prompts_of_successors_count_too() -> None:
    engine = replace(slow(), iteration=replace(slow().iteration, per_token_ms=0.2))
    many = [
        engine.slots_at_pace(0.05, mean_prompt=400, mean_output=output, resident_tokens=500)
        for output in (1000, 100, 20)
    ]
    assert many == sorted(many, reverse=True)
    assert many[0] > many[-1] == pytest.approx(many[-1])
