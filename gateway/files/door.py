"""OpenAI's Files API over HTTP: uploads, lists, retrievals, contents and deletions (docs/api.md, "Files")."""

from __future__ import annotations

import asyncio

from gateway import headers as hd
from gateway import openai
from gateway.answer import Json
from gateway.asgi import JSON, answer
from gateway.bodies import require_plain
from gateway.call import Call
from gateway.desk import Desk
from gateway.files import rows
from gateway.files.arriving import Arriving
from gateway.files.form import FileForm
from gateway.files.multipart import FormReader, boundary_of
from gateway.files.rows import Page, StoredFile
from gateway.files.sending import send_content
from gateway.files.upload import WRITE_BYTES
from gateway.files.view import file_json, page_json
from gateway.problems import problem_of
from gateway.refusing import refuse
from gateway.uploads import Uploads
from qlm_core.errors import InvalidRequest, QlmError, Unavailable

LISTED_MAX = 10_000
# What an upload holds in memory: what waits to be written, what is being written, and what the connection has read.
HELD_BYTES = 2 * WRITE_BYTES
# More than a form holds beside its file.
_FORM_REST_BYTES = 1_048_576
_ORDERS = ("asc", "desc")


class FilesDoor:
    """Answers at /v1/files and below."""

    def __init__(self, desk: Desk, uploads: Uploads) -> None:
        self._desk = desk
        self._files = desk.files
        self._limits = desk.config.gateway.files
        self._uploads = uploads

    async def answer(self, call: Call) -> None:
        """As `Resource.answer`."""
        match call.route.name, call.method:
            case "files", "POST":
                await self._take(call)
            case "files", _:
                await _say(call, page_json(await self._page(call)))
            case "file", "DELETE":
                await self._files.delete(call.route.arg, call.caller)
                await _say(call, {"id": call.route.arg, "object": "file", "deleted": True})
            case "file", _:
                await _say(call, file_json(await self._find(call)))
            case _:
                await send_content(self._files, await self._find(call), call, self._desk.metrics)

    async def _find(self, call: Call) -> StoredFile:
        return await self._files.find(call.route.arg, call.caller)

    async def _page(self, call: Call) -> Page:
        fields = call.fields()
        limit = fields.get("limit", str(LISTED_MAX))
        if not (limit.isascii() and limit.isdigit() and len(limit) <= len(str(LISTED_MAX))):
            limit = "0"
        if not 1 <= int(limit) <= LISTED_MAX:
            raise InvalidRequest(
                "limit", "out of range", f"Give a whole number from 1 to {LISTED_MAX}."
            )
        order = fields.get("order", "desc")
        if order not in _ORDERS:
            raise InvalidRequest("order", f"{order[:32]!r} is none", "Give 'asc' or 'desc'.")
        after = fields.get("after", "")
        if after and not rows.is_id(after):
            raise InvalidRequest(
                "after", f"{after[:64]!r} is no id of a file", "Give the last_id of a page."
            )
        return await self._files.list(
            call.caller,
            purpose=fields.get("purpose", ""),
            after=after,
            limit=int(limit),
            newest_first=order == "desc",
        )

    async def _take(self, call: Call) -> None:
        limits = self._limits
        most = max(limits.file_bytes_max, limits.batch_file_bytes_max)
        body = Arriving(
            call.receive,
            call.headers,
            idle_s=limits.upload_idle_s_max,
            bytes_max=most + _FORM_REST_BYTES,
        )
        try:
            file = await self._taken(call, body)
        except QlmError as error:
            problem = problem_of(error)
            if body.ended:
                raise
            # The rest of the body is not wanted, and neither is the connection on which it comes.
            send = call.send if body.idle else body.lingering(call.send)
            extra = [*hd.echoed(call.headers), (b"connection", b"close")]
            await refuse(self._desk.metrics, problem, send, call.headers, extra)
            return
        await _say(call, file_json(file))

    async def _taken(self, call: Call, body: Arriving) -> StoredFile:
        if self._desk.driver.draining:
            raise Unavailable("the gateway is shutting down; send the request to another one")
        require_plain(call.headers)
        boundary = boundary_of(call.headers.get(b"content-type", b""))
        owner = call.caller.tenant
        try:
            async with asyncio.timeout(None) as timeout:
                with (
                    self._files.slots.take(owner, timeout) as slot,
                    self._uploads.holding(HELD_BYTES),
                ):
                    body.slot = slot
                    return await FileForm(self._files, FormReader(boundary), owner).read(body)
        except TimeoutError:
            raise body.too_slow("others waited for its place") from None


async def _say(call: Call, value: Json) -> None:
    await answer(call.send, 200, openai.encode(value), [JSON, *hd.echoed(call.headers)])
