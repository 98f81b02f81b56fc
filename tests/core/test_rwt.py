"""The estimator: what it learns, what it promises, and that it keeps its promises."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlm_core.model import Estimate
from qlm_core.rwt import (
    ArrivalRate,
    Calibration,
    LengthModel,
    Overtaker,
    RecentMean,
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


SPREAD = Wait(10.0, (10.0, 12.5, 14.6))


def told(calibration: Calibration) -> tuple[Wait, Estimate]:
    """A wait that always looks the same, given."""
    wait = Wait(SPREAD.mean_s, SPREAD.quantiles_s)
    return wait, calibration.give(wait)


@pytest.mark.parametrize("late", [0, 40])
@pytest.mark.parametrize("shape", ["normal", "skewed", "biased"])
def test_quantiles_hold_as_often_as_they_claim(shape: str, late: int) -> None:
    """Whatever the error's shape, and if outcomes come late, coverage comes within three points."""
    rng = random.Random(7)
    draws: dict[str, Callable[[], float]] = {
        "normal": lambda: rng.gauss(10.0, 2.0),
        "skewed": lambda: rng.expovariate(1 / 10.0),
        "biased": lambda: rng.gauss(24.0, 1.0),
    }
    draw = draws[shape]
    calibration = Calibration()
    held = [0, 0]
    flying: list[tuple[Wait, float]] = []
    for turn in range(6000):
        realised_s = draw()
        wait, estimate = told(calibration)
        flying.append((wait, realised_s))
        if turn >= 2000:
            held[0] += realised_s <= estimate.p50_s
            held[1] += realised_s <= estimate.p90_s
        if len(flying) > late:
            calibration.observe(*flying.pop(0))
    assert held[0] / 4000 == pytest.approx(0.5, abs=0.03)
    assert held[1] / 4000 == pytest.approx(0.9, abs=0.03)


def test_a_flight_of_outcomes_moves_a_quantile_no_further_than_few_would() -> None:
    """All of them were told before any was known, so they say one thing, not hundreds."""
    together, one_by_one = Calibration(), Calibration()
    flight = [told(together)[0] for _ in range(500)]
    for wait in flight[:250]:
        together.observe(wait, 1000.0)
        one_by_one.observe(told(one_by_one)[0], 1000.0)
    assert 20.0 < together.estimate(SPREAD).p50_s < 60.0
    assert one_by_one.estimate(SPREAD).p50_s > 150.0


def test_short_waits_are_calibrated_apart_from_long_ones() -> None:
    rng = random.Random(2)
    calibration = Calibration()
    for _ in range(3000):
        for mean_s, factor in ((0.2, 3.0), (50.0, 0.5)):
            wait = Wait(mean_s, (mean_s, mean_s, mean_s))
            calibration.give(wait)
            calibration.observe(wait, mean_s * factor * rng.uniform(0.9, 1.1))
    short = calibration.estimate(Wait(0.2, (0.2, 0.2, 0.2)))
    long = calibration.estimate(Wait(50.0, (50.0, 50.0, 50.0)))
    assert short.p50_s == pytest.approx(0.6, rel=0.2)
    assert long.p50_s == pytest.approx(25.0, rel=0.2)


def test_waits_that_never_end_are_no_longer_awaited() -> None:
    """Else the calibration would think more and more of them in flight, and learn ever less from each."""
    left, none = Calibration(), Calibration()
    for _ in range(300):
        wait, _ = told(left)
        left.forget(wait)
    for calibration in (left, none):
        wait, _ = told(calibration)
        calibration.observe(wait, 40.0)
    assert left.estimate(SPREAD) == none.estimate(SPREAD) != Calibration().estimate(SPREAD)


def test_a_mean_weighs_the_first_alike_and_then_follows_slowly() -> None:
    mean = RecentMean(prior=100.0, history=100)
    mean.observe(1000.0)
    mean.observe(200.0)
    assert mean.value == pytest.approx(600.0)
    for _ in range(1000):
        mean.observe(50.0)
    assert mean.value == pytest.approx(50.0, rel=0.01)
    mean.observe(1050.0)
    assert mean.value == pytest.approx(60.0, rel=0.02)


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
    assert near.quantiles_s == tuple(sorted(near.quantiles_s))
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
    def longer_s(wait_s: float, share: float, first_s: float, *, lasting: float = 1.0) -> float:
        return overtaken_wait_s(wait_s, [Overtaker(share, first_s, 60.0)], lasting=lasting)

    assert overtaken_wait_s(10.0, []) == 10.0
    # Half of the time goes to others for as long as it takes: twice the wait.
    assert longer_s(10.0, 0.5, 1e6) == pytest.approx(20.0)
    # More than all of it, but only for 30 s.
    assert longer_s(10.0, 1.5, 30.0) == pytest.approx(55.0)
    # No target ends it, but they have been arriving for 60 s only.
    assert longer_s(10.0, 1.5, 1e6) == pytest.approx(100.0)
    assert longer_s(10.0, 1.5, 1e6, lasting=0.5) == pytest.approx(55.0)
    assert longer_s(-1.0, 0.5, 1e6) == -1.0


@given(
    st.floats(0.1, 1e3),
    st.lists(st.tuples(st.floats(0, 2), st.floats(0, 1e3), st.floats(1, 1e3)), max_size=5),
)
def test_an_overtaken_wait_balances_what_comes_and_what_is_done(
    wait_s: float, kinds: list[tuple[float, float, float]]
) -> None:
    others = [Overtaker(*kind) for kind in kinds]
    total_s = overtaken_wait_s(wait_s, others)
    came_s = sum(one.share * min(total_s, one.first_s, one.age_s) for one in others)
    assert total_s == pytest.approx(wait_s + came_s, rel=1e-6)


@given(st.floats(1, 100), st.floats(0, 2), st.floats(1, 1e4))
def test_how_long_arrivals_go_on_widens_the_quantiles(
    ready_in_s: float, share: float, age_s: float
) -> None:
    def wait(overtakers: list[Overtaker]) -> Wait:
        return tokens_ahead_wait(
            ready_in_s=ready_in_s,
            requests_ahead=0,
            seconds_per_request=0.1,
            variation=1.0,
            prefill_s=0.1,
            overtakers=overtakers,
        )

    alone, overtaken = wait([]), wait([Overtaker(share, 1e6, age_s)])
    assert overtaken.mean_s >= alone.mean_s
    ratios = [
        much / little for much, little in zip(overtaken.quantiles_s, alone.quantiles_s, strict=True)
    ]
    assert min(ratios) >= 1.0 - 1e-9
    assert overtaken.quantiles_s == tuple(sorted(overtaken.quantiles_s))
