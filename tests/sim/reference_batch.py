"""A slow, literal reading of vLLM V1's scheduler, one token at a time, to hold the model to.

Everything is recounted from the requests in every iteration, in whole picoseconds; nothing is shared
with the model under test but the profile.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from qlm_core.profile import EngineProfile


@dataclass(slots=True)
class Job:
    """A request: its counts and what it holds."""

    id: str
    arrival_ns: int
    prompt: int
    target: int
    priority: int
    order: int
    tokens: int = 0
    computed: int = 0
    produced: int = 0
    blocks: int = 0

    def __post_init__(self) -> None:
        self.tokens = self.prompt


def run(
    profile: EngineProfile, jobs: list[Job], *, by_priority: bool
) -> list[tuple[int, str, str, int]]:
    """Outcomes (time in ns, kind, id, tokens) of jobs in order of arrival; no prefix cache."""
    block = profile.block_tokens
    free = profile.kv_cache_tokens // block
    coming = list(jobs)
    waiting: list[Job] = []
    running: list[Job] = []
    outcomes: list[tuple[int, str, str, int]] = []
    now_ps = 0

    def urgency(job: Job) -> tuple[int, int]:
        return (job.priority if by_priority else 0, job.order)

    while coming or waiting or running:
        if not waiting and not running:
            now_ps = max(now_ps, coming[0].arrival_ns * 1000)
            waiting.append(coming.pop(0))
        budget = profile.max_num_batched_tokens
        scheduled: list[tuple[Job, int]] = []
        preempted = False
        # Decoding requests, then prefills: both stand in `running` in order of admission.
        for job in sorted(running, key=lambda one: one.computed < one.prompt):
            if job not in running:
                continue
            chunk = min(budget, job.tokens - job.computed)
            if chunk == 0:
                continue
            needed = max(0, -(-(job.computed + chunk) // block) - job.blocks)
            while needed > free:
                victim = max(running, key=urgency) if by_priority else running[-1]
                preempted = True
                running.remove(victim)
                for entry in [entry for entry in scheduled if entry[0] is victim]:
                    scheduled.remove(entry)
                    budget += entry[1]
                free += victim.blocks
                victim.blocks = victim.computed = 0
                victim.prompt = victim.tokens
                waiting.append(victim)
                outcomes.append((now_ps // 1000, "preempted", victim.id, victim.produced))
                if victim is job:
                    break
            if job not in running:
                continue
            free -= needed
            job.blocks += needed
            scheduled.append((job, chunk))
            budget -= chunk
        waiting.sort(key=urgency)
        if not preempted and not (profile.async_scheduling and scheduled):
            taken, free = _admit(profile, waiting, running, budget=budget, free=free)
            scheduled += taken
        if not preempted and profile.async_scheduling:
            # The next iteration is chosen now, before this one has run.
            chunks = {job.id: chunk for job, chunk in scheduled}
            decoding = [job for job in running if job.computed == job.tokens - 1]
            decoding = [job for job in decoding if job.computed >= job.prompt]
            left = sum(
                job.tokens - job.computed - chunks.get(job.id, 0)
                for job in running
                if job not in decoding
            )
            soon = sum((job.computed + 1) % block == 0 for job in decoding)
            _, left_free = _admit(
                profile,
                waiting,
                running,
                budget=profile.max_num_batched_tokens - len(decoding) - left,
                free=free - soon,
            )
            free = left_free + soon
        now_ps += _duration_ps(profile, scheduled)
        now_ns = now_ps // 1000
        for job, chunk in scheduled:
            job.computed += chunk
            if job.computed < job.tokens:
                continue
            job.produced += 1
            job.tokens += 1
            if job.produced == 1:
                outcomes.append((now_ns, "first_token", job.id, 1))
            if job.produced == job.target:
                outcomes.append((now_ns, "finished", job.id, job.target))
                running.remove(job)
                free += job.blocks
        # Those who arrive up to the end of this iteration are seen by the one after the next.
        arrived = [job for job in coming if job.arrival_ns < now_ns]
        coming = coming[len(arrived) :]
        waiting.extend(arrived)
    return outcomes


def _admit(
    profile: EngineProfile, waiting: list[Job], running: list[Job], *, budget: int, free: int
) -> tuple[list[tuple[Job, int]], int]:
    """Let waiting jobs in whose whole prompt fits; returns their chunks and the free blocks."""
    taken = []
    while waiting and budget > 0 and len(running) < profile.max_num_seqs:
        needed = -(-waiting[0].tokens // profile.block_tokens)
        if needed > free:
            break
        job = waiting.pop(0)
        free -= needed
        job.blocks = needed
        job.prompt = job.tokens
        chunk = min(budget, job.tokens)
        taken.append((job, chunk))
        running.append(job)
        budget -= chunk
    return taken, free


def _duration_ps(profile: EngineProfile, scheduled: list[tuple[Job, int]]) -> int:
    form = profile.iteration
    decoding = [job for job, _ in scheduled if job.computed >= job.prompt]
    prefilling = [(job, chunk) for job, chunk in scheduled if job.computed < job.prompt]
    tokens = sum(chunk for _, chunk in prefilling)
    if form.knee_tokens is not None:
        tokens = max(0, tokens + len(decoding) - form.knee_tokens)
    pairs = sum(chunk * (chunk + 2 * job.computed) for job, chunk in prefilling)
    return (
        _ps(form.base_ms + profile.host_overhead_ms)
        + _ps(form.per_token_ms) * tokens
        + _ps(form.per_sequence_ms + profile.host_per_sequence_ms) * len(decoding)
        + _ps(form.per_context_token_ms) * sum(job.computed for job in decoding)
        + _ps(form.per_attention_pair_ms / 2) * pairs
    )


def _ps(milliseconds: float) -> int:
    return round(Fraction(milliseconds) * 10**9)
