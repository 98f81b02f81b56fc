"""Waits before calibration: their order, their spread, and who overtakes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlm_core.rwt.calibration import Calibration
from qlm_core.rwt.waits import Overtaker, Wait, later, overtaken_wait_s, relieved, tokens_ahead_wait


@given(st.floats(-50, 5000), st.floats(1e-4, 10), st.floats(0, 2), st.floats(0, 1), st.floats(0, 5))
def test_waits_are_ordered_and_never_negative(
    queueing_s: float, pace_s: float, variation: float, uncertainty: float, prefill_s: float
) -> None:
    def wait(queueing_s: float) -> Wait:
        return tokens_ahead_wait(
            queueing_s=queueing_s,
            seconds_per_request=pace_s,
            variation=variation,
            uncertainty=uncertainty,
            prefill_s=prefill_s,
        )

    near, far = wait(queueing_s), wait(queueing_s + 10 * pace_s)
    assert prefill_s <= near.mean_s <= far.mean_s
    assert near.quantiles_s == tuple(sorted(near.quantiles_s))
    estimate = Calibration().estimate(near)
    assert 0 <= estimate.p50_s <= estimate.p90_s <= estimate.p99_s


def test_free_room_absorbs_requests_at_once() -> None:
    wait = tokens_ahead_wait(
        queueing_s=-1.0,
        seconds_per_request=0.1,
        variation=1.0,
        uncertainty=0.1,
        prefill_s=0.2,
    )
    assert wait.mean_s == pytest.approx(0.2)


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
    queueing_s: float, share: float, age_s: float
) -> None:
    def wait(overtakers: list[Overtaker]) -> Wait:
        return tokens_ahead_wait(
            queueing_s=queueing_s,
            seconds_per_request=0.1,
            variation=1.0,
            uncertainty=0.1,
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


waits = st.builds(
    lambda p50, more, most: Wait(p50 + more / 2, (p50, p50 + more, p50 + more + most)),
    *([st.floats(0, 1e4)] * 3),
)


@given(waits, waits, st.floats(-50, 1e3), st.floats(0, 1e3))
def test_room_that_others_make_shortens_a_wait_but_not_below_what_pressing_takes(
    steady: Wait, all_at_once: Wait, press_in_s: float, longer_s: float
) -> None:
    due_in_s = press_in_s + longer_s
    pressed = Wait(
        min(steady.mean_s, all_at_once.mean_s),
        tuple(map(min, steady.quantiles_s, all_at_once.quantiles_s)),
    )
    wait = relieved(steady, pressed, press_in_s=press_in_s, due_in_s=due_in_s)
    assert wait.quantiles_s == tuple(sorted(wait.quantiles_s))
    for told_s, at_ease_s, at_once_s in zip(
        (wait.mean_s, *wait.quantiles_s),
        (steady.mean_s, *steady.quantiles_s),
        (pressed.mean_s, *pressed.quantiles_s),
        strict=True,
    ):
        assert at_once_s <= told_s <= at_ease_s
        assert told_s >= min(at_ease_s, press_in_s)
        assert told_s <= max(at_once_s, due_in_s)


@given(waits, waits)
def test_of_two_things_the_later_counts(one: Wait, other: Wait) -> None:
    both = later(one, other)
    assert both.quantiles_s == later(other, one).quantiles_s
    assert set(both.quantiles_s) <= {*one.quantiles_s, *other.quantiles_s}
    assert both.quantiles_s == tuple(sorted(both.quantiles_s))
    assert both.mean_s == max(one.mean_s, other.mean_s)


def test_what_goes_first_is_taken_to_go_on_by_how_long_it_has() -> None:
    """Half of the time is theirs: for 60 s more in half of all cases, for 540 s in nine tenths, and 24 s in the mean."""
    wait = tokens_ahead_wait(
        queueing_s=400.0,
        seconds_per_request=0.1,
        variation=0.0,
        uncertainty=0.0,
        prefill_s=0.0,
        overtakers=[Overtaker(0.5, 1e6, 60.0)],
    )
    assert wait.quantiles_s == pytest.approx((430.0, 670.0, 800.0))
    assert wait.mean_s == pytest.approx(412.0)
