"""The seam between an agent and what serves tokens.

An engine is one serving instance: it can keep one model awake and run a batch of jobs on it and on its LoRA adapters. It
decides nothing. Its owner calls it from one event loop and hears back through one listener, on the same loop; calls
never block and never raise for what may happen in operation (a crash, a refusal): that arrives as an event. A job's
events come in order and end with exactly one of `JobDone`, `JobRefused`, `JobLost` or `JobTurnedAway`; after `abort`
returns, no further event of that job comes. The events are the executor's own (`qlm_core.executor.events`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from qlm_core.executor.events import EngineEvent
from qlm_core.messages import Payload
from qlm_core.model import ModelName, RequestId
from qlm_core.profile import EngineProfile

Listener = Callable[[EngineEvent], None]


class Engine(Protocol):
    """One serving instance."""

    @property
    def profiles(self) -> tuple[EngineProfile, ...]:
        """One profile for each model that this instance can serve; complete once started."""

    async def start(self, listener: Listener) -> None:
        """Bring the engine up with its first model awake, which `EngineReady` tells.

        An engine that somebody else brings up may be down at first (`EngineDown`), and comes when it comes.
        Raises QlmError if it can never come.
        """

    async def stop(self) -> None:
        """End what runs and release everything. Idempotent."""

    def submit(self, job: Payload, priority: int = 0) -> None:
        """Run a job of the awake model or of an adapter of it, lower priorities first where the engine can tell.

        A resumed job continues after what earlier attempts produced: from `resume_ids` where the engine can and they are
        known, else after `resume_text`. An adapter that does not load is told as `SwapFailed` of it, and its jobs are lost
        then, unless they were aborted meanwhile.
        """

    def evictable(self, job: Payload) -> bool:
        """Whether a job, once begun here, could be continued elsewhere as if nothing had happened, as far as this
        engine's answers allow.
        """

    def abort(self, id: RequestId, attempt: int) -> None:
        """Stop a job and free its memory. Unknown jobs are ignored."""

    def swap(self, model: ModelName) -> None:
        """Make `model`, which is no adapter, the awake one; answered by `EngineReady`, `SwapFailed` or `EngineDown`.

        The caller has no running jobs when it calls this.
        """

    def warm(self, models: tuple[ModelName, ...]) -> None:
        """Hint: these models come next, in order; keep them in host memory as far as it goes."""

    def kv_used_tokens(self) -> int:
        """Tokens in the KV cache now, by the engine's own account; an estimate where it gives none."""
