"""Workloads: seeds decide everything, rates and mixes come out as asked."""

from __future__ import annotations

from itertools import islice, pairwise
from random import Random
from statistics import fmean, pstdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlm_core.errors import ConfigError
from qlm_core.sim.lengths import (
    MEGA_TOTAL,
    SHAREGPT_OUTPUT,
    SHAREGPT_PROMPT,
    Quantiles,
    sample_lengths,
)
from qlm_core.sim.workload import (
    Mix,
    RateWindow,
    Stream,
    TraceMapping,
    TraceRow,
    arrival_gaps,
    generate,
    only,
    requests_from_trace,
    rows_from_rate_windows,
    workload_a,
    workload_b,
    workload_c,
)


def test_lengths_have_the_papers_quantiles() -> None:
    assert [SHAREGPT_PROMPT.at(q) for q in (0.5, 0.75, 0.9, 0.99)] == [128, 433, 740, 978]
    assert [SHAREGPT_OUTPUT.at(q) for q in (0.5, 0.75, 0.9, 0.99)] == [133, 341, 560, 999]
    assert SHAREGPT_PROMPT.mean == pytest.approx(262, rel=0.01)
    assert SHAREGPT_OUTPUT.mean == pytest.approx(223, rel=0.01)
    rng = Random(1)
    for _ in range(200):
        prompt, output = sample_lengths("mega", rng)
        assert 3000 <= prompt + output <= 4000
        assert prompt > 0 < output


@given(st.lists(st.integers(1, 1000), min_size=2, max_size=20), st.floats(0, 1, exclude_max=True))
def test_samples_stay_within_the_quantiles(values: list[int], level: float) -> None:
    quantiles = Quantiles(tuple(sorted(values)))
    assert min(values) <= quantiles.at(level) <= max(values)


@pytest.mark.parametrize("cv", [0.0, 0.5, 1.0, 2.5])
def test_gaps_have_the_rate_and_variation_asked_for(cv: float) -> None:
    gaps = list(islice(arrival_gaps(Random(7), 5.0, cv=cv), 40_000))
    assert fmean(gaps) == pytest.approx(0.2, rel=0.03)
    assert pstdev(gaps) / fmean(gaps) == pytest.approx(cv, abs=0.05)


def test_a_seed_decides_everything_and_lengths_do_not_follow_the_rate() -> None:
    slow = list(generate(workload_a(interactive_rps=2.0), seed=5, requests=600))
    assert slow == list(generate(workload_a(interactive_rps=2.0), seed=5, requests=600))
    assert slow != list(generate(workload_a(interactive_rps=2.0), seed=6, requests=600))
    fast = list(generate(workload_a(interactive_rps=4.0), seed=5, requests=600))
    pairs = list(zip(slow, fast, strict=True))
    assert all(a.arrival_s == pytest.approx(2 * b.arrival_s) for a, b in pairs)
    assert all(
        (a.slo_class, a.prompt_tokens, a.output_tokens)
        == (b.slo_class, b.prompt_tokens, b.output_tokens)
        for a, b in pairs
    )


def test_the_papers_workloads_have_their_classes_and_models() -> None:
    a = list(generate(workload_a(interactive_rps=3, model="mistral-7b"), seed=1, requests=900))
    assert {one.model for one in a} == {"mistral-7b"}
    assert {one.slo_class for one in a} == {"interactive", "batch-1", "batch-2"}
    b = list(generate(workload_b(batch_1_rps=3), seed=1, requests=900))
    assert {one.slo_class for one in b} == {"batch-1", "batch-2"}
    assert {one.model for one in b if one.slo_class == "batch-2"} == {
        "vicuna-13b-ft1",
        "vicuna-13b-ft2",
        "llama-2-70b-ft2",
    }
    c = list(generate(workload_c(mega_rps=1, batch_1_rps=3), seed=1, requests=900))
    mega = [one for one in c if one.prompt_tokens + one.output_tokens >= MEGA_TOTAL.values[0]]
    assert len(mega) == pytest.approx(900 / 7, rel=0.3)
    assert all(early.arrival_s <= late.arrival_s for early, late in pairwise(c))


def test_streams_end_where_they_say() -> None:
    stream = Stream(slo_class="batch-1", models=only("m"), rate_rps=10, start_s=5, until_s=6)
    arrivals = [one.arrival_s for one in generate([stream], seed=1)]
    assert arrivals
    assert all(5 <= at < 6 for at in arrivals)
    counted = Stream(slo_class="batch-1", models=only("m"), rate_rps=10, requests=17, max_tokens=9)
    found = list(generate([counted], seed=1))
    assert len(found) == 17
    assert all(one.output_tokens <= one.max_tokens == 9 for one in found)
    with pytest.raises(ConfigError, match="requests"):
        generate(workload_a(interactive_rps=1), seed=1)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "name is missing"),
        ("a=x", "not a number"),
        ("a=0", "all shares"),
        ("a=-1", "share of 'a'"),
        ("a=1,a=2", "given twice"),
        ("a=nan", "share of 'a'"),
    ],
)
def test_a_bad_mix_is_refused(text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        Mix.parse(text)


def test_a_mix_gives_its_shares() -> None:
    mix = Mix.parse("interactive=0.5, batch-1=0.3,batch-2=0.2,never=0")
    levels = [index / 1000 for index in range(1000)]
    counts = {name: sum(mix.pick(level) == name for level in levels) for name in mix.names}
    assert counts == {"interactive": 500, "batch-1": 300, "batch-2": 200, "never": 0}
    assert Mix.parse("only").shares == (("only", 1.0),)


def test_a_trace_is_mapped_scaled_and_limited() -> None:
    rows = [
        TraceRow(
            arrival_s=float(index),
            prompt_tokens=5000,
            output_tokens=4000,
            model="theirs",
            slo_class="batch-2" if index == 0 else None,
        )
        for index in range(100)
    ]
    mapping = TraceMapping(
        mix=only("interactive"),
        models=only("ours"),
        rate_scale=4,
        limit=50,
        max_tokens=1000,
        prompt_tokens_max=3000,
    )
    requests = list(requests_from_trace(rows, mapping))
    assert len(requests) == 50
    assert [one.arrival_s for one in requests[:3]] == [0.0, 0.25, 0.5]
    assert [one.slo_class for one in requests[:2]] == ["batch-2", "interactive"]
    assert requests[0].model == "ours"
    assert (requests[0].prompt_tokens, requests[0].output_tokens) == (3000, 4000)
    assert requests[0].max_tokens == 4000
    for field, value in (("rate_scale", 0.0), ("limit", 0)):
        with pytest.raises(ConfigError, match=field):
            TraceMapping(mix=only("a"), models=only("b"), **{field: value})


@pytest.mark.parametrize(("family", "shape"), [("gamma", 0.5), ("weibull", 0.7), ("gamma", 4.0)])
def test_rate_windows_give_their_rates(family: str, shape: float) -> None:
    windows = [
        RateWindow(start_s=start_s, client=client, rate_rps=rate, family=family, shape=shape)
        for start_s in (0.0, 600.0)
        for client, rate in (("1", 4.0), ("2", 1.0))
    ]
    rows = list(rows_from_rate_windows(windows, seed=3, rate_scale=2.0))
    assert len(rows) == pytest.approx(1200 * 5 * 2, rel=0.05)
    assert all(early.arrival_s <= late.arrival_s for early, late in pairwise(rows))
    assert rows == list(rows_from_rate_windows(windows, seed=3, rate_scale=2.0))
    with pytest.raises(ValueError, match="Sort"):
        list(rows_from_rate_windows(reversed(windows), seed=3))
