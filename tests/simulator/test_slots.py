"""Who is urgent finds a slot: chats that are promised a first token at once, beside batch work that fills every slot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from qlm_core.sim.policies import policy_named
from qlm_core.sim.record import RunRecord
from qlm_core.sim.workload import WorkloadRequest
from qlm_core.sim.world import World
from tests.simulator.beds import one_model, scenario, simulate

SCENARIO = Path(__file__).resolve().parents[2] / "benchmarks" / "scenarios" / "slots.yaml"
BURSTS = 3


@pytest.fixture(scope="module")
def bed() -> dict[str, Any]:
    """The scenario's first bursts."""
    data: dict[str, Any] = yaml.safe_load(SCENARIO.read_text())
    batch, *bursts = data["workload"]["streams"]
    data["workload"]["streams"] = [batch | {"requests": 300}, *bursts[:BURSTS]]
    data["simulation"]["solve_work"] = 400
    return data


def chats_in_time(record: RunRecord) -> float:
    ours = [
        attained
        for attained, number in zip(record.attained, record.slo_class, strict=True)
        if record.classes[number] == "chat"
    ]
    return sum(ours) / len(ours)


@pytest.fixture(scope="module")
def ours(bed: dict[str, Any]) -> tuple[RunRecord, list[str]]:
    return simulate(bed, "qlm")


def test_all_chats_are_in_time_and_batch_work_hardly_later(
    bed: dict[str, Any], ours: tuple[RunRecord, list[str]]
) -> None:
    record, _ = ours
    plain, _ = simulate(bed, "vllm-priority")
    assert chats_in_time(record) == 1.0
    assert chats_in_time(plain) < 0.5
    assert list(record.finished) == [1] * len(record.finished)
    assert record.last_end_s < 1.1 * plain.last_end_s


def test_few_requests_are_evicted_for_that(ours: tuple[RunRecord, list[str]]) -> None:
    record, trace = ours
    chats = list(record.slo_class).count(record.classes.index("chat"))
    assert 0 < record.evictions < chats
    evicted = [line.split()[3] for line in trace if line.split()[1] == "evict"]
    assert all(record.classes[record.slo_class[int(id[1:])]] == "batch" for id in evicted)


@pytest.mark.parametrize("abort_s", [0.0, 0.02, 0.5])
def test_an_engine_goes_on_with_what_was_aborted_until_it_hears_of_it(abort_s: float) -> None:
    """Nobody hears of that work, and the same request may come back before the engine has heard."""
    data = one_model(requests=300, rate=40.0, count=1)
    data["slo_classes"] = {
        "interactive": {"ttft_s": 5, "weight": 4},
        "batch-1": {"ttft_s": 60},
        "batch-2": {"ttft_s": 3600},
    }
    data["simulation"] = {"solve_work": 400, "abort_s": abort_s}
    record, _ = simulate(data, "qlm")
    assert record.evictions > 0
    assert list(record.finished) == [1] * 300


@pytest.mark.parametrize("pull_ahead", [0, 2, 8])
def test_one_slot_long_background_requests_then_an_urgent_one(pull_ahead: int) -> None:
    """The one that runs gives way in time, whatever was pulled ahead."""
    data = one_model(count=1)
    data["executor"] = {"pull_ahead": pull_ahead}
    data["profiles"] = yaml.safe_load(SCENARIO.read_text())["profiles"]
    data["profiles"][0] |= {"gpu": "a10", "max_num_seqs": 1}
    bed = scenario(data)
    coming = [
        WorkloadRequest(
            arrival_s=arrival_s,
            model="mistral-7b",
            slo_class=slo_class,
            prompt_tokens=100,
            output_tokens=output_tokens,
            max_tokens=16_000,
        )
        for arrival_s, slo_class, output_tokens in (
            *((number / 10, "batch-2", 8000) for number in range(30)),
            (2240.0, "interactive", 50),
        )
    ]
    record = World(bed, policy_named("qlm"), coming, seed=0).run()
    assert list(record.attained) == [1] * 31
    assert record.evictions == 1
    # Who waits until the last moment is told so, not that its turn is at once.
    assert 10.0 < record.p50_s[-1] < record.ttft_s[-1] < record.p90_s[-1]
