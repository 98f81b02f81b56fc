"""The Python client of a gateway's gRPC interface: `Client` blocks, `AsyncClient` is its twin for asyncio.

Every request submitted here is durable: once it is accepted it is run and its answer kept, whatever becomes of this
client or of any process of the fleet. Bodies are those of OpenAI's API, with `messages` for a chat or `prompt` for a
completion. Calls raise QlmError: `Busy` when the queue is full, `NotFound` for an unknown id or model, `Unavailable` when
no gateway answers. docs/api.md has examples.

The two only differ in how they wait; what is asked and what an answer means is in `qlm.calls`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from types import TracebackType
from typing import Any, Unpack

import grpc

from protos.qlm.v1 import client_service_pb2_grpc as rpc
from qlm import calls, trust
from qlm.calls import (
    Accepted,
    Answer,
    Busy,
    Call,
    Ended,
    Event,
    Json,
    Output,
    Size,
    Standing,
    Submission,
)
from qlm_core.model import Estimate, Phase

__all__ = [
    "Accepted",
    "AsyncClient",
    "Busy",
    "Client",
    "Ended",
    "Event",
    "Output",
    "Standing",
]


class Client:
    """A blocking client; may be shared by threads. Use as a context manager, or `close` it.

    Args:
        address: host:port of the gateway's gRPC listener.
        api_key: sent as a bearer token unless empty.
        ca: a file with the certificate of who signed the gateway's, or "system"; empty: no TLS.
        timeout_s: of calls with one answer; streams have no limit.
    """

    def __init__(
        self,
        address: str,
        *,
        api_key: str = "",
        ca: str = "",
        timeout_s: float = calls.CALL_TIMEOUT_S,
    ):
        self._address = address
        self._metadata = calls.metadata(api_key)
        self._timeout_s = timeout_s
        self._channel = trust.channel(address, ca, calls.CHANNEL_OPTIONS)
        self._stub = rpc.ClientServiceStub(self._channel)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up. Requests that were accepted go on."""
        self._channel.close()

    def submit(self, body: Mapping[str, Any], **said: Unpack[Submission]) -> Iterator[Event]:
        """Submit a request and follow it: `Accepted`, its output, `Ended`.

        Leaving the iteration does not cancel the request; `watch` takes it up again.

        Args:
            slo_class, slo: what it is promised, by the name of a class or by explicit targets.
            tenant: who asks.
            key: names this submission; repeating a key attaches to its first submission.
        """
        return self._stream(calls.submit(body, said))

    def enqueue(self, body: Mapping[str, Any], **said: Unpack[Submission]) -> Accepted:
        """Submit a request and return once it is durable. Arguments as of `submit`."""
        return self._call(calls.enqueue(body, said))

    def watch(self, id: str) -> Iterator[Event]:
        """The output of a known request from its beginning, and its end."""
        return self._stream(calls.watch(id))

    def wait(self, id: str) -> Standing:
        """Wait for the end of a request, however long it takes."""
        for _ in self.watch(id):
            continue
        return self.get(id)

    def get(self, id: str) -> Standing:
        """Where a request stands, and its answer once it has ended."""
        return self._call(calls.get(id))

    def cancel(self, id: str) -> Phase:
        """Cancel a request in any state; returns how it ended, now or before."""
        return self._call(calls.cancel(id))

    def estimate(self, model: str, **size: Unpack[Size]) -> tuple[Estimate, bool]:
        """How long such a request would wait if it came now, and whether that meets its target at p90.

        Args:
            slo_class, slo: as of `submit`.
            prompt_tokens, max_output_tokens: its size, where it is known.
        """
        return self._call(calls.estimate(model, size))

    def open_requests(self) -> Iterator[Standing]:
        """What waits and runs, newest first."""
        page = ""
        while True:
            standings, page = self._call(calls.open_requests(page))
            yield from standings
            if not page:
                return

    def queues(self) -> Json:
        """The virtual queues as the solver sees them."""
        return self._call(calls.queues())

    def explain(self, id: str) -> Json:
        """Why a request stands where it stands."""
        return self._call(calls.explain(id))

    def what_if(self, changes: Mapping[str, int]) -> Json:
        """What would change with so many instances more (fewer, if negative) by GPU; for operators."""
        return self._call(calls.what_if(changes))

    def _call(self, call: Call[Answer]) -> Answer:
        method = getattr(self._stub, call.method)
        try:
            return call.read(method(call.request, metadata=self._metadata, timeout=self._timeout_s))
        except grpc.RpcError as error:
            raise calls.readable(error, self._address) from None

    def _stream(self, call: Call[Answer]) -> Iterator[Answer]:
        method = getattr(self._stub, call.method)
        try:
            for reply in method(call.request, metadata=self._metadata):
                yield call.read(reply)
        except grpc.RpcError as error:
            raise calls.readable(error, self._address) from None


class AsyncClient:
    """As `Client`, on an asyncio loop: calls are awaited, streams are asynchronous iterators."""

    def __init__(
        self,
        address: str,
        *,
        api_key: str = "",
        ca: str = "",
        timeout_s: float = calls.CALL_TIMEOUT_S,
    ):
        self._address = address
        self._metadata = calls.metadata(api_key)
        self._timeout_s = timeout_s
        self._channel = trust.aio_channel(address, ca, calls.CHANNEL_OPTIONS)
        self._stub: rpc.ClientServiceAsyncStub = rpc.ClientServiceStub(self._channel)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """As `Client.close`."""
        await self._channel.close(None)

    def submit(self, body: Mapping[str, Any], **said: Unpack[Submission]) -> AsyncIterator[Event]:
        """As `Client.submit`."""
        return self._stream(calls.submit(body, said))

    async def enqueue(self, body: Mapping[str, Any], **said: Unpack[Submission]) -> Accepted:
        """As `Client.enqueue`."""
        return await self._call(calls.enqueue(body, said))

    def watch(self, id: str) -> AsyncIterator[Event]:
        """As `Client.watch`."""
        return self._stream(calls.watch(id))

    async def wait(self, id: str) -> Standing:
        """As `Client.wait`."""
        async for _ in self.watch(id):
            continue
        return await self.get(id)

    async def get(self, id: str) -> Standing:
        """As `Client.get`."""
        return await self._call(calls.get(id))

    async def cancel(self, id: str) -> Phase:
        """As `Client.cancel`."""
        return await self._call(calls.cancel(id))

    async def estimate(self, model: str, **size: Unpack[Size]) -> tuple[Estimate, bool]:
        """As `Client.estimate`."""
        return await self._call(calls.estimate(model, size))

    async def open_requests(self) -> AsyncIterator[Standing]:
        """As `Client.open_requests`."""
        page = ""
        while True:
            standings, page = await self._call(calls.open_requests(page))
            for standing in standings:
                yield standing
            if not page:
                return

    async def queues(self) -> Json:
        """As `Client.queues`."""
        return await self._call(calls.queues())

    async def explain(self, id: str) -> Json:
        """As `Client.explain`."""
        return await self._call(calls.explain(id))

    async def what_if(self, changes: Mapping[str, int]) -> Json:
        """As `Client.what_if`."""
        return await self._call(calls.what_if(changes))

    async def _call(self, call: Call[Answer]) -> Answer:
        method = getattr(self._stub, call.method)
        try:
            return call.read(
                await method(call.request, metadata=self._metadata, timeout=self._timeout_s)
            )
        except grpc.RpcError as error:
            raise calls.readable(error, self._address) from None

    async def _stream(self, call: Call[Answer]) -> AsyncIterator[Answer]:
        method = getattr(self._stub, call.method)
        try:
            async for reply in method(call.request, metadata=self._metadata):
                yield call.read(reply)
        except grpc.RpcError as error:
            raise calls.readable(error, self._address) from None
