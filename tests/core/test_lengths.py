"""Output lengths: what is learned from requests that ended and from those that go on."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlm_core.rwt.lengths import LengthModel, exponential_prior


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
    assert model.remaining(produced, 1 << 20) == pytest.approx(sum(longer) / len(longer), rel=0.15)


@settings(max_examples=20, deadline=None)
@given(st.floats(0.1, 0.95), st.integers(1, 3000), st.integers(0, 50))
def test_quantiles_are_those_of_the_sample(share: float, limit: int, seed: int) -> None:
    sample = drawn(random.Random(seed), 4000)
    model = lengths(history=20_000)
    for length in sample:
        model.observe(length)
    exact = sorted(min(length, limit) for length in sample)[int(share * len(sample))]
    # Lengths are kept in bins that grow by a seventh.
    assert model.quantile(share, limit) == pytest.approx(exact, rel=0.25, abs=1.0)
    assert model.quantile(share, limit) <= limit


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


def test_answers_without_a_token_leave_lengths_that_can_be() -> None:
    """An engine that answers at once with nothing must not make outputs of less than nothing expected."""
    model = lengths(history=512)
    for _ in range(200):
        model.observe(0)
    mean, variance = model.moments(1 << 20)
    assert 1.0 <= mean < 20.0
    assert variance >= 0.0
    assert model.expected(100) >= 1


def test_ends_that_outweigh_their_faded_tokens_are_no_more_than_certain() -> None:
    """Many requests whose tokens were counted long ago end together, shorter than they were seen to be."""
    model = lengths(history=8)
    seen = [model.passed(2) for _ in range(40)]
    for _ in range(40):
        model.observe(1000)
    for count in seen:
        model.observe(1, count)
    assert max(model.hazards) <= 1.0
    assert model.moments(1 << 20)[0] > 0.0
