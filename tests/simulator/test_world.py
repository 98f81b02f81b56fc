"""Whole runs: every policy serves every request once, and a run depends on nothing but its inputs."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qlm_core.sim.policies import policy_named, policy_names
from qlm_core.sim.workload import WorkloadRequest
from qlm_core.sim.world import World
from tests.simulator.beds import (
    crowded,
    figures,
    one_model,
    scenario,
    simulate,
    three_models,
    two_models,
)

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).with_name("golden.json")
BEDS = {"one model": one_model, "two models": two_models}
TRACED_BEDS = {"crowded": crowded, "three models": three_models}
TRACED = [
    ("crowded", "qlm"),
    ("crowded", "edf-evict"),
    ("three models", "qlm"),
    ("three models", "fcfs"),
]


@pytest.mark.parametrize("bed", BEDS)
@pytest.mark.parametrize("policy", policy_names())
def test_every_request_ends_exactly_once(bed: str, policy: str) -> None:
    data = BEDS[bed]()
    record, trace = simulate(data, policy)
    assert len(record.ended) == data["workload"]["requests"]
    assert list(record.ended) == [1] * len(record.ended)
    assert list(record.finished) == [1] * len(record.ended)
    ends = [line.split()[2] for line in trace if line.split()[1] == "end"]
    assert len(ends) == len(dict.fromkeys(ends)) == len(record.ended)
    times = [float(line.split()[0]) for line in trace]
    assert times == sorted(times)


@pytest.mark.parametrize("without", ["eviction", "kv-swap", "warm-start", "load-balancing"])
def test_each_lso_can_be_taken_out(without: str) -> None:
    record, _ = simulate(two_models(), "qlm", without=(without,))
    assert list(record.ended) == [1] * len(record.ended)


def test_output_is_as_long_as_the_request_says_even_when_evicted() -> None:
    data = one_model(requests=400, rate=40.0, count=1)
    data["slo_classes"] = {
        "interactive": {"ttft_s": 5, "weight": 4},
        "batch-1": {"ttft_s": 60},
        "batch-2": {"ttft_s": 3600},
    }
    kept, _ = simulate(data, "qlm")
    plain, _ = simulate(data, "fcfs")
    assert kept.evictions > 0
    # An eviction in the very iteration that ends a request may cost it one more token.
    assert 0 <= kept.output_tokens - plain.output_tokens <= kept.evictions


def test_without_eviction_nothing_is_evicted() -> None:
    data = one_model(requests=400, rate=40.0, count=1)
    assert figures(data, "qlm", without=("eviction",))["evictions"] == 0


def test_without_warm_start_swaps_take_longer() -> None:
    data = two_models(requests=300, rate=40.0)
    warm, cold = figures(data, "fcfs"), figures(data, "fcfs", without=("warm-start",))
    assert warm["swaps"] > 0
    assert cold["swap_s"] / cold["swaps"] > 3 * warm["swap_s"] / warm["swaps"]


def test_a_backlog_is_spread_over_equal_instances() -> None:
    """Groups bound to one instance each must not leave others idle."""
    data = one_model(requests=400, rate=1000.0, count=4)
    ours, shared = figures(data, "qlm"), figures(data, "fcfs")
    assert ours["makespan_s"] < 1.15 * shared["makespan_s"]


def test_an_idle_fleet_is_loaded_evenly() -> None:
    """Requests of one kind must not follow each other to one instance while others have nothing to do."""
    data = one_model(requests=600, rate=200.0, count=20)
    # No pace is promised that prompts would have to wait for.
    data["slo_classes"] = {key: {"ttft_s": 60} for key in ("interactive", "batch-1", "batch-2")}
    ours, dealt = figures(data, "qlm"), figures(data, "round-robin")
    assert ours["ttft_s"]["p90"] < 1.2 * dealt["ttft_s"]["p90"]
    assert ours["makespan_s"] < 1.2 * dealt["makespan_s"]


def test_several_models_are_batched() -> None:
    data = two_models(requests=400, rate=60.0)
    ours, fcfs = figures(data, "qlm"), figures(data, "fcfs")
    assert ours["throughput_rps"] > 2 * fcfs["throughput_rps"]
    assert ours["swaps"] < fcfs["swaps"]


def test_in_overload_more_targets_are_met_than_by_deadlines_alone() -> None:
    data = one_model(requests=1500, rate=12.0, count=1)
    ours, edf = figures(data, "qlm"), figures(data, "edf")
    assert edf["slo_attainment"] < 0.9
    assert ours["slo_attainment"] > edf["slo_attainment"] + 0.05


@pytest.mark.parametrize("link_s", [0.0, 0.05, 0.2])
def test_every_message_takes_as_long_as_the_link(link_s: float) -> None:
    """To the solver, to the agent, to the gateway for the payload and back, and the first token to the gateway."""

    def ttft_s(delay_s: float) -> float:
        data = one_model(requests=1, count=1)
        data["simulation"] = {"link_s": delay_s}
        record, _ = simulate(data, "qlm")
        return record.ttft_s[0]

    assert ttft_s(link_s) - ttft_s(0.0) == pytest.approx(5 * link_s, abs=1e-6)


@pytest.mark.parametrize("policy", ["vllm-priority", "round-robin"])
def test_the_engines_priority_serves_interactive_requests_first(policy: str) -> None:
    """More than one engine holds: by priority the interactive ones overtake, first come first served they do not."""
    data = one_model(requests=400, rate=200.0, count=1)
    classes = figures(data, policy)["classes"]
    waits = [classes[name]["ttft_s"]["p90"] for name in ("interactive", "batch-2")]
    if policy == "vllm-priority":
        assert waits[0] < 0.5 * waits[1]
    else:
        assert waits[0] > 0.8 * waits[1]


def test_requests_longer_than_an_instance_holds_are_cut() -> None:
    data = one_model(requests=4)
    data["fleet"][0]["models"] = ["vicuna-13b"]
    data["fleet"][0]["gpu"] = "a40"
    data["workload"]["model"] = "vicuna-13b"
    bed = scenario(data)
    long = WorkloadRequest(
        arrival_s=0.0,
        model="vicuna-13b",
        slo_class="interactive",
        prompt_tokens=120_000,
        output_tokens=500,
        max_tokens=2048,
    )
    record = World(bed, policy_named("qlm"), [long], seed=0).run()
    assert (record.cut, list(record.finished), record.output_tokens) == (1, [1], 500)


def test_shepherd_gives_nothing_to_streams_that_are_over() -> None:
    data = one_model(count=1)
    stream = {"models": {"mistral-7b": 1}, "rate_rps": 20.0}
    data["workload"] = {
        "kind": "streams",
        "streams": [
            stream | {"slo_class": "interactive", "requests": 100},
            stream | {"slo_class": "batch-2", "requests": 100},
        ],
    }
    record, _ = simulate(data, "shepherd")
    assert list(record.finished) == [1] * 200
    # Some ten batches one after the other, not one each time that a stream is forgotten.
    assert record.last_end_s < 600.0


def digest(bed: str, policy: str) -> str:
    trace = simulate(TRACED_BEDS[bed](), policy)[1]
    return hashlib.sha256("\n".join(trace).encode()).hexdigest()


def test_traces_are_the_same_under_any_hash_seed() -> None:
    program = (
        "from tests.simulator.test_world import TRACED, digest\n"
        "print([digest(*one) for one in TRACED])"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "4242")
    ]
    assert outputs == [outputs[0]] * 3
    assert outputs[0].strip() == str([digest(*one) for one in TRACED])


@pytest.mark.parametrize(("bed", "policy"), TRACED)
def test_runs_are_those_on_record(bed: str, policy: str) -> None:
    """A change of policy changes these; renew them with `python -m tests.simulator.test_world` and say why."""
    assert summary(bed, policy) == json.loads(GOLDEN.read_text())[f"{bed}: {policy}"]


def test_the_traced_runs_plan_swap_and_evict() -> None:
    record, _ = simulate(crowded(), "qlm")
    assert record.solves > 0
    assert record.evictions > 0
    record, _ = simulate(three_models(), "qlm")
    assert record.solves > 0
    assert record.swaps > 0


def summary(bed: str, policy: str) -> dict[str, object]:
    found = figures(TRACED_BEDS[bed](), policy)
    kept = ("slo_attainment", "classes", "makespan_s", "evictions", "swaps", "solves")
    return {"trace": digest(bed, policy)} | {key: found[key] for key in kept}


if __name__ == "__main__":
    GOLDEN.write_text(
        json.dumps({f"{bed}: {policy}": summary(bed, policy) for bed, policy in TRACED}, indent=1)
        + "\n"
    )
