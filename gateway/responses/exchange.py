"""Responses over HTTP: whole, as a stream of what is running, and as a stream of what has ended."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from typing import Any

from gateway import headers as hd
from gateway.asgi import JSON, RawHeaders, Send, answer
from gateway.exchange import SSE, Streamed, Whole
from gateway.live import Follower, Output
from gateway.problems import Problem, problem_of_end
from gateway.responses.asked import required
from gateway.responses.ended import ended_body, in_our_words
from gateway.responses.events import Events
from gateway.store import Found
from qlm_core.endpoint import Endpoint
from qlm_core.ledger import EndRecord

# Events are written this many bytes at a time.
WRITE_BYTES = 65_536


class WholeResponse(Whole):
    """The response as one JSON object, once it has ended."""

    def _problem(self, record: EndRecord) -> Problem | None:
        return in_our_words(super()._problem(record))

    def _body(self, record: EndRecord) -> bytes:
        return ended_body(self._live.request, record, self._live.response(record))


class StreamedResponse(Streamed):
    """The response as events while it comes. One in the background is accepted for good, so its stream begins at once.

    Args:
        after: events up to this number are left out.
    """

    def __init__(self, *args: Any, after: int = -1, **options: Any) -> None:
        super().__init__(*args, **options)
        request = self._live.request
        self._asked = required(request)
        self._events = Events(request, self._asked, after=after)

    async def _first(self, follower: Follower) -> list[Output] | None:
        if not self._asked.background:
            return await super()._first(follower)
        await self._begin()
        return await self._awaited(follower)

    async def _begin(self) -> None:
        await super()._begin()
        await self._write(self._events.begin())

    def _framed(self, outputs: list[Output]) -> Iterator[bytes]:
        yield from _gathered(event for one in outputs for event in self._events.feed(one.data))

    def _ending(self, record: EndRecord, problem: Problem | None) -> bytes:
        said = self._live.response(record)
        return b"".join(self._events.finish(record, said, problem))

    def _farewell(self, problem: Problem) -> bytes:
        return self._events.error(problem)

    def _problem(self, record: EndRecord) -> Problem | None:
        return in_our_words(super()._problem(record))

    def _remedy(self) -> str:
        id = self._live.request.id
        if self._asked.background:
            return f"Go on with GET /v1/responses/{id}?stream=true&starting_after=NUMBER."
        if self._live.durable:
            return f"Its answer can be fetched at /v1/requests/{id}."
        return "Read faster, or send it with background: true."


async def tell_ended(found: Found, headers: hd.Headers, send: Send) -> None:
    """Answer with a response that has ended."""
    assert found.end is not None
    body = ended_body(found.request, found.end.record, found.end.answer)
    await answer(send, 200, body, [JSON, *_told(found, headers)])


async def replay(found: Found, headers: hd.Headers, send: Send, *, after: int = -1) -> None:
    """Answer with the events of a response that has ended, as far as they come after a number."""
    assert found.end is not None
    request, record = found.request, found.end.record
    events = Events(request, required(request), after=after)
    problem = in_our_words(problem_of_end(record, 0.0, Endpoint.CHAT_COMPLETIONS))
    told = [*SSE, *_told(found, headers)]
    await send({"type": "http.response.start", "status": 200, "headers": told})
    for data in _gathered(_all(events, record, found.end.answer, problem)):
        await send({"type": "http.response.body", "body": data, "more_body": True})
        # A long one must not hold up everybody else.
        await asyncio.sleep(0)
    await send({"type": "http.response.body", "body": b""})


def _all(
    events: Events, record: EndRecord, said: bytes, problem: Problem | None
) -> Iterator[bytes]:
    yield events.begin()
    yield from events.replay(record, said, problem)


def _told(found: Found, headers: hd.Headers) -> RawHeaders:
    assert found.end is not None
    return hd.answered(headers, found.request.id, found.end.record)


def _gathered(events: Iterable[bytes]) -> Iterator[bytes]:
    """Events in pieces of some size."""
    held: list[bytes] = []
    size = 0
    for event in events:
        held.append(event)
        size += len(event)
        if size >= WRITE_BYTES:
            yield b"".join(held)
            held, size = [], 0
    if size:
        yield b"".join(held)
