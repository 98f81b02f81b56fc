"""Reports of simulated runs: one plain mapping per policy and seed, as `qlm sim --json` writes them.

Attainment counts every request that arrived: one that was lost, shed or never ended has not attained its SLO.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qlm_core.sim.record import RunRecord

Floats = NDArray[np.float64]


def report_of(record: RunRecord, *, policy: str, seed: int, wall_s: float) -> dict[str, Any]:
    """The figures of one run. Times in seconds; NaN never appears (None stands for no value)."""
    arrival_s = np.array(record.arrival_s)
    slo_class = np.array(record.slo_class)
    ended = np.array(record.ended)
    attained = np.array(record.attained, dtype=np.float64)
    ttft_s = np.array(record.ttft_s)
    pause_s = np.array(record.pause_s)
    requests = len(arrival_s)
    makespan_s = record.last_end_s - float(arrival_s[0]) if requests else 0.0
    finished = int(np.sum(np.array(record.finished)))
    span_s = max(makespan_s, 1e-9)
    return {
        "policy": policy,
        "seed": seed,
        "requests": requests,
        "lost": int(np.sum(ended == 0)),
        "duplicated": int(np.sum(ended > 1)),
        "finished": finished,
        "cut": record.cut,
        "slo_attainment": _rounded(float(attained.mean())) if requests else None,
        "classes": {
            name: _class_figures(
                attained[slo_class == number],
                ttft_s[slo_class == number],
                pause_s[slo_class == number],
            )
            for number, name in enumerate(record.classes)
            if (slo_class == number).any()
        },
        "ttft_s": _quantiles(ttft_s),
        "tpot_s": _quantiles(np.array(record.tpot_s)),
        "pause_s": _quantiles(pause_s),
        "throughput_rps": _rounded(finished / span_s),
        "output_tokens_per_s": _rounded(record.output_tokens / span_s),
        "makespan_s": _rounded(makespan_s),
        "evictions": record.evictions,
        "preemptions": record.preemptions,
        "swaps": record.swaps,
        "swap_s": _rounded(record.swap_s),
        "utilisation": _rounded(record.busy_s / (span_s * max(1, record.instances))),
        "solves": record.solves,
        "rwt": rwt_figures(record),
        "wall_s": round(wall_s, 3),
    }


def rwt_figures(record: RunRecord) -> dict[str, float | None]:
    """How good the estimates made at arrival were: R², share of waits within p50 and p90, mean relative error."""
    waited = np.array(record.ttft_s)
    mean = np.array(record.mean_s)
    known = np.isfinite(waited) & np.isfinite(mean)
    if known.sum() < 2:
        return {"r2": None, "coverage_p50": None, "coverage_p90": None, "mape": None}
    waited, mean = waited[known], mean[known]
    p50, p90 = np.array(record.p50_s)[known], np.array(record.p90_s)[known]
    return {
        "r2": r_squared(waited, mean),
        "coverage_p50": _rounded(float(np.mean(waited <= p50))),
        "coverage_p90": _rounded(float(np.mean(waited <= p90))),
        "mape": _rounded(float(np.mean(np.abs(mean - waited) / np.maximum(waited, 1e-3)))),
    }


def r_squared(actual: Floats, predicted: Floats) -> float | None:
    """Coefficient of determination of predictions as they stand (no line is fitted); None without spread."""
    spread = float(np.sum((actual - actual.mean()) ** 2))
    if spread <= 0.0:
        return None
    return _rounded(1.0 - float(np.sum((actual - predicted) ** 2)) / spread)


def _class_figures(attained: Floats, ttft_s: Floats, pause_s: Floats) -> dict[str, Any]:
    return {
        "requests": len(attained),
        "attained": int(attained.sum()),
        "attainment": _rounded(float(attained.mean())),
        "ttft_s": _quantiles(ttft_s),
        "pause_s": _quantiles(pause_s),
    }


def _quantiles(values: Floats) -> dict[str, float | None]:
    values = values[np.isfinite(values)]
    if not len(values):
        return {"p50": None, "p90": None, "p99": None}
    p50, p90, p99 = np.quantile(values, (0.5, 0.9, 0.99))
    return {"p50": _rounded(p50), "p90": _rounded(p90), "p99": _rounded(p99)}


def _rounded(value: float) -> float:
    return round(float(value), 6)
