"""What there is at a path over HTTP, with which methods, and what to say where there is nothing.

Everything here is pure. Slashes at the end and doubled ones are overlooked, as clients that join a base and a path
leave them there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_SLASHES = re.compile("/{2,}")
_LOOK = ("GET", "HEAD")


@dataclass(frozen=True, slots=True)
class Route:
    """A kind of resource, and which one of that kind."""

    name: str
    methods: tuple[str, ...]
    arg: str = ""

    @property
    def allow(self) -> str:
        """The methods as the header `Allow` lists them."""
        return ", ".join(self.methods)


_EXACT = {
    "/health": Route("health", _LOOK),
    "/healthz": Route("health", _LOOK),
    "/readyz": Route("ready", _LOOK),
    "/metrics": Route("metrics", _LOOK),
    "/v1/completions": Route("completions", ("POST",)),
    "/v1/chat/completions": Route("chat", ("POST",)),
    "/v1/models": Route("models", _LOOK),
    "/v1/queue": Route("queue", _LOOK),
    "/v1/responses": Route("responses", ("POST",)),
    "/v1/requests": Route("requests", _LOOK),
}
_BELOW = {
    "/v1/models/": ("model", _LOOK),
    "/v1/queue/": ("explanation", _LOOK),
    "/v1/requests/": ("request", (*_LOOK, "DELETE")),
    "/v1/responses/": ("response", (*_LOOK, "DELETE")),
}
# What there is below one of something, by the beginning and the end of its path.
_WITHIN = {
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
    "/v1/batches": "Send the requests one by one in a batch class (service_tier), with x-qlm-durable: true.",
    "/v1/files": "Requests are sent one by one; durable ones are fetched at /v1/requests/ID.",
    "/v1/uploads": "Requests are sent one by one; durable ones are fetched at /v1/requests/ID.",
    "/v1/edits": "Use POST /v1/chat/completions.",
    "/v1/messages": "Use POST /v1/chat/completions, in OpenAI's form.",
    "/v1/embeddings": "Ask a server of embedding models directly.",
    "/v1/rerank": "Ask a server of ranking models directly.",
    "/v1/score": "Ask a server of ranking models directly.",
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


def find(path: str) -> Route | None:
    """The route of a path; None where there is nothing."""
    path = tidy(path)
    route = _EXACT.get(path)
    if route is not None or path in _ELSEWHERE:
        return route
    for (prefix, suffix), (name, methods) in _WITHIN.items():
        if path.startswith(prefix) and path.endswith(suffix) and len(path) > len(prefix + suffix):
            return Route(name, methods, path[len(prefix) : -len(suffix)])
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
