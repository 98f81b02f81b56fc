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
    keep_best(x, w)


def keep_best(x: Reals, w: Wholes) -> None:
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


def insert_in_order(x: Reals, w: Wholes, order: Numbers) -> int:
    """Put the groups of `order` one by one where they cost least; returns how many found no place."""
    failed = 0
    for i in order:
        bound = NEVER
        queue = -1
        place = -1
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


def relocate(x: Reals, w: Wholes, i: int, many: int, h: int, k: int, threshold: float) -> float:
    """Move `many` groups from i on to place k of queue h if that costs less than the threshold
    more.

    Returns the change of cost, NEVER if refused.
    """
    g = w[w[QUEUE] + i]
    a = w[w[PLACE] + i]
    if g == h:
        if a <= k <= a + many:
            return NEVER
        return relocate_inside(x, w, g, a, many, k, threshold)
    n = w[N]
    base = g * w[ROW]
    for q in range(base + a, base + a + many):
        if x[w[DURATION] + w[w[OF_CLASS] + h] * n + w[w[GROUPS] + q]] >= NEVER:
            return NEVER
    if w[w[LENGTH] + h] + many + 1 > w[ROW]:
        return NEVER
    if many == 1:
        gain = removal_gain(x, w, i)
    else:
        t, m, cost = before_place(x, w, g, a)
        _, _, cost = run(x, w, g, g, a + many, w[w[LENGTH] + g], t, m, cost, NEVER)
        gain = x[w[COST] + g] - cost
    limit = x[w[COST] + h] + gain + threshold
    t, m, cost = before_place(x, w, h, k)
    t, m, cost = run(x, w, h, g, a, a + many, t, m, cost, limit)
    if cost > limit:
        return NEVER
    cost = finish(x, w, h, k, t, m, cost, limit)
    if cost > limit:
        return NEVER
    change = cost - x[w[COST] + h] - gain
    target = h * w[ROW]
    for q in range(target + w[w[LENGTH] + h] - 1, target + k - 1, -1):
        w[w[GROUPS] + q + many] = w[w[GROUPS] + q]
    for q in range(many):
        w[w[GROUPS] + target + k + q] = w[w[GROUPS] + base + a + q]
    w[w[LENGTH] + h] += many
    cut(w, g, a, a + many)
    refresh(x, w, g, a)
    refresh(x, w, h, k)
    return change


def relocate_inside(
    x: Reals, w: Wholes, g: int, a: int, many: int, k: int, threshold: float
) -> float:
    """Move `many` groups from place a to before place k of the same queue (k outside of them)."""
    limit = x[w[COST] + g] + threshold
    base = g * w[ROW]
    first = min(a, k)
    t, m, cost = before_place(x, w, g, first)
    if k < a:
        t, m, cost = run(x, w, g, g, a, a + many, t, m, cost, limit)
        if cost > limit:
            return NEVER
        t, m, cost = run(x, w, g, g, k, a, t, m, cost, limit)
        after = a + many
    else:
        t, m, cost = run(x, w, g, g, a + many, k, t, m, cost, limit)
        if cost > limit:
            return NEVER
        t, m, cost = run(x, w, g, g, a, a + many, t, m, cost, limit)
        after = k
    if cost > limit:
        return NEVER
    cost = finish(x, w, g, after, t, m, cost, limit)
    if cost > limit:
        return NEVER
    change = cost - x[w[COST] + g]
    for _ in range(many):
        if k < a:
            i = w[w[GROUPS] + base + a + many - 1]
            for q in range(base + a + many - 1, base + k, -1):
                w[w[GROUPS] + q] = w[w[GROUPS] + q - 1]
            w[w[GROUPS] + base + k] = i
        else:
            i = w[w[GROUPS] + base + a]
            for q in range(base + a, base + k - 1):
                w[w[GROUPS] + q] = w[w[GROUPS] + q + 1]
            w[w[GROUPS] + base + k - 1] = i
    refresh(x, w, g, first)
    return change


def exchange(x: Reals, w: Wholes, i: int, j: int, threshold: float) -> float:
    """Let groups i and j of different queues change places."""
    n = w[N]
    g = w[w[QUEUE] + i]
    h = w[w[QUEUE] + j]
    if (
        x[w[DURATION] + w[w[OF_CLASS] + h] * n + i] >= NEVER
        or x[w[DURATION] + w[w[OF_CLASS] + g] * n + j] >= NEVER
    ):
        return NEVER
    a = w[w[PLACE] + i]
    b = w[w[PLACE] + j]
    limit = x[w[COST] + g] + x[w[COST] + h] + threshold
    t, m, other = before_place(x, w, h, b)
    t, m, one = before_place(x, w, g, a)
    t, one = append(x, w, g, j, t, m, one)
    one = finish(x, w, g, a + 1, t, w[w[MODEL] + j], one, limit - other)
    if one >= NEVER:
        return NEVER
    t, m, other = before_place(x, w, h, b)
    t, other = append(x, w, h, i, t, m, other)
    other = finish(x, w, h, b + 1, t, w[w[MODEL] + i], other, limit - one)
    if one + other > limit:
        return NEVER
    change = one + other - x[w[COST] + g] - x[w[COST] + h]
    w[w[GROUPS] + g * w[ROW] + a] = j
    w[w[GROUPS] + h * w[ROW] + b] = i
    refresh(x, w, g, a)
    refresh(x, w, h, b)
    return change


def exchange_inside(x: Reals, w: Wholes, i: int, j: int, threshold: float) -> float:
    """Let groups i and j of one queue change places."""
    g = w[w[QUEUE] + i]
    a = w[w[PLACE] + i]
    b = w[w[PLACE] + j]
    if a > b:
        a, b = b, a
        i, j = j, i
    limit = x[w[COST] + g] + threshold
    t, m, cost = before_place(x, w, g, a)
    t, cost = append(x, w, g, j, t, m, cost)
    t, m, cost = run(x, w, g, g, a + 1, b, t, w[w[MODEL] + j], cost, limit)
    if cost > limit:
        return NEVER
    t, cost = append(x, w, g, i, t, m, cost)
    cost = finish(x, w, g, b + 1, t, w[w[MODEL] + i], cost, limit)
    if cost > limit:
        return NEVER
    change = cost - x[w[COST] + g]
    w[w[GROUPS] + g * w[ROW] + a] = j
    w[w[GROUPS] + g * w[ROW] + b] = i
    refresh(x, w, g, a)
    return change


def cross(x: Reals, w: Wholes, g: int, a: int, h: int, b: int, threshold: float) -> float:
    """Let queue g from place a on and queue h from place b on change their tails (2-opt*)."""
    n = w[N]
    width = w[ROW]
    tail_g = w[w[LENGTH] + g] - a
    tail_h = w[w[LENGTH] + h] - b
    if a + tail_h + 1 > width or b + tail_g + 1 > width or tail_g + tail_h == 0:
        return NEVER
    if w[w[OF_CLASS] + g] != w[w[OF_CLASS] + h]:
        for k in range(a, w[w[LENGTH] + g]):
            if x[w[DURATION] + w[w[OF_CLASS] + h] * n + w[w[GROUPS] + g * width + k]] >= NEVER:
                return NEVER
        for k in range(b, w[w[LENGTH] + h]):
            if x[w[DURATION] + w[w[OF_CLASS] + g] * n + w[w[GROUPS] + h * width + k]] >= NEVER:
                return NEVER
    limit = x[w[COST] + g] + x[w[COST] + h] + threshold
    _, _, other = before_place(x, w, h, b)
    t, m, one = before_place(x, w, g, a)
    t, m, one = run(x, w, g, h, b, w[w[LENGTH] + h], t, m, one, limit - other)
    if one >= NEVER:
        return NEVER
    t, m, other = before_place(x, w, h, b)
    t, m, other = run(x, w, h, g, a, w[w[LENGTH] + g], t, m, other, limit - one)
    if other >= NEVER:
        return NEVER
    change = one + other - x[w[COST] + g] - x[w[COST] + h]
    longer = max(tail_g, tail_h)
    for k in range(longer):
        i = w[w[GROUPS] + g * width + a + k]
        w[w[GROUPS] + g * width + a + k] = w[w[GROUPS] + h * width + b + k]
        w[w[GROUPS] + h * width + b + k] = i
    w[w[LENGTH] + g] = a + tail_h
    w[w[LENGTH] + h] = b + tail_g
    refresh(x, w, g, a)
    refresh(x, w, h, b)
    return change


def try_move(x: Reals, w: Wholes, threshold: float) -> float:
    """Draw one move and make it if it costs less than the threshold more; returns its change."""
    n = w[N]
    i = draw(w, n)
    g = w[w[QUEUE] + i]
    a = w[w[PLACE] + i]
    kind = draw(w, 100)
    if draw(w, 2) == 0:
        m = w[w[MODEL] + i]
        first = w[w[MODEL_FROM] + m]
        j = w[w[BY_MODEL] + first + draw(w, w[w[MODEL_FROM] + m + 1] - first)]
    else:
        j = draw(w, n)
    h = w[w[QUEUE] + j]
    b = w[w[PLACE] + j]
    if kind < 55:
        many = 1
        if draw(w, 10) < 3:
            many = min(1 + draw(w, 4), w[w[LENGTH] + g] - a)
        if draw(w, n + w[G]) >= n:
            h = draw(w, w[G])
            return relocate(x, w, i, many, h, w[w[LENGTH] + h], threshold)
        return relocate(x, w, i, many, h, b + draw(w, 2), threshold)
    if i == j:
        return NEVER
    if kind < 90:
        if g == h:
            return exchange_inside(x, w, i, j, threshold)
        return exchange(x, w, i, j, threshold)
    if g == h:
        return NEVER
    return cross(x, w, g, a, h, b + draw(w, 2), threshold)


def anneal(x: Reals, w: Wholes, moves: int, hot: float, cooling: float) -> int:
    """Simulated annealing from the current plan; returns how many moves were made.

    The temperature starts at `hot` and is multiplied by `cooling` at every move.
    """
    temperature = hot
    unsaved = False
    made = 0
    for _ in range(moves):
        threshold = temperature * x[w[CHILL] + draw(w, CHILL_STEPS)]
        temperature *= cooling
        if unsaved:
            # A worsening move would lose the best plan: save it only then, and try the move again.
            change = try_move(x, w, -1e-9)
            if change >= NEVER:
                keep_best(x, w)
                unsaved = False
        else:
            change = try_move(x, w, threshold)
        if change < NEVER:
            made += 1
            x[VALUE] += change
            if x[VALUE] < x[BEST] - 1e-7:
                x[BEST] = x[VALUE]
                unsaved = True
    if unsaved:
        keep_best(x, w)
    return made


def ruin(x: Reals, w: Wholes, most_queues: int, most_groups: int) -> tuple[int, int]:
    """Take strings, model blocks or scattered groups out of a few queues: (queues, groups) taken."""
    n = w[N]
    width = w[ROW]
    seed = draw(w, n)
    if draw(w, 2) == 0:
        # A tournament: groups that cost much are more often at fault.
        for _ in range(2):
            j = draw(w, n)
            if own_cost(x, w, j) > own_cost(x, w, seed):
                seed = j
    kind = draw(w, 100)
    queues = 0
    removed = 0
    wanted = 1 + draw(w, most_queues)
    for r in range(wanted):
        i = seed
        if r > 0:
            i = draw(w, n)
            if draw(w, 2) == 0:
                m = w[w[MODEL] + seed]
                first = w[w[MODEL_FROM] + m]
                i = w[w[BY_MODEL] + first + draw(w, w[w[MODEL_FROM] + m + 1] - first)]
        g = w[w[QUEUE] + i]
        if w[w[TOUCHED] + g]:
            continue
        remember(x, w, g, queues)
        queues += 1
        a = w[w[PLACE] + i]
        e = a + 1
        length = w[w[LENGTH] + g]
        base = g * width
        if kind < 60:
            many = 1 + draw(w, min(most_groups, length))
            a = max(0, min(a - draw(w, many), length - many))
            e = a + many
        elif kind < 75:
            while (
                a > 0
                and w[w[MODEL] + w[w[GROUPS] + base + a - 1]] == w[w[MODEL] + i]
                and e - a < 12
            ):
                a -= 1
            while (
                e < length
                and w[w[MODEL] + w[w[GROUPS] + base + e]] == w[w[MODEL] + i]
                and e - a < 12
            ):
                e += 1
        for k in range(a, e):
            w[w[REMOVED] + removed] = w[w[GROUPS] + base + k]
            removed += 1
        cut(w, g, a, e)
        first = a
        if kind >= 75 and w[w[LENGTH] + g] > 1:
            first = 0
            for _ in range(draw(w, min(most_groups, w[w[LENGTH] + g]))):
                k = draw(w, w[w[LENGTH] + g])
                w[w[REMOVED] + removed] = w[w[GROUPS] + base + k]
                removed += 1
                cut(w, g, k, k + 1)
        refresh(x, w, g, first)
    return queues, removed


def own_cost(x: Reals, w: Wholes, i: int) -> float:
    """What group i itself pays where it stands."""
    g = w[w[QUEUE] + i]
    t = x[w[END] + g * w[ROW] + w[w[PLACE] + i]]
    return group_cost(x, w, i, x[w[DUE] + w[w[OF_CLASS] + g] * w[N] + i], t)


def remember(x: Reals, w: Wholes, g: int, number: int) -> None:
    """Save queue g so that it can be restored."""
    w[w[TOUCHED] + g] = 1
    w[w[TOUCHED_LIST] + number] = g
    w[w[SAVED_LENGTH] + g] = w[w[LENGTH] + g]
    x[w[SAVED_COST] + g] = x[w[COST] + g]
    base = g * w[ROW]
    for k in range(base, base + w[w[LENGTH] + g]):
        w[w[SAVED_GROUPS] + k] = w[w[GROUPS] + k]


def sort_removed(x: Reals, w: Wholes, removed: int) -> None:
    """Put the removed groups into one of a few orders of insertion."""
    n = w[N]
    kind = draw(w, 100)
    for r in range(removed):
        i = w[w[REMOVED] + r]
        c = w[w[OF_CLASS] + w[w[QUEUE] + i]]
        if kind < 30:
            key = float(draw(w, 1 << 30))
        elif kind < 50:
            key = x[w[DUE] + c * n + i]
        elif kind < 75:
            key = -x[w[EARLY] + i] / (x[w[DURATION] + c * n + i] + 1e-9)
        elif kind < 90:
            key = -x[w[EARLY] + i]
        else:
            key = -x[w[DURATION] + c * n + i]
        q = r - 1
        while q >= 0 and x[w[KEY] + q] > key:
            x[w[KEY] + q + 1] = x[w[KEY] + q]
            w[w[REMOVED] + q + 1] = w[w[REMOVED] + q]
            q -= 1
        x[w[KEY] + q + 1] = key
        w[w[REMOVED] + q + 1] = i


def choose_candidates(x: Reals, w: Wholes, queues: int, most: int) -> int:
    """Fill `candidates` with the queues that removed groups may go to."""
    total = w[G]
    if total <= most:
        for g in range(total):
            w[w[CANDIDATES] + g] = g
        return int(total)
    for r in range(queues):
        w[w[CANDIDATES] + r] = w[w[TOUCHED_LIST] + r]
    for r in range(queues, most):
        w[w[CANDIDATES] + r] = draw(w, total)
    return most


def recreate(x: Reals, w: Wholes, queues: int, removed: int, candidates: int) -> int:
    """Insert the removed groups greedily, now and then blind to a queue: queues touched, -1 if
    stuck.
    """
    for r in range(removed):
        i = w[w[REMOVED] + r]
        bound = NEVER
        queue = -1
        place = -1
        for q in range(candidates):
            g = w[w[CANDIDATES] + q]
            if draw(w, 100) < 3:
                continue
            cost, k = best_place(x, w, g, i, bound)
            if k >= 0:
                bound = cost
                queue = g
                place = k
        if queue < 0:
            return -1 - queues
        if not w[w[TOUCHED] + queue]:
            remember(x, w, queue, queues)
            queues += 1
        put(x, w, queue, place, i)
    return queues


def ruin_and_recreate(
    x: Reals,
    w: Wholes,
    rounds: int,
    hot: float,
    cooling: float,
    most_queues: int,
    most_candidates: int,
) -> int:
    """Ruin and recreate with annealed acceptance; returns how many rounds were accepted."""
    temperature = hot
    accepted = 0
    width = w[ROW]
    for _ in range(rounds):
        threshold = temperature * x[w[CHILL] + draw(w, CHILL_STEPS)]
        temperature *= cooling
        queues, removed = ruin(x, w, most_queues, 6)
        sort_removed(x, w, removed)
        candidates = choose_candidates(x, w, queues, most_candidates)
        queues = recreate(x, w, queues, removed, candidates)
        stuck = queues < 0
        if stuck:
            queues = -1 - queues
        value = 0.0
        for r in range(queues):
            g = w[w[TOUCHED_LIST] + r]
            value += x[w[COST] + g] - x[w[SAVED_COST] + g]
        if not stuck and value < threshold:
            accepted += 1
            x[VALUE] += value
            if x[VALUE] < x[BEST] - 1e-7:
                x[BEST] = x[VALUE]
                keep_best(x, w)
        else:
            for r in range(queues):
                g = w[w[TOUCHED_LIST] + r]
                w[w[LENGTH] + g] = w[w[SAVED_LENGTH] + g]
                for k in range(g * width, g * width + w[w[LENGTH] + g]):
                    w[w[GROUPS] + k] = w[w[SAVED_GROUPS] + k]
                refresh(x, w, g, 0)
        for r in range(queues):
            w[w[TOUCHED] + w[w[TOUCHED_LIST] + r]] = 0
    return accepted
