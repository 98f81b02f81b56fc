"""A gateway and its store over time: what expired while it was down, odd rows, stepped clocks, and a store that fails."""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
import uvloop
from msgspec.structs import replace

from gateway import keeping
from gateway.keys import Caller
from gateway.store import Seen, SqliteStore, StoreClock
from gateway.store.clock import DOWN_S_MAX
from protos.qlm.v1 import client_service_pb2 as pb
from protos.qlm.v1 import types_pb2
from qlm_core.config import Config
from qlm_core.model import ModelName, Phase, RequestId
from qlm_core.outcome import ShedReason
from tests.gateway import test_store as stored
from tests.gateway.peers import Agent, config, fleet, running, soon
from tests.gateway.test_grpc import Client, collect, new, text_of
from tests.gateway.test_http import CHAT, get, post
from tests.gateway.test_store_faults import change, locked, opened
from tests.gateway.test_twice import view_of

BODY = json.dumps({"messages": [{"role": "user", "content": "Say hello."}]}).encode()
DAY_S = 86_400.0

ANYONE = Caller(tenant="", operator=True)


def with_store(path: Path, **gateway: Any) -> Config:
    return config(store={"kind": "sqlite", "path": str(path)}, **gateway)


def waiting(id: str, *, expires_in_s: float = 60.0, **fields: Any) -> Any:
    now = time.time()
    made = replace(stored.request(id), model=ModelName("tiny"), body=BODY, arrived_at=now)
    return replace(made, expires_at=now + expires_in_s, **fields)


def under_uvloop(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """As a gateway's own process has it: uvloop's timers are not those of asyncio."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work())


def test_requests_that_expired_while_the_gateway_was_down_are_shed(tmp_path: Path) -> None:
    path = tmp_path / "q.sqlite"

    async def work() -> None:
        async with opened(path) as store:
            for id in ("late", "later"):
                await store.add(waiting(id, expires_in_s=-5.0))
            await store.add(waiting("in time"))
        async with running(with_store(path)) as (gateway, _):
            await soon(lambda: len(gateway.driver.ledger) == 1)
            assert gateway.driver.ledger.row(RequestId("in time")) is not None
            for id in ("late", "later"):
                await soon(lambda id=id: gateway.driver.live(RequestId(id)) is None)
                _, end = await gateway._desk.sight.ended(RequestId(id), ANYONE)
                assert (end.record.phase, end.record.reason) == (
                    Phase.SHED,
                    ShedReason.TTL_EXPIRED.value,
                )

    under_uvloop(work)


def test_short_times_to_live_end_requests_and_not_the_gateway() -> None:
    async def work() -> None:
        async with running(config(request_ttl_s=0.001)) as (_, at), Client(at.grpc) as stub:
            submit = pb.SubmitRequest(request=new())
            for _ in range(5):
                streams = (collect(stub.Submit(submit)) for _ in range(20))
                for events in await asyncio.gather(*streams):
                    assert events[-1].ended.phase == types_pb2.PHASE_SHED
            assert (await get(f"http://{at.http}/health"))[0] == 200

    under_uvloop(work)


@pytest.mark.parametrize(
    "body",
    [b'{"messages": [', b"[]", b"{}", b'{"messages": []}', b'{"messages": "hi", "max_tokens": 1}'],
)
async def test_a_body_that_is_refused_today_is_set_aside_and_said_so(
    body: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "q.sqlite"
    async with opened(path) as store:
        await store.add(waiting("odd", idempotency_key="k"))
        await store.add(waiting("sound"))
    change(path, "UPDATE requests SET body = ? WHERE id = 'odd'", body)
    async with running(with_store(path)) as (gateway, at), Client(at.grpc) as stub:
        assert [row.meta.id for row in gateway.driver.ledger.newest()] == ["sound"]
        status, answer = await view_of(f"http://{at.http}", "odd")
        assert (status, answer["error"]["code"]) == (500, "request_set_aside")
        with pytest.raises(grpc.aio.AioRpcError, match="cannot be read") as caught:
            await stub.GetRequest(pb.GetRequestRequest(id="odd"))
        assert caught.value.code() is grpc.StatusCode.DATA_LOSS
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.CancelRequest(pb.CancelRequestRequest(id="odd"))
        assert caught.value.code() is grpc.StatusCode.DATA_LOSS
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://{at.http}/metrics") as metrics,
        ):
            assert "qlm_store_rows_set_aside 1.0" in await metrics.text()
    said = [vars(record) for record in caplog.records if "set aside" in record.getMessage()]
    assert [(one["request"], one["store"]) for one in said] == [("odd", str(path))]
    assert said[0]["reason"].startswith("body: refused today")


# ---------------------------------------------------------------- clocks


def test_a_stores_time_is_the_wall_clocks_at_first_and_then_what_passed() -> None:
    clock = StoreClock(None, unix_s=1000.0, now_s=7.0)
    assert (clock.read(7.0), clock.read(10.0)) == (1000.0, 1003.0)
    # It lagged behind the wall clock, and goes on by what that says has passed.
    clock = StoreClock(Seen(store_s=500.0, unix_s=1000.0), unix_s=1060.0, now_s=0.0)
    assert (clock.read(1.0), clock.down_s, clock.counted_s) == (561.0, 60.0, 60.0)


@pytest.mark.parametrize(
    ("step_s", "counted_s"), [(25 * 3600.0, DOWN_S_MAX), (-25 * 3600.0, 0.0), (0.0, 0.0)]
)
def test_of_a_step_between_two_runs_little_counts(step_s: float, counted_s: float) -> None:
    seen = Seen(store_s=1000.0, unix_s=1000.0)
    clock = StoreClock(seen, unix_s=1000.0 + step_s, now_s=0.0)
    assert clock.read(0.0) == 1000.0 + counted_s


@pytest.mark.parametrize("step_s", [1.04 * DAY_S, -1.04 * DAY_S])
@pytest.mark.parametrize("running_then", [True, False])
async def test_a_stepped_clock_neither_deletes_answers_nor_sheds_requests(
    step_s: float, running_then: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "q.sqlite"
    monkeypatch.setattr(keeping, "SWEEP_PERIOD_S", 0.01)
    swept: list[float] = []
    sweep = SqliteStore.sweep

    async def counted(store: SqliteStore, ended_before: float) -> int:
        deleted = await sweep(store, ended_before)
        swept.append(deleted)
        return deleted

    monkeypatch.setattr(SqliteStore, "sweep", counted)
    wall = time.time
    offset_s = 0.0
    monkeypatch.setattr(time, "time", lambda: wall() + offset_s)
    async with running(with_store(path)) as (_, at), Client(at.grpc) as stub:
        done = (await stub.Enqueue(pb.EnqueueRequest(request=new()))).accepted.id
        open_ = (await stub.Enqueue(pb.EnqueueRequest(request=new()))).accepted.id
        async with Agent(at.agents) as agent:
            agent.answer("kept")
            agent.pull(done)
            assert (
                text_of(await collect(stub.WatchRequest(pb.WatchRequestRequest(id=done)))) == "kept"
            )
        if running_then:
            offset_s = step_s
            before = len(swept)
            await soon(lambda: len(swept) > before + 3)
    offset_s = step_s
    async with running(with_store(path)) as (gateway, at), Client(at.grpc) as stub:
        before = len(swept)
        await soon(lambda: len(swept) > before + 3)
        assert not any(swept)
        got = await stub.GetRequest(pb.GetRequestRequest(id=done))
        assert json.loads(got.response_json)["choices"][0]["message"]["content"] == "kept"
        (row,) = gateway.driver.ledger.newest()
        assert row.meta.id == open_
        assert gateway.driver.live(RequestId(open_)) is not None
        waited_s = asyncio.get_running_loop().time() - row.meta.arrival_s
        assert 0.0 <= waited_s < DOWN_S_MAX + 60.0
        # What answers tell is the wall clock's time all the same.
        late = (await stub.Enqueue(pb.EnqueueRequest(request=new()))).accepted.id
        made = gateway.driver.live(RequestId(late))
        assert made is not None
        assert abs(made.request.created - time.time()) < 60


async def test_a_store_from_before_its_clock_goes_on_from_its_latest_row(tmp_path: Path) -> None:
    path = tmp_path / "q.sqlite"
    async with opened(path) as store:
        await store.add(stored.request("a", arrived_at=1000.0))
        await store.add(stored.request("b", arrived_at=1010.0))
        await store.end(stored.end("a", ended_at=1020.0))
    with sqlite3.connect(path) as connection:
        connection.execute("DROP INDEX requests_owned_ended")
        connection.execute("DROP INDEX requests_aside")
        for column in ("owner", "aside"):
            connection.execute(f"ALTER TABLE requests DROP COLUMN {column}")
        connection.execute("PRAGMA user_version = 2")
    connection.close()
    store = SqliteStore(str(path))
    assert (await store.open()).seen == Seen(store_s=1020.0, unix_s=1020.0)
    await store.note(Seen(store_s=5.5, unix_s=6.5))
    await store.close()
    assert (await store.open()).seen == Seen(store_s=5.5, unix_s=6.5)
    await store.close()


# ---------------------------------------------------------------- a store that fails for a while


async def test_ends_wait_for_a_store_that_takes_none_and_reading_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(keeping, "STORE_RETRY_S", 0.01)
    path = tmp_path / "q.sqlite"
    store = {"kind": "sqlite", "path": str(path)}
    async with fleet(store=store) as it, Client(it.addresses.grpc) as stub:
        it.agent.on_payload = lambda payload: None
        submit = pb.SubmitRequest(request=new())
        it.agent.answer("before")
        (first, *_) = await collect(stub.Submit(submit))
        it.agent.on_payload = None
        asked = asyncio.create_task(collect(stub.Submit(submit)))
        payload = await it.agent.payload(1)
        with locked(path):
            it.agent.say(payload, "during", finish="stop")
            status, answer, headers = await post(
                f"{it.url}/v1/chat/completions", CHAT, {"x-qlm-durable": "true"}
            )
            assert (status, answer["error"]["code"]) == (503, "unavailable")
            assert int(headers["retry-after"]) >= 1
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Enqueue(pb.EnqueueRequest(request=new()))
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            # What is stored can be fetched, and what needs no store is served.
            got = await view_of(it.url, first.accepted.id)
            assert (got[0], got[1]["phase"]) == (200, "finished")
            it.agent.answer("in memory")
            status, answer, _ = await post(f"{it.url}/v1/chat/completions", CHAT)
            assert (status, answer["choices"][0]["message"]["content"]) == (200, "in memory")
            # Nobody was told of an end that a crash would undo.
            assert not asked.done()
            async with (
                aiohttp.ClientSession() as session,
                session.get(f"{it.url}/metrics") as metrics,
            ):
                assert "qlm_store_ends_waiting 1.0" in await metrics.text()
        events = await asked
        assert (text_of(events), events[-1].ended.phase) == ("during", types_pb2.PHASE_FINISHED)
        got = await view_of(it.url, payload.id)
        assert (got[0], got[1]["phase"]) == (200, "finished")
        assert (await stub.Enqueue(pb.EnqueueRequest(request=new()))).accepted.id
    # However often it was tried, each turn is told once.
    told = [one.getMessage() for one in caplog.records if one.name == "gateway.keeping"]
    assert told == [
        "the store takes nothing; requests are refused and ends wait",
        "the store works again",
    ]


async def test_an_end_that_cannot_be_written_down_is_an_end_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gateway.store import sqlite

    written = sqlite.ended_of

    def odd(end: Any) -> bytes:
        if end.record.phase is Phase.FINISHED:
            raise UnicodeEncodeError("utf-8", "a secret", 0, 1, "surrogates not allowed")
        return written(end)

    monkeypatch.setattr(sqlite, "ended_of", odd)
    store = {"kind": "sqlite", "path": str(tmp_path / "q.sqlite")}
    async with fleet(store=store) as it, Client(it.addresses.grpc) as stub:
        it.agent.answer("x")
        events = await collect(stub.Submit(pb.SubmitRequest(request=new())))
        assert events[-1].ended.phase == types_pb2.PHASE_FAILED
        assert "cannot keep how it ended" in events[-1].ended.reason
        again = await collect(stub.WatchRequest(pb.WatchRequestRequest(id=events[0].accepted.id)))
        assert again[-1].ended == events[-1].ended
