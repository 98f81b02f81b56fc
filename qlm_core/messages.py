"""What the processes of QLM say to each other, as plain values.

Five conversations: gateway → solver (facts), solver → gateway (orders), agent → solver (hello, reports),
solver → agent (queue updates), and agent ↔ gateway (work). `protos.wire` turns each into its wire form and
back; the machines consume and emit them. Times in a message are durations from the moment of sending, and the
receiver turns them into instants on its own clock; the values here hold instants of their holder.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from qlm_core.endpoint import Endpoint
from qlm_core.model import (
    AgentId,
    BatchId,
    Estimate,
    GatewayId,
    InstanceState,
    ModelName,
    Phase,
    QueuedGroup,
    RequestId,
    RequestMeta,
    RequestRef,
    Slo,
)
from qlm_core.outcome import PullRefusal, ShedReason
from qlm_core.profile import EngineProfile
from qlm_core.resume import ResumedBy

# --------------------------------------------------------------------------- on every stream


@dataclass(frozen=True, slots=True)
class Alive:
    """Says nothing but that its sender lives (`qlm_core.presence`). On the wire it is a message without content."""


# --------------------------------------------------------------------------- gateway → solver


@dataclass(frozen=True, slots=True)
class GatewayHello:
    """Opens a gateway's session; `work_address` is where agents reach it (host:port)."""

    gateway: GatewayId
    work_address: str


@dataclass(frozen=True, slots=True)
class Arrived:
    """A request waits at a gateway, newly or re-announced; `estimated` if that has an estimate of it from before."""

    request: RequestMeta
    estimated: bool = False


@dataclass(frozen=True, slots=True)
class Pulled:
    """An agent holds the request now."""

    id: RequestId
    agent: AgentId


@dataclass(frozen=True, slots=True)
class Returned:
    """The request waits again, with so many tokens already produced."""

    id: RequestId
    produced_tokens: int


@dataclass(frozen=True, slots=True)
class FirstToken:
    """The first token of the request reached its gateway, `ttft_s` after arrival."""

    id: RequestId
    ttft_s: float


@dataclass(frozen=True, slots=True)
class Ended:
    """The request is over and may be forgotten; the counts are the engine's."""

    id: RequestId
    phase: Phase
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class BulkWaiting:
    """So many lines of a batch wait at its gateway that are no requests yet: its bulk, of one model.

    A line that is released is told as any other request, by `Arrived`, whose metadata names the batch and has the targets and the
    arrival of the bulk. The bulk is told anew after the arrivals whenever lines were released, and in each announcement; the
    last word counts.

    Attributes:
        slo: of each line, counted from `arrival_s`; its end is that of the completion window.
        lines: 0 once none is left, or the batch is cancelled.
        prompt_tokens_mean: of these lines.
        max_output_tokens: the limit on output of a line; the mean where they differ.
        arrival_s: when the batch was accepted, on the holder's clock.
    """

    batch: BatchId
    model: ModelName
    slo_class: str
    slo: Slo
    lines: int
    prompt_tokens_mean: float
    max_output_tokens: int
    arrival_s: float
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class AnnounceDone:
    """Everything that the gateway holds has been announced."""


GatewayFact = (
    GatewayHello
    | Arrived
    | Pulled
    | Returned
    | FirstToken
    | Ended
    | BulkWaiting
    | AnnounceDone
    | Alive
)

# --------------------------------------------------------------------------- solver → gateway


@dataclass(frozen=True, slots=True)
class EstimateGiven:
    """The estimated wait of a request from its arrival, made when the solver heard of it."""

    id: RequestId
    estimate: Estimate


@dataclass(frozen=True, slots=True)
class ShedOrder:
    """Drop a waiting request; `retry_after_s` says when another like it would be in time, where that is the reason."""

    id: RequestId
    reason: ShedReason
    retry_after_s: float = 0.0


@dataclass(frozen=True, slots=True)
class BulkEstimate:
    """When the last line of a batch will have ended; told when it is known, and again when it has changed.

    Attributes:
        feasible: whether that is expected within the completion window.
        finish_p50_s: seconds from now until then; None while nobody serves a model of the batch.
        finish_p90_s: the same that holds nine times in ten.
        explanation: in words, what the batch waits behind, what limits it, and what would help.
    """

    batch: BatchId
    feasible: bool
    finish_p50_s: float | None
    finish_p90_s: float | None
    explanation: str


@dataclass(frozen=True, slots=True)
class Fleet:
    """The models that there are agents for, and whether an engine of any of them is up."""

    models: tuple[ModelName, ...]
    up: bool = True


GatewayOrder = EstimateGiven | ShedOrder | BulkEstimate | Fleet | Alive

# --------------------------------------------------------------------------- gateway ↔ solver, on the side


@dataclass(frozen=True, slots=True)
class BulkShape:
    """What would be submitted of one model; the fields are those of `BulkWaiting`."""

    model: ModelName
    lines: int
    prompt_tokens_mean: float
    max_output_tokens: int


@dataclass(frozen=True, slots=True)
class BatchQuestion:
    """Asks when a batch would be done that is not submitted, or one request: a batch of one line."""

    parts: tuple[BulkShape, ...]
    slo_class: str
    slo: Slo


@dataclass(frozen=True, slots=True)
class BatchForecast:
    """The answer; `wait` is that of its first line, the rest is as in `BulkEstimate`."""

    wait: Estimate
    feasible: bool
    finish_p50_s: float | None
    finish_p90_s: float | None
    explanation: str


# --------------------------------------------------------------------------- agent ↔ solver


@dataclass(frozen=True, slots=True)
class AgentHello:
    """Opens an agent's session: what the instance is, can serve and is doing.

    `profiles` has one entry for each model that the instance can serve. `epoch` is the queue epoch
    that it still works from, 0 for none.
    """

    agent: AgentId
    gpu: str
    profiles: tuple[EngineProfile, ...]
    epoch: int
    state: InstanceState


@dataclass(frozen=True, slots=True)
class QueueUpdate:
    """A change of an agent's virtual queue and request window.

    `order` replaces the order of groups unless it is None. `add` appends references to their groups,
    in order; `remove` takes references away. A `snapshot` replaces everything.

    Attributes:
        wake: told with an order, the base to have awake once nothing of it is left to pull; None for whatever is awake then.
    """

    epoch: int
    snapshot: bool = False
    order: tuple[QueuedGroup, ...] | None = None
    add: tuple[RequestRef, ...] = ()
    remove: tuple[RequestId, ...] = ()
    wake: ModelName | None = None


@dataclass(frozen=True, slots=True)
class Gateways:
    """Every gateway an agent should be connected to, as (id, host:port)."""

    addresses: tuple[tuple[GatewayId, str], ...]


AgentMessage = AgentHello | InstanceState
AgentOrder = QueueUpdate | Gateways | Alive

# --------------------------------------------------------------------------- agent ↔ gateway


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt at one request, and how much of its output there is.

    Attributes:
        chunks: of an agent, what it has of the attempt, sent or not; of a gateway, what has arrived.
        first_chunk: the first chunk that the agent can still send again, counted from 0.
        continued: it went on from the output of an earlier attempt, which its agent does not have.
    """

    id: RequestId
    attempt: int
    chunks: int = 0
    first_chunk: int = 0
    continued: bool = False


@dataclass(frozen=True, slots=True)
class WorkHello:
    """Opens a work stream. `running` are attempts that outlived an earlier stream, and those that ended lately.

    Nothing else is sent before the gateway has answered with `Joined`.
    """

    agent: AgentId
    running: tuple[Attempt, ...] = ()


@dataclass(frozen=True, slots=True)
class Pull:
    """Asks for payloads."""

    ids: tuple[RequestId, ...]


@dataclass(frozen=True, slots=True)
class TokenIds:
    """Token ids as an engine tells them.

    Attributes:
        position: how many output tokens of the request come before `output`. Ids from there on that were told earlier
            are void: their engine had not yet turned them into text.
        prompt: ids of the prompt, once in each attempt that did not begin with ids.
    """

    position: int
    output: tuple[int, ...]
    prompt: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Chunk:
    """Output of an attempt: an OpenAI chunk object as JSON, and the output tokens in it.

    Attributes:
        tokens: output tokens whose text is in this chunk or in an earlier one, each counted once.
        plain: whether this is nothing but text, which another engine can continue.
        ids: the token ids behind it; None where the engine does not tell them.
        whole: it is all of the answer, so when its first token was made is not known.
    """

    id: RequestId
    attempt: int
    data: bytes
    tokens: int
    plain: bool = True
    ids: TokenIds | None = None
    whole: bool = False


@dataclass(frozen=True, slots=True)
class AttemptEnded:
    """The engine finished an attempt. Token counts are of this attempt alone.

    With `finish_reason` "error" the engine refused the request for good; `error` says why and
    `error_status` is its HTTP status, 0 if none. `closing` is the engine's last word beside the output as a JSON
    object, usage in its own words included; empty where there was none.
    """

    id: RequestId
    attempt: int
    finish_reason: str
    prompt_tokens: int = 0
    output_tokens: int = 0
    error: str = ""
    error_status: int = 0
    closing: bytes = b""
    resumed_by: ResumedBy = ResumedBy.NOTHING


class ReturnReason(Enum):
    """Why an attempt stopped before its end.

    EVICTED: it gave way. DRAINING: the agent leaves. TURNED_AWAY: the engine had no room for it. None of these says
    anything against the request. ENGINE_LOST: the engine failed. ENGINE_ERROR: the engine answered this request with
    an error while it serves others.
    """

    EVICTED = "evicted"
    ENGINE_LOST = "engine-lost"
    DRAINING = "draining"
    TURNED_AWAY = "turned-away"
    ENGINE_ERROR = "engine-error"


@dataclass(frozen=True, slots=True)
class AttemptReturned:
    """An attempt stopped before its end; the request waits again.

    Attributes:
        detail: what happened, in the engine's words where it had any.
        rest_s: how long the request is not to be tried again, as the engine asked.
    """

    id: RequestId
    attempt: int
    reason: ReturnReason
    detail: str = ""
    rest_s: float = 0.0


WorkEvent = WorkHello | Pull | Chunk | AttemptEnded | AttemptReturned | Alive


@dataclass(frozen=True, slots=True)
class Joined:
    """Answers a hello: the attempts that go on, each from the chunk at which the gateway stands."""

    going_on: tuple[Attempt, ...] = ()


@dataclass(frozen=True, slots=True)
class Payload:
    """A request to run: the client's body, and what earlier attempts already produced.

    Attributes:
        resume_text: the text so far.
        resume_ids: the ids of the prompt and of all output so far; empty where they are not known.
        text_offset_chars: where the next token's text begins, as an engine counts that in its log-probabilities.
        headers: of the client's, to be passed on to the engine.
    """

    id: RequestId
    attempt: int
    model: ModelName
    endpoint: Endpoint
    body: bytes
    resume_text: str = ""
    produced_tokens: int = 0
    resume_ids: tuple[int, ...] = ()
    text_offset_chars: int = 0
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def chat(self) -> bool:
        """Whether it asks for the answer of a chat."""
        return self.endpoint.chat


@dataclass(frozen=True, slots=True)
class Refused:
    """A pull that is not granted."""

    id: RequestId
    reason: PullRefusal


@dataclass(frozen=True, slots=True)
class Revoked:
    """Stop an attempt: its client cancelled it, or another attempt took its place."""

    id: RequestId
    attempt: int


WorkOrder = Joined | Payload | Refused | Revoked | Alive
