"""The nouns of QLM as plain values: requests, targets, groups and serving instances.

Everything here is immutable and free of behaviour beyond its own invariants. The machines (manager,
executor, ledger) hold and replace these values; the wire module translates them.

Times are seconds on the clock of whoever holds the value. Between processes only differences travel
("waited 3.2 s"), so clocks never need to agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NewType

RequestId = NewType("RequestId", str)
ModelName = NewType("ModelName", str)
GatewayId = NewType("GatewayId", str)
AgentId = NewType("AgentId", str)
GroupId = NewType("GroupId", int)
BatchId = NewType("BatchId", str)

REST_S = 3600.0
"""When the rest of an output is due of which nothing more is promised, counted from the request's arrival.

Late enough to give way to all that is tight, and not never, so that none is put off for ever.
"""


PAUSE_SHARE = 0.5
"""Outputs of which nothing more is promised let a first token pass once this share of its target is all that is left to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """Targets of one request, counted from its arrival at the gateway. None means not promised."""

    ttft_s: float
    tpot_s: float | None = None
    e2e_s: float | None = None

    @property
    def first_token_only(self) -> bool:
        """Whether nothing is promised of what follows the first token."""
        return self.tpot_s is None and self.e2e_s is None

    @property
    def start_s(self) -> float:
        """When the first token is late: after its own target, or after that of the end where this comes first."""
        return self.ttft_s if self.e2e_s is None else min(self.ttft_s, self.e2e_s)

    def met_by(self, *, ttft_s: float, tpot_s: float | None, e2e_s: float) -> bool:
        """Whether realised latencies keep every target."""
        if ttft_s > self.ttft_s:
            return False
        if self.tpot_s is not None and tpot_s is not None and tpot_s > self.tpot_s:
            return False
        return self.e2e_s is None or e2e_s <= self.e2e_s


@dataclass(frozen=True, slots=True, kw_only=True)
class SloClass:
    """Targets that are grouped under one name, how much one request of the class weighs, and whether late ones are shed."""

    name: str
    slo: Slo
    weight: float = 1.0
    shed_late: bool = False


@dataclass(frozen=True, slots=True)
class RequestMeta:
    """What the solver knows of a request: everything but its prompt and its tokens.

    Attributes:
        arrival_s: when it arrived at its gateway, on the holder's clock.
        max_output_tokens: the client's limit on output, or the model's where the client gave none; 0 where there is no output,
            so that the work ends with the prompt.
        produced_tokens: output tokens of earlier attempts, already with the client; a resumed
            attempt continues after them.
        batch: the batch that it is a line of; empty for a request by itself.
    """

    id: RequestId
    gateway: GatewayId
    model: ModelName
    slo_class: str
    slo: Slo
    prompt_tokens: int
    max_output_tokens: int
    arrival_s: float
    tenant: str = ""
    produced_tokens: int = 0
    batch: BatchId = BatchId("")

    @property
    def owes_nothing(self) -> bool:
        """Whether it is decided if its targets are met: its client has a first token, and no more was promised."""
        return self.produced_tokens > 0 and self.slo.first_token_only

    @property
    def target_s(self) -> float:
        """How long after its arrival an engine has to begin with what is left of it."""
        return max(REST_S, self.slo.start_s) if self.owes_nothing else self.slo.start_s

    @property
    def due_s(self) -> float:
        """The instant at which the first token is late, or at which a rest is due, on the holder's clock."""
        return self.arrival_s + self.target_s


class Phase(Enum):
    """Where a request stands in its life (the ledger owns the transitions)."""

    WAITING = "waiting"
    PULLED = "pulled"
    RUNNING = "running"
    FINISHED = "finished"
    CANCELLED = "cancelled"
    SHED = "shed"
    FAILED = "failed"

    @property
    def terminal(self) -> bool:
        """Whether nothing can follow."""
        return self in _TERMINAL


_TERMINAL = (Phase.FINISHED, Phase.CANCELLED, Phase.SHED, Phase.FAILED)


@dataclass(frozen=True, slots=True)
class RequestRef:
    """A request as an agent's window holds it: enough to decide, nothing to serve.

    Attributes:
        due_s: when its first token is late, or the rest of its output due, on the holder's clock.
        expected_output_tokens: output still expected, from the estimator.
    """

    id: RequestId
    gateway: GatewayId
    group: GroupId
    prompt_tokens: int
    max_output_tokens: int
    expected_output_tokens: int
    produced_tokens: int
    due_s: float


@dataclass(frozen=True, slots=True)
class QueuedGroup:
    """One request group as it stands in a virtual queue sent to an agent."""

    id: GroupId
    model: ModelName
    slo_class: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """The estimated waiting time (RWT) of one request until its first token.

    Seconds. `mean` and quantiles of one distribution, so p50 ≤ p90 ≤ p99. What is told of a submitted request counts from its
    arrival, like its time to first token.
    """

    mean_s: float
    p50_s: float
    p90_s: float
    p99_s: float

    def __post_init__(self) -> None:
        if not self.p50_s <= self.p90_s <= self.p99_s:
            raise ValueError(f"quantiles must ascend, got {self!r}")

    def after(self, waited_s: float) -> Estimate:
        """The same counted from `waited_s` ago."""
        return Estimate(
            mean_s=self.mean_s + waited_s,
            p50_s=self.p50_s + waited_s,
            p90_s=self.p90_s + waited_s,
            p99_s=self.p99_s + waited_s,
        )


class ModelTier(Enum):
    """How far a model is from serving on an instance (paper §5, warm start)."""

    AWAKE = "awake"
    ASLEEP = "asleep"
    COLD = "cold"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningRequest:
    """A request on an engine, as its agent reports it."""

    id: RequestId
    group: GroupId
    produced_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceState:
    """What an agent reports of its serving instance.

    Attributes:
        awake_model: the model that can serve at once; None while swapping or when nothing is loaded.
        swapping_to: the model being made awake, if a swap is under way.
        ready: False while the engine is down or starting; nothing can be placed there then.
        tokens_per_s: output rate since the last report; 0 when nothing ran.
        prompt_tokens_per_s: rate since then at which new prompts came to their first token, by their tokens.
        resumed_tokens_per_s: the same of attempts that continue an earlier one, by prompt and output before. The engine
            computes these tokens again or has them in its cache; nobody knows which.
        mean_batch: mean number of decoding requests since the last report.
        resume_share: of a request that comes back to go on, the share of prompt and output that is computed again.
    """

    ready: bool
    awake_model: ModelName | None
    swapping_to: ModelName | None = None
    tiers: tuple[tuple[ModelName, ModelTier], ...] = ()
    running: tuple[RunningRequest, ...] = ()
    kv_used_tokens: int = 0
    tokens_per_s: float = 0.0
    prompt_tokens_per_s: float = 0.0
    resumed_tokens_per_s: float = 0.0
    mean_batch: float = 0.0
    resume_share: float = 1.0
    draining: bool = False
