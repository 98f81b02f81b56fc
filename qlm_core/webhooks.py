"""When receivers of webhooks are told of what has happened, how often that is tried, and when it is given up.

A delivery is one event on its way to one receiver. One that fails is tried again later and later, until three days have passed.
A receiver that fails is let rest: one try at a time, less often each time, until one succeeds. So one that is away is not
flooded, what waits for it is at hand as soon as it is back, and a delivery that always fails does not hold up others.
"""

from __future__ import annotations

import heapq
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

EVENT_TYPES = (
    "batch.completed",
    "batch.failed",
    "batch.expired",
    "batch.cancelled",
    "response.completed",
    "response.failed",
    "response.cancelled",
    "response.incomplete",
)

# From when it was told, so long a delivery is tried.
TRIED_S = 72 * 3600.0
# Between two tries of a delivery: after the first, and at most.
BACKOFF_S, BACKOFF_S_MAX = 5.0, 1800.0
# Deliveries that failed together are tried again within this share of their time, not all at once.
SPREAD = 0.25
# Between two tries of a receiver that fails: after the first, at most, and at most where it says so itself.
PAUSE_S, PAUSE_S_MAX, ASKED_S_MAX = 1.0, 60.0, 3600.0


class Delivery(NamedTuple):
    """One event on its way to one receiver, by their names."""

    event: str
    receiver: str


class Why(StrEnum):
    """Why a delivery is over."""

    DELIVERED = "delivered"
    # Tried for three days.
    EXPIRED = "expired"
    # The oldest of too many.
    CROWDED = "crowded"


# --------------------------------------------------------------------------- events


@dataclass(frozen=True, slots=True)
class Told:
    """A delivery is stored. One that is known already says nothing new.

    Attributes:
        until_s: when it is given up, on the clock of the schedule.
        due_s: when it is to be tried.
        tries: how many have failed, of one that was restored.
    """

    delivery: Delivery
    until_s: float
    due_s: float
    tries: int = 0


@dataclass(frozen=True, slots=True)
class Delivered:
    """A try has succeeded."""

    delivery: Delivery


@dataclass(frozen=True, slots=True)
class Failed:
    """A try has failed; `retry_after_s` is how long the receiver asks for rest."""

    delivery: Delivery
    retry_after_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Woken:
    """It is `wakeup_s`."""


Event = Told | Delivered | Failed | Woken


# --------------------------------------------------------------------------- effects


@dataclass(frozen=True, slots=True)
class Try:
    """Tell the receiver, and say how it went."""

    delivery: Delivery


@dataclass(frozen=True, slots=True)
class Later:
    """Note that so many tries have failed, and when the next is due."""

    delivery: Delivery
    tries: int
    due_s: float


@dataclass(frozen=True, slots=True)
class Drop:
    """Forget a delivery."""

    delivery: Delivery
    why: Why


Effect = Try | Later | Drop


# --------------------------------------------------------------------------- the schedule


class _Waiting:
    """A delivery that is not over. `turn` is the number of its entry in the queue, 0 while it is tried."""

    __slots__ = ("delivery", "due_s", "tries", "turn", "until_s")

    def __init__(self, told: Told) -> None:
        self.delivery = told.delivery
        self.until_s = told.until_s
        self.due_s = told.due_s
        self.tries = told.tries
        self.turn = 0


class _Receiver:
    """A receiver and what waits for it, the oldest first.

    Attributes:
        queue: when what is due, with the turn and the event.
        tried: how many are tried now.
        pause_s, rest_until_s: since it fails, between two tries, and until the next one; 0 if it does not.
    """

    __slots__ = ("pause_s", "queue", "rest_until_s", "tried", "waiting")

    def __init__(self) -> None:
        self.waiting: dict[str, _Waiting] = {}
        self.queue: list[tuple[float, int, str]] = []
        self.tried = 0
        self.pause_s = self.rest_until_s = 0.0

    def first(self) -> _Waiting | None:
        """What is to be tried next."""
        while self.queue:
            _, turn, event = self.queue[0]
            waiting = self.waiting.get(event)
            if waiting is not None and waiting.turn == turn:
                return waiting
            heapq.heappop(self.queue)
        return None

    def resting(self) -> Iterator[_Waiting]:
        """What is not tried now."""
        return (waiting for waiting in self.waiting.values() if waiting.turn)


class Schedule:
    """All deliveries of one gateway that are not over.

    Args:
        tries_max: so many are tried at a time, of one receiver.
        waiting_max: so many wait at most, of one receiver.
    """

    def __init__(self, *, tries_max: int, waiting_max: int) -> None:
        self._tries_max = tries_max
        self._waiting_max = waiting_max
        self._receivers: dict[str, _Receiver] = {}
        self._turns = 0
        self._now_s = float("-inf")
        self._handlers: dict[type, Callable[[Any], Iterator[Effect]]] = {
            Told: self._told,
            Delivered: self._delivered,
            Failed: self._failed,
            Woken: self._woken,
        }

    def handle(self, event: Event, *, now_s: float) -> list[Effect]:
        """Take one event to completion and say what to do, in order. Time never goes back."""
        assert now_s >= self._now_s, f"time went back from {self._now_s} to {now_s}"
        self._now_s = now_s
        return list(self._handlers[type(event)](event))

    @property
    def wakeup_s(self) -> float | None:
        """When to send `Woken`, if ever."""
        times = []
        for receiver in self._receivers.values():
            first = receiver.first()
            if first is not None and receiver.tried < self._room(receiver):
                times.append(max(first.due_s, receiver.rest_until_s))
            oldest = next(receiver.resting(), None)
            if oldest is not None:
                times.append(oldest.until_s)
        return min(times, default=None)

    def waiting(self, receiver: str) -> int:
        """How many deliveries of a receiver are not over."""
        known = self._receivers.get(receiver)
        return 0 if known is None else len(known.waiting)

    def failing(self, receiver: str) -> bool:
        """Whether the last try of a receiver failed."""
        known = self._receivers.get(receiver)
        return known is not None and known.pause_s > 0

    # ---------------------------------------------------------------- what happens

    def _told(self, event: Told) -> Iterator[Effect]:
        receiver = self._receivers.setdefault(event.delivery.receiver, _Receiver())
        if event.delivery.event in receiver.waiting:
            return
        if len(receiver.waiting) >= self._waiting_max:
            oldest = next(receiver.resting(), None)
            if oldest is not None:
                yield self._over(receiver, oldest, Why.CROWDED)
        waiting = receiver.waiting[event.delivery.event] = _Waiting(event)
        self._queue(receiver, waiting)
        yield from self._advance(receiver)

    def _delivered(self, event: Delivered) -> Iterator[Effect]:
        receiver, waiting = self._tried(event.delivery)
        receiver.pause_s = receiver.rest_until_s = 0.0
        yield self._over(receiver, waiting, Why.DELIVERED)
        yield from self._advance(receiver)

    def _failed(self, event: Failed) -> Iterator[Effect]:
        receiver, waiting = self._tried(event.delivery)
        waiting.tries += 1
        # What was tried before the rest began says no more than what began it.
        if self._now_s >= receiver.rest_until_s:
            receiver.pause_s = min(2 * receiver.pause_s, PAUSE_S_MAX) or PAUSE_S
            receiver.rest_until_s = self._now_s + receiver.pause_s
        asked_s = min(event.retry_after_s, ASKED_S_MAX)
        receiver.rest_until_s = max(receiver.rest_until_s, self._now_s + asked_s)
        if self._now_s >= waiting.until_s:
            yield self._over(receiver, waiting, Why.EXPIRED)
        else:
            waiting.due_s = min(self._now_s + _backoff_s(waiting), waiting.until_s)
            self._queue(receiver, waiting)
            yield Later(waiting.delivery, waiting.tries, waiting.due_s)
        yield from self._advance(receiver)

    def _woken(self, _: Woken) -> Iterator[Effect]:
        for receiver in self._receivers.values():
            yield from self._advance(receiver)

    # ---------------------------------------------------------------- parts

    def _advance(self, receiver: _Receiver) -> Iterator[Effect]:
        """Try what is due and has room; give up what has waited in vain."""
        while receiver.tried < self._room(receiver) and self._now_s >= receiver.rest_until_s:
            first = receiver.first()
            if first is None or first.due_s > self._now_s:
                break
            heapq.heappop(receiver.queue)
            first.turn = 0
            receiver.tried += 1
            yield Try(first.delivery)
        while True:
            oldest = next(receiver.resting(), None)
            if oldest is None or oldest.until_s > self._now_s:
                break
            yield self._over(receiver, oldest, Why.EXPIRED)

    def _room(self, receiver: _Receiver) -> int:
        return 1 if receiver.pause_s else self._tries_max

    def _tried(self, delivery: Delivery) -> tuple[_Receiver, _Waiting]:
        receiver = self._receivers[delivery.receiver]
        waiting = receiver.waiting[delivery.event]
        assert not waiting.turn, f"{delivery} was not tried"
        receiver.tried -= 1
        return receiver, waiting

    def _queue(self, receiver: _Receiver, waiting: _Waiting) -> None:
        self._turns += 1
        waiting.turn = self._turns
        heapq.heappush(receiver.queue, (waiting.due_s, waiting.turn, waiting.delivery.event))

    def _over(self, receiver: _Receiver, waiting: _Waiting, why: Why) -> Drop:
        del receiver.waiting[waiting.delivery.event]
        return Drop(waiting.delivery, why)


def _backoff_s(waiting: _Waiting) -> float:
    """How long a delivery waits after its tries so far; no two the same."""
    doubled: float = BACKOFF_S * 2.0 ** min(waiting.tries - 1, 30)
    chance = zlib.crc32(f"{waiting.tries}{waiting.delivery}".encode()) / 2**32
    return min(doubled, BACKOFF_S_MAX) * (1.0 + SPREAD * chance)
