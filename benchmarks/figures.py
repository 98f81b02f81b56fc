"""A measured figure beside its target, and a list of them for people or for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measurement; `least` and `most` are its target, None where there is none."""

    name: str
    value: float
    unit: str
    least: float | None = None
    most: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without a target."""
        if self.least is None and self.most is None:
            return None
        above = self.least is None or self.value >= self.least
        return above and (self.most is None or self.value <= self.most)


def show(figures: Sequence[Figure]) -> str:
    """One line a figure, aligned."""
    width = max(len(figure.name) for figure in figures)
    return "\n".join(f"{one.name:<{width}}  {_value(one):>16}  {_target(one)}" for one in figures)


def to_json(figures: Sequence[Figure]) -> str:
    """One JSON object with all figures, each with its target."""
    return json.dumps({"figures": [asdict(figure) | {"met": figure.met} for figure in figures]})


def _value(figure: Figure) -> str:
    number = f"{figure.value:,.0f}" if figure.value >= 1_000 else f"{figure.value:.4g}"
    return f"{number} {figure.unit}".rstrip()


def _target(figure: Figure) -> str:
    if figure.met is None:
        return ""
    bound = f">= {figure.least:g}" if figure.least is not None else f"<= {figure.most:g}"
    return f"target {bound} {figure.unit}: {'met' if figure.met else 'MISSED'}"
