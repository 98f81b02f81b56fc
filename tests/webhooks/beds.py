"""Real receivers of webhooks on loopback, and what they got."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

import openai
from aiohttp import web
from openai.types.webhooks import UnwrapWebhookEvent

KEY = bytes(range(32))
SECRET = "whsec_" + base64.b64encode(KEY).decode()
LOOPBACK = ["127.0.0.0/8"]
PATIENCE_S = 20.0


class Got(NamedTuple):
    """One request to a receiver."""

    headers: dict[str, str]
    body: bytes
    path: str

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    def unwrap(self, secret: str = SECRET) -> UnwrapWebhookEvent:
        """As an unmodified client reads it. Raises openai.InvalidWebhookSignatureError."""
        client = openai.OpenAI(api_key="unused", webhook_secret=secret)
        return client.webhooks.unwrap(self.body, self.headers)


# What a receiver answers: a status, with headers if any, or how long it takes.
Answer = int | tuple[int, dict[str, str]]


class Receiver:
    """Takes webhooks, and answers what it is told to, by default that all is well."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.got: list[Got] = []
        self.answers: list[Answer] = []
        self.answer: Answer | Callable[[Got], Answer] = 204
        self.most_at_once = self.at_once = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self._moved = asyncio.Event()

    def config(self, **more: Any) -> dict[str, Any]:
        """Its section of a configuration."""
        return {"url": self.url, "secret": SECRET, "networks": LOOPBACK} | more

    async def until(self, count: int) -> list[Got]:
        """What it got, once it is so much."""
        async with asyncio.timeout(PATIENCE_S):
            while len(self.got) < count:
                self._moved.clear()
                await self._moved.wait()
        return self.got

    async def handle(self, request: web.Request) -> web.Response:
        headers = {name.lower(): value for name, value in request.headers.items()}
        got = Got(headers, await request.read(), request.path_qs)
        self.got.append(got)
        self._moved.set()
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self.gate.wait()
        finally:
            self.at_once -= 1
        if self.answers:
            answer = self.answers.pop(0)
        else:
            answer = self.answer(got) if callable(self.answer) else self.answer
        status, said = (answer, {}) if isinstance(answer, int) else answer
        return web.Response(status=status, headers=said)


@contextlib.asynccontextmanager
async def receiver(
    port: int = 0, *, tls: ssl.SSLContext | None = None, path: str = "/hooks"
) -> AsyncIterator[Receiver]:
    made = Receiver("")
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", made.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", port, ssl_context=tls, reuse_address=True)
        await site.start()
        made.url = f"{'https' if tls else 'http'}://127.0.0.1:{runner.addresses[0][1]}{path}"
        yield made
    finally:
        made.gate.set()
        await runner.cleanup()
