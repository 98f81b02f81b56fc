"""The conversation behind a request: what `previous_response_id` and item references name, as the store has it.

A response keeps its own input and output alone, and each turn reads those before it. So a conversation can go on for as long as
the store keeps its oldest turn; what is missing, still running or without an answer is said, never left out.
"""

from __future__ import annotations

import re
from typing import Any

from gateway import openai
from gateway.keys import Caller
from gateway.responses.asked import asked_of, input_items, own_items, previous_of
from gateway.responses.fields import Json
from gateway.responses.from_chat import items_of
from gateway.sight import Sight
from gateway.store import Found, Most
from qlm_core.config import GatewayLimits
from qlm_core.errors import InvalidRequest, NotFound
from qlm_core.model import Phase, RequestId

_FIELD = "previous_response_id"
_REMEDY = "Send the conversation in input."
_ITEM_ID = re.compile(r"[a-z]{2,4}_([0-9a-f]{24})_(i?)([0-9]{1,6})")


async def conversation(
    sight: Sight, id: RequestId, caller: Caller, limits: GatewayLimits
) -> list[Json]:
    """The items of a response and of all before it, oldest first. Raises InvalidRequest, Unavailable, SetAside."""
    await sight.settled(id, caller)
    live = sight.live(id, caller)
    if live is not None and live.request.asked:
        remedy = "Wait until its status is completed."
        raise InvalidRequest(_FIELD, f"{id[:64]!r} has not ended", remedy)
    most = Most(rows=limits.response_chain_max, kept_bytes=limits.body_bytes_max)
    found = await sight.chain(id, caller, previous_of, most)
    _require_whole(id, found, most)
    return [item for one in reversed(found) for item in _items(one)]


async def resolved(items: list[Any], sight: Sight, caller: Caller, *, most: int) -> list[Any]:
    """Input items, with those in place that are only referred to. Raises InvalidRequest, Unavailable, SetAside.

    Args:
        most: how many responses may be referred to.
    """
    known: dict[str, list[Json]] = {}
    whole = []
    for number, item in enumerate(items):
        id = _referred(item)
        if id is None:
            whole.append(item)
            continue
        field = f"input[{number}].id"
        place = _ITEM_ID.fullmatch(id)
        if place is None:
            raise _no_item(field, id)
        key, of_input, index = place[1] + place[2], place[2], int(place[3])
        if key not in known:
            if len(known) >= most:
                remedy = "Send the items themselves, or raise gateway.limits.response_chain_max."
                raise InvalidRequest(field, f"refers to more than {most} responses", remedy)
            request_id = RequestId(f"resp_{place[1]}")
            known[key] = await _items_of(sight, request_id, caller, of_input=bool(of_input))
        if index >= len(known[key]):
            raise _no_item(field, id)
        whole.append(known[key][index])
    return whole


def _referred(item: Any) -> str | None:
    """The id that an item reference names; None for any other item."""
    if not isinstance(item, dict) or not isinstance(item.get("id"), str):
        return None
    kind = item.get("type")
    refers = kind == "item_reference" or (kind is None and "role" not in item)
    return item["id"] if refers else None


async def _items_of(sight: Sight, id: RequestId, caller: Caller, *, of_input: bool) -> list[Json]:
    await sight.settled(id, caller)
    try:
        request, end = await sight.ended(id, caller)
    except NotFound:
        return []
    asked = asked_of(request)
    if asked is None or not asked.stored:
        return []
    if of_input:
        return input_items(request)
    return items_of(request, end.record, openai.parse(end.answer) or {})


def _no_item(field: str, id: str) -> InvalidRequest:
    remedy = "Send the item itself."
    return InvalidRequest(field, f"no item {id[:64]!r} is kept here", remedy)


def _require_whole(id: RequestId, found: list[Found], most: Most) -> None:
    """Raise InvalidRequest unless these are all turns of a conversation, and each has an answer."""
    for one in found:
        asked = asked_of(one.request)
        if asked is None or not asked.stored:
            raise _missing(one.request.id)
        if one.end is None or one.end.record.phase is not Phase.FINISHED:
            how = "has not ended" if one.end is None else f"has no answer ({one.end.record.reason})"
            raise InvalidRequest(_FIELD, f"{one.request.id!r} {how}", _REMEDY)
    if not found:
        raise _missing(id)
    earlier = previous_of(found[-1].request)
    if earlier is None:
        return
    if len(found) >= most.rows:
        remedy = f"{_REMEDY[:-1]}, or raise gateway.limits.response_chain_max."
        raise InvalidRequest(_FIELD, f"has more than {most.rows} responses before it", remedy)
    if sum(one.kept_bytes for one in found) >= most.kept_bytes:
        remedy = "Send a shorter conversation in input, or raise gateway.limits.body_bytes_max."
        raise InvalidRequest(_FIELD, f"leads to more than {most.kept_bytes} bytes", remedy)
    raise _missing(earlier)


def _missing(id: RequestId) -> InvalidRequest:
    return InvalidRequest(
        _FIELD,
        f"Previous response with id {id[:64]!r} not found",
        f"It is unknown, deleted, or older than gateway.store.keep_finished_s. {_REMEDY}",
        code="previous_response_not_found",
    )


def _items(found: Found) -> list[Json]:
    if found.end is None:
        return []
    answer = openai.parse(found.end.answer) or {}
    return [*own_items(found.request), *items_of(found.request, found.end.record, answer)]
