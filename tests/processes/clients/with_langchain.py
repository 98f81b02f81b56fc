"""What somebody writes with LangChain's OpenAI package. Run by the interpreter of an environment that has it."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from langchain_core.messages import HumanMessage, SystemMessage  # type: ignore[import-not-found]
from langchain_openai import (  # type: ignore[import-not-found]
    ChatOpenAI,
    OpenAI,
    OpenAIEmbeddings,
)

QUESTION = [SystemMessage("Be brief."), HumanMessage("What is there?")]


async def main(url: str, model: str) -> None:
    """Ask whole and streamed, in both of its interfaces, several at a time; embed; go on from what is stored."""
    common: dict[str, Any] = {"base_url": url, "api_key": "unused", "model": model}
    # Answers are as long as they may be.
    options = common | {"extra_body": {"ignore_eos": True}}
    said: dict[str, Any] = {}

    chat = ChatOpenAI(**options, max_tokens=6, service_tier="flex")
    whole = chat.invoke(QUESTION)
    said["chat"] = [
        whole.usage_metadata["output_tokens"],
        whole.response_metadata["finish_reason"],
        whole.response_metadata.get("service_tier"),
    ]
    many = await chat.abatch([f"Question {number}" for number in range(6)])
    said["many"] = [one.usage_metadata["output_tokens"] for one in many]
    streaming = ChatOpenAI(**options, max_tokens=6, stream_usage=True)
    parts = [part async for part in streaming.astream(QUESTION)]
    total = parts[0]
    for part in parts[1:]:
        total += part
    said["streamed"] = [total.usage_metadata["output_tokens"], bool(total.text)]

    responses = ChatOpenAI(**options, max_tokens=16, use_responses_api=True)
    first = responses.invoke(QUESTION)
    said["response"] = [first.response_metadata["status"], first.usage_metadata["output_tokens"]]
    parts = [part async for part in responses.astream(QUESTION)]
    total = parts[0]
    for part in parts[1:]:
        total += part
    said["streamed response"] = [total.usage_metadata["output_tokens"], bool(total.text)]
    going_on = ChatOpenAI(
        **options, max_tokens=16, use_responses_api=True, use_previous_response_id=True
    )
    begun = going_on.invoke(QUESTION, store=True)
    later = going_on.invoke([*QUESTION, begun, HumanMessage("Really?")])
    said["later"] = later.usage_metadata["output_tokens"]
    bound = responses.bind_tools([weather]).invoke("Weather in Delft?")
    said["with tools"] = bound.response_metadata["status"]

    plain = OpenAI(**options, max_tokens=6)
    said["completion"] = bool(plain.invoke("Once"))
    # Its default makes token ids of texts with a tokenizer that it would fetch.
    embeddings = OpenAIEmbeddings(**common, check_embedding_ctx_length=False)
    said["embeddings"] = len(await embeddings.aembed_documents(["One", "Two", "Three"]))
    print(json.dumps(said))  # noqa: T201 (it is what the test reads)


def weather(city: str) -> str:
    """Tells the weather in a city."""
    return f"Rain in {city}."


asyncio.run(main(*sys.argv[1:]))
