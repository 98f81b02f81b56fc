"""Who sees which batches, lists and their pages, submissions under a key, limits, and the blocking client."""

from __future__ import annotations

import asyncio

import openai
import pytest
from openai import OpenAI

from gateway.store import StoreError
from tests.batches.beds import CHAT, Bed, bed, chat, chats, client_of, jsonl

KEYS = {
    "alice": {"key": "alice-key", "classes": ["interactive", "batch-1"], "models": ["tiny"]},
    "bob": {"key": "bob-key", "requests_max": 1},
    "admin": {"key": "admin-key", "operator": True},
}


async def test_batches_are_listed_newest_first_in_pages() -> None:
    async with bed() as one:
        file_id = await one.upload(chats(1))
        made = [
            await one.client.batches.create(
                input_file_id=file_id, endpoint=CHAT, completion_window="24h"
            )
            for _ in range(5)
        ]
        newest = [batch.id for batch in reversed(made)]
        page = await one.client.batches.list(limit=2)
        assert [batch.id for batch in page.data] == newest[:2]
        assert page.has_more
        assert [batch.id async for batch in one.client.batches.list(limit=2)] == newest
        rest = await one.client.batches.list(after=newest[3])
        assert [batch.id for batch in rest.data] == newest[4:]
        assert not rest.has_more
        for limit in (0, 101):
            with pytest.raises(openai.BadRequestError):
                await one.client.batches.list(limit=limit)
        with pytest.raises(openai.NotFoundError):
            await one.client.batches.list(after="batch_000000000000000000000000")


async def test_an_empty_list_has_no_ids() -> None:
    async with bed() as one:
        page = await one.client.get("/batches", cast_to=object)
        assert page == {
            "object": "list",
            "data": [],
            "first_id": None,
            "last_id": None,
            "has_more": False,
        }


@pytest.mark.parametrize("id", ["batch_000000000000000000000000", "odd", "batch_'; --"])
async def test_an_unknown_batch_is_not_found(id: str) -> None:
    async with bed() as one:
        for ask in (one.client.batches.retrieve, one.client.batches.cancel):
            with pytest.raises(openai.NotFoundError) as caught:
                await ask(id)
            assert f"No batch found with id '{id}'." in str(caught.value)


async def test_anothers_batch_is_as_one_that_never_was() -> None:
    async with (
        bed(api_keys=KEYS) as one,
        client_of(one.fleet.url, "alice-key") as alice,
        client_of(one.fleet.url, "bob-key") as bob,
        client_of(one.fleet.url, "admin-key") as admin,
    ):
        one.answer()
        one.client = alice
        made = await one.create(chats(3))
        batch = await one.until(made)
        assert batch.status == "completed"
        for ask in (bob.batches.retrieve, bob.batches.cancel):
            with pytest.raises(openai.NotFoundError) as caught:
                await ask(batch.id)
            assert f"No batch found with id '{batch.id}'." in str(caught.value)
        with pytest.raises(openai.NotFoundError):
            await bob.files.content(batch.output_file_id or "")
        assert (await bob.batches.list()).data == []
        # Neither is another's file an input.
        stolen = await bob.batches.create(
            input_file_id=made.input_file_id, endpoint=CHAT, completion_window="24h"
        )
        one.client = bob
        assert (await one.until(stolen)).status == "failed"
        assert {batch.id for batch in (await admin.batches.list()).data} == {batch.id, stolen.id}


async def test_lines_keep_to_what_their_tenant_may_ask_for_and_do_not_count_as_his_requests() -> (
    None
):
    async with (
        bed(api_keys=KEYS) as one,
        client_of(one.fleet.url, "alice-key") as alice,
        client_of(one.fleet.url, "bob-key") as bob,
    ):
        one.answer()
        one.client = alice
        other = await one.until(await one.create(chats(1, model="other")))
        assert other.errors is not None
        assert other.errors.data is not None
        assert other.errors.data[0].code == "model_not_found"
        await one.until(await one.create(chats(1)))
        arrived = [fact for fact in one.fleet.solver.facts if hasattr(fact, "request")]
        assert arrived[-1].request.slo_class == "batch-1"
        # Bob may have one open request, and three lines of his are open.
        one.client = bob
        one.answer(lambda payload, said: None if said.startswith("line") else "here")
        await one.until(await one.create(chats(3)), "in_progress")
        answer = await bob.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "hello"}]
        )
        assert answer.choices[0].message.content == "here"


async def test_a_key_names_one_batch() -> None:
    async with bed() as one:
        file_id = await one.upload(chats(1))
        key = {"idempotency-key": "night"}

        async def create(window: str) -> str:
            batch = await one.client.batches.create(
                input_file_id=file_id,
                endpoint=CHAT,
                completion_window=window,  # type: ignore[arg-type]
                extra_headers=key,
            )
            return batch.id

        ids = await asyncio.gather(*(create("24h") for _ in range(4)))
        assert len(dict.fromkeys(ids)) == 1
        with pytest.raises(openai.ConflictError) as caught:
            await create("48h")
        assert caught.value.response.headers["x-should-retry"] == "false"
        assert len((await one.client.batches.list()).data) == 1
        folder = one.fleet.gateway.batches.folder
        assert len(list(folder.iterdir())) <= 1


async def test_more_batches_than_may_be_open_are_told_to_come_back() -> None:
    async with bed(batches={"tenant_open_batches_max": 2}) as one:
        one.answer(lambda payload, said: None)
        client = one.client.with_options(max_retries=0)
        made = [await one.create(chats(1)) for _ in range(2)]
        one.client = client
        with pytest.raises(openai.RateLimitError) as caught:
            await one.create(chats(1))
        assert "tenant_open_batches_max" in str(caught.value)
        await one.until(await client.batches.cancel(made[0].id))
        await one.create(chats(1))


async def test_more_tokens_of_a_model_than_may_wait_fail_a_batch() -> None:
    limits = {"tenant_tokens_max": 20, "waiting_lines_max": 1}
    async with bed(pulls=False, batches=limits) as one:
        # Two tokens a line, of which the first is a request.
        first = await one.until(await one.create(chats(6)), "in_progress")
        await one.until(await one.create(chats(5, model="other")), "in_progress")
        second = await one.until(await one.create([*chats(6), chat("a", model="elsewhere")]))
        assert second.status == "failed"
        assert second.errors is not None
        assert second.errors.data is not None
        (fault,) = second.errors.data
        assert (fault.code, fault.param, fault.line) == ("token_limit_exceeded", None, None)
        assert fault.message is not None
        assert fault.message.startswith("Enqueued token limit reached for tiny. Limit: 20 ")
        assert "of which your other batches have 10." in fault.message
        await one.until(await one.client.batches.cancel(first.id))
        await one.until(await one.create(chats(6)), "in_progress")


async def test_tokens_of_other_tenants_do_not_count() -> None:
    limits = {"tenant_tokens_max": 20, "waiting_lines_max": 1}
    async with bed(pulls=False, api_keys=KEYS, batches=limits) as one:
        for key in ("alice-key", "bob-key"):
            async with client_of(one.fleet.url, key) as client:
                theirs = Bed(one.fleet, client)
                await theirs.until(await theirs.create(chats(9)), "in_progress")


async def test_a_store_that_fails_takes_no_batch() -> None:
    async with bed() as one:
        file_id = await one.upload(chats(1))
        database = one.fleet.gateway.batches.database

        async def fail(work: object) -> None:
            raise StoreError("the disk is full")

        write, database.write = database.write, fail  # type: ignore[method-assign, assignment]
        client = one.client.with_options(max_retries=0)
        try:
            with pytest.raises(openai.InternalServerError):
                await client.batches.create(
                    input_file_id=file_id, endpoint=CHAT, completion_window="24h"
                )
        finally:
            database.write = write  # type: ignore[method-assign]
        assert list(one.fleet.gateway.batches.folder.iterdir()) == []
        assert (await client.batches.list()).data == []


async def test_the_blocking_client_works_as_well() -> None:
    async with bed() as one:
        one.answer()

        def work() -> tuple[str, str]:
            with OpenAI(base_url=f"{one.fleet.url}/v1", api_key="unused") as client:
                file = client.files.create(file=("in.jsonl", jsonl(chats(5))), purpose="batch")
                batch = client.batches.create(
                    input_file_id=file.id, endpoint=CHAT, completion_window="24h"
                )
                while batch.status not in ("completed", "failed"):
                    batch = client.batches.retrieve(batch.id)
                assert [one.id for one in client.batches.list()] == [batch.id]
                return batch.status, client.files.content(batch.output_file_id or "").text

        status, text = await asyncio.to_thread(work)
        assert status == "completed"
        assert len(text.splitlines()) == 5
