"""The bound on small cases whose best schedule can be worked out by hand, and its parts against engines and brute force."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlm_core.errors import ConfigError
from qlm_core.profile import EngineProfile, IterationTime
from qlm_core.profile_catalog import find_profile, shipped_profiles
from qlm_core.sim.batch import ContinuousBatch
from qlm_core.sim.bound import Bound, demand, upper_bound
from qlm_core.sim.bound.costs import (
    Asked,
    best_prices,
    first_work_s,
    least_first_s,
    least_rest_s,
    prices_of,
    rest_work_s,
)
from qlm_core.sim.iteration import IterationCosts
from qlm_core.sim.scenario import scenario_from_mapping
from qlm_core.sim.workload import WorkloadRequest

SECOND_OF_PROMPT = 1000
"""Tokens that the engine below computes in a second, but for a tenth of a percent."""


def engine(model: str, **changes: Any) -> dict[str, Any]:
    """An engine that computes 1,000 tokens of prompts a second and takes 3 s from one model to another."""
    form = {
        "base_ms": 1.0,
        "per_token_ms": 1.0,
        "per_sequence_ms": 0.0,
        "per_context_token_ms": 0.0,
    }
    return {
        "model": model,
        "gpu": "slow",
        "iteration": form,
        "kv_cache_tokens": 100_000,
        "weights_bytes": 10_000_000_000,
        "cold_s": 40.0,
        "wake_s": 2.0,
        "sleep_s": 1.0,
    } | changes


def bound_of(
    asked: list[tuple[float, str, int]],
    *,
    slo: dict[str, float] | None = None,
    count: int = 1,
    output: int = 1,
    host_memory_gb: float = 100.0,
    **changes: Any,
) -> Bound:
    """The bound of requests (arrival, model, prompt) of one class on instances with the models x, y and z, x awake."""
    models = ["x", "y", "z"]
    fleet = {"gpu": "slow", "models": models, "awake": "x", "count": count}
    data = {
        "name": "by hand",
        "fleet": [fleet | {"host_memory_gb": host_memory_gb}],
        "slo_classes": {"all": slo or {"ttft_s": 1.0}},
        "workload": {"kind": "streams"},
        "profiles": [engine(model, **changes) for model in models],
    }
    workload = [
        WorkloadRequest(
            arrival_s=at_s, model=model, slo_class="all", prompt_tokens=prompt,
            output_tokens=output, max_tokens=output,
        )
        for at_s, model, prompt in sorted(asked)
    ]  # fmt: skip
    return upper_bound(scenario_from_mapping(data, "by hand"), 0, workload=workload)


# --------------------------------------------------------------------------- by hand


def test_an_engine_computes_no_more_than_fits_into_a_window() -> None:
    """998 tokens of 20 prompts of 100 each, all at once, each due in a second."""
    found = bound_of([(5.0, "x", 100)] * 20)
    assert 9 / 20 <= found.plain <= 10 / 20
    assert found.alone.plain == 1.0


def test_two_engines_compute_twice_as_much() -> None:
    found = bound_of([(5.0, "x", 100)] * 40, count=2)
    assert 18 / 40 <= found.plain <= 20 / 40


def test_small_prompts_are_served_rather_than_large_ones() -> None:
    asked = [(5.0, "x", 100)] * 4 + [(5.0, "x", 900)] * 4
    assert 5 / 8 > bound_of(asked).plain >= 4 / 8


def test_a_prompt_that_takes_longer_than_its_target_is_late_alone() -> None:
    found = bound_of([(0.0, "x", 1100), (50.0, "x", 900)])
    assert found.alone.plain == found.unswapped.plain == found.plain == 0.5


def test_a_swap_takes_its_time() -> None:
    """The other model can be there 3 s after the start at the soonest."""
    slo = {"ttft_s": 2.0}
    assert bound_of([(0.5, "y", 10)], slo=slo).plain == 0.0
    assert bound_of([(0.5, "y", 10)], slo=slo).unswapped.plain == 1.0
    assert bound_of([(1.5, "y", 10)], slo=slo).plain == 1.0


def test_an_instance_is_at_one_model_at_a_time() -> None:
    """Every ten seconds a request for each of two models, so close together that no swap goes between."""
    asked = [(10.0 * number, "x", 10) for number in range(1, 11)]
    asked += [(10.0 * number + 0.5, "y", 10) for number in range(1, 11)]
    found = bound_of(asked)
    assert found.plain == 0.5
    assert found.unswapped.plain == 1.0
    assert bound_of(asked, count=2).plain == 1.0


def test_models_can_take_turns_between_requests() -> None:
    asked = [(10.0 * number, "x", 10) for number in range(1, 11)]
    asked += [(10.0 * number + 5.0, "y", 10) for number in range(1, 11)]
    assert bound_of(asked).plain == 1.0


def test_a_third_model_is_one_too_many() -> None:
    """Three models in turn, 3 s to each of the next: a round takes 9 s, and requests wait a second."""
    asked = [
        (6.0 * number + 2.0 * place, model, 10)
        for number in range(1, 21)
        for place, model in enumerate("xyz")
    ]
    # A stay meets one request, and between the starts of two stays lie 3 s: every other request at the most.
    assert 0.3 <= bound_of(asked).plain <= 0.52


def test_weights_that_host_memory_does_not_hold_come_from_storage() -> None:
    asked = [(30.0, "y", 10)]
    assert bound_of(asked).plain == 1.0
    assert bound_of(asked, host_memory_gb=5.0).plain == 0.0


def test_a_model_that_is_cold_at_the_start_has_to_be_loaded_once() -> None:
    """Host memory for one of two: the last of them sleeps there, and the other is loaded meanwhile."""
    assert bound_of([(30.0, "z", 10)], host_memory_gb=12.0).plain == 1.0
    assert bound_of([(30.0, "y", 10)], host_memory_gb=12.0).plain == 0.0
    assert bound_of([(60.0, "y", 10)], host_memory_gb=12.0).plain == 1.0


def test_an_end_that_is_promised_takes_all_tokens() -> None:
    """100 tokens, an iteration each, of 1 ms at the least."""
    asked = [(5.0, "x", 10)]
    slo = {"ttft_s": 1.0, "e2e_s": 0.1}
    assert bound_of(asked, slo=slo, output=100).plain == 0.0
    assert bound_of(asked, slo=slo | {"e2e_s": 0.2}, output=100).plain == 1.0


def test_a_pace_that_no_engine_keeps_is_missed() -> None:
    slow = engine("x")["iteration"] | {"per_context_token_ms": 0.1}
    asked = [(5.0, "x", 500)]
    slo = {"ttft_s": 5.0, "tpot_s": 0.0015}
    assert bound_of(asked, slo=slo, output=50).plain == 1.0
    assert bound_of(asked, slo=slo, output=50, iteration=slow).plain == 0.0


def test_outputs_that_are_promised_share_the_places() -> None:
    """400 tokens of each of 40 requests, four at a time, a millisecond for each round: 4 s in all."""
    slo = {"ttft_s": 60.0, "e2e_s": 2.0}
    asked = [(5.0, "x", 1)] * 40
    found = bound_of(asked, slo=slo, output=400, max_num_seqs=4, max_num_batched_tokens=64)
    assert 18 / 40 <= found.plain <= 22 / 40
    assert bound_of(asked, output=400, max_num_seqs=4, max_num_batched_tokens=64).plain == 1.0


def test_weights_count() -> None:
    """Of 20 requests at once half can be in time: the ten that weigh three of four."""
    data = {
        "name": "weights",
        "fleet": [{"gpu": "slow", "models": ["x"]}],
        "slo_classes": {
            "dear": {"ttft_s": 1.0, "weight": 3.0},
            "cheap": {"ttft_s": 1.0, "weight": 1.0},
        },
        "workload": {"kind": "streams"},
        "profiles": [engine("x")],
    }
    workload = [
        WorkloadRequest(
            arrival_s=5.0, model="x", slo_class=name, prompt_tokens=100,
            output_tokens=1, max_tokens=1,
        )
        for name in ("dear", "cheap") * 10
    ]  # fmt: skip
    found = upper_bound(scenario_from_mapping(data, "weights"), 0, workload=workload)
    assert 27 / 40 <= found.weighted <= 31 / 40
    assert 9 / 20 <= found.plain <= 11 / 20


def test_what_is_due_long_after_the_last_arrival_is_possible() -> None:
    asked = [(number / 10, model, 100) for number in range(100) for model in "xyz"]
    assert bound_of(asked, slo={"ttft_s": 3600.0}).plain == 1.0


def test_a_request_that_comes_decades_after_the_others_is_no_trouble() -> None:
    found = bound_of([(0.0, "x", 10), (1.0, "y", 10), (1e9, "x", 1100), (1e9, "z", 10)])
    assert found.plain == found.alone.plain == 0.75


def test_more_than_can_be_bounded_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demand, "PAIRS_MAX", 5)
    with pytest.raises(ConfigError, match="fewer requests"):
        bound_of([(0.0, "x", 1)] * 6)
    with pytest.raises(ConfigError, match="no requests"):
        bound_of([])


# --------------------------------------------------------------------------- what engines spend

PROFILES = [
    *shipped_profiles()[::3],
    replace(
        find_profile("mistral-7b", "a10"),
        iteration=IterationTime(
            base_ms=2.0, per_token_ms=0.3, per_sequence_ms=0.1, per_context_token_ms=0.001
        ),
    ),
    replace(find_profile("llama-3-8b", "h100"), max_num_seqs=8, kv_cache_tokens=4000),
]


def asked_of(lengths: list[tuple[int, int]], *, whole: bool = True) -> Asked:
    """Requests of so many tokens of prompt and output."""
    ones = np.ones(len(lengths))
    return Asked(
        prompt=np.array([float(prompt) for prompt, _ in lengths]),
        output=np.array([float(output) for _, output in lengths]),
        whole=ones > 0 if whole else ones < 0,
        first_within_s=5.0 * ones,
        all_within_s=30.0 * ones,
    )


@settings(deadline=None, derandomize=True, max_examples=300)
@given(
    number=st.integers(0, len(PROFILES) - 1),
    shares=st.tuples(*[st.floats(0.0, 1.0)] * 3).filter(lambda found: sum(found) > 0),
    steepness=st.floats(0.0, 1.0),
    filled=st.tuples(*[st.floats(0.0, 1.0)] * 4),
)
def test_no_iteration_is_shorter_than_its_tokens_cost(
    number: int,
    shares: tuple[float, ...],
    steepness: float,
    filled: tuple[float, ...],
) -> None:
    profile = PROFILES[number]
    places, budget, cache = (share / sum(shares) for share in shares)
    prices = prices_of(profile, places=places, budget=budget, cache=cache, steepness=steepness)
    running = round(filled[0] * profile.max_num_seqs)
    decoding = round(filled[1] * running)
    held = round(filled[2] * profile.kv_cache_tokens)
    read = held * decoding // running if running else 0
    chunk = round(filled[3] * (profile.max_num_batched_tokens - decoding))
    computing = running - decoding if chunk else 0
    cost_s = (
        prices.computed_s * chunk
        + prices.place_s * computing
        + prices.held_s * (held - read if computing else 0.0)
        + prices.decoded_s * decoding
        + prices.read_s * read
        + prices.pair_s * chunk**2
    )
    takes = IterationCosts(profile).iteration(
        decoding=decoding, context=read, prefill=chunk, half_pairs=chunk**2
    )
    assert cost_s <= takes / 1e12 * (1 + 1e-9)


@pytest.mark.parametrize("profile", PROFILES, ids=lambda one: f"{one.model}-{one.gpu}")
@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_no_engine_is_done_sooner_than_its_requests_cost(
    profile: EngineProfile, policy: Any
) -> None:
    """Engines that are interrupted all the time, so that attempts begin with what was kept."""
    rng = Random(f"{profile.model}/{policy}")
    room = profile.kv_cache_tokens
    lengths = [
        (rng.randint(1, min(3000, room // 3)), rng.randint(1, min(300, room // 3)))
        for _ in range(40)
    ]
    asked = asked_of(lengths)
    prices = best_prices(profile, asked)
    batch = ContinuousBatch(profile, policy=policy)
    left = dict(enumerate(lengths))
    now_s, on, produced = 0.0, {}, dict.fromkeys(left, 0)
    while left:
        for number, (prompt, output) in left.items():
            if number not in on:
                done = produced[number]
                batch.add(
                    str(number), prompt_tokens=prompt + done, output_tokens=output - done,
                    now_s=now_s, priority=rng.randint(0, 3), cached_tokens=prompt + done if done else 0,
                )  # fmt: skip
                on[number] = done
        now_s += rng.uniform(0.01, 0.5)
        for outcome in batch.advance(now_s):
            if outcome.kind.value == "finished":
                del left[int(outcome.request_id)], on[int(outcome.request_id)]
        for number in rng.sample(list(on), len(on) // 4):
            if str(number) in batch:
                produced[number] = on.pop(number) + batch.abort(str(number), now_s=now_s)
    # An abort may come with the last token, after which one more is asked for; outputs are no shorter for it.
    spent_s = first_work_s(prices, asked) + rest_work_s(profile, prices, asked)
    assert float(spent_s.sum()) <= batch.busy_s * (1 + 1e-6)


@pytest.mark.parametrize("profile", PROFILES, ids=lambda one: f"{one.model}-{one.gpu}")
def test_tokens_after_the_first_cost_the_cheaper_of_two_ways_each(profile: EngineProfile) -> None:
    lengths = [(1, 1), (1, 2), (15, 40), (16, 17), (17, 100), (1000, 333), (2500, 64)]
    asked = asked_of(lengths)
    prices = best_prices(profile, asked)
    block = profile.block_tokens
    for (prompt, output), cost_s in zip(
        lengths, rest_work_s(profile, prices, asked).tolist(), strict=True
    ):
        expected_s = sum(
            min(
                prices.decoded_s + prices.read_s * held,
                prices.computed_s * (held % block + 1) + prices.place_s + prices.held_s * held,
            )
            for held in range(prompt, prompt + output - 1)
        )
        assert cost_s == pytest.approx(expected_s, rel=1e-9)
    assert not rest_work_s(profile, prices, asked_of(lengths, whole=False)).any()


@pytest.mark.parametrize("profile", PROFILES, ids=lambda one: f"{one.model}-{one.gpu}")
def test_a_request_alone_takes_as_long_as_is_said_at_the_least(profile: EngineProfile) -> None:
    for prompt, output in [(1, 1), (100, 50), (1000, 20), (3000, 100)]:
        if prompt + output > profile.kv_cache_tokens:
            continue
        batch = ContinuousBatch(profile)
        batch.add("one", prompt_tokens=prompt, output_tokens=output, now_s=0.0)
        told = batch.advance(1000.0)
        first, last = told[0].at_s, told[-1].at_s
        asked = asked_of([(prompt, output)])
        [first_s], [rest_s] = (
            least_first_s(profile, asked),
            least_rest_s(profile, asked, link_s=1.0),
        )
        assert first_s <= first + 1e-6
        assert rest_s <= last - first + 1e-6
        assert first_s >= 0.9 * first
        assert rest_s >= 0.7 * (last - first) or output == 1
