"""LiteLLM's proxy before a gateway, and what somebody asks of it with OpenAI's client. Run by the interpreter of an environment
that has both.

`night` is a server that LiteLLM knows as vLLM's: it asks such a one whether it has files, and runs batches itself where it has
none.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
from openai import AsyncOpenAI

PATH = "/v1/chat/completions"
PATIENCE_S = 120.0
KEY = f"sk-{secrets.token_hex(32)}"
# An answer may be shorter than its limit.
ANSWERED = ("completed", "incomplete")
MESSAGES: list[Any] = [{"role": "user", "content": "Hello?"}]


def configuration(url: str, model: str) -> dict[str, Any]:
    there = {"api_base": url, "api_key": "unused"}
    return {
        "model_list": [
            {"model_name": "night", "litellm_params": {"model": f"hosted_vllm/{model}"} | there},
            {"model_name": "day", "litellm_params": {"model": f"openai/{model}"} | there},
        ],
        "files_settings": [{"custom_llm_provider": "openai"} | there],
        "general_settings": {"master_key": KEY},
    }


@contextlib.asynccontextmanager
async def proxy(folder: Path, url: str, model: str) -> AsyncIterator[str]:
    """A proxy that serves, and its address."""
    file = folder / "config.yaml"
    file.write_text(json.dumps(configuration(url, model)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            str(Path(sys.executable).parent / "litellm"),
            *("--config", str(file), "--host", "127.0.0.1", "--port", str(port)),
            stdout=log,
            stderr=log,
            # Prices of models come with the package; it need not fetch newer ones.
            env=os.environ | {"LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        )
        try:
            at = f"http://127.0.0.1:{port}"
            async with httpx.AsyncClient() as client, asyncio.timeout(PATIENCE_S):
                while process.returncode is None:
                    with contextlib.suppress(httpx.HTTPError):
                        answer = await client.get(f"{at}/health/liveliness")
                        if answer.status_code == 200:
                            break
                    await asyncio.sleep(0.2)
            yield at
        except BaseException:
            sys.stderr.write((folder / "log").read_text()[-8_000:])
            raise
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            await process.wait()


async def batched(client: AsyncOpenAI, name: str, extra: dict[str, Any]) -> list[Any]:
    """Run a batch of some lines; returns how it ended and its answers."""
    lines = [
        {
            "custom_id": f"line-{number}",
            "method": "POST",
            "url": PATH,
            "body": {"model": name, "messages": MESSAGES, "max_tokens": 3 + number},
        }
        for number in range(5)
    ]
    data = "\n".join(map(json.dumps, lines)).encode()
    file = await client.files.create(file=("in.jsonl", data), purpose="batch", **extra)
    batch = await client.batches.create(
        input_file_id=file.id, endpoint=PATH, completion_window="24h", **extra
    )
    async with asyncio.timeout(PATIENCE_S):
        while batch.status not in ("completed", "failed", "expired", "cancelled"):
            await asyncio.sleep(0.2)
            batch = await client.batches.retrieve(batch.id, **extra)
    if batch.output_file_id is None:
        return [batch.status, batch.errors and batch.errors.to_dict()]
    content = await client.files.content(batch.output_file_id, **extra)
    answers = [json.loads(line)["response"]["body"] for line in content.text.splitlines()]
    return [batch.status, sorted(one["usage"]["completion_tokens"] for one in answers)]


async def given_up(client: AsyncOpenAI, model: str) -> list[Any]:
    """Cancel a batch that would take long, find it and its files in lists, and delete its input."""
    body = {"model": model, "messages": MESSAGES, "max_tokens": 4_000}
    body["qlm_sim"] = {"output_tokens": 4_000}
    line = {"custom_id": "long", "method": "POST", "url": PATH, "body": body}
    data = json.dumps(line).encode()
    file = await client.files.create(file=("long.jsonl", data), purpose="batch")
    batch = await client.batches.create(
        input_file_id=file.id, endpoint=PATH, completion_window="24h", metadata={"of": "the night"}
    )
    told = await client.batches.cancel(batch.id)
    async with asyncio.timeout(PATIENCE_S):
        while told.status != "cancelled":
            await asyncio.sleep(0.2)
            told = await client.batches.retrieve(batch.id)
    assert batch.id in [one.id async for one in client.batches.list(limit=2)]
    assert file.id in [one.id async for one in client.files.list(purpose="batch")]
    assert (await client.files.retrieve(file.id)).bytes == len(data)
    assert (await client.files.content(file.id)).content == data
    deleted = await client.files.delete(file.id)
    return [told.status, told.metadata, deleted.deleted]


async def polled(client: AsyncOpenAI) -> list[Any]:
    """A response in the background, polled for, one that is cancelled, and one that goes on."""
    asked: Any = {"model": "day", "input": "Hi", "max_output_tokens": 20, "background": True}
    made = await client.responses.create(**asked)
    first = made.status
    async with asyncio.timeout(PATIENCE_S):
        while made.status in ("queued", "in_progress"):
            await asyncio.sleep(0.1)
            made = await client.responses.retrieve(made.id)
    other = await client.responses.create(**asked)
    # It may have been faster.
    over = (await client.responses.cancel(other.id)).status in ("cancelled", *ANSWERED)
    later = await client.responses.create(
        model="day", input="Really?", previous_response_id=made.id, max_output_tokens=20
    )
    return [
        first in ("queued", "in_progress"),
        made.status in ANSWERED,
        over,
        later.status in ANSWERED,
    ]


async def main(url: str, model: str) -> None:
    """Chat, respond and embed through the proxy, and run batches, by the provider and by the name of a model."""
    said: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        async with (
            proxy(Path(folder), url, model) as at,
            AsyncOpenAI(base_url=f"{at}/v1", api_key=KEY, max_retries=0) as client,
        ):
            for name in ("night", "day"):
                chat = await client.chat.completions.create(
                    model=name, messages=MESSAGES, max_tokens=4
                )
                assert chat.usage is not None
                stream = await client.chat.completions.create(
                    model=name, messages=MESSAGES, max_tokens=4, stream=True
                )
                chunks = [chunk async for chunk in stream]
                texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
                said[f"chat {name}"] = [chat.usage.completion_tokens, bool("".join(texts))]
            response = await client.responses.create(model="day", input="Hi", max_output_tokens=5)
            assert response.usage is not None
            # It asks for at least so many tokens, as OpenAI does.
            said["response"] = [response.status in ANSWERED, response.usage.output_tokens <= 16]
            found = await client.embeddings.create(model="night", input=["One", "Two"])
            said["embeddings"] = len(found.data)
            said["batch by provider"] = await batched(client, model, {})
            header = {"extra_headers": {"x-litellm-model": "night"}}
            said["batch by model"] = await batched(client, model, header)
            said["given up"] = await given_up(client, model)
            said["background"] = await polled(client)
    print(json.dumps(said))  # noqa: T201 (it is what the test reads)


asyncio.run(main(*sys.argv[1:]))
