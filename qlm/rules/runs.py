"""`qlm` on random beds with all rules and with one of them out, bed by bed, and the pairs of runs as files."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import msgspec

from qlm.bounds import weighted
from qlm.regret import OURS, REFERENCE, bed_to_run, best_rival
from qlm.rules import is_rule, rule_named
from qlm.rules.registry import Rule, scenario_without, taken_out
from qlm.simulations import Progress, Run, in_processes, run_one
from qlm_core.errors import ConfigError
from qlm_core.sim.beds import DrawnBed, draw_bed
from qlm_core.sim.policies import policy_names

_SLOW = ("qlm-paper",)
_R2_LEAST = -1.0
"""R² of estimates has no lower end; below this all are alike."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """`qlm` on one bed.

    Attributes:
        weighted, plain: attainment, in points (hundredths).
        off_p50, off_p90: how far the shares of waits within p50 and p90 are from their claims, in points; None without estimates.
        r2: of estimated waits, cut at -1.
        cpu_s: of the run.
    """

    weighted: float
    plain: float
    off_p50: float | None
    off_p90: float | None
    r2: float | None
    cpu_s: float


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """One bed with a rule and without it.

    Attributes:
        best: weighted attainment of the best rival there, in points.
        touched: whether anything at all is different.
    """

    seed: int
    bed: int
    whole: Outcome
    without: Outcome
    best: float
    touched: bool


Pairs = dict[str, list[Pair]]
"""By rule."""


# --------------------------------------------------------------------------- running


def cut_bed(bed: DrawnBed, requests: int) -> DrawnBed:
    """A bed that ends after so many requests, if it has more."""
    work = bed.scenario["workload"]
    shorter = work | {"requests": min(requests, work["requests"])}
    return replace(bed, scenario=bed.scenario | {"workload": shorter})


def run_without(
    bed: DrawnBed, policy: str, rule: str, watch: Callable[[int], None] | None = None
) -> Run:
    """A policy on a bed with one rule out, with all of them if `rule` is empty; `cpu_s` is added to the figures."""
    found = rule_named(rule) if rule else None
    plain = bed_to_run(bed)
    changed = replace(plain, scenario=scenario_without(plain.scenario, found))
    _load_kernels()
    begin_s = time.process_time()
    with taken_out(found):
        run = run_one(changed, policy, bed.run_seed, watch=watch)
    return run | {"cpu_s": time.process_time() - begin_s}


@cache
def _load_kernels() -> None:
    """Once in each process, so that no run pays for it."""
    from solver.backends.warm_up import load

    load()


def measure(
    rules: Sequence[Rule],
    *,
    seed: int,
    beds: int,
    requests: int,
    jobs: int,
    progress: Progress,
) -> Pairs:
    """Run everything; rivals but for the slow one, once a bed."""
    drawn = tuple(cut_bed(draw_bed(seed, index), requests) for index in range(beds))
    rivals = [name for name in policy_names() if name not in (OURS, REFERENCE, *_SLOW)]
    # Bed by bed, so that what else the machine does is in the seconds with and without a rule alike.
    variants = [(OURS, rule) for rule in ("", *(one.name for one in rules))]
    variants += [(name, "") for name in rivals]
    wanted = [(bed, policy, rule) for bed in drawn for policy, rule in variants]
    found = in_processes(
        wanted,
        run_without,
        [f"bed {bed.index}, {name} without {rule or 'nothing'}" for bed, name, rule in wanted],
        jobs=jobs,
        progress=progress,
    )
    width = len(variants)
    by_bed = [found[start : start + width] for start in range(0, len(found), width)]
    pairs: Pairs = {rule.name: [] for rule in rules}
    for bed, runs in zip(drawn, by_bed, strict=True):
        whole, of_rivals = runs[0], runs[len(rules) + 1 :]
        best = best_rival({run["policy"]: weighted(run, _weights(bed)) for run in of_rivals})[1]
        for rule, run in zip(rules, runs[1:], strict=False):
            pair = Pair(
                seed=bed.seed,
                bed=bed.index,
                whole=outcome(bed, whole),
                without=outcome(bed, run),
                best=100 * best,
                touched=_figures(whole) != _figures(run),
            )
            pairs[rule.name].append(pair)
    return pairs


def outcome(bed: DrawnBed, run: Run) -> Outcome:
    """The figures of one run that rules are judged by."""
    rwt = run["rwt"]
    return Outcome(
        weighted=100 * weighted(run, _weights(bed)),
        plain=100 * run["slo_attainment"],
        off_p50=_off(rwt["coverage_p50"], 0.5),
        off_p90=_off(rwt["coverage_p90"], 0.9),
        r2=None if rwt["r2"] is None else max(_R2_LEAST, rwt["r2"]),
        cpu_s=run["cpu_s"],
    )


def _weights(bed: DrawnBed) -> dict[str, float]:
    return {name: one["weight"] for name, one in bed.scenario["slo_classes"].items()}


def _off(coverage: float | None, claimed: float) -> float | None:
    return None if coverage is None else 100 * abs(coverage - claimed)


def _figures(run: Run) -> dict[str, Any]:
    """All that a run says of itself but for how long it took."""
    return {key: value for key, value in run.items() if key not in ("wall_s", "cpu_s", "policy")}


# --------------------------------------------------------------------------- files


def to_json(pairs: Pairs) -> str:
    """All pairs of all rules."""
    return msgspec.json.encode({"pairs": pairs}).decode()


def from_json(text: str, where: str) -> Pairs:
    """The pairs of an earlier run.

    Raises:
        ConfigError: it is none.
    """
    try:
        return msgspec.json.decode(text, type=_Written).pairs
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise ConfigError(f"{where}: {error}. Name a file of `qlm bench rules --json`.") from None


class _Written(msgspec.Struct):
    pairs: Pairs


def together(one: Pairs, other: Pairs) -> Pairs:
    """Pairs of two runs as of one; of a bed that both have, those of the second.

    Rules that `rules` does not know any more are left out.
    """
    found: Pairs = {}
    for name in (*one, *other):
        by_bed = {
            (pair.seed, pair.bed): pair for pair in (*one.get(name, ()), *other.get(name, ()))
        }
        if is_rule(name):
            found[name] = list(by_bed.values())
    return found
