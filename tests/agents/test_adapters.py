"""LoRA adapters on the engines: loaded before their jobs, unloaded beyond the bound, and what happens if one is not there.

And what vLLM is told of KV blocks in host memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import aiohttp
import pytest

from agents.engines import make_engine
from agents.engines.adapters import Adapters
from agents.engines.base import Listener
from agents.engines.connection import Connection
from agents.engines.vllm_server import ServerError
from qlm_core.config import Config
from qlm_core.endpoint import Endpoint
from qlm_core.errors import QlmError
from qlm_core.executor import (
    EngineDown,
    EngineReady,
    JobDone,
    JobLost,
    JobOutput,
    JobRefused,
    JobTurnedAway,
    SwapFailed,
)
from qlm_core.executor.events import EngineEvent
from qlm_core.messages import Payload
from qlm_core.model import ModelName, ModelTier, RequestId
from qlm_core.profile_catalog import find_profile
from tests.agents.fake_vllm import FakeServer
from tests.agents.harness import Harness, Listening, VllmHarness, free_ports, running, serving

BASE, OTHER = "mistral-7b", "vicuna-13b"
ADAPTERS = ("sql", "chat", "law")
SERVED = [BASE, *ADAPTERS, OTHER]


def config_of(engine: dict[str, object], served: list[str], **paths: str) -> Config:
    models: dict[str, object] = {BASE: {"max_model_len": 2048}, OTHER: {"max_model_len": 2048}}
    for name in ADAPTERS:
        models[name] = {"base": BASE, "adapter": paths.get(name, f"/adapters/{name}")}
    agent = {"name": "agent", "gpu": "a100", "models": served, "engine": engine}
    return Config.from_mapping({"models": models, "agents": [agent]})


class Adapted(Harness):
    """A vLLM engine with adapters."""

    port = 0

    async def told(self) -> dict[str, list[str]]:
        """What the server of the base did: `log` of its adapters, and the models `asked` for."""
        async with (
            aiohttp.ClientSession() as http,
            http.get(f"http://127.0.0.1:{self.port}/log") as answer,
        ):
            said: dict[str, list[str]] = await answer.json()
            return said

    async def run(self, *jobs: tuple[str, str]) -> None:
        """Run (id, model) one after the other."""
        for id, model in jobs:
            self.engine.submit(self.job(id, 3, model=model))
            assert isinstance(await self.heard.end_of(id), JobDone)


@asynccontextmanager
async def vllm(paths: dict[str, str] | None = None, **section: object) -> AsyncIterator[Adapted]:
    port = free_ports(2)
    section = {
        "command": VllmHarness.command,
        "port_base": port,
        "restart_backoff_s": 0.05,
        "max_num_seqs": 16,
        "max_loras": 2,
        "max_cpu_loras": 2,
    } | section
    config = config_of({"kind": "vllm", "vllm": section}, SERVED, **(paths or {}))
    async with running(Adapted, config) as harness:
        assert isinstance(harness, Adapted)
        harness.port = port
        yield harness


async def test_an_adapter_is_loaded_before_its_first_job_and_not_again():
    async with vllm() as harness:
        for id, model in (("a", "sql"), ("b", BASE), ("c", "chat"), ("d", "sql")):
            harness.engine.submit(harness.job(id, 5, model=model))
        for id in "abcd":
            assert isinstance(await harness.heard.end_of(id), JobDone)
        told = await harness.told()
        assert told["log"] == ["load sql", "load chat"]
        assert sorted(told["asked"]) == sorted(["sql", BASE, "chat", "sql"])


async def test_the_one_used_longest_ago_makes_room():
    async with vllm() as harness:
        await harness.run(("a", "sql"), ("b", "chat"), ("c", "sql"), ("d", "law"), ("e", "sql"))
        told = await harness.told()
        assert told["log"] == ["load sql", "load chat", "unload chat", "load law"]
        await harness.run(("f", "chat"))
        assert (await harness.told())["log"][-2:] == ["unload law", "load chat"]


async def test_an_adapter_with_a_job_on_it_stays():
    async with vllm() as harness:
        harness.engine.submit(harness.job("long", 2000, model="sql"))
        await harness.heard.until(JobOutput, id="long")
        await harness.run(("b", "chat"), ("c", "law"))
        assert (await harness.told())["log"] == ["load sql", "load chat", "unload chat", "load law"]
        harness.engine.abort(RequestId("long"), 1)
        await harness.run(("d", "chat"))
        assert (await harness.told())["log"][-2:] == ["unload sql", "load chat"]


async def test_an_adapter_that_does_not_load_fails_alone_and_says_why():
    async with vllm({"sql": "/missing"}) as harness:
        harness.engine.submit(harness.job("a", 5, model="sql"))
        harness.engine.submit(harness.job("b", 5, model="chat"))
        assert isinstance(await harness.heard.end_of("a"), JobLost)
        assert isinstance(await harness.heard.end_of("b"), JobDone)
        [failed] = await harness.heard.until(SwapFailed)
        assert isinstance(failed, SwapFailed)
        assert failed.model == "sql"
        assert "HTTP 404" in failed.reason
        assert "does not exist at /missing" in failed.reason
        assert harness.heard.of("a") == [JobLost(RequestId("a"), 1)]
        assert (await harness.told())["log"] == ["no sql", "load chat"]
        # It is tried anew with the next job.
        harness.engine.submit(harness.job("c", 5, model="sql"))
        assert isinstance(await harness.heard.end_of("c"), JobLost)
        assert not [one for one in harness.heard.events if isinstance(one, EngineDown)]


async def test_what_is_aborted_while_its_adapter_loads_does_not_run():
    async with vllm(env={"FAKE_VLLM_LOAD_S": "0.2"}) as harness:
        harness.engine.submit(harness.job("a", 5, model="sql"))
        harness.engine.submit(harness.job("b", 5, model="sql"))
        harness.engine.abort(RequestId("a"), 1)
        assert isinstance(await harness.heard.end_of("b"), JobDone)
        assert harness.heard.of("a") == []
        assert (await harness.told())["asked"] == ["sql"]


async def test_a_server_that_comes_back_has_nothing_loaded():
    async with vllm() as harness:
        await harness.run(("a", "sql"))
        harness.engine.submit(harness.job("long", 2000, model="sql"))
        await harness.heard.until(JobOutput, id="long")
        await VllmHarness.crash(harness)  # type: ignore[arg-type]
        assert isinstance(await harness.heard.end_of("long"), JobLost)
        await harness.heard.until(EngineReady, 2)
        await harness.run(("b", "sql"))
        assert (await harness.told())["log"] == ["load sql"]


async def test_jobs_whose_adapter_was_loading_are_lost_with_the_server():
    async with vllm(env={"FAKE_VLLM_LOAD_S": "60"}) as harness:
        harness.engine.submit(harness.job("a", 5, model="sql"))
        harness.engine.submit(harness.job("b", 5, model="chat"))
        await VllmHarness.crash(harness)  # type: ignore[arg-type]
        assert isinstance(await harness.heard.end_of("a"), JobLost)
        assert isinstance(await harness.heard.end_of("b"), JobLost)


async def test_adapters_are_where_their_base_is():
    async with vllm() as harness:
        of = {profile.model: profile for profile in harness.engine.profiles}
        assert list(of) == SERVED
        assert of["sql"].base == BASE
        assert of["sql"].kv_cache_tokens == of[BASE].kv_cache_tokens
        assert of[BASE].adapters_max == 2
        assert of[OTHER].adapters_max == 0
        [ready] = await harness.heard.until(EngineReady)
        assert isinstance(ready, EngineReady)
        assert dict(ready.tiers) == {
            BASE: ModelTier.AWAKE, OTHER: ModelTier.ASLEEP,
            "sql": ModelTier.AWAKE, "chat": ModelTier.AWAKE, "law": ModelTier.AWAKE,
        }  # fmt: skip
        await harness.run(("a", "sql"))
        harness.engine.swap(ModelName(OTHER))
        ready = (await harness.heard.until(EngineReady, 2))[-1]
        assert isinstance(ready, EngineReady)
        assert dict(ready.tiers)[ModelName("sql")] is ModelTier.ASLEEP
        harness.engine.swap(ModelName(BASE))
        await harness.heard.until(EngineReady, 3)
        # What sleeps keeps its adapters.
        await harness.run(("b", "sql"))
        assert (await harness.told())["log"] == ["load sql"]


def test_vllm_hears_of_adapters_only_where_there_are_some():
    config = config_of({"kind": "vllm", "vllm": {"max_lora_rank": 8}}, SERVED)
    servers = make_engine(config, config.agents[0])._servers  # type: ignore[attr-defined]
    assert list(servers) == [BASE, OTHER]
    line = " ".join(servers[BASE].command())
    assert "--enable-lora --max-loras 4 --max-cpu-loras 16 --max-lora-rank 8" in line
    assert "lora" not in " ".join(servers[OTHER].command())


@asynccontextmanager
async def openai(server: FakeServer, served: list[str]) -> AsyncIterator[Harness]:
    runner, port = await serving(server)
    engine: dict[str, object] = {
        "kind": "openai",
        "openai": {"base_url": f"http://127.0.0.1:{port}"},
    }
    try:
        async with running(Harness, config_of(engine, served)) as harness:
            yield harness
    finally:
        await runner.cleanup()


async def test_a_running_server_serves_a_model_and_the_adapters_it_has():
    server = FakeServer(BASE)
    server.adapters.paths = {"sql": "", "chat": ""}
    async with openai(server, ["sql", BASE, "chat"]) as harness:
        [ready] = harness.heard.events
        assert ready == EngineReady(
            ModelName(BASE),
            tuple((ModelName(one), ModelTier.AWAKE) for one in ("sql", BASE, "chat")),
        )
        for model in ("sql", BASE, "chat"):
            harness.engine.submit(harness.job(model, 3, model=model))
            assert isinstance(await harness.heard.end_of(model), JobDone)
        assert [body["model"] for body in server.bodies] == ["sql", BASE, "chat"]
        bases = {profile.model: profile.base for profile in harness.engine.profiles}
        assert bases == dict.fromkeys(("sql", BASE, "chat"), BASE)


async def test_an_adapter_that_a_running_server_lacks_is_named():
    server = FakeServer(BASE)
    server.adapters.paths = {"sql": ""}
    with pytest.raises(QlmError, match=r"models\.law\.path: .* does not serve 'law'"):
        async with openai(server, [BASE, "sql", "law"]):
            pass


async def test_the_sim_engine_runs_adapters_in_the_batch_of_their_base():
    engine: dict[str, object] = {"kind": "sim", "sim": {"time_scale": 50.0}}
    config = config_of(engine, ["sql", BASE, OTHER])
    sim, heard = make_engine(config, config.agents[0]), Listening()
    await sim.start(heard)
    harness = Harness(sim, heard)
    [ready] = heard.events
    assert isinstance(ready, EngineReady)
    assert ready.awake == BASE
    assert dict(ready.tiers) == {
        "sql": ModelTier.AWAKE, BASE: ModelTier.AWAKE, OTHER: ModelTier.ASLEEP,
    }  # fmt: skip
    for id, model in (("a", "sql"), ("b", BASE)):
        sim.submit(harness.job(id, 20, model=model))
    async with asyncio.timeout(20):
        assert isinstance(await heard.end_of("a"), JobDone)
        assert isinstance(await heard.end_of("b"), JobDone)
    profile = {one.model: one for one in sim.profiles}["sql"]
    assert profile.kv_cache_tokens == find_profile(BASE, "a100").kv_cache_tokens
    await sim.stop()


@pytest.mark.parametrize(("offloaded", "flags"), [(0, ""), (3 << 29, "--kv-offloading-size 1.5")])
def test_vllm_keeps_kv_blocks_in_host_memory_where_it_is_told_to(offloaded: int, flags: str):
    engine: dict[str, object] = {"kind": "vllm", "vllm": {"kv_offload_bytes": offloaded}}
    config = config_of(engine, [BASE])
    made = make_engine(config, config.agents[0])
    line = " ".join(made._servers[BASE].command())  # type: ignore[attr-defined]
    assert flags in line
    assert ("--kv-offloading-size" in line) == bool(offloaded)
    assert "--enable-prompt-tokens-details" in line
    [profile] = made.profiles
    assert (profile.resume_share < 1.0) == bool(offloaded)


class Passing:
    """Stands in for the connection: jobs that reach the server, and what is heard of them."""

    def __init__(self) -> None:
        self.jobs: list[RequestId] = []
        self.tell: Listener = lambda _: None

    def open(self, listener: Listener) -> None:
        self.tell = listener

    def submit(self, job: Payload, _: int) -> None:
        self.jobs.append(job.id)

    def abort(self, id: RequestId, attempt: int) -> None:
        """The server is none of this test's business."""


class OneAdapter:
    """Adapters before a server that has room for one."""

    def __init__(self, *refusals: str) -> None:
        self.orders: list[str] = []
        self._refusals = list(refusals)
        self.connection = Passing()
        self.adapters = Adapters(
            cast(Connection, self.connection),
            self.order,
            {ModelName(name): f"/adapters/{name}" for name in ADAPTERS},
            loaded_max=1,
        )
        self.adapters.open(lambda _: None)

    async def order(self, path: str, body: dict[str, str]) -> None:
        verb = path.removeprefix("/v1/").removesuffix("_lora_adapter")
        self.orders.append(f"{verb} {body['lora_name']}")
        if self._refusals and (refusal := self._refusals.pop(0)):
            raise ServerError(refusal)

    async def submit(self, id: str, model: str, attempt: int = 1) -> None:
        job = Payload(RequestId(id), attempt, ModelName(model), Endpoint.COMPLETIONS, b"{}")
        self.adapters.submit(job, 0)
        await self.adapters.settle()


@pytest.mark.parametrize(
    "end",
    [
        JobDone(RequestId("a"), 1, "stop", 1, 1),
        JobLost(RequestId("a"), 1),
        JobRefused(RequestId("a"), 1, 400, "no"),
        JobTurnedAway(RequestId("a"), 1, "busy"),
    ],
)
async def test_whatever_ends_a_job_frees_its_adapter(end: EngineEvent):
    it = OneAdapter()
    await it.submit("a", "sql")
    it.connection.tell(end)
    await it.submit("b", "chat")
    assert it.orders == ["load sql", "unload sql", "load chat"]


async def test_what_is_said_of_an_earlier_attempt_leaves_the_later_one_its_adapter():
    it = OneAdapter()
    await it.submit("a", "sql", attempt=1)
    await it.submit("a", "sql", attempt=2)
    it.adapters.abort(RequestId("a"), 1)
    it.connection.tell(JobLost(RequestId("a"), 1))
    await it.submit("b", "chat")
    assert it.orders == ["load sql", "load chat"]


async def test_an_adapter_that_the_server_has_already_is_loaded():
    """It was not unloaded in time, or was loaded after the agent had given that up."""
    it = OneAdapter("", "timed out", "", "", "The lora adapter 'sql' has already been loaded.")
    await it.submit("a", "sql")
    it.connection.tell(JobLost(RequestId("a"), 1))
    await it.submit("b", "chat")
    it.connection.tell(JobLost(RequestId("b"), 1))
    await it.submit("c", "sql")
    assert it.orders == ["load sql", "unload sql", "load chat", "unload chat", "load sql"]
    assert it.connection.jobs == ["a", "b", "c"]
