"""Annealing: moves of groups within and between queues, each refused early if it costs too much.

See `kernels` for the arrays and the rules that these functions follow.
"""

from __future__ import annotations

from qlm_core.planning.kernels import (
    BEST,
    BY_MODEL,
    CHILL,
    CHILL_STEPS,
    COST,
    DURATION,
    GROUPS,
    LENGTH,
    MODEL,
    MODEL_FROM,
    NEVER,
    OF_CLASS,
    PLACE,
    QUEUE,
    ROW,
    VALUE,
    G,
    N,
    Reals,
    Wholes,
    append,
    before_place,
    cut,
    draw,
    finish,
    keep_best,
    refresh,
    removal_gain,
    run,
)


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
                keep_best(w)
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
        keep_best(w)
    return made
