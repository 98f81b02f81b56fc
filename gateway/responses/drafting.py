"""A request to /v1/responses as it comes in: read, put behind the conversation that it goes on from, and drafted as a chat."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import msgspec

from gateway import body as bd
from gateway.intake import BYTE_ORDER_MARK, Draft, Intake, Wish
from gateway.keys import Caller
from gateway.responses import chain
from gateway.responses.asked import encode, written
from gateway.responses.fields import Json
from gateway.responses.to_chat import field_of, translated
from gateway.sight import Sight
from qlm_core.config import GatewayLimits
from qlm_core.endpoint import Endpoint
from qlm_core.errors import InvalidRequest
from qlm_core.model import RequestId

# Left out of a fingerprint: how the answer is delivered, since the same one may be fetched either way.
_NOT_DIGESTED = ("stream", "stream_options", "background")


class ResponseIntake:
    """Makes drafts of chats of what one gateway is asked at /v1/responses."""

    def __init__(self, intake: Intake, sight: Sight, limits: GatewayLimits) -> None:
        self._intake = intake
        self._sight = sight
        self._limits = limits

    async def draft(self, body: bytes, *, wish: Wish, caller: Caller, keyed: bool) -> Draft:
        """The chat that a request becomes. Raises InvalidRequest, UnknownModel, Unavailable, SetAside.

        Args:
            keyed: whether it comes under an idempotency key, which belongs to its content.
        """
        body = body.removeprefix(BYTE_ORDER_MARK)
        return await self._draft(bd.parse(body), body, wish=wish, caller=caller, keyed=keyed)

    async def draft_line(self, body: bytes, *, wish: Wish, caller: Caller) -> Draft:
        """The chat that a line of a batch becomes, whose response is in the batch's output file alone.

        Raises InvalidRequest, UnknownModel, Unavailable, SetAside.
        """
        fields = bd.parse(body)
        for name in ("background", "store"):
            if bd.flag(fields, name):
                raise InvalidRequest(
                    name, "a response of a batch is in its output file alone", "Leave it out."
                )
        fields["store"] = False
        return await self._draft(fields, body, wish=wish, caller=caller, keyed=False)

    async def _draft(
        self, fields: Json, body: bytes, *, wish: Wish, caller: Caller, keyed: bool
    ) -> Draft:
        read = translated(fields, items_max=self._limits.response_items_max)
        sight, most = self._sight, self._limits.response_chain_max
        items = await chain.resolved(read.items, sight, caller, most=most)
        read = replace(read, items=items)
        before: list[Json] = []
        if read.previous:
            id = RequestId(read.previous)
            before = await chain.conversation(sight, id, caller, self._limits)
        chat = _as_written(read.chat, body, fields) | {"messages": read.messages(before)}
        if read.within_s is not None and wish.e2e_s is None:
            wish = replace(wish, e2e_s=read.within_s)
        try:
            draft = self._intake.draft(
                encode(chat), Endpoint.CHAT_COMPLETIONS, wish=wish, caller=caller, keyed=keyed
            )
        except InvalidRequest as error:
            ours = field_of(error.field)
            error.args = (str(error).replace(f"{error.field}: ", f"{ours}: ", 1),)
            error.field = ours
            raise
        return replace(
            draft,
            asked=written(
                read.told,
                items,
                previous=read.previous,
                background=read.background,
                stored=read.stored,
            ),
            kept=read.stored,
            background=read.background,
            fingerprint=_fingerprint(draft.fingerprint, fields) if keyed else "",
        )


def _as_written(chat: Json, body: bytes, fields: Json) -> Json:
    """The fields of a chat, those that are passed on as they were written."""
    raw = bd.raw_fields(body)
    passed = [name for name in chat if name in raw and chat[name] is fields[name]]
    return chat | {name: raw[name] for name in passed}


def _fingerprint(of_chat: str, fields: Json) -> str:
    """A digest of all that was asked for, apart from any chat's."""
    asked = {key: value for key, value in fields.items() if key not in _NOT_DIGESTED}
    said = msgspec.json.encode(["responses", of_chat, asked], order="sorted")
    return hashlib.sha256(said).hexdigest()
