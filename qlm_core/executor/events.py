"""What the executor hears and what it orders.

Events are facts, in the past tense or as the message that brought them; effects are orders to the driver, to be
carried out in the order given. A swap and a pull take time: their ends come back as events.
"""

from __future__ import annotations

from dataclasses import dataclass

from qlm_core.messages import (
    AttemptEnded,
    AttemptReturned,
    Chunk,
    Payload,
    Pull,
    QueueUpdate,
    Refused,
    Revoked,
)
from qlm_core.model import GatewayId, InstanceState, ModelName, ModelTier, RequestId
from qlm_core.resume import ResumedBy

# --------------------------------------------------------------------------- events of an engine


# Output of a job travels on as it is: one OpenAI chunk object as JSON (without `id`), and its tokens.
JobOutput = Chunk


@dataclass(frozen=True, slots=True)
class JobDone:
    """A job finished. Token counts are of this job alone, as the engine counts them.

    What earlier attempts produced is part of a continued job's prompt, so `prompt_tokens` has it too. `closing` is the
    engine's last word beside the output, as in `AttemptEnded`.

    Attributes:
        cached_tokens: of the prompt, those that were not computed but found in a cache; None if the engine does not tell.
    """

    id: RequestId
    attempt: int
    finish_reason: str
    prompt_tokens: int
    output_tokens: int
    closing: bytes = b""
    resumed_by: ResumedBy = ResumedBy.NOTHING
    cached_tokens: int | None = None

    def ended(self) -> AttemptEnded:
        """What the gateway is told."""
        return AttemptEnded(
            id=self.id,
            attempt=self.attempt,
            finish_reason=self.finish_reason,
            prompt_tokens=self.prompt_tokens,
            output_tokens=self.output_tokens,
            closing=self.closing,
            resumed_by=self.resumed_by,
        )


@dataclass(frozen=True, slots=True)
class JobRefused:
    """The engine will never run this job; `status` is its HTTP status, 0 if none."""

    id: RequestId
    attempt: int
    status: int
    error: str

    def ended(self) -> AttemptEnded:
        """What the gateway is told."""
        return AttemptEnded(
            id=self.id,
            attempt=self.attempt,
            finish_reason="error",
            error=self.error,
            error_status=self.status,
        )


@dataclass(frozen=True, slots=True)
class JobLost:
    """The engine gave a job up or went away under it; the job can be tried again.

    Attributes:
        reason: what happened, in the engine's words where it had any.
        answered: the engine said so in an answer to this job, so the job may be the cause as well as the engine.
    """

    id: RequestId
    attempt: int
    reason: str = ""
    answered: bool = False


@dataclass(frozen=True, slots=True)
class JobTurnedAway:
    """The engine has no room for a job now; it asks for `rest_s` before the next try, 0 if it names no time."""

    id: RequestId
    attempt: int
    reason: str = ""
    rest_s: float = 0.0


@dataclass(frozen=True, slots=True)
class EngineReady:
    """The engine can run jobs of `awake` now: after start, after a swap, after a recovery."""

    awake: ModelName
    tiers: tuple[tuple[ModelName, ModelTier], ...]


@dataclass(frozen=True, slots=True)
class EngineDown:
    """The engine cannot run anything until the next `EngineReady`; its jobs are lost."""

    reason: str


@dataclass(frozen=True, slots=True)
class SwapFailed:
    """The model could not be made awake; the engine stays as it was or goes down."""

    model: ModelName
    reason: str


EngineEvent = (
    JobOutput
    | JobDone
    | JobRefused
    | JobLost
    | JobTurnedAway
    | EngineReady
    | EngineDown
    | SwapFailed
)

# --------------------------------------------------------------------------- events of the driver


@dataclass(frozen=True, slots=True)
class GatewayUp:
    """A gateway can be reached: pulls and results may be sent to it."""

    gateway: GatewayId


@dataclass(frozen=True, slots=True)
class GatewayLost:
    """A gateway cannot be reached. With `forget` it has been away too long: its attempts are over."""

    gateway: GatewayId
    forget: bool = False


@dataclass(frozen=True, slots=True)
class Drain:
    """The agent leaves: nothing new is pulled; what still runs at `deadline_s` is returned."""

    deadline_s: float


@dataclass(frozen=True, slots=True)
class Wakeup:
    """`Executor.wakeup_s` has come. Early and repeated ones are harmless."""


@dataclass(frozen=True, slots=True)
class Granted:
    """A gateway answered a pull with the request to run.

    `evictable` says whether it could be continued elsewhere as if nothing had happened, as far as its engine can tell.
    """

    gateway: GatewayId
    job: Payload
    evictable: bool = True


Event = (
    QueueUpdate
    | Granted
    | Refused
    | Revoked
    | EngineEvent
    | GatewayUp
    | GatewayLost
    | Drain
    | Wakeup
)

# --------------------------------------------------------------------------- effects


@dataclass(frozen=True, slots=True)
class Send:
    """Tell a gateway."""

    gateway: GatewayId
    event: Pull | AttemptEnded | AttemptReturned


@dataclass(frozen=True, slots=True)
class Submit:
    """Start a job on the engine; `gateway` is where its output goes.

    Of lower `priority` is what the engine runs sooner and preempts later, where it can tell: milliseconds of the due time.
    """

    gateway: GatewayId
    job: Payload
    priority: int


@dataclass(frozen=True, slots=True)
class Abort:
    """Stop a job on the engine; nothing of it may be sent after this."""

    id: RequestId
    attempt: int


@dataclass(frozen=True, slots=True)
class SwapModel:
    """Make a model the awake one. No job runs."""

    model: ModelName


@dataclass(frozen=True, slots=True)
class Warm:
    """These models come next, in order."""

    models: tuple[ModelName, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """Tell the solver the state of the instance."""

    state: InstanceState


@dataclass(frozen=True, slots=True)
class Drained:
    """A drain is complete: nothing is held any more."""


Effect = Send | Submit | Abort | SwapModel | Warm | Report | Drained
