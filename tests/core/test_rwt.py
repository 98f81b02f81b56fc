"""The estimator: what it learns, what it promises, and that it keeps its promises."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlm_core.rwt import (
    ArrivalRate,
    Calibration,
    LengthModel,
    SpeedFactor,
    Wait,
    exponential_prior,
    overtaken_wait_s,
    tokens_ahead_wait,
)


def lengths(*, history: int = 64, prior: int = 200) -> LengthModel:
    """A model that has seen nothing yet."""
    return LengthModel(prior=exponential_prior(prior), history=history)


def test_the_prior_has_the_configured_mean_and_a_spread_near_it() -> None:
    mean, variance = lengths(prior=200).moments(1 << 20)
    assert mean == pytest.approx(200, rel=0.05)
    assert variance**0.5 == pytest.approx(200, rel=0.2)


def test_history_replaces_the_prior_and_new_history_the_old() -> None:
    model = lengths(history=64)
    for length in (37, 370):
        for _ in range(800):
            model.observe(length)
        mean, variance = model.moments(1 << 20)
        assert mean == pytest.approx(length, rel=0.25)
        assert variance**0.5 < 1.5 * length


def drawn(rng: random.Random, count: int) -> list[int]:
    """Lengths as conversations have them: many short, few very long."""
    return [max(1, round(rng.lognormvariate(4.8, 1.1))) for _ in range(count)]


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3000), st.integers(0, 50))
def test_moments_and_remainders_are_those_of_the_sample(limit: int, seed: int) -> None:
    sample = drawn(random.Random(seed), 4000)
    model = lengths(history=20_000)
    for length in sample:
        model.observe(length)
    cut = [min(length, limit) for length in sample]
    assert model.moments(limit)[0] == pytest.approx(sum(cut) / len(cut), rel=0.05)
    produced = 120
    longer = [length - produced for length in sample if length > produced]
    assert model.remaining(produced, 1 << 20) == pytest.approx(sum(longer) / len(longer), rel=0.1)


def test_a_young_batch_does_not_make_outputs_look_short() -> None:
    """After 100 tokens only short outputs have ended, but the others count as longer than that."""
    rng = random.Random(3)
    sample = drawn(rng, 2000)
    model = lengths(history=20_000, prior=250)
    for length in sample:
        if length <= 100:
            model.observe(length)
        else:
            model.passed(100)
    ended = [length for length in sample if length <= 100]
    mean = model.moments(1 << 20)[0]
    assert sum(ended) / len(ended) < 70
    assert mean > 150


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=40))
def test_how_often_progress_is_told_makes_no_difference(steps: list[int]) -> None:
    told, once = lengths(), lengths()
    seen = 0
    for produced in sorted(steps):
        seen = told.passed(produced, seen)
    told.observe(max(steps), seen)
    once.observe(max(steps))
    assert told.hazards == once.hazards


def test_a_class_starts_from_the_hazards_of_its_model() -> None:
    model = lengths(history=4000)
    for length in range(1, 401):
        model.observe(length)
    narrower = LengthModel(prior=model.hazards, history=400)
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


def test_the_rate_of_arrivals_follows_the_last_half_minute() -> None:
    rate = ArrivalRate(100.0)
    for tick in range(400):
        rate.observe(100.0 + tick / 4)
    assert rate.per_s(200.0) == pytest.approx(4.0, rel=0.1)
    assert rate.age_s(200.0) == 100.0
    assert rate.per_s(300.0) < 0.2


def test_those_who_arrive_later_and_go_first_lengthen_a_wait() -> None:
    assert overtaken_wait_s(10.0, []) == 10.0
    # Half of the time goes to others for as long as it takes: twice the wait.
    assert overtaken_wait_s(10.0, [(0.5, 1e6)]) == pytest.approx(20.0, rel=0.01)
    # More than all of it, but only for 30 s.
    assert overtaken_wait_s(10.0, [(1.5, 30.0)]) == pytest.approx(55.0, rel=0.01)
    assert overtaken_wait_s(-1.0, [(0.5, 1e6)]) == -1.0
