"""Two runs of the same requests beside each other: a chart for the terminal, a picture, and what they show in three sentences.

The sentences have the figures of the runs and no judgement of their own, so they are true whichever fleet did better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qlm import look
from qlm.report import ClassReport, Outcome, Report, quantile
from qlm_core.model import Slo

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

SLICES = 30
"""Columns of the chart: the time of sending is cut into so many equal parts."""

SHARE = 0.9
"""A column is as high as the wait that so many of its requests did not exceed."""

_HEIGHTS = "▁▂▃▄▅▆▇█"
_NOBODY = " "
_IN_TIME, _LATE = "green", "red"


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of the runs, under the name that it is shown by."""

    name: str
    report: Report
    outcomes: Sequence[Outcome]

    def class_report(self, slo_class: str) -> ClassReport | None:
        """The figures of one class; None where it had no requests."""
        found = [one for one in self.report.classes if one.name == slo_class]
        return found[0] if found else None


def chart(sides: Sequence[Side], slos: Mapping[str, Slo]) -> Table:
    """A row for each class and run: attainment, and the waits for a first token by the time of sending.

    Heights are to one scale within a class. A column is red where it exceeds the target.
    """
    span_s = max((o.sent_s for side in sides for o in side.outcomes), default=0.0)
    table = look.table("class", "", right=("in time", "p50 s", "p90 s"))
    table.add_column(f"waits of those sent at 0 to {span_s:.0f} s", no_wrap=True)
    for name, slo in slos.items():
        waits = [waits_by_slice(side.outcomes, name, span_s) for side in sides]
        top_s = max((wait_s for row in waits for wait_s in row if wait_s is not None), default=0.0)
        labels = iter((name, f"target {slo.ttft_s:g} s"))
        for side, row in zip(sides, waits, strict=True):
            figures = side.class_report(name)
            if figures is None:
                continue
            attained = f"{100 * figures.attainment_ratio:.1f} %"
            quantiles = (_seconds(figures.ttft_s.p50), _seconds(figures.ttft_s.p90))
            table.add_row(next(labels, ""), side.name, attained, *quantiles, bars(row, slo, top_s))
    return table


def waits_by_slice(
    outcomes: Sequence[Outcome], slo_class: str, span_s: float
) -> list[float | None]:
    """[SLICES] the wait (s) that `SHARE` of a class's requests did not exceed, by when they were sent; None without any."""
    slices: list[list[float]] = [[] for _ in range(SLICES)]
    for outcome in outcomes:
        if outcome.slo_class == slo_class and outcome.ttft_s is not None:
            at = int(SLICES * outcome.sent_s / span_s) if span_s > 0 else 0
            slices[min(at, SLICES - 1)].append(outcome.ttft_s)
    return [quantile(sorted(waits), SHARE) for waits in slices]


def bars(waits_s: Sequence[float | None], slo: Slo, top_s: float) -> Text:
    """A row of the chart; `top_s` is the full height."""
    from rich.text import Text

    text = Text()
    for wait_s in waits_s:
        if wait_s is None:
            text.append(_NOBODY)
            continue
        height = min(int(len(_HEIGHTS) * wait_s / top_s), len(_HEIGHTS) - 1) if top_s > 0 else 0
        text.append(_HEIGHTS[height], style=_LATE if wait_s > slo.ttft_s else _IN_TIME)
    return text


def sentences(plain: Side, ours: Side, slos: Mapping[str, Slo]) -> tuple[str, str, str]:
    """What a fleet without QLM did, what it did with QLM, and what that has to do with order and knowledge."""
    strictest = min(
        (one.name for one in plain.report.classes), key=lambda name: slos[name].ttft_s, default=""
    )
    target = f"{slos[strictest].ttft_s:g} s" if strictest in slos else "none"
    first = (
        f"First come, first served, {_share(plain.report.attainment_ratio)} of the "
        f"{plain.report.requests} requests met their targets: {_of_class(plain, strictest)} "
        f"(target {target}), and the last answer was complete after {plain.report.elapsed_s:.0f} s."
    )
    second = (
        f"With QLM, {_share(ours.report.attainment_ratio)} of the same requests on the same GPUs did: "
        f"{_of_class(ours, strictest)}, and the last answer was complete after {ours.report.elapsed_s:.0f} s."
    )
    third = f"GPUs changed models {_times(plain.report.swaps)} without QLM and {_times(ours.report.swaps)} with it"
    estimate = ours.report.estimate
    if estimate is not None:
        everybody = estimate.requests == ours.report.requests
        told = "each request" if everybody else f"{estimate.requests} requests"
        third += (
            f"; and QLM told {told} at arrival how long the wait would be, "
            f"{estimate.mean_absolute_error_s:.1f} s off on average"
        )
    return first, second, third + "."


def _of_class(side: Side, name: str) -> str:
    figures = side.class_report(name)
    if figures is None:
        return "none were sent"
    waits = figures.ttft_s
    return (
        f"{_share(figures.attainment_ratio)} of class {name}, of which half had a first token within "
        f"{_seconds(waits.p50)} s and nine in ten within {_seconds(waits.p90)} s"
    )


def _share(ratio: float) -> str:
    return f"{100 * ratio:.1f} %"


def _times(count: int | None) -> str:
    if count is None:
        return "an unknown number of times"
    return "once" if count == 1 else f"{count} times"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def draw(sides: Sequence[Side], slos: Mapping[str, Slo], path: Path) -> None:
    """Draw the waits of each run over the time of sending into a picture, to one scale. Raises as `simulations.save`."""
    from matplotlib.figure import Figure

    from qlm.simulations import save

    figure = Figure(figsize=(12, 4.5), layout="constrained")
    panels = figure.subplots(1, len(sides), sharex=True, sharey=True, squeeze=False)[0]
    for axes, side in zip(panels, sides, strict=True):
        for number, (name, slo) in enumerate(slos.items()):
            begun = [
                (o.sent_s, o.ttft_s)
                for o in side.outcomes
                if o.slo_class == name and o.ttft_s is not None
            ]
            if begun:
                axes.scatter(*zip(*begun, strict=True), s=6, color=f"C{number}", label=name)
                axes.axhline(slo.ttft_s, color=f"C{number}", linestyle=":", linewidth=1)
        axes.set_title(f"{side.name}: {_share(side.report.attainment_ratio)} in time")
        axes.set(yscale="log", xlabel="sent (s)")
    panels[0].set_ylabel("first token after (s); dotted: target")
    panels[0].legend(loc="lower right")
    save(figure, path)
