"""Which bytes of a file are asked for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.files.ranges import wanted


@pytest.mark.parametrize(
    ("header", "part"),
    [
        ("bytes=0-0", (0, 1)),
        ("bytes=2-5", (2, 6)),
        ("bytes = 2-", (2, 10)),
        ("bytes=7-99999999", (7, 10)),
        ("bytes=-3", (7, 10)),
        ("bytes=-99", (0, 10)),
        ("bytes=10-", None),
        ("bytes=10-20", None),
        ("bytes=-0", None),
        # No range, or not one: the whole.
        ("bytes=5-2", (0, 10)),
        ("bytes=-", (0, 10)),
        ("bytes=0-1,4-5", (0, 10)),
        ("lines=0-1", (0, 10)),
        ("bytes=" + "9" * 30 + "-", (0, 10)),
    ],
)
def test_ranges(header: str, part: tuple[int, int] | None) -> None:
    assert wanted(header, 10) == part


def test_an_empty_file_has_no_bytes_to_ask_for() -> None:
    assert wanted("bytes=0-", 0) is None
    assert wanted("nothing", 0) == (0, 0)


@given(st.text(max_size=20) | st.from_regex(r"bytes=\d{0,6}-\d{0,6}"), st.integers(0, 1000))
def test_a_range_lies_within_the_file(header: str, size: int) -> None:
    part = wanted(header, size)
    assert part is None or 0 <= part[0] <= part[1] <= size
