"""The bench of finish times: beds are drawn the same again, a run tells what was said and what came, and figures are right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qlm import finish_bench as bench
from qlm.__main__ import main
from qlm_core.sim.batch_beds import draw_batch_bed
from qlm_core.sim.batches import BatchRun, FinishTold
from qlm_core.sim.scenario import scenario_from_mapping

QUICK = 27
"""A bed of seed 1 that runs in a second or two."""


@pytest.mark.parametrize("index", range(12))
def test_a_bed_is_a_scenario_and_the_same_again(index: int) -> None:
    bed = draw_batch_bed(5, index)
    assert bed == draw_batch_bed(5, index)
    assert bed.scenario != draw_batch_bed(5, index + 1).scenario
    assert bed.scenario != draw_batch_bed(6, index).scenario
    scenario = scenario_from_mapping(bed.scenario, "bed")
    assert scenario.workload.batches
    assert scenario.workload.streams


def test_a_user_gets_a_bed_batch_by_batch_and_all_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "finish.json"
    words = ["bench", "finish", "--bed", str(QUICK), "--json", str(file)]
    assert main(words) == 0
    told = capsys.readouterr().out
    [bed] = json.loads(file.read_text())["beds"]
    assert (bed["bed"], bed["lost"]) == (QUICK, 0)
    rows = [line for line in told.splitlines() if " | created | " in line]
    assert len(rows) == sum(one["told"]["created"] is not None for one in bed["batches"]) > 1
    assert bed["command"] == f"qlm bench finish --bed {QUICK} --seed 1"
    again = bench.run_bed(1, QUICK)
    assert again["batches"] == bed["batches"]
    table = bench.report([again])
    assert "| created |" in table
    assert "| interactive |" in table


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--beds", "0"], "--beds"),
        (["--bed", "-1"], "--bed"),
        (["--jobs", "0"], "--jobs"),
        (["--quick", "--beds", "3"], "Give one"),
        (["--bed", "1", "--beds", "3"], "Give one"),
    ],
)
def test_what_makes_no_sense_is_refused(
    words: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "finish", *words]) == 2
    assert named in capsys.readouterr().err


def run(took_s: float, *told: FinishTold, window_s: float = 100.0) -> BatchRun:
    ended_s = 10.0 + took_s if took_s <= window_s else float("inf")
    return BatchRun(
        lines=10, submitted_s=10.0, window_s=window_s, ended=10, ended_s=ended_s, told=list(told)
    )


def said(
    p50_s: float, p90_s: float, *, at_s: float = 10.0, done: float = 0.0, feasible: bool = True
) -> FinishTold:
    return FinishTold(at_s, done, feasible, p50_s, p90_s, "so")


@pytest.mark.parametrize(
    ("took_s", "p50_s", "p90_s", "holds"),
    [
        (30.0, 40.0, 60.0, (True, True)),
        (50.0, 40.0, 60.0, (False, True)),
        (70.0, 40.0, 60.0, (False, False)),
        # Of one that ran out of time nobody knows whether it would have ended by what lies beyond the window.
        (500.0, 40.0, 160.0, (False, None)),
        (500.0, 140.0, 160.0, (None, None)),
    ],
)
def test_a_quantile_holds_if_the_batch_ended_by_then(
    took_s: float, p50_s: float, p90_s: float, holds: tuple[bool | None, bool | None]
) -> None:
    told = bench._batch(run(took_s, said(p50_s, p90_s)))["told"]["created"]
    assert (told["holds"]["p50_s"], told["holds"]["p90_s"]) == holds
    assert told["right"] is (took_s <= 100.0)


def test_what_counts_is_what_was_said_first_at_each_moment() -> None:
    later = said(20.0, 30.0, at_s=40.0, done=0.2)
    half = said(1.0, 2.0, at_s=60.0, done=0.6, feasible=False)
    told = bench._batch(run(55.0, said(40.0, 60.0), later, half))["told"]
    assert [told[name] and told[name]["p50_s"] for name, _ in bench.MOMENTS] == [40.0, 20.0, 1.0]
    assert told["a tenth done"]["came_s"] == 25.0
    assert [told[name]["right"] for name, _ in bench.MOMENTS] == [True, True, False]
    # What nobody serves has no finish time, and what is said after the window is no forecast.
    nobody = bench._batch(run(500.0, said(float("inf"), float("inf"))))["told"]
    assert nobody["created"] is None
    late = bench._batch(run(500.0, said(1.0, 2.0, at_s=120.0, done=0.5)))["told"]
    assert late["half done"] is None


def test_shares_are_of_those_that_are_known() -> None:
    runs = [
        run(30.0, said(40.0, 60.0)),
        run(50.0, said(40.0, 60.0)),
        run(500.0, said(140.0, 160.0, feasible=False)),
        run(500.0, said(50.0, 160.0)),
    ]
    classes = {"chat": {"requests": 4, "attained": 3}}
    result: dict[str, Any] = {
        "batches": [bench._batch(one) for one in runs],
        "classes": classes,
        "classes_alone": {"chat": {"requests": 4, "attained": 4}},
    }
    [created] = bench.moments([result])
    assert created.covered["p50_s"] == (pytest.approx(1 / 3), 3)
    assert created.covered["p90_s"] == (1.0, 2)
    assert (created.right, created.batches) == (0.75, 4)
    assert bench.attainment([result]) == {"chat": (0.75, 1.0, 4)}
    table = bench.report([result])
    assert "| created | 4 | 33% of 3 (!) | 100% of 2 (!) | 75% (!) |" in table
