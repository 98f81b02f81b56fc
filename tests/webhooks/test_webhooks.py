"""Webhooks of a gateway: batches that are over are told, in the end, whatever happens to receivers, store and gateway."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from openai.types.webhooks import BatchCompletedWebhookEvent

import failpoints
from gateway.batches import asking
from gateway.store import StoreError
from gateway.webhooks.rows import event_id
from qlm_core import webhooks as wh
from tests.batches.beds import Bed, bed, chats
from tests.gateway.peers import soon
from tests.webhooks.beds import Got, receiver


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails is tried again soon."""
    monkeypatch.setattr(wh, "BACKOFF_S", 0.02)
    monkeypatch.setattr(wh, "PAUSE_S", 0.02)
    monkeypatch.setattr(wh, "PAUSE_S_MAX", 0.1)


@contextlib.asynccontextmanager
async def life(
    folder: Path | None, *receivers: dict[str, Any], **limits: Any
) -> AsyncIterator[Bed]:
    """One life of a gateway that tells these."""
    store = {"path": str(folder / "qlm.sqlite")} if folder else {"kind": "memory"}
    async with bed(store=store, webhooks=list(receivers), limits=limits) as one:
        one.answer()
        yield one


async def ended(one: Bed, count: int = 2) -> str:
    """The id of a batch that is over."""
    made = await one.until(await one.create(chats(count)))
    assert made.status == "completed"
    return made.id


def kept(folder: Path) -> list[tuple[Any, ...]]:
    """What is still to be told, according to a store that nobody has."""
    with contextlib.closing(sqlite3.connect(folder / "qlm.sqlite")) as store:
        return store.execute(
            "SELECT subject, type, tries FROM webhook_deliveries ORDER BY told_at"
        ).fetchall()


async def metrics(one: Bed) -> dict[str, float]:
    async with aiohttp.ClientSession() as session, session.get(f"{one.fleet.url}/metrics") as got:
        text = await got.text()
    lines = [line.rpartition(" ") for line in text.splitlines() if line.startswith("qlm_webhook_")]
    return {name: float(value) for name, _, value in lines}


def ids(got: list[Got]) -> list[str]:
    return [one.unwrap().data.id for one in got]  # type: ignore[union-attr]


async def test_who_wants_to_know_is_told_that_a_batch_is_over(tmp_path: Path) -> None:
    async with receiver() as every, receiver() as failures, receiver() as completed:
        async with life(
            tmp_path,
            every.config(),
            failures.config(events=["batch.failed", "response.completed"]),
            completed.config(events=["batch.completed"]),
        ) as one:
            batch = await one.until(await one.create(chats(2)))
            (got,) = await every.until(1)
            event = got.unwrap()
            assert isinstance(event, BatchCompletedWebhookEvent)
            assert event.data.id == batch.id
            assert event.created_at == batch.completed_at
            assert (await completed.until(1))[0].id == event.id
            refused = await one.until(await one.create(b"{}\n"))
            assert refused.status == "failed"
            (failed,) = await failures.until(1)
            assert failed.unwrap().type == "batch.failed"
            assert ids([failed]) == [refused.id]
            await every.until(2)
            await soon(lambda: not list(one.fleet.gateway.webhooks._rows))
        assert len(completed.got) == len(failures.got) == 1
        assert kept(tmp_path) == []


@pytest.mark.parametrize("status", ["cancelled", "expired"])
async def test_batches_that_were_given_up_are_told_too(
    status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(asking._UNIT_S, "m", 1.0)
    async with receiver() as there:
        batches = {"window_s_min": 1.0}
        async with bed(webhooks=[there.config()], batches=batches, store={"kind": "memory"}) as one:
            made = await one.create(chats(2), window="24h" if status == "cancelled" else "1m")
            await one.until(made, "in_progress")
            if status == "cancelled":
                await one.client.batches.cancel(made.id)
            (got,) = await there.until(1)
            assert got.unwrap().type == f"batch.{status}"
            assert ids([got]) == [made.id]


async def test_it_is_tried_until_it_is_taken_under_one_id_and_with_one_body() -> None:
    async with receiver() as there:
        there.answers = [500, 301, 404, 410, 200]
        async with life(None, there.config()) as one:
            batch = await ended(one)
            got = await there.until(5)
            await asyncio.sleep(0.1)
            assert len(there.got) == 5
            host = there.url.split("/")[2]
            said = await metrics(one)
        assert {each.id for each in got} == {event_id("batch.completed", batch)}
        assert len({each.body for each in got}) == 1
        for each in got:
            each.unwrap()
        assert said[f'qlm_webhook_tries_total{{outcome="answered",webhook="{host}"}}'] == 4
        assert said[f'qlm_webhook_tries_total{{outcome="delivered",webhook="{host}"}}'] == 1
        assert said[f'qlm_webhook_deliveries_waiting{{webhook="{host}"}}'] == 0
        assert said[f'qlm_webhook_failing{{webhook="{host}"}}'] == 0


async def test_a_receiver_that_hangs_holds_up_no_other(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with receiver() as slow, receiver() as there:
        slow.gate.clear()
        async with life(
            None, slow.config(), there.config(), webhook_tries_max=2, webhook_s_max=2.0
        ) as one:
            batches = [await ended(one) for _ in range(4)]
            assert ids(await there.until(4)) == batches
            await slow.until(2)
            assert slow.most_at_once == 2
            await soon(lambda: "does not take an event" in caplog.text)
            slow.gate.set()
            await soon(lambda: set(ids(slow.got)) == set(batches))
            await soon(lambda: "takes events again" in caplog.text)
        told = [each for each in caplog.records if "does not take" in each.message]
        assert len(told) == 1
        assert told[0].levelno == logging.WARNING


async def test_what_was_not_taken_is_told_by_the_next_gateway(tmp_path: Path) -> None:
    async with receiver() as there:
        there.answer = 503
        async with life(tmp_path, there.config()) as one:
            batch = await ended(one)
            await there.until(3)
        (subject, type, tries) = kept(tmp_path)[0]
        assert (subject, type) == (batch, "batch.completed")
        assert tries >= 2
        there.answer = 200
        before = len(there.got)
        async with life(tmp_path, there.config()):
            got = (await there.until(before + 1))[before:]
            assert ids(got) == [batch]
            assert {each.id for each in there.got} == {got[0].id}
            await soon(lambda: len(there.got) == before + 1)
        assert kept(tmp_path) == []
        async with life(tmp_path, there.config()):
            await asyncio.sleep(0.1)
        assert len(there.got) == before + 1


async def test_a_try_that_is_under_way_may_end_when_the_gateway_stops(tmp_path: Path) -> None:
    async with receiver() as there:
        there.gate.clear()
        async with life(tmp_path, there.config()) as one:
            await ended(one)
            await there.until(1)
            asyncio.get_running_loop().call_later(0.3, there.gate.set)
        assert kept(tmp_path) == []
        assert len(there.got) == 1


async def test_webhooks_that_are_configured_no_more_are_forgotten(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with receiver() as there, receiver() as other:
        there.answer = other.answer = 500
        async with life(tmp_path, there.config(), other.config()) as one:
            batch = await ended(one)
            await there.until(1)
            await other.until(1)
        assert len(kept(tmp_path)) == 2
        async with life(tmp_path, other.config()):
            pass
        assert "configured no more" in caplog.text
        assert [subject for subject, _, _ in kept(tmp_path)] == [batch]
        async with life(tmp_path):
            pass
        assert kept(tmp_path) == []


async def test_a_row_that_nobody_here_has_written_keeps_no_gateway_from_starting(
    tmp_path: Path,
) -> None:
    async with receiver() as there:
        there.answer = 500
        async with life(tmp_path, there.config()) as one:
            first, second = await ended(one), await ended(one)
            await there.until(2)
        with contextlib.closing(sqlite3.connect(tmp_path / "qlm.sqlite")) as store, store:
            store.execute(
                "UPDATE webhook_deliveries SET due_at = 'never' WHERE subject = ?", (first,)
            )
        there.answer = 200
        there.got.clear()
        async with life(tmp_path, there.config()):
            assert ids(await there.until(1)) == [second]


async def test_a_store_that_takes_nothing_tells_nobody_and_who_tells_hears_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with receiver() as there, life(None, there.config()) as one:
        webhooks = one.fleet.gateway.webhooks

        async def full(_: Any) -> None:
            raise StoreError("the store failed: the disk is full")

        database = one.fleet.gateway.store.database
        with monkeypatch.context() as patched:
            patched.setattr(database, "write", full)
            with pytest.raises(StoreError):
                await webhooks.tell("response.completed", "resp_1", 1)
        await asyncio.sleep(0.05)
        assert there.got == []
        await webhooks.tell("response.completed", "resp_1", 1)
        assert ids(await there.until(1)) == ["resp_1"]


async def test_who_is_told_stays_told_although_the_store_cannot_forget_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("gateway.webhooks.driver.RETRY_S", 0.02)
    async with receiver() as there, life(None, there.config()) as one:
        webhooks, database = one.fleet.gateway.webhooks, one.fleet.gateway.store.database
        write = database.write

        async def choosy(work: Any) -> Any:
            if getattr(work, "func", None).__name__ == "remove":
                raise StoreError("the store failed: it is locked")
            return await write(work)

        monkeypatch.setattr(database, "write", choosy)
        await webhooks.tell("response.completed", "resp_1", 1)
        await there.until(1)
        await soon(lambda: "cannot forget" in caplog.text)
        monkeypatch.undo()
        await soon(lambda: not webhooks._gone)
        assert len(there.got) == 1


async def test_telling_twice_tells_once_more_at_most_and_under_one_id() -> None:
    async with receiver() as there, life(None, there.config()) as one:
        webhooks = one.fleet.gateway.webhooks
        there.gate.clear()
        for _ in range(3):
            await webhooks.tell("response.failed", "resp_1", 1)
        await there.until(1)
        there.gate.set()
        await webhooks.tell("response.failed", "resp_2", 1)
        await there.until(2)
        await webhooks.tell("response.failed", "resp_1", 1)
        got = await there.until(3)
        assert ids(got) == ["resp_1", "resp_2", "resp_1"]
        assert got[0].id == got[2].id != got[1].id


async def test_who_goes_away_while_telling_has_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async with receiver() as there, life(None, there.config()) as one:
        database = one.fleet.gateway.store.database
        write, held, reached = database.write, asyncio.Event(), asyncio.Event()

        async def slow(work: Any) -> Any:
            reached.set()
            await held.wait()
            return await write(work)

        monkeypatch.setattr(database, "write", slow)
        telling = asyncio.create_task(
            one.fleet.gateway.webhooks.tell("response.completed", "resp_1", 1)
        )
        await reached.wait()
        telling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await telling
        held.set()
        assert ids(await there.until(1)) == ["resp_1"]


async def test_more_than_may_wait_costs_the_oldest(caplog: pytest.LogCaptureFixture) -> None:
    async with receiver() as there:
        there.gate.clear()
        async with life(None, there.config(), webhook_tries_max=1, webhook_backlog_max=2) as one:
            webhooks = one.fleet.gateway.webhooks
            for number in range(4):
                await webhooks.tell("response.completed", f"resp_{number}", 1)
            host = there.url.split("/")[2]
            said = await metrics(one)
            assert said[f'qlm_webhook_deliveries_waiting{{webhook="{host}"}}'] == 2
            assert said[f'qlm_webhook_dropped_total{{reason="crowded",webhook="{host}"}}'] == 2
            there.gate.set()
            assert ids(await there.until(2)) == ["resp_0", "resp_3"]
    assert [each.id for each in caplog.records if "is not told" in each.message] == [  # type: ignore[attr-defined]
        "resp_1",
        "resp_2",
    ]


async def test_three_days_are_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(wh, "TRIED_S", 0.3)
    async with receiver() as there:
        there.answer = 500
        async with life(tmp_path, there.config()) as one:
            await ended(one)
            await soon(lambda: "is not told" in caplog.text)
        assert kept(tmp_path) == []
        assert len(there.got) > 2


async def test_nothing_that_is_secret_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with receiver(path="/hooks/swordfish?token=sesame") as there:
        there.answers = [500]
        async with life(None, there.config()) as one:
            await ended(one)
            await there.until(2)
            await soon(lambda: "takes events again" in caplog.text)
        assert there.got[0].path == "/hooks/swordfish?token=sesame"
    ours = [record for record in caplog.records if not record.name.startswith("aiohttp.access")]
    said = "\n".join(f"{record.getMessage()} {vars(record)}" for record in ours)
    for secret in ("swordfish", "sesame", "whsec_"):
        assert secret not in said


async def test_without_webhooks_nothing_is_kept(tmp_path: Path) -> None:
    async with life(tmp_path) as one:
        await ended(one)
        await one.fleet.gateway.webhooks.tell("response.completed", "resp_1", 1)
        assert await metrics(one) == {}
    assert kept(tmp_path) == []


async def test_a_fault_in_a_try_is_one_more_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    async with receiver() as there, life(None, there.config()) as one:
        failpoints.arm("gateway.webhooks.sent=error")
        try:
            await one.fleet.gateway.webhooks.tell("response.completed", "resp_1", 1)
            first, second = await there.until(2)
            assert first.id == second.id
        finally:
            failpoints.arm("")
