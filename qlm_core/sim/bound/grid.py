"""Time in steps, rounded in favour of the schedule: cells for what is awake, blocks for what is computed.

Cells are equal steps up to a horizon; a block is some of them. Beyond the horizon, blocks grow, and whatever is awake there can
serve every model.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import numpy as np

from qlm_core.planning.problem import Floats, Ints

_TAIL_SHARE = 1 / 64
_TAIL_GROWTH = 1.1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Grid:
    """Cells and blocks.

    Attributes:
        block_cells: cells of a block; the last one before the horizon may have fewer.
        tail_s: [k + 1] where the blocks beyond the horizon begin, the horizon first, and where the last one ends.
    """

    cell_s: float
    cells: int
    block_cells: int
    tail_s: Floats

    @property
    def blocks_before(self) -> int:
        """Blocks up to the horizon."""
        return -(-self.cells // self.block_cells)

    @property
    def blocks(self) -> int:
        """All blocks."""
        return self.blocks_before + len(self.tail_s) - 1

    @property
    def lengths_s(self) -> Floats:
        """[blocks] how long each one is."""
        starts = np.arange(self.blocks_before) * self.block_cells
        cells = np.minimum(self.block_cells, self.cells - starts)
        return np.concatenate([cells * self.cell_s, np.diff(self.tail_s)])

    @property
    def block_of_cell(self) -> Ints:
        """[cells] the block of each cell."""
        return np.arange(self.cells) // self.block_cells

    def cell_at(self, at_s: Floats) -> Ints:
        """The cell of each instant; `cells` or more beyond the horizon."""
        return np.maximum(0, np.floor(at_s / self.cell_s)).astype(np.int64)

    def block_at(self, at_s: Floats) -> Ints:
        """The block of each instant; the last one for whatever is later."""
        cells = self.cell_at(at_s)
        beyond = np.searchsorted(self.tail_s, at_s, side="right") - 1
        later = np.minimum(self.blocks_before + np.maximum(beyond, 0), self.blocks - 1)
        return np.where(cells < self.cells, cells // self.block_cells, later)

    def taken_over(self, prices: Floats, other: Grid) -> Floats:
        """[rows, blocks] prices of another grid's blocks, as those of this one's at the same time."""
        ends_s = np.cumsum(self.lengths_s)
        return prices[:, other.block_at(ends_s - self.lengths_s / 2)]


def make_grid(*, horizon_s: float, last_s: float, cell_s: float, block_s: float) -> Grid:
    """A grid up to a horizon, with growing blocks from there to the last instant of interest."""
    cells = max(1, ceil(horizon_s / cell_s))
    edges, step = [cells * cell_s], horizon_s * _TAIL_SHARE
    while edges[-1] <= last_s:
        edges.append(edges[-1] + step)
        step *= _TAIL_GROWTH
    return Grid(
        cell_s=cell_s,
        cells=cells,
        block_cells=max(1, round(block_s / cell_s)),
        tail_s=np.array(edges),
    )
