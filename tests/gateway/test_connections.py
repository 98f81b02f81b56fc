"""HTTP connections that keep the gateway waiting, and too many of them, by hand over loopback."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import pytest

from qlm_core import messages as m
from qlm_core.model import Phase
from tests.gateway.peers import Fleet, ended, fleet, soon
from tests.gateway.test_http import CHAT, get, post

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"


class Peer:
    """A client that sends and reads bytes as a test says."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the next answer that has a length."""
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines[1:] if line)
        body = await self.reader.readexactly(int(headers["content-length"]))
        return int(lines[0].split()[1]), headers, body

    async def rest(self) -> bytes:
        """All that comes until the gateway closes."""
        async with asyncio.timeout(5.0):
            return await self.reader.read()


@contextlib.asynccontextmanager
async def dialled(it: Fleet, sent: bytes = b"") -> AsyncIterator[Peer]:
    host, port = it.addresses.http.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(sent)
    try:
        yield Peer(reader, writer)
    finally:
        writer.close()


def whole(body: dict[str, object] | None = None) -> bytes:
    data = json.dumps(body or CHAT).encode()
    return HEAD + b"content-length: %d\r\n\r\n" % len(data) + data


async def test_a_head_that_does_not_come_ends_its_connection() -> None:
    async with fleet(limits={"header_s_max": 0.2}) as it:
        async with dialled(it) as silent, dialled(it, HEAD) as slow:
            assert await silent.rest() == b""
            assert b" 408 " in await slow.rest()
        # The second head of a connection as well.
        it.agent.answer("x")
        async with dialled(it, whole()) as peer:
            assert (await peer.answer())[0] == 200
            peer.writer.write(HEAD)
            assert b" 408 " in await peer.rest()


async def test_a_slow_answer_is_no_slow_head() -> None:
    async with fleet(limits={"header_s_max": 0.1, "idle_s_max": 0.1}) as it:
        it.agent.on_payload = lambda payload: None
        async with dialled(it, whole()) as peer:
            payload = await it.agent.payload()
            await asyncio.sleep(0.4)
            it.agent.say(payload, "x", finish="stop")
            assert (await peer.answer())[0] == 200
            assert await peer.rest() == b""


@pytest.mark.parametrize(
    "head",
    [
        HEAD + b"x-long: " + b"a" * 200_000,
        HEAD + b"".join(b"x-%d: 1\r\n" % index for index in range(200)) + b"\r\n",
        HEAD + b"x-long: " + b"a" * 100_000 + b"\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
    ],
    ids=["endless", "many", "long", "path"],
)
async def test_heads_are_bounded(head: bytes) -> None:
    async with fleet() as it, dialled(it, head) as peer:
        status, headers, body = await peer.answer()
        assert (status, headers["connection"]) == (431, "close")
        assert json.loads(body)["error"]["code"] == "headers_too_large"


async def test_what_is_no_http_gets_an_error_like_others() -> None:
    async with fleet() as it, dialled(it, b"\x16\x03\x01 hello\r\n\r\n") as peer:
        status, _, body = await peer.answer()
        assert (status, json.loads(body)["error"]["code"]) == (400, "invalid_http")


@pytest.mark.parametrize("path", [b"/v1/chat/completions", b"/v1/batches", b"/v1/files"])
async def test_a_body_that_is_not_chunked_as_it_says_gets_an_error(path: bytes) -> None:
    head = (
        b"POST "
        + path
        + b" HTTP/1.1\r\nhost: x\r\ncontent-type: multipart/form-data; boundary=x\r\n"
    )
    sent = head + b"transfer-encoding: chunked\r\n\r\n3\r\n--x\r\n"
    async with fleet() as it:
        async with dialled(it, sent) as peer:
            await peer.writer.drain()
            peer.writer.write(b"none\r\n")
            status, headers, body = await peer.answer()
            assert (status, headers["connection"]) == (400, "close")
            assert json.loads(body)["error"]["code"] == "invalid_http"
            assert await peer.rest() == b""
        # What was refused in the middle leaves nothing behind.
        assert json.loads((await get(f"{it.url}/v1/files"))[1])["data"] == []
        it.agent.answer("x")
        async with dialled(it, whole()) as peer:
            assert (await peer.answer())[0] == 200


async def test_quiet_connections_give_way() -> None:
    limits = {"connections_max": 20, "connections_per_address_max": 1000}
    async with fleet(limits=limits) as it, contextlib.AsyncExitStack() as stack:
        it.agent.answer("x")
        silent = [await stack.enter_async_context(dialled(it)) for _ in range(10)]
        slow = [await stack.enter_async_context(dialled(it, HEAD)) for _ in range(10)]
        for _ in range(5):
            assert (await post(f"{it.url}/v1/chat/completions", CHAT))[0] == 200
        # Those that had waited for longest are gone, and no more than was needed.
        assert await silent[0].rest() == b""
        assert not slow[-1].reader.at_eof()


async def test_beyond_its_connections_a_gateway_says_so() -> None:
    async with fleet(limits={"connections_max": 3}) as it, contextlib.AsyncExitStack() as stack:
        it.agent.on_payload = lambda payload: None
        for _ in range(3):
            await stack.enter_async_context(dialled(it, whole()))
        await soon(lambda: len(it.agent.payloads) == 3)
        status, said, headers = await post(f"{it.url}/v1/chat/completions", CHAT)
        assert (status, said["error"]["code"]) == (429, "queue_full")
        assert int(headers["retry-after"]) >= 1
        assert headers["connection"] == "close"
        assert (await get(f"{it.url}/health"))[0] == 200


async def test_one_address_has_its_share() -> None:
    limits = {"connections_per_address_max": 2}
    async with fleet(limits=limits) as it, contextlib.AsyncExitStack() as stack:
        it.agent.on_payload = lambda payload: None
        busy = [await stack.enter_async_context(dialled(it, whole())) for _ in range(2)]
        await soon(lambda: len(it.agent.payloads) == 2)
        async with dialled(it) as third:
            status, headers, body = await third.answer()
        assert (status, headers["retry-after"]) == (429, "1")
        assert json.loads(body)["error"]["code"] == "connections_per_address_max"
        # What it does not use gives way to what it does, and a closed one is free again.
        for index in range(2):
            it.agent.say(it.agent.payloads[index], "x", finish="stop")
            assert (await busy[index].answer())[0] == 200
        async with dialled(it, whole()) as fourth:
            it.agent.say(await it.agent.payload(2), "x", finish="stop")
            assert (await fourth.answer())[0] == 200


async def test_who_reads_nothing_is_left() -> None:
    limits = {"write_s_max": 0.3, "stream_backlog_bytes_max": 100_000_000}
    async with fleet(limits=limits) as it:
        it.agent.on_payload = lambda payload: None
        async with dialled(it, whole(CHAT | {"stream": True})) as peer:
            payload = await it.agent.payload()
            # More than sockets hold.
            for _ in range(80):
                it.agent.say(payload, "x" * 100_000)
            await soon(lambda: it.solver.heard(m.Ended))
            with contextlib.suppress(ConnectionError):
                data = await peer.rest()
                assert b"[DONE]" not in data
        assert len(it.gateway.driver.ledger) == 0


async def test_many_requests_at_once_on_one_connection_end_it() -> None:
    async with fleet() as it, dialled(it, whole() * 40) as peer:
        it.agent.on_payload = lambda payload: None
        with contextlib.suppress(ConnectionError):
            assert await peer.rest() == b""
        await soon(lambda: len(it.gateway.driver.ledger) == 0)


async def test_every_request_of_a_lost_connection_is_cancelled() -> None:
    async with fleet() as it:
        it.agent.on_payload = lambda payload: None
        async with dialled(it, whole() * 2):
            await it.agent.payload()
        await soon(lambda: ended(it.solver) == [Phase.CANCELLED])
