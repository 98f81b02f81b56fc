"""What is taken of the lines of a batch: from nothing, from some that run, from some that ended; and how batches lie apart."""

from __future__ import annotations

from math import exp
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlm_core.rwt.batches import BatchesApart, BatchLengths, weighted_middle, weighted_quantile
from qlm_core.rwt.lengths import exponential_prior

USUAL = 220.0
LIMIT = 8_000


def lengths(apart: BatchesApart | None = None, *, limit: int = LIMIT) -> BatchLengths:
    known = BatchLengths(exponential_prior(USUAL), apart or BatchesApart(), history=300)
    known.told(prompt_tokens=100.0, limit_tokens=limit)
    return known


def spread(known: BatchLengths) -> tuple[float, float, float]:
    """Mean outputs that one in ten, one in two and nine in ten guesses do not exceed."""
    means = [
        (guess.lengths.moments(known.limit_tokens)[0], guess.probability)
        for guess in known.guesses()
    ]
    low, middle, high = (weighted_quantile(means, share) for share in (0.1, 0.5, 0.9))
    return low, middle, high


def test_of_a_batch_of_which_nothing_has_run_little_is_known() -> None:
    low, middle, high = spread(lengths())
    assert 0.5 * USUAL < middle < 2.0 * USUAL
    assert high / low > 5.0
    assert sum(guess.probability for guess in lengths().guesses()) == pytest.approx(1.0, abs=0.1)


def test_a_low_limit_is_as_good_as_knowledge() -> None:
    low, _, high = spread(lengths(limit=8))
    assert high <= 8.0
    assert high / low < 2.0


def test_outputs_that_ended_tell_the_mean_of_the_others() -> None:
    known, rng = lengths(), Random(1)
    for _ in range(200):
        known.lengths.observe(rng.randint(20, 60))
    low, middle, high = spread(known)
    assert middle == pytest.approx(40.0, rel=0.25)
    assert high / low < 1.5


@pytest.mark.parametrize("lines", [20, 600])
def test_lines_of_which_none_has_ended_are_longer_than_that_and_not_by_far(lines: int) -> None:
    """All of a form: they begin together, and none is done before all nearly are, however many there are."""
    known = lengths()
    for _ in range(lines):
        known.lengths.passed(150)
    _, middle, _ = spread(known)
    assert 150.0 < middle < 1_000.0


def test_a_batch_of_pages_is_seen_before_any_page_is_done() -> None:
    known = lengths()
    for _ in range(300):
        known.lengths.passed(3_000)
    low, _, _ = spread(known)
    assert low > 3_000.0


@given(st.lists(st.floats(0.1, 10.0), min_size=1, max_size=40))
def test_how_far_batches_lay_apart_is_how_far_the_next_may(factors: list[float]) -> None:
    apart = BatchesApart()
    for factor in factors:
        apart.observe(usual_tokens=USUAL, mean_tokens=USUAL * factor)
    # What is usual counts as well.
    assert min(1.0, *factors) <= exp(apart.mean) * 1.001
    assert exp(apart.mean) <= max(1.0, *factors) * 1.001
    assert apart.deviation >= 0.3


def test_batches_that_were_alike_make_the_next_one_sure() -> None:
    alike = BatchesApart()
    first = alike.deviation
    for _ in range(60):
        alike.observe(usual_tokens=USUAL, mean_tokens=2.0 * USUAL)
    assert alike.deviation < 0.5 * first
    assert 1.8 < exp(alike.mean) < 2.0


def test_what_ended_batches_were_like_is_where_the_next_begins() -> None:
    apart, rng = BatchesApart(), Random(2)
    for _ in range(40):
        known = lengths(apart)
        for _ in range(30):
            known.lengths.observe(rng.randint(1, 20))
        known.over()
    _, middle, high = spread(lengths(apart))
    assert high < 0.5 * USUAL
    assert middle < 0.25 * USUAL


def test_a_batch_of_which_too_little_ran_tells_nothing_of_others() -> None:
    apart = BatchesApart()
    known = lengths(apart)
    known.lengths.observe(1)
    known.over()
    assert (apart.mean, apart.deviation) == (BatchesApart().mean, BatchesApart().deviation)


@given(
    st.lists(st.tuples(st.floats(0.1, 1e6), st.floats(0.01, 10.0)), min_size=1, max_size=30),
    st.floats(0.01, 0.99),
)
def test_weighted_quantiles_lie_among_the_values_and_grow(
    values: list[tuple[float, float]], share: float
) -> None:
    least, most = min(values)[0], max(values)[0]
    found = weighted_quantile(values, share)
    assert least * 0.999 <= found <= most * 1.001
    assert found <= weighted_quantile(values, min(1.0, share + 0.1)) * 1.001
    middle = values[weighted_middle(values)][0]
    below = sum(weight for value, weight in values if value < middle)
    assert below <= 0.5 * sum(weight for _, weight in values) + 1e-9
