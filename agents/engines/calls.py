"""Single calls to one OpenAI-compatible server, beside the jobs that run on it: looks, questions about tokens, a first try."""

from __future__ import annotations

import logging
from typing import Any

import aiohttp
import msgspec

from agents.engines.faults import said_by, unsaid
from agents.engines.lenient_json import NO_JSON, Unreadable
from agents.engines.requests import CHATS, COMPLETIONS, CannotContinue
from agents.engines.shapes import Shape, learn
from qlm_core.endpoint import Endpoint

log = logging.getLogger("qlm.engine")

_HELP_TIMEOUT_S = 10.0
# The least that can be asked of each kind of model, the usual kind first, and what servers answer who lack an endpoint.
_LEAST: dict[Endpoint, dict[str, Any]] = {
    Endpoint.COMPLETIONS: {"prompt": "a", "max_tokens": 1, "temperature": 0},
    Endpoint.EMBEDDINGS: {"input": "a"},
    Endpoint.SCORE: {"text_1": "a", "text_2": "a"},
}
_LACKING = (400, 404, 405, 501)


class _Tokens(msgspec.Struct):
    tokens: list[int]


class _Prompt(msgspec.Struct):
    prompt: str


_tokens = msgspec.json.Decoder(_Tokens)
_prompt = msgspec.json.Decoder(_Prompt)
_encode = msgspec.json.Encoder().encode


class Calls:
    """A session with one server.

    Args:
        base_url: scheme, host and port, without /v1.
    """

    def __init__(self, base_url: str, *, api_key: str, connect_timeout_s: float) -> None:
        self.base_url = base_url.rstrip("/")
        # Streams pass on as they come, so they must come as they are.
        self._headers = {"Accept-Encoding": "identity"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._connect_timeout_s = connect_timeout_s
        self._http: aiohttp.ClientSession | None = None

    def connect(self) -> None:
        """Be ready to call."""
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._connect_timeout_s),
            headers=self._headers,
            auto_decompress=False,
        )

    async def hang_up(self) -> None:
        """Close all connections."""
        if self._http is not None:
            await self._http.close()

    @property
    def http(self) -> aiohttp.ClientSession:
        """The session; only after `connect`."""
        assert self._http is not None, "not connected"
        return self._http

    async def get(self, path: str, *, timeout_s: float) -> tuple[int, bytes]:
        """GET a path of the server. Raises OSError, asyncio.TimeoutError or aiohttp.ClientError."""
        return await self._call("GET", path, None, timeout_s)

    async def post(self, path: str, body: object, *, timeout_s: float) -> tuple[int, bytes]:
        """POST JSON to a path of the server; raises as `get`."""
        return await self._call("POST", path, _encode(body), timeout_s)

    async def answers(self, timeout_s: float) -> bool:
        """Whether the server answers at all, and no proxy in its place."""
        try:
            status, _ = await self.get("/v1/models", timeout_s=timeout_s)
        except (OSError, TimeoutError, aiohttp.ClientError):
            return False
        return status < 500

    async def try_out(self, served: str, *, timeout_s: float) -> str:
        """Have the server do the least that it can: produce one token, or measure a letter where it generates nothing.

        Returns what is wrong, "" if nothing.
        """
        problem = ""
        for endpoint, said in _LEAST.items():
            body = {"model": served, **said}
            try:
                status, answer = await self.post(endpoint.path, body, timeout_s=timeout_s)
            except (OSError, TimeoutError, aiohttp.ClientError) as error:
                return f"no answer: {unsaid(error)}"
            if status == 200:
                return ""
            problem = problem or f"HTTP {status}: {said_by(status, answer).text}"
            if status not in _LACKING:
                break
        return problem

    async def shapes(self, served: str, *, timeout_s: float) -> dict[str, Shape]:
        """What the server's whole answers look like, by endpoint, from a token of each; without those that give none."""
        asked: dict[str, dict[str, Any]] = {
            COMPLETIONS: {"prompt": "a"},
            CHATS: {"messages": [{"role": "user", "content": "a"}]},
        }
        shapes: dict[str, Shape] = {}
        for path, said in asked.items():
            body = {"model": served, "max_tokens": 1, "temperature": 0, **said}
            try:
                status, answer = await self.post(path, body, timeout_s=timeout_s)
                if status == 200:
                    shapes[path] = learn(answer)
            except (OSError, TimeoutError, aiohttp.ClientError):
                break
            except (Unreadable, KeyError, TypeError, IndexError, AttributeError):
                log.warning("an endpoint answers strangely", extra={"path": path})
        return shapes

    async def tokenize(self, served: str, text: str) -> list[int]:
        """The ids of a text. Raises CannotContinue."""
        body = {"model": served, "prompt": text, "add_special_tokens": False}
        status, answer = await self.post("/tokenize", body, timeout_s=_HELP_TIMEOUT_S)
        try:
            tokens = _tokens.decode(answer).tokens if status == 200 else []
        except NO_JSON:
            tokens = []
        # Of text there is always a token; servers with another /tokenize than vLLM's may find no text.
        if text and not tokens:
            raise CannotContinue(
                f"the server does not tokenize as vLLM does (HTTP {status} at /tokenize), so a "
                "prompt of token ids cannot be continued there"
            )
        return tokens

    async def detokenize(self, served: str, ids: list[int]) -> str | None:
        """The text of ids; None where the server does not say."""
        body = {"model": served, "tokens": ids}
        status, answer = await self.post("/detokenize", body, timeout_s=_HELP_TIMEOUT_S)
        try:
            return _prompt.decode(answer).prompt if status == 200 else None
        except NO_JSON:
            return None

    async def _call(
        self, method: str, path: str, body: bytes | None, timeout_s: float
    ) -> tuple[int, bytes]:
        async with self.http.request(
            method,
            self.base_url + path,
            data=body,
            headers={"Content-Type": "application/json"},
            timeout=aiohttp.ClientTimeout(total=timeout_s),
        ) as response:
            return response.status, await response.read()
