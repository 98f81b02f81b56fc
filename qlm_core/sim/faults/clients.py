"""The clients: each asks once, by one stream at a time, and comes back for what was promised to outlive a stream.

A client of a durable request that hears nothing submits again under its key, or gives up if it has none: it cannot know. Once it
has an id it follows that id until the end, however often its stream breaks.
"""

from __future__ import annotations

from random import Random

from qlm_core.model import RequestId
from qlm_core.sim.faults.checkers import Checkers
from qlm_core.sim.faults.network import End, Network
from qlm_core.sim.faults.process import Process
from qlm_core.sim.faults.schedule import Ask
from qlm_core.sim.faults.sessions import Backoff
from qlm_core.sim.faults.tokens import Text
from qlm_core.sim.faults.wishes import (
    Accepted,
    CancelRequest,
    Denied,
    Over,
    Refusal,
    Reply,
    Shown,
    SubmitAsk,
    WatchOutput,
)

_PULSE_S = 2.0
"""How often a client's host asks whether the other still knows of its stream."""
_PATIENCE_S = 4.0
"""A client that waits for an acknowledgement hangs up after this and asks again."""
_BACK_AFTER_S = (0.5, 5.0)
"""Who does not watch comes back for the answer after some such time."""


class Client:
    """One client.

    Attributes:
        done: it wants nothing more.
    """

    def __init__(
        self, ask: Ask, process: Process, network: Network, rng: Random, checkers: Checkers
    ):
        self.ask = ask
        self.done = False
        self.id: RequestId | None = None
        self._process = process
        self._network = network
        self._checkers = checkers
        self._end: End | None = None
        self._text = Text()
        self._rng = rng
        self._backoff = Backoff(process, rng)
        self._cancels = False
        process.at(ask.at_s, self._begin)

    def _begin(self) -> None:
        self._dial()
        if self.ask.leave_after_s:
            self._process.after(self.ask.leave_after_s, self._leave)
        if self.ask.cancel_after_s:
            self._process.after(self.ask.cancel_after_s, self._cancel)

    def _dial(self) -> None:
        if not self.done:
            self._network.dial(self._process, self.ask.gateway, self._opened, self._failed)

    def _failed(self) -> None:
        if not self.done:
            self._backoff.retry(self._dial)

    def _opened(self, end: End) -> None:
        if self.done:
            end.close()
            return
        self._end = end
        end.on_message = lambda reply: self._hear(end, reply)
        end.on_end = lambda: self._broken(end)
        self._text = Text()
        if self.id is None:
            end.send(SubmitAsk(self.ask))
            self._process.after(_PATIENCE_S, self._lose_patience, end)
        else:
            end.send(WatchOutput(self.id))
            if self._cancels:
                end.send(CancelRequest(self.id))
        self._process.after(_PULSE_S, self._pulse, end)

    def _pulse(self, end: End) -> None:
        if end.open and not self.done:
            end.send(None)
            self._process.after(_PULSE_S, self._pulse, end)

    def _lose_patience(self, end: End) -> None:
        if self.id is None and not self.done and end.open:
            end.close()
            self._broken(end)

    def _hear(self, end: End, reply: Reply) -> None:
        self._backoff.reset()
        match reply:
            case Accepted(id):
                self.id = id
                self._checkers.client_accepted(self.ask, id)
                if self._cancels:
                    end.send(CancelRequest(id))
                if self.ask.durable and not self.ask.watched:
                    end.close()
                    self._process.after(self._rng.uniform(*_BACK_AFTER_S), self._dial)
            case Denied(refusal):
                self._denied(end, refusal)
            case Shown(span):
                self._text.add(span)
                self._checkers.client_sees(self.ask, self.id, self._text)
            case Over(id, record, answer):
                self._checkers.client_told(self.ask, id, record, answer, self._text)
                self._finish(end)

    def _denied(self, end: End, refusal: Refusal) -> None:
        if refusal is Refusal.UNAVAILABLE:
            end.close()
            self._failed()
            return
        self._checkers.client_denied(self.ask, self.id, refusal)
        self._finish(end)

    def _broken(self, end: End) -> None:
        if end is not self._end or self.done:
            return
        self._end = None
        if not self.ask.durable or (self.id is None and not self.ask.key):
            # What it asked for may go on or not; it cannot ask for it again.
            self.done = True
            return
        self._failed()

    def _leave(self) -> None:
        if self.done:
            return
        self.done = True
        if self._end is not None:
            self._end.close()

    def _cancel(self) -> None:
        self._cancels = True
        if self._end is not None and self._end.open and self.id is not None:
            self._end.send(CancelRequest(self.id))

    def _finish(self, end: End) -> None:
        self.done = True
        end.close()
