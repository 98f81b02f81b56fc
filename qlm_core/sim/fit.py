"""Profiles from measurements: the iteration-time form by least squares.

Two kinds of measurement serve. *Points* are iterations whose content is known (a probe that runs
batches of known shape): the coefficients follow by non-negative least squares on the relative
error. A *request log* (arrival, lengths, TTFT, TPOT) says what came out of many iterations of
unknown content: there, a profile that is roughly right is scaled until its replay agrees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from qlm_core.profile import EngineProfile, IterationTime
from qlm_core.sim.fidelity import MeasuredRequest, replay_log

FitForm = Literal["linear", "roofline"]
Array = NDArray[np.float64]

KNEES = tuple(range(0, 257, 16))


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredIteration:
    """One iteration: what it computed (as `IterationTime.iteration_ms`) and how long it took."""

    iteration_ms: float
    prefill_tokens: int = 0
    prefix_tokens: int = 0
    decode_batch: int = 0
    context_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class IterationFit:
    """A fitted form and how well it describes the points: R² on milliseconds, relative errors."""

    iteration: IterationTime
    r2: float
    mean_error: float
    max_error: float
    points: int


def fit_iteration_time(
    points: Sequence[MeasuredIteration], *, form: FitForm = "roofline"
) -> IterationFit:
    """The iteration-time form that fits measured iterations best, in relative error.

    The knee is the one with the least mean error; within it, squares of relative errors are least.
    `roofline` also searches the knee (multiples of 16 up to 256) and knows prefill attention;
    `linear` is a + b * prefill + c * batch + d * context.

    Raises:
        ValueError: fewer points than coefficients, or a duration that is not positive.
    """
    coefficients = 4 if form == "linear" else 6
    if len(points) < coefficients:
        raise ValueError(
            f"points: {len(points)} do not determine {coefficients} coefficients. Measure more."
        )
    for index, point in enumerate(points):
        if not point.iteration_ms > 0.0:
            raise ValueError(
                f"points[{index}].iteration_ms: {point.iteration_ms} is not positive. "
                "Give milliseconds."
            )
    measured = np.array([point.iteration_ms for point in points])
    fits = []
    for knee in (None,) if form == "linear" else KNEES:
        features = _features(points, knee)
        solution = _non_negative_least_squares(features / measured[:, None], np.ones(len(points)))
        if float(solution[:3].sum()) > 0.0:
            fits.append(judge_fit(_form(solution, knee), points))
    if not fits:
        raise ValueError("points: no form fits. Measure iterations of different sizes.")
    return min(fits, key=lambda fit: fit.mean_error)


def judge_fit(iteration: IterationTime, points: Sequence[MeasuredIteration]) -> IterationFit:
    """How well a given form describes measured iterations."""
    measured = np.array([point.iteration_ms for point in points])
    predicted = np.array(
        [
            iteration.iteration_ms(
                prefill_tokens=point.prefill_tokens,
                prefix_tokens=point.prefix_tokens,
                decode_batch=point.decode_batch,
                context_tokens=point.context_tokens,
            )
            for point in points
        ]
    )
    errors = np.abs(predicted / measured - 1.0)
    spread = float(np.sum((measured - measured.mean()) ** 2))
    missed = float(np.sum((measured - predicted) ** 2))
    return IterationFit(
        iteration=iteration,
        r2=1.0 - missed / spread if spread > 0.0 else float(missed == 0.0),
        mean_error=float(errors.mean()),
        max_error=float(errors.max()),
        points=len(points),
    )


def fit_profile_to_log(
    start: EngineProfile,
    log: Sequence[MeasuredRequest],
    *,
    rounds: int = 8,
    prior_strength: float = 0.05,
) -> EngineProfile:
    """Scale a roughly right profile until its replay of a measured log agrees with it.

    Three factors are fitted: on the base time, on the work of each token computed, and on the work
    of each sequence decoded (its context and host time). They minimise the squared logarithmic error
    of the distribution of TTFT and of every request's TPOT by Gauss-Newton steps; a weak prior keeps
    a factor that the log says nothing about at 1. Capacity and limits (`kv_cache_tokens`,
    `max_num_seqs`, the token budget) are taken as given: read them from the engine.

    Args:
        start: a profile of a similar GPU or model, with the real engine's capacity and limits.
        rounds: most Gauss-Newton steps; each replays the log four to eight times.
        prior_strength: weight of the prior, as a share of the log's.

    Raises:
        ValueError: the log is empty, or as `replay_log`.
    """
    if not log:
        raise ValueError("log: it holds no request. Give a log with at least one.")
    # Nothing was measured between tokens that came at once.
    paced = [
        index
        for index, request in enumerate(log)
        if request.output_tokens > 1 and request.tpot_s > 0.0
    ]
    target = _log_times(log, paced)
    prior = prior_strength * len(target) ** 0.5
    factors = np.zeros(3)

    def residual(at: Array) -> Array:
        replayed, _ = replay_log(_scaled(start, at), log)
        return np.concatenate([_log_times(replayed, paced) - target, prior * at])

    now = residual(factors)
    step_size = 0.15
    for _ in range(rounds):
        jacobian = np.column_stack(
            [(residual(factors + step_size * unit) - now) / step_size for unit in np.eye(3)]
        )
        step, *_ = np.linalg.lstsq(jacobian, -now, rcond=None)
        step = np.clip(step, -0.7, 0.7)
        for shrink in (1.0, 0.5, 0.25, 0.1):
            tried = residual(factors + shrink * step)
            if float(tried @ tried) < float(now @ now):
                factors, now = factors + shrink * step, tried
                break
        else:
            break
    return replace(_scaled(start, factors), source=f"Fitted to a log of {len(log)} requests.")


def _scaled(profile: EngineProfile, log_factors: Array) -> EngineProfile:
    base, token, sequence = (float(factor) for factor in np.exp(log_factors))
    form = profile.iteration
    return replace(
        profile,
        iteration=replace(
            form,
            base_ms=form.base_ms * base,
            per_token_ms=form.per_token_ms * token,
            per_attention_pair_ms=form.per_attention_pair_ms * token,
            per_sequence_ms=form.per_sequence_ms * sequence,
            per_context_token_ms=form.per_context_token_ms * sequence,
        ),
        host_overhead_ms=profile.host_overhead_ms * base,
        host_per_sequence_ms=profile.host_per_sequence_ms * sequence,
    )


def _log_times(log: Sequence[MeasuredRequest], paced: Sequence[int]) -> Array:
    # Single TTFTs of a lightly loaded engine hang on where an iteration happened to end; their
    # distribution does not. A millisecond keeps the shortest from dominating the logarithms.
    ttft = sorted(request.ttft_s + 1e-3 for request in log)
    tpot = [log[index].tpot_s for index in paced]
    times: Array = np.log(np.array(ttft + tpot))
    return times


def _features(points: Sequence[MeasuredIteration], knee: int | None) -> Array:
    prefill = np.array([point.prefill_tokens for point in points], dtype=np.float64)
    prefix = np.array([point.prefix_tokens for point in points], dtype=np.float64)
    batch = np.array([point.decode_batch for point in points], dtype=np.float64)
    context = np.array([point.context_tokens for point in points], dtype=np.float64)
    tokens = prefill if knee is None else np.maximum(0.0, prefill + batch - knee)
    columns = [np.ones(len(points)), tokens, batch, context]
    if knee is not None:
        columns.append(prefill * (prefill / 2 + prefix))
    return np.column_stack(columns)


def _form(solution: Array, knee: int | None) -> IterationTime:
    base, token, sequence, context = (float(value) for value in solution[:4])
    return IterationTime(
        base_ms=base,
        per_token_ms=token,
        per_sequence_ms=sequence,
        per_context_token_ms=context,
        knee_tokens=knee,
        per_attention_pair_ms=float(solution[4]) if knee is not None else 0.0,
    )


def _non_negative_least_squares(matrix: Array, target: Array) -> Array:
    """Coefficients >= 0 that minimise |matrix x - target|².

    With at most five columns, the best set of positive ones is found by trying them all.
    """
    columns = matrix.shape[1]
    scale = np.maximum(np.abs(matrix).max(axis=0), 1e-300)
    best = np.zeros(columns)
    least = float(target @ target)
    for size in range(1, columns + 1):
        for chosen in combinations(range(columns), size):
            part = matrix[:, chosen] / scale[list(chosen)]
            solution, *_ = np.linalg.lstsq(part, target, rcond=None)
            error = part @ solution - target
            squared = float(error @ error)
            if squared < least and bool((solution >= 0.0).all()):
                least = squared
                best = np.zeros(columns)
                best[list(chosen)] = solution / scale[list(chosen)]
    return best
