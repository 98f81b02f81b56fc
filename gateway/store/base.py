"""What a store must do.

A store holds durable requests from their acknowledgement to some time after their end. It decides nothing: an
awaited `add` means that the request survives a crash of this process, an awaited `end` that its one terminal record
does. Times are Unix seconds, because they outlive the process. All methods are asynchronous so that a store across a
network fits the same interface; one gateway id owns the rows that it added.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import msgspec

from qlm_core.errors import Unavailable
from qlm_core.ledger import EndRecord
from qlm_core.model import ModelName, Phase, RequestId, Slo
from qlm_core.outcome import ShedReason

# Requests that were shed for these reasons are answered with when to come back.
_COME_BACK = (ShedReason.SATURATED.value, ShedReason.NO_INSTANCE.value)


class StoreError(Unavailable):
    """The store could not do what was asked; nothing of it was done."""


class StoredRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A durable request with everything that is needed to run it again.

    Attributes:
        body: the client's request body; empty once the request has ended.
        arrived_at: Unix seconds.
        expires_at: Unix seconds at which its time to live is over.
        service_tier: what the answer reports as the tier used.
        trace: headers of the client's trace, to be passed on with the request.
        idempotency_key: the client's name for this submission; "" for none.
        key_owner: whose name that is, as `gateway.keys` tells them apart; "" is who brings no API key.
        fingerprint: a digest of what was asked for; "" where nobody noted it.
    """

    id: RequestId
    chat: bool
    model: ModelName
    slo_class: str
    slo: Slo
    prompt_tokens: int
    max_output_tokens: int
    tenant: str
    service_tier: str
    body: bytes
    arrived_at: float
    expires_at: float
    trace: tuple[tuple[str, str], ...] = ()
    idempotency_key: str = ""
    key_owner: str = ""
    fingerprint: str = ""

    @property
    def owned_key(self) -> str:
        """The idempotency key as the store has it, unique until an end frees it; "" for none."""
        return f"{self.key_owner}/{self.idempotency_key}" if self.idempotency_key else ""


class Kept(NamedTuple):
    """The request that the store has under a key."""

    id: RequestId
    fingerprint: str


class StoredEnd(msgspec.Struct, frozen=True, kw_only=True):
    """The terminal record of a request, and its answer as an OpenAI response object in JSON."""

    id: RequestId
    ended_at: float
    record: EndRecord
    answer: bytes

    @property
    def frees_key(self) -> bool:
        """Whether the request's idempotency key may name another submission from now on.

        The client was told to try again later; a key that kept this end would tell it so for as long as ends are kept.
        """
        return self.record.phase is Phase.SHED and self.record.reason in _COME_BACK


class Store(Protocol):
    """Durable requests. Every method but `open` raises StoreError when the store fails."""

    async def open(self) -> int:
        """Make the store ready and return the number of this start, from 1, one more each time.

        Raises QlmError when it cannot be opened, or when another process has it open.
        """

    async def add(self, request: StoredRequest) -> Kept:
        """Keep a request, or find the one of the same owner that already has its idempotency key.

        Returns what is stored under the key: the given one, or the earlier.
        """

    async def end(self, end: StoredEnd) -> bool:
        """Keep a terminal record, drop the body, and free the key where the end says so.

        The request is found by its id as before. False if it is unknown or had ended.
        """

    async def open_requests(self) -> list[StoredRequest]:
        """All requests without a terminal record, in order of arrival."""

    async def find(self, id: RequestId) -> tuple[StoredRequest, StoredEnd | None] | None:
        """A request and how it ended, if it is here."""

    async def sweep(self, ended_before: float) -> int:
        """Delete some of the requests that ended before that time; returns how many."""

    async def close(self) -> None:
        """Finish what was asked for and release everything. Idempotent."""
