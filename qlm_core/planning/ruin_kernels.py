"""Ruin and recreate: take some groups out of a few queues and put each back where it costs least.

See `kernels` for the arrays and the rules that these functions follow.
"""

from __future__ import annotations

from qlm_core.planning.kernels import (
    BEST,
    BY_MODEL,
    CANDIDATES,
    CHILL,
    CHILL_STEPS,
    COST,
    DUE,
    DURATION,
    EARLY,
    END,
    GROUPS,
    KEY,
    LENGTH,
    MODEL,
    MODEL_FROM,
    NEVER,
    OF_CLASS,
    PLACE,
    QUEUE,
    REMOVED,
    ROW,
    SAVED_COST,
    SAVED_GROUPS,
    SAVED_LENGTH,
    TOUCHED,
    TOUCHED_LIST,
    VALUE,
    G,
    N,
    Reals,
    Wholes,
    best_place,
    cut,
    draw,
    group_cost,
    keep_best,
    put,
    refresh,
)


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


def choose_candidates(w: Wholes, queues: int, most: int) -> int:
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
        candidates = choose_candidates(w, queues, most_candidates)
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
                keep_best(w)
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
