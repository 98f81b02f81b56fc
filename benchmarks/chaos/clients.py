"""Clients of every kind, which follow one request each and check its text token by token.

Durable ones (gRPC, and HTTP with a key) ask again until their request has ended, as the documentation tells users to. Plain ones
live with their connection: they may fail, visibly.
"""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import aiohttp
import msgspec

from benchmarks.chaos import script
from qlm.batch_client import OVER, BatchClient
from qlm.client import Accepted, AsyncClient, Ended, Output
from qlm_core.errors import InvalidRequest, NotFound, QlmError
from qlm_core.model import Phase

_AGAIN_S = 0.2
_POLL_S = 0.1
_PATH = "/v1/completions"
_DATA = b"data: "
_DONE = b"[DONE]"
# What a client under a key is told when it should ask again.
_PASSING = (429, 503)


class Kind(Enum):
    """How a request is made and answered."""

    GRPC = "grpc"
    KEYED_STREAM = "keyed stream"
    KEYED_WHOLE = "keyed whole"
    BATCH = "batch"
    PLAIN_STREAM = "plain stream"
    PLAIN_WHOLE = "plain whole"

    @property
    def durable(self) -> bool:
        """Whether it must end well whatever happens."""
        return self not in (Kind.PLAIN_STREAM, Kind.PLAIN_WHOLE)

    @property
    def probes(self) -> bool:
        """Whether it tells when service is whole: a batch takes longer than that by itself."""
        return self is not Kind.BATCH


class Fate(Enum):
    """How a request ended for its client."""

    OPEN = "open"
    FINISHED = "finished"
    FAILED = "failed"


@dataclass(eq=False)
class Asked:
    """One request and what its client knows of it.

    Attributes:
        ids: the ids under which it was accepted; more than one is a duplicate.
        text: the longest output that a stream of it showed.
        wrong: what was wrong with the text, "" if nothing.
        reason: why it failed, or was last asked for again.
        ended_at: the time of the day at which its client had the end.
        silence_s: the longest time without a byte for its client.
        file_id: of a batch, its input once that is uploaded.
    """

    kind: Kind
    name: str
    tokens: int
    fate: Fate = Fate.OPEN
    ids: dict[str, None] = field(default_factory=dict)
    text: str = ""
    wrong: str = ""
    reason: str = ""
    ended_at: float = 0.0
    silence_s: float = 0.0
    breaks: int = 0
    file_id: str = ""
    _heard_s: float = field(default_factory=time.monotonic)

    @property
    def expected(self) -> str:
        """The whole text."""
        return script.answer(self.name, self.tokens)

    @property
    def body(self) -> dict[str, Any]:
        """What is asked for."""
        return {
            "model": script.MODEL,
            "prompt": script.prompt(self.name),
            "max_tokens": self.tokens,
        }

    def heard(self) -> None:
        """A byte came."""
        now_s = time.monotonic()
        self.silence_s = max(self.silence_s, now_s - self._heard_s)
        self._heard_s = now_s

    def silent_s(self) -> float:
        """The longest silence up to now, one that lasts included."""
        lasts_s = time.monotonic() - self._heard_s if self.fate is Fate.OPEN else 0.0
        return max(self.silence_s, lasts_s)

    def shown(self, text: str) -> None:
        """A stream of it has shown so much, from the beginning."""
        if not self.expected.startswith(text):
            self.wrong = self.wrong or _difference(text, self.expected)
        if len(text) > len(self.text):
            self.text = text

    def end(self, fate: Fate, reason: str = "") -> None:
        """It is over."""
        self.heard()
        self.fate, self.reason, self.ended_at = fate, reason, time.time()
        if fate is Fate.FINISHED and self.text != self.expected:
            self.wrong = self.wrong or _difference(self.text, self.expected)


def _difference(text: str, expected: str) -> str:
    same = next((i for i, (a, b) in enumerate(zip(text, expected, strict=False)) if a != b), None)
    at = min(len(text), len(expected)) if same is None else same
    return f"{len(text)} characters for {len(expected)}, the same up to {at}"


class Clients:
    """Where they ask.

    Args:
        http: host:port of the gateway's HTTP.
        grpc: host:port of its gRPC.
    """

    def __init__(self, http: str, grpc: str) -> None:
        self._base = f"http://{http}/v1"
        self._url = f"{self._base}/completions"
        self._batches = BatchClient(f"http://{http}")
        self._grpc = grpc

    async def __aenter__(self) -> Clients:
        # No connection is used twice: one that died unnoticed is not what is tested, and libraries would ask again.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            timeout=aiohttp.ClientTimeout(total=None),
        )
        self._client = AsyncClient(self._grpc)
        await self._batches.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()
        await self._batches.__aexit__(None, None, None)
        await self._client.close()

    async def follow(self, asked: Asked) -> None:
        """Make a request and follow it to its end."""
        try:
            if asked.kind is Kind.GRPC:
                await self._again(asked, self._over_grpc)
            elif asked.kind is Kind.BATCH:
                await self._again(asked, self._as_batch)
            elif asked.kind.durable:
                await self._again(asked, self._over_http)
            else:
                await self._over_http(asked)
                if asked.fate is Fate.OPEN:
                    asked.end(Fate.FAILED, asked.reason)
        except (aiohttp.ClientError, OSError) as error:
            asked.end(Fate.FAILED, f"{type(error).__name__}: {error}")

    async def record(self, id: str) -> tuple[Phase, str]:
        """The recorded end of a durable request: its phase and text. Raises QlmError."""
        if id.startswith("batch_"):
            batch = await self._batches.get(id)
            finished = batch["status"] == "completed"
            return (Phase.FINISHED if finished else Phase.FAILED), await self._text_of(batch)
        standing = await self._client.get(id)
        response = standing.response or {"choices": [{"text": ""}]}
        return standing.phase, response["choices"][0]["text"]

    async def left_over(self) -> list[str]:
        """What the gateway and the solver hold, in words; nothing once all requests have ended. Raises QlmError."""
        found = [f"the gateway holds {one.id}" async for one in self._client.open_requests()]
        view = await self._client.queues()
        return found + [
            f"the solver holds {view[name]} {name}" for name in ("waiting", "held") if view[name]
        ]

    async def _again(self, asked: Asked, once: Any) -> None:
        """Ask until there is an end."""
        while asked.fate is Fate.OPEN:
            try:
                await once(asked)
            except (InvalidRequest, NotFound) as error:
                asked.end(Fate.FAILED, str(error))
            except (QlmError, aiohttp.ClientError, OSError) as error:
                asked.reason = f"{type(error).__name__}: {error}"
            if asked.fate is Fate.OPEN:
                asked.breaks += 1
                await asyncio.sleep(_AGAIN_S)

    # ---------------------------------------------------------------- gRPC

    async def _over_grpc(self, asked: Asked) -> None:
        """One stream, the request's first or another one. Raises QlmError when it breaks."""
        text = ""
        if asked.ids:
            events = self._client.watch(next(iter(asked.ids)))
        else:
            events = self._client.submit(asked.body, key=asked.name)
        async for event in events:
            asked.heard()
            if isinstance(event, Accepted):
                asked.ids[event.id] = None
            elif isinstance(event, Output):
                text += event.text
                asked.shown(text)
            elif isinstance(event, Ended):
                finished = event.phase is Phase.FINISHED
                asked.end(Fate.FINISHED if finished else Fate.FAILED, event.reason)

    # ---------------------------------------------------------------- batches

    async def _as_batch(self, asked: Asked) -> None:
        """A batch of one line. Raises QlmError when something breaks; what is uploaded and created by then stays so."""
        if not asked.file_id:
            line = {"custom_id": asked.name, "method": "POST", "url": _PATH, "body": asked.body}
            asked.file_id = await self._upload(msgspec.json.encode(line))
            asked.heard()
        said = {"input_file_id": asked.file_id, "endpoint": _PATH, "completion_window": "1h"}
        key = {"idempotency-key": asked.name}
        async with self._session.post(f"{self._base}/batches", json=said, headers=key) as answer:
            if answer.status != 200:
                raise QlmError(f"HTTP {answer.status}: {(await answer.text())[:200]}")
            batch = msgspec.json.decode(await answer.read())
        asked.ids[batch["id"]] = None
        while batch["status"] not in OVER:
            await asyncio.sleep(_POLL_S)
            batch = await self._batches.get(batch["id"])
            asked.heard()
        if batch["status"] != "completed":
            asked.end(Fate.FAILED, f"the batch is {batch['status']}")
            return
        asked.shown(await self._text_of(batch))
        asked.end(Fate.FINISHED)

    async def _upload(self, data: bytes) -> str:
        form = aiohttp.FormData()
        form.add_field("purpose", "batch")
        form.add_field("file", data, filename="one.jsonl")
        async with self._session.post(f"{self._base}/files", data=form) as answer:
            if answer.status != 200:
                raise QlmError(f"HTTP {answer.status}: {(await answer.text())[:200]}")
            return str(msgspec.json.decode(await answer.read())["id"])

    async def _text_of(self, batch: Mapping[str, Any]) -> str:
        """The text of a batch's one answer; "" if it has none."""
        if batch["output_file_id"] is None:
            return ""
        out = io.BytesIO()
        await self._batches.content(batch["output_file_id"], out)
        (line,) = out.getvalue().splitlines()
        return str(msgspec.json.decode(line)["response"]["body"]["choices"][0]["text"])

    # ---------------------------------------------------------------- HTTP

    async def _over_http(self, asked: Asked) -> None:
        """One HTTP request. It leaves what was asked open where its client may ask again."""
        stream = asked.kind in (Kind.PLAIN_STREAM, Kind.KEYED_STREAM)
        headers = {"idempotency-key": asked.name} if asked.kind.durable else {}
        body = asked.body | {"stream": stream}
        async with self._session.post(self._url, json=body, headers=headers) as response:
            asked.heard()
            if response.status != 200:
                asked.reason = f"HTTP {response.status}: {(await response.text())[:200]}"
                if response.status not in _PASSING:
                    asked.end(Fate.FAILED, asked.reason)
                return
            asked.ids[response.headers["x-qlm-request-id"]] = None
            if stream:
                await _read_stream(asked, response)
            else:
                answer = msgspec.json.decode(await response.read())
                asked.shown(answer["choices"][0]["text"])
                asked.end(Fate.FINISHED)


async def _read_stream(asked: Asked, response: aiohttp.ClientResponse) -> None:
    text, finished = "", False
    async for line in response.content:
        if not line.startswith(_DATA):
            continue
        asked.heard()
        data = line.removeprefix(_DATA).strip()
        if data == _DONE:
            break
        event: Mapping[str, Any] = msgspec.json.decode(data)
        if "error" in event:
            asked.reason = str(event["error"]["message"])
            if event["error"].get("code") != "unavailable":
                asked.end(Fate.FAILED, asked.reason)
            return
        for choice in event["choices"]:
            text += choice["text"]
            finished |= choice["finish_reason"] is not None
        asked.shown(text)
    if finished:
        asked.end(Fate.FINISHED)
    else:
        asked.reason = "the stream ended early"
