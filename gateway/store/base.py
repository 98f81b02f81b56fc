"""What a store must do.

A store holds durable requests from their acknowledgement to some time after their end. It decides nothing: an
awaited `add` means that the request survives a crash of this process, an awaited `end` that its one terminal record
does. Times are on the store's own clock (`gateway.store.clock`), which outlives the process and resembles Unix time. What
a store holds and cannot read it sets aside: that is kept as it is, is counted, and never holds up anything else. All
methods are asynchronous so that a store across a network fits the same interface; one gateway id owns the rows that it
added.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol

import msgspec

from gateway.store.clock import Seen
from qlm_core.endpoint import Endpoint
from qlm_core.errors import Unavailable
from qlm_core.ledger import EndRecord
from qlm_core.model import BatchId, GatewayId, ModelName, Phase, RequestId, RequestMeta, Slo
from qlm_core.outcome import ShedReason

if TYPE_CHECKING:
    from gateway.store.database import Database, Work

# Requests that were shed for these reasons are answered with when to come back.
_COME_BACK = (
    ShedReason.SATURATED.value,
    ShedReason.NO_ENDPOINTS.value,
    ShedReason.LATE.value,
)


class StoreError(Unavailable):
    """The store could not do what was asked; nothing of it was done."""


class StoredRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A durable request with everything that is needed to run it again.

    Attributes:
        body: the client's request body; empty once the request has ended.
        arrived_at: seconds of the store's clock.
        expires_at: seconds of the store's clock at which its time to live is over.
        service_tier: what the answer reports as the tier used.
        trace: headers of the client's trace, to be passed on with the request.
        idempotency_key: the client's name for this submission; "" for none.
        owner: the tenant whose request it is, as `gateway.keys` names them; "" is who brings no API key. Stored under
            the name that it had when only idempotency keys were owned.
        fingerprint: a digest of what was asked for; "" where nobody noted it.
        created_unix_s: when it came by the wall clock, whole Unix seconds, as answers tell it; 0 where nobody noted it.
        batch: the batch that it is a line of; "" for a request by itself. Lines are stored with their batch.
        asked: of a request to /v1/responses what is kept of it beside the chat that it became (`gateway.responses.asked`);
            empty for others. It stays when the request has ended.
        kept: whether its end is stored even where the request itself is not.
    """

    id: RequestId
    endpoint: Endpoint
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
    owner: str = msgspec.field(default="", name="key_owner")
    fingerprint: str = ""
    created_unix_s: int = 0
    batch: BatchId = BatchId("")
    asked: bytes = b""
    kept: bool = False

    @property
    def held_bytes(self) -> int:
        """What it takes in memory while it is open."""
        return len(self.body) + len(self.asked)

    @property
    def created(self) -> int:
        """When it came, whole Unix seconds, as answers tell it."""
        return self.created_unix_s or int(self.arrived_at)

    def meta(self, gateway: GatewayId, *, arrival_s: float) -> RequestMeta:
        """What a solver is told of it."""
        return RequestMeta(
            id=self.id,
            gateway=gateway,
            model=self.model,
            slo_class=self.slo_class,
            slo=self.slo,
            prompt_tokens=self.prompt_tokens,
            max_output_tokens=self.max_output_tokens,
            arrival_s=arrival_s,
            tenant=self.tenant,
            batch=self.batch,
        )

    @property
    def owned_key(self) -> str:
        """The idempotency key as the store has it, unique until an end frees it; "" for none."""
        return owned_key(self.owner, self.idempotency_key) if self.idempotency_key else ""


def owned_key(owner: str, key: str) -> str:
    """An idempotency key of somebody's as the store has it."""
    return f"{owner}/{key}"


class Found(NamedTuple):
    """A request that the store has, and how it ended, if it has."""

    request: StoredRequest
    end: StoredEnd | None

    @property
    def kept_bytes(self) -> int:
        """How much is kept of what was asked and answered."""
        return len(self.request.asked) + (0 if self.end is None else len(self.end.answer))


class Most(NamedTuple):
    """How much of a chain is read."""

    rows: int
    kept_bytes: int


Back = Callable[[StoredRequest], RequestId | None]


class Kept(NamedTuple):
    """The request that the store has under a key."""

    id: RequestId
    fingerprint: str


class Opened(NamedTuple):
    """What a store says when it is opened.

    Attributes:
        starts: the number of this start, from 1, one more each time.
        seen: the last instant that was noted before; None in a new store.
        rows_aside: how many rows have been set aside in all.
    """

    starts: int
    seen: Seen | None
    rows_aside: int


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


class Ending(NamedTuple):
    """How a request ended, without its answer.

    Attributes:
        ended_at: seconds of the store's clock.
    """

    request: StoredRequest
    ended_at: float
    record: EndRecord


class Endings(NamedTuple):
    """A part of what has ended, the latest end first; whether there is more."""

    endings: list[Ending]
    more: bool


class Store(Protocol):
    """Durable requests. Every method but `open` and `close` raises StoreError when the store fails."""

    @property
    def rows_aside(self) -> int:
        """How many rows are set aside, as far as is known by now."""

    @property
    def database(self) -> Database:
        """The tables of what is kept beside requests, between `open` and `close`. Raises StoreError elsewhen."""

    async def open(self) -> Opened:
        """Make the store ready. Raises QlmError when it cannot be opened, or when another process has it open."""

    async def add(self, request: StoredRequest) -> Kept:
        """Keep a request, or find the one of the same owner that already has its idempotency key.

        Returns what is stored under the key: the given one, or the earlier.
        """

    async def end(self, end: StoredEnd, beside: Work[None] | None = None) -> bool:
        """Keep a terminal record, drop the body, and free the key where the end says so.

        The request is found by its id as before. False if it is unknown or had ended.

        Args:
            beside: another change, of the tables beside requests: both are made or neither.
        """

    async def keep(self, request: StoredRequest, end: StoredEnd) -> bool:
        """Keep a request that was not stored before, with its end and without its body. False if its id is known."""

    async def open_requests(self) -> list[StoredRequest]:
        """All requests without a terminal record, in order of arrival; those that cannot be read are set aside."""

    async def find(self, id: RequestId) -> Found | None:
        """A request and how it ended, if it is here. Raises SetAside for one that cannot be read."""

    async def find_key(self, owned_key: str) -> RequestId | None:
        """The request that has an idempotency key, as `owned_key` writes it."""

    async def endings(
        self, owner: str | None, before: tuple[float, str] | None, limit: int
    ) -> Endings:
        """Requests that have ended, the latest end first; those that cannot be read are set aside.

        Args:
            owner: whose; None for everybody's.
            before: the end (seconds of the store's clock) and the id of the last one of the part before; None for the first
                part.
            limit: how many at most. There may be fewer although there are more.
        """

    async def chain(self, id: RequestId, back: Back, most: Most) -> list[Found]:
        """A request, and from each found one the one that `back` names, until it names none, one that is not here or
        cannot be read, or until there are so many.

        Args:
            most: nothing is read beyond the row with which either number is reached.
        """

    async def forget(self, id: RequestId) -> bool:
        """Delete a request that has ended; its key is free. False if it is unknown, open or set aside."""

    async def set_aside(self, id: RequestId, reason: str) -> None:
        """Keep a request as it is from now on, to be found by nobody but an operator.

        Args:
            reason: what is wrong with it, without anything of its content.
        """

    async def note(self, seen: Seen) -> None:
        """Keep an instant for the next start."""

    async def sweep(self, ended_before: float) -> int:
        """Delete some of the requests that ended before that time; returns how many."""

    async def close(self) -> None:
        """Finish what was asked for and release everything. Idempotent."""
