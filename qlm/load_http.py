"""Load over OpenAI-compatible HTTP: one streaming completion per request, read with as little work as possible.

Chunks are not parsed while they come, only their arrival is noted; the last events of a stream say how it ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import TracebackType

import aiohttp
import msgspec

from qlm import trust
from qlm.load import Shot
from qlm.report import Fate, Outcome
from qlm_core.model import Estimate

SLO_CLASS_HEADER = "x-llm-d-inference-objective"
ESTIMATE_HEADER = "x-qlm-estimated-wait-ms"
DROPPED_HEADER = "x-llm-d-request-dropped-reason"
# Enough for the usage event and the end mark; the rest of a stream is counted and forgotten.
TAIL_BYTES = 8_192
_DATA = b"data: "
_DONE = b"data: [DONE]"


class HttpTransport:
    """A gateway's OpenAI-compatible endpoint.

    Over HTTP a lost connection is the client's loss: such requests are counted, not sent again.
    """

    def __init__(
        self, url: str, *, api_key: str = "", ca: str = "", connect_timeout_s: float = 10.0
    ) -> None:
        self._url = f"{url}/v1/completions"
        self._tls = trust.https(ca)
        self._headers = {"content-type": "application/json"}
        if api_key:
            self._headers["authorization"] = f"Bearer {api_key}"
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout_s)

    async def __aenter__(self) -> HttpTransport:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=self._tls),
            timeout=self._timeout,
            headers=self._headers,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._session.close()

    async def send(self, shot: Shot, outcome: Outcome) -> None:
        """Send one request and read its stream to the end."""
        sent_s = asyncio.get_running_loop().time()
        try:
            async with self._session.post(
                self._url, data=shot.body, headers={SLO_CLASS_HEADER: shot.request.slo_class}
            ) as response:
                outcome.estimate = _estimate(response.headers.get(ESTIMATE_HEADER, ""))
                if response.status == 200:
                    await _read_stream(response, outcome, sent_s)
                else:
                    _refused(response.status, response.headers, await response.read(), outcome)
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            outcome.fate = Fate.LOST
            outcome.reason = f"{type(error).__name__}: {error}"


async def _read_stream(response: aiohttp.ClientResponse, outcome: Outcome, sent_s: float) -> None:
    loop = asyncio.get_running_loop()
    tail = b""
    async for block in response.content.iter_any():
        if _DATA in block:
            outcome.token_came(loop.time() - sent_s)
        tail = (tail + block)[-TAIL_BYTES:]
    outcome.e2e_s = loop.time() - sent_s
    _conclude(tail, outcome)


def _conclude(tail: bytes, outcome: Outcome) -> None:
    """Read from the last events how the stream ended."""
    outcome.fate, outcome.reason = Fate.LOST, "the stream ended early"
    events = [line[len(_DATA) :] for line in tail.split(b"\n") if line.startswith(_DATA)]
    for event in events:
        if event.startswith(b"{"):
            _note(msgspec.json.decode(event), outcome)
    if outcome.fate is Fate.LOST and _DONE in tail:
        outcome.fate, outcome.reason = Fate.FINISHED, ""


def _note(event: dict[str, object], outcome: Outcome) -> None:
    usage, error = event.get("usage"), event.get("error")
    if isinstance(usage, dict):
        outcome.output_tokens = int(usage.get("completion_tokens", 0))
    if isinstance(error, dict):
        code = str(error.get("code") or error.get("type") or "error")
        outcome.fate = Fate.SHED if code.startswith("rejected") else Fate.FAILED
        outcome.reason = f"{code}: {error.get('message', '')}"


def _estimate(text: str) -> Estimate | None:
    """An estimate as the header has it, None where there is none."""
    parts = dict(part.strip().partition("=")[::2] for part in text.split(","))
    try:
        mean_s, p50_s, p90_s, p99_s = (
            float(parts[name]) / 1000 for name in ("mean", "p50", "p90", "p99")
        )
    except (KeyError, ValueError):
        return None
    return Estimate(mean_s=mean_s, p50_s=p50_s, p90_s=p90_s, p99_s=p99_s)


def _refused(status: int, headers: Mapping[str, str], body: bytes, outcome: Outcome) -> None:
    """Note an answer that is no stream."""
    dropped = headers.get(DROPPED_HEADER, "")
    outcome.fate = Fate.SHED if dropped or status == 429 else Fate.FAILED
    outcome.reason = dropped or f"HTTP {status}"
    try:
        answer = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return
    if isinstance(answer, dict) and isinstance(answer.get("error"), dict):
        outcome.reason += f": {answer['error'].get('message', '')}"
