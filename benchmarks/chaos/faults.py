"""Everything that is done to a fleet, by name: how it is inflicted and healed, and what may suffer by it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.chaos import clock, disk, moments
from benchmarks.chaos.bed import AGENTS, ENGINES, LINKS, PARTS, Bed
from benchmarks.chaos.moments import Moment
from failpoints import VARIABLE

PAUSES_S = (6.0, 40.0, 120.0)
# Every peer has noticed a silent link by then, and given it up.
_SILENT_S = 20.0
# Service is whole so long after a fault is healed.
WHOLE_S = 2.0
# An agent has to find a server that was down, every `reconnect_s_max`, and meanwhile others have all its work.
ENGINE_WHOLE_S = 4.0


def _nothing(_: Path) -> Mapping[str, str]:
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that is done.

    Attributes:
        inflict: does it and returns as soon as it is healed.
        at_once: whether it may come before every kind of request has been answered, as it is armed from the beginning.
        parts: whose first start has variables of their own.
        variables: those, by the folder of the fleet.
        plain_may_fail: whether requests without a key may fail, since their gateway or their connection died.
        links: whether parts reach each other through proxies.
        quick: whether it is among those of `--quick`.
        overrides: of the configuration.
        whole_s: how soon after it is healed service is to be whole.
        seconds: roughly how long it lasts.
    """

    name: str
    inflict: Callable[[Bed], Awaitable[None]]
    at_once: bool = False
    parts: tuple[str, ...] = ()
    variables: Callable[[Path], Mapping[str, str]] = _nothing
    plain_may_fail: bool = False
    links: bool = False
    quick: bool = False
    overrides: tuple[str, ...] = ()
    whole_s: float = WHOLE_S
    seconds: float = 3.0


def catalogue() -> list[Fault]:
    """All faults, in the order in which they are done."""
    return [*_kills(), *_pauses(), *_links(), *_disks(), *_clocks(), *_moments()]


# --------------------------------------------------------------------------- processes


def _kills() -> list[Fault]:
    sets: dict[str, tuple[str, ...]] = {
        name: (name,) for name in ("solver", "gateway", "one", "engine-one")
    }
    sets |= {"agents": AGENTS, "engines": ENGINES, "everything": (*PARTS, *ENGINES)}

    def kill(names: tuple[str, ...]) -> Callable[[Bed], Awaitable[None]]:
        return lambda bed: bed.kill_and_wait(*names)

    return [
        Fault(
            name=f"kill {name}",
            inflict=kill(names),
            plain_may_fail="gateway" in names,
            quick=name in ("solver", "gateway", "agents"),
            whole_s=_whole_s(names),
        )
        for name, names in sets.items()
    ]


def _pauses() -> list[Fault]:
    sets: dict[str, tuple[str, ...]] = {
        name: (name,) for name in ("solver", "gateway", "one", "engine-one")
    }
    sets |= {"agents": AGENTS, "parts": PARTS, "everything": (*PARTS, *ENGINES)}

    return [
        pause(name, names, seconds, quick=seconds == PAUSES_S[0] and name != "engine-one")
        for name, names in sets.items()
        for seconds in PAUSES_S
    ]


def pause(name: str, names: Sequence[str], seconds: float, *, quick: bool = False) -> Fault:
    """Parts frozen together for a while."""

    async def inflict(bed: Bed) -> None:
        for part in names:
            bed.pause(part)
        await asyncio.sleep(seconds)
        for part in names:
            bed.wake(part)

    return Fault(
        name=f"pause {name} {seconds:g} s",
        inflict=inflict,
        quick=quick,
        whole_s=_whole_s(names),
        seconds=seconds,
    )


def _whole_s(names: Sequence[str]) -> float:
    return ENGINE_WHOLE_S if any(name in ENGINES for name in names) else WHOLE_S


# --------------------------------------------------------------------------- links


def _links() -> list[Fault]:
    found = []
    for link in LINKS:
        clients = link in ("http", "grpc")
        whole_s = ENGINE_WHOLE_S if link == "one-engine" else WHOLE_S
        found += [
            Fault(
                name=f"reset {link}",
                inflict=_reset(link),
                links=True,
                plain_may_fail=clients,
                quick=link == "agents-gateway",
            ),
            Fault(
                name=f"silence {link} 6 s",
                inflict=_silence(link, 6.0),
                links=True,
                whole_s=whole_s,
                seconds=6.0,
            ),
            Fault(
                name=f"silence {link} {_SILENT_S:g} s",
                inflict=_silence(link, _SILENT_S),
                links=True,
                whole_s=whole_s,
                seconds=_SILENT_S,
            ),
            Fault(
                name=f"silence {link} {_SILENT_S:g} s and reset",
                inflict=_silence(link, _SILENT_S, reset=True),
                links=True,
                plain_may_fail=clients,
                whole_s=whole_s,
                seconds=_SILENT_S,
            ),
        ]
        if not clients:
            found += [
                Fault(
                    name=f"half silence {link} {_SILENT_S:g} s",
                    inflict=_silence(link, _SILENT_S, there=False),
                    links=True,
                    seconds=_SILENT_S,
                ),
                Fault(name=f"flapping {link}", inflict=_flapping(link), links=True, seconds=4.0),
            ]
    return found


def _reset(link: str) -> Callable[[Bed], Awaitable[None]]:
    async def inflict(bed: Bed) -> None:
        bed.proxies[link].reset()

    return inflict


def _silence(
    link: str, seconds: float, *, there: bool = True, reset: bool = False
) -> Callable[[Bed], Awaitable[None]]:
    async def inflict(bed: Bed) -> None:
        proxy = bed.proxies[link]
        proxy.hold(there=there)
        await asyncio.sleep(seconds)
        if reset:
            proxy.reset()
        proxy.heal()

    return inflict


def _flapping(link: str) -> Callable[[Bed], Awaitable[None]]:
    async def inflict(bed: Bed) -> None:
        proxy = bed.proxies[link]
        proxy.delay(0.05)
        for _ in range(8):
            proxy.reset()
            await asyncio.sleep(0.5)
        proxy.heal()

    return inflict


# --------------------------------------------------------------------------- disks, clocks, moments


def _disks() -> list[Fault]:
    return [
        Fault(name="full disk 6 s", inflict=disk.full, quick=True, seconds=6.0),
        Fault(name="locked store 8 s", inflict=disk.locked, quick=True, seconds=8.0),
        Fault(name="torn write", inflict=disk.torn, plain_may_fail=True),
        Fault(name="unreadable row", inflict=disk.unreadable, plain_may_fail=True),
    ]


def _clocks() -> list[Fault]:
    return [
        Fault(
            name=f"clock of {part} {hours:+} h",
            inflict=clock.jump(hours * 3600.0),
            parts=(part,),
            variables=clock.variables,
            overrides=(f"gateway.store.keep_finished_s={clock.KEEP_S:g}",),
            seconds=clock.WAIT_S,
        )
        for part in ("gateway", "solver", "one")
        for hours in (25, -25)
    ]


def _moments() -> list[Fault]:
    return [
        met(
            one, name=f"{one.action} at {one.moment}", seconds=8.0 if one.action == "pause" else 3.0
        )
        for one in moments.all_of_them()
    ]


def met(*chosen: Moment, name: str, seconds: float = 3.0) -> Fault:
    """Moments of several parts, one of each, met in one fleet."""
    early = [one for one in chosen if one.armed_early]
    rules = {VARIABLE: ";".join(one.rule for one in early)} if early else {}

    async def inflict(bed: Bed) -> None:
        await asyncio.gather(*(one.inflict(bed) for one in early))
        for one in chosen:
            if not one.armed_early:
                await one.inflict(bed)

    return Fault(
        name=name,
        inflict=inflict,
        parts=tuple(one.part for one in early),
        variables=lambda _: rules,
        at_once=bool(early),
        plain_may_fail=any(one.part == "gateway" for one in chosen),
        seconds=seconds,
    )
