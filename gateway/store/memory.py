"""A store that forgets: for benchmarks and tests, with the manners of the durable one."""

from __future__ import annotations

from msgspec.structs import replace

from gateway.store.base import (
    Back,
    Ending,
    Endings,
    Found,
    Kept,
    Most,
    Opened,
    StoredEnd,
    StoredRequest,
)
from gateway.store.clock import Seen
from gateway.store.database import Database, MemoryDatabase, Work
from qlm_core.errors import SetAside
from qlm_core.model import RequestId

# Ended requests beyond this many are dropped, oldest first: memory is the scarcer room.
ENDED_MAX = 20_000


class MemoryStore:
    """Durable for as long as the object lives."""

    def __init__(self, *, ended_max: int = ENDED_MAX) -> None:
        self._ended_max = ended_max
        self._starts = 0
        self._requests: dict[RequestId, StoredRequest] = {}
        self._ends: dict[RequestId, StoredEnd] = {}
        self._keys: dict[str, RequestId] = {}
        self._aside: dict[RequestId, str] = {}
        self._seen: Seen | None = None
        self._database: MemoryDatabase | None = None

    @property
    def rows_aside(self) -> int:
        return len(self._aside)

    @property
    def database(self) -> Database:
        if self._database is None:
            self._database = MemoryDatabase()
        return self._database

    async def open(self) -> Opened:
        self._starts += 1
        return Opened(self._starts, self._seen, self.rows_aside)

    async def add(self, request: StoredRequest) -> Kept:
        key = request.owned_key
        if key and self._keys.setdefault(key, request.id) != request.id:
            earlier = self._requests[self._keys[key]]
            return Kept(earlier.id, earlier.fingerprint)
        self._requests[request.id] = request
        return Kept(request.id, request.fingerprint)

    async def end(self, end: StoredEnd, beside: Work[None] | None = None) -> bool:
        if end.id not in self._requests or end.id in self._ends:
            return False
        if beside is not None:
            await self.database.write(beside)
        self._requests[end.id] = replace(self._requests[end.id], body=b"")
        self._ends[end.id] = end
        if end.frees_key:
            self._free_key(end.id)
        if len(self._ends) > self._ended_max:
            self._forget(next(iter(self._ends)))
        return True

    async def keep(self, request: StoredRequest, end: StoredEnd) -> bool:
        if request.id in self._requests:
            return False
        self._requests[request.id] = request
        return await self.end(end)

    async def open_requests(self) -> list[StoredRequest]:
        waiting = [
            request
            for id, request in self._requests.items()
            if id not in self._ends and id not in self._aside
        ]
        return sorted(waiting, key=lambda request: request.arrived_at)

    async def find(self, id: RequestId) -> Found | None:
        if id in self._aside:
            raise SetAside(id)
        request = self._requests.get(id)
        return None if request is None else Found(request, self._ends.get(id))

    async def chain(self, id: RequestId, back: Back, most: Most) -> list[Found]:
        found: list[Found] = []
        next_id: RequestId | None = id
        size = 0
        while next_id is not None and next_id in self._requests and next_id not in self._aside:
            found.append(Found(self._requests[next_id], self._ends.get(next_id)))
            size += found[-1].kept_bytes
            if len(found) >= most.rows or size >= most.kept_bytes:
                break
            next_id = back(found[-1].request)
        return found

    async def forget(self, id: RequestId) -> bool:
        if id not in self._ends or id in self._aside:
            return False
        self._forget(id)
        return True

    async def find_key(self, owned_key: str) -> RequestId | None:
        return self._keys.get(owned_key)

    async def endings(
        self, owner: str | None, before: tuple[float, str] | None, limit: int
    ) -> Endings:
        ended = sorted(
            (
                Ending(self._requests[id], end.ended_at, end.record)
                for id, end in self._ends.items()
                if owner in (None, self._requests[id].owner)
                and (before is None or (end.ended_at, id) < before)
            ),
            key=lambda ending: (ending.ended_at, ending.request.id),
            reverse=True,
        )
        return Endings(ended[:limit], len(ended) > limit)

    async def set_aside(self, id: RequestId, reason: str) -> None:
        self._aside[id] = reason

    async def note(self, seen: Seen) -> None:
        self._seen = seen

    async def sweep(self, ended_before: float) -> int:
        old = [id for id, end in self._ends.items() if end.ended_at < ended_before]
        for id in old:
            self._forget(id)
        return len(old)

    async def close(self) -> None:
        database, self._database = self._database, None
        if database is not None:
            database.close()

    def _forget(self, id: RequestId) -> None:
        del self._ends[id]
        self._free_key(id)
        del self._requests[id]

    def _free_key(self, id: RequestId) -> None:
        key = self._requests[id].owned_key
        if self._keys.get(key) == id:
            del self._keys[key]
