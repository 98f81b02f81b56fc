"""`qlm sim faults`: many seeds, one with its trace, or a schedule from a file; failures are made short and can be repeated."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from qlm.simulations import in_processes
from qlm_core.errors import ConfigError
from qlm_core.sim.faults.drawing import draw
from qlm_core.sim.faults.run import Failure, Outcome, run
from qlm_core.sim.faults.schedule import Schedule, from_text, to_text
from qlm_core.sim.faults.shrink import shrink

_BLOCK = 25
"""Seeds that a process runs before it reports; a few blocks a process are one report to whoever watches."""
_BLOCKS_A_REPORT = 4


@dataclass(frozen=True, slots=True)
class Failed:
    """A seed and how it failed."""

    seed: int
    failure: Failure

    def line(self) -> str:
        """What to say of it, and how to see it again."""
        said = f"{self.failure.checker}: {self.failure.words}"
        return f"qlm sim faults --seed {self.seed}  # {self.failure.at_s:.2f} s, {said}"


def seeds_of(text: str) -> range:
    """The seeds `A:B`, from A up to but not B. Raises ConfigError."""
    first, colon, last = text.partition(":")
    if not (colon and first.isdecimal() and last.isdecimal() and int(first) < int(last)):
        raise ConfigError(
            f"--seeds: {text!r} is no range. Write it as 0:200, the last not included."
        )
    return range(int(first), int(last))


def run_seeds(seeds: range, *, jobs: int, keep: str | None) -> int:
    """Run many seeds; print a line for each that fails, and the first failure made short. Status 1 if any fails."""
    failed: list[Failed] = []
    begin_s, done = time.monotonic(), 0
    for blocks in _reports(seeds, jobs):
        names = [f"seeds {block.start}:{block.stop}" for block in blocks]
        found = in_processes(
            [(block,) for block in blocks], run_block, names, jobs=jobs, progress=_quiet
        )
        for one in [one for some in found for one in some]:
            failed.append(one)
            print(one.line(), flush=True)
        done += sum(map(len, blocks))
        per_min = 60.0 * done / (time.monotonic() - begin_s)
        _say(f"{done}/{len(seeds)} seeds, {len(failed)} failed, {per_min:.0f} seeds/min")
    if failed:
        _explain(draw(failed[0].seed), failed[0].failure, keep)
    return 1 if failed else 0


def run_block(block: range, *, watch: object = None) -> list[Failed]:  # noqa: ARG001
    """The seeds of a block that fail."""
    outcomes = [(seed, run(draw(seed))) for seed in block]
    return [Failed(seed, one.failure) for seed, one in outcomes if one.failure is not None]


def run_seed(seed: int, *, keep: str | None) -> int:
    """Run one seed with its trace; a failure is made short. Status 1 if it fails."""
    return _run_traced(draw(seed), keep)


def run_events(name: str, *, keep: str | None) -> int:
    """Run the schedule in a file with its trace. Status 1 if it fails."""
    try:
        text = Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--events: {name}: {error}. Name a file of qlm sim faults.") from None
    return _run_traced(from_text(text, name), keep)


def _run_traced(schedule: Schedule, keep: str | None) -> int:
    outcome = run(schedule, trace=print)
    if outcome.failure is None:
        _say(f"all is well: {outcome.requests} requests, {len(schedule.faults)} faults")
        return 0
    _explain(schedule, outcome.failure, keep)
    return 1


def _explain(schedule: Schedule, failure: Failure, keep: str | None) -> None:
    """Make a failure short, and show what it takes or write it down."""
    events = len(schedule.faults) + len(schedule.asks) + len(schedule.batches)
    _say(f"{failure.checker}: making seed {schedule.seed} short, which has {events} events")
    short, outcome = shrink(schedule, failure.checker)
    text = to_text(short)
    _say(_sum_up(short, outcome))
    if keep is None:
        print(text, end="")
        _say("write these lines to a file and run: qlm sim faults --events FILE")
        return
    try:
        Path(keep).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--keep: {keep}: {error.strerror}.") from None
    _say(f"wrote {keep}; run it with: qlm sim faults --events {keep}")


def _sum_up(short: Schedule, outcome: Outcome) -> str:
    failure = outcome.failure
    assert failure is not None
    batches = f", {len(short.batches)} batches" if short.batches else ""
    counts = f"{len(short.faults)} faults{batches} and {len(short.asks)} requests"
    return f"it takes {counts}: {failure.checker}: {failure.words}"


def _reports(seeds: range, jobs: int) -> Iterator[list[range]]:
    blocks = (
        range(first, min(first + _BLOCK, seeds.stop))
        for first in range(seeds.start, seeds.stop, _BLOCK)
    )
    while report := list(islice(blocks, jobs * _BLOCKS_A_REPORT)):
        yield report


def _quiet(_: str) -> None:
    """A block is too little to tell of."""


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
