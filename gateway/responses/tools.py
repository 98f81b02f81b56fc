"""Tools, the choice among them and the format of text, as a chat has them.

Functions of the client's are passed on; tools that OpenAI's servers run themselves are refused. Everything here is pure.
"""

from __future__ import annotations

from typing import Any

from gateway.responses.fields import Json, list_of, missing, object_of, unsupported, wrong
from qlm_core.errors import InvalidRequest

_REMEDY_TOOL = "Give functions (type function), which the client runs, and run this one there."
_REMEDY_CHOICE = (
    'Say auto, none, required, {"type": "function", "name": ...}, or allowed_tools with functions.'
)
_REMEDY_FORMAT = "Use text, json_object or json_schema."
# What a function may say that engines do not: only these values mean nothing more than leaving it out.
_PLAIN = {
    "allowed_callers": (None, ["direct"]),
    "async": (None, False),
    "defer_loading": (None, False),
    "output_schema": (None,),
}


def tools_of(fields: Json) -> Json:
    """The fields of a chat that say which tools there are and which of them may be called. Raises InvalidRequest."""
    said = enumerate(list_of(fields, "tools"))
    tools = [_tool(f"tools[{number}]", tool) for number, tool in said]
    choice, named = _choice(fields.get("tool_choice"))
    if named is not None:
        tools = _allowed(tools, named)
    if not tools:
        if choice not in (None, "auto", "none"):
            raise InvalidRequest("tool_choice", "there are no tools to choose from", "Give tools.")
        return {}
    chat: Json = {"tools": tools}
    if choice is not None:
        chat["tool_choice"] = choice
    if fields.get("parallel_tool_calls") is not None:
        chat["parallel_tool_calls"] = fields["parallel_tool_calls"]
    return chat


def format_of(fields: Json) -> Json:
    """The fields of a chat that say how its text is to be. Raises InvalidRequest."""
    text = object_of(fields, "text")
    for name in text:
        if name not in ("format", "verbosity"):
            raise unsupported(f"text.{name}", text[name], "Leave it out.")
    chat: Json = {}
    if text.get("verbosity") is not None:
        chat["verbosity"] = text["verbosity"]
    shape = text.get("format")
    if shape is None:
        return chat
    if not isinstance(shape, dict):
        raise wrong("text.format", "must be an object", _REMEDY_FORMAT)
    match shape.get("type"):
        case "text":
            pass
        case "json_object":
            chat["response_format"] = {"type": "json_object"}
        case "json_schema":
            for name in ("name", "schema"):
                if shape.get(name) is None:
                    raise missing(f"text.format.{name}")
            schema = {name: value for name, value in shape.items() if name != "type"}
            chat["response_format"] = {"type": "json_schema", "json_schema": schema}
        case kind:
            raise unsupported("text.format.type", kind, _REMEDY_FORMAT)
    return chat


def _tool(field: str, tool: Any) -> Json:
    if not isinstance(tool, dict):
        raise wrong(field, "must be an object", _REMEDY_TOOL)
    if tool.get("type") != "function":
        raise unsupported(f"{field}.type", tool.get("type"), _REMEDY_TOOL)
    if not isinstance(tool.get("name"), str):
        raise missing(f"{field}.name")
    function: Json = {"name": tool["name"]}
    for name, value in tool.items():
        if name in ("type", "name"):
            continue
        if name in _PLAIN:
            if value not in _PLAIN[name]:
                raise unsupported(f"{field}.{name}", value, "Leave it out.")
        elif value is not None:
            function[name] = value
    return {"type": "function", "function": function}


def _choice(said: Any) -> tuple[Any, list[str] | None]:
    """The choice as a chat has it, and the names that it is restricted to, if it is."""
    if said is None or said in ("auto", "none", "required"):
        return said, None
    kind = said.get("type") if isinstance(said, dict) else said
    if kind == "function":
        return {"type": "function", "function": {"name": said.get("name")}}, None
    if kind == "allowed_tools" and isinstance(said.get("tools"), list):
        if said.get("mode") not in ("auto", "required"):
            raise unsupported("tool_choice.mode", said.get("mode"), "Say auto or required.")
        names = []
        for number, tool in enumerate(said["tools"]):
            if not isinstance(tool, dict) or tool.get("type") != "function":
                raise unsupported(f"tool_choice.tools[{number}]", tool, _REMEDY_CHOICE)
            names.append(str(tool.get("name")))
        return said["mode"], names
    raise unsupported("tool_choice", kind, _REMEDY_CHOICE)


def _allowed(tools: list[Json], names: list[str]) -> list[Json]:
    """The tools of these names. Engines know no allowed tools beside others."""
    known = [tool["function"]["name"] for tool in tools]
    for name in names:
        if name not in known:
            raise InvalidRequest(
                "tool_choice.tools", f"{name!r:.64} is not among the tools", "Give it in tools."
            )
    return [tool for tool in tools if tool["function"]["name"] in names]
