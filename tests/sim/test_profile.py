"""Profiles: their arithmetic, what is refused, the shipped catalogue."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from statistics import fmean

import msgspec
import pytest
from numpy.random import default_rng

from qlm_core.errors import ConfigError
from qlm_core.profile import EngineProfile, IterationTime, profile_from_throughput
from qlm_core.profile_catalog import base_model, find_profile, shipped_profiles
from qlm_core.sim.batch import ContinuousBatch
from qlm_core.sim.lengths import SHAREGPT_OUTPUT, SHAREGPT_PROMPT


def test_linear_and_roofline_forms() -> None:
    linear = IterationTime(
        base_ms=10, per_token_ms=0.1, per_sequence_ms=0.5, per_context_token_ms=0.001
    )
    assert linear.iteration_ms(
        prefill_tokens=100, decode_batch=4, context_tokens=1000
    ) == pytest.approx(10 + 10 + 2 + 1)
    roofline = replace(linear, knee_tokens=64, per_attention_pair_ms=1e-4)
    assert roofline.iteration_ms(decode_batch=4) == pytest.approx(12)
    assert roofline.iteration_ms(
        prefill_tokens=100, prefix_tokens=50, decode_batch=4
    ) == pytest.approx(10 + 0.1 * 40 + 2 + 1e-4 * 100 * 100)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kv_cache_tokens", 0),
        ("max_num_seqs", 0),
        ("max_num_batched_tokens", 16),
        ("wake_s", -1.0),
        ("cold_s", float("nan")),
        ("host_overhead_ms", float("inf")),
        ("model", ""),
    ],
)
def test_unusable_profiles_are_refused_by_field(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        replace(find_profile("mistral-7b", "a100"), **{field: value})


def test_a_profile_survives_json_and_bad_json_names_the_field() -> None:
    profile = find_profile("llama-2-70b", "h100")
    assert msgspec.json.decode(msgspec.json.encode(profile), type=EngineProfile) == profile
    text = msgspec.json.encode(profile).replace(b'"max_num_seqs":256', b'"max_num_seqs":-1')
    with pytest.raises(msgspec.ValidationError, match="max_num_seqs"):
        msgspec.json.decode(text, type=EngineProfile)


def test_the_catalogue_is_complete_and_says_its_sources() -> None:
    profiles = shipped_profiles()
    keys = [(one.model, one.gpu, one.tensor_parallel) for one in profiles]
    assert len(dict.fromkeys(keys)) == len(keys)
    for gpu in ("a10", "a40", "a100", "h100"):
        assert find_profile("mistral-7b", gpu).gpu == gpu
        assert find_profile("vicuna-13b", gpu).model == "vicuna-13b"
    assert find_profile("llama-2-70b", "a100").tensor_parallel == 4
    for one in profiles:
        assert one.source
        assert one.cold_s > one.wake_s > 0
        used = one.weights_bytes + one.kv_cache_tokens * one.kv_bytes_per_token
        assert used < 110e9 * one.tensor_parallel


def test_a_fine_tuned_model_has_the_costs_of_its_base() -> None:
    assert base_model("mistral-7b-ft12") == "mistral-7b"
    tuned = find_profile("mistral-7b-ft1", "a100")
    assert tuned == replace(find_profile("mistral-7b", "a100"), model="mistral-7b-ft1")


@pytest.mark.parametrize(
    ("model", "gpu", "degree", "named"),
    [
        ("gpt-9", "a100", None, "mistral-7b"),
        ("mistral-7b", "b9000", None, "a100"),
        ("mistral-7b", "a100", 3, "Use 1"),
    ],
)
def test_an_unknown_profile_is_answered_with_the_known_ones(
    model: str, gpu: str, degree: int | None, named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        find_profile(model, gpu, tensor_parallel=degree)


@pytest.mark.parametrize(
    ("model", "gpu"), [("llama-3-8b", "a100"), ("vicuna-13b", "a100"), ("mistral-7b", "h100")]
)
def test_the_throughput_formula_agrees_with_a_saturated_engine(model: str, gpu: str) -> None:
    """Means of the paper's lengths predict what the engine model delivers to a long queue."""
    profile = find_profile(model, gpu)
    engine = ContinuousBatch(profile)
    rng = Random(3)
    for index in range(3000):
        engine.add(
            str(index),
            prompt_tokens=SHAREGPT_PROMPT.at(rng.random()),
            output_tokens=SHAREGPT_OUTPUT.at(rng.random()),
            now_s=0.0,
        )
    while engine.waiting > 1200:
        engine.advance(engine.next_event_s or 0.0)
    start_s, start_tokens = engine.busy_s, engine.tokens_produced
    while engine.waiting > 200:
        engine.advance(engine.next_event_s or 0.0)
    realised = (engine.tokens_produced - start_tokens) / (engine.busy_s - start_s)
    predicted = profile.decode_throughput(
        SHAREGPT_PROMPT.mean, SHAREGPT_OUTPUT.mean, output_variation=1.1
    )
    assert predicted == pytest.approx(realised, rel=0.1)


@pytest.mark.parametrize("prompts", [0.0, 0.05, 0.7, 4.0])
@pytest.mark.parametrize("decoding", [1, 20, 200])
@pytest.mark.parametrize("prompt", [90, 700, 5000])
def test_the_mean_iteration_is_the_mean_over_iterations(
    prompts: float, decoding: int, prompt: int
) -> None:
    """Though what is below the knee costs nothing, and most iterations read no prompt at all."""
    profile = find_profile("vicuna-13b", "a100")
    chunk = min(prompt, profile.max_num_batched_tokens)
    pair_ms = profile.iteration.per_attention_pair_ms
    form = replace(profile.iteration, per_attention_pair_ms=0.0)
    linear = replace(profile, iteration=form)
    counts = default_rng(7).poisson(prompts * prompt / chunk, 20_000)
    realised_s = fmean(
        linear.iteration_s(
            prefill_tokens=count * chunk, decode_batch=decoding, context_tokens=9_000
        )
        for count in counts.tolist()
    )
    attention_s = prompts * pair_ms * prompt**2 / 2 / 1e3
    predicted_s = profile.mean_iteration_s(
        prompts=prompts, mean_prompt=prompt, decode_batch=decoding, context_tokens=9_000
    )
    assert predicted_s == pytest.approx(realised_s + attention_s, rel=0.03)


def test_a_constant_throughput_is_one() -> None:
    profile = profile_from_throughput("any", 500.0)
    assert profile.decode_throughput(10, 100) == pytest.approx(500.0)
    assert profile.decode_throughput(1000, 10) == pytest.approx(500.0)
    with pytest.raises(ValueError, match="tokens_per_s"):
        profile_from_throughput("any", 0.0)
