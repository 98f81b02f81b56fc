"""Whether one more request may come in, and when one that may not is to come back.

There are limits on open requests, on the bytes of their bodies and, over HTTP, on connections. The laxer a class, the
sooner it is refused: the last tenth of each limit is for stricter ones, so that a flood of work that can wait keeps nobody
out who cannot. A tenant may have a limit of its own. Who is refused is told when there will be room (`qlm_core.waitlist`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from gateway.budget import Budget
from gateway.intake import Draft
from gateway.store import StoredRequest
from qlm_core.config import Config
from qlm_core.config_doors import EXPLICIT
from qlm_core.errors import QueueFull, ShedLate
from qlm_core.ledger import EndRecord
from qlm_core.model import Estimate, ModelName
from qlm_core.outcome import ShedReason
from qlm_core.waitlist import Waitlist

# The share of each limit that the laxest class leaves to the strictest.
_LEFT_SHARE = 0.1
# The soonest that one comes back of which the solver had too many.
_SATURATED_S = 1.0
# After a request was refused as too late, newcomers of its class stand behind those who were told to come back for so long.
_LATE_S = 10.0


class Seats(NamedTuple):
    """How many of a kind there are, and may be."""

    used: int
    limit: int


class Admission:
    """The limits of one gateway.

    Args:
        served: whether an engine is up that serves a model; None if nobody knows.
        now_s: when the gateway starts.
    """

    def __init__(
        self, config: Config, *, served: Callable[[ModelName], bool | None], now_s: float
    ) -> None:
        limits = config.gateway.limits
        self._served = served
        self._started_s = now_s
        self.bodies = Budget(limits.waiting_bytes_max)
        self._limits = limits
        self._targets_s = [one.ttft_s for one in config.slo_classes.values()]
        self._classes = config.slo_classes
        self._waitlists: dict[str, Waitlist] = {}
        self._own_waitlists: dict[str, Waitlist] = {}
        self._recent_wait_s = 0.0
        self._late_until_s: dict[str, float] = {}

    @property
    def retry_after_s(self) -> float:
        """When to come back for whom there is no turn: after about as long as requests wait at present."""
        return max(1.0, self._recent_wait_s)

    def estimated(self, estimate: Estimate) -> None:
        """A request that has just come will wait so long."""
        self._recent_wait_s += 0.2 * (estimate.mean_s - self._recent_wait_s)

    def admit(
        self,
        draft: Draft,
        *,
        open_requests: int,
        own_requests: int,
        connections: Seats | None,
        now_s: float,
    ) -> None:
        """Whether a request may come in. Raises QueueFull, naming the limit, or ShedLate.

        Args:
            open_requests, own_requests: how many are open, of everybody and of this tenant.
        """
        self._admit_own(draft, own_requests, now_s)
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
        waitlist, key = self._waitlist(draft.slo_class), _key(draft.caller.tenant, draft.body)
        if not waitlist.admits(key, free, now_s):
            retry_after_s = waitlist.refuse(key, now_s)
            if by_limit[scarcest] > 0 and now_s < self._late_until_s.get(draft.slo_class, 0.0):
                raise ShedLate(retry_after_s)
            limit = getattr(self._limits, scarcest)
            raise QueueFull(f"gateway.limits.{scarcest}", limit, retry_after_s)

    def ended(self, request: StoredRequest, record: EndRecord, now_s: float) -> EndRecord:
        """A request is over; returns how, with when to come back where it was shed and that helps.

        One that was shed as late comes back no sooner than the solver says. One that waited in vain for an engine where there
        is none did not wait for others. Of lines their batch knows more.
        """
        own = self._own_waitlists.get(request.owner)
        if own is not None and not request.batch:
            own.ended(now_s)
        waitlist = self._waitlist(request.slo_class)
        late = record.reason == ShedReason.LATE.value
        if late:
            self._late_until_s[request.slo_class] = now_s + _LATE_S
        elif record.reason != ShedReason.SATURATED.value or record.retry_after_s:
            waitlist.ended(now_s)
            return self._unserved(request, record, now_s)
        in_s = record.retry_after_s if late else _SATURATED_S
        told_s = waitlist.refuse(_key(request.owner, request.body), now_s, in_s=in_s)
        return replace(record, retry_after_s=told_s)

    def _unserved(self, request: StoredRequest, record: EndRecord, now_s: float) -> EndRecord:
        waited = record.reason == ShedReason.TTL_EXPIRED.value and record.queue_s is None
        if not waited or request.batch:
            return record
        served = self._served(request.model)
        if served is None:
            # While this gateway was here nobody was; what there was before, it does not know.
            served = record.e2e_s > now_s - self._started_s
        return record if served else replace(record, reason=ShedReason.NO_ENDPOINTS.value)

    def _admit_own(self, draft: Draft, own_requests: int, now_s: float) -> None:
        most, tenant = draft.caller.requests_max, draft.caller.tenant
        if most is None:
            return
        waitlist = self._own_waitlists.setdefault(tenant, Waitlist())
        key = _key(tenant, draft.body)
        if not waitlist.admits(key, most - own_requests, now_s):
            raise QueueFull("open requests of this API key", most, waitlist.refuse(key, now_s))

    def _share(self, ttft_s: float) -> float:
        stricter = sum(target_s < ttft_s for target_s in self._targets_s)
        return 1.0 - _LEFT_SHARE * min(1.0, stricter / max(1, len(self._targets_s) - 1))

    def _waitlist(self, slo_class: str) -> Waitlist:
        name = slo_class if slo_class in self._classes else EXPLICIT
        return self._waitlists.setdefault(name, Waitlist())


def _key(tenant: str, body: bytes) -> int:
    """What tells a refused request apart from others, when it comes back."""
    return hash((tenant, body))
