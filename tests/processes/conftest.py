"""Fleets of real processes on loopback, and clients that check every token they get."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import grpc
import msgspec
import pytest

from agents.engines.sim import token_text
from protos.qlm.v1 import client_service_pb2 as pb
from protos.qlm.v1 import client_service_pb2_grpc as rpc
from protos.qlm.v1 import types_pb2
from protos.qlm.v1 import types_pb2 as types

MODEL = "mistral-7b"
PATIENCE_S = 60.0


@pytest.fixture(scope="session", autouse=True)
def heard_signals() -> None:
    """A shell lets what it starts in the background ignore Ctrl-C, and the processes under test would inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/processes" in item.path.as_posix():
            item.add_marker(pytest.mark.processes)


def body(output_tokens: int, *, prompt: str = "A question to the fleet. " * 8) -> bytes:
    return msgspec.json.encode(
        {"prompt": prompt, "max_tokens": 2048, "qlm_sim": {"output_tokens": output_tokens}}
    )


def new_request(number: int, output_tokens: int, slo_class: str = "interactive") -> pb.NewRequest:
    return pb.NewRequest(
        model=MODEL,
        body_json=body(output_tokens),
        endpoint=types_pb2.ENDPOINT_COMPLETIONS,
        slo_class=slo_class,
        idempotency_key=f"request-{number}",
    )


@dataclass
class Answer:
    """What a client got of one request: the text so far and, at last, how it ended."""

    id: str = ""
    text: str = ""
    chunks: int = 0
    streams: int = 0
    ended: pb.Ended | None = None
    breaks: list[str] = field(default_factory=list)

    def expected(self) -> str:
        """The whole text that the sim engine makes of this request."""
        assert self.ended is not None
        tokens = self.ended.usage.output_tokens
        return "".join(token_text(self.id, index) for index in range(tokens))


@dataclass
class Client:
    """A patient client: whatever happens to a stream, it asks again until the request has ended."""

    stub: rpc.ClientServiceStub
    answers: list[Answer] = field(default_factory=list)
    _moved: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def chunks(self) -> int:
        return sum(answer.chunks for answer in self.answers)

    async def run(self, requests: list[pb.NewRequest]) -> None:
        self.answers = [Answer() for _ in requests]
        pairs = zip(requests, self.answers, strict=True)
        await asyncio.gather(*(self._follow(request, answer) for request, answer in pairs))

    async def until_chunks(self, count: int) -> None:
        await self.until(lambda: self.chunks >= count)

    async def until(self, reached: Callable[[], bool]) -> None:
        """Wait until events have brought this about."""
        async with asyncio.timeout(PATIENCE_S):
            while not reached():
                self._moved.clear()
                await self._moved.wait()

    async def get(self, id: str) -> pb.GetRequestResponse:
        return await self.stub.GetRequest(pb.GetRequestRequest(id=id))

    async def _follow(self, request: pb.NewRequest, answer: Answer) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while answer.ended is None:
                try:
                    await self._stream(request, answer)
                except grpc.aio.AioRpcError as error:
                    if error.code() is grpc.StatusCode.NOT_FOUND:
                        raise
                    answer.breaks.append(error.code().name)
                    await asyncio.sleep(0.2)

    async def _stream(self, request: pb.NewRequest, answer: Answer) -> None:
        """One stream, from the beginning of the output; it must agree with the one before."""
        known, text = answer.text, ""
        answer.streams += 1
        if answer.id:
            replies = self.stub.WatchRequest(pb.WatchRequestRequest(id=answer.id))
        else:
            replies = self.stub.Submit(pb.SubmitRequest(request=request))
        async for reply in replies:
            event = reply.event
            self._moved.set()
            kind = event.WhichOneof("kind")
            if kind == "accepted":
                answer.id = event.accepted.id
            elif kind == "chunk":
                answer.chunks += 1
                for choice in msgspec.json.decode(event.chunk.chunk_json)["choices"]:
                    text += choice["text"]
                assert text.startswith(known) or known.startswith(text)
                answer.text = text if len(text) > len(known) else known
            elif kind == "ended":
                assert text.startswith(known)
                answer.ended = event.ended
                return


@pytest.fixture
async def connect() -> AsyncIterator[object]:
    """Make a client of the gateway at an address; closed after the test."""
    channels = []

    def client(address: str) -> Client:
        channel = grpc.aio.insecure_channel(
            address, options=[("grpc.max_reconnect_backoff_ms", 500)]
        )
        channels.append(channel)
        return Client(rpc.ClientServiceStub(channel))

    yield client
    for channel in channels:
        await channel.close(None)


def assert_whole(answer: Answer) -> None:
    """It finished, and the client has each token once, in order."""
    assert answer.ended is not None
    assert answer.ended.phase == types.PHASE_FINISHED, answer.ended.reason
    assert answer.text == answer.expected()
