"""A stand-in for `vllm serve`: the same command line, endpoints and ways to fail, and tokens at a steady pace.

Run as a program it takes the place of vLLM below the `vllm` engine; in process it is the server of the
`openai` engine's tests. Token i of an answer is " t<i>", counted on from a resumed prompt. A prompt with one of these
words makes it misbehave: `refuse` (HTTP 400), `busy` (503), `break` (an error event, then [DONE]), `cut` (the
connection ends in the middle), `die` (the process ends).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import sys

from aiohttp import web

TOKEN_S = 0.004


class FakeServer:
    """The server's state and handlers."""

    def __init__(self, model: str, *, dev_mode: bool = True) -> None:
        self.model = model
        self.awake = asyncio.Event()
        self.awake.set()
        self.bodies: list[dict[str, object]] = []
        self.open = 0
        self.healthy = True
        self.api_key = ""
        self.asked = 0
        self.headers: list[dict[str, str]] = []
        self.answers_metrics = True
        # Whose it says that its models are.
        self.owner = ""
        # What /tokenize answers instead of what vLLM does: status and body.
        self.tokenized: tuple[int, object] | None = None
        self.adapters = FakeAdapters(self)
        self.app = web.Application()
        routes = self.app.router
        routes.add_get("/health", self.health)
        routes.add_get("/v1/models", self.models)
        routes.add_get("/metrics", self.metrics)
        routes.add_post("/v1/completions", self.generate)
        routes.add_post("/v1/chat/completions", self.generate)
        routes.add_post("/tokenize", self.tokenize)
        if dev_mode:
            routes.add_post("/sleep", self.sleep)
            routes.add_post("/wake_up", self.wake)
            routes.add_get("/is_sleeping", self.is_sleeping)

    async def health(self, _: web.Request) -> web.Response:
        self.asked += 1
        return web.Response(status=200 if self.healthy else 503)

    async def models(self, request: web.Request) -> web.Response:
        if not self.lets_in(request):
            return self.error(401, "Unauthorized")
        names = [self.model, *self.adapters.paths]
        return web.json_response(
            {"object": "list", "data": [{"id": name, "owned_by": self.owner} for name in names]}
        )

    def lets_in(self, request: web.Request) -> bool:
        given = request.headers.get("Authorization", "")
        return not self.api_key or given == f"Bearer {self.api_key}"

    async def metrics(self, _: web.Request) -> web.Response:
        if not self.answers_metrics:
            await asyncio.Event().wait()
        info = 'block_size="16",kv_cache_size_tokens="32768",num_gpu_blocks="2048"'
        return web.Response(text=f"vllm:cache_config_info{{{info}}} 1.0\n")

    async def sleep(self, request: web.Request) -> web.Response:
        assert request.query["level"] == "1"
        self.awake.clear()
        return web.json_response({})

    async def wake(self, request: web.Request) -> web.Response:
        if request.query["tags"] == "kv_cache":
            self.awake.set()
        return web.json_response({})

    async def is_sleeping(self, _: web.Request) -> web.Response:
        return web.json_response({"is_sleeping": not self.awake.is_set()})

    async def tokenize(self, request: web.Request) -> web.Response:
        if self.tokenized is not None:
            status, answer = self.tokenized
            return web.json_response(answer, status=status)
        body = await request.json()
        return web.json_response({"tokens": list(range(len(body["prompt"].split())))})

    async def generate(self, request: web.Request) -> web.StreamResponse:
        if not self.lets_in(request):
            return self.error(401, "Unauthorized")
        body = await request.json()
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        chat = "messages" in body
        prompt = body["messages"][-1]["content"] if chat else str(body["prompt"])
        if body["model"] not in (self.model, *self.adapters.paths):
            return self.error(404, f"The model `{body['model']}` does not exist.")
        if "refuse" in prompt:
            return self.error(400, "This prompt is refused.")
        if "busy" in prompt:
            return self.error(503, "The engine is currently busy.")
        count = body.get("max_completion_tokens") or body.get("max_tokens") or 16
        first = len(re.findall(r" t\d+", prompt))
        if not body.get("stream"):
            return web.json_response({"choices": [{"text": " t0", "finish_reason": "length"}]})
        tokens = range(first, first + count)
        return await self.stream(request, prompt, tokens, chat=chat)

    def error(self, status: int, message: str) -> web.Response:
        return web.json_response({"error": {"message": message, "code": status}}, status=status)

    async def stream(
        self, request: web.Request, prompt: str, tokens: range, *, chat: bool
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        self.open += 1
        try:
            if chat:
                await self.event(response, {"delta": {"role": "assistant", "content": ""}}, 0)
            for index, token in enumerate(tokens):
                await self.awake.wait()
                await asyncio.sleep(TOKEN_S)
                if index == 2 and "break" in prompt:
                    await response.write(b'data: {"error": {"message": "x", "code": 500}}\n\n')
                    break
                if index == 2 and "babble" in prompt:
                    await response.write(b"data: " + b"x" * 5_000_000)
                if index == 2 and "cut" in prompt:
                    assert request.transport is not None
                    request.transport.close()
                    return response
                if index == 2 and "die" in prompt:
                    os._exit(1)
                text = f" t{token}"
                part: dict[str, object] = {"delta": {"content": text}} if chat else {"text": text}
                part["finish_reason"] = "length" if index == len(tokens) - 1 else None
                await self.event(response, part, index + 1)
            else:
                usage = {"prompt_tokens": 7 + tokens.start, "completion_tokens": len(tokens)}
                await self.write(response, {"id": "x", "choices": [], "usage": usage})
            await response.write(b"data: [DONE]\n\n")
        finally:
            self.open -= 1
        return response

    async def event(
        self, response: web.StreamResponse, choice: dict[str, object], produced: int
    ) -> None:
        usage = {"prompt_tokens": 7, "completion_tokens": produced}
        choices = [{"index": 0, **choice}]
        await self.write(response, {"id": "x", "choices": choices, "usage": usage})

    async def write(self, response: web.StreamResponse, event: object) -> None:
        await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")


class FakeAdapters:
    """LoRA adapters that come and go. One that lies at a path with `missing` in it is not found.

    `log` has what happened, in order.
    """

    def __init__(self, server: FakeServer) -> None:
        self._server = server
        self.paths: dict[str, str] = {}
        self.log: list[str] = []
        self.load_s = 0.0

    def serve(self) -> None:
        """Take orders, as vLLM does where its environment allows it."""
        routes = self._server.app.router
        routes.add_post("/v1/load_lora_adapter", self.load)
        routes.add_post("/v1/unload_lora_adapter", self.unload)
        routes.add_get("/log", self.tell)

    async def load(self, request: web.Request) -> web.Response:
        body = await request.json()
        name, path = body["lora_name"], body["lora_path"]
        await asyncio.sleep(self.load_s)
        if name in self.paths:
            return self._server.error(400, f"The lora adapter '{name}' has already been loaded.")
        if "missing" in path:
            self.log.append(f"no {name}")
            return self._server.error(404, f"The lora adapter '{name}' does not exist at {path}.")
        self.paths[name] = path
        self.log.append(f"load {name}")
        return web.Response(text="Success")

    async def unload(self, request: web.Request) -> web.Response:
        name = (await request.json())["lora_name"]
        if self.paths.pop(name, None) is None:
            return self._server.error(404, f"The lora adapter '{name}' cannot be found.")
        self.log.append(f"unload {name}")
        return web.Response(text="Success")

    async def tell(self, _: web.Request) -> web.Response:
        asked = [str(body["model"]) for body in self._server.bodies if body.get("stream")]
        return web.json_response({"log": self.log, "asked": asked})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("serve", choices=["serve"])
    parser.add_argument("path")
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--served-model-name", required=True)
    parser.add_argument("--max-model-len", type=int)
    parser.add_argument("--max-num-seqs", type=int)
    parser.add_argument("--scheduling-policy")
    parser.add_argument("--enable-sleep-mode", action="store_true")
    for flag in ("--max-loras", "--max-cpu-loras", "--max-lora-rank"):
        parser.add_argument(flag, type=int)
    parser.add_argument("--enable-lora", action="store_true")
    parser.add_argument("--enable-prompt-tokens-details", action="store_true")
    options = parser.parse_args()
    if options.path == "does-not-load":
        sys.exit(3)
    server = FakeServer(
        options.served_model_name, dev_mode=os.environ.get("VLLM_SERVER_DEV_MODE") == "1"
    )
    if options.enable_lora and os.environ.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING") == "1":
        server.adapters.serve()
        server.adapters.load_s = float(os.environ.get("FAKE_VLLM_LOAD_S", "0"))
    server.answers_metrics = os.environ.get("FAKE_VLLM_METRICS") != "silent"
    web.run_app(server.app, host=options.host, port=options.port, print=None, access_log=None)


if __name__ == "__main__":
    main()
