"""What can happen to the ledger. An event names its cause and carries all that the ledger needs of it."""

from __future__ import annotations

from dataclasses import dataclass

from qlm_core.messages import Attempt, AttemptEnded, AttemptReturned, Chunk
from qlm_core.model import AgentId, Estimate, RequestId, RequestMeta
from qlm_core.outcome import ShedReason
from qlm_core.resume import Resume


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """A request was accepted, or read back from the store at start.

    Attributes:
        durable: the store holds it; its end must be stored too.
        resume: from what it can be continued (`qlm_core.resume`).
        watched: its output goes to a client as it comes.
        expires_s: when its time to live is over, on the ledger's clock.
        restored: it was read back from the store. An agent may still run it, so for the grace nobody else is granted it.
    """

    request: RequestMeta
    durable: bool = False
    resume: Resume = Resume.FROM_TEXT
    watched: bool = False
    expires_s: float
    restored: bool = False


@dataclass(frozen=True, slots=True)
class PullAsked:
    """A connected agent asks for requests."""

    agent: AgentId
    ids: tuple[RequestId, ...]


@dataclass(frozen=True, slots=True)
class ChunkCame:
    """An agent sent output."""

    agent: AgentId
    chunk: Chunk


@dataclass(frozen=True, slots=True)
class AttemptFinished:
    """An agent's engine finished an attempt, or refused it for good."""

    agent: AgentId
    end: AttemptEnded


@dataclass(frozen=True, slots=True)
class AttemptCameBack:
    """An agent gave an attempt back before its end."""

    agent: AgentId
    returned: AttemptReturned


@dataclass(frozen=True, slots=True)
class AgentConnected:
    """An agent opened its work stream and says what it still runs for this gateway."""

    agent: AgentId
    running: tuple[Attempt, ...] = ()


@dataclass(frozen=True, slots=True)
class AgentDisconnected:
    """An agent's work stream broke."""

    agent: AgentId


@dataclass(frozen=True, slots=True)
class CancelAsked:
    """The client gives a request up."""

    id: RequestId


@dataclass(frozen=True, slots=True)
class FailAsked:
    """The gateway itself cannot go on with a request, for `reason`."""

    id: RequestId
    reason: str


@dataclass(frozen=True, slots=True)
class ShedOrdered:
    """The solver drops a waiting request; see `ShedOrder`."""

    id: RequestId
    reason: ShedReason
    retry_after_s: float = 0.0


@dataclass(frozen=True, slots=True)
class EstimateCame:
    """The solver estimated the wait of a request."""

    id: RequestId
    estimate: Estimate


@dataclass(frozen=True, slots=True)
class OutputWatched:
    """A client follows the request's output from now on."""

    id: RequestId


@dataclass(frozen=True, slots=True)
class SolverConnected:
    """A solver session opened; it knows nothing yet."""


@dataclass(frozen=True, slots=True)
class Slept:
    """The gateway itself did not run for `seconds`: no agent could come back meanwhile, so no grace ran."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Woken:
    """The time asked for in `wakeup_s` has come. Early or repeated ones are harmless."""


Event = (
    Submitted
    | PullAsked
    | ChunkCame
    | AttemptFinished
    | AttemptCameBack
    | AgentConnected
    | AgentDisconnected
    | CancelAsked
    | FailAsked
    | ShedOrdered
    | EstimateCame
    | OutputWatched
    | SolverConnected
    | Slept
    | Woken
)
