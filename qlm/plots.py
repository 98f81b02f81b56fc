"""Curves of which none hides another: each has a colour and a marker of its own, curves that coincide are drawn side by side, and
each is named at its end.

Whoever draws sets scales and limits of the axes first, since what is side by side and which names collide follows from them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Curve = Sequence[tuple[float, float]]
"""Points (x, y) in order of x."""

OURS = "qlm"
BOUND = "bound"
_NONE: Mapping[str, Mapping[float, float]] = MappingProxyType({})
_OWN_COLOUR = "#000000"
_BOUND_COLOUR = "#404040"
_COLOURS = (
    *("#1f77b4", "#d62728", "#2ca02c", "#ff7f0e", "#9467bd", "#8c564b", "#e377c2", "#17becf"),
    *("#bcbd22", "#7f7f7f", "#1b4f9c", "#8b0000", "#0b6623", "#b8860b", "#4b0082", "#00716b"),
    *("#c71585", "#556b2f", "#ff4fd8", "#5f9ea0"),
)
_MARKERS = "osD^v<>PX*hp"
_LINES = ("-", "--", ":", "-.")

_WIDTH_POINTS = 1.4
_GAP_POINTS = 2.2
"""Between the middles of two lines that are side by side: more than a line is wide."""
_NAME_POINTS = 8.0


def style(name: str, number: int) -> dict[str, Any]:
    """How the curve of that name, the `number`-th, is drawn: ours black and thicker, the bound dotted, no two of 20 alike."""
    if name == OURS:
        return {"color": _OWN_COLOUR, "marker": "o", "linestyle": "-", "linewidth": 2.0}
    if name == BOUND:
        return {"color": _BOUND_COLOUR, "marker": "_", "linestyle": ":", "linewidth": _WIDTH_POINTS}
    return {
        "color": _COLOURS[number % len(_COLOURS)],
        "marker": _MARKERS[number % len(_MARKERS)],
        "linestyle": _LINES[number // len(_COLOURS) % len(_LINES)],
        "linewidth": _WIDTH_POINTS,
    }


def draw_curves(
    axes: Axes,
    curves: Mapping[str, Curve],
    *,
    published: Mapping[str, Mapping[float, float]] = _NONE,
) -> None:
    """Draw and name them. The limits of y count as they are, on a linear scale.

    Args:
        published: what somebody else says of the curves of those names, y by x: hollow marks in their colours.
    """
    low, high = axes.get_ylim()
    height_points = axes.bbox.height * 72 / axes.figure.dpi
    per_point = (high - low) / height_points
    drawn = apart(curves, gap=_GAP_POINTS * per_point)
    ends: dict[str, tuple[float, float]] = {}
    colours: dict[str, str] = {}
    for number, (name, curve) in enumerate(drawn.items()):
        looks = style(name, number)
        colours[name] = looks["color"]
        if curve:
            axes.plot(*zip(*curve, strict=True), markersize=4, **looks)
            ends[name] = curve[-1]
        if name in published:
            points = zip(*sorted(published[name].items()), strict=True)
            hollow = looks | {
                "linestyle": "none",
                "markerfacecolor": "none",
                "markeredgewidth": _WIDTH_POINTS,
            }
            axes.plot(*points, markersize=8, **hollow)
    wanted = [(y - low) / (high - low) for _, y in ends.values()]
    room = 1.25 * _NAME_POINTS * per_point / (high - low)
    for (name, end), at in zip(ends.items(), spread(wanted, room), strict=True):
        colour = colours[name]
        axes.annotate(
            name,
            xy=end,
            xytext=(1.03, at),
            textcoords="axes fraction",
            va="center",
            fontsize=_NAME_POINTS,
            color=colour,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.4},
            annotation_clip=False,
        )


def scale_rates(axes: Axes) -> None:
    """A logarithmic axis of rates, with figures that people read at a glance."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())


def apart(curves: Mapping[str, Curve], *, gap: float) -> dict[str, list[tuple[float, float]]]:
    """The curves with points that lie within `gap` of each other at the same x moved apart by it, up and down alike."""
    moved = {name: dict(curve) for name, curve in curves.items()}
    for x in sorted(set().union(*moved.values())):
        here = sorted((points[x], name) for name, points in moved.items() if x in points)
        while here:
            heap = [here.pop(0)]
            while here and here[0][0] - heap[-1][0] < gap:
                heap.append(here.pop(0))
            # Side by side in the order of the curves, so that lines which go on together do not cross.
            together = [name for name in moved if name in [each for _, each in heap]]
            middle = sum(y for y, _ in heap) / len(heap)
            for place, name in enumerate(together):
                if len(together) > 1:
                    moved[name][x] = middle + (place - (len(together) - 1) / 2) * gap
    return {name: sorted(points.items()) for name, points in moved.items()}


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Places at least `gap` apart, in the order of those wanted and as near to them as that allows."""
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    blocks: list[list[float]] = []
    """Middle and number of places that touch each other."""
    for index in order:
        blocks.append([wanted[index], 1.0])
        while len(blocks) > 1 and (
            blocks[-1][0] - blocks[-2][0] < gap * (blocks[-1][1] + blocks[-2][1]) / 2
        ):
            middle, count = blocks.pop()
            before, number = blocks[-1]
            blocks[-1] = [(middle * count + before * number) / (count + number), count + number]
    places: list[float] = []
    for middle, count in blocks:
        places += [middle + (place - (count - 1) / 2) * gap for place in range(round(count))]
    found = [0.0] * len(wanted)
    for index, place in zip(order, places, strict=True):
        found[index] = place
    return found
