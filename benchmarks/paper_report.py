"""`qlm bench paper`: run the paper's evaluation, and write a table and a picture of every figure of it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from benchmarks import knee_report, knees
from benchmarks import paper_published as published
from benchmarks.paper import Experiment, Key, experiments, run_all
from benchmarks.paper_waits import GROUPS, MODELS, Accuracy, of_bed, of_queue
from qlm.plots import draw_curves
from qlm.simulations import Run, draw_to
from qlm_core.planning import Limits, Problem
from qlm_core.planning.compiled import compiled_kernels
from qlm_core.planning.search import search

Part = Literal["figures", "knees"]
PARTS: tuple[Part, ...] = ("figures", "knees")

Progress = Callable[[str], None]
Rows = list[list[str]]

_METRICS = {"SLOs met": ("slo_attainment", 100.0, "%"), "throughput": ("throughput_rps", 1.0, "/s")}
_OVERHEAD_QUEUES = 10
_OVERHEAD_WORK = 20_000


def main(
    out: Path,
    *,
    only: Sequence[Part] = PARTS,
    traces: Sequence[str] = (),
    quick: bool,
    seeds: int,
    jobs: int,
    progress: Progress,
) -> Path:
    """Run everything; returns the report's path.

    Args:
        out: folder for `paper.md`, `paper.json` and the pictures; made if it is not there.
        only: the parts to run.
        traces: whose knees are sought as well, each `FILE` or `FILE@SCALE`.
    """
    out.mkdir(parents=True, exist_ok=True)
    begin_s = time.monotonic()
    parts = [_head(quick=quick, seeds=seeds)]
    data: dict[str, Any] = {}
    if "figures" in only:
        wanted = experiments(quick=quick)
        runs = run_all(wanted, seeds=seeds, jobs=jobs, progress=progress)
        for experiment in wanted:
            parts.append(_experiment(experiment, runs, out))
        parts.append(_waits(wanted, out, quick=quick, jobs=jobs, progress=progress))
        parts.append(_overhead(out, progress))
        data["runs"] = [
            {"experiment": key.experiment, "at": key.at} | run for key, run in runs.items()
        ]
    if "knees" in only:
        beds, search = knees.knee_beds(quick=quick, traces=traces), knees.search_of(quick=quick)
        names = knees.policies(quick=quick)
        found = knees.find_all(beds, names, search, seeds=seeds, jobs=jobs, progress=progress)
        parts.append(knee_report.section(beds, found, search, out))
        data["knees"] = knee_report.figures(found, search)
    parts.append(f"Took {time.monotonic() - begin_s:.0f} s with {jobs} processes.\n")
    report = out / "paper.md"
    report.write_text("\n".join(parts), encoding="utf-8")
    (out / "paper.json").write_text(json.dumps(data, indent=1), encoding="utf-8")
    return report


def _head(*, quick: bool, seeds: int) -> str:
    size = "quick" if quick else "full"
    count = "one seed" if seeds == 1 else f"medians over {seeds} seeds"
    return (
        f"# The paper's evaluation, simulated\n\nThe {size} size, {count}. In brackets: what the paper prints at the "
        "same place of its axis, which is not the same load (see benchmarks/paper_published.py).\n"
    )


# --------------------------------------------------------------------------- simulated figures


def _experiment(experiment: Experiment, runs: dict[Key, Run], out: Path) -> str:
    if experiment.name.startswith("lso-"):
        return _ablation(experiment, runs, out)
    if experiment.name == "group-size":
        return _group_size(experiment, runs, out)
    text = [f"## {experiment.title}\n"]
    for metric in experiment.figures:
        curves = _curves(experiment, runs, metric)
        printed = experiment.figures[metric]
        rows = [
            [name, *(_beside(value, printed.get(name), i) for i, value in enumerate(curve))]
            for name, curve in curves.items()
        ]
        axis = [point.at for point in experiment.points]
        text.append(_table([f"{metric} at {experiment.axis}", *(f"{at:g}" for at in axis)], rows))
        picture = out / f"{experiment.name}-{metric.split()[0].lower()}.png"
        beside = _at_our_places(printed, axis) if metric == "SLOs met" else {}
        _draw_curves(picture, experiment, metric, axis, curves, beside)
        text.append(f"![{experiment.title}]({picture.name})\n")
    return "\n".join(text)


def _curves(
    experiment: Experiment, runs: dict[Key, Run], metric: str
) -> dict[str, list[float | None]]:
    """Medians by policy, a value for each point."""
    policies = dict.fromkeys(name for point in experiment.points for name in point.policies)
    return {
        policy: [
            _median(runs, experiment, point.at, policy, "", metric) for point in experiment.points
        ]
        for policy in policies
    }


def _median(
    runs: dict[Key, Run], experiment: Experiment, at: float, policy: str, without: str, metric: str
) -> float | None:
    path, factor, _ = _METRICS[metric]
    wanted = (experiment.name, at, policy, without)
    values = [
        run[path] * factor
        for key, run in runs.items()
        if (key.experiment, key.at, key.policy, key.without) == wanted
    ]
    return median(values) if values else None


def _beside(value: float | None, printed: published.Points | None, index: int) -> str:
    ours = "" if value is None else f"{value:.1f}"
    points = list((printed or {}).values())
    return f"{ours} [{points[index]:g}]" if index < len(points) else ours


def _ablation(experiment: Experiment, runs: dict[Key, Run], out: Path) -> str:
    (point,) = experiment.points
    column = 0 if experiment.name == "lso-w-a" else 1
    rows: Rows = []
    bars: dict[str, list[float]] = {"throughput": [], "SLOs met": []}
    for without in point.without:
        row = [f"qlm without {without}" if without else "qlm"]
        for index, metric in enumerate(bars):
            value = _median(runs, experiment, point.at, "qlm", without, metric) or 0.0
            whole = _median(runs, experiment, point.at, "qlm", "", metric) or 1.0
            share = 100 * value / whole
            bars[metric].append(share)
            printed = published.ABLATION[without][column][index] if without else 100
            row.append(f"{value:.1f} = {share:.0f} % [{printed} %]")
        rows.append(row)
    picture = out / f"{experiment.name}.png"
    names = [name or "all" for name in point.without]
    _draw_bars(picture, experiment.title, names, bars)
    head = ["", "requests/s", "SLOs met, %"]
    return f"## {experiment.title}\n\n{_table(head, rows)}\n![{experiment.title}]({picture.name})\n"


def _group_size(experiment: Experiment, runs: dict[Key, Run], out: Path) -> str:
    rows: Rows = []
    best = max(
        _median(runs, experiment, point.at, "qlm", "", "SLOs met") or 0.0
        for point in experiment.points
    )
    bars: dict[str, list[float]] = {"SLOs met": [], "wall s": []}
    for point in experiment.points:
        met = _median(runs, experiment, point.at, "qlm", "", "SLOs met") or 0.0
        walls = [
            run["wall_s"]
            for key, run in runs.items()
            if (key.experiment, key.at) == (experiment.name, point.at)
        ]
        degradation, overhead = published.GROUP_SIZE[int(point.at)]
        bars["SLOs met"].append(met)
        bars["wall s"].append(median(walls))
        rows.append(
            [
                f"{point.at:g}",
                f"{met:.1f}",
                f"{best / max(met, 1e-9):.2f} [{degradation:g}]",
                f"{median(walls):.1f} [{overhead:g}]",
            ]
        )
    picture = out / f"{experiment.name}.png"
    names = [f"δ = {point.at:g}" for point in experiment.points]
    _draw_bars(picture, experiment.title, names, bars)
    head = ["δ", "SLOs met, %", "degradation", "run time, s [overhead, relative]"]
    return f"## {experiment.title}\n\n{_table(head, rows)}\n![{experiment.title}]({picture.name})\n"


# --------------------------------------------------------------------------- waits and planning


def _waits(
    wanted: Iterable[Experiment], out: Path, *, quick: bool, jobs: int, progress: Progress
) -> str:
    counts = (1, 2, 4, 8) if quick else GROUPS
    trials = 1 if quick else 5
    beds = {
        f"{one.name} at {one.points[-2].at:g}": one.points[-2].bed
        for one in wanted
        if one.name in ("w-a", "w-b", "mega-prompts", "heterogeneity", "queue-growth")
    }
    found: dict[tuple[str, int], Accuracy] = {}
    with ProcessPoolExecutor(jobs) as pool:
        futures = {
            pool.submit(of_queue, model, count, trials): (model, count)
            for model in MODELS
            for count in counts
        }
        futures |= {pool.submit(of_bed, bed, trials): (name, 0) for name, bed in beds.items()}
        for done, future in enumerate(as_completed(futures), 1):
            found[futures[future]] = future.result()
            progress(f"{done}/{len(futures)}  waits: {futures[future][0]}")
    names = {"mistral-7b": "Mistral-7B", "vicuna-13b": "Vicuna-13B", "llama-2-70b": "Llama-70B"}
    rows: Rows = []
    for model in MODELS:
        printed = published.RWT_ACCURACY[names[model]]
        for label, ours in ((model, True), (f"{model}, the paper's estimator", False)):
            row = [label]
            for count in counts:
                one = found[model, count]
                text = _r2(one.r2 if ours else one.paper_r2)
                row.append(f"{text} [{printed[count]:g}]" if ours else text)
            rows.append(row)
    axis = [float(count) for count in counts]
    curves = {model: [found[model, count].r2 for count in counts] for model in MODELS}
    picture = out / "rwt-groups.png"
    _draw_lines(
        picture, "R² of estimated waits (Fig. 18)", "request groups in the queue", axis, curves
    )
    workload: Rows = [
        [
            name,
            _r2(one.r2),
            _r2(one.paper_r2),
            f"{one.mape:.2f}",
            f"{one.paper_mape:.2f}",
            f"{100 * one.coverage_p50:.0f} %",
            f"{100 * one.coverage_p90:.0f} %",
        ]
        for (name, count), one in found.items()
        if not count
    ]
    return "\n".join(
        [
            "## Waiting times (Fig. 18)\n",
            "A queue of so many groups of 500 requests before one instance: R² of estimates at arrival.\n",
            _table(["R² by groups", *map(str, counts)], rows),
            f"![R² by groups]({picture.name})\n",
            "On workloads that go on arriving (error relative to waits, of at least 1 s):\n",
            _table(
                ["workload", "R²", "paper's R²", "error", "paper's error", "≤ p50", "≤ p90"],
                sorted(workload),
            ),
        ]
    )


def _r2(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _overhead(out: Path, progress: Progress) -> str:
    rows: Rows = []
    taken: list[float | None] = []
    compiled = compiled_kernels()
    for groups, printed_s in published.OVERHEAD_S.items():
        problem = _problem(groups)
        limits = Limits(work=_OVERHEAD_WORK)
        for _ in range(2):  # The first call may still be compiling.
            begin_s = time.perf_counter()
            result = search(problem, limits, seed=0, clock=_no_clock, compiled=compiled)
            took_s = time.perf_counter() - begin_s
        taken.append(took_s)
        rows.append(
            [str(groups), f"{took_s:.3f} [{printed_s:g}]", f"{1e3 * took_s / groups / 1000:.4f}"]
        )
        progress(f"planning {groups} groups: {took_s:.3f} s, objective {result.objective:.0f}")
    picture = out / "overhead.png"
    axis = [float(groups) for groups in published.OVERHEAD_S]
    curves = {"qlm": taken, "paper": list(published.OVERHEAD_S.values())}
    _draw_lines(picture, "Time for one plan (Fig. 20)", "request groups", axis, curves)
    head = ["groups on 10 queues", "one plan, s", "ms per request, at 1,000 a group"]
    return (
        f"## Scheduler overhead (Fig. 20)\n\n{_OVERHEAD_WORK:,} moves tried for a plan.\n\n"
        f"{_table(head, rows)}\n![Scheduler overhead]({picture.name})\n"
    )


def _problem(groups: int) -> Problem:
    """Groups of three models and of the paper's classes, due while half of them can be served."""
    rng = np.random.default_rng(groups)
    queues, models = _OVERHEAD_QUEUES, 3
    duration_s = rng.uniform(5.0, 60.0, (groups, 1))
    due_s = rng.uniform(0.0, float(duration_s.sum()) / queues, groups)
    swap_s = np.full((1, models + 1, models), 5.0)
    swap_s[0, np.arange(models), np.arange(models)] = 0.0
    return Problem(
        group_model=rng.integers(0, models, groups),
        group_requests=np.full(groups, 1000),
        group_weight=rng.choice([1.0, 2.0, 4.0], groups),
        due_s=due_s,
        duration_s=duration_s,
        queue_class=np.zeros(queues, np.int64),
        loaded_model=rng.integers(0, models, queues),
        busy_s=rng.uniform(0.0, 20.0, queues),
        swap_s=swap_s,
        alpha=30.0,
        beta=0.02,
    )


def _no_clock() -> float:
    return 0.0


# --------------------------------------------------------------------------- tables and pictures


def _table(head: list[str], rows: Rows) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in [head, *rows]]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:], ""])


def _draw_curves(
    path: Path,
    experiment: Experiment,
    metric: str,
    axis: list[float],
    curves: dict[str, list[float | None]],
    beside: published.Curves,
) -> None:
    title = f"{experiment.title}: {metric}"
    _draw_lines(path, title, experiment.axis, axis, curves, published=beside)


def _at_our_places(printed: published.Curves, axis: list[float]) -> published.Curves:
    """What the paper prints, at the same places of our axis."""
    return {
        name: dict(zip(axis, points.values(), strict=False)) for name, points in printed.items()
    }


def _draw_lines(
    path: Path,
    title: str,
    label: str,
    axis: list[float],
    curves: dict[str, list[float | None]] | dict[str, list[float]],
    *,
    published: Mapping[str, Mapping[float, float]] = MappingProxyType({}),
) -> None:
    """Curves, with what the paper prints of them as hollow marks."""
    points = {
        name: [(at, value) for at, value in zip(axis, values, strict=True) if value is not None]
        for name, values in curves.items()
    }
    every = [y for curve in points.values() for _, y in curve]
    every += [y for curve in published.values() for y in curve.values()]
    low, high = min([0.0, *every]), max([0.0, *every])

    def draw(axes: Any) -> None:
        axes.set_xlabel(label)
        axes.set_ylim(low - 0.04 * (high - low), high + 0.06 * (high - low))
        draw_curves(axes, points, published=published)

    draw_to(path, draw, title=title)


def _draw_bars(path: Path, title: str, names: list[str], bars: dict[str, list[float]]) -> None:
    def draw(axes: Any) -> None:
        width = 0.8 / len(bars)
        for number, (name, values) in enumerate(bars.items()):
            at = [index + number * width for index in range(len(values))]
            axes.bar(at, values, width, label=name)
        axes.set_xticks([index + 0.4 - width / 2 for index in range(len(names))], names)
        axes.legend(fontsize="small")

    draw_to(path, draw, title=title)
