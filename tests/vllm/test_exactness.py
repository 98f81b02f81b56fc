"""What an eviction must not change: each output beside bursts of urgent requests equals the undisturbed one.

The undisturbed outputs come from the server directly, one at a time; it was found to answer the same in a batch of four.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from benchmarks.vllm_servers import Server
from tests.vllm import beds, loads
from tests.vllm.beds import Answer, Json

SLOTS = 4
BURST = 3
PAUSE_S = 1.5


async def disturbed(url: str, bodies: Sequence[Json]) -> tuple[list[Answer], list[Answer], float]:
    """The answers of a fleet to a lax load, those to the urgent bursts beside it, and how many evictions that took."""
    async with beds.session() as client:
        load = asyncio.gather(*(beds.ask(client, url, body, tier="flex") for body in bodies))
        urgent: list[asyncio.Task[Answer]] = []
        while not load.done():
            fresh = [loads.urgent(len(urgent) + number) for number in range(BURST)]
            urgent += [asyncio.create_task(beds.ask(client, url, body)) for body in fresh]
            await asyncio.wait([load], timeout=PAUSE_S)
        answers = await load
        bursts = await asyncio.gather(*urgent)
        return answers, bursts, await beds.sample(client, url, "qlm_request_evictions_total")


def told_apart(
    expected: Sequence[Answer], got: Sequence[Answer], bodies: Sequence[Json]
) -> list[str]:
    """The outputs that are not the undisturbed ones, by what they asked for and where they part."""
    found = []
    for index, (one, other) in enumerate(zip(expected, got, strict=True)):
        if one.same() != other.same():
            fields = [key for key, value in one.same().items() if other.same()[key] != value]
            lengths = [answer.usage.get("completion_tokens") for answer in (one, other)]
            found.append(f"{index}: {fields} {lengths} {other.error} of {bodies[index]}"[:300])
    return found


@pytest.mark.parametrize(
    "load", [loads.long_outputs, loads.hundred], ids=lambda load: load.__name__
)
async def test_outputs_beside_bursts_are_the_undisturbed_ones(
    load: Callable[[], list[Json]], four_slots: Server, tmp_path: Path
) -> None:
    bodies = load()
    expected = await beds.one_by_one(four_slots.url, bodies)
    base = beds.config([beds.agent("agent", beds.LLAMA, four_slots.url, slots=SLOTS)])
    async with beds.running(base, tmp_path) as fleet:
        got, bursts, evictions = await disturbed(fleet.url, bodies)
    assert evictions > 0
    found = told_apart(expected, got, bodies)
    assert found == [], f"{len(found)} of {len(bodies)} differ after {evictions:.0f} evictions"
    assert {answer.usage["completion_tokens"] for answer in bursts} == {24}
