"""The requests of a gateway over HTTP: lists of them, one of them by its id or its idempotency key, and its cancellation.

What is open is listed first, the latest submission first, and what has ended after it, the latest end first. So of requests
that end while somebody turns pages some may be seen twice, and none is missed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from gateway import headers as hd
from gateway import openai
from gateway.answer import Json
from gateway.asgi import JSON, answer
from gateway.call import Call
from gateway.desk import Desk, ended_json, row_json
from gateway.keys import KEY_BYTES_MAX, Caller
from qlm_core.errors import InvalidRequest, NotFound
from qlm_core.ledger import Row
from qlm_core.model import RequestId

PAGE_MAX = 1000
PAGE_DEFAULT = 100
_STATUSES = ("open", "ended", "all")
# What a place in a list begins with, by which of its two parts it is in.
_OPEN, _ENDED = "open", "ended"


@dataclass(frozen=True, slots=True)
class Place:
    """Where the next page of a list begins: in which part, and below what.

    Attributes:
        below: of what is open the number of a row; of what has ended an end (seconds of the store's clock) and an id.
    """

    part: str
    below: int | tuple[float, str] | None = None

    def __str__(self) -> str:
        if isinstance(self.below, tuple):
            ended_at, id = self.below
            return f"{self.part}:{ended_at!r}:{id}"
        return f"{self.part}:{'' if self.below is None else self.below}"


class RequestsDoor:
    """Answers at /v1/requests and below."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._sight = desk.sight

    async def answer(self, call: Call) -> None:
        """As `Resource.answer`."""
        if call.method == "DELETE":
            phase = await self._sight.cancel(RequestId(call.route.arg), call.caller)
            body = openai.encode({"phase": phase.value})
        elif call.route.arg:
            body = await self._desk.standing(RequestId(call.route.arg), call.caller)
        else:
            body = await self._look(call)
        await answer(call.send, 200, body, [JSON, *hd.echoed(call.headers)])

    async def _look(self, call: Call) -> bytes:
        fields = call.fields()
        key = fields.get("idempotency_key")
        if key is not None:
            if not 0 < len(key.encode()) <= KEY_BYTES_MAX:
                raise InvalidRequest(
                    "idempotency_key", f"not of 1 to {KEY_BYTES_MAX} bytes", "Give the key."
                )
            return await self._desk.standing(await self._of_key(key, call.caller), call.caller)
        status = fields.get("status", "open")
        if status not in _STATUSES:
            raise InvalidRequest(
                "status", f"{status[:32]!r} is none", f"Give one of {', '.join(_STATUSES)}."
            )
        place = Place(_ENDED if status == "ended" else _OPEN)
        if fields.get("after"):
            place = await self._place(fields["after"], call.caller)
        return openai.encode(await self._page(call.caller, status, place, _limit(fields)))

    async def _of_key(self, key: str, caller: Caller) -> RequestId:
        try:
            return await self._sight.of_key(key, caller)
        except NotFound:
            # A header holds bytes, and what they say is read as Latin-1.
            in_header = key.encode().decode("latin-1")
            if in_header == key:
                raise
            return await self._sight.of_key(in_header, caller)

    async def _page(self, caller: Caller, status: str, place: Place, limit: int) -> Json:
        data: list[Json] = []
        upcoming: Place | None = place
        if place.part == _OPEN:
            rows = list(islice(_below(self._sight.newest(caller), place.below), limit + 1))
            data = [self._open_json(row) for row in rows[:limit]]
            upcoming = None if status == "open" else Place(_ENDED)
            if len(rows) > limit:
                upcoming = Place(_OPEN, rows[limit - 1].number)
        if upcoming is not None and upcoming.part == _ENDED:
            below = upcoming.below if isinstance(upcoming.below, tuple) else None
            endings, more = await self._sight.endings(caller, below, limit - len(data))
            data += [ended_json(*ending) for ending in endings]
            if endings:
                below = endings[-1].ended_at, endings[-1].request.id
            upcoming = Place(_ENDED, below) if more else None
        return {
            "object": "list",
            "data": data,
            "first_id": data[0]["id"] if data else None,
            "last_id": data[-1]["id"] if data else None,
            "has_more": upcoming is not None,
            "next": None if upcoming is None else str(upcoming),
        }

    async def _place(self, after: str, caller: Caller) -> Place:
        """The place that `next` of a page named, or the one behind a request."""
        part, _, rest = after.partition(":")
        if part == _OPEN and rest.isascii() and rest.isdigit() and len(rest) < 20:
            return Place(_OPEN, int(rest))
        if part == _ENDED and not rest:
            return Place(_ENDED)
        ended_at, _, id = rest.partition(":")
        if part == _ENDED and (at_s := _number(ended_at)) is not None:
            return Place(_ENDED, (at_s, id))
        row = self._sight.row(RequestId(after), caller)
        if row is not None:
            return Place(_OPEN, row.number)
        try:
            _, end = await self._sight.ended(RequestId(after), caller)
        except NotFound:
            raise InvalidRequest(
                "after",
                f"no request {after[:64]!r} is known here",
                "Pass the `next` of the page before unchanged, or begin anew.",
            ) from None
        return Place(_ENDED, (end.ended_at, end.id))

    def _open_json(self, row: Row) -> Json:
        return row_json(row, self._desk.driver.live(row.meta.id), self._desk.now_s)


def _below(rows: Iterator[Row], below: object) -> Iterator[Row]:
    if not isinstance(below, int):
        return rows
    return (row for row in rows if row.number < below)


def _limit(fields: dict[str, str]) -> int:
    limit = fields.get("limit", str(PAGE_DEFAULT))
    if not (limit.isascii() and limit.isdigit() and len(limit) <= len(str(PAGE_MAX))):
        limit = "0"
    if not 1 <= int(limit) <= PAGE_MAX:
        raise InvalidRequest("limit", "out of range", f"Give a whole number from 1 to {PAGE_MAX}.")
    return int(limit)


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
