"""Requests that are submitted now and fetched later over HTTP: acknowledged once stored, found by id and key, listed."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from qlm_core import messages as m
from qlm_core.model import Estimate
from qlm_core.outcome import ShedReason
from tests.doors.beds import ADMIN, ALICE, BOB, KEYS
from tests.gateway.peers import Agent, Fleet, config, fleet, running, soon
from tests.gateway.test_http import CHAT, post

LATER = {"prefer": "wait=100, respond-async"}


async def look(url: str, key: str = "", **query: Any) -> tuple[int, Any]:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.get(url, params=query) as answer,
    ):
        return answer.status, json.loads(await answer.text())


async def submit(it: Fleet, key: str = "", **headers: str) -> str:
    if key:
        headers["authorization"] = f"Bearer {key}"
    status, told, _ = await post(f"{it.url}/v1/chat/completions", CHAT, LATER | headers)
    assert status == 202
    return str(told["id"])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("asked", [LATER, {"x-qlm-async": "true"}], ids=["prefer", "ours"])
async def test_it_is_acknowledged_at_once_and_fetched_when_it_is_there(
    asked: dict[str, str], stream: bool
) -> None:
    async with fleet() as it:
        it.solver.estimates = True
        it.solver.estimate = Estimate(mean_s=9.0, p50_s=7.25, p90_s=20.0, p99_s=30.0)
        it.agent.on_payload = lambda payload: None
        body = CHAT | {"stream": stream}
        status, told, headers = await post(f"{it.url}/v1/chat/completions", body, asked)
        assert status == 202
        id = told["id"]
        assert told["phase"] in ("waiting", "pulled")
        assert told["endpoint"] == "/v1/chat/completions"
        assert told["estimate"]["p90_s"] == 20.0
        assert headers["location"] == f"/v1/requests/{id}"  # type: ignore[index, call-overload]
        assert headers["x-qlm-request-id"] == id  # type: ignore[index, call-overload]
        assert "p50=7250" in headers["x-qlm-estimated-wait-ms"]  # type: ignore[index, call-overload]
        said = [headers.get(name) for name in ("retry-after", "retry-after-ms")]  # type: ignore[union-attr]
        assert said == ["8", "7250"]
        preferred = headers.get("preference-applied")  # type: ignore[union-attr]
        assert preferred == ("respond-async" if asked is LATER else None)
        # The connection is gone, the request goes on.
        it.agent.say(await it.agent.payload(), "Hel", "lo", finish="stop")
        url = it.url + headers["location"]  # type: ignore[index, call-overload]
        async with asyncio.timeout(5):
            while (found := (await look(url))[1])["phase"] != "finished":
                pass
        assert found["response"]["choices"][0]["message"]["content"] == "Hello"
        assert found["ended"] >= found["created"] > 1_600_000_000


async def test_nobody_is_told_to_stay_away_for_longer_than_clients_heed() -> None:
    async with fleet() as it:
        it.solver.estimates = True
        it.solver.estimate = Estimate(mean_s=9e9, p50_s=7200.0, p90_s=9e8, p99_s=9e8)
        it.solver.on_arrival = lambda id: None
        _, _, headers = await post(f"{it.url}/v1/chat/completions", CHAT, LATER)
        said = [headers.get(name) for name in ("retry-after", "retry-after-ms")]  # type: ignore[union-attr]
        assert said == ["120", "120000"]


async def test_what_is_acknowledged_survives_the_gateway(tmp_path: Path) -> None:
    store = {"kind": "sqlite", "path": str(tmp_path / "q.sqlite")}
    async with fleet(store=store) as it:
        it.solver.on_arrival = lambda id: None
        id = await submit(it, **{"idempotency-key": "monday/ü"})
    async with running(config(store=store)) as (_, at):
        url = f"http://{at.http}/v1/requests"
        assert (await look(url))[1]["data"][0]["id"] == id
        for query in ({"idempotency_key": "monday/ü"}, {"status": "all"}):
            assert id in json.dumps((await look(url, **query))[1])
        async with Agent(at.agents) as agent:
            agent.answer("x")
            async with asyncio.timeout(10):
                while (await look(f"{url}/{id}"))[1]["phase"] != "finished":
                    agent.pull(id)
                    await asyncio.sleep(0.05)


async def test_a_key_finds_its_request_again() -> None:
    async with fleet(api_keys=KEYS) as it:
        it.agent.answer("x")
        id = await submit(it, ALICE, **{"idempotency-key": "k"})
        assert await submit(it, ALICE, **{"idempotency-key": "k"}) == id
        url = f"{it.url}/v1/requests"
        found = await look(url, ALICE, idempotency_key="k")
        assert found == await look(f"{url}/{id}", ALICE)
        assert found[1]["id"] == id
        # A key is its tenant's, also for who sees everything.
        for key in (BOB, ADMIN):
            assert (await look(url, key, idempotency_key="k"))[0] == 404
        for odd in ("", "k" * 257):
            assert (await look(url, ALICE, idempotency_key=odd))[0] == 400
        assert len(it.agent.payloads) == 1


async def test_one_that_would_be_late_is_refused_in_place_of_being_acknowledged() -> None:
    async with fleet() as it:
        it.solver.on_arrival = lambda id: it.solver.orders.put(
            m.ShedOrder(id, ShedReason.LATE, 30.0)
        )
        status, told, headers = await post(f"{it.url}/v1/chat/completions", CHAT, LATER)
        assert (status, told["error"]["code"]) == (429, "rejected-late")
        assert int(headers["retry-after"]) >= 30  # type: ignore[index, call-overload]


async def test_a_body_that_is_wrong_is_refused_as_ever() -> None:
    async with fleet() as it:
        url = f"{it.url}/v1/chat/completions"
        assert (await post(url, {"model": "tiny"}, LATER))[0] == 400
        assert (await post(url, CHAT, {"x-qlm-async": "soon"}))[0] == 400
        # A preference that is not known is not heeded.
        it.agent.answer("x")
        assert (await post(url, CHAT, {"prefer": "handling=lenient"}))[0] == 200


# --------------------------------------------------------------------------- lists


async def ended(it: Fleet, count: int, key: str = "") -> list[str]:
    """The ids of requests that have ended one after the other."""
    ids = []
    for _ in range(count):
        ids.append(await submit(it, key))
        await soon(lambda: it.gateway.driver.live(ids[-1]) is None)
    return ids


async def pages(url: str, key: str = "", **query: Any) -> list[list[str]]:
    """All pages of a list, as `next` leads through it."""
    found: list[list[str]] = []
    while True:
        status, page = await look(url, key, **query)
        assert status == 200
        found.append([one["id"] for one in page["data"]])
        assert page["last_id"] == (found[-1][-1] if found[-1] else None)
        assert page["has_more"] is (page["next"] is not None)
        if page["next"] is None:
            return found
        query |= {"after": page["next"]}


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_lists_are_turned_page_by_page(kind: str, tmp_path: Path) -> None:
    store = {"kind": kind, "path": str(tmp_path / "q.sqlite")}
    async with fleet(store=store) as it:
        it.agent.answer("x")
        over = await ended(it, 5)
        it.agent.on_payload = lambda payload: None
        waiting = [await submit(it) for _ in range(4)]
        url = f"{it.url}/v1/requests"
        latest, newest = over[::-1], waiting[::-1]
        assert await pages(url) == [newest]
        assert await pages(url, limit=3) == [newest[:3], newest[3:]]
        assert await pages(url, status="ended", limit=2) == [latest[:2], latest[2:4], latest[4:]]
        everything = [*newest, *latest]
        assert await pages(url, status="all", limit=3) == [
            everything[:3],
            everything[3:6],
            everything[6:],
        ]
        # Behind a request, by its id.
        assert await pages(url, status="all", limit=9, after=newest[1]) == [everything[2:]]
        assert await pages(url, status="ended", after=latest[1]) == [latest[2:]]
        _, page = await look(url, status="ended", limit=1)
        assert page["data"][0]["usage"]["completion_tokens"] == 1
        assert page["data"][0]["phase"] == "finished"
        assert "response" not in page["data"][0]


async def test_what_ends_while_pages_are_turned_is_not_missed() -> None:
    async with fleet() as it:
        it.agent.on_payload = lambda payload: None
        ids = [await submit(it) for _ in range(4)]
        url = f"{it.url}/v1/requests"
        _, first = await look(url, status="all", limit=2)
        assert [one["id"] for one in first["data"]] == [ids[3], ids[2]]
        for index, id in enumerate(ids[1:3], start=1):
            it.agent.say(await it.agent.payload(index), "x", finish="stop")
            await soon(lambda id=id: it.gateway.driver.live(id) is None)
        rest = await pages(url, status="all", limit=9, after=first["next"])
        assert rest == [[ids[0], ids[2], ids[1]]]


async def test_a_tenant_lists_its_own() -> None:
    async with fleet(api_keys=KEYS) as it:
        it.agent.answer("x")
        mine, theirs = await ended(it, 2, ALICE), await ended(it, 1, BOB)
        url = f"{it.url}/v1/requests"
        assert await pages(url, ALICE, status="ended", limit=1) == [[mine[1]], [mine[0]]]
        assert await pages(url, BOB, status="all") == [theirs]
        assert await pages(url, ADMIN, status="ended") == [[*theirs, *mine[::-1]]]
        status, told = await look(url, BOB, status="ended", after=mine[1])
        assert (status, told["error"]["param"]) == (400, "after")


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"status": "done"}, "status"),
        ({"limit": "0"}, "limit"),
        ({"limit": "1001"}, "limit"),
        ({"limit": "²"}, "limit"),
        ({"after": "nothing"}, "after"),
        ({"after": "ended:nan:x"}, "after"),
        ({"after": "open:x"}, "after"),
    ],
)
async def test_odd_lists_are_told_what_is_wrong(query: dict[str, str], param: str) -> None:
    async with running(config()) as (_, at):
        status, told = await look(f"http://{at.http}/v1/requests", **query)
        assert (status, told["error"]["param"]) == (400, param)
