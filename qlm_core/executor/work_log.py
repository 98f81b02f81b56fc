"""What an agent owes one gateway: the output and the ends of its attempts, until the gateway has them.

Nobody knows how much of what was written to a broken stream has arrived. So the chunks of an attempt are kept until it has
ended and a while longer, and after each hello the gateway says where it stands: from there everything is sent again, in
order. What is kept has a limit in bytes; beyond it the chunks that were written longest ago are let go, and an attempt
whose gateway lacks them cannot go on.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from qlm_core.messages import (
    Alive,
    Attempt,
    AttemptEnded,
    AttemptReturned,
    Chunk,
    Pull,
    ReturnReason,
)
from qlm_core.model import RequestId

End = AttemptEnded | AttemptReturned
Outgoing = Chunk | Pull | End | Alive
Key = tuple[RequestId, int]

ENDED_KEPT_S = 10.0
"""An end that was written longer ago has arrived, or its stream was found broken."""
ENDED_KEPT_MAX = 2048

_GIVEN_UP = "its agent gave it up while the gateway was away"

# More than a chunk takes in memory beside its data.
_CHUNK_BYTES = 256


@dataclass(slots=True, eq=False)
class _Kept:
    """One attempt's output from its chunk number `first` on, and its end."""

    continued: bool = False
    first: int = 0
    chunks: list[Chunk] = field(default_factory=list)
    size_bytes: int = 0
    end: End | None = None
    ended_s: float = 0.0

    @property
    def total(self) -> int:
        """How many chunks there have been."""
        return self.first + len(self.chunks)


class WorkLog:
    """What is to be sent to one gateway, and what may have to be sent again.

    Args:
        kept_bytes_max: limit of the output that is kept; each chunk counts with what it takes in memory.
        events_max: limit of what waits to be sent.

    Attributes:
        full: more than `events_max` wait, since they are written too slowly; a new stream begins from what is kept.
        joined: whether the gateway has answered the last hello. Before that nothing is to be sent.
    """

    def __init__(self, *, kept_bytes_max: int, events_max: int) -> None:
        self.full = False
        self.joined = False
        self._kept_bytes_max = kept_bytes_max
        self._events_max = events_max
        self._kept: dict[Key, _Kept] = {}
        self._ended: dict[Key, _Kept] = {}
        self._kept_bytes = 0
        self._waiting: list[Outgoing] = []

    def __len__(self) -> int:
        """Events that wait to be sent."""
        return len(self._waiting)

    def begin(self, id: RequestId, attempt: int, *, continued: bool) -> None:
        """The gateway has granted an attempt."""
        self._kept[id, attempt] = _Kept(continued=continued)

    def put(self, event: Outgoing, *, now_s: float) -> None:
        """Have an event sent, in order."""
        if isinstance(event, Chunk):
            self._keep(event)
        elif isinstance(event, AttemptEnded | AttemptReturned):
            self._close(event, now_s)
        if not self.joined:
            return
        if len(self._waiting) < self._events_max:
            self._waiting.append(event)
        else:
            self.full = True

    def forget(self, id: RequestId, attempt: int) -> None:
        """Its gateway does not want the attempt any more."""
        for attempts in (self._kept, self._ended):
            kept = attempts.pop((id, attempt), None)
            if kept is not None:
                self._kept_bytes -= kept.size_bytes

    def take(self) -> list[Outgoing]:
        """All that is to be sent now, in order."""
        taken, self._waiting = self._waiting, []
        return taken

    def hello(self) -> tuple[Attempt, ...]:
        """What a new stream begins with: all attempts that the gateway may not have to the end."""
        self.joined = self.full = False
        self._waiting = []
        return tuple(
            Attempt(id, attempt, kept.total, kept.first, kept.continued)
            for (id, attempt), kept in (*self._kept.items(), *self._ended.items())
        )

    def welcome(self, going_on: Iterable[Attempt]) -> None:
        """The gateway says where it stands: from there all is to be sent again, and nothing of other attempts.

        What the hello named may have been given up since, or output let go that the gateway lacks: then it is told, or it would
        take the attempt for running for ever.
        """
        self.joined = True
        for run in going_on:
            key = run.id, run.attempt
            kept = self._kept.get(key) or self._ended.get(key)
            if kept is None or run.chunks < kept.first:
                self.forget(*key)
                gone = AttemptReturned(run.id, run.attempt, ReturnReason.ENGINE_LOST, _GIVEN_UP)
                self._waiting.append(gone)
                continue
            self._waiting += kept.chunks[max(0, run.chunks - kept.first) :]
            if kept.end is not None:
                self._waiting.append(kept.end)

    def clear(self) -> None:
        """Nothing is owed any more."""
        self._kept.clear()
        self._ended.clear()
        self._waiting.clear()
        self._kept_bytes = 0

    # ---------------------------------------------------------------- what is kept

    def _keep(self, chunk: Chunk) -> None:
        kept = self._kept.get((chunk.id, chunk.attempt))
        if kept is None:
            return
        size = len(chunk.data) + _CHUNK_BYTES
        kept.chunks.append(chunk)
        kept.size_bytes += size
        self._kept_bytes += size
        if self._kept_bytes > self._kept_bytes_max:
            self._let_go()

    def _close(self, end: End, now_s: float) -> None:
        key = end.id, end.attempt
        kept = self._kept.pop(key, None) or _Kept(first=0)
        kept.end, kept.ended_s = end, now_s
        self._ended[key] = kept
        if self.joined:
            self._drop_old_ends(now_s)

    def _drop_old_ends(self, now_s: float) -> None:
        """Ends have arrived after a while; not while the gateway is away."""
        for key, kept in list(self._ended.items()):
            if kept.ended_s > now_s - ENDED_KEPT_S and len(self._ended) <= ENDED_KEPT_MAX:
                break
            self._kept_bytes -= kept.size_bytes
            del self._ended[key]

    def _let_go(self) -> None:
        """Let go of the output of whole attempts, those that ended first, then those that began first."""
        for kept in (*self._ended.values(), *self._kept.values()):
            if self._kept_bytes <= self._kept_bytes_max // 2:
                return
            self._kept_bytes -= kept.size_bytes
            kept.first, kept.size_bytes = kept.total, 0
            kept.chunks = []
