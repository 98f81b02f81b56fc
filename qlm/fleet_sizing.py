"""How large a fleet has to be: the smallest one of each class of GPU that reaches an attainment on a workload.

A fleet here is so many equal instances that serve every model of the workload. The number is doubled until
the target is reached and bisected from there, which supposes that more instances never serve worse.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from qlm.simulations import Bed, Progress, draw_to, in_processes, run_one
from qlm_core.errors import ConfigError
from qlm_core.profile_catalog import shipped_profiles
from qlm_core.sim.scenario import FleetPart, Scenario, instances

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DEGREES = (1, 2, 4, 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizing:
    """What was found of one class of GPU.

    Attributes:
        gpus: GPUs of one instance.
        tried: attainment by number of instances.
        smallest: the least number that reaches the target; None if the largest tried does not.
        cut: requests that were longer than an instance holds and counted with what fits.
        problem: why no instance of this class serves the workload; empty if one does.
    """

    gpu: str
    gpus: int = 0
    tried: dict[int, float]
    smallest: int | None = None
    cut: int = 0
    problem: str = ""


def known_gpus(scenario: Scenario) -> tuple[str, ...]:
    """The classes of GPU that there are profiles of, the scenario's own first."""
    profiles = (*scenario.profiles, *shipped_profiles())
    return tuple(dict.fromkeys(profile.gpu for profile in profiles))


def sizes(
    bed: Bed,
    gpus: Sequence[str],
    *,
    policy: str,
    target: float,
    largest: int,
    seed: int,
    jobs: int,
    progress: Progress,
) -> list[Sizing]:
    """The smallest fleet of each class of GPU, classes side by side in processes."""
    calls = [(bed, gpu, policy, target, largest, seed) for gpu in gpus]
    return in_processes(calls, smallest_fleet, gpus, jobs=jobs, progress=progress)


def smallest_fleet(
    bed: Bed,
    gpu: str,
    policy: str,
    target: float,
    largest: int,
    seed: int,
    watch: Callable[[int], None] | None = None,
) -> Sizing:
    """The smallest fleet of one class of GPU. `watch` is told how many requests the run at hand has seen."""
    try:
        part = whole_instance(bed.scenario, gpu)
    except ConfigError as error:
        return Sizing(gpu=gpu, tried={}, problem=str(error))
    tried: dict[int, float] = {}
    cut = 0

    def attained(count: int) -> float:
        nonlocal cut
        if count not in tried:
            fleet = (msgspec.structs.replace(part, count=count),)
            scenario = msgspec.structs.replace(bed.scenario, fleet=fleet)
            figures = run_one(replace(bed, scenario=scenario), policy, seed, watch=watch)
            tried[count] = figures["slo_attainment"] or 0.0
            cut = figures["cut"]
        return tried[count]

    low, high = 0, 1
    while attained(high) < target:
        if high >= largest:
            return Sizing(gpu=gpu, gpus=part.gpus, tried=tried, cut=cut)
        low, high = high, min(2 * high, largest)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if attained(middle) >= target else (middle, high)
    return Sizing(gpu=gpu, gpus=part.gpus, tried=tried, smallest=high, cut=cut)


def whole_instance(scenario: Scenario, gpu: str) -> FleetPart:
    """One instance of this class that serves every model of the fleet, on as few GPUs as that takes."""
    models = tuple(dict.fromkeys(model for part in scenario.fleet for model in part.models))
    memory_gb = max(part.host_memory_gb for part in scenario.fleet)
    max_loras = max(part.max_loras for part in scenario.fleet)
    for degree in DEGREES:
        part = FleetPart(
            gpu=gpu, models=models, gpus=degree, host_memory_gb=memory_gb, max_loras=max_loras
        )
        try:
            instances((part,), scenario.profiles, scenario.adapters)
        except ConfigError:
            continue
        return part
    raise ConfigError(f"no instance of up to {DEGREES[-1]} {gpu} serves {', '.join(models)}")


# --------------------------------------------------------------------------- results


def describe(found: Sequence[Sizing], target: float, largest: int) -> str:
    """A line for each class."""
    lines = []
    for one in found:
        if one.problem:
            lines.append(f"{one.gpu:<12} {one.problem}")
            continue
        tried = ", ".join(f"{count}: {one.tried[count]:.1%}" for count in sorted(one.tried))
        if one.smallest is None:
            lines.append(f"{one.gpu:<12} more than {largest} instances  ({tried})")
        else:
            each = f" of {one.gpus} GPUs" if one.gpus > 1 else ""
            lines.append(f"{one.gpu:<12} {one.smallest} instances{each}  ({tried})")
        if one.cut:
            lines.append(f"{'':<12} {one.cut} requests are longer than it holds, and were cut")
    return f"Smallest fleets that meet {target:.1%} of the SLOs:\n" + "\n".join(lines)


def to_json(found: Sequence[Sizing], target: float) -> str:
    """Attainment by size and the answer, for each class of GPU."""
    classes: dict[str, Any] = {
        one.gpu: {
            "gpus_per_instance": one.gpus,
            "smallest": one.smallest,
            "cut": one.cut,
            "problem": one.problem or None,
            "sizes": [
                {"instances": count, "slo_attainment": one.tried[count]}
                for count in sorted(one.tried)
            ],
        }
        for one in found
    }
    return json.dumps({"target": target, "gpus": classes}, indent=1)


def plot(found: Sequence[Sizing], target: float, path: Path, *, title: str) -> None:
    """Attainment against the number of instances, a line for each class."""

    def draw(axes: Axes) -> None:
        for one in found:
            counts = sorted(one.tried)
            if counts:
                label = f"{one.gpus} × {one.gpu}" if one.gpus > 1 else one.gpu
                axes.plot(counts, [100 * one.tried[count] for count in counts], "o-", label=label)
        axes.axhline(100 * target, linestyle="--", linewidth=1, color="grey")
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.set_xlabel("instances")
        axes.set_ylabel("SLOs met (%)")
        axes.legend(fontsize="small")

    draw_to(path, draw, title=title)
