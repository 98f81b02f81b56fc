"""Order and models: what is due first goes first, bursts go beside batches, and each answer is by the right model."""

from __future__ import annotations

import asyncio
from pathlib import Path

from benchmarks import vllm_servers
from benchmarks.vllm_servers import Server
from tests.agents.harness import free_ports
from tests.vllm import beds, loads
from tests.vllm.beds import Answer, Json


async def test_what_is_due_first_goes_first(four_slots: Server, tmp_path: Path):
    """Four slots taken by outputs that nothing may evict; behind them lax requests, then urgent ones."""
    base = beds.config([beds.agent("agent", beds.LLAMA, four_slots.url, slots=4)])
    order: list[str] = []

    async def told(name: str, task: asyncio.Task[Answer], answer: Answer) -> None:
        await answer.begun.wait()
        order.append(name)
        await task

    async with (
        beds.running(base, tmp_path, "agents.*.executor.eviction=false") as fleet,
        beds.session() as client,
    ):

        def send(name: str, body: Json, tier: str) -> asyncio.Task[None]:
            answer = Answer()
            streamed = body | {"stream": True, "stream_options": {"include_usage": True}}
            asked = asyncio.create_task(
                beds.ask(client, fleet.url, streamed, tier=tier, answer=answer)
            )
            return asyncio.create_task(told(name, asked, answer))

        long = {"model": beds.LLAMA, "prompt": "Long", "max_tokens": 1500, "ignore_eos": True}
        tasks = [send(f"running {n}", long, "flex") for n in range(4)]
        await beds.until_sample(client, four_slots.url, "vllm:num_requests_running", 4)
        tasks += [send(f"lax {n}", loads.urgent(n) | {"max_tokens": 300}, "background") for n in range(8)]  # fmt: skip
        await beds.until_sample(client, fleet.url, "qlm_requests_open", 12)
        tasks += [send(f"urgent {n}", loads.urgent(n), "default") for n in range(4)]
        await asyncio.gather(*tasks)
    behind = [name.split()[0] for name in order if not name.startswith("running")]
    # What the agent had pulled ahead may go first; it is at most `pull_ahead`.
    last_urgent = len(behind) - 1 - behind[::-1].index("urgent")
    assert behind[: last_urgent + 1].count("lax") <= 2, order


async def test_bursts_beside_batches_end_each_once_and_unchanged(
    four_slots: Server, tmp_path: Path
):
    batch = [body | {"max_tokens": 120} for body in loads.hundred()[::4]]
    burst = [loads.urgent(number) for number in range(32)]
    expected = await beds.one_by_one(four_slots.url, [*batch, *burst])
    base = beds.config([beds.agent("agent", beds.LLAMA, four_slots.url, slots=4)])
    async with beds.running(base, tmp_path) as fleet, beds.session() as client:
        tasks = [asyncio.create_task(beds.ask(client, fleet.url, body, tier="background")) for body in batch]  # fmt: skip
        for start in range(0, len(burst), 8):
            await asyncio.sleep(0.5)
            fresh = burst[start : start + 8]
            tasks += [asyncio.create_task(beds.ask(client, fleet.url, body)) for body in fresh]
        got = await asyncio.gather(*tasks)
        ended = await beds.sample(client, fleet.url, "qlm_requests_total")
        refused = await beds.sample(client, fleet.url, "qlm_requests_refused_total")
        assert (ended, refused) == (len(got), 0)
        await beds.until_sample(client, fleet.url, "qlm_requests_open", 0)
    pairs = zip(expected, got, [*batch, *burst], strict=True)
    assert [body for one, other, body in pairs if one.same() != other.same()] == []


async def test_models_are_swapped_under_load_and_each_answers_its_own(
    four_slots: Server, other_model: Server, tmp_path: Path
):
    direct = {beds.LLAMA: four_slots.url, beds.QWEN: other_model.url}
    load: list[Json] = []
    for number, topic in enumerate(loads.TOPICS):
        body = {"prompt": topic, "max_tokens": 80, "ignore_eos": True} | loads.WANDERING
        load += [body | {"model": model, "stream": number % 2 == 0} for model in direct]
    expected = [(await beds.one_by_one(direct[body["model"]], [body]))[0] for body in load]
    engine = vllm_servers.engine_section(free_ports(len(direct)), 4)
    agent = {"name": "agent", "gpu": "cpu", "models": list(direct), "engine": engine}
    async with beds.running(beds.config([agent]), tmp_path) as fleet, beds.session() as client:
        got = await asyncio.gather(
            *(beds.ask(client, fleet.url, body, tier="flex") for body in load)
        )
        metrics = f"http://{fleet.config.agents[0].metrics_listen}"
        assert await beds.sample(client, metrics, "qlm_agent_swaps_total") >= 1
        assert await beds.sample(client, metrics, "qlm_agent_swaps_failed_total") == 0
    found = [
        (body["model"], body["prompt"])
        for one, other, body in zip(expected, got, load, strict=True)
        if one.same() != other.same() or other.model != body["model"]
    ]
    assert found == []
