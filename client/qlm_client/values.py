"""What the client takes and gives: targets, estimates, events of a request, and where one stands."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, TypedDict

Json = dict[str, Any]


class Phase(Enum):
    """Where a request stands in its life."""

    WAITING = "waiting"
    PULLED = "pulled"
    RUNNING = "running"
    FINISHED = "finished"
    CANCELLED = "cancelled"
    SHED = "shed"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """Targets of a request in seconds from its arrival; None is not promised.

    Attributes:
        ttft_s: to the first output token.
        tpot_s: for each output token after the first.
        e2e_s: to the last output token.
    """

    ttft_s: float
    tpot_s: float | None = None
    e2e_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """How long a request waits for its first token, in seconds, as a distribution."""

    mean_s: float
    p50_s: float
    p90_s: float
    p99_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """The request is durable. `estimate` is of its wait; None while no solver is connected."""

    id: str
    slo_class: str
    estimate: Estimate | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """Some output: the text of the first choice, the tokens in it, and the whole OpenAI chunk object."""

    text: str
    tokens: int
    chunk: Json


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a request ended; seconds count from its arrival at the gateway.

    Attributes:
        reason: OpenAI's finish_reason, or why it was shed or failed.
        attained: whether it finished and met every target.
        estimate: the wait estimated at arrival.
    """

    phase: Phase
    reason: str
    prompt_tokens: int
    output_tokens: int
    ttft_s: float | None
    e2e_s: float
    attained: bool
    evictions: int
    estimate: Estimate | None


Event = Accepted | Output | Ended


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where a request stands. `ended` is set once it is over, `response` (OpenAI's object) if it finished."""

    id: str
    model: str
    slo_class: str
    phase: Phase
    waited_s: float
    prompt_tokens: int
    produced_tokens: int
    agent: str
    response: Json | None = None
    ended: Ended | None = None


class Target(TypedDict, total=False):
    """What a request is promised; without either the gateway's default class.

    slo_class: the name of a class.
    slo: explicit targets, which count before those of a class.
    """

    slo_class: str
    slo: Slo | None


class Submission(Target, total=False):
    """What is said of a request beside its body.

    tenant: who asks.
    key: names this submission; repeating a key attaches to its first submission.
    """

    tenant: str
    key: str


class Size(Target, total=False):
    """What is said of a request whose wait is asked for; unknown sizes are 0."""

    prompt_tokens: int
    max_output_tokens: int
