"""What is said of a port where no gateway answers HTTP, however the call broke."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
import pytest_asyncio

from qlm.replay import require_gateway
from qlm_core.errors import Unavailable


@pytest_asyncio.fixture
async def grpc_port() -> AsyncIterator[int]:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield port
    await server.stop(None)


async def test_a_port_that_hears_no_http_but_speaks_grpc_is_told_as_that(grpc_port: int) -> None:
    """It resets each connection at its second word, as a gRPC server does, and may be faster than its own first one is read."""
    connections = 0

    async def reset_first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        if connections > 1:
            theirs, ours = await asyncio.open_connection("127.0.0.1", grpc_port)
            ours.write(await reader.read(100))
            writer.write(await theirs.read(100))
            await writer.drain()
            ours.close()
        writer.transport.abort()

    async with await asyncio.start_server(reset_first, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(Unavailable, match="speaks gRPC"):
            await require_gateway(f"http://127.0.0.1:{port}")
    assert connections == 2


async def test_who_hangs_up_at_once_may_want_tls() -> None:
    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(Unavailable, match="closed at once"):
            await require_gateway(f"http://127.0.0.1:{port}")


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://[::1]:1"])
async def test_nobody_there(url: str) -> None:
    with pytest.raises(Unavailable, match="no gateway answers"):
        await require_gateway(url)
