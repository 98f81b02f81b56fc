"""The clients of batches: each submits one, looks now and then how far it is, and may cancel it.

A client that hears nothing submits its batch again, since nobody can tell it whether there is one; both run then.
"""

from __future__ import annotations

from random import Random

from qlm_core.model import BatchId
from qlm_core.sim.faults.batch_checks import BatchChecks
from qlm_core.sim.faults.network import End, Network
from qlm_core.sim.faults.process import Process
from qlm_core.sim.faults.schedule import BatchAsk
from qlm_core.sim.faults.sessions import Backoff
from qlm_core.sim.faults.wishes import (
    BatchReply,
    BatchSeen,
    BatchTaken,
    CancelBatch,
    Denied,
    LookAtBatch,
    Refusal,
    SubmitBatch,
)

_PATIENCE_S = 4.0
_LOOK_S = (0.5, 3.0)


class BatchClient:
    """One client; each of its calls is a stream of its own.

    Attributes:
        done: it wants nothing more.
    """

    def __init__(
        self, ask: BatchAsk, process: Process, network: Network, rng: Random, checks: BatchChecks
    ):
        self.ask = ask
        self.done = False
        self._id: BatchId | None = None
        self._cancels = False
        self._process = process
        self._network = network
        self._rng = rng
        self._checks = checks
        self._backoff = Backoff(process, rng)
        process.at(ask.at_s, self._dial)
        if ask.cancel_after_s:
            process.at(ask.at_s + ask.cancel_after_s, self._cancel)

    def _dial(self) -> None:
        self._network.dial(self._process, self.ask.gateway, self._opened, self._failed)

    def _failed(self) -> None:
        self._backoff.retry(self._dial)

    def _opened(self, end: End) -> None:
        asked = self._wish()
        end.on_message = lambda reply: self._hear(end, asked, reply)
        end.on_end = self._failed
        end.send(asked)
        self._process.after(_PATIENCE_S, self._lose_patience, end)

    def _wish(self) -> SubmitBatch | LookAtBatch | CancelBatch:
        if self._id is None:
            return SubmitBatch(self.ask)
        return CancelBatch(self._id) if self._cancels else LookAtBatch(self._id)

    def _lose_patience(self, end: End) -> None:
        if end.open:
            end.close()
            self._failed()

    def _hear(self, end: End, asked: object, reply: BatchReply) -> None:
        self._backoff.reset()
        end.close()
        match reply:
            case Denied(Refusal.NOT_FOUND):
                assert self._id is not None
                self._checks.not_found(self._id)
            case Denied():
                self._failed()
                return
            case BatchTaken(id):
                self._id = id
                self._checks.acknowledged(id)
            case BatchSeen(id, status):
                if isinstance(asked, CancelBatch):
                    self._cancels = False
                    self._checks.cancelled(id, status)
                else:
                    self._checks.seen(id, status)
                if status.terminal:
                    self.done = True
                    return
        self._process.after(self._rng.uniform(*_LOOK_S), self._dial)

    def _cancel(self) -> None:
        self._cancels = True
