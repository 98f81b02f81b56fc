"""How fast the simulator is: W_A on 50 GPUs under every policy, and a million requests of a 14-day trace on 200."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

from benchmarks.figures import Figure
from qlm import simulations
from qlm.traces import read_rate_windows
from qlm_core.sim.policies import policy_names

SCENARIOS = Path(__file__).with_name("scenarios")
TRACE = Path(__file__).resolve().parents[2] / "shared/data/traces/servegen_clients_14d_top20.csv.gz"
WINDOW_S = 600.0
MIX = "interactive=0.5,batch-1=0.3,batch-2=0.2"


def measure(*, requests: int = 1_000_000, trace: Path = TRACE, policy: str = "qlm") -> list[Figure]:
    """Time and memory of both. The trace is ServeGen's, scaled so that it holds about as many requests.

    Raises:
        TableError: the trace cannot be read.
    """
    figures = []
    bed = simulations.bed_of_scenario(SCENARIOS / "w-a-50.yaml")
    runs = simulations.run_all(bed, policy_names(), [0], jobs=1, progress=_say)
    figures += [
        Figure(
            name=f"W_A, 3,500 requests, 50 GPUs, {one['policy']}",
            value=one["wall_s"],
            unit="s",
            most=10,
        )
        for one in runs
    ]
    stated = sum(window.rate_rps for window in read_rate_windows(trace)) * WINDOW_S
    bed = simulations.bed_of_trace(
        trace,
        fleet=SCENARIOS / "fleet-200.yaml",
        mix=MIX,
        models=None,
        rate_scale=1.02 * requests / stated,
        limit=requests,
    )
    [run] = simulations.run_all(bed, [policy], [0], jobs=1, progress=_say)
    name = (
        f"{run['requests']:,} requests in {run['makespan_s'] / 86_400:.1f} days, 200 GPUs, {policy}"
    )
    # The largest of the processes that ran simulations; in KiB, but for macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit
    return [
        *figures,
        Figure(name=name, value=run["wall_s"] / 60, unit="min", most=15 * requests / 1e6),
        Figure(name="largest memory", value=memory / 1e9, unit="GB", most=4),
        Figure(
            name="lost or twice", value=run["lost"] + run["duplicated"], unit="requests", most=0
        ),
    ]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
