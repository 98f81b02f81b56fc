"""What one model costs on one serving instance: iteration time, KV capacity and swap times.

An `EngineProfile` is the only thing the planner, the waiting-time estimator and the engine model
know about hardware. It is plain data: shipped profiles come from `qlm_core.profile_catalog`,
measured ones from `qlm_core.sim.fit`, and every profile says in `source` where its numbers come
from.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import exp, isfinite

ADAPTER_LOAD_S = 0.02
"""What it takes to load a LoRA adapter where nothing was measured: vLLM 0.32 on a CPU, an adapter of a few megabytes."""

# Far beyond any engine, and so small that whatever is computed from a profile stays finite.
_S_MAX = 1e9
_MS_MAX = 1e12
_COUNT_MAX = 1e18


PACE_AIM = 0.9
"""Share of a promised pace that batches are made for: iterations are longer in some mixtures than in the mean."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IterationTime:
    """Duration of one engine iteration, in milliseconds, as a function of what it computes.

        base + per_token * max(0, tokens - knee) + per_sequence * decode_batch
             + per_context_token * context_tokens + per_attention_pair * attention_pairs

    `tokens` are the prefill tokens and, one each, the decoding sequences. Up to the knee they are
    free: the weights have to be read from memory anyway. With `knee_tokens=None` the form is the
    plain linear one (a, b, c, d), in which a decoding sequence costs `per_sequence_ms` alone.

    Attributes:
        per_context_token_ms: reading one token of KV cache of a decoding sequence.
        per_attention_pair_ms: one (query, key) pair of prefill attention; a chunk of p tokens after
            q tokens already in the cache has p * (p / 2 + q) of them.
    """

    base_ms: float
    per_token_ms: float
    per_sequence_ms: float
    per_context_token_ms: float
    knee_tokens: int | None = None
    per_attention_pair_ms: float = 0.0

    def __post_init__(self) -> None:
        for name in (
            "base_ms",
            "per_token_ms",
            "per_sequence_ms",
            "per_context_token_ms",
            "per_attention_pair_ms",
        ):
            _require(name, getattr(self, name), 0.0, _MS_MAX)
        if self.knee_tokens is not None:
            _require("knee_tokens", self.knee_tokens, 0, _COUNT_MAX)
        if self.base_ms + self.per_token_ms + self.per_sequence_ms <= 0.0:
            raise ValueError("base_ms: an iteration must take time. Give a positive base_ms.")

    def iteration_ms(
        self,
        *,
        prefill_tokens: float = 0,
        prefix_tokens: float = 0,
        decode_batch: float = 0,
        context_tokens: float = 0,
    ) -> float:
        """Milliseconds of one iteration.

        Args:
            prefill_tokens: prompt tokens computed, as one chunk.
            prefix_tokens: tokens of that prompt that are in the KV cache already.
            decode_batch: sequences that decode one token each.
            context_tokens: tokens in the KV cache, summed over the decoding sequences.
        """
        if self.knee_tokens is None:
            computed = prefill_tokens
        else:
            computed = max(0.0, prefill_tokens + decode_batch - self.knee_tokens)
        return (
            self.base_ms
            + self.per_token_ms * computed
            + self.per_sequence_ms * decode_batch
            + self.per_context_token_ms * context_tokens
            + self.per_attention_pair_ms * prefill_tokens * (prefill_tokens / 2 + prefix_tokens)
        )

    def mean_prefill_ms(self, *, chunks: float, chunk_tokens: float, decode_batch: float) -> float:
        """Mean milliseconds by which chunks of prompts lengthen an iteration, attention aside.

        Chunks come at random, `chunks` of them to an iteration in the mean (Poisson), so most are alone in theirs: where they
        are few, each of them goes beyond the knee that all of them, spread evenly, would stay below.
        """
        tokens = chunks * chunk_tokens
        free = 0.0 if self.knee_tokens is None else max(0.0, self.knee_tokens - decode_batch)
        count, probability = 0, exp(-chunks)
        unused = 0.0
        # The rest of the sum is nothing once a probability is too small for a float.
        while probability and (left := free - count * chunk_tokens) > 0.0:
            unused += probability * left
            count += 1
            probability *= chunks / count
        return self.per_token_ms * (tokens - free + unused)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineProfile:
    """One model on one serving instance (a GPU, or `tensor_parallel` GPUs of a kind).

    Attributes:
        iteration: GPU time of an iteration.
        kv_cache_tokens: KV capacity of the instance while this model is awake.
        max_num_seqs: most sequences running at once.
        max_num_batched_tokens: tokens one iteration may compute (chunked-prefill budget).
        weights_bytes: all weights, over all GPUs of the instance; also the host memory they take
            while the model sleeps.
        host_overhead_ms: time per iteration outside the GPU's kernels (scheduling, launches).
        host_per_sequence_ms: the same for each decoding sequence (sampling, output handling).
        async_scheduling: the next iteration is chosen while the current one runs (vLLM's default since
            0.14), so a newcomer waits one iteration longer and the GPU waits for nobody.
        cold_s: from storage to ready, a fresh engine process included.
        wake_s: from host memory to GPU (sleep level 1).
        sleep_s: from GPU to host memory.
        adapter_of: the model that this one is a LoRA adapter of, whose other numbers it has; empty for a model of its own.
        load_s: an adapter's time from storage to a base that is awake.
        adapters_max: how many different adapters of this model may run at once; 0 where that is left to the engine.
        resume_share: of a request that comes back to go on, the share of prompt and output that is computed again. The rest is
            found in a KV cache, the engine's own or one in host memory.
        block_tokens: granularity of the KV cache.
        source: where the numbers come from.
    """

    model: str
    gpu: str
    # Profiles are keys of caches that planning asks thousands of times: the longest field is not hashed.
    iteration: IterationTime = field(hash=False)
    kv_cache_tokens: int
    tensor_parallel: int = 1
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    weights_bytes: int = 0
    kv_bytes_per_token: int = 0
    host_overhead_ms: float = 0.0
    host_per_sequence_ms: float = 0.0
    async_scheduling: bool = True
    cold_s: float = 0.0
    wake_s: float = 0.0
    sleep_s: float = 0.0
    adapter_of: str = ""
    load_s: float = 0.0
    adapters_max: int = 0
    resume_share: float = 1.0
    block_tokens: int = 16
    source: str = ""

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError("model: the name is empty. Name the model that clients ask for.")
        for name in ("tensor_parallel", "max_num_seqs", "max_num_batched_tokens", "block_tokens"):
            _require(name, getattr(self, name), 1, _COUNT_MAX)
        for name in ("weights_bytes", "kv_bytes_per_token", "adapters_max"):
            _require(name, getattr(self, name), 0, _COUNT_MAX)
        for name in ("host_overhead_ms", "host_per_sequence_ms"):
            _require(name, getattr(self, name), 0.0, _MS_MAX)
        for name in ("cold_s", "wake_s", "sleep_s", "load_s"):
            _require(name, getattr(self, name), 0.0, _S_MAX)
        if not 0.0 <= self.resume_share <= 1.0:
            raise ValueError(f"resume_share: {self.resume_share} is no share. Give 0 to 1.")
        if self.adapter_of == self.model:
            raise ValueError("adapter_of: a model is no adapter of itself. Name its base.")
        _require("kv_cache_tokens", self.kv_cache_tokens, self.block_tokens, _COUNT_MAX)
        # A decoding sequence needs a token of the budget in every iteration, and a prompt needs
        # one more.
        budget = self.max_num_batched_tokens
        _require("max_num_batched_tokens", budget, self.max_num_seqs, _COUNT_MAX)

    @property
    def base(self) -> str:
        """The model that has to be awake for this one to be served: itself, or what it is an adapter of."""
        return self.adapter_of or self.model

    def adapter(self, model: str, *, load_s: float) -> EngineProfile:
        """The profile of a LoRA adapter of this model: the same costs, and no weights worth counting."""
        return replace(self, model=model, adapter_of=self.model, load_s=load_s)

    def kept_tokens(self, tokens: int) -> int:
        """Of so many tokens of a request that comes back, those that need not be computed again."""
        return int((1.0 - self.resume_share) * tokens)

    @property
    def host_memory_bytes(self) -> int:
        """Host memory the model takes while it sleeps at level 1: its weights. An adapter takes its base's."""
        return 0 if self.adapter_of else self.weights_bytes

    def iteration_s(
        self,
        *,
        prefill_tokens: float = 0,
        prefix_tokens: float = 0,
        decode_batch: float = 0,
        context_tokens: float = 0,
    ) -> float:
        """Seconds of one iteration, host time included; see `IterationTime.iteration_ms`."""
        gpu_ms = self.iteration.iteration_ms(
            prefill_tokens=prefill_tokens,
            prefix_tokens=prefix_tokens,
            decode_batch=decode_batch,
            context_tokens=context_tokens,
        )
        host_ms = self.host_overhead_ms + self.host_per_sequence_ms * decode_batch
        return (gpu_ms + host_ms) / 1e3

    def prefill_s(self, prompt_tokens: int, *, cached_tokens: int = 0) -> float:
        """Seconds to compute a prompt alone on the engine, in chunks of the token budget."""
        done = min(cached_tokens, max(prompt_tokens - 1, 0))
        chunk = self.max_num_batched_tokens
        whole, rest = divmod(max(0, prompt_tokens - done), chunk)
        total_s = 0.0
        if whole:
            # The time of a chunk is linear in what comes before it, so the one in the middle stands for all.
            middle = done + chunk * (whole - 1) / 2
            total_s = whole * self.iteration_s(prefill_tokens=chunk, prefix_tokens=middle)
        if rest:
            before = done + whole * chunk
            total_s += self.iteration_s(prefill_tokens=rest, prefix_tokens=before)
        return total_s

    def batch_size(
        self, mean_prompt: float, mean_output: float, *, output_variation: float = 1.0
    ) -> float:
        """Mean number of decoding requests while more wait than fit.

        The batch is bounded by `max_num_seqs`, by the KV cache, and by the token budget, of which
        every finished request's successor takes its prompt. A sequence met at a random moment is
        a long one more often than not, so it has produced mean * (1 + variation²) / 2 tokens, not
        mean / 2.

        Args:
            output_variation: standard deviation of output lengths over their mean. Public traces of
                conversations lie near 1.
        """
        mean_prompt, mean_output = max(mean_prompt, 1.0), max(mean_output, 1.0)
        resident = mean_prompt + self._mean_produced(mean_output, output_variation)
        by_kv = self.kv_cache_tokens / (resident + self.block_tokens / 2)
        by_budget = self.max_num_batched_tokens / (1.0 + mean_prompt / mean_output)
        return max(1.0, min(self.max_num_seqs, by_kv, by_budget))

    def decode_throughput(
        self, mean_prompt: float, mean_output: float, *, output_variation: float = 1.0
    ) -> float:
        """Output tokens per second while more requests wait than fit (the paper's Θ, §5).

        In the steady state each iteration decodes the whole batch and computes, for each request
        that ended, the prompt of its successor. Arguments as `batch_size`.
        """
        mean_prompt, mean_output = max(mean_prompt, 1.0), max(mean_output, 1.0)
        batch = self.batch_size(mean_prompt, mean_output, output_variation=output_variation)
        return batch / self.steady_iteration_s(
            batch, mean_prompt, mean_output, output_variation=output_variation
        )

    def steady_iteration_s(
        self,
        batch: float,
        mean_prompt: float,
        mean_output: float,
        *,
        output_variation: float = 1.0,
    ) -> float:
        """Mean seconds of an iteration that keeps `batch` requests decoding."""
        resident = mean_prompt + self._mean_produced(mean_output, output_variation)
        return self.mean_iteration_s(
            prompts=batch / mean_output,
            mean_prompt=mean_prompt,
            decode_batch=batch,
            context_tokens=batch * resident,
        )

    def mean_iteration_s(
        self, *, prompts: float, mean_prompt: float, decode_batch: float, context_tokens: float
    ) -> float:
        """Mean seconds of iterations to each of which come so many prompts, at random; else as `iteration_s`."""
        form = self.iteration
        chunk = max(1.0, min(mean_prompt, self.max_num_batched_tokens))
        prefill_ms = form.mean_prefill_ms(
            chunks=prompts * mean_prompt / chunk, chunk_tokens=chunk, decode_batch=decode_batch
        )
        attention_ms = form.per_attention_pair_ms * prompts * mean_prompt**2 / 2
        decode_s = self.iteration_s(decode_batch=decode_batch, context_tokens=context_tokens)
        return decode_s + (prefill_ms + attention_ms) / 1e3

    def slots_at_pace(
        self, pace_s: float, *, mean_prompt: float, mean_output: float, resident_tokens: float
    ) -> int:
        """Sequences that may decode together so that each has a token every `pace_s` seconds in the mean; at least 1.

        Each that ends has a successor, whose prompt is computed between the others' tokens.

        Args:
            resident_tokens: mean tokens of one sequence in the KV cache.
        """
        least, most = 1, self.max_num_seqs
        while least < most:
            size = (least + most + 1) // 2
            iteration_s = self.mean_iteration_s(
                prompts=size / mean_output,
                mean_prompt=mean_prompt,
                decode_batch=size,
                context_tokens=size * resident_tokens,
            )
            if iteration_s <= pace_s:
                least = size
            else:
                most = size - 1
        return least

    @staticmethod
    def _mean_produced(mean_output: float, variation: float) -> float:
        return mean_output * (1.0 + variation**2) / 2


def profile_from_throughput(
    model: str,
    tokens_per_s: float,
    *,
    gpu: str = "any",
    kv_cache_tokens: int = 1 << 20,
    max_num_seqs: int = 256,
) -> EngineProfile:
    """The simplest profile: a constant token throughput, whatever the batch (`token_throughput`).

    Raises:
        ValueError: the throughput is not a positive number.
    """
    if not (isfinite(tokens_per_s) and tokens_per_s > 0):
        raise ValueError(f"tokens_per_s: {tokens_per_s} is not positive. Give tokens per second.")
    return EngineProfile(
        model=model,
        gpu=gpu,
        iteration=IterationTime(
            base_ms=0.0,
            per_token_ms=0.0,
            per_sequence_ms=1e3 / tokens_per_s,
            per_context_token_ms=0.0,
        ),
        kv_cache_tokens=kv_cache_tokens,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max(2048, max_num_seqs),
        source="constant token throughput",
    )


def _require(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise ValueError(
            f"{name}: {value:.6g} is out of range. Give a number of at least {least}"
            + (f" and at most {most:g}." if value > most else ".")
        )
