"""What a caller may see and do with requests that are there. Both front doors come through here, with an id from outside.

Another tenant's request is looked for in vain, in the same places and with the same answer as one that never was.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import takewhile

from gateway.driver import Driver
from gateway.keys import Caller
from gateway.live import Live
from gateway.store import (
    Back,
    Endings,
    Found,
    Most,
    Store,
    StoredEnd,
    StoredRequest,
    owned_key,
)
from qlm_core.errors import NotFound, SetAside
from qlm_core.ledger import EndRecord, Row
from qlm_core.model import Phase, RequestId


class Sight:
    """The requests of one gateway, for who asks."""

    def __init__(self, driver: Driver, store: Store) -> None:
        self._driver = driver
        self._store = store

    def live(self, id: RequestId, caller: Caller) -> Live | None:
        """An open request, or one whose end is being stored."""
        live = self._driver.live(id)
        return live if live is not None and caller.sees(live.request.owner) else None

    def row(self, id: RequestId, caller: Caller) -> Row | None:
        """The ledger's row of an open request; read only, and only until the next event."""
        return None if self.live(id, caller) is None else self._driver.ledger.row(id)

    def newest(self, caller: Caller) -> Iterator[Row]:
        """The rows of open requests, latest submission first; read only, and only until the next event."""
        ledger = self._driver.ledger
        if caller.operator:
            return ledger.newest()
        rows = map(ledger.row, self._driver.tenants.newest(caller.tenant))
        return (row for row in rows if row is not None)

    def watch(self, id: RequestId, caller: Caller) -> Live | None:
        """As `live`, for who is about to show the output to a client."""
        return None if self.live(id, caller) is None else self._driver.watch(id)

    async def ended(self, id: RequestId, caller: Caller) -> tuple[StoredRequest, StoredEnd]:
        """How a stored request ended. Raises NotFound, Unavailable, and SetAside for operators.

        Of what cannot be read nobody knows whose it was.
        """
        try:
            found = await self._store.find(id)
        except SetAside:
            if caller.operator:
                raise
            found = None
        if found is None or found[1] is None or not caller.sees(found[0].owner):
            raise NotFound(f"id: no request {id[:64]!r} is known here")
        return found[0], found[1]

    def remembered(self, id: RequestId, caller: Caller) -> tuple[float, str, EndRecord] | None:
        """When, with which model and how a request ended that is not stored, if it was among the latest."""
        found = self._driver.remembered.find(id)
        return found[1:] if found is not None and caller.sees(found[0]) else None

    async def endings(
        self, caller: Caller, before: tuple[float, str] | None, limit: int
    ) -> Endings:
        """What has ended, as the store's, of what the caller may see. Raises Unavailable."""
        owner = None if caller.operator else caller.tenant
        return await self._store.endings(owner, before, limit)

    async def of_key(self, key: str, caller: Caller) -> RequestId:
        """The request under an idempotency key of the caller's. Raises NotFound, Unavailable."""
        id = await self._store.find_key(owned_key(caller.tenant, key))
        if id is None:
            raise NotFound(f"idempotency_key: no request of yours is known under {key[:64]!r}")
        return id

    async def cancel(self, id: RequestId, caller: Caller) -> Phase:
        """Cancel a request; returns how it ended, now or before. Raises NotFound."""
        if self.live(id, caller) is None:
            return (await self.ended(id, caller))[1].record.phase
        return await self._driver.cancel(id)

    async def chain(self, id: RequestId, caller: Caller, back: Back, most: Most) -> list[Found]:
        """As the store's, until something that is not the caller's. Raises Unavailable."""
        found = await self._store.chain(id, back, most)
        return [*takewhile(lambda one: caller.sees(one.request.owner), found)]

    async def forget(self, id: RequestId, caller: Caller) -> None:
        """Delete a request and its answer, after cancelling it if it is open. Raises NotFound, Unavailable."""
        if self.live(id, caller) is not None:
            await self._driver.cancel(id)
        else:
            await self.ended(id, caller)
        await self._store.forget(id)

    async def settled(self, id: RequestId, caller: Caller) -> None:
        """Wait until an end that is being stored is stored."""
        live = self.live(id, caller)
        if live is not None and live.record is not None:
            await asyncio.shield(live.ended)
