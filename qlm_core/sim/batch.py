"""One vLLM V1 engine with one awake model: an exact discrete model of continuous batching.

`ContinuousBatch` owns the waiting queue, the running batch and the KV blocks of an engine, and
says when each request gets its first token, is preempted, and ends. It follows vLLM V1's
scheduler: each iteration gives one token to every decoding request, then continues prefills, then
admits waiting requests whose whole prompt fits the KV cache, all within the token budget; when
blocks run out, the running request that came last (or has the lowest priority) is preempted and
recomputed later.

Between two changes of the batch, every iteration adds one token to every request, so durations grow
linearly. Such a stretch is advanced in one step. Time is kept in whole picoseconds, in which all
coefficients are integers, hence one step and many give the same instants to the last digit, and so
does any way of cutting a stretch by calls.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from heapq import heappop, heappush
from typing import Literal, NamedTuple

from qlm_core.profile import EngineProfile
from qlm_core.sim.iteration import (
    IterationCosts,
    Stretch,
    last_picosecond,
    picoseconds,
    seconds,
)
from qlm_core.sim.prefix_memory import PrefixMemory

SchedulingPolicy = Literal["fcfs", "priority"]


class OutcomeKind(Enum):
    """What happened to a request on the engine."""

    FIRST_TOKEN = "first_token"  # noqa: S105
    FINISHED = "finished"
    PREEMPTED = "preempted"


class Outcome(NamedTuple):
    """One thing that happened: when (s), what, to whom, and its output tokens by then."""

    at_s: float
    kind: OutcomeKind
    request_id: str
    output_tokens: int


class _State(Enum):
    WAITING = 0
    PREFILLING = 1
    DECODING = 2
    GONE = 3


@dataclass(slots=True, eq=False)
class _Request:
    """A request's place on the engine. While it decodes, its counts follow from the step counter:
    it has `base + 1 + step - start_step` output tokens and `prompt + step - start_step` in the
    cache.
    """

    id: str
    order: int
    priority: int
    prompt: int
    target: int
    cached: int
    base: int = 0
    computed: int = 0
    start_step: int = 0
    finish_step: int = -1
    state: _State = _State.WAITING


class ContinuousBatch:
    """A deterministic model of one engine.

    Calls carry the time, which must not go backwards. `advance` returns what happened up to then;
    calls that change the batch take effect at the end of the iteration in flight, as in the real
    engine.

    Args:
        profile: the model on its GPU.
        policy: `fcfs`, or `priority` (a lower number is more urgent; ties in order of arrival).
        prefix_caching: whether a preempted or aborted request finds those of its blocks that nobody
            has overwritten when it comes back.
        stretches: advance unchanged batches in one step. False steps every iteration; the outcome
            is the same, only slower.
    """

    def __init__(
        self,
        profile: EngineProfile,
        *,
        policy: SchedulingPolicy = "fcfs",
        prefix_caching: bool = True,
        stretches: bool = True,
    ):
        self.profile = profile
        self._by_priority = policy == "priority"
        self._prefix_caching = prefix_caching
        self._stretches = stretches
        self._ahead = profile.async_scheduling
        self._block = profile.block_tokens
        self._blocks_total = profile.kv_cache_tokens // profile.block_tokens
        self._costs = IterationCosts(profile)

        self._requests: dict[str, _Request] = {}
        self._waiting: list[tuple[int, int, _Request]] = []
        self._waiting_count = 0
        self._running: dict[str, _Request] = {}
        self._prefilling: dict[str, _Request] = {}
        self._finishing: list[tuple[int, int, _Request]] = []
        self._next_order = 0

        # The decoding requests as a whole: how many, their tokens in the cache, and how many of
        # them need a new block before step s, at index s modulo the block size.
        self._decoding = 0
        self._context = 0
        self._boundary = [0] * self._block
        self._step = 0
        self._free = self._blocks_total

        self._stretch = Stretch()
        # Prompt chunks computed in the first iteration of the stretch.
        self._chunks: list[tuple[_Request, int]] = []
        self._now = 0
        self._outcomes: list[Outcome] = []
        self._prefixes = PrefixMemory()

        self._busy = 0
        self.preemptions = 0
        self.iterations = 0
        self.tokens_produced = 0

    # ------------------------------------------------------------------ what the caller may ask

    @property
    def running(self) -> int:
        """Requests that hold KV blocks."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Requests that wait for admission."""
        return self._waiting_count

    @property
    def kv_used_tokens(self) -> int:
        """KV cache in use, in tokens, whole blocks."""
        return (self._blocks_total - self._free) * self._block

    @property
    def kv_cache_tokens(self) -> int:
        """KV capacity in tokens, whole blocks."""
        return self._blocks_total * self._block

    @property
    def busy_s(self) -> float:
        """Time spent in iterations that have ended."""
        return seconds(self._busy)

    @property
    def next_event_s(self) -> float | None:
        """When the batch changes next if nobody interferes; None when idle.

        Nothing is reported before that time, though nothing need be at it.
        """
        return seconds(self._stretch.end) if self._stretch.count else None

    @property
    def next_iteration_s(self) -> float | None:
        """When the iteration in flight ends, that is, when the next tokens come; None when idle."""
        stretch = self._stretch
        return seconds(stretch.start + stretch.first) if stretch.count else None

    def produced(self, request_id: str) -> int:
        """Output tokens of a request so far. Raises KeyError for one that is not on the engine."""
        return self._produced(self._requests[request_id])

    def progress(self) -> Iterator[tuple[str, int]]:
        """(request id, output tokens so far) of every running request, in order of admission."""
        for request in self._running.values():
            yield request.id, self._produced(request)

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._requests

    def __len__(self) -> int:
        return len(self._requests)

    # ------------------------------------------------------------------ what the caller may do

    def add(
        self,
        request_id: str,
        *,
        prompt_tokens: int,
        output_tokens: int,
        now_s: float,
        priority: int = 0,
        cached_tokens: int = 0,
    ) -> None:
        """Put a request into the waiting queue.

        Args:
            prompt_tokens: tokens to compute; for a resumed request, prompt and tokens produced
                before.
            output_tokens: tokens after which it ends.
            cached_tokens: leading tokens whose KV the caller brings along (host offload, shared
                prefix); whole blocks count. What the engine itself still holds is found anyway.

        Raises:
            ValueError: the request is on the engine already, has no tokens, or can never fit.
        """
        if request_id in self._requests:
            raise ValueError(f"request_id: {request_id!r} is on the engine already. Use a new id.")
        if prompt_tokens < 1 or output_tokens < 1:
            raise ValueError(
                f"prompt_tokens, output_tokens: {prompt_tokens}, {output_tokens}. "
                "Give at least 1 each."
            )
        if prompt_tokens + output_tokens > self.kv_cache_tokens:
            raise ValueError(
                f"prompt_tokens: {prompt_tokens} and {output_tokens} output tokens exceed the "
                f"KV cache of {self.kv_cache_tokens}. Use an instance with more KV cache."
            )
        self._sync(now_s)
        request = _Request(
            id=request_id,
            order=self._next_order,
            priority=priority if self._by_priority else 0,
            prompt=prompt_tokens,
            target=output_tokens,
            cached=cached_tokens,
        )
        self._next_order += 1
        self._requests[request_id] = request
        self._enqueue(request)
        if not self._stretch.count:
            self._stretch.start = max(self._stretch.start, self._now)
            self._form()
        elif (
            self._waiting[0][2] is request
            and len(self._running) < self.profile.max_num_seqs
            and self._blocks(prompt_tokens) <= self._free
        ):
            self._stretch.cut()

    def abort(self, request_id: str, *, now_s: float) -> int:
        """Take a request off the engine; returns the tokens it has produced.

        The iteration in flight ends as planned, without it. Raises KeyError for an unknown request
        (one that ended up to `now_s` is unknown, and its end is among the next outcomes).
        """
        self._sync(now_s)
        request = self._requests.pop(request_id)
        produced = self._produced(request)
        if request.state is _State.WAITING:
            self._waiting_count -= 1
            request.state = _State.GONE
            self._drop_gone()
        else:
            self._release(request)
            request.state = _State.GONE
            request.finish_step = -1
        self._stretch.cut()
        return produced

    def advance(self, until_s: float) -> list[Outcome]:
        """Run to `until_s` and return what happened since the last call, in order of time."""
        self._sync(until_s)
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    # ------------------------------------------------------------------ time

    def _sync(self, now_s: float) -> None:
        """Finish every iteration that ends up to `now_s`."""
        limit = last_picosecond(now_s)
        if limit < self._now:
            raise ValueError(f"now_s: {now_s} is before {seconds(self._now)}, where the engine is")
        stretch = self._stretch
        while stretch.count and stretch.end <= limit:
            self._commit(stretch.count)
            self._settle()
            self._form()
        self._now = max(self._now, picoseconds(now_s))
        if stretch.count > 1 and (ended := stretch.ended_by(limit)):
            self._commit(ended)

    def _commit(self, iterations: int) -> None:
        """Book the first `iterations` of the stretch as done, but for what happens at its end."""
        self._busy += self._stretch.drop(iterations)
        self.iterations += iterations
        decoding = self._decoding
        if decoding:
            rounds, rest = divmod(iterations, self._block)
            blocks = rounds * decoding
            for step in range(self._step, self._step + rest):
                blocks += self._boundary[step % self._block]
            self._free -= blocks
            self._prefixes.handed_out += blocks
            self._context += decoding * iterations
            self.tokens_produced += decoding * iterations
        self._step += iterations

    # ------------------------------------------------------------------ the end of an iteration

    def _settle(self) -> None:
        """Book prefills that have ended, first tokens and finished requests."""
        for request, chunk in self._chunks:
            if request.state is not _State.PREFILLING:
                continue
            request.computed += chunk
            if request.computed == request.prompt:
                self._begin_decoding(request)
        self._chunks = []
        finishing = self._finishing
        while finishing and finishing[0][0] <= self._step:
            step, _, request = heappop(finishing)
            if request.state is _State.DECODING and request.finish_step == step:
                self._release(request)
                request.state = _State.GONE
                del self._requests[request.id]
                self._prefixes.forget(request.id)
                self._report(OutcomeKind.FINISHED, request.id, request.target)

    def _begin_decoding(self, request: _Request) -> None:
        del self._prefilling[request.id]
        request.state = _State.DECODING
        request.start_step = self._step
        request.finish_step = self._step + request.target - request.base - 1
        heappush(self._finishing, (request.finish_step, request.order, request))
        self._decoding += 1
        self._context += request.prompt
        self._boundary[(self._step - request.prompt) % self._block] += 1
        self.tokens_produced += 1
        if request.base == 0:
            self._report(OutcomeKind.FIRST_TOKEN, request.id, 1)

    def _report(self, kind: OutcomeKind, request_id: str, output_tokens: int) -> None:
        self._outcomes.append(
            Outcome(seconds(self._stretch.start), kind, request_id, output_tokens)
        )

    # ------------------------------------------------------------------ the start of an iteration

    def _form(self) -> None:
        """Choose what the next iterations compute, as vLLM V1's scheduler does."""
        preempted = False
        while self._boundary[self._step % self._block] > self._free:
            self._preempt()
            preempted = True
        if not self._running and not self._waiting_count:
            return
        chunks = self._chunks
        budget = self.profile.max_num_batched_tokens - self._decoding
        for request in self._prefilling.values():
            chunk = min(budget, request.prompt - request.computed)
            if chunk > 0:
                chunks.append((request, chunk))
                budget -= chunk
        admitted = 0
        if self._waiting_count and not preempted:
            if not self._ahead or not (chunks or self._decoding):
                self._chunks += self._admit(budget)
            if self._ahead:
                admitted = len(self._admit(self._budget_after_this()))
        first = self._costs.iteration(
            decoding=self._decoding,
            context=self._context,
            prefill=sum(chunk for _, chunk in chunks),
            half_pairs=sum(chunk * (chunk + 2 * request.computed) for request, chunk in chunks),
        )
        if chunks or preempted or admitted or not self._stretches:
            self._stretch.begin(first=first, growth=0, count=1)
        else:
            growth = self._costs.per_context_token * self._decoding
            self._stretch.begin(first=first, growth=growth, count=self._steps_unchanged())

    def _budget_after_this(self) -> int:
        """Token budget that running requests leave over in the iteration after the one formed."""
        budget = self.profile.max_num_batched_tokens - self._decoding
        for request in self._prefilling.values():
            budget -= request.prompt - request.computed
        for _, chunk in self._chunks:
            budget += chunk
        return budget

    def _admit(self, budget: int) -> list[tuple[_Request, int]]:
        """Take waiting requests in, in order, until one does not fit; returns their first chunks."""
        chunks: list[tuple[_Request, int]] = []
        step = self._step
        reserved = self._boundary[step % self._block]
        if self._ahead:
            reserved += self._boundary[(step + 1) % self._block]
        while budget > 0 and self._waiting_count:
            request = self._waiting[0][2]
            blocks = self._blocks(request.prompt)
            if len(self._running) >= self.profile.max_num_seqs or blocks > self._free - reserved:
                break
            heappop(self._waiting)
            self._waiting_count -= 1
            self._drop_gone()
            cached, kept_blocks = self._cached(request)
            self._free -= blocks
            self._prefixes.handed_out += blocks - kept_blocks
            request.computed = cached
            request.state = _State.PREFILLING
            self._running[request.id] = request
            self._prefilling[request.id] = request
            chunk = min(budget, request.prompt - cached)
            chunks.append((request, chunk))
            budget -= chunk
        return chunks

    def _steps_unchanged(self) -> int:
        """Iterations until a request ends or blocks run out, at least one."""
        finishing = self._finishing
        while finishing[0][2].finish_step != finishing[0][0]:
            heappop(finishing)
        to_finish = finishing[0][0] - self._step
        rounds, spare = divmod(self._free, self._decoding)
        steps = rounds * self._block
        while steps < to_finish:
            spare -= self._boundary[(self._step + steps) % self._block]
            if spare < 0:
                return steps
            steps += 1
        return to_finish

    def _preempt(self) -> None:
        """Free the blocks of the last running request; it is recomputed once there is room."""
        if self._by_priority:
            victim = max(self._running.values(), key=lambda one: (one.priority, one.order))
        else:
            victim = self._running[next(reversed(self._running))]
        produced = self._produced(victim)
        self._release(victim)
        if victim.state is _State.DECODING:
            victim.prompt += produced - victim.base
            victim.base = produced
        victim.state = _State.WAITING
        victim.finish_step = -1
        victim.computed = 0
        victim.cached = 0
        self._enqueue(victim)
        self.preemptions += 1
        self._report(OutcomeKind.PREEMPTED, victim.id, produced)

    # ------------------------------------------------------------------ requests and blocks

    def _produced(self, request: _Request) -> int:
        if request.state is _State.DECODING:
            return request.base + 1 + self._step - request.start_step
        return request.base

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self._block)

    def _enqueue(self, request: _Request) -> None:
        heappush(self._waiting, (request.priority, request.order, request))
        self._waiting_count += 1

    def _drop_gone(self) -> None:
        while self._waiting and self._waiting[0][2].state is _State.GONE:
            heappop(self._waiting)

    def _release(self, request: _Request) -> None:
        """Give back the blocks of a running request and remember what they hold."""
        del self._running[request.id]
        if request.state is _State.DECODING:
            tokens = request.prompt + self._step - request.start_step
            held = self._blocks(tokens)
            self._decoding -= 1
            self._context -= tokens
            self._boundary[(request.start_step - request.prompt) % self._block] -= 1
        else:
            tokens = request.computed
            held = self._blocks(request.prompt)
            del self._prefilling[request.id]
        if self._prefix_caching:
            full = tokens // self._block
            self._prefixes.free(request.id, full_blocks=full, free_before=self._free + held - full)
        self._free += held

    def _cached(self, request: _Request) -> tuple[int, int]:
        """Leading tokens of a request that need no computing, and its blocks still intact."""
        # The last token is always computed: its logits give the next one.
        most = (request.prompt - 1) // self._block
        kept = min(self._prefixes.take(request.id), most)
        brought = min(request.cached // self._block, most)
        return max(kept, brought) * self._block, kept
