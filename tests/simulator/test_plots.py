"""Curves: none hides another, names do not lie on each other, and what somebody else published stands beside ours."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.paper_report import _draw_lines
from qlm.plots import apart, draw_curves, spread, style
from qlm_core.sim.policies import policy_names


def pixels(curves: dict[str, Any], **options: Any) -> Any:
    """[h, w, 3] the picture of some curves between 0 and 100."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_ylim(0, 110)
    draw_curves(axes, curves, **options)
    # What is told by names beside the axes says nothing about the curves.
    for name in axes.texts:
        name.set_visible(False)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3]


def seen(picture: Any, name: str, number: int) -> int:
    """Pixels in a curve's colour."""
    text = style(name, number)["color"].removeprefix("#")
    colour = [int(text[place : place + 2], 16) for place in (0, 2, 4)]
    return int((picture == colour).all(axis=2).sum())


@pytest.mark.parametrize("count", [2, 5, 12])
def test_every_one_of_equal_curves_is_seen(count: int) -> None:
    names = policy_names()[:count]
    picture = pixels({name: [(1.0, 100.0), (2.0, 100.0), (4.0, 90.0)] for name in names})
    found = [seen(picture, name, number) for number, name in enumerate(names)]
    assert min(found) > 200


def test_curves_of_the_papers_figures_that_lie_on_each_other_are_all_seen(tmp_path: Path) -> None:
    from matplotlib.image import imread

    picture = tmp_path / "w-b-slos.png"
    curves = {name: [100.0, 100.0, 100.0] for name in ("qlm", "qlm-paper", "shepherd")}
    _draw_lines(picture, "W_B", "requests/s", [1.0, 3.0, 10.0], curves)
    drawn = (imread(picture)[:, :, :3] * 255).round()
    assert min(seen(drawn, name, number) for number, name in enumerate(curves)) > 200


def test_no_two_policies_look_alike() -> None:
    looks = [tuple(style(name, number).items()) for number, name in enumerate(policy_names())]
    assert len(dict.fromkeys(looks)) == len(policy_names())
    colours = [style(name, number)["color"] for number, name in enumerate(policy_names())]
    assert len(dict.fromkeys(colours)) == len(policy_names())


def test_what_was_published_is_drawn_in_the_curves_colour() -> None:
    curve = {"edf": [(1.0, 100.0), (2.0, 100.0)]}
    alone = seen(pixels(curve), "edf", 0)
    assert seen(pixels(curve, published={"edf": {1.0: 50.0, 2.0: 20.0}}), "edf", 0) > alone + 20


POINTS = st.lists(st.integers(0, 20).map(float), min_size=1, max_size=8)


@given(POINTS)
def test_points_of_one_place_are_moved_apart_and_others_stay(values: list[float]) -> None:
    curves = {f"curve-{number}": [(1.0, y), (2.0, y)] for number, y in enumerate(values)}
    moved = apart(curves, gap=0.5)
    places = sorted(curve[0][1] for curve in moved.values())
    alone = [y for y in values if values.count(y) == 1]
    # Clusters are of whole numbers here, so nobody else is within the gap of one that stands alone.
    assert all(y in places for y in alone)
    heaps = {
        y: [moved[name][0][1] for name, curve in curves.items() if curve[0][1] == y] for y in values
    }
    for y, heap in heaps.items():
        assert sum(heap) / len(heap) == pytest.approx(y)
        assert all(b - a == pytest.approx(0.5) for a, b in pairwise(heap))


def test_a_curve_is_moved_only_where_another_is() -> None:
    moved = apart({"a": [(1.0, 5.0), (2.0, 5.0)], "b": [(1.0, 5.0), (3.0, 5.0)]}, gap=1.0)
    assert moved == {"a": [(1.0, 4.5), (2.0, 5.0)], "b": [(1.0, 5.5), (3.0, 5.0)]}


@given(st.lists(st.floats(0, 1), max_size=12), st.floats(0.01, 0.2))
def test_names_keep_their_distance_and_their_order(wanted: list[float], gap: float) -> None:
    places = spread(wanted, gap)
    in_order = sorted(zip(wanted, places, strict=True))
    for (want, place), (more, above) in pairwise(in_order):
        assert above - place >= gap - 1e-9 or want == more
    assert all(b - a >= gap - 1e-9 for a, b in pairwise(sorted(places)))
    if all(b - a >= gap for a, b in pairwise(sorted(wanted))):
        assert places == pytest.approx(wanted)
