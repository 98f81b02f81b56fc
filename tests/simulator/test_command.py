"""`qlm sim` as a user meets it: what it says of traces and sizes, which options it takes, and how it ends."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qlm import simulations
from qlm.__main__ import main
from qlm_core.errors import ConfigError
from tests.simulator.beds import one_model

Told = pytest.CaptureFixture[str]


def trace_file(folder: Path, *rows: tuple[float, int, int]) -> str:
    """A plain trace of arrivals (s), prompts and outputs (tokens)."""
    path = folder / "trace.csv"
    lines = [f"{arrival_s},{prompt},{output}\n" for arrival_s, prompt, output in rows]
    path.write_text("arrival_s,prompt_tokens,output_tokens\n" + "".join(lines))
    return str(path)


def figures_of(folder: Path, *arguments: str) -> dict[str, Any]:
    """What a command that succeeds writes as JSON."""
    path = folder / "figures.json"
    assert main(["sim", *arguments, "--jobs", "1", "--json", str(path)]) == 0
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_requests_that_are_cut_to_the_fleet_are_counted(tmp_path: Path, capsys: Told) -> None:
    trace = trace_file(tmp_path, (0, 100, 10), (1, 9000, 10), (2, 100, 9000))
    [run] = figures_of(tmp_path, "trace", trace, "--policy", "fcfs")["runs"]
    # The default fleet promises 8,192 tokens, of which an output gets half.
    assert run["cut"] == 2
    assert "2 requests were longer than the fleet takes" in capsys.readouterr().out


def test_an_output_longer_than_clients_usually_allow_is_whole(tmp_path: Path, capsys: Told) -> None:
    trace = trace_file(tmp_path, (0, 100, 3000))
    [run] = figures_of(tmp_path, "trace", trace, "--policy", "fcfs")["runs"]
    assert run["cut"] == 0
    assert run["output_tokens_per_s"] * run["makespan_s"] == pytest.approx(3000, rel=0.01)
    assert "were cut" not in capsys.readouterr().out


def test_what_is_possible_is_told_beside_what_was_reached(tmp_path: Path, capsys: Told) -> None:
    scenario = tmp_path / "bed.yaml"
    classes = {"interactive": {"ttft_s": 0.3, "weight": 4}, "batch-1": {"ttft_s": 60}}
    scenario.write_text(
        json.dumps(one_model(rate=40.0) | {"slo_classes": classes | {"batch-2": {"ttft_s": 600}}})
    )
    asked = [str(scenario), "--policy", "fcfs,edf-evict", "--seeds", "2", "--seed", "5"]
    found = figures_of(tmp_path, *asked, "--bound")
    assert [one["seed"] for one in found["bounds"]] == [5, 6]
    for run in found["runs"]:
        [most] = [one for one in found["bounds"] if one["seed"] == run["seed"]]
        assert run["slo_attainment"] <= most["plain"] + 1e-6 <= most["alone"]["plain"] + 2e-6
    assert most["plain"] < 1.0
    told = capsys.readouterr().out
    assert "| bound, if swaps were free |" in told
    table = [line.split("|") for line in told.splitlines() if line.startswith("| edf-evict")]
    kept, share = (float(cell.strip(" %")) for cell in table[-1][2:4])
    assert share > kept
    assert "bounds" not in figures_of(tmp_path, *asked)


@pytest.mark.parametrize("policy", ["qlm", "fcfs"])
def test_a_request_that_comes_hours_after_the_others_is_served(tmp_path: Path, policy: str) -> None:
    # After thirty years, floats are coarser than the engine's nanoseconds.
    later = [(40_000, 100, 10), (40_001, 100, 10), (1e9, 100, 10), (1e9 + 1, 100, 10)]
    trace = trace_file(tmp_path, (0, 100, 10), *later)
    [run] = figures_of(tmp_path, "trace", trace, "--policy", policy)["runs"]
    assert (run["requests"], run["finished"], run["lost"]) == (5, 5, 0)


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (("interactive", "batch-1"), {"interactive", "batch-1"}),
        (("gold", "silver"), {"gold", "silver"}),
    ],
)
def test_the_default_mix_is_of_the_classes_of_the_fleet(
    classes: tuple[str, ...], expected: set[str], tmp_path: Path
) -> None:
    trace = trace_file(tmp_path, *((float(second), 10, 10) for second in range(40)))
    fleet = tmp_path / "fleet.yaml"
    bed = one_model() | {
        "workload": {"kind": "streams"},
        "slo_classes": {name: {"ttft_s": 9} for name in classes},
    }
    fleet.write_text(json.dumps(bed))
    [run] = figures_of(tmp_path, "trace", trace, "--fleet", str(fleet), "--policy", "fcfs")["runs"]
    assert set(run["classes"]) == expected
    assert run["finished"] == 40


def test_sizing_says_what_a_small_gpu_cannot_hold(tmp_path: Path, capsys: Told) -> None:
    trace = trace_file(tmp_path, (0, 100, 10), (1, 60_000, 10))
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text(json.dumps(one_model()))
    command = ["size", trace, "--fleet", str(fleet), "--gpu", "a10,h100", "--mix", "batch-1=1"]
    found = figures_of(tmp_path, *command, "--policy", "fcfs")["gpus"]
    assert (found["a10"]["cut"], found["h100"]["cut"]) == (1, 0)
    assert "1 requests are longer than it holds" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["s.yaml", "--limit", "5"], ("--limit", "a trace")),
        (["s.yaml", "--mix", "gold=1"], ("--mix", "a trace")),
        (["s.yaml", "--rate-scale", "1"], ("--rate-scale", "a trace")),
        (["s.yaml", "--target", "0.5"], ("--target", "qlm sim size")),
        (["size", "s.yaml", "--fleet", "f.yaml"], ("--fleet", "a trace")),
        (["size", "s.yaml", "--seeds", "3"], ("--seeds", "comparing")),
        (["size", "s.yaml", "--without", "eviction"], ("--without", "comparing")),
        (["size", "s.yaml", "--bound"], ("--bound", "comparing")),
        (["faults", "--seed", "1", "--bound"], ("--bound", "changes nothing")),
        (["size", "s.yaml", "--policy", "edf,fcfs"], ("--policy", "one policy")),
        (["s.yaml", "--policy", "edf", "--without", "luck"], ("--without", "qlm")),
        (["s.yaml", "--json", "."], ("--json", "folder")),
        (["twice.yaml"], ("twice.yaml", "line 2", "'name'")),
        (["trace", "empty.csv", "--policy", "fcfs"], ("empty.csv", "no requests")),
        (["size", "empty.csv", "--gpu", "a10"], ("empty.csv", "no requests")),
    ],
)
def test_what_would_not_count_is_refused_in_one_line(
    arguments: list[str],
    words: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Told,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.yaml").write_text(json.dumps(one_model()))
    (tmp_path / "twice.yaml").write_text("name: a\nname: b\n")
    (tmp_path / "empty.csv").write_text("arrival_s,prompt_tokens,output_tokens\n")
    assert main(["sim", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert [word for word in words if word not in said] == []


def _fails_or_sleeps(seed: int, watch: Callable[[int], None]) -> None:
    if seed == 0:
        raise ConfigError("seed 0 is bad")
    time.sleep(3600.0)


def test_the_first_error_ends_all_runs() -> None:
    calls = [(seed,) for seed in range(4)]
    with pytest.raises(ConfigError, match="seed 0 is bad"):
        simulations.in_processes(calls, _fails_or_sleeps, list("0123"), jobs=2, progress=print)
    for process in multiprocessing.active_children():
        process.join(10.0)
        # The pool may have reaped it before, of which `is_alive` does not know.
        assert process.pid is not None
        with pytest.raises(ProcessLookupError):
            os.kill(process.pid, 0)
