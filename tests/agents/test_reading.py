"""The reader of engine answers: it takes anything, and tokens leave it together with their text."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.engines.events import Event, Events
from agents.engines.faults import EngineError, rest_of
from agents.engines.lenient_json import Unreadable
from agents.engines.reading import Reader, Reading
from agents.engines.requests import Abilities
from agents.engines.shapes import learn
from gateway.trail import Trail
from qlm_core.executor import JobDone, JobLost, JobOutput, JobRefused, JobTurnedAway
from qlm_core.messages import Payload
from qlm_core.model import ModelName, RequestId
from qlm_core.resume import ResumedBy
from tests.endpoints import generating

ENDS = (JobDone, JobLost, JobRefused, JobTurnedAway)


def reader(*, chat: bool = False, **reading: Any) -> Reader:
    job = Payload(RequestId("a"), 1, ModelName("m"), generating(chat), b"{}")
    return Reader(job, Reading(**reading))


def fed(reader: Reader, *events: Any) -> list[JobOutput]:
    return [output for event in events for output in reader.take(json.dumps(event).encode())]


def token(text: str, *ids: int, finish: str | None = None, **more: Any) -> dict[str, Any]:
    """An event as vLLM sends it that was asked for ids."""
    return {
        "choices": [
            {"index": 0, "text": text, "finish_reason": finish, "token_ids": list(ids), **more}
        ]
    }


def texts(outputs: list[JobOutput]) -> list[str]:
    return [json.loads(output.data)["choices"][0]["text"] for output in outputs]


def ids(outputs: list[JobOutput]) -> list[int]:
    return [id for output in outputs if output.ids is not None for id in output.ids.output]


keys = st.sampled_from(
    ["choices", "index", "text", "delta", "content", "role", "finish_reason", "usage", "error", "code",
     "prompt_tokens", "completion_tokens", "tool_calls", "token_ids", "prompt_token_ids", "logprobs",
     "tokens", "text_offset", "message", "object", "type", "id", "x"]
)  # fmt: skip
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)
choice = st.dictionaries(keys, values, max_size=4) | st.builds(
    lambda index, text, finish, ids: {
        "index": index, "text": text, "delta": {"content": text}, "finish_reason": finish, "token_ids": ids,
    },
    st.integers(0, 2),
    st.text(max_size=3),
    st.sampled_from([None, None, "stop", "abort", ""]),
    st.lists(st.integers(0, 9), max_size=3),
)  # fmt: skip
events = st.one_of(
    st.binary(max_size=20),
    values.map(lambda value: json.dumps(value).encode()),
    st.lists(choice, max_size=3).map(lambda parts: json.dumps({"choices": parts}).encode()),
    st.dictionaries(keys, values, max_size=5).map(lambda value: json.dumps(value).encode()),
    st.builds(
        lambda index, logprobs, code: json.dumps(
            {"choices": [{"index": index, "text": "a", "logprobs": logprobs}], "error": code}
        ).encode(),
        st.integers(0, 1) | st.sampled_from(["0", "²", "9" * 5000, 0.0, True]),
        st.dictionaries(
            st.sampled_from(["tokens", "token_logprobs", "top_logprobs", "text_offset"]), values
        ),
        st.none() | st.builds(lambda value: {"code": value}, values | st.just("²")),
    ),
)


class TestIsTotal:
    @settings(max_examples=400, deadline=None)
    @given(
        data=st.data(),
        chat=st.booleans(),
        exact=st.booleans(),
        choices=st.integers(1, 3),
        resumed_by=st.sampled_from(ResumedBy),
    )
    def test_over_whatever_comes(
        self, data: st.DataObject, chat: bool, exact: bool, choices: int, resumed_by: ResumedBy
    ):
        by_ids = resumed_by is ResumedBy.IDS
        read = reader(
            chat=chat,
            exact=exact and choices == 1,
            choices=choices,
            held_chars=2,
            resumed_by=resumed_by,
            as_chat=chat and by_ids,
            offset_chars=5 if by_ids else 0,
            top_logprobs=2,
        )
        failed: Exception | None = None
        for _ in range(data.draw(st.integers(0, 6))):
            event = data.draw(events)
            try:
                outputs = read.take(event)
            except (Unreadable, EngineError) as error:
                failed = error
                break
            for output in outputs:
                chunk = json.loads(output.data, parse_constant=self.no_constants)
                assert isinstance(chunk["choices"], list)
                assert "id" not in chunk
                assert output.tokens >= 0
        if isinstance(failed, EngineError):
            assert not read.over
            return
        end = read.end() if failed is None else read.failed(failed)
        assert isinstance(end, ENDS)
        if isinstance(end, JobDone):
            assert read.over
            assert 0 <= end.prompt_tokens < 2**32
            assert 0 <= end.output_tokens < 2**32

    @staticmethod
    def no_constants(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")


class TestTokensLeaveWithTheirText:
    def test_a_character_in_pieces_leaves_with_its_last_token(self):
        read = reader(exact=True)
        outputs = fed(
            read,
            token("a", 1),
            token("", 2),
            token("", 3),
            token("😀", 4),
            token("b", 5, finish="stop"),
        )
        assert texts(outputs) == ["a", "😀", "b"]
        assert [output.tokens for output in outputs] == [1, 3, 1]
        assert ids(outputs) == [1, 2, 3, 4, 5]
        end = read.end()
        assert isinstance(end, JobDone)
        assert end.output_tokens == 5

    def test_what_is_held_back_for_a_stop_string_leaves_when_its_tokens_are_out(self):
        # Of "aa", "bb", "cc" the server holds back the last two characters each time.
        read = reader(exact=True, held_chars=2)
        outputs = fed(read, token("", 1), token("aa", 2), token("bb", 3))
        # At the second event four characters have tokens and two are out; at the third, six and four.
        assert texts(outputs) == ["aabb"]
        assert ids(outputs) == [1, 2]
        outputs = fed(read, token("cc!", 4, finish="stop"))
        assert texts(outputs) == ["cc!"]
        assert ids(outputs) == [3, 4]

    @settings(max_examples=300, deadline=None)
    @given(data=st.data())
    def test_all_leaves_in_order_and_text_never_lags_behind_its_tokens(self, data: st.DataObject):
        """A server that detokenizes as vLLM does, tokens of any length, several to an event."""
        held = data.draw(st.integers(0, 4))
        words = data.draw(st.lists(st.text("ab", max_size=3), min_size=1, max_size=20))
        read = reader(exact=True, held_chars=held)
        outputs: list[JobOutput] = []
        sent = start = 0
        while start < len(words):
            stop = min(len(words), start + data.draw(st.integers(1, 3)))
            full = "".join(words[:stop])
            out = len(full) if stop == len(words) else max(sent, len(full) - held)
            finish = "length" if stop == len(words) else None
            outputs += fed(read, token(full[sent:out], *range(start, stop), finish=finish))
            sent, start = out, stop
            told = ids(outputs)
            assert told == list(range(len(told)))
            # An attempt that goes on after these tokens says nothing twice, and leaves nothing out.
            assert "".join(texts(outputs)) == "".join(words[: len(told)])
        assert "".join(texts(outputs)) == "".join(words)

    def test_what_is_counted_without_ids_is_held_back_as_well(self):
        read = reader(held_chars=2)
        counted = [
            {
                "choices": [{"index": 0, "text": said, "finish_reason": None}],
                "usage": {"prompt_tokens": 1, "completion_tokens": count},
            }
            for said, count in (("", 1), ("", 2), ("aa", 3), ("bb", 4))
        ]
        outputs = fed(read, *counted)
        # Of "aa" it is certain when two more characters are out; three tokens go with it.
        assert [(json.loads(one.data)["choices"][0]["text"], one.tokens) for one in outputs] == [
            ("aabb", 3)
        ]

    def test_log_probabilities_stay_with_their_tokens(self):
        read = reader(exact=True)
        outputs = fed(
            read,
            token("", 1, logprobs={"tokens": ["x"], "token_logprobs": [-1.0]}),
            token("é", 2, logprobs={"tokens": ["y"], "token_logprobs": [-2.0]}, finish="stop"),
        )
        [output] = outputs
        logprobs = json.loads(output.data)["choices"][0]["logprobs"]
        assert logprobs == {"tokens": ["x", "y"], "token_logprobs": [-1.0, -2.0]}

    def test_a_role_goes_ahead_and_takes_the_ids_of_the_prompt_along(self):
        read = reader(chat=True, exact=True)
        role = {
            "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}],
            "prompt_token_ids": [7, 8],
        }
        [first] = fed(read, role)
        assert first.tokens == 0
        assert first.ids is not None
        assert first.ids.prompt == (7, 8)
        assert json.loads(first.data)["prompt_token_ids"] is None

    @pytest.mark.parametrize("resumed_by", [ResumedBy.NOTHING, ResumedBy.TEXT, ResumedBy.IDS])
    def test_who_asked_for_ids_gets_them_and_those_of_its_own_prompt(self, resumed_by: ResumedBy):
        read = reader(exact=True, keeps_ids=True, resumed_by=resumed_by)
        [output] = fed(read, token("a", 1, finish="stop", prompt_token_ids=[7, 8]))
        [choice] = json.loads(output.data)["choices"]
        assert choice["token_ids"] == [1]
        # Of a request that goes on from ids the prompt is more than its client's.
        assert choice["prompt_token_ids"] == (None if resumed_by is ResumedBy.IDS else [7, 8])

    def test_who_did_not_finds_them_empty(self):
        [output] = fed(reader(exact=True), token("a", 1, prompt_token_ids=[7, 8]))
        [choice] = json.loads(output.data)["choices"]
        assert (choice["token_ids"], choice["prompt_token_ids"]) == (None, None)

    def test_what_is_parsed_cannot_go_on_elsewhere(self):
        read = reader(chat=True, exact=True, held_chars=5)
        for beyond in ({"reasoning": "x"}, {"tool_calls": [{"index": 0}]}, {"refusal": "no"}):
            event = {"choices": [{"index": 0, "delta": beyond, "finish_reason": None}]}
            [output] = fed(read, event)
            assert not output.plain


class TestContinued:
    def test_tokens_that_are_produced_again_count_once(self):
        read = reader(exact=True, resumed_by=ResumedBy.IDS, position=10, repeated_tokens=2)
        outputs = fed(read, token("", 11), token("é", 12), token("b", 13, finish="length"))
        assert [output.tokens for output in outputs] == [0, 1]
        assert outputs[0].ids is not None
        assert (outputs[0].ids.position, outputs[0].ids.output) == (8, (11, 12))
        read.take(
            json.dumps(
                {"choices": [], "usage": {"prompt_tokens": 15, "completion_tokens": 3}}
            ).encode()
        )
        end = read.end()
        assert isinstance(end, JobDone)
        # 7 tokens of prompt and 8 of output went in; 10 had been produced.
        assert (end.prompt_tokens, end.output_tokens) == (17, 1)

    def test_a_completion_answers_a_chat(self):
        read = reader(
            chat=True,
            exact=True,
            as_chat=True,
            resumed_by=ResumedBy.IDS,
            position=1,
            top_logprobs=1,
        )
        logprobs = {
            "tokens": ["é"],
            "token_logprobs": [-1.5],
            "top_logprobs": [{"é": -1.5, "x": -2.0}],
            "text_offset": [0],
        }
        [output] = fed(read, token("é", 5, finish="stop", logprobs=logprobs))
        [choice] = json.loads(output.data)["choices"]
        assert choice["delta"] == {"content": "é"}
        assert "text" not in choice
        entry = {"token": "é", "logprob": -1.5, "bytes": [195, 169]}
        assert choice["logprobs"] == {"content": [entry | {"top_logprobs": [entry]}]}

    def test_text_offsets_go_on(self):
        read = reader(exact=True, resumed_by=ResumedBy.IDS, position=3, offset_chars=40)
        [output] = fed(read, token("ab", 1, 2, logprobs={"text_offset": [0, 1]}))
        assert json.loads(output.data)["choices"][0]["logprobs"]["text_offset"] == [40, 41]

    def test_running_counts_are_of_the_whole_request(self):
        read = reader(exact=True, keeps_usage=True, resumed_by=ResumedBy.IDS, position=10)
        event = token("a", 1) | {
            "usage": {"prompt_tokens": 17, "completion_tokens": 1, "total_tokens": 18}
        }
        [output] = fed(read, event)
        said = {"prompt_tokens": 7, "completion_tokens": 11, "total_tokens": 18}
        assert json.loads(output.data)["usage"] == said

    def test_the_client_has_the_role_already(self):
        read = reader(chat=True, resumed_by=ResumedBy.TEXT, position=2)
        role = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}
        assert fed(read, role) == []
        both = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": "x"}}]}
        [output] = fed(read, both)
        assert json.loads(output.data)["choices"][0]["delta"] == {"content": "x"}


class TestTrail:
    def test_ids_lead_as_far_as_the_output(self):
        trail = Trail()
        read = reader(exact=True)
        prompt = token("", prompt_token_ids=[7, 8])
        for output in fed(read, prompt, token("a", 1), token("b", 2)):
            assert output.ids is not None
            trail.add(output.ids)
        assert trail.upto(2) == (7, 8, 1, 2)
        assert trail.upto(3) == ()

    def test_ids_that_are_told_again_replace_the_earlier_ones(self):
        trail = Trail()
        for output in fed(
            reader(exact=True), token("", prompt_token_ids=[7]), token("abc", 1, 2, 3)
        ):
            assert output.ids is not None
            trail.add(output.ids)
        again = reader(exact=True, resumed_by=ResumedBy.IDS, position=3, repeated_tokens=1)
        for output in fed(again, token("d", 9, 4)):
            assert output.ids is not None
            trail.add(output.ids)
        assert trail.upto(4) == (7, 1, 2, 9, 4)

    def test_an_attempt_from_text_begins_a_trail_of_its_own(self):
        trail = Trail()
        read = reader(exact=True, resumed_by=ResumedBy.TEXT, position=5)
        for output in fed(read, token("", prompt_token_ids=[1, 2, 3]), token("x", 4)):
            assert output.ids is not None
            trail.add(output.ids)
        assert trail.upto(6) == (1, 2, 3, 4)

    def test_a_gap_ends_it(self):
        trail = Trail()
        for position in (0, 4):
            read = reader(exact=True, position=position)
            prompt = [1] if not position else None
            for output in fed(read, token("x", 4, prompt_token_ids=prompt)):
                assert output.ids is not None
                trail.add(output.ids)
        assert trail.upto(5) == ()


class TestEvents:
    @pytest.mark.parametrize(
        ("stream", "expected"),
        [
            (b'data: {"a": 1}\n\ndata: [DONE]\n\n', [b'{"a": 1}', b"[DONE]"]),
            (b'data:{"a": 1}\r\n\r\n', [b'{"a": 1}']),
            (b'data: {"a": 1}\ndata: {"b": 2}\n', [b'{"a": 1}', b'{"b": 2}']),
            (b': ping\n\ndata: {"a": 1}\n\n', [b'{"a": 1}']),
            (b'\xef\xbb\xbfdata: {"a": 1}\n\n', [b'{"a": 1}']),
            (b'id: 1\nretry: 5\ndata: {"a": 1}\n\n', [b'{"a": 1}']),
            (b'data: {"a":\ndata: 1}\n\n', [b'{"a":\n1}']),
            (b'data: \n\ndata:\n\ndata: {"a": 1}', [b'{"a": 1}']),
            (b'data: {"a": 1}', [b'{"a": 1}']),
            (b'data: {"a":\r\ndata: 1}\r\n\r\n', [b'{"a":\n1}']),
            (b'data: {"a":\rdata: 1}\r\rdata: {"b": 2}\r', [b'{"a":\n1}', b'{"b": 2}']),
        ],
    )
    @pytest.mark.parametrize("size", [1, 3, 1000])
    def test_servers_write_them_in_many_ways(self, stream: bytes, expected: list[bytes], size: int):
        events, seen = Events(1000), []
        for start in range(0, len(stream), size):
            seen += events.feed(stream[start : start + size])
        seen += events.finish()
        assert [event.data for event in seen] == expected

    def test_an_event_may_be_called_an_error(self):
        events = Events(1000).feed(b'event: error\ndata: {"message": "m"}\n\ndata: {"a": 1}\n\n')
        assert events == [Event(b'{"message": "m"}', error=True), Event(b'{"a": 1}')]

    @pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
    def test_the_name_is_that_of_its_own_event_however_it_is_read(self, end: bytes):
        stream = end.join([b"event: error", b'data: {"a": 1}', b"", b'data: {"b": 2}', b"", b""])
        events, seen = Events(1000), []
        for start in range(len(stream)):
            seen += events.feed(stream[start : start + 1])
        assert [event.error for event in seen] == [True, False]

    def test_one_of_many_lines_that_does_not_end_is_given_up(self):
        events = Events(1000)
        for _ in range(100):
            assert events.feed(b"data: " + b"x" * 10 + b"\n") == []
        with pytest.raises(Unreadable):
            events.feed(b"data: x\n")

    def test_one_that_does_not_end_is_given_up(self):
        events = Events(1000)
        for _ in range(100):
            assert events.feed(b"x" * 10) == []
        with pytest.raises(Unreadable):
            events.feed(b"x")


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, 0.0),
        ("90", 90.0),
        ("0.5", 0.5),
        ("-3", 0.0),
        ("nan", 0.0),
        ("soon", 0.0),
        ("1e30", 86_400.0),
        ("Fri, 27 Nov 2026 10:01:00 GMT", 60.0),
        ("Fri, 27 Nov 2026 09:00:00 GMT", 0.0),
    ],
)
def test_how_long_a_server_asks_to_wait(header: str | None, seconds: float):
    assert rest_of(header, now=datetime(2026, 11, 27, 10, 0, 0, tzinfo=UTC)) == seconds


@pytest.mark.parametrize("levels", [201, 900, 980, 100_000])
def test_what_is_nested_too_deeply_is_refused(levels: int):
    data = b'{"choices": [], "x": %b%b}' % (b"[" * levels, b"]" * levels)
    with pytest.raises(Unreadable):
        reader().take(data)


def test_a_shape_is_not_made_for_more_choices_than_any_server_gives():
    able = Abilities(shapes={"/v1/completions": learn(b'{"choices": [{"stop_reason": null}]}')})
    assert able.shape("/v1/completions", 2)
    assert able.shape("/v1/completions", 2**31) == b""


def test_the_shape_of_whole_answers_is_learned_from_one():
    answer = {
        "id": "x", "usage": {"prompt_tokens": 1, "details": None}, "system_fingerprint": "f", "metrics": None,
        "choices": [{"index": 0, "stop_reason": None, "message": {"role": "assistant", "content": "x", "refusal": None}}],
    }  # fmt: skip
    shape = learn(json.dumps(answer).encode())
    assert shape.fingerprint == "f"
    assert json.loads(shape.chunk(2)) == {
        "metrics": None,
        "usage": {"details": None},
        "choices": [
            {"index": index, "stop_reason": None, "delta": {"refusal": None}} for index in (0, 1)
        ],
    }
