"""An OpenAI-compatible engine with known costs: continuous batching in real time behind /v1/completions."""

from __future__ import annotations

import asyncio
import json

from aiohttp import web

from qlm_core.profile import EngineProfile
from qlm_core.sim.batch import ContinuousBatch


class KnownEngine:
    """Streams one chunk a token, when the engine model says that it is there."""

    def __init__(self, profile: EngineProfile):
        self.profile = profile
        self.app = web.Application()
        self.app.router.add_post("/v1/completions", self.complete)
        self.app.router.add_get("/metrics", self.metrics)
        self._batch = ContinuousBatch(profile)
        self._streams: dict[str, asyncio.Queue[int]] = {}
        self._sent: dict[str, int] = {}
        self._number = 0
        self._changed = asyncio.Event()
        self._origin_s = 0.0

    @property
    def _now_s(self) -> float:
        return asyncio.get_running_loop().time() - self._origin_s

    async def work(self) -> None:
        """Run the engine until cancelled."""
        self._origin_s = asyncio.get_running_loop().time()
        while True:
            due_s = self._batch.next_iteration_s
            self._changed.clear()
            timeout = None if due_s is None else max(0.0, due_s - self._now_s)
            try:
                await asyncio.wait_for(self._changed.wait(), timeout)
            except TimeoutError:
                self._step()

    def _step(self) -> None:
        produced = {}
        for outcome in self._batch.advance(self._now_s):
            produced[outcome.request_id] = outcome.output_tokens
        produced |= dict(self._batch.progress())
        for id, tokens in produced.items():
            for _ in range(tokens - self._sent.get(id, 0)):
                self._streams[id].put_nowait(1)
            self._sent[id] = tokens

    async def metrics(self, _: web.Request) -> web.Response:
        info = f'block_size="{self.profile.block_tokens}",num_gpu_blocks="'
        info += f'{self.profile.kv_cache_tokens // self.profile.block_tokens}"'
        return web.Response(text=f"vllm:cache_config_info{{{info}}} 1.0\n")

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self._number += 1
        id, prompt, output = str(self._number), len(body["prompt"].split()), body["max_tokens"]
        stream = self._streams[id] = asyncio.Queue()
        self._batch.add(id, prompt_tokens=prompt, output_tokens=output, now_s=self._now_s)
        self._changed.set()
        response = web.StreamResponse()
        await response.prepare(request)
        for index in range(output):
            await stream.get()
            chunk = json.dumps({"choices": [{"text": f" {index}"}]})
            await response.write(f"data: {chunk}\n\n".encode())
        usage = {"prompt_tokens": prompt, "completion_tokens": output}
        end = json.dumps({"choices": [], "usage": usage})
        await response.write(f"data: {end}\n\ndata: [DONE]\n\n".encode())
        return response
