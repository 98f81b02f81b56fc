"""Scenario files: what is shipped is usable, what is wrong is said in one line."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from qlm import simulations
from qlm.__main__ import main
from qlm.fleet_sizing import smallest_fleet
from qlm_core.errors import ConfigError, QlmError
from qlm_core.sim.record import RunRecord
from qlm_core.sim.scenario import instances, requests
from tests.simulator.beds import figures, one_model, scenario, two_models

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
    return changed(one_model(), *keys, to=to)


def changed(data: Any, *keys: str | int, to: Any) -> dict[str, Any]:
    at = data = deepcopy(data)
    for key in keys[:-1]:
        at = at.setdefault(key, {}) if isinstance(key, str) else at[key]
    at[keys[-1]] = to
    return data


def in_class(key: str, to: Any) -> dict[str, Any]:
    data = one_model() | {"slo_classes": {"interactive": {"ttft_s": 20}}}
    return changed(data, "slo_classes", "chat", to={"ttft_s": 20} | {key: to})


def in_stream(key: str, to: Any, **others: Any) -> dict[str, Any]:
    """Two streams, the second one with a mistake."""
    good = {"slo_class": "interactive", "models": {"mistral-7b": 1}, "rate_rps": 5, "requests": 9}
    return change("workload", to={"kind": "streams", "streams": [good, good | others | {key: to}]})


def on_own_gpu(model: str, gpus: int, *, gpu: str = "mygpu") -> dict[str, Any]:
    times = ("base_ms", "per_token_ms", "per_sequence_ms", "per_context_token_ms")
    own = {
        "model": "vicuna-13b",
        "gpu": gpu,
        "tensor_parallel": 2,
        "iteration": dict.fromkeys(times, 0.1),
        "kv_cache_tokens": 20_000,
    }
    part = {"gpu": gpu, "gpus": gpus, "models": [model]}
    return one_model() | {"profiles": [own], "fleet": [part]}


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


NOT_POSITIVE = (0, -1, math.nan, math.inf, -math.inf, 1e300, 10**400)


@pytest.mark.parametrize("value", NOT_POSITIVE)
@pytest.mark.parametrize(
    "path",
    [
        "slo_classes.chat.ttft_s",
        "slo_classes.chat.tpot_s",
        "slo_classes.chat.e2e_s",
        "solver.grouping.delta",
        "solver.replan.period_s",
        "solver.objective.aim",
        "executor.pull_timeout_s",
        "simulation.report_interval_s",
    ],
)
def test_what_must_be_above_0_is_refused_by_its_path(path: str, value: float) -> None:
    section, *keys = path.split(".")
    bad = (
        in_class(keys[-1], value) if section == "slo_classes" else change(section, *keys, to=value)
    )
    with pytest.raises(ConfigError, match=rf"^test\.yaml: .*{keys[-1]}") as caught:
        scenario(bad)
    assert path in str(caught.value) or value == 10**400
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("solver.rwt.history", 0),
        ("solver.rwt.prior_output_tokens", 0),
        ("solver.rwt.token_throughput.mistral-7b", 0),
        ("solver.rwt.token_throughput.mistral-7b", 1e-300),
        ("solver.window_requests", 0),
        ("solver.window_requests", 10**400),
        ("solver.replan.min_interval_s", math.inf),
        ("solver.replan.period_s", 1e-9),
        ("solver.objective.late", -1),
        ("solver.objective.aim", 5),
        ("executor.kv_headroom", 1.5),
        ("executor.kv_headroom", -1),
        ("executor.pull_timeout_s", 1e-9),
        ("simulation.link_s", math.inf),
        ("simulation.solve_s", -1),
        ("simulation.solve_work", 0),
        ("fleet[0].host_memory_gb", math.inf),
        ("fleet[0].host_memory_gb", 1e300),
        ("fleet[0].host_memory_gb", math.nan),
        ("fleet[0].gpus", 1_000_000),
        ("fleet[0].gpus", 0),
        ("fleet[0].count", 10**9),
        ("workload.interactive_rps", 0),
        ("workload.interactive_rps", -1),
        ("workload.interactive_rps", 1e-300),
        ("workload.batch_1_rps", 1e300),
        ("workload.batch_2_rps", math.nan),
        ("workload.cv", 1e200),
        ("workload.cv", 1e-200),
        ("workload.mega_rps", 1),
        ("workload.batch_1_models", {"mistral-7b": 1}),
        ("policies", []),
        ("slo_classes", {}),
        ("slo_classes", {f"class-{number}": {"ttft_s": 20} for number in range(1_001)}),
    ],
)
def test_what_is_out_of_range_is_refused_by_its_path(path: str, value: Any) -> None:
    keys = [int(key) if key.isdigit() else key for key in path.replace("[0]", ".0").split(".")]
    with pytest.raises(ConfigError) as caught:
        scenario(change(*keys, to=value))
    assert str(caught.value).startswith(f"test.yaml: {path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [-1, math.nan, math.inf])
def test_a_weight_is_a_number_of_at_least_0(value: float) -> None:
    with pytest.raises(ConfigError, match=r"slo_classes\.chat\.weight: must be a finite number"):
        scenario(in_class("weight", value))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("rate_rps", value) for value in (*NOT_POSITIVE[:-1], 1e-300)),
        *(("cv", value) for value in (-1, math.nan, math.inf, 1e200, 1e-200)),
        *(("requests", value) for value in (0, -1, 10**30)),
        *(("start_s", value) for value in (-1, math.nan, math.inf, 1e300)),
        *(("until_s", value) for value in (0, -5, math.nan, math.inf, 1e300)),
        *(("models", value) for value in ({}, {"mistral-7b": 0}, {"mistral-7b": math.nan})),
        ("models", {"mistral-7b": 1e308, "mistral-7b-ft1": 1e308}),
        ("max_tokens", 0),
    ],
)
def test_a_stream_is_named_by_its_index(key: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        scenario(in_stream(key, value))
    assert str(caught.value).startswith(f"test.yaml: workload.streams[1].{key}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [
        in_stream("rate_rps", 1e-6, requests=5000),
        in_stream("start_s", 1e9, until_s=None),
    ],
)
def test_a_workload_arrives_within_thirty_years(data: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"workload\.requests: they take more than 1e\+09"):
        scenario(data)


def test_one_slow_stream_does_not_make_a_workload_slow() -> None:
    assert scenario(change("workload", "batch_2_rps", to=1e-6))
    assert scenario(in_stream("rate_rps", 1e-6, until_s=60))


def test_a_stream_ends_after_it_starts() -> None:
    with pytest.raises(ConfigError, match=r"streams\[1\]\.until_s: 5 .* start_s \(5\)"):
        scenario(in_stream("until_s", 5, start_s=5))
    assert scenario(in_stream("until_s", 6, start_s=5))


@pytest.mark.parametrize(("key", "value"), [("slo_class", "gold"), ("models", {"gpt-5": 1})])
def test_a_stream_that_nothing_serves_is_named_by_its_index(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=r"workload\.streams\[1\]: .*(gold|gpt-5)"):
        scenario(in_stream(key, value))


@pytest.mark.parametrize(
    ("key", "data", "left"),
    [
        ("interactive_rps", change("workload", "batch_1_rps", to=9), {"batch-1"}),
        ("batch_1_rps", one_model(), {"interactive", "batch-2"}),
        ("batch_2_rps", one_model(), {"interactive", "batch-1"}),
        ("batch_1_rps", changed(two_models(), "workload", "batch_2_rps", to=9), {"batch-2"}),
        ("batch_2_rps", two_models(), {"batch-1"}),
    ],
)
def test_a_rate_of_0_is_none_of_these_requests(
    key: str, data: dict[str, Any], left: set[str]
) -> None:
    bed = scenario(changed(data, "workload", key, to=0))
    assert {one.slo_class for one in requests(bed, seed=0)} == left


def test_one_rate_is_above_0() -> None:
    with pytest.raises(ConfigError, match=r"workload\.batch_1_rps: 0, as all other rates"):
        scenario(changed(two_models(), "workload", "batch_1_rps", to=0))


def test_the_other_classes_stay_as_they_were_without_one() -> None:
    usual = requests(scenario(change("workload", "requests", to=300)), seed=0)
    fewer = requests(scenario(change("workload", "batch_1_rps", to=0)), seed=0)
    kept = [one for one in usual if one.slo_class != "batch-1"]
    assert kept[:100] == list(fewer)[:100]


def test_a_rate_that_is_left_out_is_the_first_classs() -> None:
    told = change("workload", "batch_1_rps", to=12.0)
    assert list(requests(scenario(told), seed=3)) == list(requests(scenario(one_model()), seed=3))


def test_a_class_without_requests_need_not_be_known() -> None:
    data = change("workload", "batch_2_rps", to=0)
    data["slo_classes"] = {"interactive": {"ttft_s": 20}, "batch-1": {"ttft_s": 60}}
    assert scenario(data)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (
            change("workload", "mega_rps", to=1),
            "workload.mega_rps: only with kind W_C, not with W_A",
        ),
        (
            changed(two_models(), "workload", "interactive_rps", to=1),
            "workload.interactive_rps: only with kind W_A, not with W_B",
        ),
        (
            changed(two_models(), "workload", "model", to="vicuna-13b"),
            "workload.model: only with kind W_A, not with W_B",
        ),
        (
            change("workload", "streams", to=[{"slo_class": "a", "models": {}, "rate_rps": 1}]),
            "workload.streams: only with kind streams, not with W_A",
        ),
        (
            changed(in_stream("cv", 1), "workload", "cv", to=1),
            "workload.cv: only with kind W_A or W_B or W_C, not with streams",
        ),
    ],
)
def test_a_key_of_another_kind_of_workload_is_refused(data: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        scenario(data)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (on_own_gpu("mistral-7b", 2), ("'mistral-7b' on at most 2 GPUs", "vicuna-13b on 2")),
        (on_own_gpu("vicuna-13b", 1), ("'vicuna-13b' on 1 GPU", "'mygpu'", "vicuna-13b on 2")),
        (on_own_gpu("gpt-5", 1, gpu="a10"), ("'gpt-5' on 1 GPU", "mistral-7b on 1")),
    ],
)
def test_a_gpu_of_ones_own_lacks_a_profile_for_a_model(
    data: dict[str, Any], words: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError) as caught:
        scenario(data)
    assert [word for word in ("fleet[0]", *words) if word not in str(caught.value)] == []
    assert "no profile for" not in str(caught.value)


def test_a_run_tells_many_classes_apart() -> None:
    record = RunRecord(("one",))
    record.arrived(0.0, 999)
    assert record.slo_class[0] == 999
    data = in_stream("slo_class", "class-199")
    classes = {f"class-{number}": {"ttft_s": 20} for number in range(200)}
    data["slo_classes"] = {"interactive": {"ttft_s": 20}} | classes
    assert figures(data, "fcfs")["classes"]["class-199"]["requests"] == 9


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
