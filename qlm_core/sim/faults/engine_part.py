"""A scripted engine, with the agent's connection to it: it runs jobs token by token, and does whatever a fault wants.

Tokens are numbered by their position in the output, and carry a salt that is drawn whenever an output is begun anew. So what a
client gets shows gaps, repeats, and mixtures of outputs that have nothing to do with each other. A job that goes on continues
after the text that it was given, whatever anybody counted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from qlm_core.executor import (
    EngineDown,
    EngineReady,
    Event,
    JobDone,
    JobLost,
    JobOutput,
    JobTurnedAway,
    SwapFailed,
)
from qlm_core.messages import Payload
from qlm_core.model import ModelName, ModelTier, RequestId
from qlm_core.profile import EngineProfile, IterationTime
from qlm_core.resume import ResumedBy
from qlm_core.sim.agenda import Agenda
from qlm_core.sim.faults.checkers import Checkers
from qlm_core.sim.faults.process import Process
from qlm_core.sim.faults.schedule import Ask, Bed, Lie
from qlm_core.sim.faults.tokens import Span, Text

SILENCE_S_MAX = 4.0
"""The agent gives a job up that has said nothing for so long."""

_BEAT_S = 0.2
_PREFILL_S = 0.03
_SWAP_S = 0.8
_START_S = 0.5
_ABSURD = (1 << 31) - 1


@dataclass(slots=True, eq=False)
class _Job:
    """A job on the engine. `position` counts the tokens of the whole output, `made` those of this job."""

    payload: Payload
    ask: Ask
    salt: int
    position: int
    made: int = 0
    heard_s: float = 0.0


def profile(bed: Bed, model: str) -> EngineProfile:
    """What the fleet is told of an engine."""
    return EngineProfile(
        model=model,
        gpu="sim",
        iteration=IterationTime(
            base_ms=1000.0 * bed.token_s,
            per_token_ms=0.05,
            per_sequence_ms=0.0,
            per_context_token_ms=0.0,
        ),
        kv_cache_tokens=bed.kv_tokens,
        max_num_seqs=bed.slots,
        cold_s=2.0,
        wake_s=_SWAP_S,
        sleep_s=0.1,
    )


class EnginePart:
    """One engine. It lives on while its agent is paused; a dead agent's jobs end.

    Attributes:
        down, stuck, slow, full, failing, unwilling, lie: what faults have done to it.
    """

    def __init__(
        self,
        bed: Bed,
        process: Process,
        asks: dict[int, Ask],
        agenda: Agenda,
        rng: Random,
        checkers: Checkers,
    ):
        self.models = bed.models[process.name]
        self.profiles = tuple(profile(bed, model) for model in self.models)
        self.down = 0
        self.stuck = 0
        self.slow = 1.0
        self.full = 0
        self.failing = 0
        self.unwilling = 0
        self.lie = Lie.NONE
        self._awake = self.models[0]
        self._token_s = bed.token_s
        self._process = process
        self._asks = asks
        self._agenda = agenda
        self._rng = rng
        self._checkers = checkers
        self._jobs: dict[RequestId, _Job] = {}
        self._swaps = 0
        self._listen: Callable[[Event], None] | None = None

    @property
    def jobs(self) -> list[tuple[RequestId, int]]:
        """What runs here: requests and their attempts."""
        return [(id, job.payload.attempt) for id, job in self._jobs.items()]

    # ------------------------------------------------------------------ what its agent orders

    def attach(self, listen: Callable[[Event], None]) -> None:
        """An agent has started beside it."""
        self._listen = listen
        self._process.after(_START_S, self._say_ready)

    def detach(self) -> None:
        """Its agent is gone, and the connections with it."""
        self._listen = None
        self._jobs.clear()
        self._swaps += 1

    def submit(self, payload: Payload) -> None:
        """Run a job."""
        self._checkers.job_started(self._process.name, payload, awake=self._awake)
        id, attempt = payload.id, payload.attempt
        if self.down:
            self._say(JobLost(id, attempt, "connection refused"))
        elif self.full:
            self._say(JobTurnedAway(id, attempt, "full", self._rng.choice((0.0, 1.0))))
        elif self.failing and self._rng.random() < 0.7:
            self._say(JobLost(id, attempt, "500", answered=True))
        else:
            self._begin(payload)

    def _begin(self, payload: Payload) -> None:
        ask = self._asks[int(payload.body)]
        so_far = Text.parse(payload.resume_text)
        self._checkers.job_continues(payload, so_far)
        salt = so_far.salt if so_far.tokens else self._checkers.new_salt()
        job = _Job(payload, ask, salt, so_far.tokens, heard_s=self._agenda.now_s)
        self._jobs[payload.id] = job
        self._after(_PREFILL_S, job)
        self._process.after(SILENCE_S_MAX, self._check_silence, job)

    def abort(self, id: RequestId, attempt: int) -> None:
        """Stop a job."""
        job = self._jobs.get(id)
        if job is not None and job.payload.attempt == attempt:
            del self._jobs[id]

    def swap(self, model: ModelName) -> None:
        """Make a model awake."""
        self._swaps += 1
        self._agenda.after(_SWAP_S * self.slow, self._swapped, self._swaps, str(model))

    def kv_used_tokens(self) -> int:
        """Its gauge."""
        return _ABSURD if self.lie is Lie.GAUGES else 0

    # ------------------------------------------------------------------ faults

    def crash(self) -> None:
        """It dies with all its jobs; `restart` brings it back."""
        self.down += 1
        self._jobs.clear()
        self._swaps += 1
        self._say(EngineDown("its process has exited"))

    def restart(self) -> None:
        """It is back."""
        self.down -= 1
        self._say_ready()

    def _say_ready(self) -> None:
        if self.down:
            return
        tiers = tuple(
            (ModelName(one), ModelTier.AWAKE if one == self._awake else ModelTier.ASLEEP)
            for one in self.models
        )
        self._say(EngineReady(ModelName(self._awake), tiers))

    # ------------------------------------------------------------------ its work

    def _say(self, event: Event) -> None:
        if self._listen is not None:
            self._process.tell(self._hear, self._process.life, event)

    def _hear(self, life: int, event: Event) -> None:
        if self._listen is not None and life == self._process.life:
            self._listen(event)

    def _after(self, delay_s: float, job: _Job) -> None:
        self._agenda.after(delay_s * self.slow, self._work, job)

    def _work(self, job: _Job) -> None:
        id, attempt = job.payload.id, job.payload.attempt
        if self._jobs.get(id) is not job:
            return
        if self.stuck:
            self._after(0.5, job)
            return
        limit = min(job.ask.output_tokens, job.ask.max_output_tokens)
        made = max(1, round(_BEAT_S / self._token_s)) if job.made else 1
        made = min(made, limit - job.position)
        if self.lie is Lie.NO_OUTPUT:
            self._checkers.lied(id)
            made = 0
        if made > 0:
            self._put_out(job, made)
        if self.lie is Lie.STRANGERS:
            self._say(JobOutput(RequestId("nobody"), 1, Span(1, 0, 1).encode(), 1))
            self._say(JobDone(id, attempt - 1, "stop", 1, 1))
        if self._jobs.get(id) is not job:
            # What was heard of it has made the agent stop it.
            return
        if job.position >= limit or self.lie is Lie.NO_OUTPUT:
            self._finish(job)
        else:
            self._after(self._token_s * max(1, round(_BEAT_S / self._token_s)), job)

    def _put_out(self, job: _Job, made: int) -> None:
        span = Span(job.salt, job.position, made)
        job.position += made
        job.made += made
        self._process.tell(self._note_heard, job)
        self._checkers.job_worked(self._process.name, job.payload)
        self._say(JobOutput(job.payload.id, job.payload.attempt, span.encode(), made))

    def _finish(self, job: _Job) -> None:
        id, attempt, made = job.payload.id, job.payload.attempt, job.made
        del self._jobs[id]
        prompt = job.ask.prompt_tokens + job.position - made
        if self.lie in (Lie.NEGATIVE_COUNTS, Lie.ABSURD_COUNTS, Lie.WRONG_COUNTS):
            wrong = {Lie.NEGATIVE_COUNTS: 0, Lie.ABSURD_COUNTS: _ABSURD}.get(self.lie, made + 7)
            made = prompt = wrong
            self._checkers.miscounted(id)
        reason = "length" if job.position >= job.ask.max_output_tokens else "stop"
        resumed = ResumedBy.TEXT if job.payload.produced_tokens else ResumedBy.NOTHING
        done = JobDone(id, attempt, reason, prompt, made, resumed_by=resumed)
        self._say(done)
        if self.lie is Lie.ENDS_TWICE:
            self._say(done)
        if self.lie is Lie.OUTPUT_AFTER_END:
            self._say(JobOutput(id, attempt, Span(job.salt, job.position, 1).encode(), 1))

    def _note_heard(self, job: _Job) -> None:
        job.heard_s = self._agenda.now_s

    def _check_silence(self, job: _Job) -> None:
        """The agent's own watch over a job."""
        payload = job.payload
        if self._jobs.get(payload.id) is not job:
            return
        due_s = job.heard_s + SILENCE_S_MAX
        if self._agenda.now_s < due_s:
            self._process.at(due_s, self._check_silence, job)
            return
        del self._jobs[payload.id]
        self._say(JobLost(payload.id, payload.attempt, "nothing came of it"))

    def _swapped(self, number: int, model: str) -> None:
        if number != self._swaps:
            return
        if self.unwilling:
            self._say(SwapFailed(ModelName(model), "out of memory"))
        else:
            self._awake = model
            self._say_ready()

    def evictable(self, payload: Payload) -> bool:
        """Whether another attempt can go on with a request as if nothing had happened."""
        return self._asks[int(payload.body)].resumable
