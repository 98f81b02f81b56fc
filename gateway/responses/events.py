"""A response as a stream of events, each with its number.

The numbers have no gaps and start at 0. Of a response in the background they are the same in each stream of it: its text is
cut by itself (`cutting`), and all else follows from what the request said and how it ended. Everything here is pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from gateway import openai
from gateway.problems import Problem
from gateway.responses import from_chat as fc
from gateway.responses.asked import Asked, key_of
from gateway.responses.fields import Json
from gateway.responses.output import Output
from gateway.store import StoredRequest
from qlm_core.ledger import EndRecord
from qlm_core.model import Phase

_TERMINAL = {
    fc.COMPLETED: "response.completed",
    fc.INCOMPLETE: "response.incomplete",
    fc.FAILED: "response.failed",
    # There is no event for it. Who follows must not take what has come for an answer.
    fc.CANCELLED: "response.failed",
}


class Events:
    """The events of one response, as server-sent events.

    Args:
        after: events up to this number are left out; -1 for none.
    """

    def __init__(self, request: StoredRequest, asked: Asked, *, after: int = -1) -> None:
        self._request = request
        self._asked = asked
        self._after = after
        self._number = 0
        self._output = Output(key_of(request.id), by_chunk=not asked.background)
        self._in_progress = False

    def begin(self) -> bytes:
        """What is told before anything has happened."""
        if not self._asked.background:
            return self._lifecycle("response.created", fc.IN_PROGRESS) + self._begun()
        return self._lifecycle("response.created", fc.QUEUED) + self._lifecycle(
            "response.queued", fc.QUEUED
        )

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The events that tell of a chunk."""
        yield from self._numbered(self._output.feed(openai.parse(data)))

    def finish(self, record: EndRecord, answer: bytes, problem: Problem | None) -> Iterator[bytes]:
        """The events of the end of what was fed.

        Args:
            answer: the chat's whole answer, as far as there is one.
            problem: what the end is over HTTP, where it is none of a finished request.
        """
        whole: Json = openai.parse(answer) or {}
        yield from self._end(fc.closing_events(self._output, record, whole), record, whole, problem)

    def replay(self, record: EndRecord, answer: bytes, problem: Problem | None) -> Iterator[bytes]:
        """The events between the beginning and the end, and those of the end, of a response that has ended."""
        whole: Json = openai.parse(answer) or {}
        yield from self._end(fc.events_of(self._output, record, whole), record, whole, problem)

    def error(self, problem: Problem) -> bytes:
        """That this stream ends before the response does."""
        said = {"code": problem.code, "message": problem.message, "param": problem.param}
        return self._told({"type": "error", **said})

    def _end(
        self, events: Iterable[Json], record: EndRecord, answer: Json, problem: Problem | None
    ) -> Iterator[bytes]:
        yield from self._numbered(events)
        if record.phase is Phase.FINISHED:
            yield self._begun()
        response = fc.ended(self._request, self._asked, record, answer, problem, self._output.items)
        yield self._told({"type": _TERMINAL[response["status"]], "response": response})

    def _numbered(self, events: Iterable[Json]) -> Iterator[bytes]:
        for event in events:
            yield self._begun() + self._told(event)

    def _begun(self) -> bytes:
        if self._in_progress:
            return b""
        self._in_progress = True
        return self._lifecycle("response.in_progress", fc.IN_PROGRESS)

    def _lifecycle(self, kind: str, status: str) -> bytes:
        response = fc.unfinished(self._request, self._asked, status)
        return self._told({"type": kind, "response": response})

    def _told(self, event: Json) -> bytes:
        number = self._number
        self._number += 1
        if number <= self._after:
            return b""
        data = openai.encode(event | {"sequence_number": number})
        return b"event: %b\ndata: %b\n\n" % (event["type"].encode(), data)
