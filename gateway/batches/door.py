"""OpenAI's Batches API over HTTP: create, retrieve, list, cancel (docs/api.md, "Batches")."""

from __future__ import annotations

from gateway import headers as hd
from gateway import openai
from gateway.answer import Json
from gateway.asgi import JSON, answer
from gateway.batches import asking
from gateway.bodies import Bodies
from gateway.call import Call
from gateway.desk import Desk
from gateway.uploads import Uploads
from qlm_core.errors import InvalidRequest, Unavailable

LISTED_MAX, LISTED_DEFAULT = 100, 20


class BatchesDoor:
    """Answers at /v1/batches and below."""

    def __init__(self, desk: Desk, uploads: Uploads) -> None:
        self._desk = desk
        self._batches = desk.batches
        self._bodies = Bodies(desk.config.gateway.limits, uploads)

    async def answer(self, call: Call) -> None:
        """As `Resource.answer`."""
        match call.route.name, call.method:
            case "batches", "POST":
                said = await self._create(call)
            case "batches", _:
                said = await self._page(call)
            case "batch", _:
                said = await self._batches.get(call.route.arg, call.caller)
            case _:
                said = await self._batches.cancel(call.route.arg, call.caller)
        await answer(call.send, 200, openai.encode(said), [JSON, *hd.echoed(call.headers)])

    async def _create(self, call: Call) -> Json:
        body = await self._bodies.read(call.headers, call.receive)
        key = hd.key(call.headers)
        asked = asking.read(body, self._desk.config.gateway.batches)
        if self._desk.driver.draining:
            raise Unavailable("the gateway is shutting down; send the batch to another one")
        return await self._batches.create(asked, call.caller, key=key)

    async def _page(self, call: Call) -> Json:
        fields = call.fields()
        limit = fields.get("limit", str(LISTED_DEFAULT))
        if not (limit.isascii() and limit.isdigit() and len(limit) <= len(str(LISTED_MAX))):
            limit = "0"
        if not 1 <= int(limit) <= LISTED_MAX:
            raise InvalidRequest(
                "limit", "out of range", f"Give a whole number from 1 to {LISTED_MAX}."
            )
        found, more = await self._batches.list(
            call.caller, after=fields.get("after", ""), limit=int(limit)
        )
        ids = [batch["id"] for batch in found]
        return {
            "object": "list",
            "data": found,
            "first_id": ids[0] if ids else None,
            "last_id": ids[-1] if ids else None,
            "has_more": more,
        }
