"""What more or fewer instances would change: a workload simulated with and without them, and answers of either kind as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec

from qlm import look
from qlm.fleet_sizing import known_gpus, whole_instance
from qlm.simulations import Bed, Progress, Run, in_processes, run_one
from qlm_core.errors import ConfigError
from qlm_core.nearest import did_you_mean
from qlm_core.sim.scenario import FleetPart, Scenario

if TYPE_CHECKING:
    from rich.console import RenderableType

Json = dict[str, Any]

INSTANCES_MAX = 1_000


def changes_of(add: Sequence[str], remove: Sequence[str]) -> dict[str, int]:
    """By GPU, how many instances more, or fewer if negative, of `--add GPU=N` and `--remove GPU=N`.

    Raises:
        ConfigError: not of that form, nothing asked, or one GPU named twice.
    """
    found: dict[str, int] = {}
    for option, sign, texts in (("--add", 1, add), ("--remove", -1, remove)):
        for text in (part.strip() for whole in texts for part in whole.split(",")):
            gpu, _, number = text.partition("=")
            count = int(number) if number.isascii() and number.isdecimal() else 0
            if not gpu or not 1 <= count <= INSTANCES_MAX:
                raise ConfigError(
                    f"{option}: {text[:64]!r} is not GPU=N. Write a100=1, for example, of up to {INSTANCES_MAX}."
                )
            if gpu in found:
                raise ConfigError(f"{option}: {gpu} is named twice. Name each GPU once.")
            found[gpu] = sign * count
    if not found:
        raise ConfigError("--add: nothing is to change. Give --add GPU=N or --remove GPU=N.")
    return found


def changed(scenario: Scenario, changes: Mapping[str, int]) -> Scenario:
    """The scenario with the changed fleet. More of a GPU are like the first of it, or serve every model if there is none.

    Raises:
        ConfigError: a GPU without a profile, more taken away than there are, or nobody left.
    """
    fleet = list(scenario.fleet)
    for gpu, more in changes.items():
        fleet = _more(scenario, fleet, gpu, more) if more > 0 else _fewer(fleet, gpu, -more)
    if not fleet:
        raise ConfigError("--remove: no instance is left. Leave one.")
    return msgspec.structs.replace(scenario, fleet=tuple(fleet))


def _more(scenario: Scenario, fleet: list[FleetPart], gpu: str, more: int) -> list[FleetPart]:
    for number, part in enumerate(fleet):
        if part.gpu == gpu:
            grown = msgspec.structs.replace(part, count=part.count + more)
            return [*fleet[:number], grown, *fleet[number + 1 :]]
    known = known_gpus(scenario)
    if gpu not in known:
        meant = did_you_mean(gpu, known)
        raise ConfigError(f"--add: {gpu!r} is unknown. Use some of {', '.join(known)}.{meant}")
    return [*fleet, msgspec.structs.replace(whole_instance(scenario, gpu), count=more)]


def _fewer(fleet: list[FleetPart], gpu: str, fewer: int) -> list[FleetPart]:
    present = sum(part.count for part in fleet if part.gpu == gpu)
    if present < fewer:
        raise ConfigError(f"--remove: there are {present} instances of {gpu!r}. Take away fewer.")
    left: list[FleetPart] = []
    for part in reversed(fleet):
        taken = min(fewer, part.count) if part.gpu == gpu else 0
        fewer -= taken
        if part.count > taken:
            left.append(msgspec.structs.replace(part, count=part.count - taken))
    return left[::-1]


def simulated(
    bed: Bed, changes: Mapping[str, int], *, seed: int, jobs: int, progress: Progress
) -> Json:
    """The workload on the fleet as it is and as it would be, in the form in which the solver answers."""
    after = replace(bed, scenario=changed(bed.scenario, changes))
    calls = [(one, "qlm", seed) for one in (bed, after)]
    names = ["as it is", "as it would be"]
    runs = in_processes(calls, run_one, names, jobs=jobs, progress=progress)
    sides = [_side(run, one.scenario) for run, one in zip(runs, (bed, after), strict=True)]
    return {"changes": dict(changes), "before": sides[0], "after": sides[1]}


def _side(run: Run, scenario: Scenario) -> Json:
    instances: dict[str, int] = {}
    for part in scenario.fleet:
        instances[part.gpu] = instances.get(part.gpu, 0) + part.count
    weight = {one.name: one.weight for one in scenario.classes}
    late = {name: one["requests"] - one["attained"] for name, one in run["classes"].items()}
    return {
        "instances": instances,
        "attainment": run["slo_attainment"],
        "late_weight": sum(weight[name] * count for name, count in late.items()),
        "swaps": run["swaps"],
        "swap_s": run["swap_s"],
        "classes": {
            name: {
                "requests": one["requests"],
                "attainment": one["attainment"],
                "late": late[name],
                "ttft_p50_s": one["ttft_s"]["p50"],
                "ttft_p90_s": one["ttft_s"]["p90"],
                "ttft_p99_s": one["ttft_s"]["p99"],
            }
            for name, one in run["classes"].items()
        },
    }


# --------------------------------------------------------------------------- shown


def tables(answer: Json) -> list[RenderableType]:
    """An answer for people: the fleet, what it costs, and each class, before and after."""
    before, after = answer["before"], answer["after"]
    fleet = look.table("", right=("now", "then"), title="What would change")
    for gpu in dict.fromkeys((*before["instances"], *after["instances"])):
        fleet.add_row(gpu, *(str(side["instances"].get(gpu, 0)) for side in (before, after)))
    for key, name in _FIGURES.items():
        if key in before:
            fleet.add_row(name, *(_figure(key, side[key]) for side in (before, after)))
    names = dict.fromkeys((*before["classes"], *after["classes"]))
    keys = list(next(iter((*before["classes"].values(), *after["classes"].values())), {}))
    shown = [key for key in keys if key not in _SIZES]
    columns = [f"{_FIGURES[key]}, {when}" for key in shown for when in ("now", "then")]
    classes = look.table("class", right=("requests", *columns))
    for name in names:
        sides = [side["classes"].get(name, {}) for side in (before, after)]
        size = next(str(side[key]) for side in sides for key in _SIZES if key in side)
        cells = [_figure(key, side.get(key)) for key in shown for side in sides]
        classes.add_row(name, size, *cells)
    if names:
        return [fleet, classes]
    idle = not any(side.get("unplaced") for side in (before, after))
    return [fleet, "Nothing waits now, so nothing would change."] if idle else [fleet]


_SIZES = ("waiting", "requests")
_FIGURES = {
    "attainment": "attained",
    "late_weight": "late weight",
    "swaps": "swaps",
    "swap_s": "swap s",
    "unplaced": "unplaced",
    "late": "late",
    "expected_late": "late",
    "wait_mean_s": "mean wait s",
    "wait_longest_s": "longest s",
    "ttft_p50_s": "TTFT p50 s",
    "ttft_p90_s": "p90 s",
    "ttft_p99_s": "p99 s",
}


def _figure(key: str, value: float | None) -> str:
    if value is None:
        return "-"
    if key == "attainment":
        return f"{value:.1%}"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"
