"""The planner's benchmark: gaps, bounds, repairs and build times by size, backend and budget.

Runs over the instances in a folder (by default the data folder beside the checkout,
../shared/instances) and, for 10,000 groups on 1,000 queues, over one that is generated. Every solve
goes through the pool, as in the service. Results are JSON lines, one a cell, and a table.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from qlm_core.planning import (
    Plan,
    PlanResult,
    Problem,
    evaluate,
    from_instance,
    greedy,
    plan_from_json,
    repair,
)
from qlm_core.planning.compiled import compiled_kernels, compiled_pricing
from solver.backends import available, load, warm_up
from solver.backends.order import Order
from solver.backends.report import Desk
from solver.pool import Pool, search_s

ROOT = Path(__file__).resolve().parents[1]
INSTANCES = ROOT.parent / "shared" / "instances"
RESULTS = ROOT / "benchmarks" / "results" / "planner.ndjson"
SIZES = ("n8g2", "n16g4", "n32g4", "n100g10", "n300g30", "n1000g200")
COMPACT_SIZES = ("n8g2", "n16g4", "n32g4")


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One problem and what is known of it."""

    problem: Problem
    best_plan: Plan
    best: float


def read_instances(folder: Path, size: str, most: int) -> list[Instance]:
    """The instances of a size, in order of name."""
    found = []
    for path in sorted(folder.glob(f"{size}_*.json"))[:most]:
        document = json.loads(path.read_text())
        plan = plan_from_json(document)
        problem = from_instance(document)
        best = evaluate(problem, plan).objective
        found.append(Instance(problem=problem, best_plan=plan, best=best))
    return found


def huge_instance(seed: int = 0) -> Instance:
    """10,000 groups on 1,000 queues of two classes; the best known is the greedy plan's."""
    r = np.random.default_rng(seed)
    groups, queues, models = 10_000, 1_000, 6
    base = np.round(np.clip(4.0 * np.exp(0.6 * r.standard_normal(groups)), 0.2, 60.0), 1)
    swap = np.full((2, models + 1, models), 3.0)
    swap[1] = 6.0
    swap[:, np.arange(models), np.arange(models)] = 0.0
    slo_s = r.choice([20.0, 60.0, 3600.0], groups, p=[0.5, 0.3, 0.2])
    problem = Problem(
        group_model=r.integers(0, models, groups),
        group_requests=r.integers(1, 33, groups),
        group_weight=r.choice([1.0, 2.0, 4.0], groups),
        due_s=np.round(slo_s * (1.0 - 0.9 * r.random(groups)), 1),
        duration_s=np.stack([base, 2.5 * base], axis=1),
        queue_class=np.arange(queues) % 2,
        loaded_model=r.integers(0, models, queues),
        busy_s=np.round(8.0 * r.random(queues), 1),
        swap_s=swap,
        name="n10000g1000_0",
    )
    plan = greedy(problem)
    return Instance(problem=problem, best_plan=plan, best=evaluate(problem, plan).objective)


def arrivals(instance: Instance, seed: int) -> Plan:
    """The best plan without a fiftieth of its groups, as if those had just arrived."""
    r = np.random.default_rng(seed)
    count = instance.problem.groups
    new = dict.fromkeys(r.choice(count, max(1, count // 50), replace=False).tolist())
    return tuple(tuple(i for i in queue if i not in new) for queue in instance.best_plan)


def time_repairs(instance: Instance, times: int = 25) -> float:
    """Median seconds of a repair after one group arrived."""
    r = np.random.default_rng(0)
    spent = []
    for group in r.integers(0, instance.problem.groups, times).tolist():
        previous = tuple(tuple(i for i in q if i != group) for q in instance.best_plan)
        begin_s = time.perf_counter()
        repair(instance.problem, previous)
        spent.append(time.perf_counter() - begin_s)
    return statistics.median(spent)


def solve_by_cpu_time(
    problem: Problem, *, backend: str, formulation: str, budget_s: float, warm: Plan | None
) -> PlanResult:
    """One solve in this process, its budget counted in seconds of CPU: for machines that are shared."""
    order = Order(
        number=0,
        backend=backend,
        formulation=formulation,
        budget_s=budget_s,
        search_s=search_s(budget_s),
        warm=warm,
    )
    desk = Desk(
        clock=time.thread_time,
        kernels=compiled_kernels(),
        pricing=compiled_pricing(),
        on_improvement=lambda _plan, _objective: None,
        on_bound=lambda _bound: None,
    )
    result: PlanResult = load(backend)(problem, order, desk)
    return result


async def measure(
    pool: Pool | None,
    instance: Instance,
    *,
    backend: str,
    formulation: str,
    budget_s: float,
    warm: bool,
) -> dict[str, float | None]:
    """One solve, through the pool or, without one, by CPU time."""
    start = arrivals(instance, 1) if warm else None
    problem = instance.problem
    if warm:
        # Leaving home costs a hundredth of what a group costs on average.
        price = np.full(problem.groups, 0.01 * instance.best / problem.groups)
        homes = _homes(problem.groups, start or ())
        problem = replace(problem, home=homes, move_cost=price)
    asked: dict[str, Any] = {"backend": backend, "formulation": formulation, "budget_s": budget_s}
    if pool is None:
        result = solve_by_cpu_time(problem, **asked, warm=start)
    else:
        result = await pool.solve(problem, **asked, warm=start, wait_compiled=True)
    assert result.plan is not None
    bound = result.lower_bound
    return {
        "gap": evaluate(instance.problem, result.plan).objective / instance.best - 1.0,
        "bound_gap": None if bound is None else (instance.best - bound) / instance.best,
        "proven": float(result.termination.value == "optimal"),
        "wall_s": result.wall_s,
        "setup_s": result.setup_s,
        "stepped_down": float(len(result.step_downs)),
        "memory_mib": _memory_mib(pool, result.backend),
        "moved": evaluate(problem, result.plan).moves / max(1, problem.groups),
    }


def _memory_mib(pool: Pool | None, backend: str) -> float | None:
    """The most memory that a backend's process has held so far; None without /proc."""
    pid = "self" if pool is None else pool.process_of(backend).pid
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        return None
    held = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(held.split()[1]) / 1024.0


def _homes(groups: int, plan: Plan) -> Any:
    homes = np.full(groups, -1)
    for number, queue in enumerate(plan):
        homes[list(queue)] = number
    return homes


def summary(rows: Iterable[dict[str, float | None]]) -> dict[str, float | None]:
    """Median (and worst gap) of each measure."""
    listed = list(rows)
    out: dict[str, float | None] = {}
    for key in listed[0]:
        values = [row[key] for row in listed if row[key] is not None]
        out[key] = statistics.median(values) if values else None
    out["worst_gap"] = max(row["gap"] or 0.0 for row in listed)
    out["instances"] = float(len(listed))
    return out


def cells(backends: tuple[str, ...], budgets: tuple[float, ...], size: str) -> list[dict[str, Any]]:
    """What to measure at a size."""
    found: list[dict[str, Any]] = []
    for backend in backends:
        formulations = ["paths"]
        if backend in ("gurobi", "highs", "pulp") and size in COMPACT_SIZES:
            formulations += ["slot", "arc", "block"]
        if backend in ("highs", "pulp", "gurobi", "cpsat") and size not in COMPACT_SIZES:
            continue
        for formulation in formulations:
            for budget_s in (0.0,) if backend == "greedy" else budgets:
                found.append(
                    {"backend": backend, "formulation": formulation, "budget_s": budget_s or 0.05}
                )
    return found


async def run(
    *,
    folder: Path = INSTANCES,
    sizes: tuple[str, ...] = SIZES,
    backends: tuple[str, ...] = (),
    budgets: tuple[float, ...] = (0.05, 0.2, 1.0),
    most: int = 5,
    huge: bool = False,
    cpu_time: bool = False,
) -> list[dict[str, Any]]:
    """Measure everything asked for; one record a cell."""
    warm_up.load()
    records: list[dict[str, Any]] = []
    chosen = backends or available()
    for size in (*sizes, *(("n10000g1000",) if huge else ())):
        found = [huge_instance()] if size == "n10000g1000" else read_instances(folder, size, most)
        if not found:
            continue
        repair_s = statistics.median(time_repairs(instance) for instance in found)
        records.append({"size": size, "measure": "repair", "repair_s": repair_s})
        for warm in (False, True):
            for cell in cells(chosen, budgets[:1] if warm else budgets, size):
                if warm and cell["formulation"] != "paths":
                    continue
                pool = None if cpu_time else Pool()
                try:
                    rows = [await measure(pool, each, **cell, warm=warm) for each in found]
                finally:
                    if pool is not None:
                        await pool.close()
                records.append(
                    {"size": size, "warm": warm, "cpu_time": cpu_time, **cell, **summary(rows)}
                )
                print(line(records[-1]), flush=True)
    return records


def line(record: dict[str, Any]) -> str:
    """A record as a row of the table."""
    gap, bound = 100 * record["gap"], record["bound_gap"]
    return (
        f"{record['size']:>12} {record['backend']:>7}/{record['formulation']:<6}"
        f" {'warm' if record['warm'] else 'cold'} {1e3 * record['budget_s']:6.0f} ms"
        f"  gap {gap:7.3f} % (worst {100 * record['worst_gap']:.2f})"
        f"  bound {'-' if bound is None else format(100 * bound, '.2f') + ' %'}"
        f"  proven {record['proven']:.0f}  moved {100 * record['moved']:.0f} %"
        f"  set-up {1e3 * record['setup_s']:.0f} ms  memory {record['memory_mib'] or 0.0:.0f} MiB"
    )


def save(records: list[dict[str, Any]], file: Path = RESULTS) -> None:
    """Append the records, with the commit, as JSON lines."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as out:
        for record in records:
            out.write(json.dumps({"commit": commit, **record}) + "\n")


def plot(records: list[dict[str, Any]], file: Path) -> None:
    """Median gap against budget, a line a size, for the portfolio and the search."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    cold = [r for r in records if r.get("warm") is False and r["backend"] in ("auto", "search")]
    for key in dict.fromkeys((r["size"], r["backend"]) for r in cold):
        points = [(r["budget_s"], 100 * r["gap"]) for r in cold if (r["size"], r["backend"]) == key]
        style = "-" if key[1] == "auto" else "--"
        axes.plot(*zip(*sorted(points), strict=True), style, marker="o", label=" ".join(key))
    axes.set_xscale("log")
    axes.set_yscale("symlog", linthresh=0.1)
    axes.set_xlabel("budget, s")
    axes.set_ylabel("median gap to the best known plan, %")
    axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(file, dpi=120)


def main(arguments: dict[str, Any], plot_file: Path | None, results: Path) -> int:
    """Run, print, save; 1 if there was nothing to measure."""
    records = asyncio.run(run(**arguments))
    if not records:
        print("no instances found: see --instances")
        return 1
    for record in records:
        if record.get("measure") == "repair":
            print(f"{record['size']:>12} repair of one change {1e3 * record['repair_s']:.2f} ms")
    save(records, results)
    if plot_file is not None:
        plot(records, plot_file)
    return 0
