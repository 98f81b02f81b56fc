"""Streams between processes, and what can happen to them: delay, partitions, half-open links, breaks with loss.

A stream is in order in each direction, as TCP is, and streams overtake each other. What cannot pass waits and is sent again
when it can, if the stream still stands. When a stream breaks what is on its way is lost, and nobody knows how much of it arrived.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from qlm_core.sim.agenda import Agenda
from qlm_core.sim.faults.process import Process

_DELAY_S = (0.0005, 0.004)
_CONNECT_S_MAX = 2.0

Pair = tuple[str, str]


class Closed:
    """The last thing that arrives on a stream."""


_CLOSED = Closed()


class End:
    """A process's end of a stream.

    Attributes:
        on_message, on_end: set by whoever uses it, before anything can arrive.
        sent, taken: messages put in here, and handled here: what is on its way shows in the difference between ends.
    """

    __slots__ = (
        "_stream",
        "life",
        "on_end",
        "on_message",
        "open",
        "process",
        "sent",
        "side",
        "taken",
    )

    def __init__(self, process: Process, stream: Stream, side: int):
        self.process = process
        self.life = process.life
        self.side = side
        self.open = True
        self.sent = self.taken = 0
        self.on_message: Callable[[Any], None] = _nothing
        self.on_end: Callable[[], None] = _nothing
        self._stream = stream

    @property
    def other(self) -> End:
        """The peer's end; for those who watch from outside."""
        return self._stream.ends[1 - self.side]

    def send(self, message: object) -> None:
        """Send a message; nothing happens once this end is closed."""
        if self.open:
            self.sent += 1
            self._stream.carry(self.side, message)

    def close(self) -> None:
        """Hang up: what was sent before arrives, nothing is heard any more."""
        if self.open:
            self.open = False
            self._stream.carry(self.side, _CLOSED)

    def take(self, message: object) -> None:
        """Something has arrived."""
        if not self.open:
            return
        if message is _CLOSED:
            self.open = False
            self.on_end()
        else:
            self.taken += 1
            self.on_message(message)


class Stream:
    """Two ends, and what is on its way between them.

    Attributes:
        ways: from whom to whom messages of each side go; side 0 is who dialled.
        waiting: of each side, what waits for its way to be free.
    """

    def __init__(self, network: Network, processes: tuple[Process, Process]):
        self._network = network
        self.ends = tuple(End(one, self, side) for side, one in enumerate(processes))
        first, second = processes[0].name, processes[1].name
        self.ways: tuple[Pair, Pair] = ((first, second), (second, first))
        self._due_s = [0.0, 0.0]
        self._lost = [0, 0]
        self.waiting: tuple[list[object], list[object]] = ([], [])

    def carry(self, side: int, message: object) -> None:
        """Send a message from that side."""
        network = self._network
        due_s = network.agenda.now_s + network.delay_s(self.ways[side])
        self._due_s[side] = due_s = max(due_s, self._due_s[side])
        network.agenda.at(due_s, self._arrive, side, self._lost[side], message)

    def lose(self, side: int) -> None:
        """What is on its way from that side never arrives."""
        self._lost[side] += 1
        self.waiting[side].clear()

    def release(self, side: int) -> None:
        """What waited for the way to be free arrives."""
        waiting = list(self.waiting[side])
        self.waiting[side].clear()
        for message in waiting:
            self._hand_over(side, message)

    def break_off(self) -> None:
        """What is on its way is lost, and both ends learn that it is over."""
        for side in (0, 1):
            self.lose(side)
        for side, end in enumerate(self.ends):
            if end.open:
                self.carry(1 - side, _CLOSED)

    def _arrive(self, side: int, lost: int, message: object) -> None:
        if lost != self._lost[side]:
            return
        if self._network.is_blocked(self.ways[side]):
            self.waiting[side].append(message)
        else:
            self._hand_over(side, message)

    def _hand_over(self, side: int, message: object) -> None:
        end = self.ends[1 - side]
        process = end.process
        if process.up and process.life == end.life:
            process.tell(end.take, message)
        elif message is not _CLOSED and process.up:
            # The host knows nothing of this stream any more and says so.
            self.carry(1 - side, _CLOSED)


class Network:
    """All streams, and the state of the ways between processes."""

    def __init__(self, agenda: Agenda, rng: Random):
        self.agenda = agenda
        self._rng = rng
        self._processes: dict[str, Process] = {}
        self._streams: list[Stream] = []
        self._blocked: dict[Pair, int] = {}
        self._slow: dict[Pair, float] = {}

    def add(self, process: Process) -> None:
        """Connect a process to the network."""
        self._processes[process.name] = process
        process.on_death = lambda said: self._let_go(process, said=said)

    def dial(
        self, process: Process, name: str, opened: Callable[[End], None], failed: Callable[[], None]
    ) -> None:
        """Open a stream to a process; one of the two is told how that went."""
        delay_s = self.delay_s((process.name, name))
        self.agenda.after(delay_s, self._connect, process, process.life, name, opened, failed)

    def _connect(
        self,
        process: Process,
        life: int,
        name: str,
        opened: Callable[[End], None],
        failed: Callable[[], None],
    ) -> None:
        if process.life != life or not process.up:
            return
        there = self._processes[name]
        pair = process.name, name
        if self.is_blocked(pair) or self.is_blocked((name, process.name)):
            process.after(_CONNECT_S_MAX, failed)
        elif not there.up or there.on_stream is None:
            process.after(self.delay_s(pair), failed)
        else:
            stream = Stream(self, (process, there))
            self._streams = [one for one in self._streams if one.ends[0].open or one.ends[1].open]
            self._streams.append(stream)
            there.tell(there.on_stream, stream.ends[1])
            process.after(self.delay_s(pair), _hand_out, stream.ends[0], opened, failed)

    # ------------------------------------------------------------------ the ways

    def delay_s(self, way: Pair) -> float:
        """How long the next message takes."""
        return self._rng.uniform(*_DELAY_S) * self._slow.get(way, 1.0)

    def is_blocked(self, way: Pair) -> bool:
        """Whether nothing passes from one process to another."""
        return way in self._blocked

    def block(self, way: Pair) -> None:
        """Let nothing pass, for one more reason."""
        self._blocked[way] = self._blocked.get(way, 0) + 1

    def unblock(self, way: Pair) -> None:
        """A reason is gone; with the last, what waited arrives."""
        self._blocked[way] -= 1
        if not self._blocked[way]:
            del self._blocked[way]
            for stream in list(self._streams):
                for side in (0, 1):
                    if stream.ways[side] == way:
                        stream.release(side)

    def slow(self, way: Pair, factor: float) -> None:
        """Messages take so many times as long from now on."""
        self._slow[way] = factor

    def cut(self, one: str, other: str) -> None:
        """Break every stream between two processes."""
        for stream in list(self._streams):
            if (one, other) in stream.ways:
                stream.break_off()

    def _let_go(self, process: Process, *, said: bool) -> None:
        for stream in list(self._streams):
            for side, end in enumerate(stream.ends):
                if end.process is not process:
                    continue
                if self._rng.random() < 0.5:
                    stream.lose(side)
                if said and end.open:
                    stream.carry(side, _CLOSED)
                end.open = False


def _hand_out(end: End, opened: Callable[[End], None], failed: Callable[[], None]) -> None:
    """The stream is there, unless it broke before anybody had it."""
    if end.open:
        opened(end)
    else:
        failed()


def _nothing(*_: object) -> None:
    """Nobody listens."""
