"""Uploads and lists of files over HTTP, by hand: odd forms, odd clients, limits, tenants."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

import failpoints
from gateway.files import arriving
from gateway.files.upload import WRITE_BYTES
from tests.doors.beds import ADMIN, ALICE, BOB, KEYS
from tests.files.beds import gauges
from tests.files.doors import BATCH, Door, door, head
from tests.files.forms import LINES, field, file, form, part
from tests.gateway.peers import soon


@pytest.fixture
async def it() -> AsyncIterator[Door]:
    async with door() as made:
        yield made


# --------------------------------------------------------------------------- forms


async def test_fields_may_come_in_any_order_and_others_are_overlooked(it: Door) -> None:
    expiry = [
        field("expires_after[anchor]", "created_at"),
        field("expires_after[seconds]", "7200"),
    ]
    more = field("comment", "x" * 100_000)
    for parts in (
        [BATCH, *expiry, file()],
        [file(), *expiry[::-1], BATCH],
        [expiry[0], file(), more, BATCH, expiry[1]],
    ):
        status, body, _ = await it.send(form(*parts))
        assert status == 200, body
        assert body["expires_at"] == body["created_at"] + 7200
        assert (body["object"], body["status"], body["purpose"]) == ("file", "processed", "batch")
        assert (body["bytes"], body["filename"]) == (len(LINES), "in.jsonl")
        path = f"/v1/files/{body['id']}"
        assert (await it.ask("GET", path))[1] == body
        assert (await it.ask("GET", f"{path}/content"))[1] == LINES


async def test_a_body_in_chunks_without_a_length(it: Door) -> None:
    data = form(file(LINES * 5_000), BATCH)

    async def chunks() -> AsyncIterator[bytes]:
        for at in range(0, len(data), 7_001):
            yield data[at : at + 7_001]

    status, body, _ = await it.send(chunks())
    assert (status, body["bytes"]) == (200, len(LINES) * 5_000)


async def test_a_name_comes_back_as_it_was(it: Door) -> None:
    name = 'größe "猫".jsonl'
    status, body, _ = await it.send(form(BATCH, file(filename=name.replace('"', "%22").encode())))
    assert (status, body["filename"]) == (200, name)
    _, _, headers = await it.ask("GET", f"/v1/files/{body['id']}/content")
    assert (
        "filename*=UTF-8''gr%C3%B6%C3%9Fe%20%22%E7%8C%AB%22.jsonl" in headers["content-disposition"]
    )


@pytest.mark.parametrize(
    ("data", "code", "param"),
    [
        (form(file()), "missing_required_parameter", "purpose"),
        (form(BATCH), "missing_required_parameter", "file"),
        (form(), "missing_required_parameter", "purpose"),
        (form(field("purpose", "fine-tune"), file()), "invalid_value", "purpose"),
        (form(file(), field("purpose", "batch_output")), "invalid_value", "purpose"),
        (form(BATCH, BATCH, file()), "invalid_value", "purpose"),
        (form(BATCH, file(), file()), "invalid_value", "file"),
        (form(field("purpose", "x" * 5_000), file()), "invalid_value", "purpose"),
        (form(BATCH, file(filename=b"")), "invalid_value", "file"),
        (form(BATCH, part(b'form-data; name="file"', LINES)), "invalid_value", "file"),
        (form(BATCH, file(filename=b"x" * 600 + b".jsonl")), "invalid_value", "file"),
        (form(BATCH, file(filename=b"a.txt")), None, None),
        (form(file(filename=b"a.txt"), BATCH), None, None),
        (form(BATCH, file(b"")), None, None),
        (form(BATCH, file(b"no json\n")), None, None),
        (form(BATCH, file())[:-20], "invalid_form", "body"),
        (b"", "invalid_form", "body"),
        (b"{}", "invalid_form", "body"),
        *(
            (form(BATCH, file(), *(field(f"expires_after[{key}]", value) for key, value in given)), code, param)
            for given, code, param in (
                ([("seconds", "3600")], "missing_required_parameter", "expires_after[anchor]"),
                ([("anchor", "created_at")], "missing_required_parameter", "expires_after[seconds]"),
                ([("anchor", "now"), ("seconds", "3600")], "invalid_value", "expires_after[anchor]"),
                *(
                    ([("anchor", "created_at"), ("seconds", seconds)], "invalid_value", "expires_after[seconds]")
                    for seconds in ("", "3599", "2592001", "-3600", "3600.5", "1e4", "9" * 4_000, "٣٦٠٠")
                ),
            )
        ),
    ],
)  # fmt: skip
async def test_what_is_wrong_with_a_form_is_told(
    data: bytes, code: str | None, param: str | None, it: Door
) -> None:
    assert await it.fails(data) == (400, code, param)


async def test_what_is_no_form_is_told(it: Door) -> None:
    assert await it.fails(b"{}", **{"content-type": "application/json"}) == (
        400,
        "invalid_value",
        "content-type",
    )
    said = await it.fails(form(BATCH, file()), **{"content-encoding": "gzip"})
    assert said == (415, "unsupported_content_encoding", "content-encoding")


# --------------------------------------------------------------------------- clients and limits


async def test_of_a_client_that_vanishes_nothing_is_left(it: Door) -> None:
    data = form(BATCH, file(LINES * 20_000))
    for came in (0, 50, 400, WRITE_BYTES + 1_000, len(data) - 1):
        async with it.dialled(head(len(data)) + data[:came]):
            await soon(lambda: gauges(it.gateway.files)["qlm_file_uploads"] == 1)
        await it.empty()


async def test_a_client_that_brings_too_little_is_given_up() -> None:
    async with door(files={"upload_idle_s_max": 0.3}) as it:
        data = form(BATCH, file(b"x" * 2_000_000))
        for drips in (False, True):
            async with it.dialled(head(len(data)) + data[:1_000]) as peer:
                answer = asyncio.create_task(peer.answer())
                for at in range(1_000, 1_100):
                    if drips and not answer.done():
                        peer.writer.write(data[at : at + 1])
                        await asyncio.sleep(0.05)
                assert answer.done() or not drips
                status, headers, body = await answer
                assert (status, json.loads(body)["error"]["code"]) == (408, "body_too_slow")
                assert headers["connection"] == "close"
                assert await peer.rest() == b""
        await it.empty()


async def test_an_upload_may_take_longer_than_another_body_and_be_larger() -> None:
    limits = {"body_s_max": 0.2, "body_bytes_max": 1_000, "uploading_bytes_max": 2_000_000}
    async with door(limits=limits, files={"upload_idle_s_max": 1.0}) as it:
        data = form(BATCH, file(LINES * 10_000))
        async with it.dialled(head(len(data))) as peer:
            for at in range(0, len(data), 70_000):
                peer.writer.write(data[at : at + 70_000])
                await asyncio.sleep(0.1)
            status, _, body = await peer.answer()
            assert (status, json.loads(body)["bytes"]) == (200, len(LINES) * 10_000)


async def test_a_file_that_is_too_large_is_refused() -> None:
    async with door(files={"batch_file_bytes_max": 100_000, "file_bytes_max": 200_000}) as it:
        for size, purpose in ((100_001, "batch"), (200_001, "user_data"), (2_000_000, "batch")):
            data = form(field("purpose", purpose), file(b"x" * size))
            assert await it.fails(data) == (413, "file_too_large", "file" if size < 1e6 else "body")
        # What is announced to be too large is not read at all.
        async with it.dialled(head(10**12, b"expect: 100-continue")) as peer:
            status, headers, body = await peer.answer()
            assert (status, json.loads(body)["error"]["code"]) == (413, "file_too_large")
            assert headers["connection"] == "close"


async def test_who_is_refused_early_can_send_on_and_read_why(
    it: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = form(field("purpose", "vision"), file(b"x" * 5_000_000))
    async with it.dialled(head(len(data)) + data[:1_000]) as peer:
        # The answer comes before the end of the body, and again nothing is lost of it by sending all.
        status, headers, body = await peer.answer()
        assert (status, json.loads(body)["error"]["param"]) == (400, "purpose")
        assert headers["connection"] == "close"
        peer.writer.write(data[1_000:])
        await peer.writer.drain()
        assert await peer.rest() == b""
    # Only for a while.
    monkeypatch.setattr(arriving, "LINGER_S", 0.1)
    async with it.dialled(head(len(data)) + data[:1_000]) as peer:
        assert (await peer.answer())[0] == 400
        assert await peer.rest() == b""
    await it.empty()


async def test_a_connection_outlives_what_is_wrong_with_a_form_that_came_whole(it: Door) -> None:
    wrong, right = form(BATCH, file(b"no json")), form(BATCH, file())
    async with it.dialled(head(len(wrong)) + wrong) as peer:
        status, headers, _ = await peer.answer()
        assert (status, headers.get("connection")) == (400, None)
        peer.writer.write(head(len(right)) + right)
        assert (await peer.answer())[0] == 200


async def test_a_quota_that_is_full_is_said_in_the_middle() -> None:
    async with door(files={"tenant_bytes_max": 600_000}) as it:
        data = form(BATCH, file(LINES * 30_000))
        assert await it.fails(data) == (403, "file_quota_exceeded", "file")


@pytest.mark.parametrize("moment", ["error", "full"])
async def test_of_a_disk_that_fails_or_is_full_nothing_is_left(moment: str) -> None:
    least = 0 if moment == "error" else 10**15
    async with door(files={"disk_free_bytes_min": least}) as it:
        data = form(BATCH, file(LINES * 10_000))
        if moment == "error":
            failpoints.arm("gateway.files.writing=error@2")
        try:
            status, body, headers = await it.send(data)
        finally:
            failpoints.arm("")
        if moment == "error":
            assert (status, body["error"]["code"]) == (503, "unavailable")
            assert (await it.send(data))[0] == 200
            return
        assert (status, body["error"]["code"]) == (507, "no_room")
        assert headers["x-should-retry"] == "false"
        await it.empty()


async def test_uploads_have_slots_and_memory() -> None:
    data = form(BATCH, file(LINES * 10_000))
    async with door(files={"uploads_max": 1}) as it, it.dialled(head(len(data)) + data[:900]):
        await soon(lambda: gauges(it.gateway.files)["qlm_file_uploads"] == 1)
        status, body, headers = await it.send(data)
        assert (status, body["error"]["code"]) == (429, "queue_full")
        assert "gateway.files.uploads_max" in body["error"]["message"]
        assert int(headers["retry-after"]) > 0
    limits = {"body_bytes_max": 100_000, "uploading_bytes_max": 2 * WRITE_BYTES + 100_000}
    async with door(limits=limits) as it, it.dialled(head(len(data)) + data[:900]):
        await soon(lambda: gauges(it.gateway.files)["qlm_file_uploads"] == 1)
        _, body, _ = await it.send(data)
        assert "gateway.limits.uploading_bytes_max" in body["error"]["message"]


async def test_a_slow_upload_gives_way_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.files.slots.PATIENCE_S", 0.0)
    monkeypatch.setattr("gateway.files.slots.CROWDED_BYTES_PER_S", 1e12)
    data = form(BATCH, file(LINES * 10_000))
    async with (
        door(files={"uploads_max": 1}) as it,
        it.dialled(head(len(data)) + data[:900]) as slow,
    ):
        await soon(lambda: gauges(it.gateway.files)["qlm_file_uploads"] == 1)
        assert (await it.send(data))[0] == 200
        status, _, body = await slow.answer()
        assert (status, json.loads(body)["error"]["code"]) == (408, "body_too_slow")


async def test_a_gateway_that_drains_takes_no_files(it: Door) -> None:
    kept = (await it.send(form(BATCH, file())))[1]["id"]
    await it.gateway.driver.drain()
    assert (await it.send(form(BATCH, file())))[0] == 503
    assert (await it.ask("GET", f"/v1/files/{kept}/content"))[1] == LINES


# --------------------------------------------------------------------------- lists and tenants


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=10001", "limit"),
        ("limit=x", "limit"),
        ("limit=", "limit"),
        ("order=up", "order"),
        ("after=file-1", "after"),
        ("&".join(["a=b"] * 100), "query"),
    ],
)
async def test_what_is_wrong_with_a_list_is_told(query: str, param: str, it: Door) -> None:
    status, body, _ = await it.ask("GET", f"/v1/files?{query}")
    assert (status, body["error"]["param"]) == (400, param)


async def test_an_empty_list(it: Door) -> None:
    expected = {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}
    assert (await it.ask("GET", "/v1/files/?purpose=none"))[:2] == (200, expected)


async def test_tenants_have_their_own_files() -> None:
    async with door(api_keys=KEYS) as it:
        alice, bob, admin = ({"authorization": f"Bearer {key}"} for key in (ALICE, BOB, ADMIN))
        assert (await it.send(form(BATCH, file())))[0] == 401
        id = (await it.send(form(BATCH, file()), **alice))[1]["id"]
        other = "file-" + "0" * 32
        for method, path in (
            ("GET", "{}"),
            ("HEAD", "{}"),
            ("GET", "{}/content"),
            ("DELETE", "{}"),
        ):
            said = []
            for one in (id, other):
                status, body, _ = await it.ask(method, "/v1/files/" + path.format(one), **bob)
                said.append((status, json.dumps(body, default=str).replace(one, "ID")))
            assert said[0] == said[1]
            assert said[0][0] == 404
        lists = [
            (await it.ask("GET", "/v1/files", **who))[1]["data"] for who in (alice, bob, admin)
        ]
        assert [len(data) for data in lists] == [1, 0, 1]
        deleted = {"id": id, "object": "file", "deleted": True}
        assert (await it.ask("DELETE", f"/v1/files/{id}", **admin))[1] == deleted


async def test_pages_of_a_browser_may_upload() -> None:
    async with door(cors_origins=["https://chat.example"]) as it:
        origin = {"origin": "https://chat.example"}
        asked = origin | {"access-control-request-method": "DELETE"}
        assert (await it.ask("OPTIONS", "/v1/files/x", **asked))[0] == 200
        status, body, headers = await it.send(form(BATCH, file()), **origin)
        assert (status, headers["access-control-allow-origin"]) == (200, origin["origin"])
        _, _, headers = await it.ask("GET", f"/v1/files/{body['id']}/content", **origin)
        assert "content-range" in headers["access-control-expose-headers"]


async def test_what_is_held_is_measured(it: Door) -> None:
    await it.send(form(BATCH, file()))
    text = (await it.ask("GET", "/metrics"))[1].decode()
    for line in (
        "qlm_files 1.0",
        f"qlm_file_bytes {len(LINES):.1f}",
        "qlm_file_uploads 0.0",
        "qlm_files_lost 0.0",
    ):
        assert f"\n{line}\n" in text
    assert (await it.send(form(BATCH, file(b"no json"))))[0] == 400
    text = (await it.ask("GET", "/metrics"))[1].decode()
    assert 'qlm_requests_refused_total{code="invalid_request_error"} 1.0' in text
