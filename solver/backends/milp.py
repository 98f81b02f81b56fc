"""Mixed-integer programs as arrays, independent of who solves them, and a builder for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from qlm_core.planning.problem import Bools, Floats, Ints
from qlm_core.planning.score import Plan


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Milp:
    """min cost x, row_low <= A x <= row_high, low <= x <= high, some x whole; A by rows.

    exact: its optimum is the problem's (then its bound is one too), not that of a restriction.
    """

    cost: Floats
    low: Floats
    high: Floats
    whole: Bools
    row_low: Floats
    row_high: Floats
    starts: Ints
    index: Ints
    value: Floats
    exact: bool
    decode: Callable[[Floats], Plan]
    encode: Callable[[Plan], Floats | None]

    @property
    def variables(self) -> int:
        """Columns."""
        return len(self.cost)

    @property
    def rows(self) -> int:
        """Rows."""
        return len(self.row_low)


class Builder:
    """Adds blocks of variables, rows and coefficients; arrays of numbers stand for each."""

    def __init__(self) -> None:
        self._variables: list[tuple[Floats, Floats, Floats, Bools]] = []
        self._rows: list[tuple[Floats, Floats]] = []
        self._entries: list[tuple[Ints, Ints, Floats]] = []
        self.variable_count = 0
        self.row_count = 0

    def variables(
        self,
        count: int,
        *,
        cost: Any = 0.0,
        low: Any = 0.0,
        high: Any = np.inf,
        whole: bool = False,
    ) -> Ints:
        """New variables; returns their numbers."""
        spread = [np.broadcast_to(np.asarray(part, float), (count,)) for part in (cost, low, high)]
        self._variables.append((spread[0], spread[1], spread[2], np.full(count, whole)))
        self.variable_count += count
        return np.arange(self.variable_count - count, self.variable_count)

    def rows(self, count: int, low: Any, high: Any) -> Ints:
        """New rows, empty yet; returns their numbers."""
        spread = [np.broadcast_to(np.asarray(part, float), (count,)) for part in (low, high)]
        self._rows.append((spread[0], spread[1]))
        self.row_count += count
        return np.arange(self.row_count - count, self.row_count)

    def put(self, rows: Any, variables: Any, values: Any) -> None:
        """Coefficients; the three are broadcast against each other. Repeated entries add up."""
        r, v, a = np.broadcast_arrays(rows, variables, np.asarray(values, float))
        self._entries.append((r.ravel(), v.ravel(), a.ravel()))

    def build(
        self,
        *,
        exact: bool,
        decode: Callable[[Floats], Plan],
        encode: Callable[[Plan], Floats | None],
    ) -> Milp:
        """The finished program."""
        parts = [np.concatenate(part) for part in zip(*self._variables, strict=True)]
        bounds = [np.concatenate(part) for part in zip(*self._rows, strict=True)]
        row, variable, value = (np.concatenate(part) for part in zip(*self._entries, strict=True))
        place = row.astype(np.int64) * self.variable_count + variable
        unique, where = np.unique(place, return_inverse=True)
        summed = np.bincount(where, weights=value, minlength=len(unique))
        rows = unique // self.variable_count
        return Milp(
            cost=parts[0],
            low=parts[1],
            high=parts[2],
            whole=parts[3],
            row_low=bounds[0],
            row_high=bounds[1],
            starts=np.searchsorted(rows, np.arange(self.row_count + 1)).astype(np.int64),
            index=unique % self.variable_count,
            value=summed.astype(np.float64),
            exact=exact,
            decode=decode,
            encode=encode,
        )
