"""A simulated disk with a store on it: what is asked for is kept from its commit on, and not before.

The store outlives the gateway's process. A crash loses what is not committed; of a commit that was under way nobody knows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

from qlm_core.batches import BatchStatus, Unrun
from qlm_core.ledger import EndRecord
from qlm_core.model import BatchId, Phase, RequestId
from qlm_core.outcome import ShedReason
from qlm_core.sim.faults.process import Process
from qlm_core.sim.faults.schedule import Ask, BatchAsk
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


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredBatch:
    """A batch: what was asked for, and where it stands.

    Attributes:
        due_at: by the store's clock, which no jump of the wall clock moves.
        accepted: whether its lines are known. released: of each model how many were at least.
        completed, failed: lines in its files, once it is over.
    """

    id: BatchId
    ask: BatchAsk
    due_at: float
    status: BatchStatus = BatchStatus.VALIDATING
    accepted: bool = False
    released: tuple[int, ...] = ()
    unrun: Unrun | None = None
    completed: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredLine:
    """The result of a line of a batch, by the request that it was; without an answer it failed."""

    batch: BatchId
    line: int
    request: RequestId
    answer: Text | None

    @property
    def id(self) -> str:
        """What it is called."""
        return f"{self.batch}/{self.line}"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFiles:
    """The output and the error file of a batch, by the numbers of their lines."""

    batch: BatchId
    output: tuple[int, ...]
    errors: tuple[int, ...]

    @property
    def id(self) -> str:
        """What they are called."""
        return f"{self.batch}/files"


Stored = StoredRequest | StoredEnd | StoredBatch | StoredLine | StoredFiles


@dataclass(slots=True)
class _Write:
    """What waits for the next commit, and who is told of it; None for a failure."""

    what: Stored
    told: Callable[[RequestId | None], None]
    life: int


class Store:
    """Requests and ends by id, keys, batches with their results and files, and how often it was opened.

    Attributes:
        full, torn, slow: what faults have done to it.
    """

    def __init__(self, process: Process, rng: Random):
        self.requests: dict[RequestId, StoredRequest] = {}
        self.ends: dict[RequestId, StoredEnd] = {}
        self.keys: dict[str, RequestId] = {}
        self.batches: dict[BatchId, StoredBatch] = {}
        self.lines: dict[BatchId, dict[int, StoredLine]] = {}
        self.files: dict[BatchId, StoredFiles] = {}
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

    def write(self, what: Stored, told: Callable[[RequestId | None], None]) -> None:
        """Keep something; `told` hears the id that is kept, or None for a failure, once that is settled."""
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

    def _keep(self, what: Stored) -> RequestId:
        if isinstance(what, StoredBatch | StoredLine | StoredFiles):
            self._keep_of_batch(what)
            return RequestId(what.id)
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

    def _keep_of_batch(self, what: StoredBatch | StoredLine | StoredFiles) -> None:
        """A line has one result, and what is a file already stays it."""
        if isinstance(what, StoredBatch):
            self.batches[what.id] = what
        elif isinstance(what, StoredLine):
            self.lines.setdefault(what.batch, {}).setdefault(what.line, what)
        else:
            self.files.setdefault(what.batch, what)

    def _free_key(self, end: StoredEnd) -> None:
        key = self.requests[end.id].ask.key
        freed = end.record.phase is Phase.SHED and end.record.reason in _COME_BACK
        if freed and self.keys.get(key) == end.id:
            del self.keys[key]
