"""A gateway's doors: clients, agents, and the session with the solver, as the service has them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qlm_core import ledger as lg
from qlm_core.messages import (
    AttemptEnded,
    AttemptReturned,
    Chunk,
    EstimateGiven,
    GatewayFact,
    GatewayHello,
    GatewayOrder,
    Pull,
    ShedOrder,
    WorkEvent,
    WorkHello,
)
from qlm_core.model import AgentId, BatchId, RequestId
from qlm_core.sim.faults.network import End, Network
from qlm_core.sim.faults.sessions import Backoff, Session
from qlm_core.sim.faults.solver_part import Facts
from qlm_core.sim.faults.wishes import (
    Accepted,
    BatchSeen,
    BatchTaken,
    CancelBatch,
    CancelRequest,
    Denied,
    LookAtBatch,
    Over,
    Refusal,
    Reply,
    Shown,
    SubmitAsk,
    SubmitBatch,
    WatchOutput,
    Wish,
)

if TYPE_CHECKING:
    from qlm_core.sim.faults.gateway_part import GatewayPart, Live
    from qlm_core.sim.faults.store import StoredRequest


class Doors:
    """Everybody who talks to one gateway."""

    def __init__(self, gateway: GatewayPart, network: Network):
        self.gateway = gateway
        self._network = network
        self._process = gateway.process
        self._session: Session | None = None
        self._visits = 0
        gateway.process.on_stream = self._accept
        gateway.tell_solver = self._tell
        gateway.on_start = self._start

    @property
    def in_session(self) -> End | None:
        """The gateway's end of the solver's session, if one is open."""
        session = self._session
        return session.end if session is not None and session.open else None

    # ------------------------------------------------------------------ the solver

    def _start(self) -> None:
        self._session = None
        self._backoff = Backoff(self._process, self.gateway.rng)
        self._dial()

    def _dial(self) -> None:
        self._network.dial(self._process, "solver", self._join, self._redial)

    def _redial(self) -> None:
        self._session = None
        self._backoff.retry(self._dial)

    def _join(self, end: End) -> None:
        self._session = Session(end, on_message=self._obey, on_end=self._redial)
        self._tell(GatewayHello(self.gateway.id, str(self.gateway.id)))
        self.gateway.handle(lg.SolverConnected())
        self.gateway.batches.announce()

    def _tell(self, fact: GatewayFact) -> None:
        if self._session is not None:
            self._session.send(Facts(self._process.now_s, (fact,)))

    def _obey(self, order: GatewayOrder) -> None:
        self._backoff.reset()
        match order:
            case EstimateGiven(id, estimate):
                self.gateway.handle(lg.EstimateCame(id, estimate))
            case ShedOrder(id, reason):
                self.gateway.handle(lg.ShedOrdered(id, reason))

    # ------------------------------------------------------------------ who comes

    def _accept(self, end: End) -> None:
        if end.other.process.name == "clients":
            self._visits += 1
            _Visit(self.gateway, end, self._visits)
        else:
            _WorkStream(self.gateway, end)


class _WorkStream:
    """One agent's stream; a newer one takes the place of the older."""

    def __init__(self, gateway: GatewayPart, end: End):
        self._gateway = gateway
        self._agent: AgentId | None = None
        self._session = Session(end, on_message=self._take, on_end=self._ended)

    def _take(self, events: list[WorkEvent]) -> None:
        for event in events:
            if not self._session.open:
                return
            self._take_one(event)

    def _take_one(self, event: WorkEvent) -> None:
        gateway = self._gateway
        if isinstance(event, WorkHello):
            older = gateway.agents.get(event.agent)
            if older is not None:
                older.close()
                del gateway.agents[event.agent]
                gateway.handle(lg.AgentDisconnected(event.agent))
            self._agent = event.agent
            gateway.agents[event.agent] = self._session
            gateway.handle(lg.AgentConnected(event.agent, event.running))
            return
        agent = self._agent
        assert agent is not None
        match event:
            case Chunk():
                gateway.handle(lg.ChunkCame(agent, event))
            case Pull(ids):
                gateway.handle(lg.PullAsked(agent, ids))
            case AttemptEnded():
                gateway.handle(lg.AttemptFinished(agent, event))
            case AttemptReturned():
                gateway.handle(lg.AttemptCameBack(agent, event))

    def _ended(self) -> None:
        agent, gateway = self._agent, self._gateway
        if agent is not None and gateway.agents.get(agent) is self._session:
            del gateway.agents[agent]
            gateway.handle(lg.AgentDisconnected(agent))


class _Visit:
    """One client's stream. Who hangs up gives up what lives in memory only."""

    def __init__(self, gateway: GatewayPart, end: End, number: int):
        self._gateway = gateway
        self._end = end
        self._number = number
        self._mine: Live | None = None
        end.on_message = self._take
        end.on_end = self._left

    def _take(self, wish: Wish | None) -> None:
        match wish:
            case SubmitAsk(ask) if ask.durable:
                request = self._gateway.request(ask)
                self._gateway.store.write(request, lambda id: self._kept(request, id))
            case SubmitAsk(ask):
                request = self._gateway.request(ask)
                live = self._gateway.enter(request, durable=False, watched=True)
                self._gateway.checkers.acknowledged(request, durable=False)
                self._say(Accepted(request.id))
                self._follow(live)
            case WatchOutput(id):
                self._watch(id)
            case CancelRequest(id):
                self._gateway.handle(lg.CancelAsked(id))
            case SubmitBatch(asked):
                self._gateway.batches.create(asked, self._batch_taken)
            case LookAtBatch(batch):
                self._show_batch(batch)
            case CancelBatch(batch):
                self._gateway.batches.cancel(batch, lambda: self._show_batch(batch))

    def _batch_taken(self, id: BatchId | None) -> None:
        self._say(Denied(Refusal.UNAVAILABLE) if id is None else BatchTaken(id))

    def _show_batch(self, id: BatchId) -> None:
        status = self._gateway.batches.status(id)
        self._say(Denied(Refusal.NOT_FOUND) if status is None else BatchSeen(id, status))

    def _kept(self, request: StoredRequest, id: RequestId | None) -> None:
        """The store has settled a submission; a stored request gets into the ledger whether or not its client is there."""
        gateway = self._gateway
        if id is None:
            self._say(Denied(Refusal.UNAVAILABLE))
            return
        if id == request.id:
            gateway.enter(request, durable=True, watched=request.ask.watched)
        stored = request if id == request.id else gateway.store.requests[id]
        if stored.ask.variant != request.ask.variant:
            self._say(Denied(Refusal.KEY_REUSED))
            return
        gateway.checkers.acknowledged(stored, durable=True)
        self._say(Accepted(id))
        if request.ask.watched:
            self._watch(id)

    def _watch(self, id: RequestId) -> None:
        gateway = self._gateway
        gateway.handle(lg.OutputWatched(id))
        live = gateway.live.get(id)
        if live is not None:
            self._follow(live)
            return
        end = gateway.store.ends.get(id)
        if end is None:
            self._say(Denied(Refusal.NOT_FOUND))
            return
        self._say(Over(id, end.record, end.answer))

    def _follow(self, live: Live) -> None:
        if not self._end.open:
            # It left while its request was being stored.
            return
        self._mine = live
        for span in live.spans:
            self._say(Shown(span))
        live.followers[self._number] = self._say

    def _say(self, reply: Reply) -> None:
        self._end.send(reply)

    def _left(self) -> None:
        live = self._mine
        if live is not None:
            live.followers.pop(self._number, None)
            if not live.durable:
                self._gateway.handle(lg.CancelAsked(live.request.id))
