"""Regret on random beds: how far `qlm` is behind the best rival on each, and on how many beds, over all and by kind.

A bed is drawn from a seed and a number (`qlm_core.sim.beds`), so whatever is printed names the command that repeats it. The
clairvoyant policy runs beside the others as a reference; it is no rival. Attainment is given plain and weighted as classes are,
and as a share of what any policy could reach (`qlm_core.sim.bound`).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Any, Literal

from qlm.bounds import bounds_of, share_of, weighted
from qlm.bounds import figures as bound_figures
from qlm.simulations import Bed, Progress, Run, in_processes, run_one, save
from qlm_core.errors import ConfigError
from qlm_core.sim.beds import DrawnBed, draw_bed
from qlm_core.sim.bound import Bound
from qlm_core.sim.policies import policy_named, policy_names
from qlm_core.sim.scenario import scenario_from_mapping

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OURS = "qlm"
REFERENCE = "clairvoyant"
LOST_BY = 0.005
"""A bed is lost when a rival keeps so much more of the targets: half a point."""

ONE_MODEL = "one model"
SEVERAL = "several models"

WORST = 10
_SAY_S = 5.0

Measure = Literal["weighted", "plain"]
MEASURES: tuple[Measure, ...] = ("weighted", "plain")

_SLOW = (OURS, "qlm-paper", REFERENCE)
"""Policies that plan take ten times as long as others. They start first, so that no process ends with one of them alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BedResult:
    """What each policy reached on one bed.

    Attributes:
        attainment: by measure and policy, 0 to 1.
        bound: what no policy exceeds.
        runs: the whole figures of each policy, as `qlm sim --json` gives them.
    """

    bed: DrawnBed
    attainment: dict[Measure, dict[str, float]]
    bound: Bound
    runs: tuple[Run, ...]

    def best_rival(self, measure: Measure) -> tuple[str, float]:
        """The rival that kept most, the first of equals."""
        return best_rival(self.attainment[measure])

    def regret(self, measure: Measure, policy: str = OURS) -> float:
        """Best rival of a policy less the policy; below 0 where it is ahead of all."""
        found = self.attainment[measure]
        return best_rival(found, besides=policy)[1] - found[policy]

    def most(self, measure: Measure) -> float:
        """The attainment that no policy exceeds."""
        return self.bound.weighted if measure == "weighted" else self.bound.plain

    def share(self, measure: Measure, policy: str = OURS) -> float:
        """What a policy reaches of that."""
        return share_of(self.attainment[measure][policy], self.most(measure))


def best_rival(attainment: dict[str, float], *, besides: str = OURS) -> tuple[str, float]:
    """Of all policies but one and the reference, the one with most, and how much."""
    rivals = [(name, kept) for name, kept in attainment.items() if name not in (besides, REFERENCE)]
    return max(rivals, key=lambda one: one[1])


# --------------------------------------------------------------------------- running


def bed_to_run(drawn: DrawnBed) -> Bed:
    """A drawn bed as simulations take it."""
    return Bed(scenario=scenario_from_mapping(drawn.scenario, f"bed {drawn.index}"))


def run_beds(
    seed: int,
    indices: Iterable[int],
    policies: Sequence[str] = (),
    *,
    jobs: int = 1,
    progress: Progress = lambda _: None,
) -> list[BedResult]:
    """Every policy on every bed, `jobs` runs at once; the results in the order of the beds.

    Args:
        policies: names; empty for all.

    Raises:
        ConfigError: an unknown policy.
    """
    names = tuple(policies) or policy_names()
    for name in names:
        policy_named(name)
    drawn = [draw_bed(seed, index) for index in indices]
    beds = [bed_to_run(one) for one in drawn]
    wanted = [(number, name) for number in range(len(drawn)) for name in names]
    wanted.sort(key=lambda one: one[1] not in _SLOW)
    found = in_processes(
        [(beds[number], name, drawn[number].run_seed) for number, name in wanted],
        run_one,
        [f"bed {drawn[number].index}, {name}" for number, name in wanted],
        jobs=jobs,
        progress=_now_and_then(progress),
    )
    bounds = bounds_of(
        [(bed, one.run_seed) for bed, one in zip(beds, drawn, strict=True)],
        [f"bed {one.index}" for one in drawn],
        jobs=jobs,
        progress=_now_and_then(progress),
    )
    by_key = dict(zip(wanted, found, strict=True))
    return [
        result_of(one, bounds[number], tuple(by_key[number, name] for name in names))
        for number, one in enumerate(drawn)
    ]


def _now_and_then(progress: Progress) -> Progress:
    """Let a line through every few seconds: a thousand runs end in ten minutes."""
    said_s = time.monotonic()

    def say(text: str) -> None:
        nonlocal said_s
        if time.monotonic() - said_s >= _SAY_S:
            said_s = time.monotonic()
            progress(text)

    return say


def result_of(bed: DrawnBed, bound: Bound, runs: tuple[Run, ...]) -> BedResult:
    """The attainments of one bed's runs."""
    weights = {name: one["weight"] for name, one in bed.scenario["slo_classes"].items()}
    return BedResult(
        bed=bed,
        attainment={
            "weighted": {run["policy"]: weighted(run, weights) for run in runs},
            "plain": {run["policy"]: run["slo_attainment"] for run in runs},
        },
        bound=bound,
        runs=runs,
    )


# --------------------------------------------------------------------------- figures


def summary(regrets: Sequence[float]) -> dict[str, float]:
    """Mean, median, 95th percentile, worst, and the share of beds that are lost."""
    in_order = sorted(regrets)
    return {
        "beds": len(in_order),
        "mean": mean(in_order),
        "median": median(in_order),
        "p95": in_order[-(-95 * len(in_order) // 100) - 1],
        "worst": in_order[-1],
        "lost": sum(one > LOST_BY for one in in_order) / len(in_order),
    }


def by_kind(results: Sequence[BedResult], measure: Measure) -> dict[str, dict[str, float]]:
    """The summary of each kind of bed, most regret in the mean first."""
    regrets: dict[str, list[float]] = {}
    for one in results:
        for kind in one.bed.kinds:
            regrets.setdefault(kind, []).append(one.regret(measure))
    found = {kind: summary(of_kind) for kind, of_kind in regrets.items()}
    return dict(sorted(found.items(), key=lambda one: -one[1]["mean"]))


def worst(results: Sequence[BedResult], measure: Measure) -> list[BedResult]:
    """The beds of most regret, the worst first."""
    return sorted(results, key=lambda one: -one.regret(measure))[:WORST]


def command(bed: DrawnBed) -> str:
    """What repeats a bed."""
    return f"qlm bench regret --bed {bed.index} --seed {bed.seed}"


def figures(results: Sequence[BedResult]) -> dict[str, Any]:
    """All there is to know, as JSON takes it."""
    return {
        "regret": {
            measure: {
                "all": summary([one.regret(measure) for one in results]),
                "kinds": by_kind(results, measure),
                "best_single_rival": _best_single_rival(results, measure),
            }
            for measure in MEASURES
        },
        "share_of_bound": {measure: shares(results, measure) for measure in MEASURES},
        "beds": [
            {
                "seed": one.bed.seed,
                "bed": one.bed.index,
                "run_seed": one.bed.run_seed,
                "command": command(one.bed),
                "kinds": one.bed.kinds,
                "attainment": one.attainment,
                "bound": bound_figures(one.bound, one.bed.run_seed),
                "share_of_bound": {
                    measure: {name: one.share(measure, name) for name in one.attainment[measure]}
                    for measure in MEASURES
                },
                "regret": {measure: one.regret(measure) for measure in MEASURES},
                "runs": one.runs,
            }
            for one in results
        ],
    }


def shares(results: Sequence[BedResult], measure: Measure) -> dict[str, dict[str, float]]:
    """For each policy, most first: its median share of the bound, over all beds, those of several models, and each kind."""
    groups: dict[str, list[BedResult]] = {"all": list(results), SEVERAL: []}
    for one in results:
        if ONE_MODEL not in one.bed.kinds:
            groups[SEVERAL].append(one)
        for kind in one.bed.kinds:
            groups.setdefault(kind, []).append(one)
    found = {
        name: {
            kind: median(one.share(measure, name) for one in of_kind)
            for kind, of_kind in groups.items()
            if of_kind
        }
        for name in results[0].attainment[measure]
    }
    return dict(sorted(found.items(), key=lambda one: -one[1]["all"]))


def _best_single_rival(results: Sequence[BedResult], measure: Measure) -> dict[str, Any]:
    """The rival that is best in the mean over all beds, and how far `qlm` is ahead of it in the mean."""
    means = {
        name: mean(one.attainment[measure][name] for one in results)
        for name in results[0].attainment[measure]
    }
    name, kept = best_rival(means)
    return {"policy": name, "attainment": kept, "gain": means[OURS] - kept}


# --------------------------------------------------------------------------- for people


def report(results: Sequence[BedResult]) -> str:
    """Tables of regret in points (hundredths of attainment), as Markdown."""
    lines: list[str] = []
    for measure in MEASURES:
        lines += [f"regret, {measure} attainment, in points", *_table(results, measure), ""]
        single = _best_single_rival(results, measure)
        lines += [
            f"best single rival: {single['policy']}, {single['attainment']:.1%} in the mean; "
            f"qlm {100 * single['gain']:+.1f} points",
            "",
            *_worst_table(results, measure),
            "",
            f"share of what any policy could reach, {measure} attainment, medians over the beds",
            *_shares_table(results, measure),
            "",
        ]
    return "\n".join(lines[:-1])


def _table(results: Sequence[BedResult], measure: Measure) -> list[str]:
    rows = {"all": summary([one.regret(measure) for one in results])} | by_kind(results, measure)
    lines = ["| beds | | mean | median | p95 | worst | lost |", "|---|---|---|---|---|---|---|"]
    for kind, one in rows.items():
        points = [f"{100 * one[key]:.1f}" for key in ("mean", "median", "p95", "worst")]
        lines.append(f"| {kind} | {one['beds']} | {' | '.join(points)} | {one['lost']:.0%} |")
    return lines


def _worst_table(results: Sequence[BedResult], measure: Measure) -> list[str]:
    lines = ["| regret | qlm | best rival | kind of bed | repeat it by |", "|---|---|---|---|---|"]
    for one in worst(results, measure):
        rival, kept = one.best_rival(measure)
        lines.append(
            f"| {100 * one.regret(measure):.1f} | {one.attainment[measure][OURS]:.1%} | "
            f"{rival} {kept:.1%} | {', '.join(one.bed.kinds)} | `{command(one.bed)}` |"
        )
    return lines


def _shares_table(results: Sequence[BedResult], measure: Measure) -> list[str]:
    found = shares(results, measure)
    kinds = ["all", SEVERAL, *dict.fromkeys(one.bed.kinds[0] for one in results)]
    kinds = [kind for kind in kinds if kind in found[OURS]]
    bounds = median(one.most(measure) for one in results)
    lines = [f"| policy | {' | '.join(kinds)} |", "|---|" + "---|" * len(kinds)]
    for name, of_kinds in found.items():
        lines.append(f"| {name} | {' | '.join(f'{of_kinds[kind]:.1%}' for kind in kinds)} |")
    return [*lines, "", f"the bound itself is {bounds:.1%} in the median"]


def bed_report(result: BedResult) -> str:
    """What each policy reached on one bed, most weighted attainment first, as Markdown."""
    classes = list(result.bed.scenario["slo_classes"])
    head = ["policy", "weighted", "of the bound", "plain", "of the bound", *classes]
    head += ["swaps", "evictions", "wall s"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    kept_most = result.attainment["weighted"]
    for run in sorted(result.runs, key=lambda run: -kept_most[run["policy"]]):
        name = run["policy"]
        of_classes = [
            f"{run['classes'][one]['attainment']:.1%}" if one in run["classes"] else ""
            for one in classes
        ]
        cells = [name]
        for measure in MEASURES:
            kept = result.attainment[measure][name]
            cells += [f"{kept:.1%}", f"{result.share(measure, name):.1%}"]
        cells += of_classes
        cells += [str(run["swaps"]), str(run["evictions"]), f"{run['wall_s']:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    most = result.bound
    told = (
        f"bound: {most.weighted:.1%} weighted, {most.plain:.1%} plain; if swaps were free "
        f"{most.unswapped.weighted:.1%} and {most.unswapped.plain:.1%}, if each request were alone "
        f"{most.alone.weighted:.1%} and {most.alone.plain:.1%}"
    )
    kinds = ", ".join(result.bed.kinds)
    return f"bed {result.bed.index}: {kinds}\n\n" + "\n".join([*lines, "", told])


def plot(results: Sequence[BedResult], path: Path) -> None:
    """Two cumulative distributions over the beds, for each policy: weighted regret, and the share of the bound.

    Raises:
        ConfigError: as `simulations.save`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = list(results[0].attainment["weighted"])
    for number, name in enumerate(names):
        style = {"color": "black", "linewidth": 2.5} if name == OURS else {}
        style["linestyle"] = ("-", "--", ":")[number % 3]
        _distribution(left, [one.regret("weighted", name) for one in results], name, style)
        _distribution(right, [one.share("weighted", name) for one in results], name, style)
    left.set_xscale("symlog", linthresh=1.0)
    left.axvline(100 * LOST_BY, color="grey", linewidth=0.5)
    left.set_xlabel("regret, weighted attainment (points)")
    left.set_ylabel("share of beds")
    left.legend(fontsize="x-small", ncols=2)
    right.axvline(100.0, color="grey", linewidth=0.5)
    right.set_xlabel("share of what any policy could reach, weighted attainment (%)")
    figure.suptitle(f"{len(results)} random beds")
    save(figure, path)


def _distribution(axes: Axes, values: Sequence[float], name: str, style: dict[str, Any]) -> None:
    """The share of beds with at most each value, in hundredths."""
    in_order = sorted(100 * value for value in values)
    places = [(place + 1) / len(in_order) for place in range(len(in_order))]
    axes.step(in_order, places, where="post", label=name, **style)


def save_bed(bed: DrawnBed, policies: Sequence[str], path: Path) -> None:
    """Write a bed as a scenario file for `qlm sim`.

    Raises:
        ConfigError: the file cannot be written.
    """
    import yaml

    data = bed.scenario | {"policies": list(policies or policy_names())}
    try:
        path.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}. Give another name.") from None
