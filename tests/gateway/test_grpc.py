"""The gRPC front door: durable requests, streams, and the statuses of errors."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gateway.grpc_client import STATUS_OF, status_of
from protos.qlm.v1 import client_service_pb2 as pb
from protos.qlm.v1 import client_service_pb2_grpc as pb_grpc
from protos.qlm.v1 import types_pb2
from qlm_core import errors
from qlm_core import messages as m
from tests.gateway.peers import config, fleet, running, soon

CHAT = json.dumps({"messages": [{"role": "user", "content": "Say hello."}], "top_k": 3}).encode()


def new(**fields: Any) -> pb.NewRequest:
    values = {"model": "tiny", "body_json": CHAT, "endpoint": types_pb2.ENDPOINT_CHAT_COMPLETIONS}
    return pb.NewRequest(**(values | fields))


class Client:
    def __init__(self, address: str) -> None:
        self.channel = grpc.aio.insecure_channel(address)
        self.stub: pb_grpc.ClientServiceAsyncStub = pb_grpc.ClientServiceStub(self.channel)

    async def __aenter__(self) -> pb_grpc.ClientServiceAsyncStub:
        return self.stub

    async def __aexit__(self, *_: object) -> None:
        await self.channel.close(None)


def text_of(events: list[pb.RequestEvent]) -> str:
    parts = []
    for event in events:
        if event.HasField("chunk"):
            for choice in json.loads(event.chunk.chunk_json)["choices"]:
                parts.append(choice["delta"].get("content") or "")
    return "".join(parts)


async def collect(replies: AsyncIterator[Any]) -> list[pb.RequestEvent]:
    return [reply.event async for reply in replies]


async def test_a_submitted_request_streams_to_its_end() -> None:
    async with fleet() as it, Client(it.addresses.grpc) as stub:
        it.solver.estimates = True
        it.agent.answer("Hel", "lo")
        events = await collect(stub.Submit(pb.SubmitRequest(request=new(slo_class="batch-1"))))
        accepted, ended = events[0].accepted, events[-1].ended
        assert (accepted.slo_class, accepted.estimate.p99_s) == ("batch-1", 3.0)
        assert text_of(events) == "Hello"
        assert sum(event.chunk.tokens for event in events) == 2
        assert (ended.phase, ended.reason, ended.attained) == (
            types_pb2.PHASE_FINISHED,
            "stop",
            True,
        )
        assert (ended.usage.prompt_tokens, ended.usage.output_tokens) == (7, 2)
        assert ended.ttft_s <= ended.e2e_s
        assert ended.estimate.mean_s == 1.5
        again = await collect(stub.WatchRequest(pb.WatchRequestRequest(id=accepted.id)))
        assert (text_of(again), again[-1].ended) == ("Hello", ended)
        got = await stub.GetRequest(pb.GetRequestRequest(id=accepted.id))
        answer = json.loads(got.response_json)
        assert (answer["id"], answer["choices"][0]["message"]["content"]) == (accepted.id, "Hello")
        assert got.ended == ended


async def test_an_enqueued_request_is_fetched_later() -> None:
    async with fleet() as it, Client(it.addresses.grpc) as stub:
        slo = types_pb2.Slo(ttft_s=3.0, e2e_s=9.0)
        reply = await stub.Enqueue(pb.EnqueueRequest(request=new(slo=slo, tenant="t")))
        id = reply.accepted.id
        assert reply.accepted.slo_class == "explicit-2s"
        payload = await it.agent.payload()
        got = await stub.GetRequest(pb.GetRequestRequest(id=id))
        assert (got.request.phase, got.request.agent) == (types_pb2.PHASE_PULLED, "agent-0")
        assert json.loads(payload.body)["top_k"] == 3
        it.agent.say(payload, "x", finish="stop")
        events = await collect(stub.WatchRequest(pb.WatchRequestRequest(id=id)))
        assert text_of(events) == "x"


async def test_a_repeated_key_attaches_to_the_first_submission() -> None:
    async with fleet() as it, Client(it.addresses.grpc) as stub:
        request = pb.SubmitRequest(request=new(idempotency_key="k"))
        both = asyncio.gather(collect(stub.Submit(request)), collect(stub.Submit(request)))
        payload = await it.agent.payload()
        it.agent.say(payload, "one", finish="stop")
        first, second = await both
        assert first[0].accepted.id == second[0].accepted.id
        assert text_of(first) == text_of(second) == "one"
        third = await collect(stub.Submit(request))
        assert (text_of(third), third[-1].ended) == ("one", first[-1].ended)
        assert len(it.agent.payloads) == 1


async def test_closing_the_stream_does_not_cancel() -> None:
    async with fleet() as it, Client(it.addresses.grpc) as stub:
        call = stub.Submit(pb.SubmitRequest(request=new()))
        accepted = (await call.read()).event.accepted
        call.cancel()
        payload = await it.agent.payload()
        it.agent.say(payload, "still here", finish="stop")
        events = await collect(stub.WatchRequest(pb.WatchRequestRequest(id=accepted.id)))
        assert text_of(events) == "still here"


async def test_cancelling_ends_every_watch() -> None:
    async with fleet() as it, Client(it.addresses.grpc) as stub:
        watch = asyncio.create_task(collect(stub.Submit(pb.SubmitRequest(request=new()))))
        payload = await it.agent.payload()
        it.agent.say(payload, "some")
        await soon(lambda: it.solver.heard(m.FirstToken))
        cancel = pb.CancelRequestRequest(id=payload.id)
        assert (await stub.CancelRequest(cancel)).phase == types_pb2.PHASE_CANCELLED
        assert (await watch)[-1].ended.phase == types_pb2.PHASE_CANCELLED
        assert (await stub.CancelRequest(cancel)).phase == types_pb2.PHASE_CANCELLED
        await soon(lambda: m.Revoked(payload.id, payload.attempt) in it.agent.orders)


async def test_lists_come_in_pages_newest_first() -> None:
    async with running(config()) as (_, at), Client(at.grpc) as stub:
        ids = []
        for _ in range(5):
            reply = await stub.Enqueue(pb.EnqueueRequest(request=new()))
            ids.append(reply.accepted.id)
        found: list[str] = []
        token = ""
        pages = 0
        while True:
            page = await stub.ListRequests(pb.ListRequestsRequest(page_size=2, page_token=token))
            found += [view.id for view in page.requests]
            pages += 1
            token = page.next_page_token
            if not token:
                break
        assert (found, pages) == (ids[::-1], 3)


@pytest.mark.parametrize("token", ["x", "-1", "²", "9" * 5000])
async def test_a_page_that_was_never_given_is_refused(token: str) -> None:
    async with running(config()) as (_, at), Client(at.grpc) as stub:
        with pytest.raises(grpc.aio.AioRpcError, match="page_token: not one of ours") as refused:
            await stub.ListRequests(pb.ListRequestsRequest(page_token=token))
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_bytes_that_are_no_message_are_refused_without_a_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with (
        running(config()) as (_, at),
        grpc.aio.insecure_channel(at.grpc) as client,
        grpc.aio.insecure_channel(at.agents) as agent,
    ):
        for method in ("GetRequest", "Submit"):
            call = client.unary_stream(f"/qlm.v1.ClientService/{method}")(b"\xff")
            assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
        work = agent.stream_stream("/qlm.v1.WorkService/Work")()
        await work.write(b"\xff")
        assert await work.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert [record for record in caplog.records if record.name.startswith("grpc")] == []


async def test_questions_go_to_the_solver() -> None:
    async with fleet() as it, Client(it.addresses.grpc) as stub:
        question = pb.EstimateWaitRequest(model="tiny", slo=types_pb2.Slo(ttft_s=1.5))
        estimate = await stub.EstimateWait(question)
        assert (estimate.estimate.p90_s, estimate.feasible) == (2.0, False)
        assert (await stub.EstimateWait(pb.EstimateWaitRequest(model="tiny"))).feasible
        await stub.EstimateWait(pb.EstimateWaitRequest(model="tiny", max_output_tokens=7))
        assert [one.request.max_output_tokens for one in it.solver.asked] == [1000, 1000, 7]
        assert (await stub.ViewQueues(pb.ViewQueuesRequest())).view_json == b'{"queues": []}'
        asked = pb.AskWhatIfRequest(changes={"a100": 2, "a10": -1})
        told = json.loads((await stub.AskWhatIf(asked)).answer_json)
        assert told == {"changes": {"a100": 2, "a10": -1}}
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.AskWhatIf(pb.AskWhatIfRequest(changes={"nope": 1}))
        assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert raised.value.details() == "changes: no such GPU. Use a100."


@pytest.mark.parametrize(
    ("request_", "code", "words"),
    [
        (new(model="nope"), grpc.StatusCode.NOT_FOUND, "Use one of: tiny, other"),
        (new(model=""), grpc.StatusCode.INVALID_ARGUMENT, "request.model"),
        (new(body_json=b"{"), grpc.StatusCode.INVALID_ARGUMENT, "body: not valid JSON"),
        (new(body_json=b"{}"), grpc.StatusCode.INVALID_ARGUMENT, "messages: missing"),
        (
            new(body_json=b'{"messages": {}}'),
            grpc.StatusCode.INVALID_ARGUMENT,
            "messages: must be a list",
        ),
        (
            new(
                body_json=b'{"prompt": [%b1]}' % (b"1," * 1000),
                endpoint=types_pb2.ENDPOINT_COMPLETIONS,
            ),
            grpc.StatusCode.INVALID_ARGUMENT,
            "This model's maximum context length is 1000 tokens. However, your prompt has 1001 tokens",
        ),
        (
            new(
                body_json=b'{"prompt": "' + b"x" * 9000 + b'"}',
                endpoint=types_pb2.ENDPOINT_COMPLETIONS,
            ),
            grpc.StatusCode.INVALID_ARGUMENT,
            "body: it has 9014 bytes, at most 8000 are accepted",
        ),
        (
            new(slo=types_pb2.Slo(ttft_s=float("inf"))),
            grpc.StatusCode.INVALID_ARGUMENT,
            "slo.ttft_s",
        ),
        (
            new(slo=types_pb2.Slo(ttft_s=1, e2e_s=1e12)),
            grpc.StatusCode.INVALID_ARGUMENT,
            "slo.e2e_s: must be at least 0.001 and at most",
        ),
        (new(tenant="t" * 300), grpc.StatusCode.INVALID_ARGUMENT, "tenant"),
        (new(endpoint=0), grpc.StatusCode.INVALID_ARGUMENT, "request.endpoint"),
        (new(slo_class="gold"), grpc.StatusCode.INVALID_ARGUMENT, "slo_class"),
        (new(slo=types_pb2.Slo(ttft_s=-1)), grpc.StatusCode.INVALID_ARGUMENT, "slo.ttft_s"),
        (new(slo=types_pb2.Slo()), grpc.StatusCode.INVALID_ARGUMENT, "slo.ttft_s"),
        (
            new(slo=types_pb2.Slo(ttft_s=1), slo_class="batch-1"),
            grpc.StatusCode.INVALID_ARGUMENT,
            "one of the two",
        ),
        (new(idempotency_key="k" * 300), grpc.StatusCode.INVALID_ARGUMENT, "idempotency_key"),
    ],
)
async def test_bad_requests_name_the_field(
    request_: pb.NewRequest, code: grpc.StatusCode, words: str
) -> None:
    async with (
        running(config(limits={"body_bytes_max": 8000})) as (gateway, at),
        Client(at.grpc) as stub,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as unary:
            await stub.Enqueue(pb.EnqueueRequest(request=request_))
        with pytest.raises(grpc.aio.AioRpcError) as stream:
            await collect(stub.Submit(pb.SubmitRequest(request=request_)))
        for raised in (unary.value, stream.value):
            assert raised.code() is code
            assert words in (raised.details() or "")
        assert len(gateway.driver.ledger) == 0


@pytest.mark.parametrize(
    ("question", "code", "words"),
    [
        ({"model": "nope"}, grpc.StatusCode.NOT_FOUND, "Use one of: tiny, other"),
        ({"slo_class": "gold"}, grpc.StatusCode.INVALID_ARGUMENT, "slo_class: 'gold'"),
        ({"slo": types_pb2.Slo(ttft_s=-1)}, grpc.StatusCode.INVALID_ARGUMENT, "slo.ttft_s"),
    ],
)
async def test_bad_questions_name_the_field(
    question: dict[str, Any], code: grpc.StatusCode, words: str
) -> None:
    async with fleet() as it, Client(it.addresses.grpc) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.EstimateWait(pb.EstimateWaitRequest(**({"model": "tiny"} | question)))
        assert raised.value.code() is code
        assert words in (raised.value.details() or "")


async def test_unknown_ids_are_not_found() -> None:
    async with running(config()) as (_, at), Client(at.grpc) as stub:
        for call in (
            stub.GetRequest(pb.GetRequestRequest(id="x")),
            stub.CancelRequest(pb.CancelRequestRequest(id="x")),
            stub.ExplainRequest(pb.ExplainRequestRequest(id="x")),
            collect(stub.WatchRequest(pb.WatchRequestRequest(id="x"))),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await call
            assert raised.value.code() is grpc.StatusCode.NOT_FOUND


async def test_without_a_solver_requests_wait_and_questions_fail() -> None:
    async with running(config()) as (gateway, at), Client(at.grpc) as stub:
        reply = await stub.Enqueue(pb.EnqueueRequest(request=new()))
        assert not reply.accepted.HasField("estimate")
        assert len(gateway.driver.ledger) == 1
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.EstimateWait(pb.EstimateWaitRequest(model="tiny"))
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_full_queue_says_when_to_come_back() -> None:
    async with running(config(limits={"open_requests_max": 1})) as (_, at):
        async with Client(at.grpc) as stub:
            await stub.Enqueue(pb.EnqueueRequest(request=new()))
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await stub.Enqueue(pb.EnqueueRequest(request=new()))
        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert int(raised.value.trailing_metadata()["retry-after-s"]) >= 1


async def test_keys_are_asked_for_where_configured() -> None:
    async with running(config(api_keys=["secret"])) as (_, at), Client(at.grpc) as stub:
        request = pb.GetRequestRequest(id="x")
        for metadata, code in (
            ((), grpc.StatusCode.UNAUTHENTICATED),
            ((("authorization", "Bearer wrong"),), grpc.StatusCode.UNAUTHENTICATED),
            ((("authorization", "Bearer secret"),), grpc.StatusCode.NOT_FOUND),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await stub.GetRequest(request, metadata=metadata)
            assert raised.value.code() is code


async def test_health_is_served() -> None:
    async with running(config()) as (_, at), grpc.aio.insecure_channel(at.grpc) as channel:
        for service in ("", "qlm.v1.ClientService", "qlm.v1.WorkService"):
            reply = await health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service=service)
            )
            assert reply.status == health_pb2.HealthCheckResponse.SERVING


def test_every_error_of_ours_has_a_status() -> None:
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.QlmError)
    ]
    for kind in kinds:
        error = kind.__new__(kind)
        assert status_of(error) in [code for _, code in STATUS_OF]
    listed = [kind for kind, _ in STATUS_OF]
    for index, kind in enumerate(listed):
        assert not any(issubclass(kind, earlier) for earlier in listed[:index])
