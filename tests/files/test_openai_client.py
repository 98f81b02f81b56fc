"""The unmodified `openai` client on /v1/files: every call, as it is and awaited, and its paging."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.files.forms import LINES
from tests.gateway.peers import config, running

EXPIRY: Any = {"anchor": "created_at", "seconds": 3_600}


@pytest.fixture
async def url() -> AsyncIterator[str]:
    async with running(config()) as (_, at):
        yield f"http://{at.http}/v1"


async def test_every_call_from_a_thread(url: str, tmp_path: Path) -> None:
    path = tmp_path / "größe.jsonl"
    path.write_bytes(LINES * 100)

    def work() -> None:
        with openai.OpenAI(base_url=url, api_key="unused", max_retries=0) as client:
            made = client.files.create(file=path, purpose="batch", expires_after=EXPIRY)
            assert (made.filename, made.bytes) == (path.name, 100 * len(LINES))
            assert (made.object, made.purpose, made.status) == ("file", "batch", "processed")
            assert made.expires_at == made.created_at + 3_600
            assert client.files.retrieve(made.id) == made
            assert client.files.wait_for_processing(made.id) == made
            assert client.files.content(made.id).read() == LINES * 100
            client.files.content(made.id).write_to_file(tmp_path / "copy")
            assert (tmp_path / "copy").read_bytes() == LINES * 100
            with path.open("rb") as file:
                other = client.files.create(file=file, purpose="user_data")
            assert other.expires_at is None
            assert [file.id for file in client.files.list()] == [other.id, made.id]
            assert [file.id for file in client.files.list(purpose="batch")] == [made.id]
            deleted = client.files.delete(made.id)
            assert (deleted.id, deleted.deleted, deleted.object) == (made.id, True, "file")
            for call in (client.files.retrieve, client.files.content, client.files.delete):
                with pytest.raises(openai.NotFoundError, match="No such File object"):
                    call(made.id)

    await asyncio.to_thread(work)


async def test_every_call_awaited(url: str) -> None:
    async with openai.AsyncOpenAI(base_url=url, api_key="unused", max_retries=0) as client:
        made = await client.files.create(file=("in.jsonl", LINES), purpose="batch")
        assert made.expires_at == made.created_at + 30 * 86_400
        assert await client.files.retrieve(made.id) == made
        assert (await client.files.content(made.id)).text == LINES.decode()
        async with client.files.with_streaming_response.content(made.id) as answer:
            assert b"".join([part async for part in answer.iter_bytes(10)]) == LINES
        # Bytes and what has no name are called "upload" by the client.
        named = await client.files.create(file=io.BytesIO(b""), purpose="user_data")
        assert (named.filename, named.bytes) == ("upload", 0)
        assert (await client.files.delete(made.id)).deleted
        assert [file.id async for file in client.files.list()] == [named.id]


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_its_pages_are_the_whole_list(order: Any, url: str) -> None:
    async with openai.AsyncOpenAI(base_url=url, api_key="unused", max_retries=0) as client:
        made = [
            (await client.files.create(file=("in.jsonl", LINES), purpose="batch")).id
            for _ in range(7)
        ]
        expected = made if order == "asc" else made[::-1]
        page = await client.files.list(limit=3, order=order)
        assert ([file.id for file in page.data], page.has_more) == (expected[:3], True)
        assert (page.first_id, page.last_id) == (expected[0], expected[2])  # type: ignore[attr-defined]
        assert [file.id async for file in client.files.list(limit=3, order=order)] == expected
        # As people clear up.
        async for file in client.files.list(limit=3, order=order):
            await client.files.delete(file.id)
        assert (await client.files.list()).data == []


async def test_what_is_refused_is_an_exception_of_its_own(url: str) -> None:
    async with openai.AsyncOpenAI(base_url=url, api_key="unused", max_retries=0) as client:
        with pytest.raises(openai.BadRequestError) as raised:
            await client.files.create(file=("in.json", LINES), purpose="batch")
        assert raised.value.body == {
            "message": "Invalid file format for Batch API. Must be .jsonl",
            "type": "invalid_request_error",
            "param": None,
            "code": None,
        }
        # It reads the answer although it sends all of a large body first.
        with pytest.raises(openai.BadRequestError, match="purpose"):
            await client.files.create(file=("a", b"x" * 20_000_000), purpose="fine-tune")
    async with running(
        config(files={"file_bytes_max": 1_000_000, "batch_file_bytes_max": 1_000})
    ) as (
        _,
        at,
    ):
        small = f"http://{at.http}/v1"
        async with openai.AsyncOpenAI(base_url=small, api_key="unused", max_retries=0) as client:
            with pytest.raises(openai.APIStatusError) as too_large:
                await client.files.create(file=("a", b"x" * 9_000_000), purpose="user_data")
            assert (too_large.value.status_code, too_large.value.code) == (413, "file_too_large")
