"""What becomes of a job when its server answers oddly: each kind of input behind public bug reports of gateways.

Every case goes over a real socket, from a scripted server through the request path. The reader's own properties are in
test_reading.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from agents.engines import connection
from qlm_core.executor import JobDone, JobLost, JobOutput, JobRefused, JobTurnedAway
from tests.agents.harness import Harness
from tests.agents.scripted import CUT, DONE, DROP, END, HANG, Answer, delta, scripted, text, usage


async def ask(harness: Harness, *, chat: bool = False, attempt: int = 1, **body: Any) -> Any:
    """Submit a scripted job and wait for its end."""
    job = harness.job("a", 10, chat=chat, attempt=attempt, prompt="script")
    said = json.loads(job.body) | {"stream": True} | body
    harness.heard.events.clear()
    harness.engine.submit(
        type(job)(job.id, job.attempt, job.model, job.endpoint, json.dumps(said).encode())
    )
    return await harness.heard.end_of("a")


def chunks(harness: Harness) -> list[dict[str, Any]]:
    outputs = [event for event in harness.heard.of("a") if isinstance(event, JobOutput)]
    return [json.loads(output.data) for output in outputs]


class TestWhenAnAnswerIsOver:
    async def test_a_choice_without_an_end_is_a_lost_answer(self):
        events = [text("ab", "stop", 0), text("c", None, 1), DONE]
        async with scripted(events) as harness:
            end = await ask(harness, n=2)
            assert isinstance(end, JobLost)
            assert "1 of 2 choices" in end.reason

    @pytest.mark.parametrize(
        "tail", [[CUT], [END], [DONE], [b"{"], [{"error": {"code": 500}}], [text("c")], [HANG]]
    )
    async def test_with_its_finish_reason_it_is_over_whatever_follows(
        self, tail: list[Any], monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(connection, "_CLOSING_S", 0.05)
        async with scripted([text("a"), text("b", "stop"), *tail]) as harness:
            end = await ask(harness)
            assert isinstance(end, JobDone)
            assert (end.finish_reason, end.output_tokens) == ("stop", 2)
            assert harness.heard.text("a") == "ab"

    @pytest.mark.parametrize("tail", [[CUT], [END], [DONE]])
    async def test_without_one_it_is_lost(self, tail: list[Any]):
        async with scripted([text("a"), text("b"), *tail]) as harness:
            assert isinstance(await ask(harness), JobLost)

    async def test_each_prompt_has_its_choices(self):
        events = [text("a", "stop", 0), text("b", "stop", 1), text("c", "stop", 2), DONE]
        async with scripted(events) as harness:
            assert isinstance(await ask(harness, prompt=["script", "q", "r"]), JobDone)
            end = await ask(harness, prompt=["script", "q"], n=2)
            assert isinstance(end, JobLost)

    @pytest.mark.parametrize("reason", ["abort", "error"])
    async def test_an_engine_that_breaks_off_has_not_finished_and_nobody_is_told_so(
        self, reason: str
    ):
        async with scripted([text("a"), text("b", reason), DONE]) as harness:
            assert isinstance(await ask(harness), JobLost)
            assert [chunk["choices"][0]["finish_reason"] for chunk in chunks(harness)] == [None]

    async def test_a_finish_reason_that_says_null_in_words_is_none(self):
        async with scripted([text("a", "null"), text("b", "stop"), DONE]) as harness:
            assert isinstance(await ask(harness), JobDone)
            assert harness.heard.text("a") == "ab"


class TestOddValues:
    @pytest.mark.parametrize(
        "event",
        [
            b"",
            b'{"choices": [], "error": null}',
            b'{"object": "ping"}',
            b"null",
            b'{"choices": null}',
            b'{"choices": [null]}',
            b'{"choices": [{"index": 0, "text": null, "finish_reason": null}], "error": null}',
            b'{"choices": [{"index": 0, "text": "", "logprobs": {"token_logprobs": [-Infinity]}}]}',
            b'{"choices": [{"index": 0, "text": "", "x": "\\ud800"}]}',
            b'{"choices": [{"index": 0, "text": "", "x": 1e999, "y": 99999999999999999999}]}',
            b'{"choices": [{"index": "0", "text": "", "x": "\xff\xfe"}]}',
            b'{"choices": [{"text": "", "finish_reason": ""}]}',
            b'{"choices": [{"text": ""}], "usage": {"prompt_tokens": -1, "completion_tokens": 1e300}}',
            b'{"choices": [{"text": ""}], "usage": []}',
        ],
    )
    async def test_what_is_not_needed_harms_nothing(self, event: bytes):
        events = [text("a"), event, text("b", "stop"), usage(7, 2), DONE]
        async with scripted(events) as harness:
            end = await ask(harness)
            assert isinstance(end, JobDone)
            assert (end.prompt_tokens, end.output_tokens) == (7, 2)
            assert harness.heard.text("a") == "ab"

    async def test_what_is_no_number_in_json_becomes_null(self):
        odd = b'{"choices": [{"index": 0, "text": "a", "logprobs": {"token_logprobs": [-Infinity, NaN, 1]}}]}'
        async with scripted([odd, text("b", "stop"), DONE]) as harness:
            assert isinstance(await ask(harness), JobDone)
            assert chunks(harness)[0]["choices"][0]["logprobs"]["token_logprobs"] == [None, None, 1]

    @pytest.mark.parametrize(
        "event",
        [
            b"{",
            b"[1]",
            b"words",
            {"choices": "x"},
            {"choices": ["x"]},
            text(["a"]),  # type: ignore[arg-type]
            text("a", {"type": "stop"}),  # type: ignore[arg-type]
            text("a", None, 7),
        ],
    )
    async def test_what_cannot_be_read_fails_the_request_once_and_says_why(self, event: Any):
        async with scripted([text("a"), event, text("b", "stop"), DONE]) as harness:
            end = await ask(harness)
            assert isinstance(end, JobRefused)
            assert end.status == 502
            assert "cannot be read" in end.error

    async def test_content_in_parts_is_its_text_or_unreadable(self):
        parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
        async with scripted(
            [delta(role="assistant", content=parts), delta("stop", content="c")]
        ) as harness:
            assert isinstance(await ask(harness, chat=True), JobDone)
            assert harness.heard.text("a") == "abc"
        for content in ([{"type": "image"}], {"a": 1}, 3):
            async with scripted([delta(content=content), delta("stop")]) as harness:
                assert isinstance(await ask(harness, chat=True), JobRefused)

    async def test_an_event_of_five_megabytes_passes(self):
        big = text("a", None, 0, logprobs={"tokens": ["x" * 1000] * 5000})
        async with scripted([big, text("b", "stop"), DONE]) as harness:
            assert isinstance(await ask(harness), JobDone)
            assert len(chunks(harness)[0]["choices"][0]["logprobs"]["tokens"]) == 5000

    async def test_an_answer_that_is_not_streamed_is_taken_whole(self):
        answer = {"id": "x", "choices": [{"index": 0, "text": "ab", "finish_reason": "stop"}]}
        body = answer | {"usage": {"prompt_tokens": 3, "completion_tokens": 2}, "kept": [1]}
        async with scripted(Answer(body=body)) as harness:
            end = await ask(harness)
            assert isinstance(end, JobDone)
            assert (end.prompt_tokens, end.output_tokens) == (3, 2)
            [output] = [one for one in harness.heard.of("a") if isinstance(one, JobOutput)]
            assert (output.tokens, output.whole) == (2, True)
            assert chunks(harness)[0]["kept"] == [1]


class TestWhoseFaultItIs:
    @pytest.mark.parametrize("status", [429, 503, 529])
    async def test_overload_turns_the_job_away_for_as_long_as_told(self, status: int):
        answer = Answer(
            status=status, headers={"Retry-After": "90"}, body={"error": {"message": "m"}}
        )
        async with scripted(answer) as harness:
            end = await ask(harness)
            assert isinstance(end, JobTurnedAway)
            assert end.rest_s == 90.0

    @pytest.mark.parametrize("status", [302, 401, 402, 403, 404, 407])
    async def test_our_access_is_not_the_clients_fault(
        self, status: int, caplog: pytest.LogCaptureFixture
    ):
        answer = Answer(status=status, headers={"Location": "/elsewhere"}, body={"error": "no"})
        async with scripted(answer) as harness:
            end = await ask(harness)
            assert isinstance(end, JobLost)
            assert "access denied" in end.reason
            assert len(harness.server.told) == 1
        assert [one.status for one in caplog.records if "denies access" in one.message] == [status]  # type: ignore[attr-defined]

    @pytest.mark.parametrize("status", [400, 413, 422])
    async def test_a_bad_request_is_the_clients_with_the_servers_words(self, status: int):
        async with scripted(Answer(status=status, body={"error": {"message": "odd"}})) as harness:
            end = await ask(harness)
            assert isinstance(end, JobRefused)
            assert (end.status, end.error) == (status, "odd")

    async def test_a_server_error_may_be_anybodys(self):
        async with scripted(Answer(status=500, body={"detail": "broke"})) as harness:
            end = await ask(harness)
            assert isinstance(end, JobLost)
            assert end.answered
            assert "broke" in end.reason

    @pytest.mark.parametrize(
        "answer",
        [Answer([DROP]), Answer([text("a"), CUT]), Answer(status=502), Answer(status=504)],
        ids=["dropped", "cut", "502", "504"],
    )
    async def test_what_a_server_drops_that_is_there_for_others_may_be_the_jobs_fault(
        self, answer: Answer
    ):
        async with scripted(answer) as harness:
            end = await ask(harness)
            assert isinstance(end, JobLost)
            assert end.answered

    async def test_a_server_that_is_gone_is_not_the_jobs_fault(self):
        async with scripted([DROP]) as harness:
            await harness.runner.cleanup()
            end = await ask(harness)
            assert isinstance(end, JobLost)
            assert not end.answered

    @pytest.mark.parametrize(
        ("error", "outcome", "status"),
        [
            ({"message": "m", "code": 400}, JobRefused, 400),
            ({"message": "m", "code": "422"}, JobRefused, 422),
            ({"message": "m", "type": "BadRequestError", "code": None}, JobRefused, 400),
            ({"message": "m", "type": "invalid_request_error", "code": "x"}, JobRefused, 400),
            ({"message": "m", "code": 429}, JobTurnedAway, 0),
            ({"message": "m", "type": "overloaded_error"}, JobTurnedAway, 0),
            ({"message": "m", "code": 403}, JobLost, 0),
            ({"message": "m", "code": 500}, JobLost, 0),
            ("m", JobLost, 0),
        ],
    )
    @pytest.mark.parametrize("begun", [True, False])
    async def test_errors_inside_a_stream_are_classed_like_statuses(
        self, error: Any, outcome: type, status: int, begun: bool
    ):
        events = [text("a")] * begun + [{"error": error}, DONE]
        async with scripted(events) as harness:
            end = await ask(harness)
            assert isinstance(end, outcome)
            if isinstance(end, JobRefused):
                assert (end.status, end.error) == (status, "m")

    async def test_a_request_id_that_still_runs_is_not_the_clients_fault(self):
        busy = Answer(status=400, body={"error": {"message": "Request id x already running"}})
        async with scripted(busy, [text("a", "stop"), DONE]) as harness:
            assert isinstance(await ask(harness), JobLost)
            assert isinstance(await ask(harness, attempt=2), JobDone)
            assert harness.server.ids == ["a-1", "a-2"]

    @pytest.mark.parametrize("begun", [True, False])
    async def test_silence_has_a_limit(self, begun: bool):
        limits = {"silence_first_s_max": 30.0, "silence_s_max": 0.2}
        if not begun:
            limits = {"silence_first_s_max": 0.2, "silence_s_max": 30.0}
        async with scripted([text("a")] * begun + [HANG], **limits) as harness:
            end = await ask(harness)
            assert isinstance(end, JobLost)
            assert "silent" in end.reason

    async def test_bad_words_of_a_client_are_not_taken_for_an_id_in_use(self):
        words = "bad request id: " + "x" * 100 + " already"
        async with scripted(Answer(status=400, body={"error": {"message": words}})) as harness:
            assert isinstance(await ask(harness), JobRefused)

    async def test_text_generation_inference_says_it_in_its_own_way(self):
        body = {
            "error": "Input validation error",
            "error_type": "validation",
            "http_status_code": 422,
        }
        async with scripted([body]) as harness:
            end = await ask(harness)
            assert isinstance(end, JobRefused)
            assert end.status == 422


class TestForms:
    async def test_what_comes_is_read_as_what_it_is_whatever_it_is_called(self):
        whole = json.dumps(
            {"choices": [{"index": 0, "text": "ab", "finish_reason": "stop"}]}
        ).encode()
        stream = b'data: {"choices": [{"index": 0.0, "text": "ab", "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'
        for body in (whole, stream):
            async with scripted(Answer(body=body)) as harness:
                assert isinstance(await ask(harness), JobDone)
                assert harness.heard.text("a") == "ab"

    @pytest.mark.parametrize(
        ("body", "headers"),
        [
            (b"hello", {}),
            (b'{"a": 1}\n{"b": 2}\n', {}),
            (b"\x1f\x8b", {"Content-Encoding": "gzip"}),
        ],
    )
    async def test_what_is_neither_whole_nor_a_stream_fails_once(
        self, body: bytes, headers: dict[str, str]
    ):
        async with scripted(Answer(body=body, headers=headers)) as harness:
            end = await ask(harness)
            assert isinstance(end, JobRefused)
            assert end.status == 502

    @pytest.mark.parametrize("field", ["return_token_ids", "continuous_usage_stats"])
    async def test_a_server_that_refuses_what_was_added_is_asked_without_it(self, field: str):
        refusal = Answer(status=400, body={"error": {"message": f"Unknown field: {field}"}})
        async with scripted(refusal, [text("a", "stop"), DONE], dialect="vllm") as harness:
            assert isinstance(await ask(harness), JobDone)
            assert isinstance(await ask(harness, attempt=2), JobDone)
            told = harness.server.told
            assert [field in json.dumps(body) for body in told] == [True, False, False]

    async def test_what_a_client_added_is_refused_to_it(self):
        refusal = Answer(status=400, body={"error": {"message": "Unknown field: return_token_ids"}})
        async with scripted(refusal, dialect="vllm") as harness:
            assert isinstance(await ask(harness, return_token_ids=True), JobRefused)


class TestCounting:
    async def test_a_server_that_says_nothing_came_until_the_end_is_not_believed(self):
        events = [text("a") | usage(0, 0) | {"choices": text("a")["choices"]}] * 2
        async with scripted([*events, CUT]) as harness:
            assert isinstance(await ask(harness), JobLost)
            assert harness.heard.tokens("a") == 2

    async def test_only_what_carries_output_counts_where_the_server_does_not(self):
        events = [
            delta(role="assistant", content=""),
            delta(content="a"),
            delta(reasoning="b"),
            delta(tool_calls=[{"index": 0, "id": "c"}]),
            delta("stop"),
            DONE,
        ]
        async with scripted(events) as harness:
            end = await ask(harness, chat=True)
            assert isinstance(end, JobDone)
            assert end.output_tokens == 3
            first = harness.heard.of("a")[0]
            assert isinstance(first, JobOutput)
            assert first.tokens == 0

    async def test_the_count_of_the_last_chunk_counts_if_no_other_follows(self):
        last = text("b", "stop") | {"usage": {"prompt_tokens": 5, "completion_tokens": 9, "x": 1}}
        async with scripted([text("a"), last, DONE]) as harness:
            end = await ask(harness)
            assert isinstance(end, JobDone)
            assert (end.prompt_tokens, end.output_tokens) == (5, 9)
            assert json.loads(end.closing)["usage"]["x"] == 1

    async def test_the_last_word_is_kept_whole(self):
        closing = usage(5, 2, prompt_tokens_details={"cached_tokens": 4}) | {
            "system_fingerprint": "f"
        }
        async with scripted([text("a"), text("b", "stop"), closing, DONE]) as harness:
            end = await ask(harness)
            assert isinstance(end, JobDone)
            said = json.loads(end.closing)
            assert said["usage"]["prompt_tokens_details"] == {"cached_tokens": 4}
            assert said["system_fingerprint"] == "f"


class TestWhatIsAsked:
    async def test_extensions_are_for_servers_that_have_them(self):
        events = [text("a", "stop"), DONE]
        for dialect, owner, ids, counts in (
            ("openai", "", False, False),
            ("auto", "", False, True),
            ("auto", "openai", False, False),
            ("auto", "vllm", True, True),
            ("openai", "vllm", False, False),
            ("vllm", "", True, True),
        ):
            async with scripted(events, dialect=dialect, owner=owner) as harness:
                await ask(harness)
                body = harness.server.told[0]
                assert ("return_token_ids" in body) is ids
                assert ("continuous_usage_stats" in body["stream_options"]) is counts

    @pytest.mark.parametrize(
        "asked",
        [
            {"prompt_logprobs": 1},
            {"use_beam_search": True},
            {"n": 2},
            {"response_format": {"type": "json_object"}},
            {"stream_options": {"include_usage": True}},
        ],
    )
    async def test_what_is_answered_differently_in_parts_is_asked_for_whole(self, asked: Any):
        choices = [
            {"index": index, "text": "ab", "finish_reason": "stop"}
            for index in range(asked.get("n", 1))
        ]
        async with scripted(Answer(body={"choices": choices})) as harness:
            assert isinstance(await ask(harness, stream=False, **asked), JobDone)
            [body] = harness.server.told
            assert not body["stream"]
            assert body.get("stream_options") == asked.get("stream_options")

    async def test_what_a_client_says_of_its_stream_reaches_the_server(self):
        async with scripted([text("a", "stop"), DONE]) as harness:
            await ask(harness, stream_options={"include_usage": "perhaps", "x": 1})
            [body] = harness.server.told
            assert body["stream_options"]["include_usage"] == "perhaps"
            assert body["stream_options"]["x"] == 1
