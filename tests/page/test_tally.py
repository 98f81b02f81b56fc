"""How classes fared lately: attainment, waits, and estimates against what came."""

from __future__ import annotations

from gateway.page.tally import WINDOW_S, Tally
from qlm_core.ledger import EndRecord
from qlm_core.model import Estimate, Phase


def end(ttft_s: float | None, *, attained: bool = True, phase: Phase = Phase.FINISHED) -> EndRecord:
    return EndRecord(
        phase=phase,
        reason="stop",
        prompt_tokens=1,
        output_tokens=1,
        queue_s=0.0,
        ttft_s=ttft_s,
        tpot_s=None,
        e2e_s=1.0,
        attained=attained,
        attempts=1,
        evictions=0,
        estimate=Estimate(mean_s=2.0, p50_s=1.0, p90_s=3.0, p99_s=10.0),
    )


def test_a_class_is_judged_by_its_ends_within_the_window() -> None:
    now_s = 0.0
    tally = Tally(lambda: now_s)
    tally.ended("batch", end(50.0, attained=False))
    now_s = WINDOW_S + 1.0
    assert tally.classes() == {}
    for ttft_s in (0.5, 1.0, 2.0, 20.0):
        tally.ended("batch", end(ttft_s, attained=ttft_s < 10.0))
    tally.ended("batch", end(None, attained=False, phase=Phase.SHED))
    tally.ended("batch", end(None, attained=False, phase=Phase.CANCELLED))
    said = tally.classes()["batch"]
    assert (said["ended"], said["attained"]) == (5, 3)
    assert said["waits_s"] == [2.0, 20.0, 20.0]
    assert said["within"] == [0.5, 0.75, 0.75]
    assert sorted(said["points"]) == [[2.0, 0.5], [2.0, 1.0], [2.0, 2.0], [2.0, 20.0]]


def test_what_is_kept_and_shown_is_bounded() -> None:
    tally = Tally(lambda: 0.0)
    for _ in range(5_000):
        tally.ended("batch", end(1.0))
    said = tally.classes()["batch"]
    assert said["ended"] == 2_000
    assert len(said["points"]) == 80
