"""Running averages: what they forget, and how fast."""

from __future__ import annotations

import pytest

from qlm_core.rwt.rates import ArrivalRate, RecentMean, SpeedFactor


def test_speed_follows_the_engine_and_ignores_silence() -> None:
    speed = SpeedFactor()
    speed.observe(realised_per_s=0.0, predicted_per_s=100.0)
    assert speed.value == 1.0
    unsure = speed.spread
    for _ in range(1000):
        speed.observe(realised_per_s=50.0, predicted_per_s=100.0)
    assert speed.value == pytest.approx(0.5, abs=0.01)
    assert 0.0 < speed.spread < unsure / 2


def test_a_few_intervals_do_not_turn_what_is_known_of_speed() -> None:
    speed = SpeedFactor()
    for realised in (130.0, 70.0, 120.0, 75.0):
        speed.observe(realised_per_s=realised, predicted_per_s=100.0)
    assert speed.value == pytest.approx(1.0, abs=0.03)


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


def test_the_rate_of_arrivals_follows_the_last_half_minute() -> None:
    rate = ArrivalRate(100.0)
    for tick in range(400):
        rate.observe(100.0 + tick / 4)
    assert rate.per_s(200.0) == pytest.approx(4.0, rel=0.1)
    assert rate.age_s(200.0) == rate.age_s(150.0) + 50.0 > 100.0
    assert rate.per_s(300.0) < 0.2


def test_arrivals_of_the_day_before_may_be_told_of_after_those_of_today() -> None:
    rate, ordered = ArrivalRate(86_400.0), ArrivalRate(86_399.0)
    for at_s in (86_400.0, 86_399.0, 0.0, 86_401.0):
        rate.observe(at_s)
    for at_s in (86_399.0, 86_400.0, 86_401.0):
        ordered.observe(at_s)
    # What came a day ago is no part of the rate, and the order in which the others were told makes no difference.
    assert rate._count == pytest.approx(ordered._count)
    assert rate.age_s(86_401.0) == pytest.approx(86_411.0)
    assert 0.0 < rate.per_s(86_402.0) < 1.0
