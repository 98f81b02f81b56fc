"""Knees for people and programs: one table over all beds, one table and one picture for each, and a picture of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import paper_published as published
from benchmarks.knees import KneeBed
from qlm import knee
from qlm.knee import Knee, Search
from qlm.plots import OURS, scale_rates, style
from qlm.simulations import draw_to

Found = Mapping[str, Sequence[Knee]]


def section(beds: Sequence[KneeBed], found: Found, search: Search, out: Path) -> str:
    """The report as Markdown; its pictures go into the folder `out`."""
    _draw_all(beds, found, out / "knees.png")
    parts = [
        f"## Capacity: the rate up to which {search.target:.0%} of the SLOs are met\n",
        _overview(beds, found),
        "![Capacity](knees.png)\n",
    ]
    for bed in beds:
        knees = found[bed.name]
        picture = out / f"knee-{bed.name}.png"
        knee.plot(
            knees, search.target, picture, title=bed.title, published=_beside(bed, knees, search)
        )
        parts += [f"### {bed.title}\n", knee.table(knees, search), ""]
        if bed.published:
            parts.append(_published(bed, search))
        parts.append(f"![{bed.title}]({picture.name})\n")
    return "\n".join(parts)


def figures(found: Found, search: Search) -> dict[str, Any]:
    """Everything as JSON takes it, by bed."""
    return {name: knee.figures(knees, search) for name, knees in found.items()}


def _overview(beds: Sequence[KneeBed], found: Found) -> str:
    head = ["bed", "qlm, requests/s", "best rival", "over it"]
    against = (*knee.AGAINST, knee.BOUND)
    lines = [[*head, *(f"over {name}" for name in against)]]
    for bed in beds:
        by_name = {one.policy: one for one in found[bed.name]}
        ours, best = by_name[OURS], knee.best_rival(found[bed.name])
        rival = "" if best is None else f"{best.policy}, {knee.shown(best)}"
        row = [bed.title, knee.shown(ours), rival, knee.ratio(ours, best)]
        lines.append(row + [knee.ratio(ours, by_name.get(name)) for name in against])
    text = ["| " + " | ".join(cells) + " |" for cells in lines]
    return "\n".join([text[0], "|" + "---|" * len(lines[0]), *text[1:], ""])


# --------------------------------------------------------------------------- the paper's curves


def published_knee(curve: published.Points, target: float) -> tuple[float | None, float | None]:
    """Of a curve of the paper (% by rate), the last rate that keeps the target before the first that misses it, and that."""
    kept: float | None = None
    for rate, percent in sorted(curve.items()):
        if percent < 100 * target:
            return kept, rate
        kept = rate
    return kept, None


def _published(bed: KneeBed, search: Search) -> str:
    told: list[str] = []
    for name, curve in bed.published.items():
        kept, missed = published_knee(curve, search.target)
        if kept is None:
            told.append(f"{name} below {missed:g}")
        else:
            told.append(f"{name} {kept:g}" + ("" if missed is None else f" to {missed:g}"))
    return f"The paper's curves cross it at, in {bed.published_unit}: {', '.join(told)}.\n"


def _beside(bed: KneeBed, knees: Sequence[Knee], search: Search) -> dict[str, dict[float, float]]:
    """The paper's points at our rates: its fleet is not stated, so where its QLM keeps the target last, ours does."""
    ours = next((one.at_rps for one in knees if one.policy == OURS), None)
    theirs, _ = published_knee(bed.published.get(OURS, {}), search.target)
    if ours is None or theirs is None:
        return {}
    return {
        name: {rate / theirs * ours: percent for rate, percent in curve.items()}
        for name, curve in bed.published.items()
        if any(one.policy == name for one in knees)
    }


# --------------------------------------------------------------------------- the picture of all


def _draw_all(beds: Sequence[KneeBed], found: Found, path: Path) -> None:
    """A row for each bed, a mark for each policy, relative to ours; those of one row stand one below the other."""
    names = list(dict.fromkeys(one.policy for knees in found.values() for one in knees))

    def draw(axes: Any) -> None:
        for row, bed in enumerate(beds):
            by_name = {one.policy: one for one in found[bed.name]}
            base = by_name[OURS].at_rps or by_name[OURS].below_rps
            for number, name in enumerate(names):
                one = by_name.get(name)
                if one is None:
                    continue
                at = one.at_rps or one.below_rps
                looks = style(name, number) | {"linestyle": "none"}
                if one.at_rps is None or one.missed is None:
                    looks["fillstyle"] = "none"
                height = row + 0.8 * (number / max(1, len(names) - 1) - 0.5)
                label = name if row == 0 else None
                axes.plot([at / base], [height], markersize=5, label=label, **looks)
            if row:
                axes.axhline(row - 0.5, color="lightgrey", linewidth=0.6)
        axes.axvline(1.0, color="grey", linewidth=0.6)
        scale_rates(axes)
        axes.set_ylim(len(beds) - 0.5, -0.5)
        axes.set_yticks(range(len(beds)), [bed.name for bed in beds])
        axes.set_xlabel("rate at the knee over that of qlm (hollow: at most or at least this)")
        axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.01, 0.5))

    draw_to(path, draw, title="Capacity at the knee")
