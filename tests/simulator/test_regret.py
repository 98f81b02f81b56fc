"""Regret: what counts as a rival, how beds are summed up, and the command that repeats a bed or writes it as a scenario."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qlm import regret
from qlm.__main__ import main
from qlm_core.sim import beds as drawing
from qlm_core.sim.beds import DrawnBed
from qlm_core.sim.bound import Bound, Shares
from qlm_core.sim.policies import policy_names
from tests.simulator.beds import two_models

Told = pytest.CaptureFixture[str]
ALL = Shares(weighted=1.0, plain=1.0)
BOUND = Bound(weighted=0.95, plain=0.9, alone=ALL, unswapped=ALL)
CLASSES = {"chat": {"ttft_s": 1.0, "weight": 4.0}, "batch": {"ttft_s": 900.0, "weight": 1.0}}


def drawn(index: int, *kinds: str) -> DrawnBed:
    return DrawnBed(
        seed=7, index=index, run_seed=index, scenario={"slo_classes": CLASSES}, kinds=kinds
    )


def run(policy: str, chats: int, batches: int) -> dict[str, Any]:
    """Figures of 10 chats and 10 batch requests, of which so many were in time."""
    return {
        "policy": policy,
        "slo_attainment": (chats + batches) / 20,
        "classes": {
            "chat": {"requests": 10, "attained": chats},
            "batch": {"requests": 10, "attained": batches},
        },
    }


def result(index: int, ours: int, *kinds: str) -> regret.BedResult:
    """`qlm` with so many chats in time beside `edf` with 8, and a reference with all."""
    runs = (run("qlm", ours, 10), run("edf", 8, 10), run("clairvoyant", 10, 10))
    return regret.result_of(drawn(index, *kinds), BOUND, runs)


def test_classes_count_by_their_weights() -> None:
    found = regret.result_of(drawn(0), BOUND, (run("qlm", 5, 10), run("edf", 10, 5)))
    assert found.attainment["weighted"] == {"qlm": 0.6, "edf": 0.9}
    assert found.attainment["plain"] == {"qlm": 0.75, "edf": 0.75}
    assert found.regret("weighted") == pytest.approx(0.3)
    assert found.regret("weighted", "edf") == pytest.approx(-0.3)
    assert found.regret("plain") == 0.0


def test_results_are_shares_of_what_is_possible() -> None:
    found = [result(0, 9, "models in turn"), result(1, 4, "one model", "bursty")]
    assert found[0].share("weighted") == pytest.approx((0.8 * 0.9 + 0.2) / 0.95)
    assert found[1].share("plain", "edf") == pytest.approx(0.9 / 0.9)
    shares = regret.shares(found, "plain")
    assert list(shares) == ["clairvoyant", "edf", "qlm"]
    assert shares["qlm"]["several models"] == pytest.approx(0.95 / 0.9)
    assert shares["qlm"]["all"] == pytest.approx((0.95 + 0.7) / 0.9 / 2)
    assert shares["qlm"]["bursty"] == pytest.approx(0.7 / 0.9)
    assert "| policy | all | several models | models in turn | one model |" in regret.report(found)


def test_where_nothing_is_possible_nothing_is_missed() -> None:
    nothing = Bound(weighted=0.0, plain=0.0, alone=ALL, unswapped=ALL)
    runs = (run("qlm", 0, 0), run("edf", 0, 0))
    assert regret.result_of(drawn(0), nothing, runs).share("weighted") == 1.0


def test_who_knows_the_future_is_no_rival() -> None:
    found = result(0, 9)
    assert found.best_rival("weighted")[0] == "edf"
    assert found.regret("weighted") < 0.0


def test_beds_are_summed_up() -> None:
    found = regret.summary([0.0, -0.1, 0.004, 0.006, *[-0.2] * 16])
    assert found["worst"] == 0.006
    assert found["p95"] == 0.004
    assert found["median"] == -0.2
    assert found["lost"] == 1 / 20
    assert found["mean"] == pytest.approx(-3.29 / 20)


def test_kinds_with_most_regret_and_the_worst_beds_come_first() -> None:
    found = [result(0, 9, "light"), result(1, 2, "heavy", "bursty"), result(2, 8, "heavy")]
    kinds = regret.by_kind(found, "plain")
    assert list(kinds) == ["bursty", "heavy", "light"]
    assert kinds["heavy"]["beds"] == 2
    assert [one.bed.index for one in regret.worst(found, "plain")] == [1, 2, 0]
    text = regret.report(found)
    assert text.index("--bed 1 --seed 7") < text.index("--bed 2 --seed 7")
    assert "best single rival: edf" in text


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beds on which a run takes a fraction of a second."""

    def draw(seed: int, index: int) -> DrawnBed:
        data = two_models(requests=30, rate=5.0 + index)
        data["slo_classes"] = {"batch-1": {"ttft_s": 60.0, "weight": 2.0}}
        data["slo_classes"]["batch-2"] = {"ttft_s": 600.0, "weight": 1.0}
        return DrawnBed(seed=seed, index=index, run_seed=index, scenario=data, kinds=("small",))

    monkeypatch.setattr(regret, "draw_bed", draw)
    monkeypatch.setattr(drawing, "draw_bed", draw)


@pytest.mark.usefixtures("small")
def test_every_policy_runs_on_every_bed(tmp_path: Path, capsys: Told) -> None:
    figures, picture = tmp_path / "regret.json", tmp_path / "regret.png"
    options = ["--json", str(figures), "--plot", str(picture), "--jobs", "2"]
    assert main(["bench", "regret", "--beds", "2", "--seed", "5", *options]) == 0
    found = json.loads(figures.read_text())
    assert [one["bed"] for one in found["beds"]] == [0, 1]
    for bed in found["beds"]:
        assert list(bed["attainment"]["plain"]) == list(policy_names())
        assert [one["policy"] for one in bed["runs"]] == list(policy_names())
        for measure in ("weighted", "plain"):
            most = bed["bound"][measure]
            for name, kept in bed["attainment"][measure].items():
                assert kept <= most + 1e-6
                assert bed["share_of_bound"][measure][name] == pytest.approx(kept / most)
    assert found["regret"]["weighted"]["all"]["beds"] == 2
    assert picture.read_bytes().startswith(b"\x89PNG")
    told = capsys.readouterr().out
    assert "qlm bench regret --bed 1 --seed 5" in told


def test_a_saved_bed_is_a_scenario_with_the_same_outcome(tmp_path: Path, capsys: Told) -> None:
    saved, one, other = (tmp_path / name for name in ("bed.yaml", "one.json", "other.json"))
    named = ["bench", "regret", "--bed", "7", "--seed", "1"]
    assert main([*named, "--save", str(saved), "--policy", "turns,edf"]) == 0
    repeat = capsys.readouterr().out.split()
    assert repeat[:2] == ["qlm", "sim"]
    assert main([*repeat[1:], "--jobs", "1", "--json", str(one)]) == 0
    options = ["--policy", "qlm,turns,edf", "--jobs", "1", "--json", str(other)]
    assert main([*named, *options]) == 0
    runs = json.loads(one.read_text())["runs"]
    assert [run["policy"] for run in runs] == ["turns", "edf"]
    [bed] = json.loads(other.read_text())["beds"]
    for run, again in zip(runs, bed["runs"][1:], strict=True):
        assert run | {"wall_s": 0} == again | {"wall_s": 0}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--beds", "0"], ("--beds", "at least 1")),
        (["--seed", "-1"], ("--seed", "at least 0")),
        (["--bed", "1", "--beds", "2"], ("--bed", "one of both")),
        (["--save", "x.yaml"], ("--save", "--bed")),
        (["--policy", "qlm"], ("--policy", "a rival")),
        (["--policy", "qlm,clairvoyant"], ("--policy", "a rival")),
        (["--policy", "qlm,best"], ("policy", "'best'", "unknown")),
        (["--bed", "1", "--policy", "best"], ("policy", "'best'", "unknown")),
        (["--bed", "1", "--save", "/nowhere/x.yaml"], ("/nowhere/x.yaml", "another name")),
    ],
)
def test_what_makes_no_sense_is_refused(
    arguments: list[str], words: tuple[str, ...], capsys: Told
) -> None:
    assert main(["bench", "regret", *arguments]) == 2
    told = capsys.readouterr().err
    assert all(word in told for word in words)
