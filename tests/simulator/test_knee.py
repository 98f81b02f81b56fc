"""The knee: what another rate of a bed is, how the crossing is found, and what a user is told of it."""

from __future__ import annotations

import json
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlm.__main__ import main
from qlm.knee import Knee, Search, Try, best_rival, crossing, load_of, pooled, ratio, shown
from qlm.simulations import Bed, bed_of_trace
from qlm_core.errors import ConfigError
from tests.simulator.beds import crowded, one_model, scenario

Told = pytest.CaptureFixture[str]


def bed_of(data: dict[str, Any]) -> Bed:
    return Bed(scenario=scenario(data))


def streams(**changes: Any) -> dict[str, Any]:
    """Two streams, one of them in a window of time."""
    batch = {"slo_class": "batch-2", "models": {"mistral-7b": 1}, "rate_rps": 20, "requests": 100}
    chat = {
        "slo_class": "interactive",
        "models": {"mistral-7b": 1},
        "rate_rps": 10,
        "start_s": 5,
        "until_s": 25,
    }
    return one_model() | {"workload": {"kind": "streams", "streams": [batch, chat]}} | changes


# --------------------------------------------------------------------------- a bed at another rate


@pytest.mark.parametrize("data", [one_model(requests=400), streams()])
def test_another_rate_is_more_requests_in_the_same_span(data: dict[str, Any]) -> None:
    load = load_of(bed_of(data), [0, 1])
    for scale in (0.5, 3.0):
        found = [list(load.at(scale).requests(seed)) for seed in (0, 1)]
        count = sum(map(len, found))
        assert count == pytest.approx(scale * load.requests, rel=0.1)
        span_s = sum(one[-1].arrival_s for one in found)
        assert span_s == pytest.approx(load.requests / load.rate_rps, rel=0.1)


def test_a_stretched_bed_keeps_its_rate_and_its_windows_in_proportion() -> None:
    load = load_of(bed_of(streams()), [0])
    found = list(load.at(0.5, stretch=4.0).requests(0))
    chats = [one.arrival_s for one in found if one.slo_class == "interactive"]
    batch = [one.arrival_s for one in found if one.slo_class == "batch-2"]
    assert (len(batch), batch[-1]) == (200, pytest.approx(20.0, rel=0.2))
    assert 20.0 < chats[0] < chats[-1] < 100.0
    assert len(chats) == pytest.approx(400, rel=0.15)


def test_a_request_has_the_same_lengths_at_every_rate() -> None:
    load = load_of(bed_of(one_model(requests=400)), [0])
    at_one, at_three = ([*load.at(scale).requests(0)] for scale in (1.0, 3.0))
    for one, other in zip(at_one, at_three, strict=False):
        assert one.prompt_tokens == other.prompt_tokens
        assert one.arrival_s == pytest.approx(3 * other.arrival_s)


def trace_file(folder: Path, requests: int = 400) -> Path:
    path = folder / "trace.csv"
    rows = "".join(f"{number / 2},100,20\n" for number in range(requests))
    path.write_text("arrival_s,prompt_tokens,output_tokens\n" + rows)
    return path


def of_trace(path: Path, limit: int | None) -> Bed:
    return bed_of_trace(
        path, fleet=None, mix="interactive=1", models=None, rate_scale=1.0, limit=limit
    )


def test_a_trace_gives_more_of_itself_in_the_same_span_until_it_ends(tmp_path: Path) -> None:
    load = load_of(of_trace(trace_file(tmp_path), 51), [0])
    assert load.span_s == pytest.approx(25.0)
    assert load.most == pytest.approx(399 / 50)
    assert [len(list(load.at(scale).requests(0))) for scale in (1.0, 2.0, 7.0)] == [50, 100, 350]
    assert len(list(load.at(0.5, stretch=4.0).requests(0))) == 100


def test_rates_of_a_trace_have_no_end(tmp_path: Path) -> None:
    path = tmp_path / "rates.csv"
    path.write_text("t_s,client,rate_rps,family,p1\n0,a,5,Gamma,1\n600,a,5,Gamma,1\n")
    load = load_of(of_trace(path, 100), [0])
    assert load.most == inf
    assert len(list(load.at(8.0).requests(0))) == pytest.approx(800, rel=0.15)


def test_a_trace_without_a_span_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--limit"):
        load_of(of_trace(trace_file(tmp_path), None), [0])


# --------------------------------------------------------------------------- the search


def test_the_grid_is_geometric_and_within_what_may_be_asked() -> None:
    search = Search(lowest=0.25, step=2.0, requests_most=4_000)
    assert search.grid(1_000, inf) == [0.25, 0.5, 1.0, 2.0, 4.0]
    assert search.grid(1_000, 1.5) == [0.25, 0.5, 1.0]
    assert search.grid(1_000, 0.1) == [0.1]
    assert search.grid(100_000, inf) == [0.04]


def test_few_requests_take_a_longer_span() -> None:
    search = Search(requests_least=300)
    assert search.stretch(1_000, 0.1) == pytest.approx(3.0)
    assert search.stretch(1_000, 2.0) == 1.0


GRID = [2.0**power for power in range(-4, 5)]


@given(st.floats(0.07, 15.9))
def test_a_policy_that_keeps_up_to_a_rate_has_its_knee_there(rate: float) -> None:
    kept, missed = crossing(lambda scale: scale <= rate, GRID, 1.02)
    assert kept is not None
    assert missed is not None
    assert kept <= rate < missed <= kept * 1.02 * (1 + 1e-9)


@given(st.lists(st.booleans(), min_size=len(GRID), max_size=len(GRID)), st.booleans())
def test_the_knee_is_the_first_crossing_from_below(keeps: list[bool], between: bool) -> None:
    asked: list[float] = []

    def kept_at(scale: float) -> bool:
        asked.append(scale)
        return dict(zip(GRID, keeps, strict=True)).get(scale, between)

    kept, missed = crossing(kept_at, GRID, 1.1)
    first = next((scale for scale, one in zip(GRID, keeps, strict=True) if not one), None)
    if first is None:
        assert (kept, missed) == (GRID[-1], None)
    elif first == GRID[0]:
        assert (kept, missed) == (None, GRID[0])
    else:
        assert kept is not None
        assert first / 2 <= kept < first
        assert missed is not None
        assert missed <= first
    # Nothing beyond the first miss is run, however it would be there.
    assert max(asked) == (GRID[-1] if first is None else first)
    assert all(a < b for a, b in pairwise(asked[: GRID.index(first or GRID[-1]) + 1]))


def test_seeds_are_pooled_by_requests() -> None:
    few = {"classes": {"a": {"attained": 1, "requests": 2}}, "lost": 1, "duplicated": 0}
    many = {
        "classes": {"a": {"attained": 8, "requests": 8}, "b": {"attained": 0, "requests": 10}},
        "lost": 0,
        "duplicated": 0,
    }
    found = pooled([few, many], 2.0)
    assert (found.requests, found.attainment, found.faulty) == (20, 0.45, 1)
    assert found.classes == {"a": 0.9, "b": 0.0}


def attained(everyone: float, **classes: float) -> Try:
    return Try(scale=1.0, requests=10, attainment=everyone, classes=classes, faulty=0)


def test_a_target_is_of_all_or_of_each_class() -> None:
    found = attained(0.96, interactive=0.85, batch=1.0)
    assert Search(target=0.95).keeps(found)
    assert not Search(target=0.95, each_class=True).keeps(found)
    assert Search(target=0.85, each_class=True).keeps(found)


# --------------------------------------------------------------------------- what is told


def found(policy: str, kept: float | None, missed: float | None) -> Knee:
    return Knee(
        policy=policy, rate_rps=10.0, tries=(attained(1.0, a=1.0),), kept=kept, missed=missed
    )


def test_a_knee_that_was_not_reached_is_told_as_a_limit() -> None:
    low, high = found("fcfs", None, 0.5), found("qlm", 4.0, None)
    middle = found("edf", 2.0, 2.02)
    assert [shown(one) for one in (low, middle, high)] == ["< 5", "20", ">= 40"]
    assert ratio(middle, middle) == "1.00"
    assert ratio(middle, low) == "> 4.00"
    assert ratio(high, middle) == ">= 2.00"
    assert ratio(middle, high) == "< 0.50"
    assert ratio(high, high) == ratio(low, middle) == ratio(high, None) == ""


def test_the_best_rival_is_neither_ours_nor_the_reference() -> None:
    ours = [
        found("qlm", 9.0, 9.1),
        found("qlm -eviction", 8.0, 8.1),
        found("clairvoyant", 9.0, 9.1),
    ]
    assert best_rival(ours) is None
    rivals = [found("edf", 2.0, 2.1), found("turns", 3.0, 3.1), found("fcfs", None, 1.0)]
    best = best_rival([*ours, *rivals])
    assert best is not None
    assert best.policy == "turns"


def test_the_bound_has_a_knee_that_no_policy_exceeds(tmp_path: Path, capsys: Told) -> None:
    bed, figures = tmp_path / "bed.yaml", tmp_path / "knee.json"
    bed.write_text(json.dumps(crowded()))
    options = ["--knee", "0.9", "--policy", "edf,fcfs", "--jobs", "1", "--bound"]
    assert main(["sim", str(bed), *options, "--json", str(figures)]) == 0
    told = capsys.readouterr().out.splitlines()
    assert "| over fcfs | over bound |" in told[0]
    policies = json.loads(figures.read_text())["policies"]
    assert json.loads(figures.read_text())["best_rival"] == "edf"
    assert policies["bound"]["knee_rps"] >= policies["edf"]["knee_rps"]
    for one in policies["edf"]["tries"]:
        for most in policies["bound"]["tries"]:
            if one["scale"] == most["scale"]:
                assert one["slo_attainment"] <= most["slo_attainment"] + 1e-9


def test_a_user_gets_a_table_figures_and_a_picture(tmp_path: Path, capsys: Told) -> None:
    bed, figures, picture = (tmp_path / name for name in ("bed.yaml", "knee.json", "knee.png"))
    bed.write_text(json.dumps(crowded()))
    options = ["--knee", "0.9", "--policy", "fcfs,edf", "--seeds", "2", "--jobs", "1"]
    written = ["--json", str(figures), "--plot", str(picture)]
    assert main(["sim", str(bed), *options, *written]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("| 90% of all kept up to | requests/s | over the best rival")
    policies = json.loads(figures.read_text())["policies"]
    assert [line.split()[1] for line in told[2:]] == ["edf", "fcfs"]
    for one in policies.values():
        tries = {each["scale"]: each["slo_attainment"] for each in one["tries"]}
        assert tries[one["scale"]] >= 0.9 > tries[one["missed_scale"]]
        assert one["missed_scale"] <= one["scale"] * 1.02 * (1 + 1e-9)
    assert policies["edf"]["knee_rps"] > policies["fcfs"]["knee_rps"]
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bed.yaml", "--knee", "1.5"], ("--knee", "up to 1")),
        (["bed.yaml", "--each-class"], ("--each-class", "--knee")),
        (["bed.yaml", "--knee", "0.9", "--each-class", "--bound"], ("--bound", "--each-class")),
        (["size", "bed.yaml", "--knee", "0.9"], ("--knee", "comparing policies")),
        (["faults", "--seed", "1", "--knee", "0.9"], ("--knee", "faults")),
        (["trace", "trace.csv", "--knee", "0.9"], ("--limit", "span")),
        (["bed.yaml", "--knee", "0.9", "--policy", "best"], ("policy", "'best'")),
    ],
)
def test_what_makes_no_sense_is_refused(
    arguments: list[str],
    words: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Told,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bed.yaml").write_text(json.dumps(one_model()))
    trace_file(tmp_path)
    assert main(["sim", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert all(word in said for word in words)
