"""The knee of a bed: the highest rate at which a policy still keeps a share of all targets, which is what a fleet is bought for.

A bed is run at other rates over the same span (`qlm_core.sim.scaling`; a trace keeps its pattern, compressed), so the number of
requests grows with the rate; where that would be too few to speak of a share, the span is stretched instead. Scales of the rate
stand on a geometric grid. From the least on every one is tried until one misses the target, and between that and the last that
kept it the scale is bisected. Nothing supposes that attainment falls with the rate: the knee is the first crossing from below,
whatever comes after it. Seeds are pooled: attainment is the share of all their requests. What any policy could reach
(`qlm_core.sim.bound`) has a knee as well, under the name `BOUND`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, inf, log
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import msgspec

from qlm.bounds import bound_of
from qlm.plots import draw_curves, scale_rates
from qlm.regret import OURS, REFERENCE
from qlm.simulations import Bed, Progress, Run, draw_to, in_processes, name_of_run, run_one
from qlm.traces import holds_rates, read_requests
from qlm_core.errors import ConfigError
from qlm_core.sim.policies import policy_named
from qlm_core.sim.scaling import at_rate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BOUND = "bound"
AGAINST = ("vllm-priority", "fcfs")
"""What knees are compared with beside the best rival."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Try:
    """One policy at one scale of the rate, all seeds together.

    Attributes:
        classes: the attainment of each.
        faulty: requests without an end, or with more than one.
    """

    scale: float
    requests: int
    attainment: float
    classes: dict[str, float]
    faulty: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """What is sought, and how closely.

    Attributes:
        target: the share of requests that is to attain its targets.
        each_class: the share is of every class for itself.
        lowest: the least scale tried, about.
        step: between two scales of the grid.
        precision: the scale that kept the target and the next one that missed it are within this.
        requests_least, requests_most: of a try, all seeds together; fewer say little, and more are not tried.
    """

    target: float = 0.95
    each_class: bool = False
    lowest: float = 1 / 32
    step: float = 2.0**0.5
    precision: float = 1.02
    requests_least: int = 300
    requests_most: int = 200_000

    def grid(self, requests: int, most: float) -> list[float]:
        """Scales up to `most`, of a bed with so many requests at scale 1."""
        most = min(most, self.requests_most / requests)
        least = ceil(log(min(self.lowest, most), self.step) - 1e-9)
        scales: list[float] = []
        while (scale := self.step ** (least + len(scales))) <= most * (1 + 1e-9):
            scales.append(scale)
        return scales or [most]

    def stretch(self, requests: int, scale: float) -> float:
        """How many times its span a bed with so many requests at scale 1 takes at another."""
        return max(1.0, self.requests_least / (requests * scale))

    def keeps(self, found: Try) -> bool:
        """Whether a try keeps the target."""
        shares = found.classes.values() if self.each_class else [found.attainment]
        return min(shares) >= self.target


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A bed at any rate.

    Attributes:
        span_s: of a trace; what arrives within it is a run. None where the workload bounds itself.
        requests: of all seeds together, at scale 1.
        rate_rps: mean rate of one seed at scale 1.
        most: the highest scale; infinite unless a trace has no more to give.
    """

    bed: Bed
    span_s: float | None
    requests: int
    rate_rps: float
    most: float

    def at(self, scale: float, *, stretch: float = 1.0) -> Bed:
        """The bed at `scale` times the rate, over `stretch` times the span."""
        if self.bed.mapping is None or self.span_s is None:
            work = at_rate(self.bed.scenario.workload, scale, stretch=stretch)
            scenario = msgspec.structs.replace(self.bed.scenario, workload=work)
            return replace(self.bed, scenario=scenario)
        mapping = replace(
            self.bed.mapping,
            rate_scale=self.bed.mapping.rate_scale * scale,
            limit=None,
            until_s=self.span_s * stretch,
        )
        return replace(self.bed, mapping=mapping)


@dataclass(frozen=True, slots=True, kw_only=True)
class Knee:
    """What was found of one policy.

    Attributes:
        rate_rps: at scale 1.
        tries: by scale.
        kept: the scale at the knee; None if the least one missed the target.
        missed: the first scale above it that missed it; None if none did up to the highest.
    """

    policy: str
    rate_rps: float
    tries: tuple[Try, ...]
    kept: float | None
    missed: float | None

    @property
    def at_rps(self) -> float | None:
        """Requests/s at the knee."""
        return None if self.kept is None else self.kept * self.rate_rps

    @property
    def below_rps(self) -> float:
        """Requests/s that the policy does not keep up with; infinite if no such rate was found."""
        return inf if self.missed is None else self.missed * self.rate_rps

    @property
    def at_knee(self) -> Try | None:
        """The try at the knee."""
        return next((one for one in self.tries if one.scale == self.kept), None)


# --------------------------------------------------------------------------- beds at any rate


def load_of(bed: Bed, seeds: Sequence[int]) -> Load:
    """A bed at any rate; of a trace, `limit` requests at its `rate_scale` are the span.

    Raises:
        ConfigError: there are no requests, or a trace without a limit.
    """
    span_s, most = None, inf
    if bed.trace is not None and bed.mapping is not None:
        if bed.mapping.limit is None:
            raise ConfigError(
                "--limit: missing. So many requests are the span, over which higher rates take more of the trace."
            )
        span_s = _last_s(bed, seeds[0])
        if not holds_rates(bed.trace):
            whole = replace(bed.mapping, limit=None)
            ends_s = max((one.arrival_s for one in read_requests(bed.trace, whole)), default=0.0)
            most = ends_s / span_s if span_s else inf
    counts = [sum(1 for _ in bed.requests(seed)) for seed in seeds]
    spans_s = [_last_s(bed, seed) for seed in seeds]
    if not sum(spans_s):
        raise ConfigError(f"{bed.trace or bed.scenario.name}: no requests over time. Give it some.")
    rate_rps = sum(counts) / sum(spans_s)
    return Load(bed=bed, span_s=span_s, requests=sum(counts), rate_rps=rate_rps, most=most)


def _last_s(bed: Bed, seed: int) -> float:
    return max((one.arrival_s for one in bed.requests(seed)), default=0.0)


# --------------------------------------------------------------------------- search


def crossing(
    keeps: Callable[[float], bool], scales: Sequence[float], precision: float
) -> tuple[float | None, float | None]:
    """The last scale that keeps the target before the first that misses it, and that one; None where there is none."""
    kept: float | None = None
    for scale in scales:
        if not keeps(scale):
            return (None, scale) if kept is None else _bisected(keeps, kept, scale, precision)
        kept = scale
    return kept, None


def _bisected(
    keeps: Callable[[float], bool], kept: float, missed: float, precision: float
) -> tuple[float, float]:
    while missed > kept * precision:
        middle = (kept * missed) ** 0.5
        kept, missed = (middle, missed) if keeps(middle) else (kept, middle)
    return kept, missed


def find_knee(
    load: Load,
    policy: str,
    search: Search,
    seeds: Sequence[int],
    without: tuple[str, ...] = (),
    watch: Callable[[int], None] | None = None,
) -> Knee:
    """The knee of one policy, or of the bound. `watch` is told how many requests the run at hand has seen."""
    tries: dict[float, Try] = {}

    def keeps(scale: float) -> bool:
        bed = load.at(scale, stretch=search.stretch(load.requests, scale))
        if policy == BOUND:
            tries[scale] = bounded(bed, seeds, scale)
        else:
            runs = [run_one(bed, policy, seed, without, watch=watch) for seed in seeds]
            tries[scale] = pooled(runs, scale)
        return search.keeps(tries[scale])

    kept, missed = crossing(keeps, search.grid(load.requests, load.most), search.precision)
    return Knee(
        policy=name_of_run(policy, without),
        rate_rps=load.rate_rps,
        tries=tuple(tries[scale] for scale in sorted(tries)),
        kept=kept,
        missed=missed,
    )


def pooled(runs: Sequence[Run], scale: float) -> Try:
    """Runs of several seeds as one."""
    counts: dict[str, tuple[int, int]] = {}
    for run in runs:
        for name, one in run["classes"].items():
            attained, requests = counts.get(name, (0, 0))
            counts[name] = (attained + one["attained"], requests + one["requests"])
    requests = sum(requests for _, requests in counts.values())
    return Try(
        scale=scale,
        requests=requests,
        attainment=sum(attained for attained, _ in counts.values()) / requests,
        classes={name: attained / requests for name, (attained, requests) in counts.items()},
        faulty=sum(run["lost"] + run["duplicated"] for run in runs),
    )


def bounded(bed: Bed, seeds: Sequence[int], scale: float) -> Try:
    """What no policy exceeds with several seeds together; nothing is known of single classes."""
    counts = [sum(1 for _ in bed.requests(seed)) for seed in seeds]
    most = [bound_of(bed, seed).plain for seed in seeds]
    kept = sum(count * share for count, share in zip(counts, most, strict=True))
    return Try(
        scale=scale,
        requests=sum(counts),
        attainment=kept / sum(counts),
        classes={},
        faulty=0,
    )


def find_knees(
    load: Load,
    policies: Sequence[str],
    search: Search,
    seeds: Sequence[int],
    *,
    without: tuple[str, ...] = (),
    jobs: int = 1,
    progress: Progress = lambda _: None,
) -> list[Knee]:
    """The knee of each policy, policies side by side in processes; of the bound for `BOUND`.

    Raises:
        ConfigError: an unknown policy or LSO, or a bound of each class.
    """
    if BOUND in policies and search.each_class:
        raise ConfigError("--bound: it bounds all requests together. Leave --each-class out.")
    for policy in policies:
        if policy != BOUND:
            policy_named(policy, without=without if policy == OURS else ())
    calls = [(load, policy, search, seeds, without) for policy in policies]
    return in_processes(calls, find_knee, policies, jobs=jobs, progress=progress)


# --------------------------------------------------------------------------- results


def best_rival(knees: Iterable[Knee]) -> Knee | None:
    """Of all policies but ours, with or without LSOs, the reference and the bound: the one with the highest knee."""
    rivals = [one for one in knees if one.policy.split()[0] not in (OURS, REFERENCE, BOUND)]
    return max(rivals, key=lambda one: (one.at_rps or 0.0, one.below_rps), default=None)


def ratio(one: Knee, other: Knee | None) -> str:
    """One knee over another, for people; empty where nothing can be said."""
    if other is None or one.at_rps is None:
        return ""
    if other.at_rps is None:
        return f"> {one.at_rps / other.below_rps:.2f}"
    if other.missed is None:
        return "" if one.missed is None else f"< {one.at_rps / other.at_rps:.2f}"
    more = ">= " if one.missed is None else ""
    return f"{more}{one.at_rps / other.at_rps:.2f}"


def shown(knee: Knee) -> str:
    """The rate at the knee, for people."""
    if knee.at_rps is None:
        return f"< {knee.below_rps:.3g}"
    return f"{'>= ' if knee.missed is None else ''}{knee.at_rps:.3g}"


def table(knees: Sequence[Knee], search: Search) -> str:
    """A line for each policy, the highest knee first, as Markdown."""
    best = best_rival(knees)
    by_name = {one.policy: one for one in knees}
    classes = list(dict.fromkeys(name for one in knees for name in one.tries[0].classes))
    what = f"{search.target:.0%} of {'each class' if search.each_class else 'all'} kept up to"
    head = [what, "requests/s", "over the best rival"]
    against = [name for name in (*AGAINST, BOUND) if name in by_name]
    head += [f"over {name}" for name in against] + [f"{name} there" for name in classes]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for one in sorted(knees, key=lambda one: -(one.at_rps or 0.0)):
        cells = [one.policy, shown(one), ratio(one, best)]
        cells += [ratio(one, by_name[name]) for name in against]
        there = {} if one.at_knee is None else one.at_knee.classes
        cells += [f"{there[name]:.1%}" if name in there else "" for name in classes]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def figures(knees: Sequence[Knee], search: Search) -> dict[str, Any]:
    """All that was tried, as JSON takes it; rates in requests/s, None where there is none."""
    best = best_rival(knees)
    return {
        "target": search.target,
        "each_class": search.each_class,
        "rate_rps": knees[0].rate_rps,
        "best_rival": None if best is None else best.policy,
        "policies": {
            one.policy: {
                "knee_rps": one.at_rps,
                "scale": one.kept,
                "missed_scale": one.missed,
                "tries": [
                    {
                        "scale": each.scale,
                        "rate_rps": each.scale * one.rate_rps,
                        "requests": each.requests,
                        "slo_attainment": each.attainment,
                        "classes": each.classes,
                    }
                    for each in one.tries
                ],
            }
            for one in knees
        },
    }


def to_json(knees: Sequence[Knee], search: Search) -> str:
    """`figures` as text."""
    return json.dumps(figures(knees, search), indent=1)


def plot(
    knees: Sequence[Knee],
    target: float,
    path: Path,
    *,
    title: str,
    published: Mapping[str, Mapping[float, float]] = MappingProxyType({}),
) -> None:
    """Attainment against the rate, a curve for each policy. Raises as `simulations.save`.

    Args:
        published: by policy, % of SLOs met at rates in requests/s; drawn as hollow marks beside the curves.
    """
    curves = {
        one.policy: [(each.scale * one.rate_rps, 100 * each.attainment) for each in one.tries]
        for one in knees
    }

    def draw(axes: Axes) -> None:
        scale_rates(axes)
        axes.set_ylim(0, 106)
        axes.axhline(100 * target, linestyle="--", linewidth=0.8, color="grey")
        axes.set_xlabel("requests/s")
        axes.set_ylabel("SLOs met (%)")
        draw_curves(axes, curves, published=published)
        # What was published of far higher rates would leave no room for our own curves.
        highest = max(x for curve in curves.values() for x, _ in curve)
        axes.set_xlim(right=min(axes.get_xlim()[1], 5 * highest))

    draw_to(path, draw, title=title)
