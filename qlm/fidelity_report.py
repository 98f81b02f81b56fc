"""A measured run beside its replay, as a table and as distributions side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isnan
from pathlib import Path

from qlm.simulations import save
from qlm_core.sim.fidelity import QUANTILES, Contrast, LogComparison, MeasuredRequest

_DRAWN: tuple[tuple[str, Callable[[MeasuredRequest], float]], ...] = (
    ("TTFT (s)", lambda one: one.ttft_s),
    ("TPOT (ms)", lambda one: 1e3 * one.tpot_s),
    ("end to end (s)", lambda one: one.finish_s - one.arrival_s),
)


def error_text(one: Contrast) -> str:
    """The relative error in percent, or that there is none because 0 was measured."""
    return "nothing to compare with" if isnan(one.error) else f"{one.error:+.1%}"


def table(found: LogComparison) -> str:
    """Makespan and means with their errors, and the quantiles, as Markdown."""
    lines = ["| | measured | model | error |", "|---|---|---|---|"]
    rows = (
        ("makespan, s", found.makespan, 1.0),
        ("mean TTFT, s", found.ttft, 1.0),
        ("mean TPOT, ms", found.tpot, 1e3),
    )
    for name, one, unit in rows:
        measured, simulated = unit * one.measured, unit * one.simulated
        lines.append(f"| {name} | {measured:.4g} | {simulated:.4g} | {error_text(one)} |")
    lines += ["", "| quantile | " + " | ".join(f"{level:g}" for level in QUANTILES) + " |"]
    lines.append("|---" * (len(QUANTILES) + 1) + "|")
    for name, one, unit in rows[1:]:
        for side, values in (
            ("measured", one.measured_quantiles),
            ("model", one.simulated_quantiles),
        ):
            if not values:
                continue
            cells = " | ".join(f"{unit * value:.4g}" for value in values)
            lines.append(f"| {name.removeprefix('mean ')}, {side} | {cells} |")
    lines += ["", f"{found.preemptions} preemptions in the model"]
    return "\n".join(lines)


def plot(log: Sequence[MeasuredRequest], found: LogComparison, path: Path, *, title: str) -> None:
    """The distributions of TTFT, TPOT and end-to-end time of both, side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    for axes, (name, of) in zip(figure.subplots(1, len(_DRAWN)), _DRAWN, strict=True):
        for label, requests, style in (("measured", log, "-"), ("model", found.replayed, "--")):
            values = sorted(of(one) for one in requests if one.output_tokens > 1)
            shares = [(rank + 1) / len(values) for rank in range(len(values))]
            axes.step(values, shares, style, where="post", label=label)
        axes.set(xlabel=name, ylabel="share of requests", ylim=(0, 1.02))
        axes.legend()
    figure.suptitle(title)
    save(figure, path)
