"""What somebody writes with autobatcher, in both of its modes. Run by the interpreter of an environment that has it.

Not by ours: it asks for an older release of the openai package than the one that other tests use.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from autobatcher import BatchOpenAI  # type: ignore[import-not-found]

# Answers are as long as they may be.
WHOLE = {"ignore_eos": True}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


async def asked(client: Any, model: str, number: int) -> Any:
    return await client.chat.completions.create(
        model=model,
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": f"Question {number}."},
        ],
        max_tokens=5 + number,
        temperature=0.5,
        extra_body=WHOLE,
    )


async def main(url: str, model: str) -> None:
    """Ask in the background one by one, then as a batch, then for embeddings, which are always one."""
    options: dict[str, Any] = {
        "base_url": url,
        "api_key": "unused",
        "poll_interval_seconds": 0.1,
        "batch_window_seconds": 0.2,
    }
    said: dict[str, Any] = {}
    async with BatchOpenAI(**options) as client:
        chats = await asyncio.gather(*(asked(client, model, number) for number in range(8)))
        said["flex"] = [
            [chat.usage.completion_tokens, chat.choices[0].finish_reason, chat.service_tier]
            for chat in chats
        ]
        more = await client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": "Hello?"}],
            max_tokens=4,
            tools=[TOOL],
            tool_choice="auto",
            stop=["never said"],
            seed=7,
            frequency_penalty=0.1,
            response_format={"type": "text"},
            extra_body=WHOLE,
        )
        said["flex with everything"] = more.usage.completion_tokens
        response = await client.responses.create(
            model=model, input="Hello", max_output_tokens=3, extra_body=WHOLE
        )
        said["flex response"] = [response.status, response.usage.output_tokens]
        found = await client.embeddings.create(model=model, input=["One", "Two"])
        said["embeddings"] = [len(found.data), found.usage.prompt_tokens > 0]

    events: list[str] = []
    async with BatchOpenAI(
        completion_window="24h",
        batch_metadata={"of": "the night"},
        batch_event_handler=lambda event: events.append(event["event"]),
        **options,
    ) as client:
        chats = await asyncio.gather(*(asked(client, model, number) for number in range(8)))
        said["batch"] = [chat.usage.completion_tokens for chat in chats]
        said["events"] = [events[0], events[-1]]
        (batch,) = [one async for one in client.batches.list(limit=1)][:1]
        said["metadata"], said["status"] = batch.metadata, batch.status
        response = await client.responses.create(
            model=model, input="Hello", max_output_tokens=3, extra_body=WHOLE
        )
        said["batch response"] = [response.status, response.usage.output_tokens]
    print(json.dumps(said))  # noqa: T201 (it is what the test reads)


asyncio.run(main(*sys.argv[1:]))
