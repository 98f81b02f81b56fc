"""What a real vLLM computes again when a request that was taken off it comes back: `python -m benchmarks.resume_kv`.

A long request is begun and closed, as an eviction does; others then take so much of the KV cache; the request comes back
as its prompt and what it had produced. vLLM says in its answer how many tokens it found in its cache. It needs what
`deploy/vllm-cpu/prepare.py` installs. What stands behind `--` is passed on to `vllm serve`, for example a connector that
keeps KV blocks elsewhere.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from agents.engines.connection import patience_of
from agents.engines.vllm_server import Server, ServerError
from qlm import ports
from qlm.config_file import parse
from qlm.scrape import samples, total
from qlm_core.config import VllmEngineConfig
from qlm_core.model import ModelName

CONFIG = Path("deploy/vllm-cpu/config.yaml")
MODEL = ModelName("tiny-llama")
LENGTH = 2048
PROMPT_TOKENS = 700
PRODUCED_TOKENS = 500
FILLER_TOKENS = 512
# Below these the tokenizer has its special tokens.
TOKEN_IDS = range(300, 2000)
SHARES = (0.0, 0.5, 0.75, 0.875, 0.9375, 1.0, 1.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed:
    """One request that came back.

    Attributes:
        between_share: tokens of others that came in between, as a share of the KV cache.
        tokens: its prompt and what it had produced.
        cached_tokens: those that vLLM found in a cache, its own or a connector's.
        external_tokens: those of them that a connector brought.
    """

    between_share: float
    tokens: int
    cached_tokens: int
    external_tokens: int

    @property
    def again_tokens(self) -> int:
        """Tokens that were computed again."""
        return self.tokens - self.cached_tokens


class Bench:
    """One server, and requests to it."""

    def __init__(self, server: Server, http: aiohttp.ClientSession, seed: int) -> None:
        self._server = server
        self._http = http
        self._random = random.Random(seed)
        self.cache_tokens = 0

    async def resume(self, between_share: float) -> Resumed:
        """Begin a request, close it, let others pass, and continue it."""
        prompt = self._tokens(PROMPT_TOKENS)
        ids = prompt + await self._begin(prompt)
        fillers = round(between_share * self.cache_tokens / FILLER_TOKENS)
        for _ in range(fillers):
            await self._complete(self._tokens(FILLER_TOKENS), output_tokens=1)
        before = await self._external_tokens()
        usage = (await self._complete(ids, output_tokens=1))["usage"]
        details = usage["prompt_tokens_details"] or {}
        return Resumed(
            between_share=between_share,
            tokens=usage["prompt_tokens"],
            cached_tokens=details.get("cached_tokens") or 0,
            external_tokens=await self._external_tokens() - before,
        )

    def _tokens(self, count: int) -> list[int]:
        return self._random.choices(TOKEN_IDS, k=count)

    async def _begin(self, prompt: list[int]) -> list[int]:
        """What was produced until the connection was closed."""
        produced: list[int] = []
        body = self._body(prompt, LENGTH - PROMPT_TOKENS) | {
            "stream": True,
            "return_token_ids": True,
        }
        async with self._http.post(self._url("/v1/completions"), json=body) as response:
            response.raise_for_status()
            async for line in response.content:
                if line.startswith(b"data: {"):
                    for choice in json.loads(line[6:])["choices"]:
                        produced += choice.get("token_ids") or []
                if len(produced) >= PRODUCED_TOKENS:
                    break
        # The engine hears of it within an iteration or two.
        await asyncio.sleep(0.2)
        return produced

    async def _complete(self, prompt: list[int], *, output_tokens: int) -> dict[str, Any]:
        body = self._body(prompt, output_tokens)
        async with self._http.post(self._url("/v1/completions"), json=body) as response:
            response.raise_for_status()
            answer: dict[str, Any] = await response.json()
            return answer

    async def _external_tokens(self) -> int:
        async with self._http.get(self._url("/metrics")) as response:
            found = samples(await response.text())
        return round(total(found, "vllm:external_prefix_cache_hits_total") or 0.0)

    @staticmethod
    def _body(prompt: list[int], output_tokens: int) -> dict[str, Any]:
        return {
            "model": MODEL,
            "prompt": prompt,
            "max_tokens": output_tokens,
            "temperature": 0,
            "ignore_eos": True,
        }

    def _url(self, path: str) -> str:
        return self._server.connection.base_url + path


async def measure(kv_bytes: int, more: list[str], seed: int) -> list[Resumed]:
    """Start a server, resume one request for each share, stop it. Raises ServerError."""
    config = parse(CONFIG.read_text(), environ={})
    agent = config.agents[0]
    section: VllmEngineConfig = agent.engine.vllm
    args = [one for one in section.args if not one.startswith("--kv-cache-memory-bytes")]
    args += [f"--kv-cache-memory-bytes={kv_bytes}", *more]
    server = Server(
        MODEL,
        settings=config.models[MODEL],
        section=msgspec.structs.replace(section, args=tuple(args)),
        port=int(ports.free_addresses(1)[0].rsplit(":", 1)[1]),
        agent="resume-kv",
        can_sleep=False,
        patience=patience_of(agent.engine),
        event_bytes_max=agent.message_bytes_max // 2,
        adapters={},
    )
    try:
        await server.start(lambda _: None)
        async with aiohttp.ClientSession() as http:
            bench = Bench(server, http, seed)
            bench.cache_tokens = await server.kv_cache_tokens()
            print(f"KV cache of {bench.cache_tokens} tokens", file=sys.stderr)
            return [await bench.resume(share) for share in SHARES]
    finally:
        await server.stop()


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.resume_kv", description=__doc__)
    parser.add_argument("--kv-mb", type=int, default=4, help="KV cache in MiB")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="machine-readable figures")
    parser.add_argument("more", nargs="*", help="further arguments of `vllm serve`, behind --")
    options = parser.parse_args()
    try:
        found = asyncio.run(measure(options.kv_mb << 20, options.more, options.seed))
    except ServerError as error:
        print(error, file=sys.stderr)
        return 1
    if options.json:
        print(msgspec.json.encode(found).decode())
        return 0
    print(
        f"{'others between':>14}  {'tokens':>6}  {'in cache':>8}  {'external':>8}  computed again"
    )
    for one in found:
        print(
            f"{one.between_share:>14.1%}  {one.tokens:>6}  {one.cached_tokens:>8}  "
            f"{one.external_tokens:>8}  {one.again_tokens} ({one.again_tokens / one.tokens:.0%})"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
