"""Scenario files: what is shipped is usable, what is wrong is said in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qlm import simulations
from qlm.__main__ import main
from qlm_core.errors import ConfigError
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
    tried, smallest = simulations.smallest_fleet(
        bed, policy="qlm", target=0.98, gpu=None, largest=16, seed=0
    )
    assert smallest is not None
    assert tried[smallest] >= 0.98 > max((v for k, v in tried.items() if k < smallest), default=0)
