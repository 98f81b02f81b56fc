"""What is kept of a request to /v1/responses beside the chat that it became.

It lies in the head of the stored request, so it outlives the body and needs no table of its own. With the chat's answer it
is all that a response object, a replayed stream and the next turn of a conversation are made of. Everything here is pure.
"""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.store import StoredRequest
from qlm_core.errors import SetAside
from qlm_core.model import RequestId

Json = dict[str, Any]

_PREFIX = "resp_"


class Asked(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was asked for.

    Attributes:
        told: the fields of the response object that are known from the beginning.
        items: the input of this request alone, as a list of items.
        previous: the response that it goes on from; "" for none.
        background: its client does not wait for the answer.
        stored: the response can be had by its id.
    """

    told: dict[str, msgspec.Raw]
    items: msgspec.Raw
    previous: str = ""
    background: bool = False
    stored: bool = True


_decode_asked = msgspec.json.Decoder(Asked).decode
_decode_items = msgspec.json.Decoder(list[Json]).decode
encode = msgspec.json.Encoder().encode


def written(
    told: Json, items: list[Any], *, previous: str, background: bool, stored: bool
) -> bytes:
    """What a stored request has in `asked`."""
    return encode(
        Asked(
            told={name: msgspec.Raw(encode(value)) for name, value in told.items()},
            items=msgspec.Raw(encode(items)),
            previous=previous,
            background=background,
            stored=stored,
        )
    )


def asked_of(request: StoredRequest) -> Asked | None:
    """What was asked for; None of a request to another endpoint. Raises SetAside for what cannot be read."""
    if not request.asked:
        return None
    try:
        return _decode_asked(request.asked)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise SetAside(request.id) from None


def required(request: StoredRequest) -> Asked:
    """What was asked for, of a request that is known to be a response's. Raises SetAside."""
    asked = asked_of(request)
    assert asked is not None, "a request to another endpoint"
    return asked


def previous_of(request: StoredRequest) -> RequestId | None:
    """The response that a request goes on from; None of one that does not, or cannot be read."""
    try:
        asked = asked_of(request)
    except SetAside:
        return None
    return RequestId(asked.previous) if asked is not None and asked.previous else None


def key_of(id: RequestId) -> str:
    """What the ids of a response's items are made of."""
    return id.removeprefix(_PREFIX)


_ITEM_PREFIX = {
    "message": "msg",
    "reasoning": "rs",
    "function_call": "fc",
    "function_call_output": "fco",
}


def item_id(kind: str, key: str, number: int, *, of_input: bool = False) -> str:
    """The id of an item, which follows from its response's and its place."""
    return f"{_ITEM_PREFIX.get(kind, 'item')}_{key}_{'i' if of_input else ''}{number}"


def input_items(request: StoredRequest) -> list[Json]:
    """The input items of a request as its client is told them, each with an id, in the order in which they were sent.

    Raises SetAside for what cannot be read.
    """
    key = key_of(request.id)
    return [_item(item, key, number) for number, item in enumerate(own_items(request))]


def own_items(request: StoredRequest) -> list[Json]:
    """The input items as they were sent. Raises SetAside for what cannot be read."""
    try:
        return _decode_items(required(request).items)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise SetAside(request.id) from None


def _item(item: Json, key: str, number: int) -> Json:
    kind = item.get("type") or "message"
    whole: Json = {"id": item_id(kind, key, number, of_input=True), "type": kind}
    whole |= {name: value for name, value in item.items() if value is not None}
    whole.setdefault("status", "completed")
    content = whole.get("content")
    if kind == "message" and isinstance(content, str):
        part: Json = {"type": "input_text", "text": content}
        if whole.get("role") == "assistant":
            part = {"type": "output_text", "text": content, "annotations": []}
        whole["content"] = [part]
    return whole
