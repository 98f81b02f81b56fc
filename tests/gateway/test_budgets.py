"""Budgets in bytes: waiting bodies, uploads under way, and output that clients do not read."""

import asyncio
import contextlib
import json
from typing import Any

import grpc
import pytest

from gateway import live, uploads
from gateway.budget import Budget
from gateway.live import Backlog, Follower, Output
from protos.qlm.v1 import client_service_pb2 as pb
from protos.qlm.v1 import client_service_pb2_grpc as pb_grpc
from qlm_core import messages as m
from qlm_core.errors import ConfigError
from qlm_core.model import Phase, RequestId
from qlm_core.outcome import ShedReason
from tests.gateway.peers import Fleet, config, ended, fleet, running, soon
from tests.gateway.test_connections import HEAD, dialled, whole
from tests.gateway.test_grpc import Client, new
from tests.gateway.test_http import CHAT, get, post

SMALL = {
    "body_bytes_max": 20_000,
    "waiting_bytes_max": 40_000,
    "uploading_bytes_max": 200_000,
}


def large(size: int) -> dict[str, Any]:
    return CHAT | {"messages": [{"role": "user", "content": "x" * size}], "model": "other"}


# --------------------------------------------------------------------------- waiting bodies


async def test_waiting_bodies_have_a_budget() -> None:
    async with fleet(limits=SMALL) as it:
        it.agent.on_payload = lambda payload: None
        url = f"{it.url}/v1/chat/completions"
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(2):
                await stack.enter_async_context(dialled(it, whole(large(15_000))))
            await soon(lambda: len(it.agent.payloads) == 2)
            status, said, headers = await post(url, large(15_000))
            assert (status, said["error"]["code"]) == (429, "queue_full")
            assert "waiting_bytes_max" in said["error"]["message"]
            assert int(headers["retry-after"]) >= 1
            # What is small fits beside them, and over gRPC the same holds.
            async with Client(it.addresses.grpc) as api:
                body = json.dumps(large(15_000)).encode()
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await api.Enqueue(pb.EnqueueRequest(request=new(body_json=body)))
                assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                assert dict(refused.value.trailing_metadata() or ())["retry-after-s"]
            await stack.enter_async_context(dialled(it, whole()))
            await soon(lambda: len(it.agent.payloads) == 3)
        # Their clients have left, so that there is room again.
        await soon(lambda: len(ended(it.solver)) == 3)
        it.agent.answer("x")
        assert (await post(url, large(15_000)))[0] == 200


async def test_bytes_are_free_again_whatever_becomes_of_their_requests() -> None:
    async with fleet(limits=SMALL) as it:
        it.agent.answer("x")
        url = f"{it.url}/v1/chat/completions"
        bodies = it.gateway.driver._admission.bodies
        for number in range(3):
            # The third is the second once more.
            key = {"idempotency-key": str(min(1, number))}
            assert (await post(url, large(15_000), key))[0] == 200
        it.agent.on_payload = lambda payload: it.agent.send(
            m.AttemptEnded(payload.id, payload.attempt, "error", error="no", error_status=400)
        )
        assert (await post(url, large(15_000)))[0] == 400
        await soon(lambda: bodies.used == 0)


def test_a_budget_holds_at_least_one_body() -> None:
    for key in ("waiting_bytes_max", "uploading_bytes_max"):
        with pytest.raises(ConfigError, match=rf"gateway\.limits\.{key}: 1000 is less"):
            config(limits={key: 1000})


# --------------------------------------------------------------------------- uploads under way


def announced(size: int) -> bytes:
    return HEAD + b"content-length: %d\r\n\r\n" % size


async def uploads_begun(it: Fleet, stack: contextlib.AsyncExitStack, count: int) -> list[Any]:
    """Bodies of 20,000 bytes of which half has come."""
    return [
        await stack.enter_async_context(dialled(it, announced(20_000) + b" " * 10_000))
        for _ in range(count)
    ]


async def test_uploads_that_do_not_end_have_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    async with fleet(limits=SMALL) as it, contextlib.AsyncExitStack() as stack:
        it.agent.answer("x")
        # Twice as many as there is room for: the others are told to come back.
        begun = await uploads_begun(it, stack, 40)
        told = [one for one in begun[20:] if (await one.answer())[0] == 429]
        assert len(told) == 20
        status, headers, body = 0, {}, b""
        async with dialled(it, announced(20_000) + b" " * 10_000) as peer:
            status, headers, body = await peer.answer()
        assert (status, json.loads(body)["error"]["code"]) == (429, "queue_full")
        assert 1 <= int(headers["retry-after"]) <= uploads.PATIENCE_S
        # A body that comes in one piece is no upload, and keeps nobody's room.
        assert (await post(f"{it.url}/v1/chat/completions", CHAT))[0] == 200
        # After that time the first of them give way to who comes back.
        monkeypatch.setattr(uploads, "PATIENCE_S", 0.0)
        data = json.dumps(large(15_000)).encode()
        async with dialled(it, announced(len(data)) + data[:10_000]) as peer:
            status, _, body = await begun[0].answer()
            assert (status, json.loads(body)["error"]["code"]) == (408, "body_too_slow")
            peer.writer.write(data[10_000:])
            assert (await peer.answer())[0] == 200


async def test_a_finished_upload_is_none() -> None:
    async with fleet(limits=SMALL) as it:
        it.agent.answer("x")
        for _ in range(30):
            data = json.dumps(large(15_000)).encode()
            async with dialled(it, announced(len(data)) + data[:10_000]) as peer:
                await asyncio.sleep(0.01)
                peer.writer.write(data[10_000:])
                assert (await peer.answer())[0] == 200


# --------------------------------------------------------------------------- output that is not read


def merged(outputs: list[Output]) -> Output:
    return Output(b"".join(one.data for one in outputs), sum(one.tokens for one in outputs))


@pytest.fixture
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has taken nothing since something came lags at once."""
    monkeypatch.setattr(live, "LAG_S", 0.0)


@pytest.mark.usefixtures("no_patience")
async def test_a_backlog_is_bounded_in_bytes() -> None:
    unread = Budget(10_000)
    follower = Follower(merged, Backlog(1000, 1000, unread))
    for _ in range(10):
        follower.put(Output(b"x" * 100, 1))
    assert (unread.used, follower.overrun) == (1000, False)
    follower.put(Output(b"x", 1))
    assert (unread.used, follower.overrun) == (0, True)
    assert await follower.take() == []


async def test_what_was_there_before_is_no_backlog() -> None:
    unread = Budget(10_000)
    follower = Follower(merged, Backlog(1000, 100, unread), Output(b"x" * 500, 0))
    follower.put(Output(b"y" * 100, 1))
    assert len(await follower.take()) == 2
    assert (unread.used, follower.overrun) == (0, False)


async def test_who_took_something_lately_does_not_lag() -> None:
    follower = Follower(merged, Backlog(1000, 100, Budget(10_000)))
    for _ in range(10):
        follower.put(Output(b"y" * 100, 1))
    assert len(await follower.take()) == 10


@pytest.mark.usefixtures("no_patience")
async def test_one_that_lags_is_left_where_all_have_too_much() -> None:
    unread = Budget(100_000)
    unread.take(100_000)
    quick, slow = (Follower(merged, Backlog(1000, 1_000_000, unread)) for _ in range(2))
    quick.put(Output(b"x" * 1000, 1))
    slow.put(Output(b"x" * 100_000, 1))
    assert (quick.overrun, slow.overrun) == (False, True)
    assert unread.used == 101_000
    quick.drop()
    assert unread.used == 100_000


async def stream_unread(it: Fleet, peer_headers: bytes = b"") -> tuple[bytes, str]:
    """Stream far more than sockets hold to a client that begins to read once it was left."""
    it.agent.on_payload = lambda payload: None
    data = json.dumps(CHAT | {"stream": True}).encode()
    sent = HEAD + peer_headers + b"content-length: %d\r\n\r\n" % len(data) + data
    async with dialled(it, sent) as peer:
        payload = await it.agent.payload()
        request = it.gateway.driver.live(payload.id)
        assert request is not None
        await soon(lambda: request._followers)
        (follower,) = request._followers
        while not follower.overrun:
            it.agent.say(payload, "x" * 100_000)
            await asyncio.sleep(0.001)
        read = b""
        while b"read_too_slowly" not in read:
            read += await peer.reader.read(1_000_000)
        return read, payload.id


@pytest.mark.usefixtures("no_patience")
async def test_a_slow_reader_is_left_and_its_request_cancelled() -> None:
    async with fleet(limits={"stream_backlog_bytes_max": 1_000_000}) as it:
        read, _ = await stream_unread(it)
        await soon(lambda: ended(it.solver) == [Phase.CANCELLED])
        event = read.split(b"data: ")[-2]
        assert json.loads(event)["error"]["code"] == "read_too_slowly"


@pytest.mark.usefixtures("no_patience")
async def test_a_slow_reader_of_a_durable_request_can_fetch_it() -> None:
    async with fleet(limits={"stream_backlog_bytes_max": 1_000_000}) as it:
        read, id = await stream_unread(it, b"x-qlm-durable: true\r\n")
        assert f"/v1/requests/{id}".encode() in read
        it.agent.say(it.agent.payloads[0], "end", finish="stop")
        await soon(lambda: it.gateway.driver.ledger.row(RequestId(id)) is None)
        status, text = await get(f"{it.url}/v1/requests/{id}")
        said = json.loads(text)
        assert (status, said["phase"]) == (200, "finished")
        text = said["response"]["choices"][0]["message"]["content"]
        assert text.endswith("xend")
        assert len(text) % 100_000 == 3


async def test_output_leaves_over_grpc_in_parts() -> None:
    async with fleet() as it, Client(it.addresses.grpc) as api:
        it.agent.on_payload = lambda payload: None
        call = api.Submit(pb.SubmitRequest(request=new()))
        payload = await it.agent.payload()
        # Together more than a client takes in one message.
        it.agent.say(payload, *["x" * 500_000] * 20, finish="stop")
        texts = []
        async for answer in call:
            if answer.event.HasField("chunk"):
                texts.append(json.loads(answer.event.chunk.chunk_json)["choices"][0])
        text = "".join(one.get("text") or one["delta"].get("content", "") for one in texts)
        assert len(text) == 10_000_000


async def enqueue_all(api: "pb_grpc.ClientServiceAsyncStub", slo_class: str) -> None:
    """Enqueue until that is refused."""
    while True:
        await api.Enqueue(pb.EnqueueRequest(request=new(slo_class=slo_class)))


async def test_the_last_of_a_limit_is_for_stricter_classes() -> None:
    async with (
        running(config(limits={"open_requests_max": 40})) as (gateway, at),
        Client(at.grpc) as api,
    ):
        counts: list[int] = []
        for slo_class in ("batch-2", "batch-1", "interactive"):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await enqueue_all(api, slo_class)
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            counts.append(len(gateway.driver.ledger))
        assert counts == [36, 38, 40]


# --------------------------------------------------------------------------- what would be late


def shedding(it: Fleet, retry_after_s: float) -> None:
    """Have the solver shed whatever arrives."""

    def shed(id: RequestId) -> None:
        it.solver.orders.put(m.EstimateGiven(id, it.solver.estimate))
        it.solver.orders.put(m.ShedOrder(id, ShedReason.LATE, retry_after_s))

    it.solver.on_arrival = shed


@pytest.mark.parametrize("headers", [{}, {"x-qlm-durable": "true"}, {"idempotency-key": "k"}])
@pytest.mark.parametrize("stream", [False, True])
async def test_what_would_be_late_is_refused_before_any_status(
    stream: bool, headers: dict[str, str]
) -> None:
    async with fleet() as it:
        shedding(it, 7.5)
        url, body = f"{it.url}/v1/chat/completions", CHAT | {"stream": stream}
        status, said, told = await post(url, body, headers)
        assert (status, said["error"]["code"]) == (429, "rejected-late")
        assert told["retry-after"] == "8"
        assert told["x-llm-d-request-dropped-reason"] == "rejected-late"
        await soon(lambda: ended(it.solver) == [Phase.SHED])
        # A little later the place is still its own: others stand behind it, without the solver being asked.
        status, said, told = await post(url, large(10))
        assert (status, said["error"]["code"]) == (429, "rejected-late")
        assert int(told["retry-after"]) >= 8
        metrics = (await get(f"{it.url}/metrics"))[1]
        assert 'qlm_requests_shed_total{reason="rejected-late",slo_class="interactive"}' in metrics


async def test_who_comes_back_goes_before_newcomers() -> None:
    async with fleet() as it:
        shedding(it, 1.0)
        url = f"{it.url}/v1/chat/completions"
        assert (await post(url, CHAT))[2]["retry-after"] == "1"
        await asyncio.sleep(1.0)
        it.solver.on_arrival = it.agent.pull
        it.agent.answer("x")
        assert (await post(url, large(10)))[0] == 429
        assert (await post(url, CHAT))[0] == 200
        # Nobody is due any more.
        assert (await post(url, large(11)))[0] == 200


async def test_over_grpc_late_ones_are_refused_as_well() -> None:
    async with fleet() as it, Client(it.addresses.grpc) as api:
        shedding(it, 7.5)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await api.Enqueue(pb.EnqueueRequest(request=new()))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert dict(refused.value.trailing_metadata() or ())["retry-after-s"] == "8"
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            async for _ in api.Submit(pb.SubmitRequest(request=new(slo_class="batch-1"))):
                pass
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
