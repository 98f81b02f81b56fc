"""What a request to /v1/responses becomes as a chat, and what is refused by its name."""

from __future__ import annotations

import typing
from typing import Any, get_args, get_origin

import pytest
from openai.types.responses import response_create_params, response_input_param, tool_param
from openai.types.responses.response_includable import ResponseIncludable
from typing_extensions import get_type_hints

from gateway.responses import to_chat
from gateway.responses.to_chat import HANDLED, INCLUDABLE, PASSED, REFUSED, Translated, translated
from qlm_core.errors import InvalidRequest

Json = dict[str, Any]

FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}


def read(**fields: Any) -> Translated:
    return translated({"model": "tiny", "input": "Hello."} | fields, items_max=10)


def refused(**fields: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        read(**fields).messages()
    assert str(caught.value).startswith(caught.value.field)
    assert str(caught.value).endswith(".")
    return caught.value


def messages(*items: Any) -> list[Json]:
    return read(input=list(items)).messages()


# ---------------------------------------------------------------- the client library's own types


def test_each_field_of_the_clients_library_is_translated_passed_or_refused() -> None:
    known = get_type_hints(response_create_params.ResponseCreateParamsBase)
    fields = {*known, "stream"}
    tables = [set(HANDLED), set(PASSED), set(REFUSED)]
    assert fields - set().union(*tables) == set()
    assert sum(map(len, tables)) == len(set().union(*tables))


def test_each_includable_is_known() -> None:
    assert {*get_args(ResponseIncludable)} - {*INCLUDABLE} == set()


def types_of(union: Any) -> list[str]:
    """The values of `type` in a union of the library's dictionaries."""
    found: list[str] = []
    for one in get_args(union):
        if get_origin(one) is not None and not isinstance(one, type):
            found += types_of(one)
            continue
        hints = get_type_hints(one)
        if "type" in hints:
            kind: Any = hints["type"]
            while get_origin(kind) is not typing.Literal:
                kind = get_args(kind)[0]
            found += get_args(kind)
    return found


def test_each_kind_of_item_is_translated_or_refused_by_its_place() -> None:
    kinds = types_of(response_input_param.ResponseInputItemParam)
    assert len(kinds) > 20
    taken = {"message", "function_call", "function_call_output", "reasoning"}
    for kind in kinds:
        if kind in taken:
            continue
        error = refused(input=[{"type": kind, "id": "i"}])
        assert (error.field, error.code) == ("input[0].type", "unsupported_value"), kind


def test_each_kind_of_tool_but_functions_is_refused_by_its_place() -> None:
    kinds = types_of(tool_param.ToolParam)
    assert {"web_search", "file_search", "mcp", "code_interpreter"} <= {*kinds}
    for kind in kinds:
        if kind != "function":
            error = refused(tools=[FUNCTION, {"type": kind, "name": "x"}])
            assert (error.field, error.code) == ("tools[1].type", "unsupported_value"), kind


@pytest.mark.parametrize("name", [*REFUSED, *to_chat._OF_CHATS])
def test_what_is_not_served_is_refused_by_name_unless_null(name: str) -> None:
    error = refused(**{name: "x"})
    assert (error.field, error.code) == (name, "unsupported_parameter")
    assert read(**{name: None}).chat.get(name) is None


# ---------------------------------------------------------------- fields


def test_fields_are_translated() -> None:
    chat = read(
        instructions="Be brief.",
        max_output_tokens=9,
        reasoning={"effort": "low", "summary": "auto"},
        text={"format": {"type": "json_schema", "name": "n", "schema": {"a": 1}, "strict": True}},
        tools=[FUNCTION],
        tool_choice={"type": "function", "name": "f"},
        parallel_tool_calls=False,
        include=["message.output_text.logprobs", "reasoning.encrypted_content"],
        service_tier="flex",
        temperature=0.5,
        top_k=7,
        stream=True,
    )
    assert chat.chat == {
        "model": "tiny",
        "max_completion_tokens": 9,
        "reasoning_effort": "low",
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "n", "schema": {"a": 1}, "strict": True},
        },
        "tools": [
            {
                "type": "function",
                "function": {"name": "f", "parameters": {"type": "object"}, "strict": True},
            }
        ],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "parallel_tool_calls": False,
        "logprobs": True,
        "service_tier": "flex",
        "temperature": 0.5,
        "top_k": 7,
        "stream": True,
    }
    assert chat.messages() == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello."},
    ]


def test_a_choice_among_no_tools_is_left_out_and_allowed_tools_are_those_that_there_are() -> None:
    assert "tool_choice" not in read(tool_choice="auto", parallel_tool_calls=True).chat
    assert "parallel_tool_calls" not in read(parallel_tool_calls=True).chat
    assert refused(tool_choice="required").field == "tool_choice"
    allowed = {
        "type": "allowed_tools",
        "mode": "required",
        "tools": [{"type": "function", "name": "g"}],
    }
    chat = read(tools=[FUNCTION, FUNCTION | {"name": "g"}], tool_choice=allowed).chat
    assert [tool["function"]["name"] for tool in chat["tools"]] == ["g"]
    assert chat["tool_choice"] == "required"
    assert refused(tools=[FUNCTION], tool_choice=allowed).field == "tool_choice.tools"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": 3}, "input"),
        ({"input": ["x"] * 11}, "input"),
        ({"input": ["x"]}, "input[0]"),
        ({"input": [{"role": "critic", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": 3}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": [{"type": "x"}]}]}, "input[0].content[0].type"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
            "input[0].content[0].file_id",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file", "file_url": "f"}]}]},
            "input[0].content[0].file_url",
        ),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input[0].arguments"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id"),
        (
            {"input": [{"type": "reasoning", "encrypted_content": "gAAA", "summary": []}]},
            "input[0].encrypted_content",
        ),
        ({"background": True, "store": False}, "store"),
        ({"background": "yes"}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"include": ["everything"]}, "include[0]"),
        ({"max_output_tokens": "9"}, "max_output_tokens"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"metadata": {"a": "x" * 513}}, "metadata.a"),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata"),
        ({"reasoning": {"mode": "pro"}}, "reasoning.mode"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema"),
        ({"tools": [FUNCTION | {"defer_loading": True}]}, "tools[0].defer_loading"),
        ({"tools": [FUNCTION], "tool_choice": {"type": "mcp"}}, "tool_choice"),
        ({"stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
        ({"prompt_cache_options": {"prewarm": True}}, "prompt_cache_options.prewarm"),
        (
            {"background_options": {"completion_window": "2h"}},
            "background_options.completion_window",
        ),
        (
            {"background": True, "background_options": {"completion_window": "3h"}},
            "background_options.completion_window",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_by_its_place(fields: Json, field: str) -> None:
    assert refused(**fields).field == field


def test_a_window_is_a_target() -> None:
    options = {"completion_window": "2h"}
    assert read(background=True, background_options=options).within_s == 7200.0
    assert read(background=True).within_s is None


# ---------------------------------------------------------------- items


def test_a_turn_of_the_assistants_is_one_message() -> None:
    assert messages(
        {"role": "developer", "content": "Rules."},
        {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
        {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": "Ask."}],
        },
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "One moment.", "annotations": []}],
        },
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
        {"type": "function_call", "call_id": "c2", "name": "g", "arguments": "{1}"},
        {"type": "function_call_output", "call_id": "c1", "output": "Rain."},
        {
            "type": "function_call_output",
            "call_id": "c2",
            "output": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}],
        },
        {"role": "assistant", "content": "It rains."},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No more."}]},
    ) == [
        {"role": "system", "content": "Rules."},
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": "One moment.",
            "reasoning": "Ask.",
            "reasoning_content": "Ask.",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}},
                {"id": "c2", "type": "function", "function": {"name": "g", "arguments": "{1}"}},
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "Rain."},
        {
            "role": "tool",
            "tool_call_id": "c2",
            "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
        },
        {"role": "assistant", "content": "It rains."},
        {"role": "assistant", "content": "", "refusal": "No more."},
    ]


def test_pictures_sounds_and_files_pass() -> None:
    parts = [
        {"type": "input_text", "text": "What is this?"},
        {"type": "input_image", "image_url": "data:image/png;base64,AA==", "detail": "low"},
        {"type": "input_image", "image_url": "https://x/y.png", "detail": "auto"},
        {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
        {"type": "input_file", "file_data": "AA==", "filename": "a.pdf"},
    ]
    assert messages({"role": "user", "content": parts})[0]["content"] == [
        {"type": "text", "text": "What is this?"},
        {
            "type": "image_url",
            "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"},
        },
        {"type": "image_url", "image_url": {"url": "https://x/y.png"}},
        {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
        {"type": "file", "file": {"file_data": "AA==", "filename": "a.pdf"}},
    ]


def test_reasoning_of_earlier_turns_can_be_left_out() -> None:
    def thought(text: str) -> Json:
        return {"type": "reasoning", "content": [{"type": "reasoning_text", "text": text}]}

    items = [
        {"role": "user", "content": "1"},
        thought("old"),
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "2"},
        thought("new"),
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": ""},
        {"type": "function_call_output", "call_id": "c", "output": "x"},
    ]
    every = read(input=items).messages()
    assert [message.get("reasoning") for message in every] == [None, "old", None, "new", None]
    present = read(input=items, reasoning={"context": "current_turn"}).messages()
    assert [message.get("reasoning") for message in present] == [None, None, None, "new", None]


def test_reasoning_without_an_answer_is_a_turn_of_its_own() -> None:
    thought = {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "Hm."}]}
    assert messages(thought, {"role": "user", "content": "Go on."})[0] == {
        "role": "assistant",
        "content": "",
        "reasoning": "Hm.",
        "reasoning_content": "Hm.",
    }
