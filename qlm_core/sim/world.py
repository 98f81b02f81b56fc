"""The simulated world: the production machines, driven by an agenda instead of clocks, sockets and GPUs.

Ledger, Executors and Manager (or a rival in its place) are the ones that the services run, unchanged. What is
replaced is time (`Agenda`), the network (a delay per message), the engines (`Instance`), and the planner's process: a
solve is run where it is asked for, bounded by work instead of time, and its answer comes a fixed simulated time later. So
the same scenario, policy and seed give the same run to the last digit.

Two shortcuts keep long runs affordable, neither visible to a decision: output travels as its first token, what has
come by each report, and the rest at the end; and an executor with nothing to do is not woken to say so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from math import inf

from qlm_core.endpoint import Endpoint
from qlm_core.executor import Event, Granted
from qlm_core.ledger import (
    AgentConnected,
    CancelAsked,
    ChunkCame,
    EndRequest,
    EstimateCame,
    Grant,
    Ledger,
    Refuse,
    Revoke,
    ShedOrdered,
    Submitted,
    Tell,
)
from qlm_core.ledger import Event as LedgerEvent
from qlm_core.manager import events as manager
from qlm_core.messages import (
    AnnounceDone,
    BulkEstimate,
    BulkWaiting,
    EstimateGiven,
    GatewayHello,
    Payload,
    QueueUpdate,
    Refused,
    Revoked,
    ShedOrder,
)
from qlm_core.model import (
    AgentId,
    BatchId,
    GatewayId,
    ModelName,
    Phase,
    RequestId,
    RequestMeta,
    Slo,
)
from qlm_core.planning import Limits
from qlm_core.planning.compiled import compiled_kernels
from qlm_core.planning.search import search
from qlm_core.sim.agenda import Agenda
from qlm_core.sim.batches import BatchDesk
from qlm_core.sim.host import Host, Surroundings
from qlm_core.sim.instance import Instance
from qlm_core.sim.pauses import Pauses
from qlm_core.sim.policies import Brain, Context, Foreseen, Policy
from qlm_core.sim.record import RunRecord
from qlm_core.sim.scenario import Scenario, instances, room_tokens
from qlm_core.sim.workload import WorkloadRequest, fitted

GATEWAY = GatewayId("gateway-0")
STALLED_S = 6 * 3600.0
"""A run in which nothing ends for so long is over; what has not ended is lost."""

_SMALL_PROBLEM = 24
"""Up to so many groups times queues, interpreted kernels are ready before compiled ones."""

Trace = Callable[[str], None]


class World:
    """One run of one policy on one scenario.

    Args:
        workload: the requests in order of arrival; consumed once. Those longer than an instance of their model holds
            are cut, as a client would have to.
        model_len: the longest context of models that promise less than an instance holds, in tokens.
        trace: is told of everything that happens, a line each.
    """

    def __init__(
        self,
        scenario: Scenario,
        policy: Policy,
        workload: Iterable[WorkloadRequest],
        *,
        seed: int,
        model_len: Mapping[str, int] | None = None,
        trace: Trace | None = None,
    ):
        self._scenario = scenario
        self._policy = policy
        self._workload = iter(workload)
        self._seed = seed
        self._trace = trace
        self._agenda = Agenda()
        self._link_s = scenario.simulation.link_s
        self._ledger = Ledger()
        self._classes = {one.name: one for one in scenario.classes}
        self._numbers = {name: number for number, name in enumerate(self._classes)}
        self._requests: dict[RequestId, WorkloadRequest] = {}
        self.record = RunRecord(tuple(self._classes))
        self._pauses = Pauses()
        around = self._surroundings()
        specs = instances(scenario.fleet, scenario.profiles, scenario.adapters)
        limits = model_len or {}
        self._rooms = {
            model: min(room, limits.get(model, room)) for model, room in room_tokens(specs).items()
        }
        self._hosts = [Host(Instance(spec, policy.engine), around) for spec in specs]
        self._host = {host.agent: host for host in self._hosts}
        self._brain: Brain = policy.build(
            Context(
                config=scenario.solver,
                classes=scenario.classes,
                foresee=self._foresee,
                seed=seed,
            )
        )
        self._brain_wake_s = inf
        self._arriving = True
        self._desk = BatchDesk(
            scenario.workload.batches,
            seed=seed,
            agenda=self._agenda,
            waiting_max=scenario.simulation.waiting_lines_max,
            submit=self._submit_line,
            cancel=self._cancel_line,
            tell=self._tell_bulk,
        )
        self.record.batches = self._desk.runs

    def _surroundings(self) -> Surroundings:
        scenario, policy = self._scenario, self._policy
        return Surroundings(
            agenda=self._agenda,
            gateway=GATEWAY,
            link_s=self._link_s,
            report_interval_s=scenario.simulation.report_interval_s,
            executor=policy.executor(scenario.executor),
            classes=scenario.classes,
            takes_all=policy.takes_all,
            abort_s=scenario.simulation.abort_s,
            request_of=self._requests.__getitem__,
            tell_ledger=self.tell_ledger,
            tell_solver=self.tell_solver,
            note=self._note,
        )

    # ------------------------------------------------------------------ the run

    def run(self) -> RunRecord:
        """Run until every request has ended, or nothing ends any more."""
        self._connect()
        self._desk.begin()
        self._next_arrival()
        agenda, record = self._agenda, self.record
        while len(agenda) and (self._arriving or len(self._ledger) or self._desk.open):
            agenda.step()
            if not self._arriving and agenda.now_s - self._last_news_s > STALLED_S:
                break
        for host in self._hosts:
            record.busy_s += host.instance.busy_s
            record.preemptions += host.instance.preemptions
            record.swaps += host.instance.swaps
            record.swap_s += host.instance.swap_s
        record.instances = len(self._hosts)
        record.steps = agenda.done
        return record

    @property
    def batches_open(self) -> bool:
        """Whether a batch is to come, or is not over."""
        return self._desk.open

    @property
    def _last_news_s(self) -> float:
        """When a request came or ended last."""
        come_s = max([run.submitted_s for run in self.record.batches], default=0.0)
        return max(come_s, self.record.last_end_s, *self.record.arrival_s[-1:])

    def _connect(self) -> None:
        self.tell_solver(manager.GatewayJoined(GatewayHello(GATEWAY, "gateway")))
        for host in self._hosts:
            self._ledger.handle(AgentConnected(host.agent), now_s=0.0)
            host.connect()
        self.tell_solver(manager.GatewaySaid(GATEWAY, AnnounceDone()))

    def _next_arrival(self) -> None:
        request = next(self._workload, None)
        if request is None:
            self._arriving = False
            return
        fit = self._fitted(request)
        lengths = fit.prompt_tokens, fit.output_tokens
        self.record.cut += lengths != (request.prompt_tokens, request.output_tokens)
        self._agenda.at(fit.arrival_s, self._arrive, fit)

    def _fitted(self, request: WorkloadRequest) -> WorkloadRequest:
        return fitted(request, self._rooms[request.model])

    def _foresee(self) -> tuple[Foreseen, ...]:
        """All that is to arrive; in memory from now on."""
        coming = tuple(self._workload)
        self._workload = iter(coming)
        return tuple(
            Foreseen(self._meta(number, request, request.arrival_s), request.output_tokens)
            for number, request in enumerate(map(self._fitted, coming))
        )

    def _arrive(self, request: WorkloadRequest) -> None:
        number = self.record.arrived(request.arrival_s, self._numbers[request.slo_class])
        meta = self._meta(number, request, self._agenda.now_s)
        self._requests[meta.id] = request
        self._note("arrive", meta.id)
        self._next_arrival()
        self.tell_ledger(Submitted(request=meta, watched=True, expires_s=inf))

    def _meta(self, number: int, request: WorkloadRequest, arrival_s: float) -> RequestMeta:
        return RequestMeta(
            id=RequestId(f"r{number}"),
            gateway=GATEWAY,
            model=ModelName(request.model),
            slo_class=request.slo_class,
            slo=self._classes[request.slo_class].slo,
            prompt_tokens=request.prompt_tokens,
            max_output_tokens=request.max_tokens,
            arrival_s=arrival_s,
        )

    def _submit_line(self, line: WorkloadRequest, batch: BatchId, slo: Slo) -> RequestId:
        """Make a line of a batch a request; its targets count from when the batch came."""
        fit = self._fitted(line)
        number = self.record.arrived(self._agenda.now_s, self._numbers[line.slo_class])
        meta = replace(self._meta(number, fit, line.arrival_s), batch=batch, slo=slo)
        self._requests[meta.id] = fit
        self._note("release", meta.id, batch)
        # The desk is to know its line before anything can happen to it.
        submitted = Submitted(request=meta, watched=True, expires_s=inf)
        self._agenda.after(0.0, self.tell_ledger, submitted)
        return meta.id

    def _cancel_line(self, id: RequestId) -> None:
        self._agenda.after(0.0, self.tell_ledger, CancelAsked(id))

    def _tell_bulk(self, fact: BulkWaiting) -> None:
        self._agenda.after(self._link_s, self.tell_solver, manager.GatewaySaid(GATEWAY, fact))

    def _note(self, what: str, *details: object) -> None:
        if self._trace is not None:
            self._trace(" ".join([f"{self._agenda.now_s:.9f}", what, *map(str, details)]))

    # ------------------------------------------------------------------ gateway

    def tell_ledger(self, *events: LedgerEvent) -> None:
        """Give the ledger events that arrive together."""
        for event in events:
            if isinstance(event, ChunkCame):
                self._pauses.came(event.chunk.id, event.chunk.tokens, self._agenda.now_s)
            for effect in self._ledger.handle(event, now_s=self._agenda.now_s):
                match effect:
                    case Tell(fact):
                        said = manager.GatewaySaid(GATEWAY, fact)
                        self._agenda.after(self._link_s, self.tell_solver, said)
                    case Grant(agent, id, attempt, produced):
                        model = ModelName(self._requests[id].model)
                        job = Payload(
                            id, attempt, model, Endpoint.COMPLETIONS, b"", produced_tokens=produced
                        )
                        self._send(agent, Granted(GATEWAY, job))
                        self._desk.taken(id)
                    case Refuse(agent, id, reason):
                        self._send(agent, Refused(id, reason))
                    case Revoke(agent, id, attempt):
                        self._send(agent, Revoked(id, attempt))
                    case EndRequest(id, record, _):
                        self._note("end", id, record.phase.value, record.output_tokens)
                        pause_s = self._pauses.end(id)
                        if record.pause_s is not None:
                            record = replace(record, pause_s=pause_s)
                        self.record.end(int(id[1:]), record, self._agenda.now_s)
                        # One that was cancelled may be on its way to an agent.
                        if record.phase is not Phase.CANCELLED:
                            self._requests.pop(id, None)
                        self._desk.ended(id, finished=record.phase is Phase.FINISHED)
                    case _:
                        pass

    def _send(self, agent: AgentId, event: Event) -> None:
        self._agenda.after(self._link_s, self._host[agent].tell, event)

    # ------------------------------------------------------------------ solver

    def tell_solver(self, event: manager.Event) -> None:
        """Give the Manager, or what stands in its place, an event."""
        for effect in self._brain.handle(event, now_s=self._agenda.now_s):
            match effect:
                case manager.TellAgent(agent, QueueUpdate() as update):
                    self._send(agent, update)
                case manager.TellGateway(_, EstimateGiven(id, estimate)):
                    self._agenda.after(self._link_s, self.tell_ledger, EstimateCame(id, estimate))
                case manager.TellGateway(_, ShedOrder(id, reason, after_s)):
                    shed = ShedOrdered(id, reason, after_s)
                    self._agenda.after(self._link_s, self.tell_ledger, shed)
                case manager.TellGateway(_, BulkEstimate() as finish):
                    self._agenda.after(self._link_s, self._desk.told, finish)
                case manager.StartSolve():
                    self._solve(effect)
                case _:
                    pass
        wake_s = self._brain.wakeup_s
        if wake_s is not None and wake_s < self._brain_wake_s:
            self._brain_wake_s = max(wake_s, self._agenda.now_s)
            self._agenda.at(wake_s, self._wake_brain, self._brain_wake_s)

    def _wake_brain(self, due_s: float) -> None:
        if due_s == self._brain_wake_s:
            self._brain_wake_s = inf
            self.tell_solver(manager.Wakeup())

    def _solve(self, order: manager.StartSolve) -> None:
        settings = self._scenario.simulation
        small = order.problem.groups * order.problem.queues <= _SMALL_PROBLEM
        result = search(
            order.problem,
            Limits(work=200 if small else settings.solve_work),
            seed=self._seed,
            clock=_no_clock,
            start=order.warm,
            compiled=None if small else compiled_kernels(),
        )
        self.record.solves += 1
        self._note("solve", order.solve, f"{result.objective:.6f}")
        done = manager.PlanFinished(order.solve, result)
        self._agenda.after(settings.solve_s, self.tell_solver, done)


def _no_clock() -> float:
    """Planners that are bounded by work see no time pass."""
    return 0.0
