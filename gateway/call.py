"""One HTTP request that has found its route, and what answers it: the seam between the front door and its resources."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol
from urllib.parse import parse_qsl

from gateway import headers as hd
from gateway.asgi import Receive, Send
from gateway.keys import Caller
from gateway.routes import Route
from qlm_core.errors import InvalidRequest

# OpenAI's libraries send a handful.
_FIELDS_MAX = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A request by a known caller, with a method that its route has.

    Attributes:
        query: what stands behind the path, as it was sent.
        receive: its body has not been read.
    """

    route: Route
    method: str
    query: bytes
    headers: hd.Headers
    caller: Caller
    receive: Receive
    send: Send

    def fields(self) -> dict[str, str]:
        """The fields of the query; of several of a name the last. Raises InvalidRequest."""
        try:
            pairs = parse_qsl(
                self.query.decode("latin-1"), keep_blank_values=True, max_num_fields=_FIELDS_MAX
            )
        except ValueError:
            raise InvalidRequest(
                "query", f"more than {_FIELDS_MAX} fields", "Leave some out."
            ) from None
        return dict(pairs)


class Resource(Protocol):
    """What there is at some routes."""

    async def answer(self, call: Call) -> None:
        """Answer it. Raises QlmError before anything is sent, which becomes an error's answer."""
