"""The page over HTTP: its three files for everybody, and behind the keys what is in it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from importlib import resources

from gateway import headers as hd
from gateway import openai, routes
from gateway.answer import Json
from gateway.asgi import JSON, RawHeaders, answer, hung_up
from gateway.call import Call
from gateway.desk import Desk
from gateway.exchange import SSE
from gateway.page.hub import Hub
from gateway.page.stories import Story
from qlm_core.errors import NotFound, QlmError
from qlm_core.model import RequestId

_FILES = {
    "page.html": b"text/html; charset=utf-8",
    "page.css": b"text/css; charset=utf-8",
    "page.js": b"text/javascript; charset=utf-8",
}
_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self'; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class PageDoor:
    """Answers at /ui and below."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._hub = desk.page
        folder = resources.files(__package__).joinpath("static")
        self._files = {name: folder.joinpath(name).read_bytes() for name in _FILES}

    async def answer(self, call: Call) -> None:
        """As `Resource.answer`."""
        hub = self._hub
        if hub is None:
            raise NotFound(
                f"{routes.nothing_at('/ui')} The page is off; gateway.ui.enabled is false."
            )
        match call.route.name:
            case "ui":
                name = call.route.arg
                await answer(call.send, 200, self._files[name], _file_headers(_FILES[name]))
            case "ui_feed":
                await self._feed(hub, call)
            case _:
                said = openai.encode(await self._story(hub, call))
                await answer(call.send, 200, said, [JSON, *hd.echoed(call.headers)])

    async def _feed(self, hub: Hub, call: Call) -> None:
        with hub.watching(call.caller) as events:
            extra = hd.echoed(call.headers)
            await call.send(
                {"type": "http.response.start", "status": 200, "headers": [*SSE, *extra]}
            )
            if call.method == "HEAD":
                await call.send({"type": "http.response.body", "body": b""})
                return
            gone = asyncio.create_task(hung_up(call.receive))
            telling = asyncio.create_task(_tell(events, call))
            try:
                await asyncio.wait([gone, telling], return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (gone, telling):
                    task.cancel()
                await asyncio.gather(gone, telling, return_exceptions=True)

    async def _story(self, hub: Hub, call: Call) -> Json:
        """Where a request stands, what happened to it, and why it waits. Raises NotFound, Unavailable."""
        id = RequestId(call.route.arg)
        standing = openai.parse(await self._desk.standing(id, call.caller))
        standing.pop("response", None)
        told: Json = {"request": standing, "steps": [], "left_out": 0, "why": None}
        story = hub.stories.get(id)
        if story is not None:
            told |= _steps(story)
        if standing["phase"] == "waiting":
            try:
                told["why"] = openai.parse(await self._desk.explain(id, call.caller))
            except QlmError as error:
                told["why"] = {"because": str(error)}
        return told


async def _tell(events: AsyncIterator[bytes], call: Call) -> None:
    async for event in events:
        await call.send({"type": "http.response.body", "body": event, "more_body": True})
    await call.send({"type": "http.response.body", "body": b""})


def _steps(story: Story) -> Json:
    steps = [
        {
            "at_s": round(step.at_s, 3),
            "what": step.what,
            "agent": step.agent or None,
            "output_tokens": step.output_tokens,
        }
        for step in story.steps
    ]
    return {"steps": steps, "left_out": story.left_out}


def _file_headers(kind: bytes) -> RawHeaders:
    return [
        (b"content-type", kind),
        (b"content-security-policy", _POLICY),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
        (b"cache-control", b"no-cache"),
    ]
