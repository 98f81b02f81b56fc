"""Scenario files: what is shipped is usable, what is wrong is said in one line."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qlm import simulations
from qlm.__main__ import main
from qlm.fleet_sizing import smallest_fleet
from qlm_core.errors import ConfigError, QlmError
from qlm_core.sim.scenario import instances
from tests.simulator.beds import one_model, scenario

SHIPPED = sorted((Path(__file__).resolve().parents[2] / "benchmarks" / "scenarios").glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_scenarios_are_valid(path: Path) -> None:
    bed = simulations.bed_of_scenario(path)
    assert next(bed.requests(0)).arrival_s >= 0
    assert instances(bed.scenario.fleet)


def test_the_template_is_a_scenario_that_runs(tmp_path: Path) -> None:
    path = tmp_path / "new.yaml"
    assert main(["sim", "new", str(path)]) == 0
    assert simulations.read_scenario(path).name == "example"
    assert main(["sim", "new", str(path)]) == 2


def change(*keys: str | int, to: Any) -> dict[str, Any]:
    data: Any = one_model()
    at = data
    for key in keys[:-1]:
        at = at[key]
    at[keys[-1]] = to
    return data


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (change("flet", to=[]), ("test.yaml", "flet", "unknown key")),
        (change("fleet", 0, "gpu", to="a9"), ("fleet[0]", "a9", "a100")),
        (change("fleet", 0, "models", to=["gpt-5"]), ("fleet[0]", "gpt-5", "mistral-7b")),
        (change("fleet", 0, "count", to="two"), ("fleet[0].count", "int")),
        (change("fleet", 0, "count", to=0), ("fleet[0]", "count")),
        (change("workload", "interactive_rps", to=None), ("workload.interactive_rps", "missing")),
        (change("workload", "model", to="vicuna-13b"), ("vicuna-13b", "fleet")),
        (change("workload", "requests", to=0), ("workload.requests",)),
        (change("workload", "kind", to="W_Z"), ("workload.kind", "W_Z")),
    ],
)
def test_errors_name_file_key_and_remedy(data: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        scenario(data)
    assert [word for word in ("test.yaml", *words) if word not in str(caught.value)] == []
    assert "\n" not in str(caught.value)


def test_a_trace_runs_on_the_default_fleet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "trace.csv"
    rows = "".join(f"{index * 0.2:.1f},100,{20 + index % 7}\n" for index in range(40))
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n" + rows)
    plot, figures = tmp_path / "p.png", tmp_path / "f.json"
    command = ["sim", "trace", str(trace), "--policy", "qlm,edf", "--jobs", "1"]
    assert main([*command, "--json", str(figures), "--plot", str(plot)]) == 0
    runs = json.loads(figures.read_text())["runs"]
    assert [(one["policy"], one["requests"], one["lost"]) for one in runs] == [
        ("qlm", 40, 0),
        ("edf", 40, 0),
    ]
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert "| qlm |" in capsys.readouterr().out
    assert main(["sim", "trace", str(trace), "--policy", "nobody"]) == 2


def test_the_smallest_fleet_reaches_the_target() -> None:
    bed = simulations.Bed(scenario=scenario(one_model(requests=600, rate=10.0)))
    found = smallest_fleet(bed, "a10", "qlm", 0.98, 16, 0)
    assert found.smallest is not None
    assert found.tried[found.smallest] >= 0.98
    assert max((v for k, v in found.tried.items() if k < found.smallest), default=0) < 0.98


def test_sizes_are_found_by_class_of_gpu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, plot, figures = (tmp_path / name for name in ("s.yaml", "p.svg", "f.json"))
    path.write_text(json.dumps(one_model(requests=200, rate=8.0)))
    command = ["sim", "size", str(path), "--gpu", "a10,h100", "--policy", "edf"]
    assert main([*command, "--json", str(figures), "--plot", str(plot)]) == 0
    gpus = json.loads(figures.read_text())["gpus"]
    assert list(gpus) == ["a10", "h100"]
    assert gpus["h100"]["smallest"] <= gpus["a10"]["smallest"]
    assert "<svg" in plot.read_text()
    assert "h100" in capsys.readouterr().out
    assert main(["sim", "size", str(path), "--gpu", "a9"]) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["absent.yaml"], ("absent.yaml", "qlm sim new")),
        (["trace", "absent.csv"], ("absent.csv",)),
        (["trace"], ("FILE is missing",)),
        (["s.yaml", "other"], ("one scenario at a time",)),
        (["s.yaml", "--seeds", "0"], ("--seeds", "at least 1")),
        (["s.yaml", "--plot", "x.gif"], ("--plot", ".png")),
        (["s.yaml", "--json", "nowhere/x.json"], ("--json", "folder")),
        (["s.yaml", "--policy", "nobody"], ("nobody", "shepherd")),
        (["s.yaml", "--policy", "qlm", "--without", "luck"], ("luck", "kv-swap")),
        (["size", "s.yaml", "--target", "2"], ("--target",)),
        (["trace", "t.csv", "--mix", "gold=1"], ("--mix", "gold", "batch-1")),
        (["trace", "t.csv", "--models", "gpt-5"], ("--models", "gpt-5", "mistral-7b")),
        (["trace", "t.csv", "--rate-scale", "0"], ("rate_scale", "not positive")),
        (["trace", "t.csv"], ("gold", "slo_classes")),
    ],
)
def test_bad_input_is_refused_in_one_line(
    arguments: list[str],
    words: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.yaml").write_text(json.dumps(one_model()))
    (tmp_path / "t.csv").write_text(
        "arrival_s,prompt_tokens,output_tokens,slo_class\n0,10,10,gold\n"
    )
    assert main(["sim", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert [word for word in words if word not in said] == []


def _killed(seed: int, watch: Callable[[int], None]) -> int:
    if seed:
        os.kill(os.getpid(), signal.SIGKILL)
    return seed


def test_a_killed_run_is_reported_and_not_waited_for() -> None:
    def run(seeds: list[int]) -> list[int]:
        calls = [(seed,) for seed in seeds]
        names = [f"seed {seed}" for seed in seeds]
        return simulations.in_processes(calls, _killed, names, jobs=2, progress=told.append)

    told: list[str] = []
    assert run([0, 0]) == [0, 0]
    assert told == ["1/2 done: seed 0", "2/2 done: seed 0"]
    with pytest.raises(QlmError, match="process was killed"):
        run([0, 1])


def test_profiles_of_ones_own_go_before_the_shipped_ones(tmp_path: Path) -> None:
    own = {
        "model": "mistral-7b",
        "gpu": "a10",
        "iteration": {
            "base_ms": 500.0,
            "per_token_ms": 0.1,
            "per_sequence_ms": 0.1,
            "per_context_token_ms": 0.0,
        },
        "kv_cache_tokens": 20_000,
    }
    (tmp_path / "own.json").write_text(json.dumps(own))
    path = tmp_path / "s.yaml"
    path.write_text(json.dumps(one_model() | {"profiles": ["own.json"]}))
    bed = simulations.bed_of_scenario(path)
    specs = instances(bed.scenario.fleet, bed.scenario.profiles)
    assert {spec.profiles[0].iteration.base_ms for spec in specs} == {500.0}
    path.write_text(json.dumps(one_model() | {"profiles": ["absent.json"]}))
    with pytest.raises(ConfigError, match="qlm profile fit"):
        simulations.bed_of_scenario(path)
