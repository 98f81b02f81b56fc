"""Leases: until when a silent peer counts as here.

An agent is renewed by whatever it says, and has little time left once its connection broke. A gateway has a lease only
while it is away: what it holds is kept until then. Nobody is silent while the solver itself sleeps, so leases are
extended by that time.
"""

from __future__ import annotations

from math import inf
from typing import Generic, TypeVar

Peer = TypeVar("Peer", bound=str)

# What a peer is told whose session is ended.
SILENT = "nothing was heard of it for solver.agent_lease_s; join again"
UNKNOWN = "it is not known here; join again"


class Leases(Generic[Peer]):
    """The leases of one kind of peer.

    Attributes:
        next_s: no lease runs out before this; it may be early.
    """

    __slots__ = ("_until_s", "next_s")

    def __init__(self) -> None:
        self._until_s: dict[Peer, float] = {}
        self.next_s = inf

    def renew(self, peer: Peer, until_s: float) -> None:
        """The peer counts as here until then."""
        self._until_s[peer] = until_s
        self.next_s = min(self.next_s, until_s)

    def shorten(self, peer: Peer, until_s: float) -> None:
        """The peer has until then at most."""
        held_s = self._until_s.get(peer)
        if held_s is not None and until_s < held_s:
            self.renew(peer, until_s)

    def release(self, peer: Peer) -> None:
        """The peer has no lease any more."""
        self._until_s.pop(peer, None)

    def extend(self, seconds: float) -> None:
        """Nobody could be heard for so long."""
        self._until_s = {peer: until_s + seconds for peer, until_s in self._until_s.items()}
        self.next_s += seconds

    def expire(self, now_s: float) -> list[Peer]:
        """Those whose lease has run out, in stable order; they have none any more."""
        if now_s < self.next_s:
            return []
        gone = [peer for peer, until_s in self._until_s.items() if until_s <= now_s]
        for peer in gone:
            del self._until_s[peer]
        self.next_s = min(self._until_s.values(), default=inf)
        return gone
