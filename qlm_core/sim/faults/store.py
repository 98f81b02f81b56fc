"""A simulated disk with a store on it: what is asked for is kept from its commit on, and not before.

The store outlives the gateway's process. A crash loses what is not committed; of a commit that was under way nobody knows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

from qlm_core.ledger import EndRecord
from qlm_core.model import Phase, RequestId
from qlm_core.outcome import ShedReason
from qlm_core.sim.faults.process import Process
from qlm_core.sim.faults.schedule import Ask
from qlm_core.sim.faults.tokens import Text

COMMIT_S = 0.008

# As in the service: a key that was told to come back later may name another submission.
_COME_BACK = (ShedReason.SATURATED.value, ShedReason.NO_ENDPOINTS.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRequest:
    """A durable request. Times are what the wall clock showed."""

    id: RequestId
    ask: Ask
    arrived_at: float
    expires_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEnd:
    """The terminal record of a request and its answer."""

    id: RequestId
    record: EndRecord
    answer: Text


@dataclass(slots=True)
class _Write:
    """What waits for the next commit, and who is told of it; None for a failure."""

    what: StoredRequest | StoredEnd
    told: Callable[[RequestId | None], None]
    life: int


class Store:
    """Requests and ends by id, keys, and how often it was opened.

    Attributes:
        full, torn, slow: what faults have done to it.
    """

    def __init__(self, process: Process, rng: Random):
        self.requests: dict[RequestId, StoredRequest] = {}
        self.ends: dict[RequestId, StoredEnd] = {}
        self.keys: dict[str, RequestId] = {}
        self.full = 0
        self.torn = 0
        self.slow = 1.0
        self._starts = 0
        self._process = process
        self._rng = rng
        self._waiting: list[_Write] = []
        self._committing = False

    def open(self) -> int | None:
        """Begin; the number of this start, from 1, or None if the disk is full."""
        if self.full:
            return None
        self._starts += 1
        return self._starts

    def crash(self) -> None:
        """The gateway dies: of a commit under way it is open whether it was made."""
        waiting, self._waiting, self._committing = self._waiting, [], False
        if waiting and not (self.full or self.torn) and self._rng.random() < 0.5:
            for write in waiting:
                self._keep(write.what)

    def open_requests(self) -> list[StoredRequest]:
        """All requests without an end, in order of arrival."""
        waiting = [request for id, request in self.requests.items() if id not in self.ends]
        return sorted(waiting, key=lambda request: request.arrived_at)

    def write(
        self, what: StoredRequest | StoredEnd, told: Callable[[RequestId | None], None]
    ) -> None:
        """Keep a request or an end; `told` hears the id that is kept, or None for a failure, once that is settled."""
        self._waiting.append(_Write(what, told, self._process.life))
        if not self._committing:
            self._committing = True
            self._process.after(COMMIT_S * self.slow, self._commit)

    def _commit(self) -> None:
        waiting, self._waiting, self._committing = self._waiting, [], False
        failed = self.full or self.torn
        settled = [(write, None if failed else self._keep(write.what)) for write in waiting]
        for write, id in settled:
            write.told(id)

    def _keep(self, what: StoredRequest | StoredEnd) -> RequestId:
        if isinstance(what, StoredEnd):
            if what.id in self.requests and what.id not in self.ends:
                self.ends[what.id] = replace(what)
                self._free_key(what)
            return what.id
        key = what.ask.key
        if key and key in self.keys:
            return self.keys[key]
        self.requests[what.id] = what
        if key:
            self.keys[key] = what.id
        return what.id

    def _free_key(self, end: StoredEnd) -> None:
        key = self.requests[end.id].ask.key
        freed = end.record.phase is Phase.SHED and end.record.reason in _COME_BACK
        if freed and self.keys.get(key) == end.id:
            del self.keys[key]
