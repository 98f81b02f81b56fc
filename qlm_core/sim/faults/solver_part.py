"""The solver: the Manager and the sessions of its peers, driven as the service drives them. Plans are sought with little work."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf

from qlm_core.config import GroupingConfig, ReplanConfig, SolverConfig
from qlm_core.manager import Manager
from qlm_core.manager.events import (
    AgentJoined,
    AgentLeft,
    AgentReported,
    Effect,
    Event,
    GatewayJoined,
    GatewayLeft,
    GatewaySaid,
    PartAgent,
    PartGateway,
    PlanFinished,
    Slept,
    StartSolve,
    TellAgent,
    TellGateway,
    Wakeup,
)
from qlm_core.messages import (
    AgentHello,
    AgentOrder,
    Arrived,
    BulkWaiting,
    GatewayFact,
    GatewayHello,
)
from qlm_core.model import AgentId, GatewayId, InstanceState, SloClass
from qlm_core.planning import Limits
from qlm_core.planning.search import search
from qlm_core.presence import PULSE_S, SleepWatch
from qlm_core.sim.faults.network import End
from qlm_core.sim.faults.process import Process
from qlm_core.sim.faults.sessions import Session

WINDOW_REQUESTS = 16
GATEWAY_LEASE_S = 10.0
_SOLVE_WORK = 30
_SOLVE_S = 0.05


@dataclass(frozen=True, slots=True)
class ToAgent:
    """An order on its way, with the instant at which it left."""

    sent_s: float
    order: AgentOrder


@dataclass(frozen=True, slots=True)
class Facts:
    """Facts on their way, with the instant at which they left."""

    sent_s: float
    facts: tuple[GatewayFact, ...]


class SolverPart:
    """The solver. A life knows nothing of earlier ones."""

    manager: Manager
    agents: dict[AgentId, Session]
    gateways: dict[GatewayId, Session]

    def __init__(self, process: Process, classes: tuple[SloClass, ...], *, seed: int):
        self.process = process
        self._classes = classes
        self._seed = seed
        self._config = SolverConfig(
            window_requests=WINDOW_REQUESTS,
            gateway_lease_s=GATEWAY_LEASE_S,
            replan=ReplanConfig(min_interval_s=1.0),
            grouping=GroupingConfig(requests_max=8),
        )
        process.on_stream = self._accept

    def start(self) -> None:
        """Begin a life."""
        self.process.start()
        self.manager = Manager(self._config, self._classes, now_s=self.process.now_s)
        self.agents, self.gateways = {}, {}
        self._wake_s = inf
        self._watch = SleepWatch(self.process.now_s)
        self.post(Wakeup())

    def stop(self, *, said: bool) -> None:
        """The process dies; `said` is whether its host tells its peers."""
        self.process.die(said=said)
        self.agents, self.gateways = {}, {}

    def post(self, event: Event) -> None:
        """Hand an event to the Manager and carry out what it orders."""
        # Whatever woke this process first: leases must not run out by its own sleep.
        slept_s = self._watch.slept_s(self.process.now_s)
        if slept_s:
            self._handle(Slept(slept_s))
        self._handle(event)
        # At least once a pulse, so that only sleep is taken for sleep.
        due_s = min(self.manager.wakeup_s or inf, self.process.now_s + PULSE_S)
        if due_s < self._wake_s - 1e-4:
            self._wake_s = due_s
            self.process.at(max(due_s, self.process.now_s + 0.001), self._wake, due_s)

    def _handle(self, event: Event) -> None:
        effects = self.manager.handle(event, now_s=self.process.now_s)
        self.process.trace.event(self.process.name, event, effects)
        for effect in effects:
            self._carry_out(effect)

    def _wake(self, due_s: float) -> None:
        if due_s == self._wake_s:
            self._wake_s = inf
            self.post(Wakeup())

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case TellAgent(agent, order):
                session = self.agents.get(agent)
                if session is not None:
                    session.send(ToAgent(self.process.now_s, order))
            case TellGateway(gateway, order):
                session = self.gateways.get(gateway)
                if session is not None:
                    session.send(order)
            case PartAgent(agent, _):
                session = self.agents.get(agent)
                if session is not None:
                    session.part()
            case PartGateway(gateway, _):
                session = self.gateways.get(gateway)
                if session is not None:
                    session.part()
            case StartSolve():
                result = search(
                    effect.problem,
                    Limits(work=_SOLVE_WORK),
                    seed=self._seed,
                    clock=_no_clock,
                    start=effect.warm,
                )
                self.process.after(_SOLVE_S, self.post, PlanFinished(effect.solve, result))

    # ------------------------------------------------------------------ sessions

    def _accept(self, end: End) -> None:
        _Peer(self, end)


class _Peer:
    """A session of a peer that says with its first message who it is."""

    def __init__(self, solver: SolverPart, end: End):
        self._solver = solver
        self._agent: AgentId | None = None
        self._gateway: GatewayId | None = None
        # An agent's lease, which the Manager keeps, says how long it may be silent.
        self._session = Session(end, on_message=self._take, on_end=self._ended, silence_s=inf)

    def _take(self, message: AgentHello | InstanceState | Facts) -> None:
        solver = self._solver
        if isinstance(message, AgentHello):
            self._agent = message.agent
            self._take_over(solver.agents.get(message.agent))
            solver.agents[message.agent] = self._session
            solver.post(AgentJoined(message))
        elif isinstance(message, InstanceState):
            assert self._agent is not None
            solver.post(AgentReported(self._agent, message))
        else:
            late_s = solver.process.now_s - message.sent_s
            for fact in message.facts:
                self._take_fact(fact, late_s)

    def _take_fact(self, fact: GatewayFact, late_s: float) -> None:
        solver = self._solver
        if isinstance(fact, GatewayHello):
            self._gateway = fact.gateway
            self._take_over(solver.gateways.get(fact.gateway))
            solver.gateways[fact.gateway] = self._session
            solver.post(GatewayJoined(fact))
            return
        assert self._gateway is not None
        if isinstance(fact, Arrived):
            # Instants travel as the time that has passed since.
            arrival_s = fact.request.arrival_s + late_s
            fact = Arrived(replace(fact.request, arrival_s=arrival_s))
        elif isinstance(fact, BulkWaiting):
            fact = replace(fact, arrival_s=fact.arrival_s + late_s)
        solver.post(GatewaySaid(self._gateway, fact))

    def _take_over(self, older: Session | None) -> None:
        if older is not None:
            older.close()

    def _ended(self) -> None:
        solver = self._solver
        if self._agent is not None and solver.agents.get(self._agent) is self._session:
            del solver.agents[self._agent]
            solver.post(AgentLeft(self._agent))
        if self._gateway is not None and solver.gateways.get(self._gateway) is self._session:
            del solver.gateways[self._gateway]
            solver.post(GatewayLeft(self._gateway))


def _no_clock() -> float:
    """A search that is bounded by work sees no time pass."""
    return 0.0
