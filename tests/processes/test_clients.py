"""Clients as users have them, against a fleet of real processes: the unchanged OpenAI client, ours, and the shell."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
import pytest_asyncio

from agents.engines.sim import token_text
from qlm import config_file, fleet
from qlm.client import Accepted, AsyncClient, Busy, Client, Ended, Output, Standing
from qlm_core.config import GatewayLimits
from qlm_core.errors import NotFound, QlmError, Unavailable
from qlm_core.model import Phase, Slo

AGENTS = "agents=[{name: one, gpu: a100, models: [mistral-7b], engine: {sim: {time_scale: 20}}}]"
KEY = "a-key-for-tests"
TOKENS = 12
MESSAGES = [{"role": "user", "content": "Say something."}]
# A field that OpenAI does not know; the sim engine obeys it, so it must have come through.
EXTRA = {"qlm_sim": {"output_tokens": TOKENS}}
CHAT = {"model": "mistral-7b", "messages": MESSAGES, "max_tokens": 500}


@dataclass(frozen=True)
class Served:
    """Where a fleet that asks for a key serves."""

    http: str
    grpc: str
    file: str


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    folder = tmp_path_factory.mktemp("fleet")
    config = fleet.temporary_config(folder, [AGENTS, f"gateway.api_keys=[{KEY}]"])
    async with fleet.running(config, folder):
        gateway = config.gateway
        yield Served(gateway.http_listen, gateway.grpc_listen, str(folder / "config.yaml"))


def text_of(id: str, tokens: int = TOKENS) -> str:
    """What the sim engine answers to a request of this id."""
    return "".join(token_text(id, index) for index in range(tokens))


class TestOpenAI:
    """The openai package, with nothing but another base_url."""

    @pytest.fixture
    def options(self, served: Served) -> dict[str, Any]:
        return {"base_url": f"http://{served.http}/v1", "api_key": KEY, "max_retries": 0}

    def test_sync_chat(self, options: dict[str, Any]) -> None:
        with openai.OpenAI(**options) as api:
            whole = api.chat.completions.create(**CHAT, extra_body=EXTRA, service_tier="flex")  # type: ignore[call-overload]
            assert whole.choices[0].message.content == text_of(whole.id)
            assert (whole.choices[0].finish_reason, whole.service_tier) == ("stop", "flex")
            assert whole.usage.completion_tokens == TOKENS
            stream = api.chat.completions.create(
                **CHAT, extra_body=EXTRA, stream=True, stream_options={"include_usage": True}
            )  # type: ignore[call-overload]
            chunks = list(stream)
        assert len({chunk.id for chunk in chunks}) == 1
        texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
        assert "".join(texts) == text_of(chunks[0].id)
        assert chunks[0].choices[0].delta.role == "assistant"
        assert chunks[-1].usage.completion_tokens == TOKENS
        assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)

    def test_sync_completions(self, options: dict[str, Any]) -> None:
        body: dict[str, Any] = {"model": "mistral-7b", "prompt": "Once", "extra_body": EXTRA}
        with openai.OpenAI(**options) as api:
            whole = api.completions.create(**body, max_tokens=500)
            assert whole.choices[0].text == text_of(whole.id)
            chunks = list(api.completions.create(**body, max_tokens=5, stream=True))
        texts = [chunk.choices[0].text for chunk in chunks if chunk.choices]
        assert "".join(texts) == text_of(chunks[0].id, 5)
        assert chunks[-1].choices[0].finish_reason == "length"
        assert all(chunk.usage is None for chunk in chunks)

    async def test_async_both(self, options: dict[str, Any]) -> None:
        async with openai.AsyncOpenAI(**options) as api:
            chat, completion = await asyncio.gather(
                api.chat.completions.create(**CHAT, extra_body=EXTRA),  # type: ignore[call-overload]
                api.completions.create(model="mistral-7b", prompt="Once", extra_body=EXTRA),
            )
            assert chat.choices[0].message.content == text_of(chat.id)
            assert completion.choices[0].text == text_of(completion.id)
            stream = await api.chat.completions.create(**CHAT, extra_body=EXTRA, stream=True)  # type: ignore[call-overload]
            chunks = [chunk async for chunk in stream]
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            assert text == text_of(chunks[0].id)
            pieces = await api.completions.create(
                model="mistral-7b", prompt=[1, 2, 3], extra_body=EXTRA, stream=True
            )
            parts = [part async for part in pieces]
            assert "".join(part.choices[0].text for part in parts) == text_of(parts[0].id)

    def test_targets_by_header(self, options: dict[str, Any]) -> None:
        with openai.OpenAI(**options) as api:
            raw = api.chat.completions.with_raw_response.create(
                **CHAT,
                extra_body=EXTRA,
                extra_headers={"x-llm-d-slo-ttft-ms": "30000", "x-request-id": "mine"},
            )  # type: ignore[call-overload]
            assert raw.headers["x-request-id"] == "mine"
            assert raw.headers["x-qlm-request-id"] == raw.parse().id
            assert int(raw.headers["x-llm-d-flow-queue-duration-ms"]) >= 0

    def test_errors_are_the_clients_own(self, options: dict[str, Any]) -> None:
        with openai.OpenAI(**options) as api:
            assert [model.id for model in api.models.list()] == ["mistral-7b", "vicuna-13b"]
            with pytest.raises(openai.NotFoundError, match="Use one of: mistral-7b") as unknown:
                api.chat.completions.create(**CHAT | {"model": "gpt-9"})  # type: ignore[call-overload]
            assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
            with pytest.raises(openai.BadRequestError) as refused:
                api.chat.completions.create(**CHAT | {"messages": []})  # type: ignore[call-overload]
            assert refused.value.param == "messages"
        with (
            openai.OpenAI(**options | {"api_key": "wrong"}) as api,
            pytest.raises(openai.AuthenticationError),
        ):
            api.models.list()


class TestOurs:
    """qlm.client, blocking and not."""

    BODY = CHAT | EXTRA

    def test_a_request_is_followed(self, served: Served) -> None:
        with Client(served.grpc, api_key=KEY) as client:
            accepted, *outputs, ended = client.submit(self.BODY, slo_class="batch-1")
            assert isinstance(accepted, Accepted)
            assert accepted.slo_class == "batch-1"
            assert accepted.estimate is not None
            assert all(isinstance(output, Output) for output in outputs)
            assert "".join(output.text for output in outputs) == text_of(accepted.id)  # type: ignore[union-attr]
            assert isinstance(ended, Ended)
            assert (ended.phase, ended.output_tokens) == (Phase.FINISHED, TOKENS)
            assert ended.attained
            *again, _ = client.watch(accepted.id)
            assert "".join(output.text for output in again) == text_of(accepted.id)  # type: ignore[union-attr]

    def test_a_request_is_left_and_fetched(self, served: Served) -> None:
        with Client(served.grpc, api_key=KEY) as client:
            first = client.enqueue(self.BODY, slo=Slo(ttft_s=30.0), key="once")
            assert first.slo_class == "explicit-16s"
            assert client.enqueue(self.BODY, slo=Slo(ttft_s=30.0), key="once").id == first.id
            with pytest.raises(QlmError, match="names an earlier request") as conflict:
                client.enqueue(self.BODY, key="once")
            assert not isinstance(conflict.value, Unavailable)
            standing = client.wait(first.id)
            assert standing.ended is not None
            assert standing.response is not None
            assert standing.response["choices"][0]["message"]["content"] == text_of(first.id)

    def test_a_request_is_cancelled(self, served: Served) -> None:
        body = CHAT | {"qlm_sim": {"output_tokens": 5000}, "max_tokens": 5000}
        with Client(served.grpc, api_key=KEY) as client:
            events = client.submit(body)
            accepted = next(events)
            assert isinstance(accepted, Accepted)
            assert accepted.id in [one.id for one in client.open_requests()]
            assert client.explain(accepted.id)["id"] == accepted.id
            assert client.cancel(accepted.id) is Phase.CANCELLED
            *_, ended = events
            assert isinstance(ended, Ended)
            assert ended.phase is Phase.CANCELLED
            assert client.cancel(accepted.id) is Phase.CANCELLED

    async def test_the_asynchronous_twin(self, served: Served) -> None:
        async with AsyncClient(served.grpc, api_key=KEY) as client:
            accepted, *outputs, ended = [event async for event in client.submit(self.BODY)]
            assert isinstance(accepted, Accepted)
            assert "".join(output.text for output in outputs) == text_of(accepted.id)  # type: ignore[union-attr]
            assert isinstance(ended, Ended)
            left = [await client.enqueue(self.BODY) for _ in range(5)]
            standings: list[Standing] = await asyncio.gather(*(client.wait(e.id) for e in left))
            assert [standing.phase for standing in standings] == [Phase.FINISHED] * 5
            assert [standing async for standing in client.open_requests()] == []
            assert await client.cancel(left[0].id) is Phase.FINISHED
            assert (await client.explain(left[0].id))["phase"] == "finished"
            estimate, feasible = await client.estimate("mistral-7b", slo_class="interactive")
            assert (feasible, estimate.p50_s <= estimate.p99_s) == (True, True)
            assert [agent["id"] for agent in (await client.queues())["agents"]] == ["one"]

    async def test_errors_say_what_to_do(self, served: Served) -> None:
        async with AsyncClient(served.grpc, api_key=KEY) as client:
            with pytest.raises(NotFound, match="Use one of: mistral-7b"):
                await client.enqueue(self.BODY | {"model": "gpt-9"})
            with pytest.raises(QlmError, match=r"slo\.ttft_s: must be at least 0\.001"):
                await client.enqueue(self.BODY, slo=Slo(ttft_s=-1.0))
            limit = GatewayLimits().body_bytes_max
            for size, told in (
                (limit, "body: it has 8388"),
                (limit + 100_000, "body: it has 848"),
                (2 * limit + 100_000, "body: .* larger than max"),
            ):
                with pytest.raises(QlmError, match=told) as refused:
                    await client.enqueue(self.BODY | {"pad": "x" * size})
                assert not isinstance(refused.value, Busy)
            with pytest.raises(NotFound):
                await client.get("no-such-id")
        with Client(served.grpc) as stranger, pytest.raises(QlmError, match="API keys"):
            stranger.queues()
        with Client("127.0.0.1:1") as lost, pytest.raises(Unavailable, match="qlm up"):
            lost.queues()


class TestShell:
    """`qlm submit` and its relatives."""

    def qlm(
        self, *arguments: str, stdin: str = "", key: str = KEY
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "qlm", *arguments],
            input=stdin,
            env=os.environ | {"QLM_API_KEY": key},
            capture_output=True,
            text=True,
            timeout=60,
        )

    def test_submit_prints_the_answer(self, served: Served) -> None:
        done = self.qlm("submit", "--config", served.file, "--max-tokens", "4", "Say", "something.")
        assert done.returncode == 0, done.stderr
        head, tail = done.stderr.splitlines()
        id, _, rest = head.partition(": ")
        assert rest.startswith("interactive, estimated wait ")
        assert done.stdout == text_of(id, 4) + "\n"
        assert tail.startswith("finished (length), first token after ")
        assert tail.endswith("SLO met")

    def test_watch_shows_the_answer_of_what_was_left(self, served: Served) -> None:
        at = ("--address", served.grpc)
        left = self.qlm("submit", *at, "--no-wait", "--max-tokens", "4", "Later.").stdout.strip()
        shown = self.qlm("watch", *at, left)
        assert (shown.returncode, shown.stdout) == (0, text_of(left, 4) + "\n")
        assert self.qlm("cancel", *at, left).stdout == "finished\n"

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_whoever_stops_watching_is_told_that_the_request_goes_on(
        self, served: Served, number: signal.Signals
    ) -> None:
        body = CHAT | {"qlm_sim": {"output_tokens": 8000}, "max_tokens": 8000}
        at = ("--address", served.grpc)
        with Client(served.grpc, api_key=KEY) as client:
            left = client.enqueue(body).id
            with subprocess.Popen(
                [sys.executable, "-m", "qlm", "watch", *at, left],
                env=os.environ | {"QLM_API_KEY": KEY},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            ) as watching:
                assert watching.stdout is not None
                assert watching.stdout.read(1)
                watching.send_signal(number)
                _, said = watching.communicate()
            assert watching.returncode == 130
            assert f"the request goes on: `qlm watch {left}`" in said
            ended = client.get(left).ended
            # On a machine that is slow enough it has come to its own end meanwhile.
            assert ended is None or ended.phase is Phase.FINISHED
            assert self.qlm("cancel", *at, left).stdout in ("cancelled\n", "finished\n")

    def test_submit_leaves_and_explain_finds(self, served: Served) -> None:
        at = ("--address", served.grpc)
        left = self.qlm("submit", *at, "--no-wait", "--class", "batch-2", stdin="Later.")
        assert left.returncode == 0, left.stderr
        with Client(served.grpc, api_key=KEY) as client:
            client.wait(left.stdout.strip())
        explained = self.qlm("explain", *at, left.stdout.strip())
        assert (explained.returncode, "finished" in explained.stdout) == (0, True)

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--model", "gpt-9", "x"], "Use one of: mistral-7b, vicuna-13b"),
            (["--class", "gold", "x"], "Use one of the classes interactive, batch-1, batch-2"),
            (["--max-tokens", "-3", "x"], "max_tokens: must be a whole number"),
            ([" "], "prompt: empty"),
            (
                ["--api-key", "wrong", "x"],
                "missing or unknown API key. Send Bearer and one of the API keys.",
            ),
            (["--address", "127.0.0.1:1", "x"], "127.0.0.1:1: no gateway answers"),
            (["--set", "gateway.nonsense=1", "x"], "gateway.nonsense"),
        ],
    )
    def test_mistakes_are_one_line_and_status_2(
        self, served: Served, arguments: list[str], words: str
    ) -> None:
        failed = self.qlm("submit", "--config", served.file, *arguments)
        assert failed.returncode == 2
        assert failed.stdout == ""
        assert failed.stderr.count("\n") == 1
        assert failed.stderr.startswith("qlm: error: ")
        assert words in failed.stderr

    def test_a_wrong_port_is_recognised(self, served: Served) -> None:
        config = config_file.load(config_file.Source(path=Path(served.file)), environ={})
        for words, told in (
            (("cancel", "x", "--address", served.http), "speaks HTTP. Give the gateway's gRPC"),
            (("cancel", "x", "--address", config.gateway.agents_listen), "not for clients"),
            (("batch", "list", "--url", served.grpc), "speaks gRPC. Give the gateway's HTTP"),
        ):
            failed = self.qlm(*words)
            assert (failed.returncode, failed.stderr.count("\n")) == (2, 1)
            assert told in failed.stderr

    def test_a_replay_to_nobody_is_refused(self, served: Served, tmp_path: Path) -> None:
        trace = tmp_path / "trace.csv"
        trace.write_text("arrival_s,prompt_tokens,output_tokens\n0,10,20\n")
        for options in (
            ("--url", "http://127.0.0.1:1"),
            ("--transport", "grpc", "--address", "127.0.0.1:1"),
        ):
            failed = self.qlm("replay", str(trace), "--config", served.file, *options)
            assert failed.returncode == 2
            assert failed.stderr.count("\n") == 1
            assert "127.0.0.1:1: no gateway answers. Start one with `qlm up`." in failed.stderr

    def test_a_replay_to_a_wrong_port_is_refused(self, served: Served, tmp_path: Path) -> None:
        trace = tmp_path / "trace.csv"
        trace.write_text("arrival_s,prompt_tokens,output_tokens\n0,10,20\n")
        for options, told in (
            (("--url", f"http://{served.grpc}"), "speaks gRPC. Give the gateway's HTTP"),
            (("--transport", "grpc", "--address", served.http), "speaks HTTP. Give the gateway's"),
        ):
            failed = self.qlm("replay", str(trace), "--config", served.file, *options)
            assert (failed.returncode, failed.stderr.count("\n")) == (2, 1)
            assert told in failed.stderr

    def test_an_unreadable_trace_row_is_named(self, served: Served, tmp_path: Path) -> None:
        trace = tmp_path / "trace.csv"
        trace.write_text("arrival_s,prompt_tokens,output_tokens\n0,10,20\n1,ten,20\n")
        failed = self.qlm("replay", str(trace), "--config", served.file)
        assert failed.returncode == 2
        assert failed.stderr.count("\n") == 1
        assert f"{trace}, line 3, column prompt_tokens: 'ten' is not a number" in failed.stderr
