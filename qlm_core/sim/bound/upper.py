"""How much of a workload any policy can serve in time on a scenario's fleet, at the most.

First whatever is late alone on an idle fleet is left out. Then prices are sought, once with all models of an instance
awake at once, which tells what computing allows, and once with swaps. Blocks of time get shorter on the way: few prices
find their level soon, and many begin at it. Every bound on the way is sound, so the lowest counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import ceil, floor

import numpy as np

from qlm_core.planning.problem import Floats
from qlm_core.sim.bound.demand import Demand, demand_of
from qlm_core.sim.bound.descent import descend
from qlm_core.sim.bound.grid import Grid, make_grid
from qlm_core.sim.bound.relaxation import Prices, Relaxation
from qlm_core.sim.scenario import Scenario, requests
from qlm_core.sim.workload import WorkloadRequest

_FOLLOWED_S = 60.0
"""So long after the last arrival, or to the end of all windows, stays are followed; beyond that every model is awake."""

_BLOCK_S = 1.0
_BLOCKS_PER_WINDOW = 10
_BLOCKS_MAX = 1500
"""Blocks are short enough for the tightest window at last, as far as their number goes."""

_CELL_S = 0.02
_CELLS_PER_SWAP = 8
_ARCS = 200_000
_ARCS_MAX = 4_000_000
"""Cells are short, as far as the number of swaps looked at goes, and a few to a swap, as far as that goes in any case."""

_COARSE_BLOCKS = 48
_FINER = 4.0
_STEPS = (0.05, 0.02, 0.01)
"""Blocks are an even part of the time at first, and get shorter by a factor; so do steps."""

ROUNDS = 150
_ROUNDS_MIN = 20
_WORK_MAX = 150_000_000
"""Rounds of each grid; fewer where so many swaps and requests would be looked at in them."""

_EXACT = 1e-9
_WHOLE_MAX = 2.0**53
"""Up to here floats count in ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """Of attainment, weighted as classes are and plain, 0 to 1."""

    weighted: float
    plain: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """What no policy exceeds.

    Attributes:
        weighted, plain: attainment, 0 to 1.
        alone: were each request alone on the fleet, its model awake as it comes.
        unswapped: were all models of an instance awake at once.
    """

    weighted: float
    plain: float
    alone: Shares
    unswapped: Shares


def upper_bound(
    scenario: Scenario,
    seed: int,
    *,
    workload: Iterable[WorkloadRequest] | None = None,
    model_len: Mapping[str, int] | None = None,
    rounds: int = ROUNDS,
) -> Bound:
    """The bound of a scenario with the requests of a seed, or with a workload of one's own.

    Args:
        model_len: as of `World`.
        rounds: on each of three grids; fewer are quicker, and the bound is looser.

    Raises:
        ConfigError: there are no requests, or too many.
    """
    asked = requests(scenario, seed=seed) if workload is None else workload
    demand = demand_of(scenario, asked, model_len=model_len)
    weighted = _lowered(demand, demand.weight, rounds)
    if (demand.weight == demand.weight[0]).all():
        plain = weighted
    else:
        plain = _lowered(demand, np.ones(demand.requests), rounds)
    alone, unswapped, bound = (
        Shares(weighted=one, plain=other) for one, other in zip(weighted, plain, strict=True)
    )
    return Bound(weighted=bound.weighted, plain=bound.plain, alone=alone, unswapped=unswapped)


def _lowered(demand: Demand, weight: Floats, rounds: int) -> tuple[float, float, float]:
    """Shares of a weight that can be in time: of each request alone, without swaps, and with them."""
    able = demand.able
    alone = float(weight[able].sum())
    unswapped = bound = alone
    if able.any():
        unswapped = min(alone, _descended(demand, weight, rounds, swaps=False))
        bound = unswapped
        if any(len(kind.bases) > 1 for kind in demand.kinds):
            bound = min(unswapped, _descended(demand, weight, rounds, swaps=True))
    a, b, c = (_share(one, weight) for one in (alone, unswapped, bound))
    return a, b, c


def _descended(demand: Demand, weight: Floats, rounds: int, *, swaps: bool) -> float:
    """The lowest bound on ever finer grids."""
    lowest = float(weight.sum())
    start: tuple[Grid, Prices] | None = None
    for number, step in enumerate(_STEPS):
        grid = _grid(demand, finer=_FINER ** (number - len(_STEPS) + 1), swaps=swaps)
        relaxation = Relaxation(demand, grid, weight, swaps=swaps)
        prices = relaxation.free()
        if start is not None:
            before, found = start
            computing = grid.taken_over(found.computing, before)
            prices = Prices(computing=computing, visit=found.visit)
        most = min(rounds, _rounds(demand, grid, swaps=swaps))
        descended = descend(relaxation, prices, rounds=most, step=step)
        lowest = min(lowest, descended.bound)
        start = grid, descended.prices
    return lowest


def _share(bound: float, weight: Floats) -> float:
    """The share of all weight; rounded down to what whole requests can come to, where weights are whole numbers."""
    total = float(weight.sum())
    if total <= 0.0:
        return 0.0
    bound = bound + _EXACT * total
    if (weight == np.round(weight)).all() and total < _WHOLE_MAX:
        unit = int(np.gcd.reduce(weight.astype(np.int64)))
        bound = floor(bound / unit) * unit
    return min(1.0, bound / total)


def _grid(demand: Demand, *, finer: float, swaps: bool) -> Grid:
    """The grid of a stage: `finer` is 1 at last, and less before."""
    able, last_due_s = demand.able, demand.last_due_s
    window_s = float((last_due_s - demand.release_s)[able].max())
    horizon_s = max(1.0, float(demand.release_s.max()) + min(window_s, _FOLLOWED_S))
    tightest_s = float((demand.first_due_s - demand.release_s)[able].min())
    block_s = max(min(_BLOCK_S, tightest_s / _BLOCKS_PER_WINDOW), horizon_s / _BLOCKS_MAX)
    if finer < 1.0:
        even_s = horizon_s / _COARSE_BLOCKS * (_FINER ** (1 - len(_STEPS)) / finer)
        block_s = max(block_s, even_s)
    cell_s = block_s
    if swaps:
        cell_s = min(block_s, _cell_s(demand, horizon_s) / finer)
    return make_grid(
        horizon_s=horizon_s,
        last_s=float(last_due_s.max()),
        cell_s=cell_s,
        block_s=block_s,
    )


def _cell_s(demand: Demand, horizon_s: float) -> float:
    """Cells of the last stage."""
    swaps_s = [
        float(kind.swap_s[~np.eye(len(kind.bases), dtype=np.bool_)].min()) / _CELLS_PER_SWAP
        for kind in demand.kinds
        if len(kind.bases) > 1
    ]
    all_s = horizon_s * _arcs(demand)
    wanted_s = max(_CELL_S, all_s / _ARCS)
    return max(min([wanted_s, *(one for one in swaps_s if one >= _CELL_S)]), all_s / _ARCS_MAX)


def _arcs(demand: Demand) -> int:
    """How many swaps are looked at in each cell."""
    return sum(2 * len(kind.bases) * (len(kind.bases) - 1) for kind in demand.kinds)


def _rounds(demand: Demand, grid: Grid, *, swaps: bool) -> int:
    """As many rounds as the work of one allows."""
    arcs = _arcs(demand) * grid.cells if swaps else 0
    looked_at = arcs + 20 * demand.requests * len(demand.kinds)
    return max(_ROUNDS_MIN, ceil(_WORK_MAX / looked_at))
