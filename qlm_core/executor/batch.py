"""What an executor has in flight, and the room that leaves: its own count, since an engine's gauges lag.

Room is counted in sequences and in KV-cache tokens. A request is charged its prompt, what it has
produced and a share of what it is still expected to produce, not what it could produce at most; one that outlives its
share is charged as it grows. With the whole of it the cache never overflows but stands partly empty while a batch is young;
with a share, first tokens come earlier, and laxer work gives way when the batch has grown.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from math import inf

from qlm_core.executor.reading import Reading
from qlm_core.executor.states import ATTEMPT_MOVES, AttemptState
from qlm_core.executor.tempo import Tempo
from qlm_core.messages import Payload
from qlm_core.model import ModelName, RequestId, RequestRef, RunningRequest


@dataclass(frozen=True, slots=True)
class Room:
    """Sequences, and tokens in the KV cache."""

    slots: int
    kv_tokens: int

    def __add__(self, other: Room) -> Room:
        return Room(self.slots + other.slots, self.kv_tokens + other.kv_tokens)


NO_ROOM = Room(0, 0)


@dataclass(slots=True, eq=False)
class InFlight:
    """A request between window and end. `produced` counts this attempt's tokens.

    Attributes:
        class_ttft_s: the first-token target of its class: how lax it is.
        slo_class: its class.
        first_token_only: its class promises nothing but a first token.
        pace_s: seconds a token that its class promises; infinite for none.
        charged_tokens: KV tokens that the batch counts for it.
        foreseen_tokens: output that was counted when it was pulled.
        pulled_s: when its payload was asked for.
        evictable: False for a request that could not be continued elsewhere.
        begun_s: when this attempt's first token came.
    """

    ref: RequestRef
    model: ModelName
    slo_class: str
    class_ttft_s: float
    first_token_only: bool
    pace_s: float
    pulled_s: float
    charged_tokens: int
    foreseen_tokens: int
    expected_tokens: int
    state: AttemptState = AttemptState.PULLING
    attempt: int = 0
    produced: int = 0
    evictable: bool = True
    begun_s: float = 0.0
    job: Payload | None = None

    @property
    def begun(self) -> bool:
        """Whether its first token is out, from this attempt or an earlier one."""
        return self.produced > 0 or self.ref.produced_tokens > 0

    @property
    def owes_nothing(self) -> bool:
        """Whether all that was promised of it is out."""
        return self.begun and self.first_token_only

    @property
    def laxity_s(self) -> float:
        """How lax it is: as its class, and without bound once it owes nothing."""
        return inf if self.owes_nothing else self.class_ttft_s

    @property
    def resident_tokens(self) -> int:
        """Tokens in the KV cache if it runs: what an eviction has to compute again."""
        return self.ref.prompt_tokens + self.ref.produced_tokens + self.produced

    @property
    def remaining_tokens(self) -> int:
        """Output still expected: of one that comes near its expectation or is past it, half of that again.

        Long outputs go on for longer than short ones. Were they expected to end soon, room for others would seem near.
        """
        left = max(self.expected_tokens - self.produced, self.expected_tokens // 2)
        limit = self.ref.max_output_tokens - self.ref.produced_tokens - self.produced
        return max(1, min(left, limit))


def stricter(items: Iterable[InFlight], than: InFlight) -> Room:
    """What those of stricter classes than that one's are charged."""
    charges = [item.charged_tokens for item in items if item.class_ttft_s < than.class_ttft_s]
    return Room(len(charges), sum(charges))


def expected_output(ref: RequestRef) -> int:
    """Output tokens that a request is still expected to produce, at least one."""
    return max(1, min(ref.expected_output_tokens, ref.max_output_tokens - ref.produced_tokens))


class Line:
    """How many requests wait for room here, pulling or held, and what they are charged: by the laxity of their class."""

    __slots__ = ("_by_laxity",)

    def __init__(self) -> None:
        self._by_laxity: dict[float, tuple[int, int]] = {}

    def count(self, item: InFlight, sign: int) -> None:
        """One joins (1) or leaves (-1)."""
        many, charged = self._by_laxity.get(item.class_ttft_s, (0, 0))
        many, charged = many + sign, charged + sign * item.charged_tokens
        if many:
            self._by_laxity[item.class_ttft_s] = many, charged
        else:
            del self._by_laxity[item.class_ttft_s]

    def before(self, laxity_s: float) -> tuple[int, int]:
        """Those of no laxer class than that, and their charge."""
        many = charged = 0
        for one_s, (own, tokens) in self._by_laxity.items():
            if one_s <= laxity_s:
                many += own
                charged += tokens
        return many, charged

    @property
    def laxities(self) -> list[float]:
        """Of the classes in it."""
        return list(self._by_laxity)


class Batch:
    """All requests in flight, by state, with their sums.

    Args:
        output_share: share of a request's expected output that is counted when it is pulled.
    """

    def __init__(self, slots: int, kv_tokens: int, *, output_share: float = 1.0) -> None:
        self._slots = slots
        self.tempo = Tempo()
        self.reading = Reading()
        self.kv_tokens = kv_tokens
        self._output_share = output_share
        self.pulling: OrderedDict[RequestId, InFlight] = OrderedDict()
        self.held: OrderedDict[RequestId, InFlight] = OrderedDict()
        self.running: dict[RequestId, InFlight] = {}
        self.line = Line()
        self._charged_ahead = 0
        self._charged_running = 0
        self.resident_tokens = 0

    def __len__(self) -> int:
        return len(self.pulling) + len(self.held) + len(self.running)

    def __contains__(self, id: object) -> bool:
        return id in self.running or id in self.pulling or id in self.held

    def get(self, id: RequestId) -> InFlight | None:
        """A request in flight, whatever its state."""
        return self.running.get(id) or self.held.get(id) or self.pulling.get(id)

    def resize(self, slots: int, kv_tokens: int) -> None:
        """Count room by another model's profile."""
        self._slots, self.kv_tokens = slots, kv_tokens

    @property
    def slots(self) -> int:
        """Sequences that may run: the engine's, or as many as keep everybody's promised pace."""
        return int(min(self._slots, self.tempo.slots(self._charged_running + self._charged_ahead)))

    def _count(self, item: InFlight, sign: int) -> None:
        self.tempo.count(
            sign,
            prompt_tokens=item.ref.prompt_tokens,
            output_tokens=item.expected_tokens,
            pace_s=item.pace_s,
        )

    @property
    def free_tokens(self) -> int:
        """KV tokens not charged to anyone."""
        return self.kv_tokens - self._charged_running - self._charged_ahead

    def foreseen(self, ref: RequestRef) -> int:
        """Output tokens that are counted for a request from the start."""
        return int(self._output_share * expected_output(ref))

    def charge(self, ref: RequestRef) -> int:
        """KV tokens that are counted for a request from the start."""
        return ref.prompt_tokens + ref.produced_tokens + self.foreseen(ref)

    def in_line(self, now_s: float) -> list[InFlight]:
        """Everybody who waits for room here, payload or not, in the order in which they start.

        The strictest class is first, in it who can be in time, and of these who is due first: what was pulled in the order of
        a plan that has changed since holds nobody up.
        """
        return sorted(
            chain(self.held.values(), self.pulling.values()),
            key=lambda item: (
                item.class_ttft_s,
                not self.reading.in_time(item.ref, now_s),
                item.ref.due_s,
            ),
        )

    def room(self, laxity_s: float = -inf) -> tuple[int, int]:
        """Sequences and KV tokens that are free beside what runs, and beside those in line of no laxer class than that."""
        many, charged = self.line.before(laxity_s)
        return (
            self.slots - len(self.running) - many,
            self.kv_tokens - self._charged_running - charged,
        )

    def has_room_for(self, charged_tokens: int, laxity_s: float, spare: Room = NO_ROOM) -> bool:
        """Whether a request of this size and laxity fits and leaves so much to spare. Alone, anything fits."""
        if not len(self):
            return True
        slots, kv_tokens = self.room(laxity_s)
        return slots > spare.slots and charged_tokens + spare.kv_tokens <= kv_tokens

    def can_start(self, item: InFlight, others: Room = NO_ROOM, spare: Room = NO_ROOM) -> bool:
        """Whether a held request fits beside what runs and so much for `others`, and leaves so much to spare."""
        if not self.running and not others.slots:
            return True
        slots, kv_tokens = self.room()
        kept = others + spare
        return slots > kept.slots and item.charged_tokens + kept.kv_tokens <= kv_tokens

    def ask(self, item: InFlight) -> None:
        """Its payload is asked for."""
        self.pulling[item.ref.id] = item
        self.line.count(item, 1)
        self._count(item, 1)
        self._charged_ahead += item.charged_tokens

    def hold(self, item: InFlight, job: Payload) -> None:
        """Its payload has come."""
        self._move(item, AttemptState.HELD)
        del self.pulling[item.ref.id]
        item.job, item.attempt = job, job.attempt
        self.held[item.ref.id] = item

    def start(self, item: InFlight, *, place_s: float, resume_share: float = 1.0) -> Payload:
        """It goes onto the engine.

        Args:
            place_s: what the engine goes by, lower first.
            resume_share: of one that has begun, the share that is computed again.
        """
        self._move(item, AttemptState.RUNNING)
        del self.held[item.ref.id]
        self.line.count(item, -1)
        self._charged_ahead -= item.charged_tokens
        self._charged_running += item.charged_tokens
        self.resident_tokens += item.resident_tokens
        self.running[item.ref.id] = item
        share = resume_share if item.begun else 1.0
        self.reading.begin(item.ref, int(share * item.resident_tokens), place_s)
        job, item.job = item.job, None
        assert job is not None
        return job

    def grow(self, item: InFlight, tokens: int) -> None:
        """A running request has produced so many more tokens."""
        item.produced += tokens
        self.resident_tokens += tokens
        excess = item.produced - item.foreseen_tokens
        if excess > 0:
            grown = min(excess, tokens)
            item.charged_tokens += grown
            self._charged_running += grown

    def leave(self, item: InFlight, state: AttemptState) -> None:
        """It is no longer in flight."""
        before = item.state
        self._move(item, state)
        self._count(item, -1)
        if before is AttemptState.RUNNING:
            del self.running[item.ref.id]
            self.reading.end(item.ref.id)
            self._charged_running -= item.charged_tokens
            self.resident_tokens -= item.resident_tokens
            return
        del (self.pulling if before is AttemptState.PULLING else self.held)[item.ref.id]
        self.line.count(item, -1)
        self._charged_ahead -= item.charged_tokens

    def progress(self) -> tuple[RunningRequest, ...]:
        """What runs, and how far each has come."""
        return tuple(
            [
                RunningRequest(
                    id=item.ref.id,
                    group=item.ref.group,
                    produced_tokens=item.ref.produced_tokens + item.produced,
                )
                for item in self.running.values()
            ]
        )

    def check(self) -> None:
        """Assert what must hold between the sums and the requests. O(n); for tests."""
        ahead = [*self.pulling.values(), *self.held.values()]
        assert self._charged_ahead == sum(item.charged_tokens for item in ahead)
        assert self.line.before(inf) == (len(ahead), self._charged_ahead)
        running = self.running.values()
        assert self._charged_running == sum(item.charged_tokens for item in running)
        assert self.resident_tokens == sum(item.resident_tokens for item in running)
        assert self.reading.check(self.running)
        assert len(self.running) <= self._slots
        assert all(item.state is AttemptState.RUNNING for item in running)

    @staticmethod
    def _move(item: InFlight, state: AttemptState) -> None:
        assert state in ATTEMPT_MOVES[item.state], f"{item.state} cannot become {state}"
        item.state = state
