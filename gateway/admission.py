"""Whether one more request may come in, and when one that may not is to come back.

There are limits on open requests, on the bytes of their bodies and, over HTTP, on connections. The laxer a class, the
sooner it is refused: the last tenth of each limit is for stricter ones, so that a flood of work that can wait keeps nobody
out who cannot. Who is refused is told when there will be room (`qlm_core.waitlist`).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

from gateway.budget import Budget
from gateway.intake import Draft
from gateway.store import StoredRequest
from qlm_core.config import Config
from qlm_core.config_doors import EXPLICIT
from qlm_core.errors import QueueFull, ShedLate
from qlm_core.ledger import EndRecord
from qlm_core.outcome import ShedReason
from qlm_core.waitlist import Waitlist

# The share of each limit that the laxest class leaves to the strictest.
_LEFT_SHARE = 0.1
# After a request was refused as too late, newcomers of its class stand behind those who were told to come back for so long.
_LATE_S = 10.0


class Seats(NamedTuple):
    """How many of a kind there are, and may be."""

    used: int
    limit: int


class Admission:
    """The limits of one gateway."""

    def __init__(self, config: Config) -> None:
        limits = config.gateway.limits
        self.bodies = Budget(limits.waiting_bytes_max)
        self._limits = limits
        self._targets_s = [one.ttft_s for one in config.slo_classes.values()]
        self._classes = config.slo_classes
        self._waitlists: dict[str, Waitlist] = {}
        self._late_until_s: dict[str, float] = {}

    def admit(
        self, draft: Draft, *, open_requests: int, connections: Seats | None, now_s: float
    ) -> None:
        """Whether a request may come in. Raises QueueFull, naming the limit, or ShedLate."""
        share = self._share(draft.slo.ttft_s)
        size = draft.held_bytes
        bytes_max = max(self._limits.body_bytes_max, int(share * self.bodies.bytes_max))
        by_limit = {
            "open_requests_max": math.ceil(share * self._limits.open_requests_max) - open_requests,
            "waiting_bytes_max": (bytes_max - self.bodies.used) // max(1, size),
        }
        if connections is not None:
            by_limit["connections_max"] = math.ceil(share * connections.limit) - connections.used
        scarcest = min(by_limit, key=by_limit.__getitem__)
        free = by_limit[scarcest]
        if now_s < self._late_until_s.get(draft.slo_class, 0.0):
            free = min(free, 1)
        waitlist, key = self._waitlist(draft.slo_class), hash((draft.caller.tenant, draft.body))
        if not waitlist.admits(key, free, now_s):
            retry_after_s = waitlist.refuse(key, now_s)
            if by_limit[scarcest] > 0 and now_s < self._late_until_s.get(draft.slo_class, 0.0):
                raise ShedLate(retry_after_s)
            limit = getattr(self._limits, scarcest)
            raise QueueFull(f"gateway.limits.{scarcest}", limit, retry_after_s)

    def ended(self, request: StoredRequest, record: EndRecord, now_s: float) -> EndRecord:
        """A request is over. One that was shed as late is to come back, no sooner than the solver says."""
        waitlist = self._waitlist(request.slo_class)
        if record.reason != ShedReason.LATE.value:
            waitlist.ended(now_s)
            return record
        self._late_until_s[request.slo_class] = now_s + _LATE_S
        key = hash((request.owner, request.body))
        told_s = waitlist.refuse(key, now_s, in_s=record.retry_after_s)
        return replace(record, retry_after_s=told_s)

    def _share(self, ttft_s: float) -> float:
        stricter = sum(target_s < ttft_s for target_s in self._targets_s)
        return 1.0 - _LEFT_SHARE * min(1.0, stricter / max(1, len(self._targets_s) - 1))

    def _waitlist(self, slo_class: str) -> Waitlist:
        name = slo_class if slo_class in self._classes else EXPLICIT
        return self._waitlists.setdefault(name, Waitlist())
