"""What somebody writes with openai-agents, in its default mode. Run by the interpreter of an environment that has it.

Not by ours: that package and this project both have a top-level package `agents`.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from openai import AsyncOpenAI
from pydantic import BaseModel

from agents import (  # type: ignore[attr-defined]
    Agent,
    Runner,
    function_tool,
    set_default_openai_client,
    set_tracing_disabled,
)


class Report(BaseModel):
    """Structured output."""

    city: str
    rainy: bool


@function_tool
def weather(city: str) -> str:
    """Tells the weather.

    Args:
        city: where.
    """
    return f"Rain in {city}."


async def main(url: str) -> None:
    """Run an agent whole, as a stream, on from what is stored, with a handoff and with structured output."""
    set_default_openai_client(AsyncOpenAI(base_url=url, api_key="unused", max_retries=0))
    set_tracing_disabled(True)
    said: dict[str, Any] = {}
    agent = Agent(name="Reporter", instructions="Be brief.", model="tiny", tools=[weather])

    whole = await Runner.run(agent, "Weather in Delft?")
    said["whole"] = whole.final_output

    streamed = Runner.run_streamed(agent, "Weather in Delft?")
    kinds = [
        event.data.type
        async for event in streamed.stream_events()
        if event.type == "raw_response_event"
    ]
    said["streamed"], said["kinds"] = streamed.final_output, kinds

    later = await Runner.run(agent, "Really?", previous_response_id=whole.last_response_id)
    said["later"] = later.final_output
    again = await Runner.run(
        agent, [*whole.to_input_list(), {"role": "user", "content": "Really?"}]
    )
    said["again"] = again.final_output

    desk = Agent(name="Desk", instructions="Hand over.", model="tiny", handoffs=[agent])
    handed = await Runner.run(desk, "Hand over: weather in Delft?")
    said["handed"], said["last"] = handed.final_output, handed.last_agent.name

    typed = await Runner.run(
        Agent(name="Typed", instructions="Report.", model="tiny", output_type=Report), "Delft"
    )
    said["typed"] = typed.final_output.model_dump()
    print(json.dumps(said))  # noqa: T201 (it is what the test reads)


asyncio.run(main(sys.argv[1]))
