"""Measures a running engine through its OpenAI-compatible door: iterations of known content, for `qlm profile fit`.

Single prompts of growing length give prefill times; batches of equal requests give decode times. While all requests of a
batch decode, an iteration gives each of them one token, so the pace of the stream is the duration of the iteration. Prompts
never repeat, lest a prefix cache spare the engine the work.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any

from qlm_core.errors import QlmError, Unavailable
from qlm_core.sim.fit import MeasuredIteration

PROMPT_TOKENS = (64, 256, 512, 1024, 1536)
BATCHES = (1, 2, 4, 8, 16, 32, 64)
CONTEXTS = (64, 768)
REPEATS = 3
REQUEST_TIMEOUT_S = 300.0

_WORDS = ("lake", "stone", "river", "cloud", "field", "north", "paper", "green", "night", "seven")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """What an engine publishes of its own settings; None where it does not."""

    kv_cache_tokens: int | None = None


@dataclass(slots=True)
class _Stream:
    """One answer: when its chunks came, and the token counts that the engine gives at the end."""

    started_s: float
    chunks_s: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    output_tokens: int = 0


class Probe:
    """A client of one engine.

    Args:
        url: base address, for example http://127.0.0.1:8000.
        tell: is told what is measured next.
    """

    def __init__(self, url: str, model: str, *, api_key: str = "", tell: Callable[[str], None]):
        self._url = url.rstrip("/")
        self._model = model
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._tell = tell
        self._number = 0
        self._session: Any = None

    async def measure(
        self,
        *,
        prompts: Sequence[int] = PROMPT_TOKENS,
        batches: Sequence[int] = BATCHES,
        contexts: Sequence[int] = CONTEXTS,
        output_tokens: int = 64,
        repeats: int = REPEATS,
        accept: Callable[[EngineLimits], None] = lambda _: None,
    ) -> tuple[list[MeasuredIteration], EngineLimits]:
        """Iterations of known content, and the engine's limits.

        Args:
            accept: sees the limits before anything is measured, and raises what it will.

        Raises:
            Unavailable: nobody answers.
            QlmError: the engine refuses a request or answers something else than a stream.
        """
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)
        async with aiohttp.ClientSession(headers=self._headers, timeout=timeout) as session:
            self._session = session
            await self._answer(16, 4)  # the first request of an engine may compile
            limits = await self._limits()
            accept(limits)
            points: list[MeasuredIteration] = []
            for tokens in prompts:
                self._tell(f"prefill of {tokens} tokens")
                points.append(await self._prefill(tokens, repeats))
            for context in contexts:
                for batch in batches:
                    self._tell(f"decoding {batch} sequences after prompts of {context} tokens")
                    point = await self._decode(batch, context, output_tokens)
                    if point is not None:
                        points.append(point)
            return points, limits

    async def _prefill(self, tokens: int, repeats: int) -> MeasuredIteration:
        answers = [await self._answer(tokens, 1) for _ in range(repeats)]
        return MeasuredIteration(
            iteration_ms=1e3 * median(one.chunks_s[0] - one.started_s for one in answers),
            prefill_tokens=round(fmean(one.prompt_tokens for one in answers)),
        )

    async def _decode(self, batch: int, context: int, output: int) -> MeasuredIteration | None:
        import asyncio

        answers = await asyncio.gather(*(self._answer(context, output) for _ in range(batch)))
        # From the last first token to the first last one, all of them decode.
        from_s = max(one.chunks_s[0] for one in answers)
        until_s = min(one.chunks_s[-1] for one in answers)
        steps = [_tokens_between(one, from_s, until_s) for one in answers]
        if until_s <= from_s or fmean(steps) < 4:
            # The engine does not take so many at once, so the batch was never whole.
            return None
        iterations = fmean(steps)
        produced = fmean(_tokens_between(one, 0.0, (from_s + until_s) / 2) for one in answers)
        return MeasuredIteration(
            iteration_ms=1e3 * (until_s - from_s) / iterations,
            decode_batch=batch,
            context_tokens=round(batch * (fmean(o.prompt_tokens for o in answers) + produced)),
        )

    async def _answer(self, prompt_tokens: int, output_tokens: int) -> _Stream:
        import aiohttp

        self._number += 1
        body = {
            "model": self._model,
            "prompt": _prompt(self._number, prompt_tokens),
            "max_tokens": output_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        stream = _Stream(time.perf_counter())
        try:
            async with self._session.post(f"{self._url}/v1/completions", json=body) as response:
                if response.status != 200:
                    text = " ".join((await response.text()).split())[:200]
                    raise QlmError(f"{self._url}: HTTP {response.status}: {text}")
                async for event in _events(response.content):
                    _note(stream, event)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise Unavailable(
                f"{self._url}: no engine answers ({type(error).__name__}). Start one, or correct --url."
            ) from None
        if not stream.chunks_s:
            raise QlmError(
                f"{self._url}: the answer holds no tokens. Is it a completions endpoint?"
            )
        stream.prompt_tokens = stream.prompt_tokens or prompt_tokens
        stream.output_tokens = stream.output_tokens or len(stream.chunks_s)
        return stream

    async def _limits(self) -> EngineLimits:
        """What vLLM says in `vllm:cache_config_info`."""
        async with self._session.get(f"{self._url}/metrics") as response:
            text = await response.text() if response.status == 200 else ""
        return limits_of(text)


def limits_of(metrics: str) -> EngineLimits:
    """The engine's limits from its Prometheus metrics, as far as they are there."""
    import re

    for line in metrics.splitlines():
        if line.startswith("vllm:cache_config_info"):
            labels = dict(re.findall(r'(\w+)="([^"]*)"', line))
            if labels.get("kv_cache_size_tokens", "").isdigit():
                return EngineLimits(kv_cache_tokens=int(labels["kv_cache_size_tokens"]))
            blocks, size = labels.get("num_gpu_blocks", ""), labels.get("block_size", "")
            if blocks.isdigit() and size.isdigit():
                return EngineLimits(kv_cache_tokens=int(blocks) * int(size))
    return EngineLimits()


def _prompt(number: int, tokens: int) -> str:
    """About so many tokens that no earlier prompt begins with; the engine's own count is what is used."""
    words = [_WORDS[(number * 7 + index * (number % 9 + 1)) % 10] for index in range(tokens - 1)]
    return f"{number} " + " ".join(words)


def _tokens_between(stream: _Stream, from_s: float, until_s: float) -> float:
    """Tokens that came in (from, until]; a chunk stands for as many as chunks do on average."""
    chunks = sum(from_s < at_s <= until_s for at_s in stream.chunks_s)
    return chunks * stream.output_tokens / len(stream.chunks_s)


async def _events(content: AsyncIterator[bytes]) -> AsyncIterator[dict[str, Any]]:
    """The JSON objects of a stream of server-sent events."""
    async for line in content:
        text = line.strip()
        if text.startswith(b"data:") and text != b"data: [DONE]":
            try:
                event = json.loads(text[5:])
            except ValueError:
                raise QlmError("the engine sent an event that is not JSON") from None
            if isinstance(event, dict):
                yield event


def _note(stream: _Stream, event: dict[str, Any]) -> None:
    choices = event.get("choices") or []
    if choices and choices[0].get("text"):
        stream.chunks_s.append(time.perf_counter())
    usage = event.get("usage")
    if isinstance(usage, dict):
        stream.prompt_tokens = int(usage.get("prompt_tokens") or 0)
        stream.output_tokens = int(usage.get("completion_tokens") or 0)
