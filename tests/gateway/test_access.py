"""The access log: what it says of calls over HTTP and gRPC, and what it never says."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import grpc
import msgspec
import pytest

from protos.qlm.v1 import client_service_pb2 as pb
from qlm_core import messages as m
from qlm_core.config import LogConfig
from tests.gateway.peers import Agent, Fleet, Solver, config, running, solving, soon
from tests.gateway.test_grpc import Client, new
from tests.gateway.test_http import CHAT, get, post


@contextlib.asynccontextmanager
async def logged(*, access: bool = True, **gateway: Any) -> AsyncIterator[Fleet]:
    """A fleet that logs its calls."""
    solver = Solver()
    async with solving(solver) as address:
        made = config(solver=address, **gateway)
        made = msgspec.structs.replace(made, log=LogConfig(access=access))
        async with running(made) as (it, at), Agent(at.agents) as agent:
            solver.on_arrival = agent.pull
            await soon(lambda: solver.heard(m.AnnounceDone))
            yield Fleet(it, at, solver, agent)


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [
        {"event": record.getMessage(), "level": record.levelname} | vars(record)
        for record in caplog.records
        if record.name == "qlm.access"
    ]


@pytest.fixture(autouse=True)
def everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "qlm.access")


async def test_a_request_is_one_line_with_its_waits_and_tokens(
    caplog: pytest.LogCaptureFixture,
) -> None:
    secret = "a-prompt-that-nobody-may-read"
    body = CHAT | {"messages": [{"role": "user", "content": secret}]}
    async with logged(api_keys=["the-key"]) as it:
        it.solver.estimates = True
        it.agent.answer("x", "y")
        headers = {"authorization": "Bearer the-key", "x-qlm-slo-class": "batch-1"}
        for path in ("/v1/chat/completions", "//v1/chat/completions/"):
            status, _, _ = await post(f"{it.url}{path}", body, headers)
            assert status == 200
        await soon(lambda: len(lines(caplog)) == 2)
    for line in lines(caplog):
        said = (line["event"], line["method"], line["route"], line["status"])
        assert said == ("http request", "POST", "/v1/chat/completions", 200)
        assert (line["model"], line["slo_class"], line["outcome"]) == (
            "tiny",
            "batch-1",
            "finished",
        )
        assert (line["output_tokens"], line["estimated_s"]) == (2, 1.5)
        assert 0 <= line["waited_s"] <= line["ttft_s"] <= line["e2e_s"]
        assert line["took_s"] > 0
        assert line["request"].startswith("chatcmpl-")
        assert secret not in str(line)
        assert "the-key" not in str(line)


async def test_what_is_no_request_to_a_model_is_told_too(caplog: pytest.LogCaptureFixture) -> None:
    async with logged() as it:
        for path in ("/v1/requests/chatcmpl-1", "/nowhere/secret-path", "/health", "/v1/models"):
            await get(f"{it.url}{path}")
        await soon(lambda: len(lines(caplog)) == 4)
    told = [(one["route"], one["status"], one["level"]) for one in lines(caplog)]
    assert told == [
        ("/v1/requests/{id}", 404, "INFO"),
        ("-", 404, "INFO"),
        ("/health", 200, "DEBUG"),
        ("/v1/models", 200, "INFO"),
    ]


async def test_a_client_that_hangs_up_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    async with logged() as it:
        asked = asyncio.create_task(post(f"{it.url}/v1/chat/completions", CHAT))
        await it.agent.payload()
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        await soon(lambda: lines(caplog))
    (line,) = lines(caplog)
    assert (line["status"], line["model"], line["outcome"]) == (499, "tiny", "cancelled")


async def test_calls_over_grpc_are_told_with_their_status(caplog: pytest.LogCaptureFixture) -> None:
    async with logged(api_keys=["k"]) as it:
        it.agent.answer("x")
        known = (("authorization", "Bearer k"),)
        async with Client(it.addresses.grpc) as stub:
            asked = pb.SubmitRequest(request=new())
            events = [one async for one in stub.Submit(asked, metadata=known)]
            unknown = pb.GetRequestRequest(id="nothing")
            for metadata in (known, ()):
                with pytest.raises(grpc.aio.AioRpcError):
                    await stub.GetRequest(unknown, metadata=metadata)
        await soon(lambda: len(lines(caplog)) == 3)
    assert events
    submitted, *refused = lines(caplog)
    said = (submitted["event"], submitted["method"], submitted["status"], submitted["outcome"])
    assert said == ("grpc call", "Submit", "OK", "finished")
    assert submitted["output_tokens"] == 1
    assert [(one["method"], one["status"]) for one in refused] == [
        ("GetRequest", "NOT_FOUND"),
        ("GetRequest", "UNAUTHENTICATED"),
    ]


async def test_it_is_off_unless_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    async with logged(access=False) as it, aiohttp.ClientSession() as session:
        it.agent.answer("x")
        async with session.post(f"{it.url}/v1/chat/completions", json=CHAT) as answer:
            assert answer.status == 200
    assert lines(caplog) == []
