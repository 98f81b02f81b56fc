"""Calibration: told quantiles hold as often as they claim, whatever the error."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from heapq import heappop, heappush

import pytest

from qlm_core.model import Estimate
from qlm_core.rwt.calibration import Calibration
from qlm_core.rwt.waits import Wait

SPREAD = Wait(10.0, (10.0, 12.5, 14.6))


def told(calibration: Calibration, now_s: float = 0.0) -> tuple[Wait, Estimate]:
    """A wait that always looks the same, given."""
    wait = Wait(SPREAD.mean_s, SPREAD.quantiles_s)
    return wait, calibration.give(wait, now_s=now_s)


def landings(arrivals: list[tuple[float, float]]) -> Iterator[tuple[Calibration, float, Estimate]]:
    """Give waits at their instants and observe them when they end; yields each wait's end and what was told."""
    calibration = Calibration()
    flying: list[tuple[float, int, float, Wait]] = []
    for number, (now_s, realised_s) in enumerate(arrivals):
        while flying and flying[0][0] <= now_s:
            _, _, waited_s, ended = heappop(flying)
            calibration.observe(ended, waited_s)
        wait, estimate = told(calibration, now_s)
        heappush(flying, (now_s + realised_s, number, realised_s, wait))
        yield calibration, realised_s, estimate


@pytest.mark.parametrize("apart_s", [100.0, 0.5])
@pytest.mark.parametrize("shape", ["normal", "skewed", "biased", "bimodal"])
def test_quantiles_hold_as_often_as_they_claim(shape: str, apart_s: float) -> None:
    """Whatever the error's shape, and if many are told before one has ended, coverage comes within three points."""
    rng = random.Random(7)
    draws: dict[str, Callable[[], float]] = {
        "normal": lambda: rng.gauss(10.0, 2.0),
        "skewed": lambda: rng.expovariate(1 / 10.0),
        "biased": lambda: rng.gauss(24.0, 1.0),
        "bimodal": lambda: rng.choice((1.0, 30.0)) * rng.uniform(0.5, 1.5),
    }
    draw = draws[shape]
    held = [0, 0]
    arrivals = [(turn * apart_s, draw()) for turn in range(6000)]
    for turn, (_, realised_s, estimate) in enumerate(landings(arrivals)):
        if turn >= 2000:
            held[0] += realised_s <= estimate.p50_s
            held[1] += realised_s <= estimate.p90_s
    assert held[0] / 4000 == pytest.approx(0.5, abs=0.03)
    assert held[1] / 4000 == pytest.approx(0.9, abs=0.03)


def test_the_median_is_not_learned_from_those_who_end_first() -> None:
    """Nine seconds after the first of many waits, only the short half of them has ended."""
    arrivals = [(turn * 0.05, 0.5 if turn % 2 else 30.0) for turn in range(180)]
    *_, (calibration, _, estimate) = landings(arrivals)
    assert calibration.counts.observed > 50
    assert estimate.p50_s == pytest.approx(SPREAD.quantiles_s[0])


def test_a_flight_of_outcomes_moves_a_quantile_no_further_than_few_would() -> None:
    """All of them were told before any was known, so they say one thing, not hundreds."""
    together, one_by_one = Calibration(), Calibration()
    flight = [told(together)[0] for _ in range(500)]
    for wait in flight[:250]:
        together.observe(wait, 1000.0)
        one_by_one.observe(told(one_by_one)[0], 1000.0)
    assert 12.0 < together.estimate(SPREAD).p50_s < 60.0
    assert one_by_one.estimate(SPREAD).p50_s > 150.0


def test_a_wait_counts_as_soon_as_it_exceeds_what_was_told() -> None:
    """Nobody has got a first token yet, and still it is known that the median is too low."""
    calibration = Calibration()
    for turn in range(20):
        _, estimate = told(calibration, now_s=float(turn))
    assert estimate.p50_s > 10.0
    assert calibration.counts.observed == 0


def test_an_overdue_wait_counts_once_for_each_quantile() -> None:
    calibration = Calibration()
    late, estimate = told(calibration)
    _, raised = told(calibration, now_s=estimate.p50_s + 1.0)
    assert raised.p50_s > estimate.p50_s
    assert raised.p90_s == estimate.p90_s
    calibration.observe(late, (estimate.p50_s + estimate.p90_s) / 2)
    assert calibration.counts.covered == (0, 1, 1)
    after = calibration.estimate(SPREAD)
    assert after.p50_s == raised.p50_s
    assert after.p90_s < raised.p90_s


def test_what_has_ended_is_not_kept_until_its_time_is_over() -> None:
    """Quantiles of long waits lie hours ahead, and a solver hears of thousands of requests a minute."""
    calibration = Calibration()
    for _ in range(5000):
        wait, _ = told(calibration)
        calibration.observe(wait, 1.0)
    assert len(calibration._deadlines) < 200


def test_so_many_short_waits_and_no_more_are_kept_until_their_median_is_over() -> None:
    calibration = Calibration()
    for _ in range(calibration._LUCKY + 10):
        wait, _ = told(calibration)
        calibration.observe(wait, 1.0)
    assert len(calibration._lucky) == calibration._LUCKY
    assert calibration.estimate(SPREAD).p50_s < SPREAD.quantiles_s[0]


def test_short_waits_are_calibrated_apart_from_long_ones() -> None:
    rng = random.Random(2)
    calibration = Calibration()
    for turn in range(3000):
        for mean_s, factor in ((0.2, 3.0), (50.0, 0.5)):
            wait = Wait(mean_s, (mean_s, mean_s, mean_s))
            calibration.give(wait, now_s=turn * 100.0)
            calibration.observe(wait, mean_s * factor * rng.uniform(0.9, 1.1))
    short = calibration.estimate(Wait(0.2, (0.2, 0.2, 0.2)))
    long = calibration.estimate(Wait(50.0, (50.0, 50.0, 50.0)))
    assert short.p50_s == pytest.approx(0.6, rel=0.2)
    assert long.p50_s == pytest.approx(25.0, rel=0.2)


def test_only_where_a_queue_is_ahead_do_upper_quantiles_start_wide() -> None:
    calibration = Calibration()
    short = calibration.estimate(Wait(0.1, (0.1, 0.12, 0.13)))
    long = calibration.estimate(SPREAD)
    assert short.p90_s < 0.17
    assert long.p90_s == pytest.approx(12.5 * 1.65, rel=0.05)
    assert long.p99_s > long.p90_s


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


def test_the_first_outcomes_move_a_quantile_further_than_later_ones() -> None:
    calibration = Calibration()
    moved = []
    for turn in range(20):
        before_s = calibration.estimate(SPREAD).p50_s
        wait, _ = told(calibration, 1000.0 * turn)
        calibration.observe(wait, 1e6)
        moved.append(calibration.estimate(SPREAD).p50_s / before_s)
    assert moved[0] > 1.15
    assert moved[-1] == pytest.approx(1.05, abs=0.005)


def test_a_magnitude_starts_with_a_tenth_of_what_its_neighbour_has_learned() -> None:
    calibration = Calibration()
    for turn in range(40):
        wait, _ = told(calibration, 1000.0 * turn)
        calibration.observe(wait, 1e6)
    learned = calibration.estimate(SPREAD).p50_s / SPREAD.quantiles_s[0]
    further = Wait(40.0, (40.0, 50.0, 60.0))
    started = calibration.estimate(further).p50_s / further.quantiles_s[0]
    assert started == pytest.approx(learned**0.1, rel=0.02)
