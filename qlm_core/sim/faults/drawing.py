"""Draws the schedule of a seed: which fleet, which requests and batches, which faults.

Each of them has random numbers of its own, so a change of how faults are drawn leaves fleet and requests as they were.
"""

from __future__ import annotations

from random import Random

from qlm_core.sim.faults.schedule import Ask, BatchAsk, Bed, Fault, FaultKind, Lie, Schedule

ARRIVALS_S = 16.0
"""Requests come within this time from the start, and faults begin within it."""

FAULT_S_MAX = 14.0
"""No fault lasts longer."""

_NEVER_SERVED = "unheard-of"


def draw(seed: int) -> Schedule:
    """The schedule of a seed."""
    bed = _bed(Random(f"{seed}/bed"))
    return Schedule(
        seed=seed,
        bed=bed,
        asks=_asks(Random(f"{seed}/asks"), bed),
        faults=_faults(Random(f"{seed}/faults"), bed),
        batches=_batches(Random(f"{seed}/batches"), bed),
    )


def _bed(rng: Random) -> Bed:
    gateways = tuple(f"gateway-{number}" for number in range(rng.choice((1, 1, 2))))
    models = tuple(f"m{number}" for number in range(rng.choice((1, 2, 2, 3))))
    served: dict[str, tuple[str, ...]] = {}
    for number in range(rng.choice((2, 2, 3, 4))):
        first = models[number % len(models)]
        rest = tuple(one for one in models if one != first)
        served[f"agent-{number}"] = (first, *rest) if rng.random() < 0.7 or not number else (first,)
    return Bed(
        gateways=gateways,
        models=served,
        slots=rng.choice((1, 2, 3, 8)),
        kv_tokens=rng.choice((600, 1500, 20_000)),
        token_s=rng.choice((0.02, 0.05, 0.1)),
    )


def _asks(rng: Random, bed: Bed) -> tuple[Ask, ...]:
    models = list(dict.fromkeys(one for served in bed.models.values() for one in served))
    asks = [
        _ask(rng, bed, models, number, rng.uniform(0.0, ARRIVALS_S))
        for number in range(rng.randint(20, 70))
    ]
    return tuple(sorted(asks, key=lambda ask: ask.at_s))


def _ask(rng: Random, bed: Bed, models: list[str], number: int, at_s: float) -> Ask:
    durable = rng.random() < 0.6
    output = rng.choice((1, 3, 10, 20, 40, 90))
    served = rng.random() > 0.03 or durable
    key = f"key-{rng.randint(0, 7)}" if durable and rng.random() < 0.3 else ""
    if durable and not key and rng.random() < 0.7:
        key = f"own-{number}"
    return Ask(
        number=number,
        at_s=round(at_s, 3),
        gateway=rng.choice(bed.gateways),
        model=rng.choice(models) if served else _NEVER_SERVED,
        slo_class=rng.choice(("interactive", "interactive", "batch-1", "batch-2")),
        prompt_tokens=rng.choice((10, 50, 100, 200)),
        output_tokens=output,
        max_output_tokens=rng.choice((output, output + 20, 400)),
        ttl_s=rng.choice((4.0, 20.0)) if not served or rng.random() < 0.08 else 3600.0,
        durable=durable,
        watched=rng.random() < 0.7 or not durable,
        resumable=rng.random() < 0.75,
        key=key,
        variant=int(key.startswith("key") and rng.random() < 0.2),
        cancel_after_s=round(rng.uniform(0.01, 4.0), 3) if rng.random() < 0.15 else 0.0,
        leave_after_s=round(rng.uniform(0.01, 4.0), 3) if rng.random() < 0.1 else 0.0,
    )


def _batches(rng: Random, bed: Bed) -> tuple[BatchAsk, ...]:
    """One or two batches in some runs."""
    count = rng.choice((0, 0, 0, 1, 2))
    batches = [_batch(rng, bed, number) for number in range(count)]
    return tuple(sorted(batches, key=lambda batch: batch.at_s))


def _batch(rng: Random, bed: Bed, number: int) -> BatchAsk:
    models = list(dict.fromkeys(one for served in bed.models.values() for one in served))
    output = rng.choice((1, 5, 20, 40))
    return BatchAsk(
        number=number,
        at_s=round(rng.uniform(0.0, ARRIVALS_S), 3),
        gateway=rng.choice(bed.gateways),
        models=tuple(rng.sample(models, rng.randint(1, len(models)))),
        lines=rng.choice((1, 3, 10, 25)),
        window_s=rng.choice((2.0, 8.0, 20.0, 3600.0, 3600.0)),
        prompt_tokens=rng.choice((10, 50, 200)),
        output_tokens=output,
        max_output_tokens=rng.choice((output, 100)),
        cancel_after_s=round(rng.uniform(0.01, 10.0), 3) if rng.random() < 0.3 else 0.0,
    )


def _faults(rng: Random, bed: Bed) -> tuple[Fault, ...]:
    """A few faults; in some runs many, in some of one or two kinds only, since rare ones hide behind frequent ones."""
    kinds = [kind for kind, weight in _WEIGHTS.items() for _ in range(weight)]
    if rng.random() < 0.5:
        kinds = [rng.choice(kinds) for _ in range(rng.choice((1, 2)))]
    count = rng.choice((0, 1, 1, 2, 3, 4, 6, 10))
    faults = [_fault(rng, bed, rng.choice(kinds)) for _ in range(count)]
    if rng.random() < 0.2:
        # One process is struck again and again.
        victim = _process(rng, bed)
        faults += [_fault(rng, bed, rng.choice(_OF_PROCESSES), victim) for _ in range(4)]
    return tuple(sorted(faults, key=lambda fault: fault.at_s))


_WEIGHTS = {
    FaultKind.CRASH: 4,
    FaultKind.VANISH: 2,
    FaultKind.PAUSE: 4,
    FaultKind.DRAIN: 1,
    FaultKind.CUT: 4,
    FaultKind.PARTITION: 3,
    FaultKind.HALF_OPEN: 3,
    FaultKind.SLOW_LINK: 1,
    FaultKind.STALE_ORDER: 2,
    FaultKind.ENGINE_CRASH: 2,
    FaultKind.ENGINE_SLOW: 1,
    FaultKind.ENGINE_STUCK: 1,
    FaultKind.ENGINE_FULL: 1,
    FaultKind.ENGINE_ERRORS: 1,
    FaultKind.ENGINE_LIES: 3,
    FaultKind.SWAP_FAILS: 1,
    FaultKind.DISK_FULL: 1,
    FaultKind.TORN_COMMIT: 2,
    FaultKind.SLOW_DISK: 1,
    FaultKind.CLOCK_JUMP: 1,
}
_BETWEEN_TWO = (FaultKind.CUT, FaultKind.PARTITION, FaultKind.HALF_OPEN, FaultKind.SLOW_LINK)
_OF_PROCESSES = (FaultKind.CRASH, FaultKind.VANISH, FaultKind.PAUSE)
_OF_AGENTS = (FaultKind.DRAIN, FaultKind.STALE_ORDER, FaultKind.SWAP_FAILS)
_OF_GATEWAYS = (
    FaultKind.DISK_FULL,
    FaultKind.TORN_COMMIT,
    FaultKind.SLOW_DISK,
    FaultKind.CLOCK_JUMP,
)
_AMOUNTS: dict[FaultKind, tuple[float, ...]] = {
    FaultKind.SLOW_LINK: (10.0, 100.0),
    FaultKind.ENGINE_SLOW: (5.0, 30.0),
    FaultKind.SLOW_DISK: (20.0, 200.0),
    FaultKind.CLOCK_JUMP: (-90_000.0, -30.0, 30.0, 90_000.0),
}
_LIES = tuple(lie for lie in Lie if lie is not Lie.NONE)


def _process(rng: Random, bed: Bed) -> str:
    return rng.choice(("solver", rng.choice(bed.gateways), rng.choice(bed.agents)))


def _fault(rng: Random, bed: Bed, kind: FaultKind, victim: str = "") -> Fault:
    if kind in _BETWEEN_TWO:
        target, other = rng.choice(_pairs(bed))
        if rng.random() < 0.5:
            target, other = other, target
    else:
        other = ""
        if kind in _OF_AGENTS or kind.value.startswith("engine"):
            target = rng.choice(bed.agents)
        elif kind in _OF_GATEWAYS:
            target = rng.choice(bed.gateways)
        else:
            target = victim or _process(rng, bed)
    return Fault(
        at_s=round(rng.uniform(0.3, ARRIVALS_S), 3),
        kind=kind,
        target=target,
        other=other,
        for_s=round(rng.choice((0.05, 0.3, 1.5, 4.0, 8.0, FAULT_S_MAX)) * rng.uniform(0.5, 1.0), 3),
        amount=rng.choice(_AMOUNTS.get(kind, (0.0,))),
        lie=rng.choice(_LIES) if kind is FaultKind.ENGINE_LIES else Lie.NONE,
    )


def _pairs(bed: Bed) -> list[tuple[str, str]]:
    """Processes that talk to each other."""
    pairs = [("solver", name) for name in (*bed.gateways, *bed.agents)]
    pairs += [(gateway, agent) for gateway in bed.gateways for agent in bed.agents]
    return pairs + [("clients", gateway) for gateway in bed.gateways]
