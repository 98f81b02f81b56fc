"""When those are to come back for whom there is no room now, so that it is true for those who do.

Whoever is refused gets a turn: an instant at which there will be room, as far as requests of its kind end at the pace of
late. Turns follow each other at that pace, so under lasting overload each one lies later than the one before. Whoever
comes back for a turn that is due goes before newcomers, for whom so much is left as those who are due now will probably not
take. Not all come back: turns are given out more densely by the share that is not taken, and one that nobody takes is void
after a while.
"""

from __future__ import annotations

from collections import deque

# A turn may be taken so much before it is due, is kept free so long after, and may be taken until so long after, with a
# share of the time that was told.
_EARLY_S = 0.5
_KEPT_S = 2.0
_GRACE_S = 5.0
_GRACE_SHARE = 0.25
# The same request again after so long is the same client, who asks too early; within it, another one with the same words.
_AGAIN_S = 0.5
_RETRY_S_MIN = 1.0
_RETRY_S_MAX = 3600.0
# Without an end to go by, requests are taken to end once in this time.
_PACE_S = 1.0
# How many ends tell the pace, how old they may be where there are more than a few, and how much of what is known of the share
# of turns that are taken is left after one more.
_ENDS = 64
_ENDS_MIN = 8
_ENDS_S_MAX = 60.0
_MEMORY = 0.98
_TAKEN_MIN = 0.05
_TURNS_MAX = 100_000


class _Turn:
    """What one refused client was told.

    Attributes:
        ready: whether it may be taken. kept: whether it is kept free. taken: whether it was.
    """

    __slots__ = ("due_s", "kept", "key", "ready", "taken", "told_s")

    def __init__(self, key: int, told_s: float, due_s: float) -> None:
        self.key = key
        self.told_s = told_s
        self.due_s = due_s
        self.ready = self.kept = self.taken = False

    @property
    def void_s(self) -> float:
        """Until when it is kept."""
        return self.due_s + _GRACE_S + _GRACE_SHARE * (self.due_s - self.told_s)


class Waitlist:
    """Turns of one kind of request. Keys tell requests apart; instants are of one clock that never goes back."""

    def __init__(self) -> None:
        self._later: deque[_Turn] = deque()
        self._kept: deque[_Turn] = deque()
        self._stale: deque[_Turn] = deque()
        self._of_key: dict[int, deque[_Turn]] = {}
        self._due = 0
        self._last_s = float("-inf")
        self._ends: deque[float] = deque(maxlen=_ENDS)
        self._taken, self._void = 1.0, 0.0
        # Since when there have been turns to wait for, and how many came in meanwhile.
        self._pressed_s = 0.0
        self._passed = 0.0

    def __len__(self) -> int:
        """Turns that may still be taken."""
        return sum(map(len, self._of_key.values()))

    def ended(self, now_s: float) -> None:
        """A request of this kind is over, and so makes room."""
        self._ends.append(now_s)

    def admits(self, key: int, free: int, now_s: float) -> bool:
        """Whether a request may come in where there is room for so many; its turn is taken then."""
        self._advance(now_s)
        if free < 1:
            return False
        turns = self._of_key.get(key)
        if turns and turns[0].ready:
            self._passed += 1.0
            turns[0].taken = True
            self._due -= turns[0].kept
            self._leave(turns[0])
            self._taken, self._void = _MEMORY * self._taken + 1.0, _MEMORY * self._void
            return True
        if free <= self._due * self._share_taken:
            return False
        self._passed += 1.0
        return True

    def refuse(self, key: int, now_s: float, *, in_s: float = 0.0) -> float:
        """In how many seconds a request is to come back, at least `in_s`.

        Args:
            in_s: above 0 for one that was admitted and then found to be late.
        """
        self._advance(now_s)
        if not self._of_key:
            self._pressed_s, self._passed = now_s, 0.0
        elif in_s:
            self._passed = max(0.0, self._passed - 1.0)
        turns = self._of_key.get(key)
        if turns and not turns[-1].ready and now_s - turns[-1].told_s > _AGAIN_S:
            return max(_RETRY_S_MIN, turns[0].due_s - now_s)
        pace_s = self._pace_s(now_s)
        due_s = max(now_s + max(in_s, pace_s), self._last_s + pace_s * self._share_taken)
        # What cannot be told any more is no turn.
        due_s = min(due_s, now_s + _RETRY_S_MAX)
        told_s = max(_RETRY_S_MIN, due_s - now_s)
        if len(self._later) < _TURNS_MAX:
            self._last_s = due_s
            turn = _Turn(key, now_s, now_s + told_s)
            self._later.append(turn)
            self._of_key.setdefault(key, deque()).append(turn)
        return told_s

    def _pace_s(self, now_s: float) -> float:
        """Seconds from one end to the next, of late, or from one that comes in to the next where others take the room."""
        if now_s - self._pressed_s > _ENDS_S_MAX:
            self._pressed_s, self._passed = 0.5 * (now_s + self._pressed_s), 0.5 * self._passed
        in_s = (now_s - self._pressed_s) / (self._passed + 1.0)
        ends = self._ends
        while len(ends) > _ENDS_MIN and now_s - ends[0] > _ENDS_S_MAX:
            ends.popleft()
        return max(in_s, (now_s - ends[0]) / len(ends) if ends else _PACE_S)

    @property
    def _share_taken(self) -> float:
        return max(_TAKEN_MIN, self._taken / (self._taken + self._void))

    def _advance(self, now_s: float) -> None:
        while self._later and self._later[0].due_s <= now_s + _EARLY_S:
            turn = self._later.popleft()
            turn.ready = turn.kept = True
            self._kept.append(turn)
            self._due += 1
        while self._kept and self._kept[0].due_s + _KEPT_S <= now_s:
            turn = self._kept.popleft()
            if not turn.taken:
                turn.kept = False
                self._stale.append(turn)
                self._due -= 1
        while self._stale and (self._stale[0].taken or self._stale[0].void_s <= now_s):
            turn = self._stale.popleft()
            if not turn.taken:
                self._leave(turn)
                self._taken, self._void = _MEMORY * self._taken, _MEMORY * self._void + 1.0

    def _leave(self, turn: _Turn) -> None:
        turns = self._of_key[turn.key]
        turns.remove(turn)
        if not turns:
            del self._of_key[turn.key]
