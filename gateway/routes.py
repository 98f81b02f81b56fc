"""What there is at a path over HTTP, with which methods, and what to say where there is nothing.

Everything here is pure. Slashes at the end and doubled ones are overlooked, as clients that join a base and a path
leave them there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from qlm_core.endpoint import Endpoint

_SLASHES = re.compile("/{2,}")
_LOOK = ("GET", "HEAD")


@dataclass(frozen=True, slots=True)
class Route:
    """A kind of resource, and which one of that kind.

    Attributes:
        endpoint: what of a model's is asked for there.
    """

    name: str
    methods: tuple[str, ...]
    arg: str = ""
    endpoint: Endpoint | None = None

    @property
    def allow(self) -> str:
        """The methods as the header `Allow` lists them."""
        return ", ".join(self.methods)


# vLLM serves some of them at several paths, as Jina and Cohere have them.
_ENDPOINTS = {endpoint.path: endpoint for endpoint in Endpoint} | {
    "/score": Endpoint.SCORE,
    "/rerank": Endpoint.RERANK,
    "/v2/rerank": Endpoint.RERANK,
}
_EXACT = {
    "/health": Route("health", _LOOK),
    "/healthz": Route("health", _LOOK),
    "/readyz": Route("ready", _LOOK),
    "/metrics": Route("metrics", _LOOK),
    "/openapi.json": Route("openapi", _LOOK),
    "/docs": Route("docs", _LOOK),
    "/ui": Route("ui", _LOOK, "page.html"),
    "/ui/page.css": Route("ui", _LOOK, "page.css"),
    "/ui/page.js": Route("ui", _LOOK, "page.js"),
    "/ui/feed": Route("ui_feed", _LOOK),
    "/v1/models": Route("models", _LOOK),
    "/v1/queue": Route("queue", _LOOK),
    "/v1/responses": Route("responses", ("POST",)),
    "/v1/requests": Route("requests", _LOOK),
    "/v1/files": Route("files", (*_LOOK, "POST")),
    "/v1/batches": Route("batches", (*_LOOK, "POST")),
} | {path: Route("run", ("POST",), endpoint=endpoint) for path, endpoint in _ENDPOINTS.items()}
_BELOW: dict[str, tuple[str, tuple[str, ...]]] = {
    "/ui/requests/": ("ui_request", _LOOK),
    "/v1/models/": ("model", _LOOK),
    "/v1/queue/": ("explanation", _LOOK),
    "/v1/requests/": ("request", (*_LOOK, "DELETE")),
    "/v1/responses/": ("response", (*_LOOK, "DELETE")),
    "/v1/files/": ("file", (*_LOOK, "DELETE")),
    "/v1/batches/": ("batch", _LOOK),
}
# What is below one of a kind, by the kind's prefix and the last part of the path.
_PARTS: dict[tuple[str, str], tuple[str, tuple[str, ...]]] = {
    ("/v1/files/", "/content"): ("file_content", _LOOK),
    ("/v1/batches/", "/cancel"): ("batch_cancel", ("POST",)),
    ("/v1/responses/", "/cancel"): ("response_cancel", ("POST",)),
    ("/v1/responses/", "/input_items"): ("response_input_items", _LOOK),
}

# Parts of OpenAI's API and its relatives' that are not here, by the beginning of their path, and what serves instead.
_ELSEWHERE = {
    "/v1/assistants": "Use POST /v1/chat/completions, with the whole conversation in messages.",
    "/v1/threads": "Use POST /v1/chat/completions, with the whole conversation in messages.",
    "/v1/conversations": "Use POST /v1/responses with previous_response_id, or with the whole conversation in input.",
    "/v1/responses/compact": "Send a shorter conversation in input.",
    "/v1/responses/input_tokens": "Tokens are counted by engines; usage.input_tokens of a response tells how many there were.",
    "/v1/chat/completions/": "Answers are kept for requests with x-qlm-durable: true; get them at /v1/requests/ID.",
    "/v1/uploads": "Send the file in one piece to POST /v1/files.",
    "/v1/edits": "Use POST /v1/chat/completions.",
    "/v1/messages": "Use POST /v1/chat/completions, in OpenAI's form.",
    "/v1/audio": "Ask a server of audio models directly.",
    "/v1/realtime": "Ask a server of audio models directly.",
    "/v1/images": "Ask a server of image models directly.",
    "/v1/videos": "Ask a server of video models directly.",
    "/v1/moderations": "Ask a server of moderation models directly.",
    "/v1/fine_tuning": "Models are trained elsewhere and named under models in the configuration.",
    "/v1/fine-tunes": "Models are trained elsewhere and named under models in the configuration.",
    "/v1/vector_stores": "Keep documents elsewhere and put what was found into the prompt.",
    "/v1/containers": "Run tools in the client.",
    "/v1/evals": "Evaluate in the client.",
    "/v1/organization": "Keys and limits are in the gateway's configuration, counts at /metrics.",
}


def table() -> dict[str, tuple[str, ...]]:
    """The methods at every path, with {} for what differs."""
    paths = {path: route.methods for path, route in _EXACT.items()}
    paths |= {prefix + "{}": methods for prefix, (_, methods) in _BELOW.items()}
    return paths | {
        prefix + "{}" + last: methods for (prefix, last), (_, methods) in _PARTS.items()
    }


def find(path: str) -> Route | None:
    """The route of a path; None where there is nothing."""
    path = tidy(path)
    route = _EXACT.get(path)
    if route is not None or path in _ELSEWHERE:
        return route
    for (prefix, last), (name, methods) in _PARTS.items():
        if path.startswith(prefix) and path.endswith(last) and len(path) > len(prefix + last):
            return Route(name, methods, path[len(prefix) : -len(last)])
    for prefix, (name, methods) in _BELOW.items():
        if path.startswith(prefix):
            return Route(name, methods, path.removeprefix(prefix))
    return None


def tidy(path: str) -> str:
    """A path without a slash too many."""
    if "//" in path:
        path = _SLASHES.sub("/", path)
    return path.rstrip("/") or "/"


def nothing_at(path: str) -> str:
    """What to tell who asks for a path that is not there."""
    path = tidy(path)
    said = f"path: there is nothing at {path[:128]}"
    for prefix, advice in _ELSEWHERE.items():
        if path == prefix or path.startswith(prefix.rstrip("/") + "/"):
            return f"{said}, which is not served here. {advice}"
    without = path.removeprefix("/v1")
    if without in _EXACT and not without.startswith("/v1/"):
        return f"{said}; there is something at {without}. That path stands without /v1."
    for fixed in (without, f"/v1{path}"):
        if find(fixed) is not None:
            return f"{said}; there is something at {fixed[:128]}. Check the client's base URL, which ends in /v1."
    return f"{said}. docs/api.md lists what there is."
