"""The engine contract on a real vLLM, for both kinds of engine that speak to one.

The tests are those of tests/agents/test_engine_contract.py; an engine is started once for all of them, since that takes
most of the time, and again only after it was stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from typing import ClassVar, Self

import pytest
import pytest_asyncio

from benchmarks import vllm_servers
from benchmarks.vllm_servers import Server, Zygote
from qlm_core.executor import EngineDown, EngineReady, JobDone, JobOutput
from tests.agents import harness as harnesses
from tests.agents.harness import Harness, OpenAIHarness, VllmHarness, config_of, running
from tests.agents.test_engine_contract import *  # noqa: F403 (its tests are this module's)
from tests.vllm.beds import LLAMA, QWEN

pytestmark = pytest.mark.asyncio(loop_scope="module")
SLOTS = 4


class AttachedHarness(OpenAIHarness):
    """The kind `openai`, attached to a server that is brought back after a crash."""

    models = (LLAMA,)
    exact_text = False
    zygote: ClassVar[Zygote]
    vllm: Server

    @classmethod
    @contextlib.asynccontextmanager
    async def started(cls) -> AsyncIterator[Self]:
        server = await asyncio.to_thread(cls.zygote.start, LLAMA, f"--max-num-seqs={SLOTS}")
        engine = {"kind": "openai", "openai": {"base_url": server.url, "max_num_seqs": SLOTS}}
        try:
            async with running(cls, config_of(cls.models, engine)) as harness:
                harness.vllm = server
                yield harness
        finally:
            await asyncio.to_thread(server.stop)

    async def crash(self) -> None:
        self.vllm.signal(signal.SIGKILL)

    async def mend(self) -> None:
        port = int(self.vllm.url.rsplit(":", 1)[1])
        self.vllm = await asyncio.to_thread(
            self.zygote.start, LLAMA, f"--max-num-seqs={SLOTS}", port=port
        )


class StartedHarness(VllmHarness):
    """The kind `vllm`, which starts its servers, and restarts them, by itself."""

    models = (LLAMA, QWEN)
    paths: ClassVar[dict[str, str]] = {
        name: str(vllm_servers.MODELS / name) for name in (LLAMA, QWEN)
    }
    command = vllm_servers.COMMAND
    args = vllm_servers.ARGUMENTS
    env: ClassVar[dict[str, str]] = vllm_servers.ENVIRONMENT
    exact_text = False
    gpu = "cpu"

    async def mend(self) -> None:
        """It mends itself."""


class Shared:
    """An engine that outlives a test, in a task of its own."""

    def __init__(self, kind: type[AttachedHarness | StartedHarness]) -> None:
        self._kind = kind
        self._stack = contextlib.AsyncExitStack()
        self._harness: AttachedHarness | StartedHarness | None = None
        self._ready: EngineReady | None = None

    async def fresh(self) -> Harness:
        """The engine in service, with nothing heard yet but that it is ready."""
        if self._harness is None:
            self._harness = await self._stack.enter_async_context(self._kind.started())
            self._ready = next(e for e in self._harness.heard.events if isinstance(e, EngineReady))
        events = self._harness.heard.events
        last = [e for e in events if isinstance(e, EngineReady | EngineDown)]
        if last and isinstance(last[-1], EngineDown):
            await self._harness.mend()
            events.clear()
            await self._harness.heard.until(EngineReady)
        assert self._ready is not None
        events[:] = [self._ready]
        return self._harness

    async def close(self) -> None:
        """End the engine."""
        self._harness = None
        stack, self._stack = self._stack, contextlib.AsyncExitStack()
        await stack.aclose()


@pytest_asyncio.fixture(loop_scope="module", scope="module", params=["openai", "vllm"])
async def shared(request: pytest.FixtureRequest, zygote: Zygote) -> AsyncIterator[Shared]:
    AttachedHarness.zygote = zygote
    opened = Shared(AttachedHarness if request.param == "openai" else StartedHarness)
    patch = pytest.MonkeyPatch()
    patch.setattr(harnesses, "WAIT_S", 120.0)
    patch.chdir(vllm_servers.ROOT)
    yield opened
    await opened.close()
    patch.undo()


@pytest_asyncio.fixture(loop_scope="module")
async def harness(shared: Shared, request: pytest.FixtureRequest) -> AsyncIterator[Harness]:
    yield await shared.fresh()
    if "stop_ends_everything" in request.node.name:
        await shared.close()


async def test_the_prompt_of_a_resumed_job_includes_what_it_continues(harness: Harness):
    """As in the contract, but the stand-ins' text has a token a word, and a real tokenizer has its own view of that."""
    harness.engine.submit(harness.job("whole", 20))
    whole = await harness.heard.end_of("whole")
    text = harness.expected_text("resumed", 0, 8)
    job = harness.job("resumed", 20, attempt=2, resume_text=text, produced_tokens=8)
    harness.engine.submit(job)
    resumed = await harness.heard.end_of("resumed")
    assert isinstance(whole, JobDone)
    assert isinstance(resumed, JobDone)
    assert resumed.prompt_tokens >= whole.prompt_tokens + 8


async def test_what_has_the_lower_priority_number_goes_first(harness: Harness):
    if not isinstance(harness, StartedHarness):
        pytest.skip("a server that others may use too hears of no priority")
    for number in range(16):
        harness.engine.submit(harness.job(f"running-{number}", 600), 0)
    await harness.heard.until(JobOutput, 16)
    for number in range(4):
        harness.engine.submit(harness.job(f"lax-{number}", 8), 5000 + number)
    for number in range(4):
        harness.engine.submit(harness.job(f"urgent-{number}", 8), 100 + number)
    names = [f"{kind}-{number}" for kind in ("lax", "urgent") for number in range(4)]
    for name in names:
        assert isinstance(await harness.heard.end_of(name), JobDone)
    ended = [e.id for e in harness.heard.events if isinstance(e, JobDone) and e.id in names]
    assert [name.split("-")[0] for name in ended] == ["urgent"] * 4 + ["lax"] * 4
