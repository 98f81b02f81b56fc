"""Whatever comes to /v1/files: forms in any state, odd queries and ranges; nothing is left of what was refused."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.files.forms import BOUNDARY, CONTENT_TYPE, field, file, form, part
from tests.fuzz.bodies import CANARY
from tests.fuzz.effort import fuzzed
from tests.fuzz.served import Fleet, serving
from tests.fuzz.test_http import sent

LINE = json.dumps({"custom_id": "a", "body": {"prompt": CANARY}}).encode() + b"\n"
NAMES = [
    "purpose",
    "file",
    "expires_after[anchor]",
    "expires_after[seconds]",
    "expires_after",
    "",
    "\xff",
    "a" * 9_000,
]
VALUES = [
    "batch",
    "user_data",
    "fine-tune",
    "",
    "created_at",
    "3600",
    "-1",
    "1e9",
    "9" * 6_000,
    "²",
    "\x00",
    CANARY,
]
TYPES = [
    CONTENT_TYPE, "multipart/form-data", "multipart/form-data; boundary=", 'multipart/form-data; boundary="' + "x" * 80,
    "multipart/form-data; boundary=\xff", "application/json", "", "a" * 9_000, "multipart/form-data; boundary==;boundary=x",
]  # fmt: skip
DISPOSITIONS = [
    b'form-data; name="file"; filename="a.jsonl"', b'form-data; name="file"; filename*=utf-8\'\'%FF%', b"form-data",
    b'form-data; name="file"; filename="' + b'\\"' * 3_000 + b'"', b'form-data; name="file"; filename="%s"' % b";" * 99,
    b"form-data; name=file; filename=" + b"x" * 7_000, b'form-data; name="fi\xffle"', b"attachment", b"",
    b'form-data; name="file"; filename="../../../etc/passwd"', b'form-data; name="file"; filename="%s.jsonl"' % CANARY.encode(),
]  # fmt: skip
contents = st.sampled_from(
    [b"", LINE, LINE * 3, b"[" * 5_000, b"\xef\xbb\xbf" + LINE, b"\r\n--", b"x" * 3_000_000]
)
parts = st.one_of(
    st.builds(field, st.sampled_from(NAMES), st.sampled_from(VALUES)),
    st.builds(file, contents),
    st.builds(part, st.sampled_from(DISPOSITIONS), contents),
    st.binary(max_size=40),
    st.just(b"--" + BOUNDARY),
)
whole = st.lists(parts, max_size=5).map(lambda parts: form(*parts))
forms = st.one_of(
    whole,
    st.tuples(whole, st.integers(1, 60)).map(lambda cut: cut[0][: -cut[1]]),
    st.tuples(whole, st.integers(0, 400), st.binary(min_size=1, max_size=3)).map(
        lambda put: put[0][: put[1]] + put[2] + put[0][put[1] :]
    ),
)


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with serving() as made:
        yield made


def check_held(fleet: Fleet) -> None:
    """That what is on the disk is what is listed, and that no budget is held."""
    status, answer = fleet.ask("GET", "/v1/files")
    assert status == 200
    listed = {one["id"]: one["bytes"] for one in json.loads(answer)["data"]}
    folder = fleet.gateway.files.workspace(".")
    found = {path.name: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    found.pop("store")
    assert found == listed
    for id in listed:
        assert fleet.ask("DELETE", f"/v1/files/{id}")[0] == 200
    assert fleet.gateway.files.slots.taken == 0
    assert not any(value for name, _, value in fleet.gateway.files.gauges())
    assert fleet.gateway._http is not None
    assert fleet.gateway._http.uploads.budget.used == 0


@fuzzed
@given(forms)
def test_no_form_does_harm(fleet: Fleet, data: bytes) -> None:
    status, answer = fleet.ask("POST", "/v1/files", data, {"content-type": CONTENT_TYPE})
    assert status < 500, answer
    check_held(fleet)
    fleet.check()


@fuzzed
@given(
    st.sampled_from(TYPES),
    st.sampled_from([form(field("purpose", "batch"), file(LINE)), b"", b"{}"]),
)
def test_no_content_type_does_harm(fleet: Fleet, content_type: str, data: bytes) -> None:
    headers = sent({"content-type": content_type})
    status, answer = fleet.ask("POST", "/v1/files", data, headers)
    assert status < 500, answer
    check_held(fleet)
    fleet.check()


queries = st.lists(
    st.tuples(
        st.sampled_from(["limit", "after", "order", "purpose", "x", ""]),
        st.sampled_from(["", "0", "1", "10000", "9" * 5_000, "asc", "file-" + "0" * 32, "%00", "%ff", "a%26b", "-1", "%C2%B2"]),
    ),
    max_size=80,
).map(lambda pairs: "&".join(f"{name}={value}" for name, value in pairs))  # fmt: skip


@fuzzed
@given(queries)
def test_no_query_does_harm(fleet: Fleet, query: str) -> None:
    status, answer = fleet.ask("GET", f"/v1/files?{query}")
    assert status < 500, answer
    fleet.check()


ranges = st.one_of(
    st.sampled_from(["bytes=0-", "bytes=-1", "bytes=5-2", "bytes=" + "9" * 5_000 + "-", "bytes", "", "\xff", "bytes=0-0,1-1"]),
    st.from_regex(r"bytes=[0-9]{0,4}-[0-9]{0,4}", fullmatch=True),
)  # fmt: skip


@fuzzed
@given(ranges, st.sampled_from(["GET", "HEAD"]))
def test_no_range_does_harm(fleet: Fleet, asked: str, method: str) -> None:
    data = form(field("purpose", "batch"), file(LINE * 20))
    made = json.loads(fleet.ask("POST", "/v1/files", data, {"content-type": CONTENT_TYPE})[1])
    path = f"/v1/files/{made['id']}/content"
    status, answer = fleet.ask(method, path, headers=sent({"range": asked}))
    assert status in (200, 206, 416)
    if status != 416 and method == "GET":
        assert answer in LINE * 20
    check_held(fleet)
    fleet.check()
