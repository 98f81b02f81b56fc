"""openai-agents in its default mode, unchanged. It needs an environment of its own, so it is asked for.

python3.11 -m venv /tmp/with-agents && /tmp/with-agents/bin/pip install openai-agents
QLM_OPENAI_AGENTS=/tmp/with-agents/bin/python pytest tests/responses/test_openai_agents.py
"""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from qlm_core import messages as m
from tests.gateway.peers import Fleet, fleet
from tests.responses.beds import call, say, words

PYTHON = os.environ.get("QLM_OPENAI_AGENTS", "")
PROGRAM = Path(__file__).parent / "agents_program.py"


def answer(it: Fleet, payload: m.Payload) -> None:
    """What a model might do: hand over, call a function that it has not called, or speak."""
    asked = json.loads(payload.body)
    last = asked["messages"][-1]
    tools = [tool["function"]["name"] for tool in asked.get("tools", ())]
    handoffs = [name for name in tools if name.startswith("transfer_to_")]
    if "response_format" in asked:
        deltas = words('{"city": "Delft",', ' "rainy": true}')
    elif handoffs:
        deltas = [{"reasoning": "Not mine."}, *call("h1", handoffs[0], "{}")]
    elif last["role"] == "user" and last["content"].endswith("Delft?"):
        deltas = [{"reasoning": "I must look."}, *call("c1", "weather", '{"city":', ' "Delft"}')]
    elif last["role"] == "tool" and "Rain in Delft." not in last["content"]:
        deltas = call("c2", "weather", '{"city": "Delft"}')
    elif last["role"] == "tool":
        deltas = words("It rains ", "in Delft.")
    else:
        told = [one["content"] for one in asked["messages"] if one["role"] == "tool"]
        deltas = words(f"Yes: {told[-1]}")
    finish = "tool_calls" if "tool_calls" in deltas[-1] else "stop"
    say(it, payload, deltas, finish)


@pytest.mark.skipif(
    not PYTHON,
    reason="openai-agents and this project both have a package `agents`; see QLM_OPENAI_AGENTS above",
)
async def test_openai_agents_in_its_default_mode(tmp_path: Path) -> None:
    async with fleet() as it:
        it.agent.on_payload = lambda payload: answer(it, payload)
        process = await asyncio.create_subprocess_exec(
            *(PYTHON, str(PROGRAM), f"{it.url}/v1"),
            cwd=tmp_path,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        assert process.returncode == 0, err.decode()
        said: dict[str, Any] = json.loads(out)
        kinds = said.pop("kinds")
        assert said == {
            "whole": "It rains in Delft.",
            "streamed": "It rains in Delft.",
            "later": "Yes: Rain in Delft.",
            "again": "Yes: Rain in Delft.",
            "handed": "It rains in Delft.",
            "last": "Reporter",
            "typed": {"city": "Delft", "rainy": True},
        }
        assert {"response.reasoning_text.delta", "response.function_call_arguments.delta"} <= {
            *kinds
        }
        assert kinds.count("response.completed") == 2
