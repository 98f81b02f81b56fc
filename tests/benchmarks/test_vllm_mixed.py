"""What `make bench-vllm` makes of its runs, from runs that are made up."""

from __future__ import annotations

import pytest

from benchmarks import vllm_load, vllm_mixed
from benchmarks.vllm_load import Got
from benchmarks.vllm_mixed import Outcome

MODEL = "tiny-llama"


def outcome(ttft_s: float, *, batch_s: float = 10.0, computed: float = 100.0) -> Outcome:
    chats = vllm_load.interactive(MODEL, bursts=2, burst=3, period_s=2.0, tokens=8, salt="x")
    long = vllm_load.batch(MODEL, requests=1, tokens=50, salt="x")
    got = [
        Got(send=send, ttft_s=ttft_s * (2 if send.onset else 1), ended_s=1.0, prompt_tokens=5, output_tokens=5)
        for send in chats
    ]  # fmt: skip
    got += [
        Got(send=s, ttft_s=9.0, ended_s=batch_s, prompt_tokens=10, output_tokens=10) for s in long
    ]
    return Outcome(got=got, computed_tokens=computed, evictions=3.0)


def test_the_load_has_bursts_and_something_between_them_and_no_prompt_twice():
    chats = vllm_load.interactive(MODEL, bursts=2, burst=3, period_s=2.0, tokens=8, salt="x")
    assert [send.at_s for send in chats] == [1.0, 1.0, 1.0, 2.0, 3.0, 3.0, 3.0, 4.0]
    assert [send.onset for send in chats] == [True, True, True, False] * 2
    prompts = [str(send.body["messages"]) for send in chats]
    assert len(set(prompts)) == len(prompts)


def test_times_are_of_interactive_requests_alone_and_batch_time_of_the_others():
    one = outcome(0.1, batch_s=12.0)
    assert one.ttft_s(1.0) == pytest.approx(0.2)
    assert one.ttft_s(0.0, onset=True) == pytest.approx(0.2)
    assert one.ttft_s(0.0) == pytest.approx(0.1)
    assert one.batch_s == 12.0


def test_work_lost_is_what_was_computed_beyond_what_was_answered():
    # Eight chats of ten tokens and a batch request of twenty.
    assert outcome(0.1, computed=110.0).lost_share == pytest.approx(0.1)
    assert outcome(0.1, computed=90.0).lost_share == 0.0


def test_figures_are_medians_and_ratios_to_the_baselines():
    runs = {
        "alone": [outcome(0.1)],
        "FCFS": [outcome(3.0, batch_s=10.0)],
        "vLLM priority": [outcome(1.0)],
        "QLM": [outcome(0.1), outcome(0.2, batch_s=12.0), outcome(5.0, batch_s=12.0)],
    }
    found = {one.name: one.value for one in vllm_mixed.figures(runs, [0.01, 0.03])}
    assert found["QLM: interactive TTFT p99"] == pytest.approx(400.0)
    assert found["TTFT p99, QLM over alone"] == pytest.approx(2.0)
    assert found["TTFT p99, FCFS over alone"] == pytest.approx(30.0)
    assert found["batch time, QLM over FCFS"] == pytest.approx(1.2)
    assert found["QLM: evictions"] == 3.0
    assert found["eviction decided to slot free, p50"] == pytest.approx(20.0)
