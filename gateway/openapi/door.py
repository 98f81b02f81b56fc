"""The description over HTTP: as JSON, and as a page that shows it without fetching anything."""

from __future__ import annotations

import re
from base64 import b64encode
from hashlib import sha256
from importlib import metadata, resources

from gateway import openai
from gateway.asgi import JSON, RawHeaders, answer
from gateway.call import Call
from gateway.openapi.document import document

_PACKAGE = "qlm-serving"
_PLACE = b"DOCUMENT"
_CODE = re.compile(rb"<(script|style)>(.*?)</\1>", re.DOTALL)


class DescriptionDoor:
    """Answers at /openapi.json and /docs."""

    def __init__(self) -> None:
        self._document = openai.encode(document(_version()))
        template = resources.files(__package__).joinpath("page.html").read_bytes()
        # What ends a script is written in another way, which says the same.
        self._page = template.replace(_PLACE, self._document.replace(b"</", b"<\\/"))
        self._page_headers = _page_headers(template)

    async def answer(self, call: Call) -> None:
        """As `Resource.answer`."""
        if call.route.name == "openapi":
            await answer(call.send, 200, self._document, [JSON])
        else:
            await answer(call.send, 200, self._page, self._page_headers)


def _page_headers(template: bytes) -> RawHeaders:
    """The page may run its own code, and nothing else."""
    allowed: dict[bytes, bytes] = {}
    for kind, code in _CODE.findall(template):
        allowed[kind] = b"'sha256-%b'" % b64encode(sha256(code).digest())
    policy = b"default-src 'none'; script-src %b; style-src %b; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    return [
        (b"content-type", b"text/html; charset=utf-8"),
        (b"content-security-policy", policy % (allowed[b"script"], allowed[b"style"])),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
    ]


def _version() -> str:
    try:
        return metadata.version(_PACKAGE)
    except metadata.PackageNotFoundError:
        return "0"
