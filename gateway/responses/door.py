"""What there is at /v1/responses: how a client hears of its request, and what can be asked of a response afterwards."""

from __future__ import annotations

from gateway import exchange as ex
from gateway import headers as hd
from gateway import openai
from gateway.asgi import JSON, Send, answer
from gateway.call import Call
from gateway.desk import RESPONSES_PATH, Desk
from gateway.keys import Caller
from gateway.later import acknowledgement
from gateway.live import Live
from gateway.responses import from_chat as fc
from gateway.responses.asked import asked_of, input_items, required
from gateway.responses.ended import ended_body
from gateway.responses.exchange import (
    StreamedResponse,
    WholeResponse,
    replay,
    tell_ended,
)
from gateway.store import Found, StoredRequest
from qlm_core.errors import InvalidRequest, NotFound
from qlm_core.model import RequestId

# Of the input items of one response, as OpenAI's API lists them.
_LISTED_MAX = 100
_LISTED = 20

Query = dict[str, str]


class Responses:
    """The Responses API of one gateway."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    # ---------------------------------------------------------------- a request has come in

    async def accepted(self, live: Live, headers: hd.Headers, send: Send) -> None:
        """Tell a client that does not wait where its response stands."""
        standing, id = self._standing(live.request), live.request.id
        await self._desk.estimated(live)
        told = [JSON, *hd.answering(headers, id, None, live.estimate)]
        later = hd.wants_async(headers)
        if later:
            where = f"{RESPONSES_PATH}/{id}".encode()
            told += acknowledgement(where, live.estimate, headers)
        await answer(send, 202 if later else 200, standing, told)

    async def tell_ended(
        self, found: Found, headers: hd.Headers, send: Send, *, stream: bool
    ) -> None:
        """Answer a request that was sent again under its key, and has ended."""
        if stream:
            await replay(found, headers, send)
        else:
            await tell_ended(found, headers, send)

    # ---------------------------------------------------------------- what is asked afterwards

    async def answer(self, call: Call) -> None:
        """Answer what is asked of one response. Raises QlmError."""
        id, caller, query = RequestId(call.route.arg), call.caller, call.fields()
        if call.route.name == "response_cancel":
            await answer(call.send, 200, await self._cancel(id, caller), [JSON])
        elif call.route.name == "response_input_items":
            await answer(call.send, 200, await self._input_items(id, caller, query), [JSON])
        elif call.method == "DELETE":
            await answer(call.send, 200, await self._delete(id, caller), [JSON])
        elif _flag(query, "stream"):
            await self._stream(id, query, call)
        else:
            await self._retrieve(id, call)

    async def _retrieve(self, id: RequestId, call: Call) -> None:
        found = await self._find(id, call.caller)
        if found.end is not None:
            await tell_ended(found, call.headers, call.send)
            return
        live = self._desk.driver.live(id)
        estimate = None if live is None else live.estimate
        told = [JSON, *hd.answering(call.headers, id, None, estimate)]
        await answer(call.send, 200, self._standing(found.request), told)

    async def _stream(self, id: RequestId, query: Query, call: Call) -> None:
        caller, headers, send = call.caller, call.headers, call.send
        after = _whole_number(query, "starting_after", -1)
        found = await self._find(id, caller)
        if not required(found.request).background:
            raise InvalidRequest(
                "stream",
                "only a response with background: true can be streamed again",
                "Leave stream out.",
            )
        live = self._desk.sight.watch(id, caller)
        if live is None or found.end is not None:
            ended = found if found.end is not None else await self._find(id, caller)
            await replay(ended, headers, send, after=after)
            return
        exchange = StreamedResponse(
            self._desk, live, headers, send, include_usage=True, patience_s=None, after=after
        )
        await ex.run(exchange, call.receive)

    async def _cancel(self, id: RequestId, caller: Caller) -> bytes:
        found = await self._find(id, caller)
        if not required(found.request).background:
            raise InvalidRequest(
                "id",
                "Cannot cancel a synchronous response",
                "Close its connection, or send it with background: true.",
            )
        if found.end is None:
            await self._desk.sight.cancel(id, caller)
            found = await self._find(id, caller)
        assert found.end is not None
        return ended_body(found.request, found.end.record, found.end.answer)

    async def _delete(self, id: RequestId, caller: Caller) -> bytes:
        await self._find(id, caller)
        await self._desk.sight.forget(id, caller)
        return openai.encode({"id": id, "object": "response", "deleted": True})

    async def _input_items(self, id: RequestId, caller: Caller, query: Query) -> bytes:
        request = (await self._find(id, caller)).request
        items = input_items(request)
        order = query.get("order", "desc")
        if order not in ("asc", "desc"):
            raise InvalidRequest("order", f"{order[:32]!r} is neither asc nor desc", "Say one.")
        limit = _whole_number(query, "limit", _LISTED)
        if not 1 <= limit <= _LISTED_MAX:
            raise InvalidRequest("limit", f"must be 1 to {_LISTED_MAX}, not {limit}", "Correct it.")
        if order == "desc":
            items.reverse()
        if "after" in query:
            ids = [item["id"] for item in items]
            if query["after"] not in ids:
                raise InvalidRequest("after", "no such item", "Give the id of an item of this.")
            items = items[ids.index(query["after"]) + 1 :]
        page = items[:limit]
        listed = {"object": "list", "data": page, "has_more": len(items) > limit}
        ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {}
        return openai.encode(listed | ({"first_id": None, "last_id": None} | ends))

    async def _find(self, id: RequestId, caller: Caller) -> Found:
        """A response, without an end while it is open. Raises NotFound, Unavailable, SetAside."""
        sight = self._desk.sight
        await sight.settled(id, caller)
        live = sight.live(id, caller)
        try:
            if live is not None:
                found = Found(live.request, None)
            else:
                found = Found(*await sight.ended(id, caller))
        except NotFound:
            raise _unknown(id) from None
        asked = asked_of(found.request)
        if asked is None or not asked.stored:
            raise _unknown(id)
        return found

    def _standing(self, request: StoredRequest) -> bytes:
        """A response that has not ended."""
        row = self._desk.driver.ledger.row(request.id)
        asked = required(request)
        waits = row is not None and row.pulled_s is None
        status = fc.QUEUED if asked.background and waits else fc.IN_PROGRESS
        return openai.encode(fc.unfinished(request, asked, status))


def exchange_of(live: Live, *, stream: bool) -> type[ex.Exchange]:
    """How the client of a request is answered that waits for it."""
    if live.request.asked:
        return StreamedResponse if stream else WholeResponse
    return ex.Streamed if stream else ex.Whole


def _unknown(id: RequestId) -> NotFound:
    return NotFound(f"Response with id {id[:64]!r} not found.")


def _flag(query: Query, name: str) -> bool:
    value = query.get(name, "").lower()
    if value in ("", "false", "0"):
        return False
    if value in ("true", "1"):
        return True
    raise InvalidRequest(name, f"{value[:32]!r} is not true or false", "Correct it.")


def _whole_number(query: Query, name: str, default: int) -> int:
    value = query.get(name, "")
    if not value:
        return default
    if not (value.isascii() and value.isdigit() and len(value) <= 18):
        raise InvalidRequest(name, f"{value[:32]!r} is not a whole number", "Correct it.")
    return int(value)
