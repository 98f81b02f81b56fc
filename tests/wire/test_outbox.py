"""The outbox: batched while nobody reads, ended by closing, broken by its limit."""

from __future__ import annotations

import asyncio

import pytest

from protos.outbox import Outbox, batches


async def test_everything_accumulated_comes_at_once_and_in_order() -> None:
    outbox: Outbox[int] = Outbox(limit=10)
    for item in (1, 2, 3):
        outbox.put(item)
    assert await outbox.take() == [1, 2, 3]


async def test_a_waiting_reader_is_woken_by_the_first_item() -> None:
    outbox: Outbox[int] = Outbox(limit=10)
    reader = asyncio.create_task(outbox.take())
    await asyncio.sleep(0)
    outbox.put(7)
    assert await asyncio.wait_for(reader, 5.0) == [7]


async def test_closing_hands_out_the_rest_and_then_ends() -> None:
    outbox: Outbox[int] = Outbox(limit=10)
    outbox.put(1)
    outbox.close()
    outbox.put(2)
    assert await outbox.take() == [1]
    assert await outbox.take() == []


async def test_a_peer_that_does_not_read_breaks_it() -> None:
    outbox: Outbox[int] = Outbox(limit=2)
    for item in (1, 2, 3):
        outbox.put(item)
    assert outbox.broken
    assert await outbox.take() == []


async def test_what_may_linger_travels_with_what_may_not() -> None:
    outbox: Outbox[int] = Outbox(limit=10)
    outbox.put_soon(1)
    reader = asyncio.create_task(outbox.take())
    await asyncio.sleep(0)
    assert not reader.done()
    outbox.put(2)
    assert await asyncio.wait_for(reader, 5.0) == [1, 2]


async def test_what_lingers_leaves_by_itself() -> None:
    outbox: Outbox[int] = Outbox(limit=10)
    outbox.put_soon(1)
    outbox.put_soon(2)
    assert await asyncio.wait_for(outbox.take(), 5.0) == [1, 2]
    outbox.put_soon(3)
    outbox.close()
    assert await outbox.take() == [3]
    assert await outbox.take() == []


async def test_lingering_is_no_way_around_the_limit() -> None:
    outbox: Outbox[int] = Outbox(limit=1)
    outbox.put_soon(1)
    outbox.put_soon(2)
    assert outbox.broken
    assert await outbox.take() == []


@pytest.mark.parametrize(
    ("sizes", "split"),
    [
        ([], [[]]),
        ([4, 4, 2], [[4, 4, 2]]),
        ([4, 4, 3], [[4, 4], [3]]),
        ([30, 1, 10, 1], [[30], [1], [10], [1]]),
    ],
)
def test_no_batch_is_too_large_but_for_one_item_alone(sizes: list[int], split: list[list[int]]):
    assert batches(sizes, lambda size: size, 10) == split
