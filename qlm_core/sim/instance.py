"""One simulated serving instance: an engine, the models on its host, and the jobs it was given.

The engine of the awake model is a `ContinuousBatch`, which has the requests of its adapters too; that these have to be
loaded is left out. Other models sleep in host memory as far as it goes and are cold beyond that; host memory also keeps the
KV cache of evicted requests, so that they resume on this instance without computing it again. Which models sleep is
decided by use and by the executor's hint of what comes next.
"""

from __future__ import annotations

from dataclasses import dataclass

from qlm_core.model import ModelName, ModelTier
from qlm_core.profile import EngineProfile
from qlm_core.sim.batch import ContinuousBatch, Outcome, SchedulingPolicy
from qlm_core.sim.scenario import InstanceSpec

# Host-to-GPU copies of sleeping weights and of KV cache, as in the shipped profiles' wake_s.
_COPY_BYTES_PER_S = 23e9


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """What the engines of a run can do.

    Attributes:
        scheduling: the engine's own queue: first come first served, or by priority.
        warm_start: models that are not awake sleep in host memory; without it they are cold.
        kv_swap: the KV cache of an evicted request is kept in host memory.
    """

    scheduling: SchedulingPolicy = "priority"
    warm_start: bool = True
    kv_swap: bool = True


@dataclass(slots=True)
class Job:
    """An attempt on the engine. `told` tokens are known to the executor, `sent` to the ledger."""

    attempt: int
    resident_tokens: int
    resumed: bool = False
    told: int = 0
    sent: int = 0
    done: bool = False


class Instance:
    """The engine side of an agent. Calls carry the time, which never goes back."""

    def __init__(self, spec: InstanceSpec, options: EngineOptions):
        self.spec = spec
        self.jobs: dict[str, Job] = {}
        self.swaps = 0
        self.swap_s = 0.0
        self._options = options
        self._profiles = {profile.model: profile for profile in spec.profiles}
        self._asleep: dict[str, int] = {}
        self._kept: dict[str, tuple[int, int]] = {}
        self._host_bytes = 0
        self._next_models: tuple[str, ...] = ()
        self._past_busy_s = 0.0
        self._past_preemptions = 0
        self._restoring: dict[str, tuple[int, int, int]] = {}
        # Aborted, and the engine has yet to hear of it.
        self._unheard: dict[str, None] = {}
        self.awake: str | None = spec.awake
        self.engine = self._new_engine(spec.awake)
        if options.warm_start:
            for model, profile in self._profiles.items():
                if model != spec.awake and not profile.adapter_of:
                    self._put_to_sleep(model)

    # ------------------------------------------------------------------ jobs

    @property
    def busy_s(self) -> float:
        """Time spent in iterations so far, of all engines."""
        return self._past_busy_s + self.engine.busy_s

    @property
    def preemptions(self) -> int:
        """How often engines here took a request off by themselves, to compute it again."""
        return self._past_preemptions + self.engine.preemptions

    @property
    def next_event_s(self) -> float | None:
        """When the engine has something to say, if nobody interferes."""
        return self.engine.next_event_s

    def restore_s(self, job: str) -> float:
        """Seconds to copy a job's KV cache back from host memory; 0 if none is kept."""
        kept = self._kept.get(job)
        return kept[1] / _COPY_BYTES_PER_S if kept is not None else 0.0

    def take(
        self,
        job: str,
        *,
        attempt: int,
        prompt_tokens: int,
        output_tokens: int,
        resumed: bool = False,
    ) -> None:
        """Accept a job; it is on the engine from `start` on. One that was `resumed` has its earlier output in its prompt."""
        self.jobs[job] = Job(attempt, prompt_tokens, resumed)
        self._restoring[job] = (prompt_tokens, output_tokens, attempt)

    def start(self, job: str, attempt: int, priority: int, now_s: float) -> None:
        """Put an accepted job onto the engine, unless it was aborted meanwhile."""
        waiting = self._restoring.get(job)
        if waiting is None or waiting[2] != attempt:
            return
        del self._restoring[job]
        prompt, output, _ = waiting
        kept = self.engine.profile.kept_tokens(prompt) if self.jobs[job].resumed else 0
        self.hear_abort(job, now_s)
        self.engine.add(
            job,
            prompt_tokens=prompt,
            output_tokens=output,
            now_s=now_s,
            priority=priority,
            cached_tokens=max(kept, self._forget_kept(job)),
        )

    def finish(self, job: str) -> int:
        """Forget a job that is done; returns its tokens that were not sent yet."""
        entry = self.jobs.pop(job)
        return entry.told - entry.sent

    def abort(self, job: str, now_s: float, *, heard: bool = True) -> int:
        """Take a job off; returns its tokens that were not sent yet.

        Args:
            heard: False if the engine goes on with it until `hear_abort`. Nobody hears of that work.
        """
        entry = self.jobs.pop(job)
        if self._restoring.pop(job, None) is not None:
            return 0
        if job not in self.engine:
            return entry.told - entry.sent
        produced = self.engine.produced(job)
        self._unheard[job] = None
        if heard:
            produced = self.hear_abort(job, now_s) or produced
        if produced and self._options.kv_swap:
            self._keep(job, entry.resident_tokens + produced)
        return produced - entry.sent

    def hear_abort(self, job: str, now_s: float) -> int | None:
        """The engine hears that a job was aborted; returns the tokens it has produced, None if it is not there any more."""
        if job not in self._unheard:
            return None
        del self._unheard[job]
        try:
            return self.engine.abort(job, now_s=now_s)
        except KeyError:
            # It ended in the very iteration that ends now; its last tokens are lost with its end.
            return None

    def advance(self, now_s: float) -> list[Outcome]:
        """What happened on the engine up to now."""
        return self.engine.advance(now_s)

    def produced(self) -> list[tuple[str, int]]:
        """(job, tokens of this attempt) of every job that holds KV cache."""
        return list(self.engine.progress())

    # ------------------------------------------------------------------ models

    @property
    def tiers(self) -> tuple[tuple[ModelName, ModelTier], ...]:
        """Where each model is."""
        return tuple(
            (ModelName(model), self._tier(profile.base))
            for model, profile in self._profiles.items()
        )

    def _tier(self, model: str) -> ModelTier:
        if model == self.awake:
            return ModelTier.AWAKE
        return ModelTier.ASLEEP if model in self._asleep else ModelTier.COLD

    def begin_swap(self, model: str) -> float:
        """Put the awake model to sleep and start waking another; returns the seconds it takes."""
        profile = self._profiles[model]
        wake_s = profile.wake_s if model in self._asleep else profile.cold_s
        self._host_bytes -= self._asleep.pop(model, 0)
        sleep_s = 0.0
        self._past_busy_s += self.engine.busy_s
        self._past_preemptions += self.engine.preemptions
        if self.awake is not None:
            sleep_s = self._profiles[self.awake].sleep_s
            if self._options.warm_start:
                self._put_to_sleep(self.awake)
        self.awake = None
        self._unheard.clear()
        self.engine = self._new_engine(model)
        self.swaps += 1
        self.swap_s += sleep_s + wake_s
        return sleep_s + wake_s

    def end_swap(self, model: str) -> None:
        """The model is awake now."""
        self.awake = model

    def expect(self, models: tuple[str, ...]) -> str | None:
        """Take note of what comes next; returns a cold model worth loading into host memory now."""
        self._next_models = models
        if not self._options.warm_start:
            return None
        for model in models:
            if model not in self._asleep and model != self.awake:
                return model
        return None

    def load_s(self, model: str) -> float:
        """Seconds to bring a cold model's weights from storage into host memory."""
        profile = self._profiles[model]
        return max(0.0, profile.cold_s - profile.wake_s)

    def loaded(self, model: str) -> bool:
        """A cold model's weights have come; whether there is room for them."""
        if model == self.awake or model in self._asleep:
            return False
        return self._put_to_sleep(model)

    def _new_engine(self, model: str) -> ContinuousBatch:
        return ContinuousBatch(self._profiles[model], policy=self._options.scheduling)

    def _put_to_sleep(self, model: str) -> bool:
        needed = self._profiles[model].host_memory_bytes
        if not self._make_room(needed):
            return False
        self._asleep[model] = needed
        self._host_bytes += needed
        return True

    # ------------------------------------------------------------------ host memory

    def _keep(self, job: str, tokens: int) -> None:
        profile: EngineProfile = self.engine.profile
        needed = tokens * profile.kv_bytes_per_token
        if self._host_bytes + needed <= self.spec.host_memory_bytes:
            self._kept[job] = (tokens, needed)
            self._host_bytes += needed

    def _forget_kept(self, job: str) -> int:
        tokens, size = self._kept.pop(job, (0, 0))
        self._host_bytes -= size
        return tokens

    def _make_room(self, needed: int) -> bool:
        """Free host memory: first models that are not expected, then kept KV cache, oldest first; all or nothing."""
        capacity = self.spec.host_memory_bytes
        idle = [model for model in self._asleep if model not in self._next_models]
        kept = sum(size for _, size in self._kept.values())
        if self._host_bytes + needed - kept - sum(self._asleep[model] for model in idle) > capacity:
            return False
        for model in idle:
            if self._host_bytes + needed <= capacity:
                return True
            self._host_bytes -= self._asleep.pop(model)
        while self._host_bytes + needed > capacity:
            self._forget_kept(next(iter(self._kept)))
        return True
