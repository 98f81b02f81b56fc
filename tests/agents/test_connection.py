"""The request path to one server: how output is counted, how attempts go on, and that every job ends."""

from __future__ import annotations

import json

import pytest

from agents.engines import connection
from agents.engines.reading import Reader, Reading
from agents.engines.requests import Abilities, prepare
from qlm_core.endpoint import Endpoint
from qlm_core.executor import JobDone, JobLost
from qlm_core.messages import Payload
from qlm_core.model import ModelName, RequestId
from tests.agents.harness import OpenAIHarness

IDS = [5, 6, 7]


def event(choice: int, completion_tokens: int, *, finish: str | None = None) -> bytes:
    """A chunk as vLLM writes it, with the running count of its choice."""
    part = {"index": choice, "text": "x", "finish_reason": finish}
    usage = {"prompt_tokens": 5, "completion_tokens": completion_tokens}
    return json.dumps({"choices": [part], "usage": usage}).encode()


def taken(reader: Reader, chunk: bytes) -> int:
    [output] = reader.take(chunk)
    return output.tokens


def reader(choices: int = 1) -> Reader:
    job = Payload(RequestId("a"), 1, ModelName("m"), Endpoint.COMPLETIONS, b"{}")
    return Reader(job, Reading(choices=choices))


class TestCounts:
    def test_running_counts_are_of_one_choice_each(self):
        counted, tokens = reader(2), 0
        # The second choice starts late and lags behind.
        for count in range(1, 51):
            tokens += taken(counted, event(0, count))
        for count in range(1, 51):
            tokens += taken(counted, event(0, 50 + count, finish="stop" if count == 50 else None))
            tokens += taken(counted, event(1, count, finish="length" if count == 50 else None))
        assert tokens == 150
        end = counted.end()
        assert isinstance(end, JobDone)
        assert (end.prompt_tokens, end.output_tokens) == (5, 150)

    @pytest.mark.parametrize(("details", "cached"), [({"cached_tokens": 8}, 8), (None, None)])
    def test_what_was_found_in_a_cache_is_passed_on_where_it_is_told(
        self, details: dict[str, int] | None, cached: int | None
    ):
        counted = reader()
        counted.take(event(0, 1, finish="stop"))
        usage = {"prompt_tokens": 9, "completion_tokens": 1, "prompt_tokens_details": details}
        counted.take(json.dumps({"choices": [], "usage": usage}).encode())
        end = counted.end()
        assert isinstance(end, JobDone)
        assert end.cached_tokens == cached

    def test_the_last_count_is_of_all_choices(self):
        counted = reader(2)
        assert taken(counted, event(0, 2, finish="stop")) == 2
        assert taken(counted, event(1, 3, finish="stop")) == 3
        usage = {"prompt_tokens": 9, "completion_tokens": 6}
        assert counted.take(json.dumps({"choices": [], "usage": usage}).encode()) == []
        end = counted.end()
        assert isinstance(end, JobDone)
        assert (end.prompt_tokens, end.output_tokens) == (9, 6)

    def test_without_running_counts_a_chunk_is_a_token(self):
        counted = reader()
        for finish in (None, None, "stop"):
            choice = {"index": 0, "text": "x", "finish_reason": finish}
            chunk = {"choices": [choice], "usage": None}
            assert taken(counted, json.dumps(chunk).encode()) == 1
        end = counted.end()
        assert isinstance(end, JobDone)
        assert end.output_tokens == 3


class NoHelp:
    """A server that is not to be asked about tokens."""

    async def tokenize(self, served: str, text: str) -> list[int]:
        raise AssertionError(f"{served} was asked to tokenize {text!r}")

    async def detokenize(self, served: str, ids: list[int]) -> str | None:
        raise AssertionError(f"{served} was asked for the text of {ids}")


class TestContinuing:
    async def test_a_message_that_the_client_began_is_extended(self):
        body = {
            "messages": [
                {"role": "user", "content": "Write JSON"},
                {"role": "assistant", "content": '{"name":', "name": "x"},
            ],
            "continue_final_message": True,
            "add_generation_prompt": False,
        }
        job = Payload(
            RequestId("a"), 2, ModelName("m"), Endpoint.CHAT_COMPLETIONS, json.dumps(body).encode(),
            resume_text=' "Ada"', produced_tokens=2,
        )  # fmt: skip
        prepared = json.loads((await prepare(job, "m", NoHelp(), Abilities())).body)
        assert prepared["messages"] == [
            {"role": "user", "content": "Write JSON"},
            {"role": "assistant", "content": '{"name": "Ada"', "name": "x"},
        ]
        assert prepared["continue_final_message"] is True
        assert prepared["add_generation_prompt"] is False

    @pytest.mark.parametrize(
        "answer",
        [
            (404, {"detail": "Not Found"}),
            (503, {}),
            (200, {"count": 3}),
            (200, {"tokens": []}),
            (200, [{"id": 1}]),
        ],
    )
    async def test_a_server_that_cannot_tokenize_loses_the_attempt_to_continue_token_ids(
        self, answer: tuple[int, object]
    ):
        async with OpenAIHarness.started() as harness:
            harness.server.tokenized = answer
            job = harness.job(
                "a", 10, prompt=IDS, attempt=2, resume_text=" t0 t1", produced_tokens=2
            )
            harness.engine.submit(job)
            assert isinstance(await harness.heard.end_of("a"), JobLost)
            assert harness.server.bodies == []


class TestEveryJobEnds:
    async def test_an_unexpected_error_loses_the_job_and_is_logged_without_the_prompt(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ):
        async def prepare(job: Payload, *_: object, **__: object) -> None:
            raise RuntimeError(f"not foreseen: {job.body!r}")

        monkeypatch.setattr(connection, "prepare", prepare)
        async with OpenAIHarness.started() as harness:
            harness.engine.submit(harness.job("a", 10, prompt="secret"))
            assert isinstance(await harness.heard.end_of("a"), JobLost)
        [record] = [one for one in caplog.records if one.message == "job lost"]
        assert record.id == "a"  # type: ignore[attr-defined]
        assert record.reason.startswith("RuntimeError in _run:")  # type: ignore[attr-defined]
        assert "secret" not in repr(vars(record))

    async def test_servers_are_asked_not_to_compress(self):
        async with OpenAIHarness.started() as harness:
            harness.engine.submit(harness.job("a", 3))
            assert isinstance(await harness.heard.end_of("a"), JobDone)
            [headers] = harness.server.headers
            assert headers["Accept-Encoding"] == "identity"
