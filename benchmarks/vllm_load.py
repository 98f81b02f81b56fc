"""The load of `make bench-vllm`, and what is kept of each answer: bursts of short chats beside long batch outputs.

Times are of the client's clock, in seconds from the moment that the load begins. Prompts are unique, so that no prefix
cache answers for a server.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

Json = dict[str, Any]

TIMEOUT_S = 600.0
_FIELDS: Json = {"temperature": 0, "ignore_eos": True, "stream": True}
_OPTIONS: Json = {"stream_options": {"include_usage": True}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Send:
    """A request to send.

    Attributes:
        at_s: when, after the load began.
        onset: whether it belongs to the first moment of a burst.
    """

    at_s: float
    body: Json
    interactive: bool
    onset: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Got:
    """How a request fared: time to its first token, its end after the load began, its tokens."""

    send: Send
    ttft_s: float
    ended_s: float
    prompt_tokens: int
    output_tokens: int


def interactive(
    model: str, *, bursts: int, burst: int, period_s: float, tokens: int, salt: str
) -> list[Send]:
    """Bursts of so many chats at once, one every period, and one chat in the middle between two bursts."""
    sends = []
    for number in range(bursts):
        at_s = 1.0 + number * period_s
        for place in range(burst):
            sends.append(_chat(f"{salt}-{number}-{place}", model, tokens, at_s, onset=True))
        sends.append(_chat(f"{salt}-{number}-between", model, tokens, at_s + period_s / 2))
    return sends


def _chat(name: str, model: str, tokens: int, at_s: float, *, onset: bool = False) -> Send:
    messages = [{"role": "user", "content": f"{name}: what does this line of code do?"}]
    body = {"model": model, "messages": messages, "max_tokens": tokens} | _FIELDS | _OPTIONS
    return Send(at_s=at_s, body=body, interactive=True, onset=onset)


def batch(model: str, *, requests: int, tokens: int, salt: str) -> list[Send]:
    """So many long outputs, all there at once."""
    return [
        Send(
            at_s=0.0,
            body={"model": model, "prompt": f"{salt}-{number}: import", "max_tokens": tokens}
            | _FIELDS
            | _OPTIONS,
            interactive=False,
        )
        for number in range(requests)
    ]


async def run(
    url: str, sends: Sequence[Send], *, interactive: Mapping[str, Any], batch: Mapping[str, Any]
) -> list[Got]:
    """Send a load to a server and wait for all of it.

    Args:
        interactive, batch: fields added to the bodies, such as a priority or a tier.

    Raises:
        RuntimeError: a request was not answered.
    """
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=TIMEOUT_S)
    ) as session:
        begun_s = time.monotonic()
        return await asyncio.gather(
            *(
                _send(session, url, send, interactive if send.interactive else batch, begun_s)
                for send in sends
            )
        )


async def _send(
    session: aiohttp.ClientSession, url: str, send: Send, fields: Mapping[str, Any], begun_s: float
) -> Got:
    await asyncio.sleep(max(0.0, begun_s + send.at_s - time.monotonic()))
    path = "/v1/chat/completions" if "messages" in send.body else "/v1/completions"
    sent_s = time.monotonic()
    first_s, usage = 0.0, None
    async with session.post(url + path, json=send.body | dict(fields)) as response:
        if response.status != 200:
            raise RuntimeError(f"HTTP {response.status}: {(await response.text())[:200]}")
        async for line in response.content:
            if not line.startswith(b"data: {"):
                continue
            chunk = json.loads(line[6:])
            usage = chunk.get("usage") or usage
            for choice in chunk.get("choices", ()):
                said = choice.get("text") or choice.get("delta", {}).get("content")
                if said and not first_s:
                    first_s = time.monotonic()
    if usage is None:
        raise RuntimeError("a stream ended without its usage")
    return Got(
        send=send,
        ttft_s=(first_s or time.monotonic()) - sent_s,
        ended_s=time.monotonic() - begun_s,
        prompt_tokens=usage["prompt_tokens"],
        output_tokens=usage["completion_tokens"],
    )
