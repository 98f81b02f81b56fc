"""The client itself. `sync_client.py` is made of this file by `generate.py`; change this one.

Calls raise QlmError: `Busy` when the queue is full, `NotFound` for an unknown id or model, `Unavailable` when no gateway answers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Any, Unpack

import grpc

from qlm_client import calls
from qlm_client.calls import Answer, Call
from qlm_client.dialling import aio_channel, aio_hang_up, dialled
from qlm_client.values import (
    Accepted,
    Estimate,
    Event,
    Json,
    Phase,
    Size,
    Standing,
    Submission,
)

CALL_TIMEOUT_S = 10.0


class AsyncClient:
    """A client of one gateway. Use as a context manager, or `close` it.

    Args:
        address: host:port of the gateway's gRPC listener, or a host alone (default: $QLM_ADDRESS, else 127.0.0.1:7402).
        api_key: sent as a bearer token unless empty (default: $QLM_API_KEY).
        ca: a file with the certificate of who signed the gateway's, or "system"; empty: no TLS (default: $QLM_CA).
        timeout_s: of calls with one answer; streams have no limit.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        api_key: str | None = None,
        ca: str | None = None,
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> None:
        to = dialled(address, api_key, ca)
        self._address = to.address
        self._metadata = to.metadata
        self._timeout_s = timeout_s
        self._channel = aio_channel(to)

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
        """Hang up. Requests that were accepted go on."""
        await aio_hang_up(self._channel)

    def submit(self, body: Mapping[str, Any], **said: Unpack[Submission]) -> AsyncIterator[Event]:
        """Submit a request and follow it: `Accepted`, its output, `Ended`.

        Leaving the iteration does not cancel the request; `watch` takes it up again.

        Args:
            slo_class, slo: what it is promised, by the name of a class or by explicit targets.
            tenant: who asks.
            key: names this submission; repeating a key attaches to its first submission.
        """
        return self._stream(calls.submit(body, said))

    async def enqueue(self, body: Mapping[str, Any], **said: Unpack[Submission]) -> Accepted:
        """Submit a request and return once it is durable. Arguments as of `submit`."""
        return await self._call(calls.enqueue(body, said))

    def watch(self, id: str) -> AsyncIterator[Event]:
        """The output of a known request from its beginning, and its end."""
        return self._stream(calls.watch(id))

    async def wait(self, id: str) -> Standing:
        """Wait for the end of a request, however long it takes."""
        async for _ in self.watch(id):
            continue
        return await self.get(id)

    async def get(self, id: str) -> Standing:
        """Where a request stands, and its answer once it has ended."""
        return await self._call(calls.get(id))

    async def cancel(self, id: str) -> Phase:
        """Cancel a request in any state; returns how it ended, now or before."""
        return await self._call(calls.cancel(id))

    async def estimate(self, model: str, **size: Unpack[Size]) -> tuple[Estimate, bool]:
        """How long such a request would wait if it came now, and whether that meets its target at p90.

        Args:
            slo_class, slo: as of `submit`.
            prompt_tokens, max_output_tokens: its size, where it is known.
        """
        return await self._call(calls.estimate(model, size))

    async def open_requests(self) -> AsyncIterator[Standing]:
        """What waits and runs, newest first."""
        page = ""
        while True:
            standings, page = await self._call(calls.open_requests(page))
            for standing in standings:
                yield standing
            if not page:
                return

    async def queues(self) -> Json:
        """The virtual queues as the solver sees them."""
        return await self._call(calls.queues())

    async def explain(self, id: str) -> Json:
        """Why a request stands where it stands, or how it ended."""
        return await self._call(calls.explain(id))

    async def what_if(self, changes: Mapping[str, int]) -> Json:
        """What would change with so many instances more (fewer, if negative) by GPU; for operators."""
        return await self._call(calls.what_if(changes))

    async def _call(self, call: Call[Answer]) -> Answer:
        method = self._channel.unary_unary(
            call.path,
            request_serializer=type(call.request).SerializeToString,
            response_deserializer=call.reply.FromString,
        )
        try:
            reply = await method(call.request, metadata=self._metadata, timeout=self._timeout_s)
        except grpc.RpcError as error:
            raise calls.readable(error, self._address) from None
        return call.read(reply)

    async def _stream(self, call: Call[Answer]) -> AsyncIterator[Answer]:
        method = self._channel.unary_stream(
            call.path,
            request_serializer=type(call.request).SerializeToString,
            response_deserializer=call.reply.FromString,
        )
        replies = method(call.request, metadata=self._metadata)
        try:
            async for reply in replies:
                yield call.read(reply)
        except grpc.RpcError as error:
            raise calls.readable(error, self._address) from None
        finally:
            # Of who leaves before the end; the request goes on.
            replies.cancel()
