"""Names of files, as clients write them and as they are given back."""

from __future__ import annotations

from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.files.disposition import Part, attachment, part_of


@pytest.mark.parametrize(
    ("value", "filename"),
    [
        ('form-data; name="file"; filename="a.jsonl"', "a.jsonl"),
        ("form-data; name=file; filename=a.jsonl", "a.jsonl"),
        ('FORM-DATA ;NAME="file" ; FileName = "a b.jsonl"', "a b.jsonl"),
        # Browsers, httpx and curl of today; curl of yesterday.
        ('form-data; name="file"; filename="say %22hi%22.jsonl"', 'say "hi".jsonl'),
        (r'form-data; name="file"; filename="say \"hi\" \\.jsonl"', 'say "hi" \\.jsonl'),
        ('form-data; name="file"; filename="a;b=c.jsonl"', "a;b=c.jsonl"),
        (r'form-data; name="file"; filename="C:\dir\a.jsonl"', r"C:\dir\a.jsonl"),
        # As it is in UTF-8, and as urllib3 once wrote it.
        ('form-data; name="file"; filename="größe 猫.jsonl"', "größe 猫.jsonl"),
        ("form-data; name=\"file\"; filename*=utf-8''gr%C3%B6%C3%9Fe.jsonl", "größe.jsonl"),
        ('form-data; name="file"; filename="x"; filename*=UTF-8\'de\'%C3%B6.jsonl', "ö.jsonl"),
        ("form-data; name=\"file\"; filename*=iso-8859-1''%F6.jsonl", "ö.jsonl"),
        ('form-data; name="file"; filename="x"; filename*=utf-9\'\'y', "x"),
        ('form-data; name="file"; filename="a\tb\x7f.jsonl"', "a_b_.jsonl"),
        ('form-data; name="file"; filename="../../etc/passwd"', "../../etc/passwd"),
        ('form-data; name="file"; filename=""', ""),
        ('form-data; name="file"', None),
    ],
)
def test_names_are_read_as_clients_write_them(value: str, filename: str | None) -> None:
    assert part_of(value.encode()) == Part("file", filename)


def test_a_name_that_is_no_utf_8_is_latin_1() -> None:
    assert part_of(b'form-data; name="file"; filename="gr\xf6\xdfe"') == Part("file", "größe")


@pytest.mark.parametrize(
    "value", [b"", b"form-data", b'attachment; name="file"', b'form-data; filename="x"']
)
def test_what_is_no_field_is_none(value: bytes) -> None:
    assert part_of(value) is None


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=40))
def test_a_name_that_is_given_back_is_one_header_that_says_it(filename: str) -> None:
    header = attachment(filename).decode("ascii")
    assert header.isprintable()
    if "filename*" in header:
        assert unquote(header.partition("filename*=UTF-8''")[2]) == filename
    else:
        assert header == f'attachment; filename="{filename}"'
