"""Finish times of batches on random beds: how often what was said held, and what the batches cost the requests beside them.

A bed is drawn from a seed and a number (`qlm_core.sim.batch_beds`) and run twice, with its batches and without. What is said of a
batch is looked at when it is created, with a tenth of it done and with half. A quantile that lies within the window holds if the
batch ended by then; of one beyond the window nobody knows if the batch ran out of time, so it does not count. A verdict is right
if the batch ended within its window just when that was said.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from math import exp, isfinite, log
from pathlib import Path
from statistics import median, pstdev
from typing import Any, Literal

import msgspec

from qlm.simulations import Progress, in_processes
from qlm_core.errors import ConfigError
from qlm_core.sim.batch_beds import DrawnBatchBed, draw_batch_bed
from qlm_core.sim.batches import BatchRun, FinishTold
from qlm_core.sim.policies import policy_named
from qlm_core.sim.report import report_of
from qlm_core.sim.scenario import Scenario, requests, scenario_from_mapping
from qlm_core.sim.workload import WorkloadRequest
from qlm_core.sim.world import World

Result = dict[str, Any]

LONGEST_S = 4_000.0
"""A run ends so long after its last batch came, whether that is done or not."""

MOMENTS = (("created", 0.0), ("a tenth done", 0.1), ("half done", 0.5))
QUANTILES: tuple[tuple[Literal["p50_s", "p90_s"], float], ...] = (("p50_s", 0.5), ("p90_s", 0.9))
TOLERANCE, VERDICTS = 0.05, 0.95
_LEAST_S = 0.05


# --------------------------------------------------------------------------- running


def run_beds(
    seed: int, beds: Iterable[int], *, jobs: int = 1, progress: Progress = lambda _: None
) -> list[Result]:
    """Every bed with and without its batches, in the order of the beds."""
    indices = list(beds)
    return in_processes(
        [(seed, index) for index in indices],
        run_bed,
        [f"bed {index}" for index in indices],
        jobs=jobs,
        progress=progress,
    )


def run_bed(seed: int, index: int, watch: Callable[[int], None] | None = None) -> Result:
    """What became of one bed."""
    begin_s = time.perf_counter()
    bed = draw_batch_bed(seed, index)
    scenario = scenario_from_mapping(bed.scenario, f"bed {index}")
    last_s = max(one.submitted_s for one in scenario.workload.batches) + LONGEST_S
    world = _world(scenario, bed, lambda: world.batches_open, last_s, watch)
    record = world.run()
    with_batches = report_of(record, policy="qlm", seed=bed.run_seed, wall_s=0.0)
    alone = msgspec.structs.replace(
        scenario, workload=msgspec.structs.replace(scenario.workload, batches=())
    )
    arrivals = (one for one in record.arrival_s)
    until_s = min(last_s, max(arrivals, default=0.0))
    other = _world(alone, bed, lambda: True, until_s, None).run()
    return {
        "bed": index,
        "seed": seed,
        "about": bed.scenario["about"],
        "command": command(seed, index),
        "batches": [_batch(run) for run in record.batches],
        "classes": with_batches["classes"],
        "classes_alone": report_of(other, policy="qlm", seed=bed.run_seed, wall_s=0.0)["classes"],
        "lost": with_batches["lost"] + with_batches["duplicated"],
        "wall_s": round(time.perf_counter() - begin_s, 3),
    }


def _world(
    scenario: Scenario,
    bed: DrawnBatchBed,
    wanted: Callable[[], bool],
    until_s: float,
    watch: Callable[[int], None] | None,
) -> World:
    """A run whose requests arrive until then, and for as long as they are wanted."""

    def arriving() -> Iterator[WorkloadRequest]:
        coming = requests(scenario, seed=bed.run_seed)
        for number, one in enumerate(takewhile(lambda one: one.arrival_s <= until_s, coming)):
            if not wanted():
                return
            if watch is not None and number % 256 == 0:
                watch(number)
            yield one

    return World(scenario, policy_named("qlm"), arriving(), seed=bed.run_seed)


def _batch(run: BatchRun) -> Result:
    return {
        "lines": run.lines,
        "submitted_s": run.submitted_s,
        "window_s": run.window_s,
        "took_s": run.ended_s - run.submitted_s if isfinite(run.ended_s) else None,
        "told": {
            name: None if said is None else _told(run, said)
            for name, share in MOMENTS
            for said in [_said_at(run, share)]
        },
    }


def _said_at(run: BatchRun, share: float) -> FinishTold | None:
    """What was said when so much was done; None if it never was, or nobody served the batch."""
    over_s = min(run.ended_s, run.submitted_s + run.window_s)
    said = [one for one in run.told if one.done >= share and one.at_s < over_s]
    return said[0] if said and isfinite(said[0].p50_s) else None


def _told(run: BatchRun, said: FinishTold) -> Result:
    left_s = run.submitted_s + run.window_s - said.at_s
    took_s = run.ended_s - said.at_s
    in_time = isfinite(run.ended_s)
    return {
        "p50_s": round(said.p50_s, 3),
        "p90_s": round(said.p90_s, 3),
        "came_s": round(took_s, 3) if in_time else None,
        "holds": {
            name: took_s <= value if in_time else (False if value <= left_s else None)
            for name, value in (("p50_s", said.p50_s), ("p90_s", said.p90_s))
        },
        "right": said.feasible is in_time,
        "explanation": said.explanation,
    }


# --------------------------------------------------------------------------- figures


@dataclass(frozen=True, slots=True)
class Moment:
    """How good what was said at one moment was.

    Attributes:
        covered: by quantile, the share of batches that ended by then, and of how many that is known.
        right: share of right verdicts, of so many batches.
        error: median and standard deviation of log(came / p50), of batches that ended.
    """

    name: str
    covered: dict[str, tuple[float, int]]
    right: float
    batches: int
    error: tuple[float, float]


def moments(results: Sequence[Result]) -> list[Moment]:
    """The figures of each moment at which finish times are looked at."""
    found = []
    for name, _ in MOMENTS:
        told = [
            batch["told"][name]
            for result in results
            for batch in result["batches"]
            if batch["told"][name]
        ]
        if not told:
            continue
        covered: dict[str, tuple[float, int]] = {}
        for quantile, _ in QUANTILES:
            known = [one["holds"][quantile] for one in told if one["holds"][quantile] is not None]
            covered[quantile] = (sum(known) / max(1, len(known)), len(known))
        errors = [
            log((one["came_s"] + _LEAST_S) / (one["p50_s"] + _LEAST_S))
            for one in told
            if one["came_s"] is not None
        ]
        found.append(
            Moment(
                name=name,
                covered=covered,
                right=sum(one["right"] for one in told) / len(told),
                batches=len(told),
                error=(median(errors), pstdev(errors)) if errors else (0.0, 0.0),
            )
        )
    return found


def attainment(results: Sequence[Result]) -> dict[str, tuple[float, float, int]]:
    """By class: attainment with batches and without, and how many requests there were with them."""
    names = list(dict.fromkeys(name for one in results for name in one["classes_alone"]))
    found = {}
    for name in names:
        shares = []
        for key in ("classes", "classes_alone"):
            of_class = [one[key][name] for one in results if name in one[key]]
            requests_ = sum(one["requests"] for one in of_class)
            shares.append((sum(one["attained"] for one in of_class) / max(1, requests_), requests_))
        found[name] = shares[0][0], shares[1][0], shares[0][1]
    return found


def command(seed: int, index: int) -> str:
    """What repeats a bed."""
    return f"qlm bench finish --bed {index} --seed {seed}"


def report(results: Sequence[Result]) -> str:
    """Tables for people, as Markdown."""
    lines = [
        "| said | batches | within p50 | within p90 | verdicts right | came / p50, median | spread |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in moments(results):
        cells = [one.name, str(one.batches)]
        for quantile, target in QUANTILES:
            share, known = one.covered[quantile]
            met = "" if abs(share - target) <= TOLERANCE else " (!)"
            cells.append(f"{share:.0%} of {known}{met}")
        cells.append(f"{one.right:.0%}{'' if one.right >= VERDICTS else ' (!)'}")
        middle, spread = one.error
        cells += [f"{exp(middle):.2f}", f"x{exp(spread):.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        f"wanted: 50 and 90 %, {TOLERANCE:.0%} either way; {VERDICTS:.0%} of verdicts. (!) is beyond that.",
        "",
        "| class | requests | attained with batches | without |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {count} | {beside:.2%} | {alone:.2%} |"
        for name, (beside, alone, count) in attainment(results).items()
    ]
    return "\n".join(lines)


def bed_report(result: Result) -> str:
    """What was said of each batch of one bed, and what came."""
    lines = [
        f"bed {result['bed']}: {result['about']}",
        "",
        "| batch | lines | window s | took s | said | p50 s | p90 s | came s | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for number, batch in enumerate(result["batches"]):
        took = "not in time" if batch["took_s"] is None else f"{batch['took_s']:.1f}"
        for name, said in batch["told"].items():
            if said is None:
                continue
            came = "" if said["came_s"] is None else f"{said['came_s']:.1f}"
            head = [str(number), str(batch["lines"]), f"{batch['window_s']:.0f}", took]
            tail = [f"{said['p50_s']:.1f}", f"{said['p90_s']:.1f}", came, said["explanation"]]
            lines.append("| " + " | ".join([*head, name, *tail]) + " |")
    return "\n".join(lines)


def write(results: Sequence[Result], path: Path) -> None:
    """All there is to know, as JSON. Raises ConfigError for a file that cannot be written."""
    try:
        path.write_text(json.dumps({"beds": list(results)}, indent=1), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}. Give another name.") from None
