"""The estimator: what it learns, what it promises, and that it keeps its promises."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlm_core.rwt import (
    Calibration,
    LengthModel,
    SpeedFactor,
    Wait,
    exponential_prior,
    tokens_ahead_wait,
)


def lengths(*, history: int = 64, prior: int = 200) -> LengthModel:
    """A model that has seen nothing yet."""
    return LengthModel(prior=exponential_prior(prior), history=history)


def test_the_prior_has_the_configured_mean_and_a_spread_near_it() -> None:
    mean, variance = lengths(prior=200).moments(1 << 20)
    assert mean == pytest.approx(200, rel=0.05)
    assert variance**0.5 == pytest.approx(200, rel=0.2)


def test_history_replaces_the_prior() -> None:
    model = lengths(history=64)
    for _ in range(200):
        model.observe(37)
    assert model.moments(1 << 20) == (37.0, 0.0)


@given(st.lists(st.integers(1, 5000), min_size=8, max_size=80), st.integers(1, 6000))
def test_moments_are_those_of_the_truncated_sample(seen: list[int], limit: int) -> None:
    model = LengthModel(prior=tuple(seen[:1]), history=len(seen))
    for length in seen:
        model.observe(length)
    model._refresh()
    sample = [min(length, limit) for length in model._history]
    mean = sum(sample) / len(sample)
    variance = sum((length - mean) ** 2 for length in sample) / len(sample)
    found_mean, found_variance = model.moments(limit)
    assert found_mean == pytest.approx(mean)
    assert found_variance == pytest.approx(variance, rel=1e-6, abs=1e-3)


@given(st.lists(st.integers(1, 2000), min_size=8, max_size=60), st.integers(1, 2500))
def test_what_remains_is_the_mean_of_those_that_go_on(seen: list[int], produced: int) -> None:
    model = LengthModel(prior=tuple(seen[:1]), history=len(seen))
    for length in seen:
        model.observe(length)
    model._refresh()
    longer = [length for length in model._history if length > produced]
    remaining = model.remaining(produced, 1 << 20)
    assert remaining >= 1.0
    if longer:
        expected = max(1.0, sum(longer) / len(longer) - produced)
        assert remaining == pytest.approx(expected)


def test_a_class_starts_from_the_quantiles_of_its_model() -> None:
    model = lengths(history=400)
    for length in range(1, 401):
        model.observe(length)
    narrower = LengthModel(prior=model.quantiles(), history=400)
    assert narrower.moments(1 << 20)[0] == pytest.approx(model.moments(1 << 20)[0], rel=0.05)


def test_speed_follows_the_engine_and_ignores_silence() -> None:
    speed = SpeedFactor()
    speed.observe(realised_per_s=0.0, predicted_per_s=100.0)
    assert speed.value == 1.0
    for _ in range(200):
        speed.observe(realised_per_s=50.0, predicted_per_s=100.0)
    assert speed.value == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("shape", ["normal", "skewed", "biased"])
def test_quantiles_hold_as_often_as_they_claim(shape: str) -> None:
    """Whatever the error's shape, coverage comes within three points after a few thousand waits."""
    rng = random.Random(7)
    draw = {
        "normal": lambda: rng.gauss(10.0, 2.0),
        "skewed": lambda: rng.expovariate(1 / 10.0),
        "biased": lambda: rng.gauss(14.0, 1.0),
    }[shape]
    calibration = Calibration()
    wait = Wait(10.0, 2.0)
    held = [0, 0]
    for turn in range(6000):
        realised_s = draw()
        estimate = calibration.estimate(wait)
        if turn >= 2000:
            held[0] += realised_s <= estimate.p50_s
            held[1] += realised_s <= estimate.p90_s
        calibration.observe(wait, realised_s)
    assert held[0] / 4000 == pytest.approx(0.5, abs=0.03)
    assert held[1] / 4000 == pytest.approx(0.9, abs=0.03)


@given(
    st.floats(-50, 100), st.floats(0, 5000), st.floats(1e-4, 10), st.floats(0, 2), st.floats(0, 5)
)
def test_waits_are_ordered_and_never_negative(
    ready_in_s: float, ahead: float, pace_s: float, variation: float, prefill_s: float
) -> None:
    def wait(requests: float) -> Wait:
        return tokens_ahead_wait(
            ready_in_s=ready_in_s,
            requests_ahead=requests,
            seconds_per_request=pace_s,
            variation=variation,
            prefill_s=prefill_s,
        )

    near, far = wait(ahead), wait(ahead + 10)
    assert prefill_s <= near.mean_s <= far.mean_s
    assert near.spread_s > 0
    estimate = Calibration().estimate(near)
    assert 0 <= estimate.p50_s <= estimate.p90_s <= estimate.p99_s


def test_free_room_absorbs_requests_at_once() -> None:
    wait = tokens_ahead_wait(
        ready_in_s=-5.0,
        requests_ahead=40,
        seconds_per_request=0.1,
        variation=1.0,
        prefill_s=0.2,
    )
    assert wait.mean_s == pytest.approx(0.2)
