"""Shows a report to people: tables on the terminal, and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qlm import look
from qlm.report import Fate, Outcome, Quantiles, Report
from qlm_core.model import Slo

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

MILLISECONDS = 1000.0
PROBLEMS_SHOWN_MAX = 5
_NO_TARGETS = Slo(ttft_s=float("inf"))


def print_report(report: Report, slos: Mapping[str, Slo], console: Console) -> None:
    """The tables of a run and a line that accounts for every request."""
    console.print(_latencies(report, slos))
    console.print(
        f"throughput   {report.requests_per_s:.2f} requests/s, "
        f"{report.output_tokens_per_s:.0f} output tokens/s over {report.elapsed_s:.1f} s"
    )
    operations = [("evictions", report.evictions), ("model swaps", report.swaps)]
    console.print(
        "operations   " + ", ".join(f"{name} {_known(count)}" for name, count in operations)
    )
    _print_estimate(report, console)
    _print_account(report, console)
    for problem in report.problems[:PROBLEMS_SHOWN_MAX]:
        console.print(
            f"             {problem.requests} {problem.fate}: {problem.reason or 'no reason given'}",
            soft_wrap=True,
            markup=False,
        )


def _print_account(report: Report, console: Console) -> None:
    sent = report.requests
    fates = ", ".join(f"{count} {fate}" for fate, count in report.fates.items())
    cut = report.interrupted
    if cut is not None:
        sent += cut.in_flight
        fates += f", {cut.in_flight} in flight"
        console.print(
            f"interrupted  {cut.not_sent} of {sent + cut.not_sent} requests were not sent; "
            f"all figures are over the {report.requests} that ended",
            soft_wrap=True,
        )
    console.print(f"accounted    {sent} sent = {fates}", soft_wrap=True)


def _latencies(report: Report, slos: Mapping[str, Slo]) -> Table:
    figures = ("requests", "attained")
    table = look.table("class", right=figures)
    table.add_column("")
    for name in ("p50", "p90", "p99", "target"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in report.classes:
        slo = slos.get(one.name, _NO_TARGETS)
        head = (one.name, str(one.requests), f"{100 * one.attainment_ratio:.1f} %")
        table.add_row(*head, "TTFT s", *_three(one.ttft_s), _target(slo.ttft_s))
        tpot = _three(one.tpot_s, MILLISECONDS)
        table.add_row("", "", "", "TPOT ms", *tpot, _target(slo.tpot_s, MILLISECONDS))
        table.add_row("", "", "", "pause s", *_three(one.pause_s), "")
        table.add_row("", "", "", "E2E s", *_three(one.e2e_s), _target(slo.e2e_s))
    return table


def _target(seconds: float | None, factor: float = 1.0) -> str:
    return "" if seconds is None else f"{seconds * factor:g}"


def _print_estimate(report: Report, console: Console) -> None:
    estimate = report.estimate
    if estimate is None:
        console.print("estimates    none given")
        return
    r2 = ""
    if estimate.r2 is not None:
        # Below 0 the mean of the waits would have been the better estimate; how far says nothing.
        r2 = f", R² {estimate.r2:.2f}" if estimate.r2 >= 0 else ", R² below 0"
    console.print(
        f"estimates    waited {estimate.mean_realised_s:.2f} s on average, estimated "
        f"{estimate.mean_estimated_s:.2f} s, off by {estimate.mean_absolute_error_s:.2f} s{r2}; "
        f"{100 * estimate.within_p90_ratio:.0f} % within their p90 ({estimate.requests} requests)",
        soft_wrap=True,
    )


def _known(count: int | None) -> str:
    return "unknown" if count is None else str(count)


def _three(quantiles: Quantiles, factor: float = 1.0) -> tuple[str, ...]:
    values = (quantiles.p50, quantiles.p90, quantiles.p99)
    return tuple("-" if value is None else f"{value * factor:.3g}" for value in values)


def plot(outcomes: Sequence[Outcome], slos: Mapping[str, Slo], path: Path, *, title: str) -> None:
    """Draw the distribution of TTFT by class, and TTFT over the time of sending, into a PNG file."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    names = dict.fromkeys([*slos, *(outcome.slo_class for outcome in outcomes)])
    seen = dict.fromkeys(outcome.slo_class for outcome in outcomes)
    for index, name in enumerate(name for name in names if name in seen):
        colour = f"C{index}"
        served = [o for o in outcomes if o.slo_class == name and o.ttft_s is not None]
        waits = sorted(o.ttft_s for o in served if o.ttft_s is not None)
        promised = sum(o.slo_class == name and o.fate is not Fate.CANCELLED for o in outcomes)
        shares = [(rank + 1) / max(promised, 1) for rank in range(len(waits))]
        left.step(waits, shares, where="post", color=colour, label=name)
        right.scatter([o.sent_s for o in served], [o.ttft_s for o in served], s=6, color=colour)
        if name in slos:
            left.axvline(slos[name].ttft_s, color=colour, linestyle=":", linewidth=1)
            right.axhline(slos[name].ttft_s, color=colour, linestyle=":", linewidth=1)
    missed = [o for o in outcomes if o.fate not in (Fate.FINISHED, Fate.CANCELLED)]
    right.scatter([o.sent_s for o in missed], [1e-3] * len(missed), marker="x", color="black", s=12)
    left.set(xscale="log", xlabel="TTFT (s)", ylabel="share of requests", ylim=(0, 1.02))
    right.set(yscale="log", xlabel="sent (s)", ylabel="TTFT (s); x: shed, failed or lost")
    left.legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
    plt.close(figure)
