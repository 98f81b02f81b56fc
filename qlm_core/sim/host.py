"""One agent's machine in the simulation: its executor, its engine, and what passes between them and the rest.

What the agent daemon does with sockets and threads is done here with the agenda: orders of the executor are carried out
on the simulated engine, and what the engine says is told to the executor and sent to the gateway.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf

from qlm_core.config import ExecutorConfig
from qlm_core.executor import (
    Abort,
    Effect,
    EngineReady,
    Event,
    Executor,
    ExecutorState,
    GatewayUp,
    JobDone,
    JobOutput,
    Report,
    Send,
    Submit,
    SwapModel,
    Wakeup,
    Warm,
)
from qlm_core.ledger import AttemptCameBack, AttemptFinished, ChunkCame, PullAsked
from qlm_core.ledger import Event as LedgerEvent
from qlm_core.manager.events import AgentJoined, AgentReported
from qlm_core.manager.events import Event as ManagerEvent
from qlm_core.messages import (
    AgentHello,
    AttemptEnded,
    AttemptReturned,
    Chunk,
    Payload,
    Pull,
)
from qlm_core.model import AgentId, GatewayId, ModelName, RequestId, SloClass
from qlm_core.profile import EngineProfile
from qlm_core.sim.agenda import Agenda
from qlm_core.sim.batch import Outcome, OutcomeKind
from qlm_core.sim.instance import Instance
from qlm_core.sim.workload import WorkloadRequest

# Less than a whole interval, so that rounding cannot put it behind the report.
_SYNC_SHARE = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What a host needs of the world around it.

    Attributes:
        request_of: the request behind an id; only the engine may look at its output tokens.
        takes_all: requests go to the engine's own queue at once, however full it is.
        abort_s: how long an engine goes on with what was aborted.
    """

    agenda: Agenda
    gateway: GatewayId
    link_s: float
    report_interval_s: float
    executor: ExecutorConfig
    classes: tuple[SloClass, ...]
    takes_all: bool
    abort_s: float
    request_of: Callable[[RequestId], WorkloadRequest]
    tell_ledger: Callable[..., None]
    tell_solver: Callable[[ManagerEvent], None]
    note: Callable[..., None]


class Host:
    """The machine beside one simulated engine."""

    def __init__(self, instance: Instance, around: Surroundings):
        self.instance = instance
        self.agent = AgentId(instance.spec.name)
        self._around = around
        self._agenda = around.agenda
        profiles = instance.spec.profiles
        self.executor = Executor(
            tuple(map(_boundless, profiles)) if around.takes_all else profiles,
            around.executor,
            classes=tuple(map(_paceless, around.classes)) if around.takes_all else around.classes,
            report_interval_s=around.report_interval_s,
        )
        self._wake_s = inf
        self._engine_s = inf
        self._sync_s = 0.0
        self._unsent: dict[RequestId, int] = {}
        self._loading: str | None = None

    def connect(self) -> None:
        """Take the model that is loaded and say hello to the solver."""
        self.tell(GatewayUp(self._around.gateway))
        self.tell(EngineReady(ModelName(self.instance.spec.awake), self.instance.tiers))
        state = self.executor.instance_state()
        spec = self.instance.spec
        self._around.tell_solver(
            AgentJoined(AgentHello(self.agent, spec.gpu, spec.profiles, 0, state))
        )

    def tell(self, event: Event) -> None:
        """Give the executor an event and carry out what it orders."""
        if self._agenda.now_s >= self._sync_s:
            self._listen()
        self._carry_out(self.executor.handle(event, now_s=self._agenda.now_s))
        self._watch()

    def _carry_out(self, effects: list[Effect]) -> None:
        around = self._around
        for effect in effects:
            match effect:
                case Submit(job=job, priority=priority):
                    self._submit(job, priority)
                case Send(_, Pull(ids)):
                    self._post(PullAsked(self.agent, ids))
                case Send(_, AttemptEnded() as ended):
                    rest = self.instance.finish(ended.id)
                    self._hand_in(ended.id, ended.attempt, rest, AttemptFinished(self.agent, ended))
                case Send(_, AttemptReturned() as back):
                    rest = self._unsent.pop(back.id, 0)
                    self._hand_in(back.id, back.attempt, rest, AttemptCameBack(self.agent, back))
                case Abort(id=id):
                    self._abort(id)
                    around.note("evict", self.agent, id, self._unsent[id])
                case Report(state):
                    report = AgentReported(self.agent, state)
                    self._agenda.after(around.link_s, around.tell_solver, report)
                case SwapModel(model):
                    around.note("swap", self.agent, model)
                    seconds = self.instance.begin_swap(model)
                    self._agenda.after(seconds, self._swapped, model)
                case Warm(models):
                    self._expect(models)
                case _:
                    pass

    def _post(self, *events: LedgerEvent) -> None:
        self._agenda.after(self._around.link_s, self._around.tell_ledger, *events)

    def _hand_in(self, id: RequestId, attempt: int, tokens: int, event: LedgerEvent) -> None:
        """Send output that was kept back, and how the attempt ended."""
        if tokens > 0:
            self._post(ChunkCame(self.agent, Chunk(id, attempt, b"", tokens)), event)
        else:
            self._post(event)

    # ------------------------------------------------------------------ jobs

    def _submit(self, job: Payload, priority: int) -> None:
        request = self._around.request_of(job.id)
        self._unsent.pop(job.id, None)
        self.instance.take(
            job.id,
            attempt=job.attempt,
            prompt_tokens=request.prompt_tokens + job.produced_tokens,
            output_tokens=max(1, request.output_tokens - job.produced_tokens),
            resumed=job.produced_tokens > 0,
        )
        self._around.note("start", self.agent, job.id, job.attempt)
        restore_s = self.instance.restore_s(job.id)
        if restore_s > 0.0:
            self._agenda.after(restore_s, self._start, job.id, job.attempt, priority)
        else:
            self.instance.start(job.id, job.attempt, priority, self._agenda.now_s)

    def _start(self, id: RequestId, attempt: int, priority: int) -> None:
        self.instance.start(id, attempt, priority, self._agenda.now_s)
        self._watch()

    def _abort(self, id: RequestId) -> None:
        late_s = self._around.abort_s
        self._unsent[id] = self.instance.abort(id, self._agenda.now_s, heard=not late_s)
        if late_s:
            self._agenda.after(late_s, self._hear_abort, id)

    def _hear_abort(self, id: RequestId) -> None:
        self._listen()
        self.instance.hear_abort(id, self._agenda.now_s)
        self._watch()

    def _run_engine(self, due_s: float) -> None:
        """The engine may have something to say."""
        if due_s != self._engine_s:
            return
        self._engine_s = inf
        self._listen()
        self._watch()

    def _outcome(self, outcome: Outcome) -> None:
        id = RequestId(outcome.request_id)
        job = self.instance.jobs.get(id)
        if job is None or outcome.kind is OutcomeKind.PREEMPTED:
            return
        if outcome.kind is OutcomeKind.FIRST_TOKEN:
            job.told = job.sent = 1
            self._around.note("first", self.agent, id)
            self._post(ChunkCame(self.agent, Chunk(id, job.attempt, b"", 1)))
            self._order(JobOutput(id, job.attempt, b"", 1))
            return
        job.done = True
        self._order(JobOutput(id, job.attempt, b"", outcome.output_tokens - job.told))
        job.told = outcome.output_tokens
        self._order(JobDone(id, job.attempt, "stop", job.resident_tokens, job.told))

    def _order(self, event: Event) -> None:
        self._carry_out(self.executor.handle(event, now_s=self._agenda.now_s))

    def _listen(self) -> None:
        """Hear what the engine has to say, and before the executor reports, how far running jobs have come."""
        now_s = self._agenda.now_s
        outcomes = self.instance.advance(now_s)
        if now_s >= self._sync_s:
            self._sync_s = now_s + _SYNC_SHARE * self._around.report_interval_s
            self._sync()
        for outcome in outcomes:
            self._outcome(outcome)

    def _sync(self) -> None:
        """Tell the executor what running jobs have produced since it was told last."""
        jobs = self.instance.jobs
        for id, produced in self.instance.produced():
            job = jobs.get(id)
            if job is not None and produced > job.told > 0:
                tokens, job.told = produced - job.told, produced
                self._order(JobOutput(RequestId(id), job.attempt, b"", tokens))

    # ------------------------------------------------------------------ models

    def _swapped(self, model: ModelName) -> None:
        self.instance.end_swap(model)
        self.tell(EngineReady(model, self.instance.tiers))

    def _expect(self, models: tuple[ModelName, ...]) -> None:
        """Bring the next cold model into host memory, one at a time."""
        cold = self.instance.expect(models)
        if cold is not None and self._loading is None:
            self._loading = cold
            self._agenda.after(self.instance.load_s(cold), self._loaded, cold)

    def _loaded(self, model: str) -> None:
        self._loading = None
        awake = self.instance.awake
        if self.instance.loaded(model) and awake is not None:
            self.tell(EngineReady(ModelName(awake), self.instance.tiers))

    # ------------------------------------------------------------------ time

    def _watch(self) -> None:
        """See that engine and executor are looked after when they next need it."""
        event_s = self.instance.next_event_s
        if event_s is not None and event_s != self._engine_s:
            self._engine_s = event_s
            self._agenda.at(event_s, self._run_engine, event_s)
        if self._idle:
            return
        wake_s = self.executor.wakeup_s
        if wake_s < self._wake_s:
            self._wake_s = wake_s
            self._agenda.at(wake_s, self._wake, wake_s)

    @property
    def _idle(self) -> bool:
        executor = self.executor
        return (
            executor.state is ExecutorState.SERVING
            and not len(executor.batch)
            and not len(executor.window)
        )

    def _wake(self, due_s: float) -> None:
        if due_s != self._wake_s:
            return
        self._wake_s = inf
        self.tell(Wakeup())


def _paceless(one: SloClass) -> SloClass:
    """A class of which an engine by itself knows no pace to keep."""
    return replace(one, slo=replace(one.slo, tpot_s=None))


def _boundless(profile: EngineProfile) -> EngineProfile:
    """A profile under which an executor hands everything on at once."""
    many = 1 << 20
    return replace(profile, max_num_seqs=many, max_num_batched_tokens=many, kv_cache_tokens=1 << 40)
