"""What the runner counts as a difference: what QLM answers and the server itself never does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import cycle

import aiohttp
import pytest
from aiohttp import web

from benchmarks import fidelity
from benchmarks.fidelity_corpus import Case

CASE = Case(name="case", chat=False, body={"prompt": "a"})
NEVER, HALF = "", "half"


@asynccontextmanager
async def answering(*texts: str) -> AsyncIterator[str]:
    """A server that answers with one text after another, over and over; with `NEVER` never, with `HALF` it breaks off."""
    following = cycle(texts)

    async def answer(request: web.Request) -> web.StreamResponse:
        assert (await request.json()) == {"prompt": "a", "model": CASE.model}
        text = next(following)
        if text == NEVER:
            await asyncio.Event().wait()
        if text == HALF:
            return await break_off(request)
        return web.json_response({"id": "x", "choices": [{"text": text}]})

    app = web.Application()
    app.router.add_post("/v1/completions", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield "http://{}:{}".format(*runner.addresses[0])
    finally:
        await runner.cleanup()


async def break_off(request: web.Request) -> web.StreamResponse:
    """Begin a stream and cut the connection."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    await response.write(b'data: {"id": "x"}\n\n')
    assert request.transport is not None
    request.transport.close()
    return response


@pytest.mark.parametrize(
    ("direct", "through", "differ", "unsure"),
    [
        (["a"], ["a"], [], []),
        (["a"], ["b"], ["body.choices.0.text"], []),
        (["a", "b"], ["b"], [], ["body.choices.0.text"]),
        (["a", "b"], ["c"], [], ["body.choices.0.text"]),
    ],
)
async def test_a_difference_is_what_the_server_never_answers(
    direct: list[str], through: list[str], differ: list[str], unsure: list[str]
):
    async with (
        answering(*direct) as server,
        answering(*through) as gateway,
        aiohttp.ClientSession() as session,
    ):
        found = await fidelity.compare(session, CASE, direct=server, through=gateway)
    assert [one.path for one in found.differences] == differ
    assert [one.path for one in found.unrepeatable] == unsure


async def test_the_report_counts_requests_and_differences():
    async with answering("a") as server, answering("b") as gateway:
        results = await fidelity.compare_all([CASE, CASE], direct={CASE.model: server}, through=gateway)  # fmt: skip
    assert fidelity.report(results).startswith("2 requests, 2 differences in 2 of them; 0 that")


async def test_no_answer_is_a_difference(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fidelity, "TIMEOUT_S", 0.5)
    async with answering("a") as server, answering(NEVER) as gateway:
        results = await fidelity.compare_all([CASE], direct={CASE.model: server}, through=gateway)
    (one,) = results[0].differences
    assert (one.path, one.through) == ("status", '0 "no answer within 0.5 s"')


async def test_an_answer_that_breaks_off_is_a_difference():
    async with answering("a") as server, answering(HALF) as gateway:
        results = await fidelity.compare_all([CASE, CASE], direct={CASE.model: server}, through=gateway)  # fmt: skip
    for result in results:
        (one,) = result.differences
        assert one.path == "status"
        assert one.through.startswith('0 "no whole answer: ')
