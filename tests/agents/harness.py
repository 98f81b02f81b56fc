"""One harness per kind of engine, so that the contract suite can run the same tests on all of them."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import ClassVar, Self, TypeVar

import msgspec
from aiohttp import web

from agents.engines import make_engine
from agents.engines.base import Engine
from agents.engines.sim import token_text
from qlm_core.config import Config
from qlm_core.executor import (
    EngineReady,
    JobDone,
    JobLost,
    JobOutput,
    JobRefused,
    JobTurnedAway,
)
from qlm_core.executor.events import EngineEvent
from qlm_core.messages import Payload
from qlm_core.model import ModelName, RequestId
from tests.agents.fake_vllm import FakeServer
from tests.endpoints import generating

ENDS = (JobDone, JobLost, JobRefused, JobTurnedAway)
WAIT_S = 20.0


class Listening:
    """Records an engine's events and lets a test wait for them."""

    def __init__(self) -> None:
        self.events: list[EngineEvent] = []
        self._changed = asyncio.Event()

    def __call__(self, event: EngineEvent) -> None:
        self.events.append(event)
        self._changed.set()

    async def until(self, kind: type, count: int = 1, id: str | None = None) -> list[EngineEvent]:
        """Wait until so many events of a kind have come."""

        def found() -> list[EngineEvent]:
            return [
                one
                for one in self.events
                if isinstance(one, kind) and (id is None or getattr(one, "id", None) == id)
            ]

        async with asyncio.timeout(WAIT_S):
            while len(found()) < count:
                self._changed.clear()
                await self._changed.wait()
        return found()

    async def end_of(self, id: str) -> EngineEvent:
        """Wait until a job is over."""
        async with asyncio.timeout(WAIT_S):
            while True:
                for event in self.events:
                    if isinstance(event, ENDS) and event.id == id:
                        return event
                self._changed.clear()
                await self._changed.wait()

    def of(self, id: str) -> list[EngineEvent]:
        return [event for event in self.events if getattr(event, "id", None) == id]

    def text(self, id: str) -> str:
        """All text of a job."""
        text = ""
        for event in self.of(id):
            if isinstance(event, JobOutput):
                chunk = msgspec.json.decode(event.data)
                assert "id" not in chunk
                # What whole answers have beside output may go ahead of it.
                assert "usage" not in chunk or not event.tokens
                choice = chunk["choices"][0]
                text += choice.get("text") or choice.get("delta", {}).get("content") or ""
        return text

    def tokens(self, id: str) -> int:
        return sum(event.tokens for event in self.of(id) if isinstance(event, JobOutput))


class Harness:
    """A started engine under test, and what is particular about its kind."""

    models: tuple[str, ...] = ("mistral-7b",)
    exact_text = True
    can_crash = True

    def __init__(self, engine: Engine, listening: Listening) -> None:
        self.engine = engine
        self.heard = listening

    def job(
        self, id: str, tokens: int, *, chat: bool = False, model: str = "", attempt: int = 1,
        prompt: str = "hello", **kw: object,
    ) -> Payload:  # fmt: skip
        body: dict[str, object] = {"max_tokens": tokens, "ignore_eos": True, "temperature": 0}
        if chat:
            body["messages"] = [{"role": "user", "content": prompt}]
        else:
            body["prompt"] = prompt
        return Payload(
            RequestId(id), attempt, ModelName(model or self.models[0]), generating(chat),
            msgspec.json.encode(body), **kw,  # type: ignore[arg-type]
        )  # fmt: skip

    def expected_text(self, id: str, start: int, stop: int) -> str:
        return "".join(f" t{index}" for index in range(start, stop))

    @classmethod
    def started(cls) -> AbstractAsyncContextManager[Self]:
        """An engine of this kind from its start to its stop."""
        raise NotImplementedError

    async def crash(self) -> None:
        """End what runs the models, as a fault would."""
        raise NotImplementedError


AnyHarness = TypeVar("AnyHarness", bound=Harness)


class SimHarness(Harness):
    models = ("mistral-7b", "vicuna-13b")
    can_crash = False

    def expected_text(self, id: str, start: int, stop: int) -> str:
        return "".join(token_text(id, index) for index in range(start, stop))

    @classmethod
    @asynccontextmanager
    async def started(cls, **sim: object) -> AsyncIterator[Self]:
        section = {"time_scale": 50.0} | sim
        config = config_of(cls.models, {"kind": "sim", "sim": section})
        async with running(cls, config) as harness:
            yield harness


class OpenAIHarness(Harness):
    server: FakeServer
    runner: web.AppRunner

    @classmethod
    @asynccontextmanager
    async def started(cls) -> AsyncIterator[Self]:
        server = FakeServer(cls.models[0])
        runner, port = await serving(server)
        engine = {"kind": "openai", "openai": {"base_url": f"http://127.0.0.1:{port}"}}
        try:
            async with running(cls, config_of(cls.models, engine)) as harness:
                harness.server, harness.runner = server, runner
                yield harness
        finally:
            await runner.cleanup()

    async def crash(self) -> None:
        await self.runner.cleanup()


class VllmHarness(Harness):
    models = ("mistral-7b", "vicuna-13b")
    command: tuple[str, ...] = (
        sys.executable,
        str(Path(__file__).with_name("fake_vllm.py")),
        "serve",
    )
    env: ClassVar[dict[str, str]] = {}
    args: tuple[str, ...] = ()
    gpu = "a100"
    paths: ClassVar[dict[str, str]] = {}

    @classmethod
    @asynccontextmanager
    async def started(cls, **vllm: object) -> AsyncIterator[Self]:
        section = {
            "command": cls.command,
            "args": cls.args,
            "env": cls.env,
            "port_base": free_ports(len(cls.models)),
            "restart_backoff_s": 0.05,
            "max_num_seqs": 16,
        } | vllm
        config = config_of(cls.models, {"kind": "vllm", "vllm": section}, cls.gpu, cls.paths)
        async with running(cls, config) as harness:
            yield harness

    async def crash(self) -> None:
        process = self.engine._awake._process  # type: ignore[attr-defined]
        os.kill(process.pid, signal.SIGKILL)


HARNESSES: dict[str, type[Harness]] = {
    "sim": SimHarness,
    "openai": OpenAIHarness,
    "vllm": VllmHarness,
}


def config_of(
    models: tuple[str, ...],
    engine: dict[str, object],
    gpu: str = "a100",
    paths: dict[str, str] | None = None,
) -> Config:
    """A configuration with one agent."""
    paths = paths or {}
    return Config.from_mapping(
        {
            "models": {
                model: {"path": paths.get(model, ""), "max_model_len": 2048} for model in models
            },
            "agents": [{"name": "agent", "gpu": gpu, "models": list(models), "engine": engine}],
        }
    )


async def serving(server: FakeServer, port: int = 0) -> tuple[web.AppRunner, int]:
    """Start a server; returns what stops it, and its port."""
    runner = web.AppRunner(server.app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    return runner, runner.addresses[0][1]


@asynccontextmanager
async def running(kind: type[AnyHarness], config: Config) -> AsyncIterator[AnyHarness]:
    """An engine from its start to its stop."""
    engine = make_engine(config, config.agents[0])
    listening = Listening()
    await engine.start(listening)
    try:
        await listening.until(EngineReady)
        yield kind(engine, listening)
    finally:
        await engine.stop()


def free_ports(count: int) -> int:
    """The first of so many free ports in a row."""
    for base in range(20_000 + os.getpid() % 20_000, 60_000, count):
        sockets = []
        try:
            for offset in range(count):
                opened = socket.socket()
                sockets.append(opened)
                opened.bind(("127.0.0.1", base + offset))
        except OSError:
            continue
        else:
            return base
        finally:
            for opened in sockets:
                opened.close()
    raise RuntimeError("no free ports")
