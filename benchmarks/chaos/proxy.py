"""One link of the fleet as a TCP proxy that can be cut, held up and let go, without any right on the machine's network.

What is held up waits in buffers, as it would in a network that drops packets for a while: nothing is lost as long as the
connection lives. Either direction can be held up alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

_BLOCK_BYTES = 65_536
_LINGER_NOT = struct.pack("ii", 1, 0)


@dataclass(slots=True, eq=False)
class _Way:
    """One direction: open, or held up."""

    free: asyncio.Event = field(default_factory=asyncio.Event)
    delay_s: float = 0.0

    def __post_init__(self) -> None:
        self.free.set()


class Proxy:
    """Listens at an address of its own and passes on to `target`."""

    def __init__(self, listen: str, target: str) -> None:
        self.listen = listen
        self._target = target
        self._there, self._back = _Way(), _Way()
        self._open: dict[asyncio.StreamWriter, None] = {}
        self._tasks: dict[asyncio.Task[None], None] = {}
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen."""
        host, _, port = self.listen.rpartition(":")
        self._server = await asyncio.start_server(self._serve, host, int(port))

    async def stop(self) -> None:
        """Cut everything and listen no more."""
        assert self._server is not None
        self._server.close()
        self.reset()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ---------------------------------------------------------------- faults

    def reset(self) -> None:
        """Cut what is open, by a reset at both ends. New connections are let through."""
        for writer in list(self._open):
            _reset(writer)

    def hold(self, *, there: bool = True, back: bool = True) -> None:
        """Let nothing through, to the target and back from it; new connections are taken and get no answer."""
        if there:
            self._there.free.clear()
        if back:
            self._back.free.clear()

    def delay(self, seconds: float) -> None:
        """Let each block of bytes through so much later, in both directions."""
        self._there.delay_s = self._back.delay_s = seconds

    def heal(self) -> None:
        """Let everything through again, what was held up first."""
        self.delay(0.0)
        self._there.free.set()
        self._back.free.set()

    # ---------------------------------------------------------------- passing on

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks[task] = None
        try:
            async with self._kept(writer):
                await self._there.free.wait()
                host, _, port = self._target.rpartition(":")
                target_reader, target_writer = await asyncio.open_connection(host, int(port))
                async with self._kept(target_writer), asyncio.TaskGroup() as group:
                    group.create_task(_pass_on(reader, target_writer, self._there))
                    group.create_task(_pass_on(target_reader, writer, self._back))
        except* (OSError, RuntimeError, asyncio.CancelledError):
            # A link that cannot be made or kept looks to both ends like what it is: a reset. RuntimeError is uvloop's word
            # for a connection that is closed already.
            _reset(writer)
        finally:
            del self._tasks[task]

    @contextlib.asynccontextmanager
    async def _kept(self, writer: asyncio.StreamWriter) -> AsyncIterator[None]:
        """Count a connection as open, and let go of it at the end."""
        self._open[writer] = None
        try:
            yield
        finally:
            del self._open[writer]
            writer.close()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: _Way) -> None:
    """Copy one direction to its end; an end is passed on as well."""
    while block := await reader.read(_BLOCK_BYTES):
        await way.free.wait()
        if way.delay_s:
            await asyncio.sleep(way.delay_s)
            await way.free.wait()
        writer.write(block)
        await writer.drain()
    await way.free.wait()
    writer.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection so that its peer is told of a reset."""
    sock = writer.get_extra_info("socket")
    if sock is not None and not writer.transport.is_closing():
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
    writer.transport.abort()
