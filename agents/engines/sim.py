"""A simulated engine: continuous batching from a profile, in real or scaled time, with deterministic output.

The text of each token follows from the request's id and the token's index alone, so a stream that was
interrupted can be checked for gaps and repeats. How much a request produces is, in this order:
`qlm_sim.output_tokens` of its body, `max_tokens` where it says `ignore_eos`, or a draw from a log-normal
distribution seeded by its id. What a request asks for beside is read in `agents.engines.sim_job`.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import fields, replace
from typing import Any

import msgspec

from agents.engines.base import Listener
from agents.engines.lenient_json import NO_JSON
from agents.engines.sim_job import Choice, Job, make_job, sampled_output_tokens, token_text
from agents.engines.tiers import Tiers
from qlm_core.config import AgentConfig, Config
from qlm_core.errors import InvalidRequest, QlmError
from qlm_core.executor import EngineReady, JobDone, JobOutput, JobRefused
from qlm_core.messages import Payload
from qlm_core.model import ModelName, ModelTier, RequestId
from qlm_core.profile import ADAPTER_LOAD_S, EngineProfile, IterationTime
from qlm_core.profile_catalog import find_profile
from qlm_core.resume import Resume, resume_of
from qlm_core.sim.batch import ContinuousBatch, Outcome, OutcomeKind

__all__ = ["SimEngine", "sampled_output_tokens", "scaled", "token_text"]


def scaled(profile: EngineProfile, time_scale: float) -> EngineProfile:
    """The profile of an engine that runs so many times faster: every duration in it is shorter."""
    iteration = replace(profile.iteration, **_shortened(profile.iteration, time_scale))
    return replace(profile, iteration=iteration, **_shortened(profile, time_scale))


def _shortened(part: IterationTime | EngineProfile, time_scale: float) -> dict[str, Any]:
    return {
        field.name: getattr(part, field.name) / time_scale
        for field in fields(part)
        if field.name.endswith(("_ms", "_s"))
    }


def _profile(config: Config, model: str, agent: AgentConfig) -> EngineProfile:
    base = config.base_of(model)
    try:
        profile = find_profile(base, agent.gpu)
    except QlmError as error:
        raise QlmError(f"agents.{agent.name}: {error}") from None
    return profile if base == model else profile.adapter(model, load_s=ADAPTER_LOAD_S)


class SimEngine:
    """One simulated serving instance."""

    def __init__(self, config: Config, agent: AgentConfig) -> None:
        section = agent.engine.sim
        self._seed = section.seed
        self._zero_delay = section.zero_delay
        self._interval_s = section.stream_interval_s
        self._profiles = {
            ModelName(model): scaled(_profile(config, model, agent), section.time_scale)
            for model in agent.models
        }
        self._max_model_len = {
            ModelName(model): config.models[model].max_model_len for model in agent.models
        }
        self._tiers = Tiers(self._profiles.values(), agent.host_memory_bytes)
        self._listener: Listener | None = None
        self._jobs: dict[RequestId, Job] = {}
        # By their names in the batch.
        self._choices: dict[str, Choice] = {}
        self._batch: ContinuousBatch | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = 0.0
        self._streamed_s = 0.0
        self._swap: asyncio.Task[None] | None = None
        self._warming: asyncio.Task[None] | None = None

    @property
    def profiles(self) -> tuple[EngineProfile, ...]:
        """The catalogue's profiles, in scaled time."""
        return tuple(self._profiles.values())

    async def start(self, listener: Listener) -> None:
        """Wake the first model; the others sleep as far as host memory goes."""
        self._listener = listener
        bases = dict.fromkeys(ModelName(one.base) for one in self._profiles.values())
        for model in bases:
            if self._tiers.fits(model):
                self._tiers.set(model, ModelTier.ASLEEP)
        self._wake(next(iter(bases)))

    async def stop(self) -> None:
        """End everything."""
        for task in (self._swap, self._warming):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._jobs.clear()
        self._choices.clear()
        self._batch = None

    def submit(self, job: Payload, priority: int = 0) -> None:
        """Run a job of the awake model or of an adapter of it."""
        try:
            made = make_job(job, model_len=self._max_model_len[job.model], seed=self._seed)
        except NO_JSON as error:
            self._later(JobRefused(job.id, job.attempt, 400, f"body: {error}"))
            return
        except InvalidRequest as error:
            self._later(JobRefused(job.id, job.attempt, 400, str(error)))
            return
        self._jobs[job.id] = made
        if self._zero_delay:
            asyncio.get_running_loop().call_soon(self._answer_at_once, made)
            return
        assert self._batch is not None, "no model is awake"
        try:
            self._add(made, self._batch, priority)
        except ValueError as error:
            self._remove(made)
            self._later(JobRefused(job.id, job.attempt, 400, str(error)))
            return
        self._schedule()

    def evictable(self, job: Payload) -> bool:
        """Whether a job can go on elsewhere from its text."""
        try:
            body = msgspec.json.decode(job.body, type=dict[str, Any])
        except NO_JSON:
            return False  # it ends here anyway
        return resume_of(body, job.endpoint) is Resume.FROM_TEXT

    def abort(self, id: RequestId, attempt: int) -> None:
        """Take a job off the engine."""
        job = self._jobs.get(id)
        if job is None or job.attempt != attempt:
            return
        if self._batch is not None:
            self._report(self._batch.advance(time.monotonic()), without=job)
        self._remove(job)
        self._schedule()

    def swap(self, model: ModelName) -> None:
        """Put the awake model to sleep and wake another."""
        self._swap = asyncio.create_task(self._change(model))

    def warm(self, models: tuple[ModelName, ...]) -> None:
        """Load models into host memory, the next first."""
        if self._warming is not None:
            self._warming.cancel()
        self._warming = asyncio.create_task(self._load(models))

    def kv_used_tokens(self) -> int:
        """Tokens in the simulated KV cache."""
        return self._batch.kv_used_tokens if self._batch is not None else 0

    # ------------------------------------------------------------------- models

    async def _change(self, model: ModelName) -> None:
        awake = self._tiers.awake
        profile = self._profiles[model]
        pause_s = 0.0
        self._batch = None
        if awake is not None:
            pause_s += self._profiles[awake].sleep_s
            self._tiers.set(awake, ModelTier.ASLEEP)
        for dropped in self._tiers.to_drop(model):
            self._tiers.set(dropped, ModelTier.COLD)
        pause_s += profile.wake_s if self._tiers[model] is ModelTier.ASLEEP else profile.cold_s
        await asyncio.sleep(0.0 if self._zero_delay else pause_s)
        self._wake(model)

    async def _load(self, models: tuple[ModelName, ...]) -> None:
        for model in models:
            if self._tiers[model] is not ModelTier.COLD:
                continue
            for dropped in self._tiers.to_drop(model, keep=models):
                if dropped in models and models.index(dropped) < models.index(model):
                    return
                self._tiers.set(dropped, ModelTier.COLD)
            if not self._tiers.fits(model):
                return
            profile = self._profiles[model]
            await asyncio.sleep(max(0.0, profile.cold_s - profile.wake_s))
            if self._tiers[model] is ModelTier.COLD:
                self._tiers.set(model, ModelTier.ASLEEP)

    def _wake(self, model: ModelName) -> None:
        self._tiers.set(model, ModelTier.AWAKE)
        self._batch = ContinuousBatch(self._profiles[model], policy="priority")
        self._batch.advance(time.monotonic())
        self._tell(EngineReady(model, self._tiers.as_tuple()))

    # ------------------------------------------------------------------- jobs

    def _add(self, job: Job, batch: ContinuousBatch, priority: int) -> None:
        now_s = time.monotonic()
        for choice in job.choices:
            tokens = choice.prompt_tokens + job.earlier_tokens
            batch.add(
                choice.name,
                prompt_tokens=tokens,
                output_tokens=max(1, choice.total_tokens - job.earlier_tokens),
                now_s=now_s,
                priority=priority,
                cached_tokens=batch.profile.kept_tokens(tokens) if job.earlier_tokens else 0,
            )
            self._choices[choice.name] = choice

    def _remove(self, job: Job) -> None:
        del self._jobs[job.id]
        for choice in job.choices:
            known = self._choices.pop(choice.name, None)
            if known is not None and self._batch is not None and choice.name in self._batch:
                self._batch.abort(choice.name, now_s=time.monotonic())

    def _answer_at_once(self, job: Job) -> None:
        if self._jobs.get(job.id) is not job:
            return
        for choice in job.choices:
            for produced in range(1, choice.total_tokens - job.earlier_tokens + 1):
                self._emit(choice, produced)
            if not choice.over:
                self._emit(choice, 0)
        self._finish(job)

    def _emit(self, choice: Choice, produced: int) -> None:
        """Send what a choice has produced and not yet sent."""
        chunk = choice.chunk(produced)
        if chunk is not None:
            self._tell(JobOutput(choice.job.id, choice.job.attempt, *chunk))

    def _finish(self, job: Job) -> None:
        del self._jobs[job.id]
        prompt = job.prompt_tokens + job.earlier_tokens
        output = sum([choice.emitted for choice in job.choices])
        reason = job.choices[0].finish_reason
        if job.answer:
            self._tell(JobOutput(job.id, job.attempt, job.answer, 0, plain=False, whole=True))
        self._tell(JobDone(job.id, job.attempt, reason, prompt, output))

    # ------------------------------------------------------------------- time

    def _schedule(self) -> None:
        """Wake when the batch changes next, or when the next tokens are due to be streamed."""
        batch = self._batch
        if batch is None:
            return
        due_s = batch.next_event_s
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if due_s is None:
            return
        due_s = min(due_s, max(self._streamed_s + self._interval_s, batch.next_iteration_s or 0.0))
        delay_s = max(0.0, due_s - time.monotonic())
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._tick)

    def _tick(self) -> None:
        self._timer = None
        batch = self._batch
        if batch is None:
            return
        now_s = time.monotonic()
        self._report(batch.advance(now_s))
        if now_s - self._streamed_s >= self._interval_s and self._batch is batch:
            self._streamed_s = now_s
            for name, produced in list(batch.progress()):
                choice = self._choices.get(name)
                if choice is not None:
                    self._emit(choice, produced)
        if self._timer is None:
            self._schedule()

    def _report(self, outcomes: list[Outcome], *, without: Job | None = None) -> None:
        for outcome in outcomes:
            choice = self._choices.get(outcome.request_id)
            if choice is None or choice.job is without:
                continue
            if outcome.kind is OutcomeKind.FIRST_TOKEN:
                self._emit(choice, outcome.output_tokens)
            elif outcome.kind is OutcomeKind.FINISHED:
                self._emit(choice, outcome.output_tokens)
                del self._choices[choice.name]
                # Not when all are over: one whose last token is out may still be in the batch.
                if not any(each.name in self._choices for each in choice.job.choices):
                    self._finish(choice.job)

    def _tell(self, event: JobOutput | JobDone | JobRefused | EngineReady) -> None:
        if self._listener is not None:
            self._listener(event)

    def _later(self, event: JobRefused) -> None:
        asyncio.get_running_loop().call_soon(self._tell, event)
