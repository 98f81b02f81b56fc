"""Responses in the background: polled, streamed from any event on, cancelled, and still there after a restart."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from qlm_core import messages as m
from qlm_core.model import Phase, RequestId
from qlm_core.outcome import ShedReason
from tests.doors.beds import ADMIN, ALICE, BOB, KEYS
from tests.gateway.peers import Agent, Fleet, Solver, config, ended, fleet, running, solving, soon
from tests.gateway.test_http import post
from tests.gateway.test_later import look
from tests.responses.beds import HELLO, client, say, script, words

TEXT = ["Hel", "lo wor", "ld, how a", "re you to", "day?"]


async def events_of(stream: Any) -> list[dict[str, Any]]:
    return [event.to_dict() async for event in stream]


async def when(api: openai.AsyncOpenAI, id: str, status: str) -> Any:
    """The response once it has this status."""
    async with asyncio.timeout(5.0):
        while True:
            found = await api.responses.retrieve(id)
            if found.status == status:
                return found
            await asyncio.sleep(0.01)


async def test_a_response_is_polled_for() -> None:
    async with fleet() as it, client(it) as api:
        it.solver.estimates = True
        it.solver.on_arrival = lambda id: None
        raw = await api.responses.with_raw_response.create(**HELLO, background=True)
        assert raw.headers["x-qlm-estimated-wait-ms"] == "mean=1500, p50=1000, p90=2000, p99=3000"
        made = raw.parse()
        assert (made.status, made.background, made.output) == ("queued", True, [])
        assert raw.headers["x-qlm-request-id"] == made.id
        assert (await api.responses.retrieve(made.id)).status == "queued"
        it.agent.on_payload = lambda payload: None
        it.agent.pull(made.id)
        await when(api, made.id, "in_progress")
        say(it, it.agent.payloads[0], words(*TEXT))
        done = await when(api, made.id, "completed")
        assert done.output_text == "".join(TEXT)
        again = await api.responses.create(**HELLO, previous_response_id=made.id, background=True)
        assert again.previous_response_id == made.id


async def test_a_client_that_leaves_costs_nothing() -> None:
    async with fleet() as it, client(it) as api:
        it.agent.on_payload = lambda payload: say(it, payload, words("Hel"), None)
        stream = await api.responses.create(**HELLO, background=True, stream=True)
        seen: list[Any] = []
        async for event in stream:
            seen.append(event.to_dict())
            if event.type == "response.content_part.added":
                break
        await stream.close()
        say(it, it.agent.payloads[0], words("lo the", "re."))
        done = await when(api, seen[0]["response"]["id"], "completed")
        assert done.output_text == "Hello there."


@asynccontextmanager
async def streaming(it: Fleet, deltas: list[Any]) -> AsyncIterator[tuple[openai.AsyncOpenAI, Any]]:
    """A client, and the stream of a response whose output has come so far."""
    async with client(it) as api:
        it.agent.on_payload = lambda payload: say(it, payload, deltas, None)
        yield api, await api.responses.create(**HELLO, background=True, stream=True)


async def test_streams_of_one_response_are_the_same_from_any_event_on() -> None:
    async with fleet() as it, streaming(it, words(*TEXT[:3])) as (api, first):
        begun = [(await anext(aiter(first))).to_dict() for _ in range(5)]
        id = begun[0]["response"]["id"]
        # One that comes in the middle, one after some event, one that comes when it is over.
        second = await api.responses.retrieve(id, stream=True)
        third = await api.responses.retrieve(id, stream=True, starting_after=4)
        started = [(await anext(aiter(third))).to_dict()]
        say(it, it.agent.payloads[0], words(*TEXT[3:]))
        rest = await events_of(first)
        whole = begun + rest
        assert [event["sequence_number"] for event in whole] == list(range(len(whole)))
        assert [event["type"] for event in whole[:3]] == [
            "response.created",
            "response.queued",
            "response.in_progress",
        ]
        assert await events_of(second) == whole
        assert started + await events_of(third) == whole[5:]
        for after in (-1, 0, 7, len(whole) - 2, len(whole) - 1, 1000):
            options: Any = {} if after < 0 else {"starting_after": after}
            again = await api.responses.retrieve(id, stream=True, **options)
            assert await events_of(again) == whole[after + 1 :]
        async with api.responses.stream(response_id=id, starting_after=5) as stream:
            seen = [event.sequence_number async for event in stream]
            final = await stream.get_final_response()
        assert seen == list(range(6, len(whole)))
        assert final.output_text == "".join(TEXT)


async def test_a_wrong_place_to_go_on_from_is_said() -> None:
    async with fleet() as it, client(it) as api:
        it.agent.answer("x")
        made = await api.responses.create(**HELLO, background=True)
        for wrong in ({"starting_after": "-1"}, {"starting_after": "x"}, {"stream": "maybe"}):
            query = {"stream": "true"} | wrong
            with pytest.raises(openai.BadRequestError) as caught:
                await api.responses.retrieve(made.id, extra_query=query)
            assert caught.value.param == next(iter(wrong))


# ---------------------------------------------------------------- ends


async def test_cancelling_is_idempotent() -> None:
    async with fleet() as it, streaming(it, words("Hel", "lo ")) as (api, stream):
        begun = [(await anext(aiter(stream))).to_dict() for _ in range(6)]
        id = begun[0]["response"]["id"]
        cancelled = await api.responses.cancel(id)
        assert cancelled.status == "cancelled"
        assert cancelled.output_text == "Hello "
        assert cancelled.output[0].status == "incomplete"  # type: ignore[union-attr]
        assert await api.responses.cancel(id) == cancelled
        assert await api.responses.retrieve(id) == cancelled
        assert ended(it.solver) == [Phase.CANCELLED]
        whole = begun + await events_of(stream)
        assert (whole[-1]["type"], whole[-1]["response"]["status"]) == (
            "response.failed",
            "cancelled",
        )
        assert await events_of(await api.responses.retrieve(id, stream=True)) == whole
        with pytest.raises(openai.BadRequestError, match="no answer"):
            await api.responses.create(**HELLO, previous_response_id=id)


async def test_one_that_has_ended_stays_as_it_ended_when_it_is_cancelled() -> None:
    async with fleet() as it, client(it) as api:
        it.agent.answer("x")
        made = await api.responses.create(**HELLO, background=True)
        done = await when(api, made.id, "completed")
        assert await api.responses.cancel(made.id) == done


async def test_one_that_waits_is_cancelled_and_told_so() -> None:
    async with fleet() as it, client(it) as api:
        it.solver.on_arrival = lambda id: None
        stream = await api.responses.create(**HELLO, background=True, stream=True)
        begun = [(await anext(aiter(stream))).to_dict() for _ in range(2)]
        id = begun[0]["response"]["id"]
        assert (await api.responses.cancel(id)).output == []
        whole = begun + await events_of(stream)
        assert [event["type"] for event in whole[2:]] == ["response.failed"]
        assert await events_of(await api.responses.retrieve(id, stream=True)) == whole


def shed(it: Fleet) -> Callable[[RequestId], None]:
    return lambda id: it.solver.orders.put(m.ShedOrder(id, ShedReason.SATURATED))


def fail(it: Fleet) -> Callable[[RequestId], None]:
    def arrived(id: RequestId) -> None:
        it.agent.on_payload = lambda payload: it.agent.send(
            m.AttemptEnded(payload.id, payload.attempt, "error", error="no such", error_status=422)
        )
        it.agent.pull(id)

    return arrived


@pytest.mark.parametrize(
    ("arrived", "code"), [(shed, "rate_limit_exceeded"), (fail, "invalid_prompt")]
)
async def test_one_that_fails_says_why(arrived: Any, code: str) -> None:
    async with fleet() as it, client(it) as api:
        it.solver.on_arrival = arrived(it)
        made = await api.responses.create(**HELLO, background=True)
        failed = await when(api, made.id, "failed")
        assert failed.error is not None
        assert (failed.error.code, failed.usage) == (code, None)
        assert failed.error.message
        events = await events_of(await api.responses.retrieve(made.id, stream=True))
        assert events[-1]["response"]["error"]["code"] == code


async def test_a_running_one_can_be_deleted() -> None:
    async with fleet() as it, client(it) as api:
        it.agent.on_payload = lambda payload: None
        made = await api.responses.create(**HELLO, background=True)
        await api.responses.delete(made.id)
        await soon(lambda: ended(it.solver) == [Phase.CANCELLED])
        with pytest.raises(openai.NotFoundError):
            await api.responses.retrieve(made.id)


async def test_a_window_is_an_end_to_end_target() -> None:
    async with fleet() as it, client(it) as api:
        it.agent.answer("x")
        options: Any = {"completion_window": "2h"}
        await api.responses.create(**HELLO, background=True, background_options=options)
        assert it.solver.heard(m.Arrived)[0].request.slo.e2e_s == 7200.0


async def test_a_key_names_one_in_the_background_as_well() -> None:
    async with fleet() as it, client(it) as api:
        url, key = f"{it.url}/v1/responses", {"idempotency-key": "k"}
        it.agent.on_payload = lambda payload: None
        asked = HELLO | {"background": True}
        first, again = await post(url, asked, key), await post(url, asked, key)
        assert first[1]["id"] == again[1]["id"]
        say(it, await it.agent.payload(), words("x"))
        await when(api, first[1]["id"], "completed")
        assert (await post(url, asked, key))[1]["status"] == "completed"
        assert len(it.agent.payloads) == 1


# ---------------------------------------------------------------- whose they are


async def test_anothers_response_is_as_one_that_never_was() -> None:
    async with fleet(api_keys=KEYS) as it, client(it, api_key=ALICE) as alice:
        it.agent.answer("x")
        made = await alice.responses.create(**HELLO, background=True)
        await when(alice, made.id, "completed")
        async with client(it, api_key=BOB) as bob, client(it, api_key=ADMIN) as admin:
            for act in (
                bob.responses.retrieve,
                bob.responses.cancel,
                bob.responses.delete,
                bob.responses.input_items.list,
            ):
                with pytest.raises(openai.NotFoundError) as caught:
                    await act(made.id)  # type: ignore[operator]
                with pytest.raises(openai.NotFoundError) as unknown:
                    await act("resp_" + "0" * 24)  # type: ignore[operator]
                said = str(caught.value).replace(made.id, "")
                assert said == str(unknown.value).replace("resp_" + "0" * 24, "")
            item: Any = {"type": "item_reference", "id": made.id.replace("resp", "msg") + "_0"}
            for asked in ({"previous_response_id": made.id}, {"input": [item]}):
                with pytest.raises(openai.BadRequestError):
                    await bob.responses.create(**HELLO | asked)
            assert (await admin.responses.retrieve(made.id)).status == "completed"
        assert (await alice.responses.retrieve(made.id)).status == "completed"


# ---------------------------------------------------------------- restarts


async def test_a_gateway_that_starts_again_has_them_all(tmp_path: Path) -> None:
    solver = Solver()
    async with solving(solver) as address:
        made = config(solver=address, store={"kind": "sqlite", "path": str(tmp_path / "q.sqlite")})

        async def one(api: openai.AsyncOpenAI, **fields: Any) -> str:
            return (await api.responses.create(**HELLO | fields)).id

        async with running(made) as (gateway, at), Agent(at.agents) as agent:
            it = Fleet(gateway, at, solver, agent)
            solver.on_arrival = agent.pull
            await soon(lambda: solver.heard(m.AnnounceDone))
            async with client(it) as api:
                script(it, words(*TEXT), words("kept"))
                done = await one(api, background=True)
                before = await when(api, done, "completed")
                whole = await events_of(await api.responses.retrieve(done, stream=True))
                kept = await one(api)
                agent.on_payload = lambda payload: say(it, payload, words(*TEXT[:2]), None)
                stream = await api.responses.create(**HELLO, background=True, stream=True)
                seen = [(await anext(aiter(stream))).to_dict() for _ in range(6)]
                cut = seen[0]["response"]["id"]
                solver.on_arrival = lambda id: None
                waiting = await one(api, background=True, previous_response_id=done)
        async with running(made) as (gateway, at), Agent(at.agents) as agent:
            it = Fleet(gateway, at, solver, agent)
            async with client(it) as api:
                assert await api.responses.retrieve(done) == before
                assert await events_of(await api.responses.retrieve(done, stream=True)) == whole
                assert (await api.responses.retrieve(kept)).output_text == "kept"
                assert (await api.responses.retrieve(waiting)).status == "queued"
                resumed = await api.responses.retrieve(cut, stream=True, starting_after=5)
                agent.on_payload = lambda payload: say(it, payload, words("".join(TEXT)))
                for id in (waiting, cut):
                    await _pulled(agent, id)
                rest = await events_of(resumed)
                # The same output made anew, in one chunk: the events go on where they were left.
                assert seen + rest == await events_of(
                    await api.responses.retrieve(cut, stream=True)
                )
                assert rest[-1]["response"]["status"] == "completed"
                finished = await when(api, waiting, "completed")
                assert finished.previous_response_id == done
                assert (await api.responses.input_items.list(waiting)).data[0].type == "message"


async def _pulled(agent: Agent, id: str) -> None:
    """Ask for a request until it is granted: one that was read back rests for a moment."""
    async with asyncio.timeout(10.0):
        while id not in [payload.id for payload in agent.payloads]:
            agent.pull(id)
            await asyncio.sleep(0.1)


async def test_a_drained_gateway_tells_who_follows_that_it_goes_on() -> None:
    async with fleet() as it, client(it) as api:
        it.agent.on_payload = lambda payload: say(it, payload, words("Hel"), None)
        stream = await api.responses.create(**HELLO, background=True, stream=True)
        begun = [(await anext(aiter(stream))).to_dict() for _ in range(5)]
        await it.gateway.driver.drain()
        rest = await events_of(stream)
        assert rest[-1]["type"] == "error"
        assert rest[-1]["sequence_number"] == begun[-1]["sequence_number"] + len(rest)
        assert "goes on" in rest[-1]["message"]


async def test_a_store_that_takes_nothing_turns_them_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from gateway.store import MemoryStore, StoreError

    async def full(*_: object) -> None:
        raise StoreError("the disk is full")

    async with fleet() as it:
        monkeypatch.setattr(MemoryStore, "add", full)
        url = f"{it.url}/v1/responses"
        async with (
            aiohttp.ClientSession() as session,
            session.post(url, json=HELLO | {"background": True}) as answer,
        ):
            assert answer.status == 503
            assert (await answer.json())["error"]["code"] == "unavailable"
        assert len(it.gateway.driver.ledger) == 0


@pytest.mark.parametrize("background", [False, True])
async def test_one_that_is_acknowledged_is_fetched_as_a_response(background: bool) -> None:
    async with fleet() as it, client(it) as api:
        script(it, words("Hello"))
        asked = HELLO | {"background": background}
        status, told, headers = await post(
            f"{it.url}/v1/responses", asked, {"prefer": "respond-async"}
        )
        # One in the background is acknowledged as the response that it is, where it is one for good.
        assert (status, told.get("object")) == (202, "response" if background else None)
        kind = "responses" if background else "requests"
        assert headers["location"] == f"/v1/{kind}/{told['id']}"
        assert headers["preference-applied"] == "respond-async"
        assert int(headers["retry-after"]) >= 1
        found = await when(api, told["id"], "completed")
        assert found.output_text == "Hello"
        # Among requests it is a response as well, with the answer that its client asked for.
        status, request = await look(f"{it.url}/v1/requests/{told['id']}")
        assert (status, request["endpoint"]) == (200, "/v1/responses")
        assert request["response"] == found.to_dict()


async def test_one_that_failed_is_told_among_requests_as_it_is_elsewhere() -> None:
    async with fleet() as it, client(it) as api:
        it.solver.on_arrival = lambda id: None
        made = await api.responses.create(**HELLO, background=True)
        url = f"{it.url}/v1/requests/{made.id}"
        assert (await look(url))[1]["endpoint"] == "/v1/responses"
        await api.responses.cancel(made.id)
        status, told = await look(url)
        assert (status, told["phase"], told["response"]["status"]) == (
            200,
            "cancelled",
            "cancelled",
        )
