"""A hand-driven world around one executor: short builders, and a ledger of what it was told to do."""

from __future__ import annotations

from dataclasses import dataclass, field

from qlm_core.config import ExecutorConfig
from qlm_core.endpoint import Endpoint
from qlm_core.executor import (
    Abort,
    Drained,
    Effect,
    EngineReady,
    Event,
    Executor,
    GatewayUp,
    Granted,
    JobDone,
    JobOutput,
    Report,
    Send,
    Submit,
    SwapModel,
    Wakeup,
    Warm,
)
from qlm_core.messages import (
    AttemptEnded,
    AttemptReturned,
    Payload,
    Pull,
    QueueUpdate,
    ReturnReason,
)
from qlm_core.model import (
    GatewayId,
    GroupId,
    ModelName,
    ModelTier,
    QueuedGroup,
    RequestId,
    RequestRef,
    Slo,
    SloClass,
)
from qlm_core.profile import EngineProfile, IterationTime

GATEWAY = GatewayId("gw")
CLASSES = tuple(
    SloClass(name=name, slo=Slo(ttft_s=ttft_s))
    for name, ttft_s in (("interactive", 20.0), ("batch-1", 60.0), ("batch-2", 3600.0))
)


def profile(model: str = "m1", *, slots: int = 4, kv_tokens: int = 100_000) -> EngineProfile:
    """20 ms an iteration, 0.1 ms a prompt token, 3 s to wake, 12 s from cold."""
    return EngineProfile(
        model=model,
        gpu="test",
        iteration=IterationTime(
            base_ms=20.0, per_token_ms=0.1, per_sequence_ms=0.0, per_context_token_ms=0.0
        ),
        kv_cache_tokens=kv_tokens,
        max_num_seqs=slots,
        cold_s=12.0,
        wake_s=2.0,
        sleep_s=1.0,
    )


def group(id: int, model: str = "m1", slo_class: str = "batch-2") -> QueuedGroup:
    return QueuedGroup(GroupId(id), ModelName(model), slo_class)


def ref(
    id: str,
    group_id: int,
    *,
    due_s: float = 3600.0,
    prompt: int = 100,
    expected: int = 100,
    limit: int = 1000,
    produced: int = 0,
    gateway: GatewayId = GATEWAY,
) -> RequestRef:
    return RequestRef(
        id=RequestId(id),
        gateway=gateway,
        group=GroupId(group_id),
        prompt_tokens=prompt,
        max_output_tokens=limit,
        expected_output_tokens=expected,
        produced_tokens=produced,
        due_s=due_s,
    )


def refs(group_id: int, count: int, **kw: object) -> tuple[RequestRef, ...]:
    return tuple(ref(f"{group_id}-{index}", group_id, **kw) for index in range(count))  # type: ignore[arg-type]


@dataclass
class World:
    """An executor, the time, and what it did. Pulls are answered when the test says so."""

    executor: Executor
    now_s: float = 0.0
    pulled: list[str] = field(default_factory=list)
    submitted: list[str] = field(default_factory=list)
    priorities: dict[str, int] = field(default_factory=dict)
    aborted: list[str] = field(default_factory=list)
    returned: list[AttemptReturned] = field(default_factory=list)
    ended: list[AttemptEnded] = field(default_factory=list)
    swaps: list[str] = field(default_factory=list)
    warmed: list[tuple[ModelName, ...]] = field(default_factory=list)
    reports: list[Report] = field(default_factory=list)
    drained: bool = False
    attempts: dict[str, int] = field(default_factory=dict)
    models: dict[str, str] = field(default_factory=dict)

    def tell(self, event: Event) -> list[Effect]:
        effects = self.executor.handle(event, now_s=self.now_s)
        for effect in effects:
            match effect:
                case Send(_, Pull(ids)):
                    self.pulled += ids
                case Send(_, AttemptReturned() as back):
                    self.returned.append(back)
                case Send(_, AttemptEnded() as end):
                    self.ended.append(end)
                case Submit(_, job, priority):
                    self.submitted.append(job.id)
                    self.priorities[job.id] = priority
                case Abort(id, _):
                    self.aborted.append(id)
                case SwapModel(model):
                    self.swaps.append(model)
                case Warm(models):
                    self.warmed.append(models)
                case Report():
                    self.reports.append(effect)
                case Drained():
                    self.drained = True
        self.executor.batch.check()
        assert self.executor.wakeup_s > self.now_s
        return effects

    def queue(self, *groups: QueuedGroup, add: tuple[RequestRef, ...] = (), epoch: int = 1) -> None:
        self.models.update({str(one.id): one.model for one in groups})
        self.tell(QueueUpdate(epoch=epoch, order=tuple(groups), add=add))

    def grant(self, *ids: str) -> None:
        """Answer pulls; without ids, all that are open."""
        for id in ids or tuple(self.executor.batch.pulling):
            self.attempts[id] = self.attempts.get(id, 0) + 1
            model = ModelName(self.models[id.split("-")[0]])
            job = Payload(RequestId(id), self.attempts[id], model, Endpoint.COMPLETIONS, b"{}")
            self.tell(Granted(GATEWAY, job))

    def produce(self, id: str, tokens: int) -> None:
        self.tell(JobOutput(RequestId(id), self.attempts[id], b"", tokens))

    def finish(self, *ids: str) -> None:
        for id in ids:
            self.tell(JobDone(RequestId(id), self.attempts[id], "stop", 100, 10))

    def at(self, now_s: float) -> None:
        """Let time pass, waking the executor whenever it wants to be."""
        while self.executor.wakeup_s <= now_s:
            self.now_s = self.executor.wakeup_s
            self.tell(Wakeup())
        self.now_s = now_s

    @property
    def running(self) -> list[str]:
        return list(self.executor.batch.running)

    @property
    def reasons(self) -> dict[str, ReturnReason]:
        """Why each request was returned."""
        return {one.id: one.reason for one in self.returned}


def world(
    *profiles: EngineProfile,
    awake: str = "m1",
    ready: bool = True,
    classes: tuple[SloClass, ...] = CLASSES,
    **config: object,
) -> World:
    config = {"pull_ahead": 0, "kv_headroom": 0.0} | config
    executor = Executor(
        profiles or (profile(),),
        ExecutorConfig(**config),  # type: ignore[arg-type]
        classes=classes,
        report_interval_s=1.0,
    )
    made = World(executor)
    made.tell(GatewayUp(GATEWAY))
    if ready:
        tiers = tuple(
            (
                ModelName(one.model),
                ModelTier.AWAKE if one.model == awake else ModelTier.ASLEEP,
            )
            for one in (profiles or (profile(),))
        )
        made.tell(EngineReady(ModelName(awake), tiers))
    return made
