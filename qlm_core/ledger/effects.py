"""What the ledger wants done, in order, and the record that a request ends with."""

from __future__ import annotations

from dataclasses import dataclass

from qlm_core.messages import Attempt, Chunk, GatewayFact
from qlm_core.model import AgentId, Estimate, Phase, RequestId
from qlm_core.outcome import PullRefusal
from qlm_core.resume import ResumedBy


@dataclass(frozen=True, slots=True)
class Tell:
    """Tell the solver a fact. Lost ones do no harm: everything is announced again on connection."""

    fact: GatewayFact


@dataclass(frozen=True, slots=True)
class Grant:
    """Send the request to the agent under this attempt number, to go on after `produced_tokens`."""

    agent: AgentId
    id: RequestId
    attempt: int
    produced_tokens: int


@dataclass(frozen=True, slots=True)
class Refuse:
    """Tell the agent that it does not get the request."""

    agent: AgentId
    id: RequestId
    reason: PullRefusal


@dataclass(frozen=True, slots=True)
class Revoke:
    """Tell the agent to stop an attempt."""

    agent: AgentId
    id: RequestId
    attempt: int


@dataclass(frozen=True, slots=True)
class Welcome:
    """Answer an agent's hello: these of its attempts go on, each from the chunk at which the gateway stands."""

    agent: AgentId
    going_on: tuple[Attempt, ...]


@dataclass(frozen=True, slots=True)
class Deliver:
    """Keep this output and pass it to whoever follows the request."""

    chunk: Chunk


@dataclass(frozen=True, slots=True)
class DropOutput:
    """Forget the request's output so far: nobody saw it, and the request starts over."""

    id: RequestId


@dataclass(frozen=True, slots=True)
class Estimated:
    """The request's estimated wait is known."""

    id: RequestId
    estimate: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class EndRecord:
    """How a request ended. There is exactly one of these per request.

    Attributes:
        reason: OpenAI's finish_reason where it finished, else why it did not.
        error: what the engine or gateway said of a failure; "" otherwise.
        error_status: the engine's HTTP status for a refusal, 0 if none.
        prompt_tokens: counted once, however many attempts there were.
        output_tokens: of all attempts together, as far as the client has them.
        queue_s: seconds from arrival to the first grant; None if it was never granted.
        ttft_s: seconds from arrival to the first token; None if there was none.
        tpot_s: mean seconds per token after the first; None below two tokens.
        pause_s: the longest time between two tokens that came one after the other; None below two tokens.
        attained: it finished and met every target.
        attempts: how often it was handed to an agent.
        closing: the engine's last word beside the output, as a JSON object; empty if there was none.
        resumed_by: from what its last attempt went on.
        retry_after_s: when to come back, of one that was shed as late.
    """

    phase: Phase
    reason: str
    error: str = ""
    error_status: int = 0
    prompt_tokens: int
    output_tokens: int
    queue_s: float | None
    ttft_s: float | None
    tpot_s: float | None
    e2e_s: float
    attained: bool
    attempts: int
    evictions: int
    estimate: Estimate | None
    closing: bytes = b""
    resumed_by: ResumedBy = ResumedBy.NOTHING
    retry_after_s: float = 0.0
    pause_s: float | None = None


@dataclass(frozen=True, slots=True)
class EndRequest:
    """The request is over: store the record where `durable`, then tell the client."""

    id: RequestId
    record: EndRecord
    durable: bool


Effect = Tell | Grant | Refuse | Revoke | Welcome | Deliver | DropOutput | Estimated | EndRequest
