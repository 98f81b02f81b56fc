"""Prices that make a bound tight: steps against the excess of what is given over what is asked for.

Steps have a length of their own for each price, by the mean and the mean square of its excess so far (Kingma and Ba,
2015), and get shorter to the end. Any prices give a bound, so the lowest on the way is kept, and nothing depends on how
well this goes but tightness.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qlm_core.planning.problem import Floats
from qlm_core.sim.bound.relaxation import Prices, Relaxation

_MEAN, _SQUARE = 0.9, 0.99
_TINY = 1e-9
_ALIKE = 10.0
_SHARPER = 8
"""Prices that so many steps lead to are alike at first; later ever fewer, by this power of what is left of the rounds.

While they are, all that is asked for in a window is spread over it, so that prices that have to rise together do.
"""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Descended:
    """The lowest bound found, and the prices that give it."""

    bound: float
    prices: Prices


def descend(relaxation: Relaxation, start: Prices, *, rounds: int, step: float) -> Descended:
    """Lower the bound from given prices on.

    Args:
        step: the first step, as a share of a price that would take a request's whole weight.
    """
    weight = relaxation.weight
    works_s = relaxation.first_work_s[relaxation.able]
    typical_s = float(works_s.mean()) if works_s.size else 1.0
    length = step * float(weight.mean()) / max(typical_s, _TINY)
    computing = _Steps(start.computing, length)
    visit = _Steps(start.visit, step * weight[:, None])
    best = Descended(bound=np.inf, prices=start)
    prices = start
    for number in range(rounds):
        share = 1.0 - number / rounds
        valued = relaxation.value(prices, alike=_ALIKE * length * share**_SHARPER)
        if valued.bound < best.bound:
            best = Descended(bound=valued.bound, prices=prices)
        prices = Prices(
            computing=computing.next(valued.excess.computing, share),
            visit=visit.next(valued.excess.visit, share),
        )
    return best


class _Steps:
    """One kind of price on its way."""

    def __init__(self, start: Floats, length: float | Floats):
        self._at = start
        self._length = length
        self._mean, self._square = np.zeros_like(start), np.zeros_like(start)
        self._number = 0

    def next(self, excess: Floats, share: float) -> Floats:
        """The price after a step, `share` of the usual length."""
        self._number += 1
        self._mean = _MEAN * self._mean + (1.0 - _MEAN) * excess
        self._square = _SQUARE * self._square + (1.0 - _SQUARE) * excess**2
        mean = self._mean / (1.0 - _MEAN**self._number)
        square = self._square / (1.0 - _SQUARE**self._number)
        step = share * self._length * mean / (np.sqrt(square) + _TINY)
        self._at = np.maximum(0.0, self._at - step)
        return self._at
