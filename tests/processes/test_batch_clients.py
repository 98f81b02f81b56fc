"""Clients that know nothing of us, with files, batches, responses and webhooks against a fleet of real processes.

OpenAI's client and curl always; those that need an environment of their own are asked for (CONTRIBUTING.md, "Tests"):

python3.11 -m venv /tmp/clients && /tmp/clients/bin/pip install autobatcher langchain-openai 'litellm[proxy]'
QLM_CLIENTS=/tmp/clients/bin/python pytest tests/processes/test_batch_clients.py
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import aiohttp
import openai
import pydantic
import pytest
import pytest_asyncio
from openai import types
from openai.types import Batch

from agents.engines.sim import token_text
from qlm import fleet
from tests.processes.conftest import MODEL, PATIENCE_S
from tests.processes.test_batches import AGENT, OVER
from tests.processes.test_webhooks import telling
from tests.webhooks.beds import SECRET, Got, Receiver, receiver

PYTHON = os.path.abspath(os.environ["QLM_CLIENTS"]) if os.environ.get("QLM_CLIENTS") else ""
PROGRAMS = Path(__file__).parent / "clients"
CHAT: Literal["/v1/chat/completions"] = "/v1/chat/completions"
LINES = 12
Json = dict[str, Any]

# Who is told by webhooks answers in the loop of the tests.
pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass(frozen=True)
class Served:
    """A fleet, and who is told what is over."""

    url: str
    there: Receiver

    async def told(self, subject: str) -> Got:
        """What a webhook was told of a batch or a response."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                for got in self.there.got:
                    if subject.encode() in got.body:
                        return got
                await asyncio.sleep(0.02)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    folder = tmp_path_factory.mktemp("fleet")
    async with receiver() as there:
        config = fleet.temporary_config(folder, [AGENT, telling(there)])
        async with fleet.running(config, folder) as made:
            yield Served(f"{made.url}/v1", there)


def lines(output_tokens: int) -> bytes:
    """Lines of which each has an answer of another length; every fourth is refused."""
    said = [
        {
            "custom_id": f"line-{number}",
            "method": "POST",
            "url": CHAT,
            "body": {
                "model": MODEL,
                "messages": [{"role": "user", "content": f"Question {number}."}],
                "max_tokens": 5_000 if number % 4 else -1,
                "qlm_sim": {"output_tokens": output_tokens + number},
            },
        }
        for number in range(LINES)
    ]
    return "\n".join(map(json.dumps, said)).encode()


def named(*parts: str) -> dict[str, Json]:
    """Lines of files by custom_id, each there once."""
    found = [json.loads(line) for part in parts for line in part.splitlines()]
    assert sorted(line["custom_id"] for line in found) == sorted(
        f"line-{number}" for number in range(LINES)
    )
    return {line["custom_id"]: line for line in found}


def text_of(id: str, tokens: int) -> str:
    """What the sim engine answers to a request of this id."""
    return "".join(token_text(id, index) for index in range(tokens))


def whole_batch(api: openai.OpenAI) -> Batch:
    """Submit a batch, wait for it, and hold its files against what was asked."""
    file = api.files.create(file=("night.jsonl", lines(5)), purpose="batch")
    batch = api.batches.create(
        input_file_id=file.id,
        endpoint=CHAT,
        completion_window="24h",
        metadata={"of": "the night"},
        output_expires_after={"anchor": "created_at", "seconds": 7200},
    )
    until_s = time.monotonic() + PATIENCE_S
    while batch.status not in OVER:
        assert time.monotonic() < until_s
        time.sleep(0.02)
        batch = api.batches.retrieve(batch.id)
    assert (batch.status, batch.metadata, batch.errors) == (
        "completed",
        {"of": "the night"},
        None,
    )
    counts = batch.request_counts
    assert counts is not None
    assert (counts.total, counts.completed, counts.failed) == (LINES, 3 * LINES // 4, LINES // 4)
    assert batch.output_file_id is not None
    assert batch.error_file_id is not None
    found = named(
        *(api.files.content(id).text for id in (batch.output_file_id, batch.error_file_id))
    )
    for number in range(LINES):
        response = found[f"line-{number}"]["response"]
        assert response["status_code"] == (200 if number % 4 else 400)
        if number % 4:
            chat = openai.types.chat.ChatCompletion.model_validate(response["body"])
            assert chat.choices[0].message.content == text_of(chat.id, 5 + number)
        else:
            assert response["body"]["error"]["param"] == "max_tokens"
    output = api.files.retrieve(batch.output_file_id)
    assert output.expires_at == output.created_at + 7200
    return batch


def pages(api: openai.OpenAI) -> None:
    """Upload and list files, create and list batches, page by page."""
    made = [
        api.files.create(file=(f"{number}.txt", b"x" * number), purpose="user_data")
        for number in range(1, 6)
    ]
    ids = [file.id for file in made]
    for order in ("asc", "desc"):
        pages = api.files.list(purpose="user_data", order=order, limit=2)
        found = [file.id for file in pages]
        assert found == (ids if order == "asc" else ids[::-1])
    assert api.files.content(ids[2]).read() == b"xxx"
    for id in ids:
        assert api.files.delete(id).deleted
    with pytest.raises(openai.NotFoundError):
        api.files.content(ids[2])
    batches = [
        api.batches.create(input_file_id="file-none", endpoint=CHAT, completion_window="24h").id
        for _ in range(5)
    ]
    listed = [batch.id for batch in api.batches.list(limit=2)]
    assert listed[:5] == batches[::-1]
    assert len(dict.fromkeys(listed)) == len(listed)
    rest = [batch.id for batch in api.batches.list(limit=100, after=batches[1])]
    assert rest[:1] == batches[:1]


class TestOpenAI:
    """The openai package, with nothing but another base_url."""

    @pytest.fixture
    def options(self, served: Served) -> Json:
        return {"base_url": served.url, "api_key": "unused", "webhook_secret": SECRET}

    async def test_batches_end_to_end_and_a_webhook_tells(
        self, served: Served, options: Json
    ) -> None:
        with openai.OpenAI(**options) as api:
            batch = await asyncio.to_thread(whole_batch, api)
            got = await served.told(batch.id)
            event = api.webhooks.unwrap(got.body, got.headers)
            assert event.type == "batch.completed"
            assert event.data.id == batch.id
            with pytest.raises(openai.InvalidWebhookSignatureError):
                api.webhooks.unwrap(got.body + b" ", got.headers)

    async def test_files_and_lists_of_pages(self, options: Json) -> None:
        with openai.OpenAI(**options) as api:
            await asyncio.to_thread(pages, api)

    async def test_cancel_without_blocking(self, served: Served, options: Json) -> None:
        async with openai.AsyncOpenAI(**options) as api:
            file = await api.files.create(file=("night.jsonl", lines(4_000)), purpose="batch")
            batch = await api.batches.create(
                input_file_id=file.id, endpoint=CHAT, completion_window="24h"
            )
            while batch.request_counts is None or not batch.request_counts.failed:
                batch = await api.batches.retrieve(batch.id)
            assert (await api.batches.cancel(batch.id)).status in ("cancelling", "cancelled")
            async with asyncio.timeout(PATIENCE_S):
                while batch.status not in OVER:
                    batch = await api.batches.retrieve(batch.id)
            assert (batch.status, batch.output_file_id) == ("cancelled", None)
            found = named((await api.files.content(batch.error_file_id or "")).text)
            codes = [line["error"]["code"] for line in found.values() if line["error"]]
            assert codes == ["batch_cancelled"] * (3 * LINES // 4)
            assert (await api.batches.cancel(batch.id)).status == "cancelled"
            got = await served.told(batch.id)
            assert api.webhooks.unwrap(got.body, got.headers).type == "batch.cancelled"
            listed = [one async for one in api.batches.list(limit=1)]
            assert batch.id in [one.id for one in listed]

    async def test_background_responses_are_polled_resumed_and_cancelled(
        self, served: Served, options: Json
    ) -> None:
        asked: Json = {"model": MODEL, "input": "Hello?", "background": True}
        sim = {"qlm_sim": {"output_tokens": 30}}
        async with openai.AsyncOpenAI(**options) as api:
            polled = await api.responses.create(**asked, extra_body=sim)
            assert polled.status in ("queued", "in_progress")
            async with asyncio.timeout(PATIENCE_S):
                while polled.status in ("queued", "in_progress"):
                    polled = await api.responses.retrieve(polled.id)
            assert polled.status == "completed"
            assert polled.output_text == text_of(polled.id, 30)

            events = []
            stream = await api.responses.create(**asked, stream=True, extra_body=sim)
            async for event in stream:
                events.append(event)
                if event.type == "response.output_text.delta":
                    break
            await stream.close()
            id = events[0].response.id  # type: ignore[union-attr]
            last = events[-1].sequence_number
            rest = await api.responses.retrieve(id, stream=True, starting_after=last)
            events += [event async for event in rest]
            assert [event.sequence_number for event in events] == list(range(len(events)))
            deltas = [one.delta for one in events if one.type == "response.output_text.delta"]
            assert "".join(deltas) == text_of(id, 30)
            got = await served.told(id)
            assert api.webhooks.unwrap(got.body, got.headers).type == "response.completed"

            long = {"qlm_sim": {"output_tokens": 8_000}}
            running = await api.responses.create(**asked, extra_body=long)
            assert (await api.responses.cancel(running.id)).status == "cancelled"
            assert (await api.responses.retrieve(running.id)).status == "cancelled"
            await api.responses.delete(id)
            with pytest.raises(openai.NotFoundError):
                await api.responses.retrieve(id)


async def events(session: aiohttp.ClientSession, method: str, url: str, **more: Any) -> list[Any]:
    """What a stream tells."""
    async with session.request(method, url, **more) as answer:
        text = (await answer.read()).decode()
    found = [part.partition("data: ")[2] for part in text.split("\n\n") if "data: " in part]
    return [json.loads(data) for data in found if data != "[DONE]"]


async def test_what_is_answered_holds_against_openais_types(served: Served) -> None:
    """OpenAI's own client makes objects of whatever comes; what is built on it often checks."""
    asked: Json = {"model": MODEL, "max_tokens": 3, "messages": [{"role": "user", "content": "x"}]}
    respond: Json = {"model": MODEL, "input": "x", "max_output_tokens": 20}
    stream = {"stream": True, "stream_options": {"include_usage": True}}

    async def call(method: str, path: str, **more: Any) -> Any:
        async with session.request(method, served.url + path, **more) as answer:
            return json.loads(await answer.read())

    async with aiohttp.ClientSession() as session:
        types.chat.ChatCompletion.model_validate(
            await call("POST", "/chat/completions", json=asked | {"logprobs": True})
        )
        plain = {"model": MODEL, "prompt": "x", "max_tokens": 3, "logprobs": 2}
        types.Completion.model_validate(await call("POST", "/completions", json=plain))
        url = f"{served.url}/chat/completions"
        for chunk in await events(session, "POST", url, json=asked | stream):
            types.chat.ChatCompletionChunk.model_validate(chunk)
        url = f"{served.url}/responses"
        told = await events(session, "POST", url, json=respond | {"stream": True})
        later = await call("POST", "/responses", json=respond | {"background": True})
        types.responses.Response.model_validate(later)
        told += await events(session, "GET", f"{url}/{later['id']}?stream=true")
        for event in told:
            pydantic.TypeAdapter(types.responses.ResponseStreamEvent).validate_python(event)
        types.responses.Response.model_validate(await call("GET", f"/responses/{later['id']}"))
        types.responses.ResponseItemList.model_validate(
            await call("GET", f"/responses/{later['id']}/input_items")
        )
        measured = await call("POST", "/embeddings", json={"model": MODEL, "input": ["a", "b"]})
        types.CreateEmbeddingResponse.model_validate(measured)

        line = {"custom_id": "a", "method": "POST", "url": "/v1/responses", "body": respond}
        form = aiohttp.FormData({"purpose": "batch"})
        form.add_field("file", json.dumps(line).encode(), filename="in.jsonl")
        file = types.FileObject.model_validate(await call("POST", "/files", data=form))
        wanted = {"endpoint": "/v1/responses", "completion_window": "24h"}
        for file_id, status in ((file.id, "completed"), ("file-none", "failed")):
            said = await call("POST", "/batches", json=wanted | {"input_file_id": file_id})
            async with asyncio.timeout(PATIENCE_S):
                while (batch := Batch.model_validate(said)).status not in OVER:
                    said = await call("GET", f"/batches/{batch.id}")
            assert batch.status == status
            if batch.output_file_id is not None:
                output = await call("GET", f"/files/{batch.output_file_id}/content")
                types.responses.Response.model_validate(output["response"]["body"])
        types.FileDeleted.model_validate(await call("DELETE", f"/files/{file.id}"))


async def output(*command: str, cwd: Path | None = None) -> str:
    # Of another environment's interpreter, this project's packages are not among the modules.
    known = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=cwd,
        env=known,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode()


async def test_curl(served: Served, tmp_path: Path) -> None:
    async def curl(path: str, *more: str) -> str:
        return await output("curl", "-sS", "--fail-with-body", f"{served.url}{path}", *more)

    async def asked(path: str, *more: str) -> Json:
        said: Json = json.loads(await curl(path, *more))
        return said

    (tmp_path / "night.jsonl").write_bytes(lines(5))
    form = ("-F", "purpose=batch", "-F", f"file=@{tmp_path / 'night.jsonl'}")
    file = await asked("/files", *form)
    wanted = {"input_file_id": file["id"], "endpoint": CHAT, "completion_window": "1h"}
    batch = await asked(
        "/batches", "-H", "content-type: application/json", "-d", json.dumps(wanted)
    )
    async with asyncio.timeout(PATIENCE_S):
        while batch["status"] not in OVER:
            batch = await asked(f"/batches/{batch['id']}")
    assert batch["status"] == "completed"
    found = [
        await curl(f"/files/{batch[name]}/content") for name in ("output_file_id", "error_file_id")
    ]
    named(*found)
    assert (await asked("/batches?limit=1"))["data"][0]["id"] == batch["id"]
    assert (await asked(f"/files/{file['id']}", "-X", "DELETE"))["deleted"]


@pytest.mark.skipif(
    not PYTHON, reason="needs an environment with other clients; see QLM_CLIENTS above"
)
class TestOthers:
    """Programs of other clients' users, run by the interpreter of an environment that has them."""

    async def said(self, program: str, served: Served, tmp_path: Path) -> Json:
        out = await output(PYTHON, str(PROGRAMS / program), served.url, MODEL, cwd=tmp_path)
        said: Json = json.loads(out)
        return said

    async def test_autobatcher_in_both_modes(self, served: Served, tmp_path: Path) -> None:
        assert await self.said("with_autobatcher.py", served, tmp_path) == {
            "flex": [[5 + number, "length", "flex"] for number in range(8)],
            "flex with everything": 4,
            "flex response": ["incomplete", 3],
            "embeddings": [2, True],
            "batch": [5 + number for number in range(8)],
            "events": ["batch_submitted", "batch_completed"],
            "metadata": {"of": "the night"},
            "status": "completed",
            "batch response": ["incomplete", 3],
        }

    async def test_langchain(self, served: Served, tmp_path: Path) -> None:
        assert await self.said("with_langchain.py", served, tmp_path) == {
            "chat": [6, "length", "flex"],
            "many": [6] * 6,
            "streamed": [6, True],
            "response": ["incomplete", 16],
            "streamed response": [16, True],
            "later": 16,
            "with tools": "incomplete",
            "completion": True,
            "embeddings": 3,
        }

    async def test_litellms_proxy_before_it(self, served: Served, tmp_path: Path) -> None:
        said = await self.said("through_litellm.py", served, tmp_path)
        batch = ["completed", [3, 4, 5, 6, 7]]
        assert said == {
            "chat night": [4, True],
            "chat day": [4, True],
            "embeddings": 2,
            "batch by provider": batch,
            "batch by model": batch,
            "given up": ["cancelled", {"of": "the night"}, True],
            "background": [True] * 4,
            "response": [True, True],
        }
