"""Everything the Manager has learned about requests and engines, and the rates that follow from it.

Lengths are learned per model and SLO class (a new class starts from its model's lengths, a new model from the
configured prior), and apart from these for each batch (which starts from what the batches of its class before it were
like); prompts per kind of group, speed per GPU and model, calibration per model and class. What is learned of a
model in general is learned of a base and its LoRA adapters together, for they share engines. Rates are
cached for a short while, because planning asks for the same ones thousands of times.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from math import inf, sqrt

from qlm_core.config import RwtConfig
from qlm_core.grouping import LIMIT_SCALES, PROMPT_ALONE, BatchKey, GroupKey
from qlm_core.manager.flow import Arriving, Rate
from qlm_core.model import Estimate, InstanceState, ModelName, RequestMeta
from qlm_core.profile import PACE_AIM, EngineProfile, profile_from_throughput
from qlm_core.rwt.batches import BatchesApart, BatchLengths
from qlm_core.rwt.calibration import Calibration, Coverage
from qlm_core.rwt.lengths import LengthModel, exponential_prior
from qlm_core.rwt.rates import ArrivalRate, RecentMean, SpeedFactor
from qlm_core.rwt.waits import Wait

_RATE_LIFE_S = 1.0
_UNLIMITED = 1 << 20
_UNKNOWN_PROMPT = 256.0
_STEADY = 0.1
"""Largest change of a batch within an interval from which speed is learned, as a share of it."""

_TYPICAL, _LONG = 0.7, 0.9
"""Shares of the outputs of a kind that are no longer than a typical one and a long one."""

_PRIOR_REQUESTS = 8.0
"""What the configured prior of output lengths is worth, in requests."""


class Estimators:
    """The learned state, updated by observations and asked by planning and estimating."""

    __slots__ = (
        "_apart",
        "_arrivals",
        "_bases",
        "_batches",
        "_calibration",
        "_config",
        "_kinds",
        "_lengths",
        "_model_lengths",
        "_model_prompts",
        "_prompts",
        "_rates",
        "_rates_until_s",
        "_speeds",
    )

    def __init__(self, config: RwtConfig):
        self._config = config
        self._bases: dict[ModelName, ModelName] = {}
        self._arrivals: dict[ModelName, dict[GroupKey, ArrivalRate]] = {}
        self._model_lengths: dict[ModelName, LengthModel] = {}
        self._lengths: dict[tuple[ModelName, str], LengthModel] = {}
        self._batches: dict[tuple[ModelName, BatchKey], BatchLengths] = {}
        self._apart: dict[tuple[ModelName, str], BatchesApart] = {}
        self._model_prompts: dict[ModelName, RecentMean] = {}
        self._prompts: dict[GroupKey, RecentMean] = {}
        self._kinds: dict[tuple[object, ...], GroupKey] = {}
        self._speeds: dict[tuple[str, str], SpeedFactor] = {}
        self._calibration: dict[tuple[ModelName, str], Calibration] = {}
        self._rates: dict[int, tuple[EngineProfile, dict[GroupKey | None, Rate]]] = {}
        self._rates_until_s = 0.0

    # ------------------------------------------------------------------ learning

    def joined(self, profiles: Iterable[EngineProfile]) -> None:
        """Learn which models are adapters of which."""
        for profile in profiles:
            if profile.adapter_of:
                self._bases[ModelName(profile.model)] = ModelName(profile.base)

    def arrived(self, request: RequestMeta) -> None:
        """Learn the prompt length of a new request, and how often its kind arrives; lines of a batch come as there is room."""
        if request.batch:
            self._model_prompt(request.model).observe(float(request.prompt_tokens))
            self.batch(GroupKey.of(request)).came(request.prompt_tokens, request.max_output_tokens)
            return
        key, tokens = self._first_of_kind(GroupKey.of(request)), float(request.prompt_tokens)
        rates = self._arrivals.setdefault(request.model, {})
        if key not in rates:
            rates[key] = ArrivalRate(request.arrival_s)
        rates[key].observe(request.arrival_s)
        prompts = self._model_prompt(request.model)
        prompts.observe(tokens)
        if prompts.seen & (prompts.seen - 1) == 0:
            # Twice as much is known as when rates were last made new; a first burst may be over before they grow old.
            self._rates_until_s = 0.0
        found = self._prompts.get(key)
        if found is None:
            found = self._prompts[key] = RecentMean(
                prior=prompts.value, history=self._config.history
            )
        found.observe(tokens)

    def produced(self, request: RequestMeta, tokens: int, seen: int) -> int:
        """Learn how far the output of a request has come; see `LengthModel.passed`."""
        for lengths in self._taught(request):
            lengths.passed(tokens, seen)
        return max(tokens, seen)

    def finished(self, request: RequestMeta, output_tokens: int, seen: int) -> None:
        """Learn the output length of a finished request; at the client's limit it might have gone on.

        One that never has output tells of its model alone, most of whose requests are like it.
        """
        if not request.max_output_tokens:
            self._model_length(request.model).observe(1)
            return
        if output_tokens >= request.max_output_tokens:
            self.produced(request, output_tokens, seen)
            return
        for lengths in self._taught(request):
            lengths.observe(output_tokens, seen)

    def batch(self, key: GroupKey) -> BatchLengths:
        """What is known of the lines of a batch, from now on until it is `batch_over`."""
        assert key.batch is not None
        found = self._batches.get((key.model, key.batch))
        if found is None:
            usual = self.lengths(key.model, key.slo_class).hazards
            apart = self._apart.setdefault((key.model, key.slo_class), BatchesApart())
            found = BatchLengths(usual, apart, history=self._config.history)
            self._batches[key.model, key.batch] = found
        return found

    def batch_over(self, model: ModelName, batch: BatchKey) -> None:
        """No line of a batch is left."""
        known = self._batches.pop((model, batch), None)
        if known is not None:
            known.over()

    def _taught(self, request: RequestMeta) -> tuple[LengthModel, ...]:
        """Whose lengths a request is one of. Lines of a batch tell nothing of what else its class is used for."""
        general = self._model_length(request.model)
        if not request.batch:
            return general, self.lengths(request.model, request.slo_class)
        return general, self.batch(GroupKey.of(request)).lengths

    def reported(self, gpu: str, profile: EngineProfile, state: InstanceState) -> None:
        """Learn an engine's real speed from one interval in which its batch hardly changed and nothing was resumed.

        Where nothing was generated that is the speed at which prompts were computed, as many together as there were.
        """
        batch = min(state.mean_batch, float(profile.max_num_seqs))
        if batch < 1.0 or state.resumed_tokens_per_s > 0.0:
            return
        if abs(len(state.running) - batch) > _STEADY * batch:
            return
        if state.tokens_per_s <= 0.0:
            tokens = min(batch * self._mean_prompt(profile), profile.max_num_batched_tokens)
            self._speed(gpu, profile.base).observe(
                realised_per_s=state.prompt_tokens_per_s,
                predicted_per_s=tokens / profile.iteration_s(prefill_tokens=tokens),
            )
            return
        prompts = self._prompts_per_iteration(profile, state)
        iteration_s = self._iteration_s(profile, state, batch=batch, prompts=prompts)
        self._speed(gpu, profile.base).observe(
            realised_per_s=state.tokens_per_s, predicted_per_s=batch / iteration_s
        )

    def give(self, request: RequestMeta, wait: Wait, *, now_s: float) -> Estimate:
        """As `estimate`, of a request whose wait will be `realised` or `forgotten`."""
        return self._calibration_of(request).give(wait, now_s=now_s)

    def forgotten(self, request: RequestMeta, wait: Wait | None) -> None:
        """A request is gone; `wait` is None if it was realised."""
        if wait is not None:
            self._calibration_of(request).forget(wait)

    def realised(self, request: RequestMeta, wait: Wait, realised_s: float) -> None:
        """Learn how long an estimated wait was in the end."""
        self._calibration_of(request).observe(wait, realised_s)

    @property
    def calibrations(self) -> dict[ModelName, Coverage]:
        """How often the quantiles of each model held, for metrics."""
        found: dict[ModelName, Coverage] = {}
        for (model, _), one in self._calibration.items():
            found[model] = found.get(model, Coverage()) + one.counts
        return found

    # ------------------------------------------------------------------ asking

    def lengths(self, model: ModelName, slo_class: str) -> LengthModel:
        """Output lengths of one model and class."""
        found = self._lengths.get((model, slo_class))
        if found is None:
            prior = self._model_length(model).hazards
            found = LengthModel(prior=prior, history=self._config.history)
            self._lengths[model, slo_class] = found
        return found

    def estimate(self, request: RequestMeta, wait: Wait) -> Estimate:
        """A wait with the quantiles that past waits of this model and class bear out."""
        return self._calibration_of(request).estimate(wait)

    def expected_output(self, request: RequestMeta) -> int:
        """Output tokens still to expect of a waiting request, at least 1."""
        if request.batch:
            lengths = self._lengths_of(GroupKey.of(request))
        else:
            lengths = self.lengths(request.model, request.slo_class)
        if request.produced_tokens:
            return max(
                1, round(lengths.remaining(request.produced_tokens, request.max_output_tokens))
            )
        return lengths.expected(request.max_output_tokens)

    def left_tokens(self, key: GroupKey, produced_tokens: int) -> float:
        """Output tokens still to expect of a running request of `key`, at least 1."""
        return max(1.0, self._lengths_of(key).remaining(produced_tokens, self._limit(key)))

    def profile(self, profile: EngineProfile) -> EngineProfile:
        """The profile to plan with: the agent's, unless the configuration gives a throughput."""
        tokens_per_s = self._config.token_throughput.get(profile.model)
        return profile if tokens_per_s is None else _with_throughput(profile, tokens_per_s)

    def arriving(self, model: ModelName, *, now_s: float) -> list[Arriving]:
        """Every kind of request that goes on arriving for a model."""
        return [
            Arriving(
                key,
                arrivals.per_s(now_s),
                arrivals.age_s(now_s),
                arrivals.long_per_s(now_s),
                arrivals.seen(now_s),
            )
            for key, arrivals in self._arrivals.get(model, {}).items()
        ]

    def rate(self, profile: EngineProfile, key: GroupKey | None, *, now_s: float) -> Rate:
        """How requests of `key` (None: of the profile's model in general) flow through an instance."""
        if now_s >= self._rates_until_s:
            self._rates.clear()
            self._rates_until_s = now_s + _RATE_LIFE_S
        # By object, which costs less than hashing a profile; the reference keeps the object's id its own.
        of_profile = self._rates.get(id(profile))
        if of_profile is None:
            of_profile = self._rates[id(profile)] = profile, {}
        found = of_profile[1].get(key)
        if found is None:
            first = key if key is None else self._kinds.get(key.kind, key)
            found = of_profile[1].get(first) or self._rate(profile, first)
            of_profile[1][first] = of_profile[1][key] = found
        return found

    def first_token_s(
        self,
        profile: EngineProfile,
        prompt_tokens: int,
        *,
        batch: int,
        state: InstanceState,
        behind_prompts: bool,
    ) -> float:
        """Seconds until a request has its first token, if it comes at a random moment to an engine that decodes `batch` others.

        Half of the iteration under way has yet to pass, and where the next one is chosen already, all of that.

        Args:
            state: the engine's last report. As many prompts as then are computed beside this one.
            behind_prompts: the request waits until those ahead of it are computed; then its own is alone.
        """
        first_s = profile.prefill_s(prompt_tokens)
        if batch:
            prompts = 0.0 if behind_prompts else self._prompts_per_iteration(profile, state)
            iteration_s = self._iteration_s(profile, state, batch=batch, prompts=prompts)
            first_s += (1.0 + _passing(profile)) * iteration_s - profile.iteration_s()
        return first_s / self._speed(profile.gpu, profile.base).value

    def finish_s(
        self,
        profile: EngineProfile,
        key: GroupKey,
        *,
        batch: int,
        context_tokens: int,
        now_s: float,
    ) -> float:
        """Seconds from start to end of one request of `key` in a batch that stays as it is, itself included."""
        rate = self.rate(profile, key, now_s=now_s)
        output = rate.seconds_per_request / rate.seconds_per_token
        iteration_s = profile.iteration_s(decode_batch=batch, context_tokens=context_tokens)
        speed = self._speed(profile.gpu, profile.base).value
        return rate.prefill_s + output * iteration_s / speed

    def _first_of_kind(self, key: GroupKey) -> GroupKey:
        """The key under which requests of this kind are counted: that of the first of them."""
        return self._kinds.setdefault(key.kind, key)

    def _prompts_per_iteration(self, profile: EngineProfile, state: InstanceState) -> float:
        """New prompts to an iteration of late, as the engine reported."""
        prompts_per_s = state.prompt_tokens_per_s / self._mean_prompt(profile)
        iterations_per_s = state.tokens_per_s / max(1.0, state.mean_batch)
        return prompts_per_s / iterations_per_s if iterations_per_s else 0.0

    def _iteration_s(
        self, profile: EngineProfile, state: InstanceState, *, batch: float, prompts: float
    ) -> float:
        """Mean seconds of an iteration by the profile, so many prompts in each."""
        return profile.mean_iteration_s(
            prompts=prompts,
            mean_prompt=self._mean_prompt(profile),
            decode_batch=batch,
            context_tokens=state.kv_used_tokens,
        )

    def _mean_prompt(self, profile: EngineProfile) -> float:
        return max(1.0, self._model_prompt(ModelName(profile.model)).value)

    def _rate(self, profile: EngineProfile, key: GroupKey | None) -> Rate:
        prompt, output = self._means(ModelName(profile.model), key)
        variation = self._variation(ModelName(profile.model), key)
        factor = self._speed(profile.gpu, profile.base)
        speed = factor.value
        ended = self._model_length(ModelName(profile.model)).ended
        batch = profile.batch_size(prompt, output, output_variation=variation)
        if key is not None and key.pace_s < inf:
            batch = min(
                batch, self._paced_batch(profile, key.pace_s * speed, prompt, output, variation)
            )
        iteration_s = profile.steady_iteration_s(batch, prompt, output, output_variation=variation)
        seconds_per_token = iteration_s / batch / speed
        chunk = profile.max_num_batched_tokens
        return Rate(
            seconds_per_token=seconds_per_token,
            seconds_per_request=seconds_per_token * output,
            batch=batch,
            residence_s=output * iteration_s / speed,
            variation=variation,
            typical_output_s=self._quantile(key, _TYPICAL) * iteration_s / speed,
            long_output_s=self._quantile(key, _LONG) * iteration_s / speed,
            uncertainty=_pace_spread(factor.spread, variation, ended),
            prefill_s=(profile.prefill_s(round(prompt)) + iteration_s) / speed,
            absorb_s=min(
                seconds_per_token * output,
                profile.prefill_s(chunk) / chunk * prompt / speed,
            ),
        )

    @staticmethod
    def _paced_batch(
        profile: EngineProfile, pace_s: float, prompt: float, output: float, variation: float
    ) -> float:
        """The batch in which each has a token every `pace_s` seconds: agents let no more run together if that can be kept."""
        if pace_s < profile.iteration_s(decode_batch=1):
            return profile.max_num_seqs
        resident = prompt + output * (1.0 + variation**2) / 2
        return profile.slots_at_pace(
            PACE_AIM * pace_s, mean_prompt=prompt, mean_output=output, resident_tokens=resident
        )

    def _means(self, model: ModelName, key: GroupKey | None) -> tuple[float, float]:
        prompt = self._model_prompt(model).value
        if key is None:
            return prompt, self._model_length(model).moments(_UNLIMITED)[0]
        output = self._lengths_of(key).moments(self._limit(key))[0]
        if key.batch is not None and (key.model, key.batch) in self._batches:
            return self._batches[key.model, key.batch].prompt_tokens, output
        known = self._prompts.get(key)
        return prompt if known is None else known.value, output

    def _variation(self, model: ModelName, key: GroupKey | None) -> float:
        lengths = self._model_length(model) if key is None else self._lengths_of(key)
        mean, variance = lengths.moments(_UNLIMITED if key is None else self._limit(key))
        return sqrt(variance) / max(mean, 1.0)

    def _quantile(self, key: GroupKey | None, share: float) -> float:
        """Output tokens that this share of a kind does not exceed; of interest where an end was promised, so else 0."""
        if key is None or key.e2e_s == inf:
            return 0.0
        return self._lengths_of(key).quantile(share, self._limit(key))

    def _lengths_of(self, key: GroupKey) -> LengthModel:
        """The lengths of a group's members: of its batch, if it has one."""
        if key.batch is None:
            return self.lengths(key.model, key.slo_class)
        known = self._batches.get((key.model, key.batch))
        return self.lengths(key.model, key.slo_class) if known is None else known.lengths

    def _limit(self, key: GroupKey) -> int:
        """The most output tokens of a group's members, at least 1: a computed prompt ends with a token or in its place."""
        if key.batch is not None and (key.model, key.batch) in self._batches:
            return self._batches[key.model, key.batch].limit_tokens
        if key.limit_scale == PROMPT_ALONE:
            return 1
        return _UNLIMITED if key.limit_scale >= LIMIT_SCALES else 64 << key.limit_scale

    def _calibration_of(self, request: RequestMeta) -> Calibration:
        kind = (request.model, request.slo_class)
        found = self._calibration.get(kind)
        if found is None:
            found = self._calibration[kind] = Calibration()
        return found

    def _model_length(self, model: ModelName) -> LengthModel:
        model = self._bases.get(model, model)
        found = self._model_lengths.get(model)
        if found is None:
            prior = exponential_prior(self._config.prior_output_tokens)
            found = LengthModel(prior=prior, history=self._config.history)
            self._model_lengths[model] = found
        return found

    def _model_prompt(self, model: ModelName) -> RecentMean:
        model = self._bases.get(model, model)
        found = self._model_prompts.get(model)
        if found is None:
            found = RecentMean(prior=_UNKNOWN_PROMPT, history=self._config.history)
            self._model_prompts[model] = found
        return found

    def _speed(self, gpu: str, model: str) -> SpeedFactor:
        """The speed of a base, and so of its adapters."""
        found = self._speeds.get((gpu, model))
        if found is None:
            found = self._speeds[gpu, model] = SpeedFactor()
        return found

    @property
    def speeds(self) -> dict[tuple[str, str], float]:
        """Real speed over predicted speed per (GPU, model), for metrics."""
        return {key: factor.value for key, factor in self._speeds.items()}


def _passing(profile: EngineProfile) -> float:
    """How many iterations have to pass before the next one is chosen."""
    return 1.5 if profile.async_scheduling else 0.5


def _pace_spread(speed_spread: float, variation: float, ended: float) -> float:
    """What is not known of a pace, over its mean: of the engine's speed, and of lengths after so many ended requests."""
    return sqrt(speed_spread**2 + variation**2 / (_PRIOR_REQUESTS + ended))


@lru_cache(maxsize=1024)
def _with_throughput(profile: EngineProfile, tokens_per_s: float) -> EngineProfile:
    # Cached because rates are kept by the profile's identity.
    return profile_from_throughput(
        profile.model,
        tokens_per_s,
        gpu=profile.gpu,
        kv_cache_tokens=profile.kv_cache_tokens,
        max_num_seqs=profile.max_num_seqs,
    )
