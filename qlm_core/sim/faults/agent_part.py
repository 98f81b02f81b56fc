"""An agent: the Executor, its engine, and its links to the solver and the gateways, driven as the daemon drives them."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from math import inf
from random import Random
from typing import TYPE_CHECKING

from qlm_core.config import ExecutorConfig
from qlm_core.executor import (
    Abort,
    Drain,
    Drained,
    Effect,
    Event,
    Executor,
    JobOutput,
    Report,
    Send,
    Submit,
    SwapModel,
    Wakeup,
    Warm,
)
from qlm_core.messages import (
    AgentHello,
    AttemptEnded,
    AttemptReturned,
    Gateways,
    QueueUpdate,
)
from qlm_core.model import AgentId, GatewayId, InstanceState, RequestId, SloClass
from qlm_core.presence import PULSE_S, SleepWatch
from qlm_core.sim.faults.agent_link import GatewayLink, Run
from qlm_core.sim.faults.checkers import Checkers
from qlm_core.sim.faults.engine_part import EnginePart
from qlm_core.sim.faults.network import End, Network
from qlm_core.sim.faults.process import Process
from qlm_core.sim.faults.sessions import Backoff, Session

if TYPE_CHECKING:
    from qlm_core.sim.faults.solver_part import ToAgent

_REPORT_INTERVAL_S = 1.0
_DRAIN_S = 3.0


class AgentPart:
    """One agent. Its state is that of its present life; `start` begins another."""

    executor: Executor
    runs: dict[RequestId, Run]
    links: dict[GatewayId, GatewayLink]

    def __init__(
        self,
        process: Process,
        network: Network,
        engine: EnginePart,
        classes: tuple[SloClass, ...],
        rng: Random,
        checkers: Checkers,
    ):
        self.process = process
        self.network = network
        self.engine = engine
        self.rng = rng
        self.checkers = checkers
        self.id = AgentId(process.name)
        self._classes = classes
        self._config = ExecutorConfig()
        self._session: Session | None = None
        self._past: list[ToAgent] = []

    # ------------------------------------------------------------------ lives

    def start(self) -> None:
        """Begin a life: an executor that knows nothing, an engine that comes up, and a solver to dial."""
        self.process.start()
        self.executor = Executor(
            self.engine.profiles,
            self._config,
            classes=self._classes,
            report_interval_s=_REPORT_INTERVAL_S,
        )
        self.checkers.agent_started(self.id)
        self.runs, self.links = {}, {}
        self._named: dict[GatewayId, None] = {}
        self._events: deque[Event] = deque()
        self._handling = False
        self._wake_s = inf
        self._watch = SleepWatch(self.process.now_s)
        self._slept_s = 0.0
        self._session = None
        self._leaving = False
        self._backoff = Backoff(self.process, self.rng)
        self.engine.attach(self.post)
        self._dial()

    def stop(self, *, said: bool) -> None:
        """The process dies; `said` is whether its host tells its peers."""
        self.process.die(said=said)
        self.engine.detach()
        self._session = None

    def leave(self) -> None:
        """Drain, then stop in good order; what does not end in time is handed back."""
        if self.process.up:
            self.process.tell(self._drain)

    def _drain(self) -> None:
        self._leaving = True
        self.post(Drain(self.process.now_s + _DRAIN_S))

    def _go(self) -> None:
        for link in self.links.values():
            link.close()
        if self._session is not None:
            self._session.close()
        self.stop(said=True)

    @property
    def in_session(self) -> End | None:
        """Its end of the solver's session, if one is open."""
        session = self._session
        return session.end if session is not None and session.open else None

    # ------------------------------------------------------------------ the machine

    def awake_s(self) -> float:
        """Seconds for which this process has really run, on a clock of its own."""
        self._slept_s += self._watch.slept_s(self.process.now_s)
        return self.process.now_s - self._slept_s

    def post(self, event: Event) -> None:
        """Handle an event, or let it wait for the one being handled."""
        self.awake_s()
        self._events.append(event)
        if self._handling:
            return
        self._handling = True
        while self._events:
            self._handle(self._events.popleft())
        self._handling = False
        self._keep_time()

    def _handle(self, event: Event) -> None:
        executor, now_s = self.executor, self.process.now_s
        seen = self.checkers.before_order(executor, event)
        effects = executor.handle(event, now_s=now_s)
        self.process.trace.event(self.process.name, event, effects)
        self.checkers.after_event(self.id, executor, event, effects, seen, now_s)
        if isinstance(event, JobOutput):
            run = self.runs.get(event.id)
            if run is not None and run.attempt == event.attempt:
                run.link.put(event)
        for effect in effects:
            self._carry_out(effect)

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Send(gateway, event):
                self.links[gateway].put(event)
                if isinstance(event, AttemptEnded | AttemptReturned):
                    self._forget(event.id, event.attempt)
            case Submit(gateway, job, _):
                self.runs[job.id] = Run(job.id, job.attempt, self.links[gateway])
                self.engine.submit(job)
            case Abort(id, attempt):
                self.engine.abort(id, attempt)
                self._forget(id, attempt)
            case Report(state):
                used = self.engine.kv_used_tokens()
                self._report(replace(state, kv_used_tokens=used) if used else state)
            case SwapModel(model):
                self.engine.swap(model)
            case Drained():
                if self._leaving:
                    self.process.after(0.0, self._go)
            case Warm():
                pass

    def _forget(self, id: RequestId, attempt: int) -> None:
        run = self.runs.get(id)
        if run is not None and run.attempt == attempt:
            del self.runs[id]

    def _keep_time(self) -> None:
        # At least once a pulse, so that only sleep is taken for sleep.
        due_s = min(self.executor.wakeup_s, self.process.now_s + PULSE_S)
        if due_s < self._wake_s:
            self._wake_s = due_s
            self.process.at(due_s, self._wake, due_s)

    def _wake(self, due_s: float) -> None:
        if due_s == self._wake_s:
            self._wake_s = inf
            self.post(Wakeup())

    # ------------------------------------------------------------------ the solver

    def _dial(self) -> None:
        self.network.dial(self.process, "solver", self._join, self._redial)

    def _redial(self) -> None:
        self._session = None
        self._backoff.retry(self._dial)

    def _join(self, end: End) -> None:
        self._session = Session(end, on_message=self._heard, on_end=self._redial, beats=False)
        state = self.executor.instance_state()
        epoch = self.executor.window.epoch
        hello = AgentHello(self.id, "sim", self.engine.profiles, epoch, state)
        self._session.send(hello)

    def _report(self, state: InstanceState) -> None:
        if self._session is not None:
            self._session.send(state)

    def _heard(self, message: ToAgent) -> None:
        self._backoff.reset()
        order = message.order
        if isinstance(order, Gateways):
            self._named = {gateway: None for gateway, _ in order.addresses}
            self.arrange()
        else:
            self._past.append(message)
            del self._past[:-50]
            self.post(self._on_our_clock(message))

    def _on_our_clock(self, message: ToAgent) -> QueueUpdate:
        """Instants in an order travel as what is left until then."""
        late_s = self.process.now_s - message.sent_s
        assert isinstance(message.order, QueueUpdate)
        add = tuple(replace(ref, due_s=ref.due_s + late_s) for ref in message.order.add)
        return replace(message.order, add=add)

    def repeat_stale_order(self) -> None:
        """An order of an earlier epoch arrives once more, if there was one."""
        epoch = self.executor.window.epoch if self.process.up else 0
        stale = [
            one
            for one in self._past
            if isinstance(one.order, QueueUpdate) and one.order.epoch < epoch
        ]
        if stale and self._session is not None and self._session.open:
            self.process.tell(self.post, self._on_our_clock(self.rng.choice(stale)))

    # ------------------------------------------------------------------ the gateways

    def arrange(self) -> None:
        """Have one link to each gateway that is named; let go of those that are neither named nor here."""
        for gateway, link in list(self.links.items()):
            if gateway not in self._named and link.away:
                link.abandon()
                del self.links[gateway]
        for gateway in self._named:
            if gateway not in self.links:
                self.links[gateway] = GatewayLink(gateway, self)
