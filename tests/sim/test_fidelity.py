"""The engine model against measured runs of vLLM, and the fits against their published errors."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from qlm.measurements import read_iterations, read_request_log
from qlm_core.profile import EngineProfile, IterationTime
from qlm_core.profile_catalog import find_profile, shipped_profiles
from qlm_core.sim.fidelity import MeasuredRequest, compare_with_log, replay_log
from qlm_core.sim.fit import (
    MeasuredIteration,
    fit_iteration_time,
    fit_profile_to_log,
    judge_fit,
)

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
RUN = DATA / "published" / "vllm_measured_requests_rtx4090_llama31_8b.csv.gz"
GPUS = {
    "a10": "a10-24g",
    "a40": "a40-48g",
    "a100": "a100-80g",
    "h100": "h100-80g",
    "rtx4090": "rtx4090-24g",
    "rtxpro6000": "rtxpro6000-96g",
}

needs_data = pytest.mark.skipif(
    not RUN.exists(), reason="the data folder is not beside the checkout (../shared/data)"
)


@needs_data
def test_a_measured_run_of_vllm_is_reproduced() -> None:
    comparison = compare_with_log(find_profile("llama-3-8b", "rtx4090"), read_request_log(RUN))
    assert abs(comparison.makespan.error) < 0.08
    assert abs(comparison.ttft.error) < 0.12
    assert abs(comparison.tpot.error) < 0.10
    for measured, simulated in zip(
        comparison.tpot.measured_quantiles, comparison.tpot.simulated_quantiles, strict=True
    ):
        assert simulated == pytest.approx(measured, rel=0.15)
    assert comparison.preemptions > 0


@needs_data
def test_the_second_measured_run_comes_out_with_its_own_profile() -> None:
    """The same requests on an RTX PRO 6000: vLLM 0.19 took 65.9 s, with a mean TTFT of 7.10 s and a
    mean TPOT of 32.5 ms (published with the run by casys-kaist/LLMServingSim).
    """
    comparison = compare_with_log(find_profile("llama-3-8b", "rtxpro6000"), read_request_log(RUN))
    assert comparison.makespan.simulated == pytest.approx(65.9, rel=0.08)
    assert comparison.ttft.simulated == pytest.approx(7.10, rel=0.12)
    assert comparison.tpot.simulated == pytest.approx(0.0325, rel=0.10)


@needs_data
def test_shipped_coefficients_have_their_published_errors(tmp_path: Path) -> None:
    """Judged on the points they came from, and found again by our own fit."""
    stated = json.loads((DATA / "profiles" / "profiles.json").read_text())["profiles"]
    header, *lines = _lines(DATA / "profiles" / "latency_points.csv.gz")
    for profile in shipped_profiles():
        key = f"{profile.model},{GPUS[profile.gpu]},{profile.tensor_parallel},"
        table = tmp_path / "points.csv"
        table.write_text("\n".join([header, *(line for line in lines if line.startswith(key))]))
        points = read_iterations(table)
        expected = stated[key.rstrip(",").replace(",", "|", 1).replace(",", "|tp")]
        judged = judge_fit(profile.iteration, points)
        roofline = expected["roofline"]
        assert judged.mean_error == pytest.approx(roofline["MAPE"], abs=2e-4)
        assert judged.max_error == pytest.approx(roofline["max_rel_err"], abs=1e-3)
        assert judged.r2 == pytest.approx(roofline["R2"], abs=2e-4)
        assert fit_iteration_time(points).mean_error <= roofline["MAPE"] + 2e-4
        linear = fit_iteration_time(points, form="linear")
        assert linear.mean_error == pytest.approx(expected["linear"]["MAPE"], abs=2e-4)


@needs_data
def test_a_profile_of_another_gpu_can_be_fitted_to_a_log() -> None:
    log = read_request_log(RUN)
    start = replace(find_profile("llama-3-8b", "a40"), kv_cache_tokens=41408)
    assert compare_with_log(start, log).makespan.error > 0.4
    fitted = compare_with_log(fit_profile_to_log(start, log), log)
    assert abs(fitted.makespan.error) < 0.04
    assert abs(fitted.ttft.error) < 0.04
    assert abs(fitted.tpot.error) < 0.04


def test_a_known_form_is_found_from_its_points() -> None:
    form = IterationTime(
        base_ms=11.0,
        per_token_ms=0.07,
        per_sequence_ms=0.01,
        per_context_token_ms=8e-5,
        knee_tokens=64,
        per_attention_pair_ms=4e-6,
    )
    shapes = [(0, 0, n, n * c) for n in (1, 8, 32, 64, 128, 256) for c in (64, 512, 4096)]
    shapes += [(p, q, n, n * 400) for p in (64, 512, 2048) for q in (0, 4096) for n in (0, 16)]
    points = [
        MeasuredIteration(
            iteration_ms=form.iteration_ms(
                prefill_tokens=p, prefix_tokens=q, decode_batch=n, context_tokens=c
            ),
            prefill_tokens=p,
            prefix_tokens=q,
            decode_batch=n,
            context_tokens=c,
        )
        for p, q, n, c in shapes
    ]
    fit = fit_iteration_time(points)
    assert fit.max_error < 1e-9
    assert fit.iteration.knee_tokens == 64
    assert fit.iteration.per_attention_pair_ms == pytest.approx(4e-6)
    assert fit_iteration_time(points, form="linear").max_error > 0.01


def test_a_log_of_the_model_itself_gives_its_factors_back() -> None:
    true = find_profile("mistral-7b", "a100")
    log, _ = replay_log(true, _LOAD)
    wrong = _scaled(true, base=1.6, token=0.6)
    fitted = fit_profile_to_log(wrong, log)
    assert fitted.iteration.base_ms == pytest.approx(true.iteration.base_ms, rel=0.05)
    assert fitted.iteration.per_token_ms == pytest.approx(true.iteration.per_token_ms, rel=0.05)


@pytest.mark.parametrize("shift_s", [1000.0, 1.7e9])
def test_a_replay_counts_from_the_first_arrival(shift_s: float) -> None:
    profile = find_profile("mistral-7b", "a100")
    log, _ = replay_log(profile, _LOAD)
    shifted = [replace(request, arrival_s=request.arrival_s + shift_s) for request in log]
    found = compare_with_log(profile, shifted)
    assert found.makespan.measured == pytest.approx(
        compare_with_log(profile, log).makespan.measured
    )
    assert abs(found.makespan.error) < 1e-3
    assert abs(found.ttft.error) < 1e-3
    assert found.replayed[0].arrival_s == shift_s


@needs_data
@pytest.mark.parametrize("shift_s", [1000, 1_700_000_000])
def test_a_measured_run_may_have_any_clock(shift_s: int, tmp_path: Path) -> None:
    header, *lines = _lines(RUN)
    rows = [line.split(",") for line in lines]
    assert header.startswith("arrival_s,queued_s,")
    moved = [",".join([f"{float(one) + shift_s:.4f}" for one in row[:2]] + row[2:]) for row in rows]
    path = tmp_path / "log.csv"
    path.write_text("\n".join([header, *moved]) + "\n")
    found = compare_with_log(find_profile("llama-3-8b", "rtx4090"), read_request_log(path))
    assert found.makespan.measured == pytest.approx(183.6, abs=0.1)
    assert found.makespan.simulated == pytest.approx(189.2, abs=0.1)


def test_outputs_without_a_pace_do_not_spoil_a_fit() -> None:
    true = find_profile("mistral-7b", "a100")
    log, _ = replay_log(true, _LOAD)
    # The engine was busy with them all the same.
    log = [replace(one, tpot_s=0.0) if index % 20 == 0 else one for index, one in enumerate(log)]
    fitted = fit_profile_to_log(_scaled(true, base=1.5, token=0.7), log)
    for batch in (1, 16, 128):
        assert fitted.iteration_s(decode_batch=batch) == pytest.approx(
            true.iteration_s(decode_batch=batch), rel=0.03
        )


def test_unusable_measurements_are_refused() -> None:
    with pytest.raises(ValueError, match="points"):
        fit_iteration_time([MeasuredIteration(iteration_ms=1.0)])
    with pytest.raises(ValueError, match=r"points\[5\]"):
        fit_iteration_time([MeasuredIteration(iteration_ms=1.0)] * 5 + [_ZERO])
    with pytest.raises(ValueError, match="log"):
        compare_with_log(find_profile("mistral-7b", "a100"), [])
    with pytest.raises(ValueError, match=r"log\[1\]\.arrival_s: 1700000000 is more than"):
        replay_log(find_profile("mistral-7b", "a100"), _spaced(2, 1.7e9))


def _spaced(requests: int, gap_s: float) -> list[MeasuredRequest]:
    return [replace(_LOAD[0], arrival_s=gap_s * index, tpot_s=0.01) for index in range(requests)]


_LOAD = [
    MeasuredRequest(
        arrival_s=index * 0.05,
        prompt_tokens=50 + 37 * index % 700,
        output_tokens=20 + 53 * index % 400,
        ttft_s=0.0,
        tpot_s=0.0,
    )
    for index in range(200)
]
_ZERO = MeasuredIteration(iteration_ms=0.0)


def _scaled(profile: EngineProfile, *, base: float, token: float) -> EngineProfile:
    form = profile.iteration
    return replace(
        profile,
        iteration=replace(
            form, base_ms=form.base_ms * base, per_token_ms=form.per_token_ms * token
        ),
    )


def _lines(path: Path) -> list[str]:
    import gzip

    return gzip.open(path, "rt", encoding="utf-8").read().splitlines()
