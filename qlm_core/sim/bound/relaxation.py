"""What no schedule can exceed at given prices, and which way the prices should go.

A request is served by instances of one kind, or is not in time. Two things that an instance gives are relaxed, by a price each:

* *Computing*: in each block of time and for each base, requests ask for no more seconds than instances compute with it awake.
* *Being there*: a request of a base needs a stay of it in its window, so it is served no more often than stays meet the window.

For any prices >= 0, what requests can gain above what they pay (each decides for itself) plus what instances can earn
(each by itself, the best of all sequences of stays with swaps between them, a dynamic program over time and the base
awake) is at least the weight that any schedule serves in time (docs/bound.md). Instances that are alike differ in the
base that is awake first, and share the program.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np

from qlm_core.planning.compiled import twins
from qlm_core.planning.problem import Bools, Floats, Ints
from qlm_core.sim.bound import kernels
from qlm_core.sim.bound.demand import Demand, Kind
from qlm_core.sim.bound.grid import Grid

_ROUND = 1e-9
_TINY = 1e-12


@cache
def compiled() -> ModuleType | None:
    """The kernels, compiled when first asked for; None without numba."""
    return twins(kernels)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prices:
    """What requests pay instances.

    Attributes:
        computing: [rows, blocks] for a second; a row is a base of a kind.
        visit: [N, K] for a stay of its base in its window, to instances of a kind.
    """

    computing: Floats
    visit: Floats


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Valued:
    """What prices come to.

    Attributes:
        bound: no schedule serves more weight in time.
        excess: of what instances give over what requests ask for, at these prices: prices should fall along it.
    """

    bound: float
    excess: Prices


class Relaxation:
    """The bound of one demand on one grid, as a function of prices.

    Args:
        weight: [N] what each request counts.
        swaps: False if all models of an instance are awake at once and share its computing.
    """

    def __init__(self, demand: Demand, grid: Grid, weight: Floats, *, swaps: bool = True):
        self.grid = grid
        self.weight = weight
        self._kernels: Any = compiled() or kernels
        self._lengths_s = grid.lengths_s
        self._offsets = np.cumsum([0, *(len(kind.bases) for kind in demand.kinds)])
        self.rows = int(self._offsets[-1])
        self._able = _columns([kind.able for kind in demand.kinds])
        self._row = _columns(
            [kind.base + offset for kind, offset in zip(demand.kinds, self._offsets, strict=False)]
        )
        self.first_work_s = _columns([kind.first_work_s for kind in demand.kinds])
        self._rest_work_s = _columns([kind.rest_work_s for kind in demand.kinds])
        self._begin = grid.block_at(demand.release_s)
        self._first_end = np.maximum(self._begin, grid.block_at(demand.first_due_s))
        self._end = np.maximum(self._begin, grid.block_at(demand.last_due_s))
        self._first_level = _log2(self._first_end - self._begin + 1)
        self._level = _log2(self._end - self._begin + 1)
        self._least = np.zeros((1 + int(self._level.max()), self.rows, grid.blocks), np.int64)
        self._turns = [
            _Turns(demand, kind, grid, self._kernels)
            if swaps and _takes_turns(kind, grid.cell_s)
            else None
            for kind in demand.kinds
        ]
        self._counts = [len(kind.awake) for kind in demand.kinds]
        nobody = np.zeros(demand.requests, np.bool_)
        self._waited_for = _columns(
            [nobody if turns is None else turns.waited_for for turns in self._turns]
        )

    @property
    def able(self) -> Bools:
        """[N, K] where a request can be in time."""
        return np.asarray(self._able)

    def free(self) -> Prices:
        """No prices at all."""
        shape = len(self.weight), len(self._counts)
        return Prices(computing=np.zeros((self.rows, self.grid.blocks)), visit=np.zeros(shape))

    def value(self, prices: Prices, *, alike: float = 0.0) -> Valued:
        """The bound at these prices. Who needs no stay pays for none.

        Args:
            alike: prices for a second that differ by no more than this are much alike to whoever asks for computing, which is
                then spread over all that are low in its window. That has a say in the excess alone, not in the bound.
        """
        visit = np.where(self._waited_for, prices.visit, 0.0)
        given_s = np.zeros_like(prices.computing)
        met = np.zeros_like(prices.visit)
        earned = 0.0
        for number, turns in enumerate(self._turns):
            rows = slice(int(self._offsets[number]), int(self._offsets[number + 1]))
            price, given = prices.computing[rows], given_s[rows]
            if turns is not None:
                before = self.grid.blocks_before
                earned += turns.earn(
                    price[:, :before], visit[:, number], given[:, :before], met[:, number]
                )
            else:
                before = 0
            earned += self._share(number, price, given, before)
        asked_s, asked = np.zeros_like(given_s), np.zeros_like(met)
        self._kernels.lowest(prices.computing, self._least)
        drawing = self._drawing(prices.computing, alike)
        drawn = np.zeros((self.rows, self.grid.blocks + 1))
        np.cumsum(drawing, axis=1, out=drawn[:, 1:])
        spread_s = np.zeros_like(drawn)
        gained = self._kernels.choose(
            self.weight, self._able, self._row, self.first_work_s, self._rest_work_s, visit,
            self._begin, self._first_end, self._end, self._first_level, self._level,
            prices.computing, self._least, drawn, spread_s, asked_s, asked,
        )  # fmt: skip
        asked_s += drawing * np.maximum(0.0, np.cumsum(spread_s, axis=1)[:, :-1])
        missed = np.where(self._waited_for, met - asked, 0.0)
        excess = Prices(computing=given_s - asked_s, visit=missed)
        return Valued(bound=float(gained + earned), excess=excess)

    def _drawing(self, price: Floats, alike: float) -> Floats:
        """[rows, blocks] how much of what is asked for each block draws: by its length, less where its price is higher."""
        above = price - price.min(axis=1, keepdims=True)
        return np.asarray(np.exp(-above / max(alike, _TINY)) * self._lengths_s)

    def _share(self, number: int, price: Floats, given_s: Floats, before: int) -> float:
        """Instances of which every base is awake, in the blocks from a first one on: they compute what pays best."""
        lengths_s = self._counts[number] * self._lengths_s[before:]
        best = np.argmax(price[:, before:], axis=0)
        blocks = np.arange(before, price.shape[1])
        given_s[best, blocks] += lengths_s
        return float(price[best, blocks] @ lengths_s)


def _columns(arrays: list[Any]) -> Any:
    return np.ascontiguousarray(np.stack(arrays, axis=1))


def _log2(counts: Ints) -> Ints:
    return np.array([int(count).bit_length() - 1 for count in counts.tolist()], np.int64)


def _takes_turns(kind: Kind, cell_s: float) -> bool:
    """Whether a swap takes a cell at least; shorter ones, and none, are taken for free."""
    bases = len(kind.bases)
    apart = ~np.eye(bases, dtype=np.bool_)
    return bases > 1 and bool((kind.swap_s[apart] >= cell_s).all())


class _Turns:
    """What instances of one kind, whose bases take turns, can earn up to the horizon.

    Attributes:
        waited_for: [N] requests that need a stay before the horizon.
    """

    def __init__(self, demand: Demand, kind: Kind, grid: Grid, compiled_or_not: Any):
        self._kernels = compiled_or_not
        self._cell_s, self._cells = grid.cell_s, grid.cells
        self._block_cells = grid.block_cells
        self._blocks = grid.block_of_cell
        bases, cells = len(kind.bases), grid.cells
        idle_s = kind.swap_s + kind.begin_s
        self._swap_cells = np.floor(idle_s / grid.cell_s + _ROUND).astype(np.int64)
        self._spare_s = (self._swap_cells + 1) * grid.cell_s - idle_s
        self._ready = grid.cell_at(kind.ready_s)
        self._awake = [(base, kind.awake.count(base)) for base in dict.fromkeys(kind.awake)]
        begin, end = _windows(demand, kind, grid)
        self.waited_for = kind.able & (end < cells)
        self._who = np.flatnonzero(self.waited_for)
        self._base = kind.base[self._who]
        self._begin, self._end = begin[self._who], end[self._who]
        self._order = np.lexsort((self._begin, self._base)).astype(np.int64)
        self._first = np.searchsorted(self._base[self._order], np.arange(bases + 1))
        longest = np.zeros(bases, np.int64)
        np.maximum.at(longest, self._base, self._end - self._begin)
        self._longest = longest
        shape = bases, cells
        self._ahead, self._ahead_to = np.zeros(shape), np.zeros(shape, np.int64)
        self._entered, self._entered_to = np.zeros(shape), np.zeros(shape, np.int64)
        self._stays = np.zeros((cells + 1, 3), np.int64)

    def earn(self, price: Floats, visit: Floats, given_s: Floats, met: Floats) -> float:
        """The most that the instances earn together; adds what they give to `given_s` [B, blocks] and `met` [N]."""
        worth = np.ascontiguousarray(price[:, self._blocks])
        begun, held = self._paying(visit[self._who])
        self._kernels.best_stays(
            worth, begun, held,
            self._swap_cells, self._spare_s, self._cell_s, self._ready,
            self._ahead, self._ahead_to, self._entered, self._entered_to,
        )  # fmt: skip
        awake_s, times_met = np.zeros_like(worth), np.zeros(len(self._who))
        earned = 0.0
        for base, count in self._awake:
            earned += count * float(held[base, 0] + self._ahead[base, 0])
            stays = self._kernels.follow(
                base, worth, self._swap_cells, self._spare_s, self._cell_s,
                self._ahead_to, self._entered_to, count, awake_s, self._stays,
            )  # fmt: skip
            self._kernels.meetings(
                self._stays, stays, count, self._order, self._begin[self._order], self._first,
                self._end, self._longest, times_met,
            )  # fmt: skip
        met[self._who] += times_met
        given_s += np.add.reduceat(awake_s, np.arange(0, self._cells, self._block_cells), axis=1)
        return earned

    def _paying(self, visit: Floats) -> tuple[Floats, Floats]:
        """[B, T + 1] what is paid by requests whose windows begin in each cell, and by those whose windows hold it."""
        width = self._cells + 1
        shape = len(self._longest), width
        size = shape[0] * width
        place = self._base * width
        begun = np.asarray(np.bincount(place + self._begin, visit, size).reshape(shape), float)
        ended = np.bincount(place + self._end + 1, visit, size).reshape(shape)
        # Differences of sums leave a rounding error where nothing is.
        return begun, np.maximum(0.0, np.cumsum(begun - ended, axis=1))


def _windows(demand: Demand, kind: Kind, grid: Grid) -> tuple[Ints, Ints]:
    """[N] the cells in one of which a request's base has to be awake, first and last.

    A prompt is computed within one stay. So the stay lasts until the prompt could be done from the request's release
    on, and has begun when there is just time for it before the first token is due; if the former is later, it has
    lasted from the latter on.
    """
    last_s = np.minimum(demand.first_due_s, demand.due_s - kind.rest_s) - kind.first_s
    begin = grid.cell_at(np.minimum(demand.release_s + kind.first_s, last_s))
    return begin, grid.cell_at(last_s)
