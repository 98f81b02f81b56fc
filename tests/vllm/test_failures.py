"""What clients do to a real vLLM and what may befall it: cancellation, kill -9, a hang. No answer is lost or changed."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Sequence
from pathlib import Path

import aiohttp
import pytest

from benchmarks.vllm_servers import Server, Zygote
from qlm import fleet
from tests.vllm import beds, loads
from tests.vllm.beds import Answer, Json

DURABLE = {"x-qlm-durable": "true"}
RUNNING = "vllm:num_requests_running"
PRODUCED = "vllm:generation_tokens_total"
TOKENS = 500
# So much of the first outputs is out when a server is lost: some of each is, and none can be complete.
AMID_TOKENS = 40


def bodies(count: int) -> list[Json]:
    """So many outputs of 500 tokens, completions and chats, streamed and whole."""
    made: list[Json] = []
    for number in range(count):
        body: Json = {"model": beds.LLAMA, "max_tokens": TOKENS, "ignore_eos": True}
        body |= loads.WANDERING | {"stream": number % 3 != 0}
        topic = loads.TOPICS[number % len(loads.TOPICS)]
        if number % 2:
            body["messages"] = [{"role": "user", "content": topic}]
        else:
            body["prompt"] = topic
        made.append(body)
    return made


async def records(client: aiohttp.ClientSession, url: str, answers: Sequence[Answer]) -> list[Json]:
    """What the gateway has on requests that have ended."""
    found = []
    for answer in answers:
        async with client.get(f"{url}/v1/requests/{answer.id}") as response:
            found.append(await response.json())
    return found


@pytest.mark.parametrize("how", ["stream closed", "whole closed", "deleted"])
async def test_a_cancelled_request_frees_its_slot(how: str, four_slots: Server, tmp_path: Path):
    body = {"model": beds.LLAMA, "prompt": "On and on", "max_tokens": 2000, "ignore_eos": True}
    base = beds.config([beds.agent("agent", beds.LLAMA, four_slots.url, slots=4)])
    async with beds.running(base, tmp_path) as running, beds.session() as client:
        task = asyncio.create_task(
            beds.ask(client, running.url, body | {"stream": how != "whole closed"}, headers=DURABLE if how == "deleted" else None)
        )  # fmt: skip
        await beds.until_sample(client, four_slots.url, RUNNING, 1)
        if how == "deleted":
            async with client.get(f"{running.url}/v1/requests") as response:
                (request,) = (await response.json())["data"]
            async with client.delete(f"{running.url}/v1/requests/{request['id']}") as response:
                assert (await response.json())["phase"] == "cancelled"
        else:
            task.cancel()
        await beds.until_sample(client, four_slots.url, RUNNING, 0)
        with contextlib.suppress(asyncio.CancelledError):
            await task
        # The slots are of use again.
        answers = await asyncio.gather(
            *(beds.ask(client, running.url, loads.urgent(number)) for number in range(4))
        )
        assert [answer.usage["completion_tokens"] for answer in answers] == [24] * 4


async def beside(
    running: fleet.Running, load: Sequence[Json], trouble: Server, number: int
) -> tuple[list[Answer], list[Json]]:
    """The answers to a load and the gateway's records of it, where a server gets a signal once it produces some of it."""
    async with beds.session() as client:
        before = await beds.sample(client, trouble.url, PRODUCED)
        answers = [Answer() for _ in load]
        tasks = [
            asyncio.create_task(
                beds.ask(client, running.url, body, tier="flex", answer=answer, headers=DURABLE)
            )
            for body, answer in zip(load, answers, strict=True)
        ]
        async with asyncio.timeout(beds.PATIENCE_S):
            # Its own count, looked at often: outputs take little time, and who has done its part loses nothing.
            while await beds.sample(client, trouble.url, PRODUCED) < before + AMID_TOKENS:
                assert not all(task.done() for task in tasks), "it was given nothing"
                await asyncio.sleep(0.01)
        trouble.signal(number)
        await asyncio.gather(*tasks)
        return answers, await records(client, running.url, answers)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hung"])
async def test_a_server_that_is_gone_loses_and_changes_nothing(
    number: int, zygote: Zygote, four_slots: Server, tmp_path: Path
):
    load = bodies(12)
    expected = await beds.one_by_one(four_slots.url, load)
    victim = zygote.start(beds.LLAMA, "--max-num-seqs=4")
    agents = [
        beds.agent("victim", beds.LLAMA, victim.url, slots=4),
        beds.agent("other", beds.LLAMA, four_slots.url, slots=4),
    ]
    try:
        async with beds.running(beds.config(agents), tmp_path) as running:
            answers, ended = await beside(running, load, victim, number)
            assert [record["phase"] for record in ended] == ["finished"] * len(load)
            assert sum(record["attempts"] for record in ended) > len(load), "nothing was lost"
            found = [i for i, (a, b) in enumerate(zip(expected, answers, strict=True)) if a.same() != b.same()]  # fmt: skip
            assert found == [], "these differ from the undisturbed ones"
            metrics = running.config.agents[0].metrics_listen
            async with beds.session() as client:
                url = f"http://{metrics}"
                assert await beds.sample(client, url, "qlm_agent_engine_losses_total") >= 1
                await serves_again(client, running, victim, zygote, number)
    finally:
        victim.stop()


async def serves_again(
    client: aiohttp.ClientSession, running: fleet.Running, victim: Server, zygote: Zygote, number: int
) -> None:  # fmt: skip
    """Bring the server back at its address; its agent takes it into service by itself."""
    if number == signal.SIGSTOP:
        victim.signal(signal.SIGCONT)
        back = victim
    else:
        back = zygote.start(beds.LLAMA, "--max-num-seqs=4", port=int(victim.url.rsplit(":", 1)[1]))
    before = await beds.sample(client, back.url, "vllm:request_success_total")
    async with asyncio.timeout(beds.PATIENCE_S):
        while await beds.sample(client, back.url, "vllm:request_success_total") == before:
            asked = (beds.ask(client, running.url, loads.urgent(number)) for number in range(8))
            await asyncio.gather(*asked)
    back.stop()
