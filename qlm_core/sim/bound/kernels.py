"""Inner loops of the bound, as plain functions of arrays and numbers that numba can translate.

Cells are equal steps of time, [T] of them; bases are numbered from 0 to B - 1. Arrays are C-ordered. A *stay* is a time in
which one base is awake, from a first to a last cell; it *meets* a request of the base whose window of cells it overlaps. A
swap that begins in cell t ends in cell t + swap_cells or the one after it. In the cells from the one to the other the instance
computes for spare_s in all, and a cell more than that if it ends in the later one.
"""

from __future__ import annotations

from typing import Any

Array = Any
"""Of numpy; numba has its own idea of types."""

NEVER = -1e300
LITTLE = 1e-9
"""Of a sum, as much as its roundings leave some digits of."""


def before_swap(spare_s: float, cell_s: float, left: float, come: float) -> float:
    """Of the seconds of computing around a swap, those in the cell in which it begins, where the split is worth most."""
    return min(spare_s, cell_s) if left >= come else max(0.0, spare_s - cell_s)


def best_stays(
    worth: Array, begun: Array, held: Array,
    swap_cells: Array, spare_s: Array, cell_s: float, ready: Array,
    ahead: Array, ahead_to: Array, entered: Array, entered_to: Array,
) -> None:  # fmt: skip
    """The most that an instance can earn from each cell on, for each base awake; backwards in time.

    Args:
        worth: [B, T] of a second awake.
        begun: [B, T + 1] prices of requests whose window begins in the cell.
        held: [B, T + 1] prices of requests whose window holds the cell.
        swap_cells, spare_s: [B, B].
        ready: [B] the first cell in which a base can be awake after the start.
        ahead, ahead_to: [B, T] earnings of a stay that goes on in this cell, and the swap that ends it here (2 * base +
            later); -1: none.
        entered, entered_to: [B, T] the same of a stay that a swap began in this cell, whose border has been counted.
    """
    bases, cells = worth.shape
    for t in range(cells - 1, -1, -1):
        for b in range(bases):
            best, best_to = NEVER, -1
            for to in range(bases):
                if to == b:
                    continue
                for later in range(2):
                    at = t + swap_cells[b, to] + later
                    if at < cells and at >= ready[to]:
                        spare = spare_s[b, to] + later * cell_s
                        less = before_swap(spare, cell_s, worth[b, t], worth[to, at])
                        earned = less * worth[b, t] + (spare - less) * worth[to, at]
                        earned += held[to, at] + entered[to, at]
                        if earned > best:
                            best, best_to = earned, 2 * to + later
            stays = 0.0
            if t + 1 < cells:
                stays = begun[b, t + 1] + ahead[b, t + 1]
            entered[b, t], entered_to[b, t] = stays, -1
            if best > stays:
                entered[b, t], entered_to[b, t] = best, best_to
            stays += cell_s * worth[b, t]
            ahead[b, t], ahead_to[b, t] = stays, -1
            if best > stays:
                ahead[b, t], ahead_to[b, t] = best, best_to


def follow(
    first: int, worth: Array,
    swap_cells: Array, spare_s: Array, cell_s: float,
    ahead_to: Array, entered_to: Array, times: int, awake_s: Array, stays: Array,
) -> int:  # fmt: skip
    """The stays by which `best_stays` earns most from a base that is awake at the start.

    Args:
        times: how many instances follow them.
        awake_s: [B, T] gets the seconds of computing in each cell added.
        stays: [n, 3] gets base, first cell and last cell.

    Returns:
        How many stays there are.
    """
    cells = worth.shape[1]
    count, b, t, begin = 0, first, 0, 0
    to = ahead_to[b, t]
    while True:
        counted = count > 0
        while t < cells and to < 0:
            if not counted:
                awake_s[b, t] += times * cell_s
            counted = False
            t += 1
            if t < cells:
                to = ahead_to[b, t]
        stays[count, 0], stays[count, 1], stays[count, 2] = b, begin, min(t, cells - 1)
        count += 1
        if t >= cells:
            return count
        other, later = to // 2, to % 2
        back = t + swap_cells[b, other] + later
        spare = spare_s[b, other] + later * cell_s
        less = before_swap(spare, cell_s, worth[b, t], worth[other, back])
        awake_s[b, t] += times * less
        awake_s[other, back] += times * (spare - less)
        b, t, begin = other, back, back
        to = entered_to[b, t]


def meetings(
    stays: Array, count: int, times: int, order: Array, begin_of: Array, first: Array, end: Array,
    longest: Array, met: Array,
) -> None:  # fmt: skip
    """Add to met[r] `times` for each stay that meets request r.

    Args:
        order: requests by base and by the begin of their window; begin_of: the begins in that order; first: [B + 1]
            where each base begins.
        longest: [B] the longest window of each base's requests, in cells.
    """
    for i in range(count):
        b, enter, leave = stays[i, 0], stays[i, 1], stays[i, 2]
        least = enter - longest[b]
        low, high = first[b], first[b + 1]
        while low < high:
            middle = (low + high) // 2
            if begin_of[middle] < least:
                low = middle + 1
            else:
                high = middle
        at = low
        while at < first[b + 1] and begin_of[at] <= leave:
            r = order[at]
            if end[r] >= enter:
                met[r] += times
            at += 1


def lowest(price: Array, least: Array) -> None:
    """least[l, row, i]: the place of the lowest of price[row, i : i + 2 ** l]."""
    levels, rows, blocks = least.shape
    for row in range(rows):
        for i in range(blocks):
            least[0, row, i] = i
        for level in range(1, levels):
            half = 1 << (level - 1)
            for i in range(blocks - (1 << level) + 1):
                one, other = least[level - 1, row, i], least[level - 1, row, i + half]
                least[level, row, i] = one if price[row, one] <= price[row, other] else other


def cheapest(price: Array, least: Array, row: int, begin: int, end: int, level: int) -> int:
    """The place of the lowest price in begin to end, both included; `level` is the binary logarithm of how many they are."""
    one, other = least[level, row, begin], least[level, row, end - (1 << level) + 1]
    return int(one if price[row, one] <= price[row, other] else other)


def choose(
    weight: Array, able: Array, row: Array, first_work_s: Array, rest_work_s: Array, visit: Array,
    begin: Array, first_end: Array, end: Array, first_level: Array, level: Array,
    price: Array, least: Array, drawn: Array, spread_s: Array, asked_s: Array, asked: Array,
) -> float:  # fmt: skip
    """What all requests gain when each goes where it pays least, or nowhere.

    Args:
        able, row, first_work_s, rest_work_s, visit: [N, K] for each kind of instance; row is that of its base in `price`.
        begin, first_end, end: [N] the first block in which it can be computed, and the last one of its prompt and of the
            rest.
        drawn: [rows, blocks + 1] how much of all that is asked for is drawn to the blocks before each.
        spread_s: [rows, blocks + 1] changes from block to block of the seconds asked for to a unit of that.
        asked_s: [rows, blocks] gets what is asked for of the lowest price alone added.
        asked: [N, K] 1 where a request goes.
    """
    total = 0.0
    requests, kinds = able.shape
    for r in range(requests):
        gain, chosen, first_at, rest_at = 0.0, -1, 0, 0
        for k in range(kinds):
            asked[r, k] = 0.0
            if not able[r, k]:
                continue
            at = cheapest(price, least, row[r, k], begin[r], first_end[r], first_level[r])
            cost = visit[r, k] + first_work_s[r, k] * price[row[r, k], at]
            rest = at
            if rest_work_s[r, k] > 0.0:
                rest = cheapest(price, least, row[r, k], begin[r], end[r], level[r])
                cost += rest_work_s[r, k] * price[row[r, k], rest]
            if weight[r] - cost > gain:
                gain, chosen, first_at, rest_at = weight[r] - cost, k, at, rest
        if chosen >= 0:
            total += gain
            asked[r, chosen] = 1.0
            b = row[r, chosen]
            work_s = first_work_s[r, chosen]
            spread(drawn, spread_s, asked_s, b, begin[r], first_end[r], first_at, work_s)
            work_s = rest_work_s[r, chosen]
            if work_s > 0.0:
                spread(drawn, spread_s, asked_s, b, begin[r], end[r], rest_at, work_s)
    return total


def spread(
    drawn: Array, spread_s: Array, asked_s: Array,
    row: int, begin: int, end: int, lowest_at: int, work_s: float,
) -> None:  # fmt: skip
    """Ask for seconds in begin to end, both included, as the blocks draw them; at the lowest price where none draws enough."""
    share = drawn[row, end + 1] - drawn[row, begin]
    if share > LITTLE * drawn[row, -1]:
        spread_s[row, begin] += work_s / share
        spread_s[row, end + 1] -= work_s / share
    else:
        asked_s[row, lowest_at] += work_s
