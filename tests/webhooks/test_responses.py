"""Responses in the background that are over are told, whichever way they end; others are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gateway.store import StoreError
from qlm_core import messages as m
from tests.batches.beds import bed, jsonl
from tests.gateway.peers import Fleet, fleet, soon
from tests.responses.beds import HELLO, client, say, script, words
from tests.webhooks.beds import receiver
from tests.webhooks.test_webhooks import kept


def end(it: Fleet, how: str, payload: m.Payload) -> None:
    if how == "failed":
        error = m.AttemptEnded(payload.id, payload.attempt, "error", error="no", error_status=400)
        it.agent.send(error)
    else:
        say(it, payload, words("Hel", "lo"), {"completed": "stop", "incomplete": "length"}[how])


@pytest.mark.parametrize("how", ["completed", "incomplete", "failed", "cancelled"])
async def test_a_response_in_the_background_is_told_as_it_ended(how: str, tmp_path: Path) -> None:
    store = {"path": str(tmp_path / "qlm.sqlite")}
    async with receiver() as there:
        async with fleet(store=store, webhooks=[there.config()]) as it, client(it) as api:
            if how == "cancelled":
                it.solver.on_arrival = lambda id: None
            else:
                it.agent.on_payload = lambda payload: end(it, how, payload)
            made = await api.responses.create(**HELLO, background=True)
            if how == "cancelled":
                await api.responses.cancel(made.id)
            (got,) = await there.until(1)
            event = got.unwrap()
            assert event.type == f"response.{how}"
            assert event.data.id == made.id  # type: ignore[union-attr]
            # Whoever hears of it can have it.
            assert (await api.responses.retrieve(made.id)).status == how
            await soon(lambda: not it.gateway.webhooks._rows)
        assert kept(tmp_path) == []
        assert len(there.got) == 1


async def test_what_somebody_waits_for_is_not_told() -> None:
    async with receiver() as there, fleet(webhooks=[there.config()]) as it, client(it) as api:
        script(it, *[words("Hello.")] * 5)
        await api.responses.create(**HELLO)
        await api.responses.create(**HELLO, store=False)
        async for _ in await api.responses.create(**HELLO, stream=True):
            pass
        await api.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "x"}],
            extra_headers={"x-qlm-durable": "true"},
        )
        last = await api.responses.create(**HELLO, background=True)
        assert [got.unwrap().data.id for got in await there.until(1)] == [last.id]  # type: ignore[union-attr]


async def test_responses_in_a_batch_are_told_by_their_batch_alone() -> None:
    async with receiver() as there, bed(webhooks=[there.config()]) as one:
        script(one.fleet, words("Hello."))
        lines = [{"custom_id": "a", "method": "POST", "url": "/v1/responses", "body": HELLO}]
        made = await one.until(await one.create(jsonl(lines), endpoint="/v1/responses"))
        assert made.status == "completed"
        (got,) = await there.until(1)
        assert got.unwrap().type == "batch.completed"


async def test_an_end_that_the_store_does_not_take_is_told_once_it_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("gateway.keeping.STORE_RETRY_S", 0.02)
    store = {"path": str(tmp_path / "qlm.sqlite")}
    async with (
        receiver() as there,
        fleet(store=store, webhooks=[there.config()]) as it,
        client(it) as api,
    ):
        it.solver.on_arrival = lambda id: None
        made = await api.responses.create(**HELLO, background=True)
        tries = 0
        whole = it.gateway.store.end

        async def full(*said: Any) -> bool:
            nonlocal tries
            tries += 1
            if tries < 4:
                raise StoreError("the store failed: the disk is full")
            return await whole(*said)

        monkeypatch.setattr(it.gateway.store, "end", full)
        it.agent.on_payload = lambda payload: say(it, payload, words("Hello."))
        it.agent.pull(made.id)
        (got,) = await there.until(1)
        assert got.unwrap().type == "response.completed"
        assert tries == 4
