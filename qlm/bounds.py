"""Upper bounds beside simulated runs: what any policy could reach on a bed, and the share of it that each policy reaches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from qlm.simulations import Bed, Progress, Run, in_processes
from qlm_core.sim.bound import Bound, upper_bound


def bound_of(bed: Bed, seed: int, watch: Callable[[int], None] | None = None) -> Bound:
    """The bound of a bed with the requests of one seed; `watch` is told once how many there are.

    Raises:
        ConfigError: there are no requests, or too many for a bound.
    """
    workload = list(bed.requests(seed))
    if watch is not None:
        watch(len(workload))
    return upper_bound(bed.scenario, seed, workload=workload, model_len=bed.model_len)


def bounds_of(
    beds: Sequence[tuple[Bed, int]],
    names: Sequence[str],
    *,
    jobs: int,
    progress: Progress = lambda _: None,
) -> list[Bound]:
    """The bounds of several beds, each with a seed, `jobs` at once. Raises as `bound_of`."""
    told = [f"{name}, bound" for name in names]
    return in_processes(list(beds), bound_of, told, jobs=jobs, progress=progress)


def share_of(kept: float, most: float) -> float:
    """Attainment as a share of what is possible; all of it where nothing is."""
    return kept / most if most > 0.0 else 1.0


def weighted(run: Run, weights: Mapping[str, float]) -> float:
    """The attainment of a run with classes counted by their weights."""
    classes = run["classes"]
    kept = sum(weights[name] * one["attained"] for name, one in classes.items())
    return float(kept / sum(weights[name] * one["requests"] for name, one in classes.items()))


def figures(bound: Bound, seed: int) -> dict[str, Any]:
    """A bound as JSON takes it."""
    return {"seed": seed} | asdict(bound)


def table(bed: Bed, runs: Sequence[Run], bounds: Mapping[int, Bound]) -> str:
    """What is possible, and each policy's share of it, medians over the seeds, as Markdown.

    Args:
        bounds: by seed, one for each that there are runs of.
    """
    weights = {one.name: one.weight for one in bed.scenario.classes}
    shares: dict[str, list[tuple[float, float, float, float]]] = {}
    for run in runs:
        most = bounds[run["seed"]]
        kept, plain = weighted(run, weights), run["slo_attainment"]
        row = (plain, share_of(plain, most.plain), kept, share_of(kept, most.weighted))
        shares.setdefault(run["policy"], []).append(row)
    found = list(bounds.values())
    lines = [
        "| policy | SLOs met | of the bound | weighted | of the bound |",
        "|---|---|---|---|---|",
    ]
    rows = {
        "bound": [(one.plain, 1.0, one.weighted, 1.0) for one in found],
        "bound, if swaps were free": [
            (one.unswapped.plain, 1.0, one.unswapped.weighted, 1.0) for one in found
        ],
        "bound, if each were alone": [
            (one.alone.plain, 1.0, one.alone.weighted, 1.0) for one in found
        ],
    }
    for name, values in rows.items():
        plain, _, kept, _ = (median(column) for column in zip(*values, strict=True))
        lines.append(f"| {name} | {plain:.1%} | | {kept:.1%} | |")
    for name, of_seeds in shares.items():
        cells = [f"{median(column):.1%}" for column in zip(*of_seeds, strict=True)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)
