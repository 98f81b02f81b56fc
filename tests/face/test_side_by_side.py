"""The demo's comparison: what a plain fleet does with the same requests, and how both runs are shown."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from qlm.commands.demo import SEED, workload
from qlm.plain_fleet import served_in_turn
from qlm.report import Fate, Outcome, Report, summarise
from qlm.side_by_side import SLICES, Side, bars, chart, draw, sentences, waits_by_slice
from qlm.simulations import Bed, demo_scenario, run_one
from qlm_core.config import Config
from qlm_core.model import Estimate, Slo
from qlm_core.sim.workload import WorkloadRequest

SLOS = {"interactive": Slo(ttft_s=1.0), "batch": Slo(ttft_s=60.0)}


def outcome(slo_class: str, sent_s: float, ttft_s: float) -> Outcome:
    return Outcome(
        model="m",
        slo_class=slo_class,
        sent_s=sent_s,
        fate=Fate.FINISHED,
        ttft_s=ttft_s,
        e2e_s=ttft_s + 1.0,
        output_tokens=2,
    )


def side(name: str, outcomes: list[Outcome], *, elapsed_s: float, swaps: int | None) -> Side:
    report = summarise(outcomes, SLOS, sent=len(outcomes), elapsed_s=elapsed_s, swaps=swaps)
    return Side(name=name, report=report, outcomes=outcomes)


PLAIN = side(
    "FCFS",
    [outcome("interactive", 0.0, 0.5), outcome("interactive", 30.0, 8.0), outcome("batch", 60, 16)],
    elapsed_s=90.0,
    swaps=7,
)
ESTIMATE = Estimate(mean_s=0.7, p50_s=0.7, p90_s=0.9, p99_s=1.0)
OURS = side(
    "QLM",
    [
        replace(outcome("interactive", 0.0, 0.5), estimate=ESTIMATE),
        replace(outcome("interactive", 30.0, 0.5), estimate=ESTIMATE),
        outcome("batch", 60, 16),
    ],
    elapsed_s=70.0,
    swaps=1,
)


class Simulated(Bed):
    """The fleet of the demo under given requests."""

    def requests(self, seed: int) -> Iterator[WorkloadRequest]:
        return iter(REQUESTS)


REQUESTS: list[WorkloadRequest] = workload(8.0)


def test_a_plain_fleet_has_the_figures_of_qlm_sim() -> None:
    config = Config()
    report, outcomes = served_in_turn(config, REQUESTS, seed=SEED)
    lengths = {name: model.max_model_len for name, model in config.models.items()}
    same = run_one(Simulated(scenario=demo_scenario(config), model_len=lengths), "fcfs", SEED)
    assert report.requests == len(outcomes) == same["requests"] == len(REQUESTS)
    assert report.fates["finished"] == same["finished"]
    assert report.swaps == same["swaps"]
    assert report.attainment_ratio == pytest.approx(same["slo_attainment"], abs=1e-6)
    for one in report.classes:
        figures = same["classes"][one.name]
        assert (one.requests, one.attained) == (figures["requests"], figures["attained"])
        assert one.ttft_s.p90 == pytest.approx(figures["ttft_s"]["p90"], abs=1e-6)
    for request, seen in zip(REQUESTS, outcomes, strict=True):
        assert (seen.sent_s, seen.slo_class) == (request.arrival_s, request.slo_class)
        assert seen.estimate is None


def test_the_demo_is_a_load_that_order_decides() -> None:
    """Were a plain fleet good enough, the demo would show nothing."""
    report, _ = served_in_turn(Config(), workload(60.0), seed=SEED)
    by_name = {one.name: one for one in report.classes}
    assert by_name["interactive"].attainment_ratio < 0.5
    assert by_name["batch-2"].attainment_ratio == 1.0


def test_waits_stand_at_the_time_of_sending() -> None:
    row = waits_by_slice(PLAIN.outcomes, "interactive", 60.0)
    assert len(row) == SLICES
    assert {at: wait_s for at, wait_s in enumerate(row) if wait_s is not None} == {
        0: 0.5,
        SLICES // 2: 8.0,
    }
    # What was sent last belongs to the last column.
    assert waits_by_slice(PLAIN.outcomes, "batch", 60.0)[-1] == 16.0
    assert waits_by_slice(PLAIN.outcomes, "batch", 0.0)[0] == 16.0


def test_a_column_is_as_high_as_its_wait_and_red_beyond_the_target() -> None:
    text = bars([0.0, None, 1.0, 4.0, 8.0], SLOS["interactive"], 8.0)
    assert text.plain == "▁ ▂▅█"
    assert [span.style for span in text.spans] == ["green", "green", "red", "red"]


def test_the_chart_shows_both_runs_and_fits_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    Console(width=80).print(chart((PLAIN, OURS), SLOS))
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines if "FCFS" in line or "QLM" in line]
    assert [row[:5] for row in rows[:2]] == [
        ["interactive", "FCFS", "50.0", "%", "4.25"],
        ["target", "1", "s", "QLM", "100.0"],
    ]
    assert len(rows) == 4
    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(lines)


def test_three_sentences_have_the_figures_of_the_runs() -> None:
    first, second, third = sentences(PLAIN, OURS, SLOS)
    assert first == (
        "First come, first served, 66.7 % of the 3 requests met their targets: 50.0 % of class interactive, of which "
        "half had a first token within 4.25 s and nine in ten within 7.25 s (target 1 s), and the last answer was "
        "complete after 90 s."
    )
    assert second == (
        "With QLM, 100.0 % of the same requests on the same GPUs did: 100.0 % of class interactive, of which half had a "
        "first token within 0.5 s and nine in ten within 0.5 s, and the last answer was complete after 70 s."
    )
    assert third == (
        "GPUs changed models 7 times without QLM and once with it; and QLM told 2 requests at arrival how long the wait "
        "would be, 0.2 s off on average."
    )


def test_each_request_was_told_where_all_were() -> None:
    told = side("QLM", [OURS.outcomes[0]], elapsed_s=1.0, swaps=0)
    assert "QLM told each request at arrival" in sentences(PLAIN, told, SLOS)[2]


def test_sentences_are_true_where_figures_are_missing() -> None:
    nothing: Report = summarise([], SLOS, sent=0, elapsed_s=0.0)
    empty = Side(name="QLM", report=nothing, outcomes=[])
    first, second, third = sentences(empty, empty, SLOS)
    assert "none were sent" in first
    assert "none were sent" in second
    assert third.endswith("an unknown number of times with it.")


def test_both_runs_are_drawn(tmp_path: Path) -> None:
    draw((PLAIN, OURS), SLOS, tmp_path / "both.png")
    assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG")
