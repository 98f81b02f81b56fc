"""The seam between an agent and what serves tokens.

An engine is one serving instance: it can keep one model awake and run a batch of jobs on it. It decides nothing. Its
owner calls it from one event loop and hears back through one listener, on the same loop; calls never block and never
raise for what may happen in operation (a crash, a refusal): that arrives as an event. A job's events come in order
and end with exactly one of `JobDone`, `JobRefused` or `JobLost`; after `abort` returns, no further event of that job
comes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from qlm_core.messages import Payload
from qlm_core.model import ModelName, ModelTier, RequestId
from qlm_core.profile import EngineProfile


@dataclass(frozen=True, slots=True)
class JobOutput:
    """Some output of a job: one OpenAI chunk object as JSON (without `id`), and its output tokens."""

    id: RequestId
    attempt: int
    data: bytes
    tokens: int


@dataclass(frozen=True, slots=True)
class JobDone:
    """A job finished. Token counts are of this job alone, as the engine counts them."""

    id: RequestId
    attempt: int
    finish_reason: str
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class JobRefused:
    """The engine will never run this job; `status` is its HTTP status, 0 if none."""

    id: RequestId
    attempt: int
    status: int
    error: str


@dataclass(frozen=True, slots=True)
class JobLost:
    """The engine went away under a running job; the job can be tried again."""

    id: RequestId
    attempt: int


@dataclass(frozen=True, slots=True)
class EngineReady:
    """The engine can run jobs of `awake` now: after start, after a swap, after a recovery."""

    awake: ModelName
    tiers: tuple[tuple[ModelName, ModelTier], ...]


@dataclass(frozen=True, slots=True)
class EngineDown:
    """The engine cannot run anything until the next `EngineReady`; all its jobs were reported lost."""

    reason: str


@dataclass(frozen=True, slots=True)
class SwapFailed:
    """The model could not be made awake; the engine stays as it was or goes down."""

    model: ModelName
    reason: str


EngineEvent = JobOutput | JobDone | JobRefused | JobLost | EngineReady | EngineDown | SwapFailed
Listener = Callable[[EngineEvent], None]


class Engine(Protocol):
    """One serving instance."""

    @property
    def profiles(self) -> tuple[EngineProfile, ...]:
        """One profile for each model that this instance can serve; complete once started."""

    async def start(self, listener: Listener) -> None:
        """Bring the engine up with its first model awake. Raises QlmError if that is impossible."""

    async def stop(self) -> None:
        """End what runs and release everything. Idempotent."""

    def submit(self, job: Payload) -> None:
        """Run a job of the awake model. A resumed job continues after `resume_text`."""

    def abort(self, id: RequestId, attempt: int) -> None:
        """Stop a job and free its memory. Unknown jobs are ignored."""

    def swap(self, model: ModelName) -> None:
        """Make `model` the awake one; answered by `EngineReady`, `SwapFailed` or `EngineDown`.

        The caller has no running jobs when it calls this.
        """

    def warm(self, models: tuple[ModelName, ...]) -> None:
        """Hint: these models come next, in order; keep them in host memory as far as it goes."""

    def kv_used_tokens(self) -> int:
        """Tokens in the KV cache now, by the engine's own account; an estimate where it gives none."""
