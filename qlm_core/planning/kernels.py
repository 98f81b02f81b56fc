"""The inner loops of the search, as plain functions over two flat arrays.

The same source runs twice: as it stands, over Python lists, and compiled by numba, over NumPy
arrays (see `compiled`). Both give the same plans from the same seed, so nothing here may depend on
which: only + - * / and comparisons on floats, integers below 2**63, random numbers from `draw`, and
a table (CHILL) where a logarithm would be needed.

All tables of whole numbers share the array `w`, all tables of reals the array `x`: compiled code
then passes two arrays between functions, not forty. `w` begins with scalars, then with the offset
of each table in its array: entry i of the table DUE is `x[w[DUE] + i]`. Matrices are flattened by
hand. N groups, G queues, C classes, M models; row g of a queue matrix is queue g, ROW its length.
`layout` in `searcher` fills both.
"""

from __future__ import annotations

from collections.abc import MutableSequence
from typing import Any

Wholes = MutableSequence[int]
Reals = MutableSequence[float]
Numbers = MutableSequence[Any]

TOLERANCE_S = 1e-9
NEVER = 1e300
CHILL_STEPS = 1024

# Scalars of w.
N, G, M, MOVING, ROW, RNG = range(6)
"""MOVING: 1 if any group pays for leaving its home. RNG: the random word, 32 bits, never 0."""

# Offsets, in w, of tables of whole numbers that the search reads ...
HOME, MODEL, LOADED, OF_CLASS, BY_MODEL, MODEL_FROM = range(6, 12)
"""[N], [N], [G] (M = nothing), [G], [N] groups sorted by model, [M + 1] where each model starts."""

# ... and changes.
GROUPS, LENGTH, QUEUE, PLACE, KNOWN, BEST_GROUPS, BEST_LENGTH = range(12, 19)
"""[G * ROW], [G], [N], [N], [N] whether GAIN holds, and the best plan so far."""
TOUCHED, TOUCHED_LIST, REMOVED, SAVED_GROUPS, SAVED_LENGTH, CANDIDATES = range(19, 25)
"""[G] flag and [G] list of the queues that a ruin changed, [N], their former state, [G or more]."""

# Offsets, in w, of tables of reals that the search reads ...
DURATION, DUE, LATE, TARDY, EARLY, RAMP, MOVE, SWAP, BUSY, CHILL = range(25, 35)
"""[C * N] (NEVER = does not fit), [C * N] due less tail, [N] alpha W, [N] beta W, [N] eps W, [N], [N],
[C * (M + 1) * M], [G], [CHILL_STEPS] -log of evenly spaced probabilities."""

# ... and changes.
END, TOTAL, SLOPE, COST, GAIN, KEY, SAVED_COST = range(35, 42)
"""[G * ROW] end of each place, cost of the queue up to each place, least cost per second of
delaying all
from each place on; [G] cost; [N] what taking a group out saves; [N]; [G]."""

W_HEAD = 42

# Scalars of x.
KAPPA, VALUE, BEST = range(3)
"""Cost of a second of swapping, cost of the current plan and of the best."""
X_HEAD = 3


def draw(w: Wholes, n: int) -> int:
    """A random number in 0 .. n - 1 (xorshift of 32 bits, scaled)."""
    word = w[RNG]
    word ^= (word << 13) & 0xFFFFFFFF
    word ^= word >> 17
    word ^= (word << 5) & 0xFFFFFFFF
    w[RNG] = word
    return int((word * n) >> 32)


def group_cost(x: Reals, w: Wholes, i: int, due: float, t: float) -> float:
    """What group i pays when it ends at t."""
    late = t - due
    cost = x[w[EARLY] + i] * t
    if x[w[RAMP] + i] > 0.0:
        risk = late / x[w[RAMP] + i] + 0.5
        if risk >= 1.0:
            cost += x[w[LATE] + i]
        elif risk > 0.0:
            cost += x[w[LATE] + i] * risk
        if late > TOLERANCE_S:
            cost += x[w[TARDY] + i] * late
    elif late > TOLERANCE_S:
        cost += x[w[LATE] + i] + x[w[TARDY] + i] * late
    return float(cost)


def append(
    x: Reals, w: Wholes, g: int, i: int, t: float, m: int, cost: float
) -> tuple[float, float]:
    """(end, cost) of running group i on queue g from time t with model m loaded."""
    n = w[N]
    models = w[M]
    c = w[w[OF_CLASS] + g]
    own = w[w[MODEL] + i]
    if own != m:
        s = x[w[SWAP] + (c * (models + 1) + m) * models + own]
        t += s
        cost += x[KAPPA] * s
    t += x[w[DURATION] + c * n + i]
    cost += group_cost(x, w, i, x[w[DUE] + c * n + i], t)
    if w[MOVING] and w[w[HOME] + i] >= 0 and w[w[HOME] + i] != g:
        cost += x[w[MOVE] + i]
    return t, cost


def run(
    x: Reals,
    w: Wholes,
    g: int,
    source: int,
    first: int,
    last: int,
    t: float,
    m: int,
    cost: float,
    limit: float,
) -> tuple[float, int, float]:
    """Run places first .. last - 1 of queue `source` on queue g from (t, m, cost).

    Stops early, with cost NEVER, once the cost exceeds the limit.
    """
    n = w[N]
    models = w[M]
    c = w[w[OF_CLASS] + g]
    base = source * w[ROW]
    moving = w[MOVING]
    for k in range(base + first, base + last):
        i = w[w[GROUPS] + k]
        own = w[w[MODEL] + i]
        if own != m:
            swap = x[w[SWAP] + (c * (models + 1) + m) * models + own]
            t += swap
            cost += x[KAPPA] * swap
            m = own
        t += x[w[DURATION] + c * n + i]
        cost += group_cost(x, w, i, x[w[DUE] + c * n + i], t)
        if moving and w[w[HOME] + i] >= 0 and w[w[HOME] + i] != g:
            cost += x[w[MOVE] + i]
        if cost > limit:
            return t, m, NEVER
    return t, m, cost


def finish(
    x: Reals, w: Wholes, g: int, first: int, t: float, m: int, cost: float, limit: float
) -> float:
    """The cost of queue g if its places from `first` on follow (t, m, cost); NEVER above the limit."""
    length = w[w[LENGTH] + g]
    if first >= length:
        if cost > limit:
            return NEVER
        return cost
    base = g * w[ROW]
    before = x[w[BUSY] + g]
    old_model = w[w[LOADED] + g]
    rest = x[w[COST] + g]
    if first > 0:
        before = x[w[END] + base + first - 1]
        old_model = w[w[MODEL] + w[w[GROUPS] + base + first - 1]]
        rest -= x[w[TOTAL] + base + first - 1]
    delay = t - before
    if old_model != m:
        models = w[M]
        row = w[w[OF_CLASS] + g] * (models + 1)
        own = w[w[MODEL] + w[w[GROUPS] + base + first]]
        change = 0.0
        if own != m:
            change += x[w[SWAP] + (row + m) * models + own]
        if own != old_model:
            change -= x[w[SWAP] + (row + old_model) * models + own]
        delay += change
        rest += x[KAPPA] * change
    if delay >= 0.0 and cost + rest + delay * x[w[SLOPE] + base + first] > limit:
        return NEVER
    _, _, cost = run(x, w, g, g, first, length, t, m, cost, limit)
    return cost


def before_place(x: Reals, w: Wholes, g: int, k: int) -> tuple[float, int, float]:
    """(time, model, cost) of queue g just before place k."""
    if k == 0:
        return x[w[BUSY] + g], w[w[LOADED] + g], 0.0
    at = g * w[ROW] + k - 1
    return x[w[END] + at], w[w[MODEL] + w[w[GROUPS] + at]], x[w[TOTAL] + at]


def refresh(x: Reals, w: Wholes, g: int, first: int) -> float:
    """Recompute the timeline of queue g from a place on; returns and stores its cost."""
    n = w[N]
    c = w[w[OF_CLASS] + g]
    base = g * w[ROW]
    length = w[w[LENGTH] + g]
    t, m, cost = before_place(x, w, g, first)
    for k in range(first, length):
        i = w[w[GROUPS] + base + k]
        t, cost = append(x, w, g, i, t, m, cost)
        m = w[w[MODEL] + i]
        x[w[END] + base + k] = t
        x[w[TOTAL] + base + k] = cost
        w[w[QUEUE] + i] = g
        w[w[PLACE] + i] = k
    x[w[COST] + g] = cost
    slope = 0.0
    for k in range(length - 1, -1, -1):
        i = w[w[GROUPS] + base + k]
        slope += x[w[EARLY] + i]
        if x[w[END] + base + k] - x[w[DUE] + c * n + i] > TOLERANCE_S:
            slope += x[w[TARDY] + i]
        x[w[SLOPE] + base + k] = slope
        w[w[KNOWN] + i] = 0
    return cost


def reset(x: Reals, w: Wholes) -> None:
    """Take the plan in `groups` and `length` as the current and the best one."""
    value = 0.0
    for g in range(w[G]):
        value += refresh(x, w, g, 0)
    x[VALUE] = value
    x[BEST] = value
    keep_best(w)


def keep_best(w: Wholes) -> None:
    """Copy the current plan over the best."""
    width = w[ROW]
    for g in range(w[G]):
        w[w[BEST_LENGTH] + g] = w[w[LENGTH] + g]
        for k in range(g * width, g * width + w[w[LENGTH] + g]):
            w[w[BEST_GROUPS] + k] = w[w[GROUPS] + k]


def return_to_best(x: Reals, w: Wholes) -> None:
    """Copy the best plan over the current."""
    width = w[ROW]
    value = 0.0
    for g in range(w[G]):
        w[w[LENGTH] + g] = w[w[BEST_LENGTH] + g]
        for k in range(g * width, g * width + w[w[LENGTH] + g]):
            w[w[GROUPS] + k] = w[w[BEST_GROUPS] + k]
        value += refresh(x, w, g, 0)
    x[VALUE] = value


def removal_gain(x: Reals, w: Wholes, i: int) -> float:
    """What the plan costs less without group i."""
    if not w[w[KNOWN] + i]:
        g = w[w[QUEUE] + i]
        k = w[w[PLACE] + i]
        t, m, cost = before_place(x, w, g, k)
        _, _, cost = run(x, w, g, g, k + 1, w[w[LENGTH] + g], t, m, cost, NEVER)
        x[w[GAIN] + i] = x[w[COST] + g] - cost
        w[w[KNOWN] + i] = 1
    return float(x[w[GAIN] + i])


def best_place(x: Reals, w: Wholes, g: int, i: int, bound: float) -> tuple[float, int]:
    """The cheapest place for group i on queue g: (extra cost, place); place -1 if none is < bound."""
    n = w[N]
    length = w[w[LENGTH] + g]
    if x[w[DURATION] + w[w[OF_CLASS] + g] * n + i] >= NEVER or length + 2 > w[ROW]:
        return NEVER, -1
    found = -1
    for k in range(length + 1):
        t, m, cost = before_place(x, w, g, k)
        t, cost = append(x, w, g, i, t, m, cost)
        limit = bound + x[w[COST] + g]
        if cost >= limit:
            continue
        cost = finish(x, w, g, k, t, w[w[MODEL] + i], cost, limit)
        if cost < limit:
            bound = cost - x[w[COST] + g]
            found = k
    if found < 0:
        return NEVER, -1
    return bound, found


def put(x: Reals, w: Wholes, g: int, k: int, i: int) -> None:
    """Insert group i at place k of queue g."""
    base = g * w[ROW]
    for q in range(base + w[w[LENGTH] + g], base + k, -1):
        w[w[GROUPS] + q] = w[w[GROUPS] + q - 1]
    w[w[GROUPS] + base + k] = i
    w[w[LENGTH] + g] += 1
    refresh(x, w, g, k)


def cut(w: Wholes, g: int, first: int, last: int) -> None:
    """Remove places first .. last - 1 of queue g (without refreshing it)."""
    base = g * w[ROW]
    for k in range(base + last, base + w[w[LENGTH] + g]):
        w[w[GROUPS] + k - (last - first)] = w[w[GROUPS] + k]
    w[w[LENGTH] + g] -= last - first


def insert_in_order(x: Reals, w: Wholes, order: Numbers, sample: int) -> int:
    """Put the groups of `order` one by one where they cost least; returns how many found no place.

    With a sample > 0 each group looks at so many queues drawn at random, and at all only if it fits
    on none of these.
    """
    failed = 0
    for i in order:
        bound = NEVER
        queue = -1
        place = -1
        for _ in range(sample):
            g = draw(w, w[G])
            cost, k = best_place(x, w, g, i, bound)
            if k >= 0:
                bound = cost
                queue = g
                place = k
        if queue < 0:
            for g in range(w[G]):
                cost, k = best_place(x, w, g, i, bound)
                if k >= 0:
                    bound = cost
                    queue = g
                    place = k
        if queue < 0:
            failed += 1
        else:
            put(x, w, queue, place, i)
    return failed


def insert_by_regret(x: Reals, w: Wholes, extra: Numbers, places: Numbers, todo: Numbers) -> int:
    """Regret-2 insertion of the groups of `todo`; extra and places are [N * G] scratch tables."""
    queues = w[G]
    left = len(todo)
    for z in range(left):
        i = todo[z]
        for g in range(queues):
            cost, k = best_place(x, w, g, i, NEVER)
            extra[i * queues + g] = cost
            places[i * queues + g] = k
    while left > 0:
        chosen = -1
        most = -1.0
        queue = -1
        for z in range(left):
            i = todo[z]
            best = NEVER
            second = NEVER
            at = -1
            for g in range(queues):
                cost = extra[i * queues + g]
                if cost < best:
                    second = best
                    best = cost
                    at = g
                elif cost < second:
                    second = cost
            if second - best > most and at >= 0:
                most = second - best
                chosen = z
                queue = at
        if chosen < 0:
            return left
        i = todo[chosen]
        left -= 1
        todo[chosen] = todo[left]
        put(x, w, queue, places[i * queues + queue], i)
        for z in range(left):
            j = todo[z]
            cost, k = best_place(x, w, queue, j, NEVER)
            extra[j * queues + queue] = cost
            places[j * queues + queue] = k
    return 0
