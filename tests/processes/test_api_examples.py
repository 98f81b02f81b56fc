"""The examples of docs/api.md and docs/responses.md, run as they stand against a fleet."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from qlm import fleet
from qlm_core.config import Config

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "api.md").read_text()
FENCED = re.compile(r"```python\n(.*?)```", re.DOTALL)
PYTHON = FENCED.findall(TEXT)
RESPONSES = FENCED.findall((ROOT / "docs" / "responses.md").read_text())
CURL = re.findall(r"^    (curl .*?)(?=\n\n|\n    curl )", TEXT, re.DOTALL | re.MULTILINE)
AGENTS = "agents=[{name: one, gpu: a100, models: [mistral-7b], engine: {sim: {time_scale: 20}}}]"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def config(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Config]:
    folder = tmp_path_factory.mktemp("fleet")
    config = fleet.temporary_config(folder, [AGENTS])
    async with fleet.running(config, folder):
        yield config


def here(text: str, config: Config) -> str:
    """An example with the default addresses replaced by those of the fleet."""
    at = config.gateway
    default = Config().gateway
    assert default.http_listen in text or default.grpc_listen in text
    return text.replace(default.http_listen, at.http_listen).replace(
        default.grpc_listen, at.grpc_listen
    )


def python(words: str) -> str:
    """The one example in Python that has these words."""
    [found] = [example for example in PYTHON if words in example]
    return found


async def output(*command: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, err.decode()
    return out.decode()


async def test_the_openai_client(config: Config) -> None:
    out = await output(sys.executable, "-c", here(python("stream=True"), config))
    assert re.search(r"\n\d+ tokens as flex\n$", out)


async def test_the_openai_client_measures(config: Config) -> None:
    out = await output(sys.executable, "-c", here(python("embeddings.create"), config))
    assert re.fullmatch(r"\[32, 32\] \d+\n", out)


async def test_the_openai_client_that_fetches_later(config: Config) -> None:
    out = await output(sys.executable, "-c", here(python("x-qlm-async"), config))
    assert out.startswith("finished ")


async def test_the_openai_client_with_patience(config: Config) -> None:
    script = here(python("timeout=2"), config)
    first, again = [await output(sys.executable, "-c", script) for _ in range(2)]
    assert first == again
    assert first.startswith("chatcmpl-")


async def test_our_client(config: Config) -> None:
    out = await output(sys.executable, "-c", here(python("import Accepted"), config))
    assert re.search(r"Phase.FINISHED (length|stop) in time", out)
    assert out.splitlines()[-1].endswith("in time")


async def test_our_asynchronous_client(config: Config) -> None:
    out = await output(sys.executable, "-c", here(python("AsyncClient"), config))
    # An answer may be so short that it is over before it can be cancelled.
    assert len(re.findall(r"<Phase.(CANCELLED|FINISHED)", out)) == 3
    assert "<Phase.CANCELLED" in out


async def test_files(config: Config) -> None:
    out = await output(sys.executable, "-c", here(python("files.list"), config))
    assert re.fullmatch(r"file-[0-9a-f]{32} \d+ True\n\['questions.jsonl'\]\n", out)


async def test_batches(config: Config) -> None:
    out = await output(sys.executable, "-c", here(python("batches.create"), config))
    assert [line.partition(" ")[0] for line in out.splitlines()] == ["page-1", "page-2", "page-3"]


async def curl(command: str, config: Config) -> str:
    words = shlex.split(here(command, config).replace("\\\n", ""))
    return await output(words[0], "-s", *words[1:])


async def test_curl(config: Config) -> None:
    command, later, *estimates = CURL
    answer = json.loads(await curl(command, config))
    assert 1 <= answer["usage"]["completion_tokens"] <= 20
    head, _, body = (await curl(later, config)).partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 202 ")
    assert f"location: /v1/requests/{json.loads(body)['id']}" in head
    said = [json.loads(await curl(estimate, config)) for estimate in estimates]
    assert [(one["object"], one["lines"]) for one in said] == [("estimate", 1), ("estimate", 50000)]


async def test_responses(config: Config) -> None:
    (script,) = RESPONSES
    out = await output(sys.executable, "-c", here(script, config))
    assert re.fullmatch(r"(completed|incomplete) \d+\n(completed|incomplete)\n", out)


def test_no_example_is_left_out() -> None:
    assert (len(PYTHON), len(CURL)) == (8, 4)
