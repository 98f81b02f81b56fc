"""Contents of files over HTTP: whole and in part, for clients that read slowly or not at all, from disks that fail."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import aiohttp
import pytest

from gateway.files.disk import Reading
from gateway.files.sending import PIECE_BYTES
from tests.files.doors import BATCH, Door, door
from tests.files.forms import LINES, field, file, form
from tests.gateway.peers import soon


@pytest.fixture
async def it() -> AsyncIterator[Door]:
    async with door() as made:
        yield made


async def test_contents_whole_and_in_part(it: Door) -> None:
    data = LINES * 20_000
    id = (await it.send(form(BATCH, file(data))))[1]["id"]
    path = f"/v1/files/{id}/content"
    status, body, headers = await it.ask("GET", path)
    assert (status, body) == (200, data)
    assert headers["content-type"] == "application/octet-stream"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["accept-ranges"] == "bytes"
    etag = headers["etag"]
    for asked, part_of in (
        ({"range": "bytes=100-299999"}, slice(100, 300_000)),
        ({"range": "bytes=-10"}, slice(-10, None)),
        ({"range": "bytes=1000000-", "if-range": etag}, slice(1_000_000, None)),
    ):
        status, body, headers = await it.ask("GET", path, **asked)
        assert (status, body) == (206, data[part_of])
        first, _, _ = part_of.indices(len(data))
        said = f"bytes {first}-{first + len(body) - 1}/{len(data)}"
        assert headers["content-range"] == said
    status, body, _ = await it.ask("GET", path, **{"range": "bytes=0-9", "if-range": '"other"'})
    assert (status, len(body)) == (200, len(data))
    status, body, headers = await it.ask("GET", path, range=f"bytes={len(data)}-")
    assert (status, body["error"]["code"]) == (416, "range_not_satisfiable")
    assert headers["content-range"] == f"bytes */{len(data)}"
    for asked, length in (({}, len(data)), ({"range": "bytes=5-9"}, 5)):
        status, body, headers = await it.ask("HEAD", path, **asked)
        assert (status in (200, 206), body) == (True, b"")
        assert headers["content-length"] == str(length)


async def test_an_empty_file_has_an_empty_content(it: Door) -> None:
    sent = form(field("purpose", "user_data"), file(b"", filename=b"x"))
    id = (await it.send(sent))[1]["id"]
    assert (await it.ask("GET", f"/v1/files/{id}/content"))[:2] == (200, b"")


async def test_a_content_that_nobody_reads_is_bounded_and_given_up() -> None:
    async with door(limits={"write_s_max": 0.5}) as it:
        id = (await it.send(form(BATCH, file(LINES * 500_000))))[1]["id"]
        asked = b"GET /v1/files/%b/content HTTP/1.1\r\nhost: x\r\n\r\n" % id.encode()
        async with it.dialled(asked) as peer:
            assert it.gateway._http is not None
            connections = it.gateway._http.connections
            await soon(lambda: connections._unread_bytes > 0)
            assert connections._unread_bytes < 2_000_000
            await soon(lambda: connections.counts()["busy"] == 0)
            with contextlib.suppress(ConnectionError):
                assert len(await peer.rest()) < len(LINES) * 500_000


async def test_for_a_client_that_vanishes_nothing_more_is_read(
    it: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = (await it.send(form(BATCH, file(LINES * 500_000))))[1]["id"]
    pieces: list[int] = []
    whole = Reading.read

    def counted(self: Reading, first: int, size: int) -> bytes:
        pieces.append(first)
        return whole(self, first, size)

    monkeypatch.setattr(Reading, "read", counted)
    async with it.dialled(
        b"GET /v1/files/%b/content HTTP/1.1\r\nhost: x\r\n\r\n" % id.encode()
    ) as peer:
        assert len(await peer.reader.readexactly(1_000)) == 1_000
        peer.writer.transport.abort()
    assert it.gateway._http is not None
    connections = it.gateway._http.connections
    await soon(lambda: connections.counts()["busy"] == 0)
    await asyncio.sleep(0.2)
    assert len(pieces) < len(LINES) * 500_000 // PIECE_BYTES // 2


async def test_bytes_that_are_lost_are_said_to_be(it: Door) -> None:
    id = (await it.send(form(BATCH, file())))[1]["id"]
    (it.gateway.files.workspace(".") / id).unlink()
    status, body, headers = await it.ask("GET", f"/v1/files/{id}/content")
    assert (status, body["error"]["code"]) == (500, "file_lost")
    assert headers["x-should-retry"] == "false"
    assert (await it.ask("DELETE", f"/v1/files/{id}"))[0] == 200


async def test_a_disk_that_fails_while_it_is_read_ends_the_answer_too_early(
    it: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = (await it.send(form(BATCH, file(LINES * 20_000))))[1]["id"]
    whole = Reading.read

    def broken(self: Reading, first: int, size: int) -> bytes:
        if first:
            raise OSError("I/O error")
        return whole(self, first, size)

    monkeypatch.setattr(Reading, "read", broken)
    with pytest.raises(aiohttp.ClientPayloadError):
        await it.ask("GET", f"/v1/files/{id}/content")
    assert (await it.ask("GET", "/health"))[0] == 200
