"""Instants survive the way through seconds in floating point."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from qlm_core.sim.iteration import last_picosecond, seconds

_SECOND = 10**12


@given(st.integers(0, 10**9 * _SECOND))
@example(4_320_003_671_919_363_999)
def test_an_instant_is_reached_at_its_own_time(instant: int) -> None:
    """Or else an engine would be told again and again that its time has not come."""
    assert last_picosecond(seconds(instant)) >= instant


@given(st.integers(0, 3_000_000 * _SECOND))
def test_for_a_month_no_other_nanosecond_counts_as_this_one(instant: int) -> None:
    last = last_picosecond(seconds(instant))
    assert last // 1000 == instant // 1000
