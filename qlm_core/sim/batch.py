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
from enum import Enum
from heapq import heappop, heappush
from math import isqrt
from typing import Literal, NamedTuple

from qlm_core.profile import EngineProfile

SchedulingPolicy = Literal["fcfs", "priority"]

_PS_PER_MS = 1_000_000_000
_PS_PER_NS = 1_000
_NS_PER_S = 1_000_000_000
_FREED_MEMORY_MAX = 4096


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


class _Request:
    """A request's place on the engine. While it decodes, its counts follow from the step counter:
    it has `base + 1 + step - start_step` output tokens and `prompt + step - start_step` in the
    cache.
    """

    __slots__ = (
        "base",
        "cached",
        "computed",
        "finish_step",
        "id",
        "order",
        "priority",
        "prompt",
        "start_step",
        "state",
        "target",
    )

    def __init__(
        self, request_id: str, *, order: int, priority: int, prompt: int, target: int, cached: int
    ):
        self.id = request_id
        self.order = order
        self.priority = priority
        self.prompt = prompt
        self.target = target
        self.cached = cached
        self.base = 0
        self.computed = 0
        self.start_step = 0
        self.finish_step = -1
        self.state = _State.WAITING


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
        self._block = profile.block_tokens
        self._blocks_total = profile.kv_cache_tokens // profile.block_tokens
        self._costs = _Costs(profile)

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

        # The stretch under way: `_count` iterations from `_start` on, the first `_first` ps long,
        # each `_growth` ps longer than the one before; `_chunks` are prefilled in the first.
        self._count = 0
        self._start = 0
        self._first = 0
        self._growth = 0
        self._end = 0
        self._chunks: list[tuple[_Request, int]] = []
        self._now = 0
        self._outcomes: list[Outcome] = []

        # Blocks handed out so far: a freed block is overwritten once that many more have been
        # handed out as were free before it (the free list is a queue).
        self._handed_out = 0
        self._freed: dict[str, tuple[int, int]] = {}

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
        return self._busy / (_PS_PER_NS * _NS_PER_S)

    @property
    def next_event_s(self) -> float | None:
        """When the batch changes next if nobody interferes; None when idle.

        Nothing is reported before that time, though nothing need be at it.
        """
        return _seconds(self._end) if self._count else None

    @property
    def next_iteration_s(self) -> float | None:
        """When the iteration in flight ends, that is, when the next tokens come; None when idle."""
        return _seconds(self._start + self._first) if self._count else None

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
            request_id,
            order=self._next_order,
            priority=priority if self._by_priority else 0,
            prompt=prompt_tokens,
            target=output_tokens,
            cached=cached_tokens,
        )
        self._next_order += 1
        self._requests[request_id] = request
        self._enqueue(request)
        if not self._count:
            self._start = max(self._start, self._now)
            self._form()
        elif (
            self._waiting[0][2] is request
            and len(self._running) < self.profile.max_num_seqs
            and self._blocks(prompt_tokens) <= self._free
        ):
            self._cut()

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
        self._cut()
        return produced

    def advance(self, until_s: float) -> list[Outcome]:
        """Run to `until_s` and return what happened since the last call, in order of time."""
        self._sync(until_s)
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    # ------------------------------------------------------------------ time

    def _sync(self, now_s: float) -> None:
        """Finish every iteration that ends up to `now_s`.

        An instant counts as reached when its nanosecond is, so times survive the way through a
        float.
        """
        now_ns = round(now_s * _NS_PER_S)
        limit = now_ns * _PS_PER_NS + _PS_PER_NS - 1
        if limit < self._now:
            raise ValueError(
                f"now_s: {now_s} is before {_seconds(self._now)}, the time reached already"
            )
        while self._count and self._end <= limit:
            self._commit(self._count)
            self._settle()
            self._form()
        self._now = max(self._now, now_ns * _PS_PER_NS)
        if self._count > 1 and self._start + self._first <= limit:
            self._commit(self._iterations_within(limit - self._start))

    def _iterations_within(self, span: int) -> int:
        """How many iterations of the stretch end within `span` ps of its start."""
        if not self._growth:
            return span // self._first
        # The largest j with j * first + growth * j * (j - 1) / 2 <= span.
        linear = 2 * self._first - self._growth
        root = isqrt(linear * linear + 8 * self._growth * span)
        return (root - linear) // (2 * self._growth)

    def _commit(self, iterations: int) -> None:
        """Book the first `iterations` of the stretch as done, but for what happens at its end."""
        growth = self._growth * iterations
        span = iterations * self._first + growth * (iterations - 1) // 2
        self._busy += span
        self._start += span
        self._first += growth
        self._count -= iterations
        self.iterations += iterations
        decoding = self._decoding
        if decoding:
            rounds, rest = divmod(iterations, self._block)
            blocks = rounds * decoding
            for step in range(self._step, self._step + rest):
                blocks += self._boundary[step % self._block]
            self._free -= blocks
            self._handed_out += blocks
            self._context += decoding * iterations
            self.tokens_produced += decoding * iterations
        self._step += iterations

    def _cut(self) -> None:
        """Let the stretch end with the iteration in flight, so that a change can take effect."""
        if self._count > 1:
            self._count = 1
            self._end = self._start + self._first

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
                self._freed.pop(request.id, None)
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
        self._outcomes.append(Outcome(_seconds(self._start), kind, request_id, output_tokens))

    # ------------------------------------------------------------------ the start of an iteration

    def _form(self) -> None:
        """Choose what the next iterations compute, as vLLM V1's scheduler does."""
        preempted = False
        while self._boundary[self._step % self._block] > self._free:
            self._preempt()
            preempted = True
        if not self._running and not self._waiting_count:
            self._count = 0
            return
        chunks = self._chunks
        budget = self.profile.max_num_batched_tokens - self._decoding
        for request in self._prefilling.values():
            chunk = min(budget, request.prompt - request.computed)
            if chunk > 0:
                chunks.append((request, chunk))
                budget -= chunk
        if not preempted and self._waiting_count:
            self._admit(budget)
        costs = self._costs
        self._first = costs.iteration(self._decoding, self._context, chunks)
        if chunks or preempted or not self._stretches:
            self._count = 1
            self._growth = 0
        else:
            self._count = self._steps_unchanged()
            self._growth = costs.per_context_token * self._decoding
        count = self._count
        self._end = self._start + count * self._first + self._growth * count * (count - 1) // 2

    def _admit(self, budget: int) -> None:
        """Take waiting requests in, in order, until one does not fit."""
        reserved = self._boundary[self._step % self._block]
        while budget > 0 and self._waiting_count:
            request = self._waiting[0][2]
            blocks = self._blocks(request.prompt)
            if len(self._running) >= self.profile.max_num_seqs or blocks > self._free - reserved:
                return
            heappop(self._waiting)
            self._waiting_count -= 1
            self._drop_gone()
            cached, kept_blocks = self._cached(request)
            self._free -= blocks
            self._handed_out += blocks - kept_blocks
            request.computed = cached
            request.state = _State.PREFILLING
            self._running[request.id] = request
            self._prefilling[request.id] = request
            chunk = min(budget, request.prompt - cached)
            self._chunks.append((request, chunk))
            budget -= chunk

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
            # Blocks are freed last first, so a partial or empty tail is overwritten before the
            # rest.
            full = tokens // self._block
            self._freed.pop(request.id, None)
            self._freed[request.id] = (full, self._handed_out + self._free + held - full)
            if len(self._freed) > _FREED_MEMORY_MAX:
                del self._freed[next(iter(self._freed))]
        self._free += held

    def _cached(self, request: _Request) -> tuple[int, int]:
        """Leading tokens of a request that need no computing, and its blocks still intact."""
        full, overwritten_from = self._freed.pop(request.id, (0, 0))
        kept = max(0, full - max(0, self._handed_out - overwritten_from))
        # The last token is always computed: its logits give the next one.
        most = (request.prompt - 1) // self._block
        kept = min(kept, most)
        brought = min(request.cached // self._block, most)
        return max(kept, brought) * self._block, kept


class _Costs:
    """The profile's coefficients in whole picoseconds."""

    __slots__ = ("base", "knee", "per_context_token", "per_half_pair", "per_sequence", "per_token")

    def __init__(self, profile: EngineProfile):
        form = profile.iteration
        self.base = _picoseconds(form.base_ms + profile.host_overhead_ms)
        self.per_token = _picoseconds(form.per_token_ms)
        self.per_sequence = _picoseconds(form.per_sequence_ms + profile.host_per_sequence_ms)
        self.per_context_token = _picoseconds(form.per_context_token_ms)
        self.per_half_pair = _picoseconds(form.per_attention_pair_ms / 2)
        self.knee = form.knee_tokens

    def iteration(self, decoding: int, context: int, chunks: list[tuple[_Request, int]]) -> int:
        """Picoseconds of one iteration."""
        tokens = 0
        half_pairs = 0
        for request, chunk in chunks:
            tokens += chunk
            half_pairs += chunk * (chunk + 2 * request.computed)
        if self.knee is not None:
            tokens = max(0, tokens + decoding - self.knee)
        return (
            self.base
            + self.per_token * tokens
            + self.per_sequence * decoding
            + self.per_context_token * context
            + self.per_half_pair * half_pairs
        )


def _picoseconds(milliseconds: float) -> int:
    return round(milliseconds * _PS_PER_MS)


def _seconds(picoseconds: int) -> float:
    return picoseconds // _PS_PER_NS / _NS_PER_S
