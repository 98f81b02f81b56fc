"""The paper's evaluation: beds that hold together, the two estimators side by side, and capacities."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import knee_report, knees, paper_published
from benchmarks.paper import Experiment, experiments
from benchmarks.paper_waits import Accuracy, of_queue
from qlm.__main__ import main
from qlm.knee import BOUND, Search, load_of
from qlm_core.errors import ConfigError
from qlm_core.sim.policies import REMOVABLE, policy_named
from qlm_core.sim.scenario import scenario_from_mapping


@pytest.mark.parametrize("experiment", [*experiments(quick=True), *experiments(quick=False)])
def test_every_point_is_a_scenario_and_a_known_policy(experiment: Experiment) -> None:
    for point in experiment.points:
        scenario = scenario_from_mapping({"name": experiment.name} | point.bed, experiment.name)
        assert scenario.fleet
        for name in point.policies:
            assert policy_named(name).name == name
        assert all(one in ("", *REMOVABLE) for one in point.without)
    at = [point.at for point in experiment.points]
    assert at == sorted(dict.fromkeys(at))


@pytest.fixture(scope="module")
def four_groups() -> Accuracy:
    return of_queue("mistral-7b", 4, 1)


def test_waits_of_a_queue_of_four_groups_are_foretold(four_groups: Accuracy) -> None:
    assert four_groups.requests == 2000
    assert four_groups.r2 is not None
    assert four_groups.r2 > 0.97


def test_ours_beats_the_papers_estimator(four_groups: Accuracy) -> None:
    assert four_groups.r2 is not None
    assert four_groups.paper_r2 is not None
    assert four_groups.r2 > four_groups.paper_r2
    assert four_groups.mape < four_groups.paper_mape


# --------------------------------------------------------------------------- capacities


@pytest.mark.parametrize("quick", [True, False])
def test_knees_are_sought_for_known_policies_on_beds_of_every_kind(quick: bool) -> None:
    beds = {bed.name: bed for bed in knees.knee_beds(quick=quick)}
    for name in ("w-a", "w-b", "w-c-paced", "mixed-gpus-paced", "three-on-one", "three-on-two"):
        assert name in beds
    [bound, *named] = sorted(knees.policies(quick=quick), key=lambda name: name != BOUND)
    assert bound == BOUND
    for name in named:
        assert policy_named(name).name == name
    for bed in beds.values():
        [*_, last] = load_of(bed.bed, [0]).at(0.25).requests(0)
        assert last.slo_class in bed.bed.scenario.slo_classes
    paced = beds["w-a-paced"].bed.scenario.slo_classes.values()
    assert all(promised.tpot_s is not None for promised in paced)


def test_a_quick_bed_is_a_fifth_as_long() -> None:
    quick, full = (
        next(one.bed for one in knees.knee_beds(quick=quick) if one.name == "three-on-two")
        for quick in (True, False)
    )
    counts = [load_of(bed, [0]).requests for bed in (quick, full)]
    assert counts[0] == pytest.approx(counts[1] / 5, rel=0.15)


def test_long_prompts_of_a_trace_are_promised_their_first_token_later(tmp_path: Path) -> None:
    brief, long = tmp_path / "brief.csv", tmp_path / "long.csv"
    for path, prompt in ((brief, 500), (long, 40_000)):
        rows = "".join(f"{second},{prompt},20\n" for second in range(20))
        path.write_text("arrival_s,prompt_tokens,output_tokens\n" + rows)
    [*_, one, other] = knees.knee_beds(quick=True, traces=[f"{brief}@0.5", str(long)])
    assert (one.name, other.name) == ("brief", "long")
    assert one.bed.mapping is not None
    assert one.bed.mapping.rate_scale == 0.5
    promised = [bed.bed.scenario.slo_classes["interactive"].ttft_s for bed in (one, other)]
    assert promised == [2.0, 20.0]
    with pytest.raises(ConfigError, match="--trace"):
        knees.knee_beds(quick=True, traces=[f"{brief}@fast"])


def test_the_papers_own_knees_are_read_from_its_curves() -> None:
    curves = paper_published.W_A_ATTAINMENT
    assert knee_report.published_knee(curves["qlm"], 0.95) == (0.5, 1)
    assert knee_report.published_knee(curves["edf"], 0.95) == (None, 0.5)
    assert knee_report.published_knee({1: 99.0, 2: 97.0}, 0.95) == (2, None)


def test_the_report_has_a_table_and_a_picture_for_every_bed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = [one for one in knees.knee_beds(quick=True) if one.name in ("w-b", "three-on-two")]
    monkeypatch.setattr(knees, "knee_beds", lambda **_: chosen)
    monkeypatch.setattr(knees, "policies", lambda **_: ("qlm", "fcfs", "turns", BOUND))
    brief = Search(lowest=1 / 8, step=2.0, precision=1.5, requests_least=40, requests_most=80)
    monkeypatch.setattr(knees, "search_of", lambda **_: brief)
    words = ["bench", "paper", "--quick", "--only", "knees", "--jobs", "1", "--out", str(tmp_path)]
    assert main(words) == 0
    text = (tmp_path / "paper.md").read_text()
    for bed in chosen:
        assert f"### {bed.title}" in text
        assert (tmp_path / f"knee-{bed.name}.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "knees.png").exists()
    assert "| over bound |" in text
    assert (
        "The paper's curves cross it at, in K batch-1 requests/s: qlm 0.25 to 0.5, edf below 0.25"
        in text
    )
    assert "runs" not in (tmp_path / "paper.json").read_text()[:20]


def test_a_trace_is_of_capacities_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "paper", "--only", "figures", "--trace", "a.csv"]) == 2
    assert "--trace" in capsys.readouterr().err
