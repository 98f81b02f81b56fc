"""The inner loops of the bound: one backward dynamic program prices all queues of a class.

Plain functions over flat arrays, run interpreted or compiled like `kernels`. For given prices of
the groups, the program finds from every tick and loaded model the cheapest way on (cost of the
groups run less their prices); groups may repeat, but not twice in a row. Times are rounded down to
ticks, so its values are bounds whatever the data.
"""

from __future__ import annotations

from collections.abc import MutableSequence

Wholes = MutableSequence[int]
Reals = MutableSequence[float]

TOLERANCE_S = 1e-9
STOP = -1
"""First action: end the queue here. Actions >= 0 run that group, -2 - m swap to model m."""


def cost_at(end: float, due: float, late: float, tardy: float, early: float, ramp: float) -> float:
    """What a group pays when it ends then (as `kernels.group_cost`)."""
    over = end - due
    cost = early * end
    if ramp > 0.0:
        risk = over / ramp + 0.5
        if risk >= 1.0:
            cost += late
        elif risk > 0.0:
            cost += late * risk
        if over > TOLERANCE_S:
            cost += tardy * over
    elif over > TOLERANCE_S:
        cost += late + tardy * over
    return cost


def latest_starts(
    price: Reals,
    ticks: Wholes,
    due: Reals,
    late: Reals,
    tardy: Reals,
    early: Reals,
    ramp: Reals,
    horizon: int,
    tick_s: float,
    starts: Wholes,
) -> None:
    """The last tick at which starting each group pays at its price; -1 if never.

    A group that does not pay can be left out of any sequence without loss, provided that going
    through its model is no short cut between two others.
    """
    for i in range(len(price)):
        low = -1
        high = horizon
        while high - low > 1:
            middle = (low + high) // 2
            end = (middle + ticks[i]) * tick_s
            if cost_at(end, due[i], late[i], tardy[i], early[i], ramp[i]) < price[i]:
                low = middle
            else:
                high = middle
        starts[i] = low


def backward(
    horizon: int,
    tick_s: float,
    models: int,
    model_from: Wholes,
    jobs: Wholes,
    starts: Wholes,
    ticks: Wholes,
    price: Reals,
    due: Reals,
    late: Reals,
    tardy: Reals,
    early: Reals,
    ramp: Reals,
    swap_ticks: Wholes,
    swap_cost: Reals,
    beyond: float,
    value: Reals,
    second: Reals,
    action: Wholes,
    other: Wholes,
) -> None:
    """Fill the tables [M * horizon]: best value and action, and the best that starts otherwise.

    Groups (`jobs` and the arrays beside it) come sorted by model, then by latest start, last first.
    `beyond` bounds the value of anything that happens after the horizon.
    """
    for t in range(horizon - 1, -1, -1):
        for m in range(models):
            best = 0.0
            first = STOP
            runner_up = 0.0
            runner_first = STOP
            row = m * horizon
            for z in range(model_from[m], model_from[m + 1]):
                if starts[z] < t:
                    break
                i = jobs[z]
                q = t + ticks[z]
                if q < horizon:
                    v = value[row + q]
                    if action[row + q] == i:
                        v = second[row + q]
                else:
                    v = beyond
                end = q * tick_s
                over = end - due[z]
                v += early[z] * end - price[z]
                if ramp[z] > 0.0:
                    risk = over / ramp[z] + 0.5
                    if risk >= 1.0:
                        v += late[z]
                    elif risk > 0.0:
                        v += late[z] * risk
                    if over > TOLERANCE_S:
                        v += tardy[z] * over
                elif over > TOLERANCE_S:
                    v += late[z] + tardy[z] * over
                if v < best:
                    runner_up = best
                    runner_first = first
                    best = v
                    first = i
                elif v < runner_up:
                    runner_up = v
                    runner_first = i
            value[row + t] = best
            action[row + t] = first
            second[row + t] = runner_up
            other[row + t] = runner_first
        # Swaps come second, and never lead to another swap, so that swaps of no ticks stay valid.
        for m in range(models):
            best = 0.0
            first = STOP
            for m2 in range(models):
                if m2 == m or model_from[m2 + 1] == model_from[m2]:
                    continue
                q = t + swap_ticks[m * models + m2]
                if q >= horizon:
                    v = beyond
                else:
                    if q == t and action[m2 * horizon + q] < STOP:
                        continue
                    v = value[m2 * horizon + q]
                v += swap_cost[m * models + m2]
                if v < best:
                    best = v
                    first = -2 - m2
            row = m * horizon
            if best < value[row + t]:
                second[row + t] = value[row + t]
                other[row + t] = action[row + t]
                value[row + t] = best
                action[row + t] = first
            elif best < second[row + t]:
                second[row + t] = best
                other[row + t] = first


def backward_remembering(
    horizon: int,
    tick_s: float,
    models: int,
    model_from: Wholes,
    jobs: Wholes,
    starts: Wholes,
    ticks: Wholes,
    price: Reals,
    due: Reals,
    late: Reals,
    tardy: Reals,
    early: Reals,
    ramp: Reals,
    flag: Wholes,
    states: int,
    swap_ticks: Wholes,
    swap_cost: Reals,
    beyond: float,
    value: Reals,
    second: Reals,
    action: Wholes,
    other: Wholes,
) -> None:
    """The same over tables [M * horizon * states], where remembered groups run at most once.

    A state is the set of remembered groups that have run; `flag` is a group's bit in it, 0 for one
    that is not remembered.
    """
    for t in range(horizon - 1, -1, -1):
        for m in range(models):
            row = m * horizon
            here = (row + t) * states
            for s in range(states):
                value[here + s] = 0.0
                action[here + s] = STOP
                second[here + s] = 0.0
                other[here + s] = STOP
            for z in range(model_from[m], model_from[m + 1]):
                if starts[z] < t:
                    break
                i = jobs[z]
                q = t + ticks[z]
                end = q * tick_s
                over = end - due[z]
                cost = early[z] * end - price[z]
                if ramp[z] > 0.0:
                    risk = over / ramp[z] + 0.5
                    if risk >= 1.0:
                        cost += late[z]
                    elif risk > 0.0:
                        cost += late[z] * risk
                    if over > TOLERANCE_S:
                        cost += tardy[z] * over
                elif over > TOLERANCE_S:
                    cost += late[z] + tardy[z] * over
                bit = flag[z]
                there = (row + q) * states
                for s in range(states):
                    if s & bit:
                        continue
                    v = beyond
                    if q < horizon:
                        v = value[there + s + bit]
                        if action[there + s + bit] == i:
                            v = second[there + s + bit]
                    v += cost
                    if v < value[here + s]:
                        second[here + s] = value[here + s]
                        other[here + s] = action[here + s]
                        value[here + s] = v
                        action[here + s] = i
                    elif v < second[here + s]:
                        second[here + s] = v
                        other[here + s] = i
        # Swaps come second, and never lead to another swap, so that swaps of no ticks stay valid.
        for m in range(models):
            here = (m * horizon + t) * states
            for s in range(states):
                best = 0.0
                first = STOP
                for m2 in range(models):
                    if m2 == m or model_from[m2 + 1] == model_from[m2]:
                        continue
                    q = t + swap_ticks[m * models + m2]
                    if q >= horizon:
                        v = beyond
                    else:
                        there = (m2 * horizon + q) * states + s
                        if q == t and action[there] < STOP:
                            continue
                        v = value[there]
                    v += swap_cost[m * models + m2]
                    if v < best:
                        best = v
                        first = -2 - m2
                if best < value[here + s]:
                    second[here + s] = value[here + s]
                    other[here + s] = action[here + s]
                    value[here + s] = best
                    action[here + s] = first
                elif best < second[here + s]:
                    second[here + s] = best
                    other[here + s] = first


def follow(
    t: int,
    m: int,
    horizon: int,
    models: int,
    ticks_of: Wholes,
    flag_of: Wholes,
    states: int,
    swap_ticks: Wholes,
    action: Wholes,
    other: Wholes,
    path: Wholes,
    at: int,
) -> int:
    """Write the best sequence from tick t and model m into `path` from `at` on; returns its end."""
    last = -1
    state = 0
    while t < horizon and at < len(path):
        here = (m * horizon + t) * states + state
        step = action[here]
        if step >= 0 and step == last:
            step = other[here]
        if step == STOP:
            break
        if step < STOP:
            t += swap_ticks[m * models - 2 - step]
            m = -2 - step
            last = -1
            continue
        path[at] = step
        at += 1
        t += ticks_of[step]
        state += flag_of[step]
        last = step
    return at


def enumerate_routes(
    tick: int,
    model: int,
    limit: float,
    horizon: int,
    tick_s: float,
    models: int,
    ticks: Wholes,
    model_of: Wholes,
    price: Reals,
    move: Reals,
    due: Reals,
    late: Reals,
    tardy: Reals,
    early: Reals,
    ramp: Reals,
    swap_ticks: Wholes,
    swap_cost: Reals,
    flag: Wholes,
    states: int,
    value: Reals,
    beyond: float,
    used: Wholes,
    stack: Wholes,
    clock: Wholes,
    state: Wholes,
    spent: Reals,
    upcoming: Wholes,
    begin_s: float,
    duration: Reals,
    swap_s: Reals,
    when_s: Reals,
    paid: Reals,
    most_nodes: int,
    routes: Wholes,
    lengths: Wholes,
    costs: Reals,
) -> int:
    """Every sequence without repeats whose cost less prices is at most the limit, depth first.

    The tables of `backward` bound what each prefix can still become. `ticks` is -1 for groups that
    do not fit; row M of the swap tables is an empty GPU. Fills `routes` (flat), `lengths` and exact
    `costs`; returns how many, or -1 if there is no room, or if it takes more than `most_nodes`
    steps.
    """
    groups = len(ticks)
    found = 0
    filled = 0
    nodes = 0
    depth = 0
    clock[0] = tick
    state[0] = 0
    spent[0] = 0.0
    when_s[0] = begin_s
    paid[0] = 0.0
    upcoming[0] = 0
    if limit >= 0.0:
        lengths[0] = 0
        costs[0] = 0.0
        found = 1
    while depth >= 0:
        i = upcoming[depth]
        if i >= groups:
            depth -= 1
            if depth >= 0:
                used[stack[depth]] = 0
            continue
        upcoming[depth] = i + 1
        if used[i] or ticks[i] < 0:
            continue
        loaded = model
        if depth > 0:
            loaded = model_of[stack[depth - 1]]
        t = clock[depth]
        cost = spent[depth]
        now = when_s[depth]
        exact = paid[depth]
        own = model_of[i]
        if own != loaded:
            t += swap_ticks[loaded * models + own]
            cost += swap_cost[loaded * models + own]
            now += swap_s[loaded * models + own]
            exact += swap_cost[loaded * models + own]
        t += ticks[i]
        now += duration[i]
        nodes += 1
        if nodes > most_nodes:
            for k in range(depth):
                used[stack[k]] = 0
            return -1
        cost += (
            cost_at(t * tick_s, due[i], late[i], tardy[i], early[i], ramp[i]) + move[i] - price[i]
        )
        onwards = beyond
        if t < horizon:
            onwards = value[(own * horizon + t) * states + state[depth] + flag[i]]
        if cost + onwards > limit:
            continue
        stack[depth] = i
        used[i] = 1
        depth += 1
        clock[depth] = t
        state[depth] = state[depth - 1] + flag[i]
        spent[depth] = cost
        when_s[depth] = now
        exact += move[i] + cost_at(now, due[i], late[i], tardy[i], early[i], ramp[i])
        paid[depth] = exact
        upcoming[depth] = 0
        if cost <= limit:
            if found >= len(lengths) or filled + depth > len(routes):
                for k in range(depth):
                    used[stack[k]] = 0
                return -1
            for k in range(depth):
                routes[filled + k] = stack[k]
            filled += depth
            lengths[found] = depth
            costs[found] = exact
            found += 1
    return found
