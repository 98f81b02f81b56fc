"""Forms that come in pieces: the same parts and bytes however they are divided, and an error for what is no form."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.files.disposition import Part
from gateway.files.multipart import (
    HEAD_BYTES_MAX,
    PARTS_MAX,
    FormReader,
    PartBegan,
    PartData,
    boundary_of,
)
from qlm_core.errors import InvalidRequest
from tests.files.forms import BOUNDARY, CONTENT_TYPE, field, file, form, part

Parts = list[tuple[Part, bytes]]

# What looks like the end of a part, in whole or in part.
pieces = st.sampled_from(
    [b"\r", b"\n", b"\r\n", b"--", b"-", BOUNDARY, b"\r\n--" + BOUNDARY[:-1], b"\r\n--", b"a", b"\0", b"\xff"]
)  # fmt: skip
contents = st.lists(pieces, max_size=12).map(b"".join)


def is_content(data: bytes) -> bool:
    """Whether a form can have it, with this boundary."""
    return b"\r\n--" + BOUNDARY not in b"\r\n" + data + b"\r\n"


def read(*pieces: bytes) -> tuple[Parts, bool]:
    """The parts of a form that comes in these pieces, and whether it was complete."""
    reader = FormReader(BOUNDARY)
    parts: Parts = []
    for piece in pieces:
        for event in reader.feed(piece):
            if isinstance(event, PartBegan):
                parts.append((event.part, b""))
            elif isinstance(event, PartData):
                about, data = parts[-1]
                parts[-1] = about, data + event.data
    return parts, reader.complete


def test_a_form_divided_anywhere_is_the_same() -> None:
    data = b"one\r\n--" + BOUNDARY[:-1] + b"\r\r\n--\r\ntwo\r\n"
    whole = form(field("purpose", "batch"), file(data), field("expires_after[seconds]", "3600"))
    expected = [
        (Part("purpose", None), b"batch"),
        (Part("file", "in.jsonl"), data),
        (Part("expires_after[seconds]", None), b"3600"),
    ]
    assert read(whole) == (expected, True)
    assert read(*(whole[at : at + 1] for at in range(len(whole)))) == (expected, True)
    for at in range(len(whole) + 1):
        assert read(whole[:at], whole[at:]) == (expected, True), at


@given(st.lists(contents.filter(is_content), min_size=1, max_size=3), st.data())
def test_contents_come_out_as_they_went_in(datas: list[bytes], data: st.DataObject) -> None:
    whole = form(*map(file, datas))
    cuts = data.draw(st.lists(st.integers(0, len(whole)), max_size=8).map(sorted))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    parts, complete = read(*pieces)
    assert complete
    assert parts == [(Part("file", "in.jsonl"), one) for one in datas]


@given(st.integers(0, 200))
def test_a_form_that_breaks_off_is_not_complete(missing: int) -> None:
    whole = form(field("purpose", "batch"), file(b"x" * 150)).rstrip(b"\r\n")
    assert read(whole[: len(whole) - 1 - missing])[1] is False


def test_what_follows_the_end_does_not_count() -> None:
    whole = form(field("purpose", "batch"))
    assert read(whole + file(b"x"))[0] == read(whole)[0]


@pytest.mark.parametrize(
    "data",
    [
        b"no boundary at all",
        b"--other\r\n\r\n",
        part(b"attachment; filename=x", b"") + form(),
        b"--" + BOUNDARY + b"\r\nContent-Type: a/b\r\n\r\nx\r\n",
        b"--" + BOUNDARY + b"\r\nbad header\r\n\r\n",
        part(b'form-data; name="' + b"n" * HEAD_BYTES_MAX + b'"', b""),
        field("x", "") * (PARTS_MAX + 1),
    ],
    ids=["text", "another", "attachment", "no-name", "no-colon", "long-head", "many-parts"],
)
def test_what_is_no_form_is_refused(data: bytes) -> None:
    for size in (1, len(data)):
        with pytest.raises(InvalidRequest) as raised:
            read(*(data[at : at + size] for at in range(0, len(data), size)))
        assert raised.value.code == "invalid_form"


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        (CONTENT_TYPE.encode(), BOUNDARY),
        (b"Multipart/Form-Data;boundary=abc", b"abc"),
        (b'multipart/form-data; charset=utf-8; boundary="a b;c"; x=y', b"a b;c"),
        (b"multipart/form-data ; Boundary=x-1", b"x-1"),
    ],
)
def test_boundaries_are_found(content_type: bytes, boundary: bytes) -> None:
    assert boundary_of(content_type) == boundary


@pytest.mark.parametrize(
    "content_type",
    [
        b"",
        b"application/json",
        b"multipart/form-data",
        b"multipart/form-data; boundary=",
        b"multipart/mixed; boundary=x",
        b"multipart/form-data; boundary=" + b"x" * 71,
        b'multipart/form-data; boundary="x',
    ],
)
def test_what_has_no_boundary_is_refused(content_type: bytes) -> None:
    with pytest.raises(InvalidRequest, match="content-type"):
        boundary_of(content_type)
