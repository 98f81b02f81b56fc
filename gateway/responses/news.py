"""What webhooks are told of responses: that one in the background is over, and how."""

from __future__ import annotations

import time

from gateway import openai
from gateway.responses.asked import required
from gateway.responses.from_chat import finish_reason, status_of
from gateway.store import StoredEnd, StoredRequest
from gateway.webhooks.driver import Webhooks
from gateway.webhooks.rows import Row
from qlm_core.errors import SetAside


class ResponseNews:
    """Tells of the responses of one gateway. Who waits for one that is not in the background hears of it anyway."""

    def __init__(self, webhooks: Webhooks) -> None:
        self._webhooks = webhooks

    def of_end(self, request: StoredRequest, end: StoredEnd) -> tuple[Row, ...]:
        """What is to be told of the end of a request; to be stored with that."""
        if not (request.asked and self._webhooks.wanted):
            return ()
        try:
            if not required(request).background:
                return ()
        except SetAside:
            return ()
        status = status_of(end.record, finish_reason(openai.parse(end.answer) or {}))
        return self._webhooks.deliveries(f"response.{status}", request.id, int(time.time()))

    def kept(self, told: tuple[Row, ...]) -> None:
        """That is stored."""
        self._webhooks.kept(told)
