"""Requests whose clients do not wait: taken durably, acknowledged at once, and fetched by their id (RFC 7240, `respond-async`).

What is acknowledged is stored. Its client is told where to look, when that is worth while, and how long the request will
wait as far as the solver knows by then.
"""

from __future__ import annotations

from gateway import headers as hd
from gateway.asgi import JSON, RawHeaders, Send, answer
from gateway.desk import Desk
from gateway.keys import Caller
from qlm_core.errors import ShedLate
from qlm_core.model import Estimate, RequestId
from qlm_core.outcome import ShedReason

# When to look for what is about to begin, or of which nothing is known.
_LOOK_S_MIN = 1.0


async def acknowledge(
    desk: Desk, id: RequestId, caller: Caller, headers: hd.Headers, send: Send
) -> None:
    """Tell the client of a stored request that it was accepted. Raises ShedLate, before anything is sent."""
    live = desk.sight.live(id, caller)
    estimate = None
    if live is not None:
        await desk.estimated(live)
        if live.record is not None and live.record.reason == ShedReason.LATE.value:
            raise ShedLate(live.record.retry_after_s)
        estimate = live.estimate
    told = acknowledgement(b"/v1/requests/" + id.encode(), estimate, headers, over=live is None)
    told += hd.answering(headers, id, None, estimate)
    await answer(send, 202, await desk.standing(id, caller), [JSON, *told])


def acknowledgement(
    where: bytes, estimate: Estimate | None, headers: hd.Headers, *, over: bool = False
) -> RawHeaders:
    """What the client of a stored request is told of it: where to look, and when, unless it is over."""
    told: RawHeaders = [(b"location", where)]
    if not over:
        told += hd.come_back(_LOOK_S_MIN if estimate is None else estimate.p50_s)
    if hd.prefers_async(headers):
        told.append((b"preference-applied", b"respond-async"))
    return told
