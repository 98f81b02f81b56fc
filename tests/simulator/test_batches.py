"""Batches as a kind of workload: whole runs, what is said of them and what comes, and what is wrong with a scenario."""

from __future__ import annotations

from copy import deepcopy
from math import isfinite
from pathlib import Path
from typing import Any

import pytest

from qlm import simulations
from qlm.__main__ import main
from qlm_core.errors import ConfigError
from qlm_core.sim.batches import BatchRun
from qlm_core.sim.policies import policy_names
from qlm_core.sim.record import RunRecord
from qlm_core.sim.scenario import scenario_from_mapping
from tests.simulator.beds import figures, scenario, simulate, two_models

Json = dict[str, Any]
BOTH = {"mistral-7b-ft1": 1, "vicuna-13b-ft1": 1}
LARGE: Json = {
    "slo_class": "batch-2", "models": BOTH, "lines": 80, "submitted_s": 5.0, "window_s": 2000.0, "lengths": "brief",
}  # fmt: skip
SMALL: Json = LARGE | {"models": {"mistral-7b-ft1": 1}, "lines": 30, "submitted_s": 20.0}


def bed(*batches: Json, waiting: int = 16) -> Json:
    """Requests for two models that share two instances, and batches beside them."""
    data = two_models(requests=60, rate=3.0)
    data["workload"]["batches"] = list(batches or (LARGE, SMALL))
    data["simulation"] = data["simulation"] | {"waiting_lines_max": waiting}
    return data


def alone(*batches: Json) -> Json:
    return bed() | {"workload": {"kind": "streams", "batches": list(batches)}}


def require_each_once(record: RunRecord, batches: list[BatchRun]) -> None:
    """Every request has one end, and every line is over."""
    assert list(record.ended) == [1] * len(record.ended)
    assert [run.ended for run in batches] == [run.lines for run in batches]


@pytest.mark.parametrize("policy", policy_names())
def test_every_line_ends_exactly_once_under_every_policy(policy: str) -> None:
    record, trace = simulate(bed(), policy)
    require_each_once(record, record.batches)
    assert len(record.ended) == 60 + 80 + 30
    assert list(record.finished) == [1] * len(record.ended)
    ends = [line.split()[2] for line in trace if line.split()[1] == "end"]
    assert len(ends) == len(dict.fromkeys(ends)) == len(record.ended)
    assert all(run.in_time and not run.dropped for run in record.batches)


@pytest.mark.parametrize("seed", range(6))
def test_a_run_with_batches_is_the_same_again(seed: int) -> None:
    record, trace = simulate(bed(), "qlm", seed=seed)
    again, trace_again = simulate(bed(), "qlm", seed=seed)
    assert trace == trace_again
    assert [run.told for run in record.batches] == [run.told for run in again.batches]
    require_each_once(record, record.batches)


def test_lines_are_released_as_engines_take_them() -> None:
    data = bed(SMALL | {"lines": 60, "submitted_s": 0.0}, waiting=4)
    record, trace = simulate(data, "qlm")
    require_each_once(record, record.batches)
    at_s = [float(line.split()[0]) for line in trace if line.split()[1] == "release"]
    assert len(at_s) == 60
    # Of one model so many wait at a time; the others come one by one as agents pull.
    assert len([one for one in at_s if one == at_s[0]]) == 4
    assert len(dict.fromkeys(at_s)) > 10


def test_what_is_said_comes_at_once_and_is_kept_up_to_date() -> None:
    record, _ = simulate(bed(LARGE), "qlm")
    [run] = record.batches
    first, last = run.told[0], run.told[-1]
    assert first.at_s - run.submitted_s < 1.0
    assert first.done == 0.0
    assert first.feasible
    assert 0.0 < first.p50_s <= first.p90_s
    assert last.done > 0.5
    assert last.p90_s < first.p90_s


def test_when_the_window_is_over_the_rest_is_dropped_and_that_was_said() -> None:
    late = LARGE | {"lines": 2_000, "window_s": 20.0}
    record, _ = simulate(bed(late), "qlm")
    [run] = record.batches
    require_each_once(record, record.batches)
    assert run.dropped > 0
    assert not isfinite(run.ended_s)
    assert not run.in_time
    assert not run.told[0].feasible
    assert "What would help" in run.told[0].explanation
    assert len(record.ended) < 60 + 2_000
    # The requests beside it end well.
    assert sum(record.finished) >= 60


def test_a_workload_may_be_batches_alone() -> None:
    record, _ = simulate(alone(SMALL), "qlm")
    require_each_once(record, record.batches)
    assert len(record.ended) == 30
    assert record.batches[0].in_time


def test_requests_that_cannot_wait_keep_their_targets_beside_a_batch() -> None:
    data = two_models(requests=150, rate=6.0)
    kept = figures(data, "qlm")["slo_attainment"]
    data["workload"]["batches"] = [LARGE | {"lines": 400, "lengths": "sharegpt"}]
    beside = figures(data, "qlm")["classes"]["batch-1"]["attainment"]
    assert beside >= kept - 0.02


def test_outputs_are_scaled_up_to_the_limit() -> None:
    usual, _ = simulate(alone(SMALL), "qlm")
    short, _ = simulate(alone(SMALL | {"output_scale": 0.1}), "qlm")
    limited, _ = simulate(alone(SMALL | {"max_tokens": 3}), "qlm")
    assert 0.08 < short.output_tokens / usual.output_tokens < 0.12
    assert limited.output_tokens == 3 * 30


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"slo_class": "gold"}, "slo_class: 'gold'"),
        ({"models": {"nobodys": 1}}, "models: no instance serves 'nobodys'"),
        ({"models": {}}, "models: empty"),
        ({"lines": 0}, "lines: 0"),
        ({"lines": 10**9}, "lines: 1000000000"),
        ({"window_s": 0.0}, "window_s: 0"),
        ({"submitted_s": -1.0}, "submitted_s: -1"),
        ({"output_scale": 0.0}, "output_scale: 0"),
        ({"max_tokens": 0}, "max_tokens: 0"),
    ],
)
@pytest.mark.parametrize("beside", [True, False])
def test_a_batch_that_cannot_be_is_named_by_its_index(
    changed: Json, words: str, beside: bool
) -> None:
    data = bed(LARGE, SMALL | changed) if beside else alone(LARGE, SMALL | changed)
    with pytest.raises(ConfigError, match=rf"workload\.batches\[1\]\.{words}"):
        scenario_from_mapping(deepcopy(data), "bed.yaml")


def test_figures_tell_what_was_said_first_beside_what_came() -> None:
    one = figures(bed(LARGE, SMALL | {"lines": 900, "window_s": 15.0}), "qlm")
    kept, late = one["batches"]
    assert (kept["lines"], kept["in_time"], kept["feasible"], kept["dropped"]) == (
        80,
        True,
        True,
        0,
    )
    assert 0.0 < kept["p50_s"] <= kept["p90_s"]
    assert 0.0 < kept["took_s"] <= kept["window_s"]
    assert (late["took_s"], late["in_time"], late["feasible"]) == (None, False, False)
    assert late["dropped"] > 0
    rival = figures(bed(SMALL), "edf")["batches"][0]
    assert (rival["feasible"], rival["p50_s"], rival["in_time"]) == (None, None, True)
    table = simulations.batch_table([one])
    assert "| qlm | 0 | 1 | 900 | 15 |" in table
    assert table.count("\n") == 3
    assert not simulations.batch_table([figures(two_models(), "fcfs")])


@pytest.mark.parametrize("option", [["--bound"], ["--knee", "0.9"]])
def test_what_knows_nothing_of_batches_says_so(
    option: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bed.yaml"
    path.write_text(str(bed()))
    assert main(["sim", str(path), *option]) == 2
    assert "workload.batches" in capsys.readouterr().err


def test_a_bed_with_batches_is_a_scenario_like_any_other() -> None:
    assert len(scenario(bed()).workload.batches) == 2
