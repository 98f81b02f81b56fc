"""An agent's link to one gateway: one stream at a time, dialled again whenever it ends, driven as the daemon's link is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qlm_core.executor import GatewayLost, GatewayUp, Granted
from qlm_core.executor.work_log import Outgoing, WorkLog
from qlm_core.messages import Attempt, Joined, Payload, Refused, Revoked, WorkHello, WorkOrder
from qlm_core.model import GatewayId, RequestId
from qlm_core.sim.faults.network import End
from qlm_core.sim.faults.sessions import Backoff, Session

if TYPE_CHECKING:
    from qlm_core.sim.faults.agent_part import AgentPart

EVENTS_MAX = 300
KEPT_BYTES_MAX = 20_000
GRACE_S = 8.0


@dataclass(slots=True, eq=False)
class Run:
    """An attempt on the engine, and where its output goes."""

    id: RequestId
    attempt: int
    link: GatewayLink


class GatewayLink:
    """Talks to one gateway until it is abandoned.

    Attributes:
        log: what is owed it.
        connected: it has answered the hello of the stream that stands.
        away: it has been away for longer than its grace, or was never reached.
    """

    def __init__(self, gateway: GatewayId, agent: AgentPart) -> None:
        self.gateway = gateway
        self.connected = False
        self.away = True
        self.log = WorkLog(kept_bytes_max=KEPT_BYTES_MAX, events_max=EVENTS_MAX)
        self._agent = agent
        self._process = agent.process
        self._session: Session | None = None
        self._losses = 0
        self._closed = False
        self._backoff = Backoff(agent.process, agent.rng)
        self._dial()

    def put(self, event: Outgoing) -> None:
        """Send an event, in order, when the stream allows."""
        self.log.put(event, now_s=self._process.now_s)
        self._flush()

    def close(self) -> None:
        """Hang up in good order."""
        self._closed = True
        if self._session is not None:
            self._session.close()

    def abandon(self) -> None:
        """Forget the gateway at once."""
        self.close()
        self.connected = False
        if not self.away:
            self._give_up()

    def _dial(self) -> None:
        if not self._closed:
            self._agent.network.dial(self._process, self.gateway, self._open, self._retry)

    def _retry(self) -> None:
        self._backoff.retry(self._dial)

    def _open(self, end: End) -> None:
        if self._closed:
            end.close()
            return
        self._session = Session(end, on_message=self._heard, on_end=self._lost)
        self._session.send([WorkHello(self._agent.id, self.log.hello())])

    def _flush(self) -> None:
        if self._session is None or not self._session.open:
            return
        if self.log.full:
            self._session.part()
            return
        events = self.log.take()
        if events:
            self._session.send(events)

    def _heard(self, orders: list[WorkOrder]) -> None:
        for order in orders:
            self._obey(order)

    def _obey(self, order: WorkOrder) -> None:
        match order:
            case Joined(going_on):
                self._joined(going_on)
            case Payload():
                self.log.begin(order.id, order.attempt, continued=order.produced_tokens > 0)
                evictable = self._agent.engine.evictable(order)
                self._agent.post(Granted(self.gateway, order, evictable))
            case Revoked(id, attempt):
                self.log.forget(id, attempt)
                self._agent.post(order)
            case Refused():
                self._agent.post(order)

    def _joined(self, going_on: Sequence[Attempt]) -> None:
        self._losses += 1
        self._backoff.reset()
        self.connected = True
        self.away = False
        self.log.welcome(going_on)
        self._flush()
        self._agent.post(GatewayUp(self.gateway))

    def _lost(self) -> None:
        self._session = None
        if self.connected:
            self.connected = False
            self._agent.post(GatewayLost(self.gateway))
            self._losses += 1
            self._wait_for(self._losses, self._agent.awake_s() + GRACE_S)
        if not self._closed:
            self._retry()

    def _wait_for(self, loss: int, until_awake_s: float) -> None:
        """Give the gateway until then to come back, in time that this process is awake."""
        if loss != self._losses or self._closed:
            return
        left_s = until_awake_s - self._agent.awake_s()
        if left_s > 0.0:
            self._process.after(left_s, self._wait_for, loss, until_awake_s)
            return
        self.away = True
        self._give_up()
        self._agent.arrange()

    def _give_up(self) -> None:
        """Forget the gateway's attempts: nobody can take their output."""
        self._agent.post(GatewayLost(self.gateway, forget=True))
        self.log.clear()
