"""One scenario in the simulator and on the real service: do both meet the same SLOs?

The service runs as `qlm up` runs it, every process real, with simulated engines in real time; its requests come over
gRPC. The simulator runs the same requests on the same fleet. What differs is what is meant to: clocks, sockets, processes
and a planner that is bounded by time instead of work.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from benchmarks.figures import Figure
from qlm import fleet, load, replay, simulations
from qlm_core.config import AgentConfig, Config, ModelConfig
from qlm_core.sim.scenario import Scenario, instances
from qlm_core.sim.workload import WorkloadRequest

SCENARIO = Path(__file__).with_name("scenarios") / "real-time.yaml"
WITHIN = 0.02
"""Attainment may differ by so much (two points)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Both:
    """Attainment in the simulator and on the service: over all requests, and by class."""

    requests: int
    simulated: float
    served: float
    simulated_classes: dict[str, float]
    served_classes: dict[str, float]
    lost: int

    @property
    def difference(self) -> float:
        """Of attainment, service less simulator."""
        return self.served - self.simulated


def measure(*, seeds: int = 1, scenario: Path = SCENARIO) -> list[Figure]:
    """Run the scenario both ways with each seed."""
    figures = []
    for seed in range(seeds):
        both = compare(simulations.bed_of_scenario(scenario), seed=seed)
        name = f"seed {seed}: "
        figures += [
            Figure(name=name + "SLOs met, simulator", value=100 * both.simulated, unit="%"),
            Figure(name=name + "SLOs met, service", value=100 * both.served, unit="%"),
            *(
                Figure(
                    name=f"{name}{one}, service less simulator",
                    value=100 * (both.served_classes[one] - both.simulated_classes[one]),
                    unit="points",
                )
                for one in both.simulated_classes
            ),
            Figure(
                name=name + "difference",
                value=100 * abs(both.difference),
                unit="points",
                most=100 * WITHIN,
            ),
            Figure(name=name + "lost", value=both.lost, unit="requests", most=0),
        ]
    return figures


def compare(bed: simulations.Bed, *, seed: int) -> Both:
    """Attainment of policy `qlm` both ways."""
    requests = list(bed.requests(seed))
    simulated = simulations.run_one(bed, "qlm", seed)
    with tempfile.TemporaryDirectory(prefix="qlm-decisions-") as name:
        report = asyncio.run(_served(bed.scenario, requests, Path(name)))
    attained = {one.name: one.attained for one in report.classes}
    counts = {one.name: one.requests for one in report.classes}
    return Both(
        requests=len(requests),
        simulated=simulated["slo_attainment"],
        served=sum(attained.values()) / max(1, sum(counts.values())),
        simulated_classes={
            one: figures["attainment"] for one, figures in simulated["classes"].items()
        },
        served_classes={one: attained[one] / counts[one] for one in counts},
        lost=report.fates["lost"],
    )


def service_config(scenario: Scenario, folder: Path) -> Config:
    """The service's configuration of a scenario's fleet, on free loopback ports."""
    longest = 1 << 20
    agents = tuple(
        AgentConfig(
            name=spec.name,
            gpu=spec.gpu,
            # An agent wakes the first of its models.
            models=(spec.awake, *(one.model for one in spec.profiles if one.model != spec.awake)),
            executor=scenario.executor,
            report_interval_s=scenario.simulation.report_interval_s,
            host_memory_bytes=spec.host_memory_bytes,
        )
        for spec in instances(scenario.fleet)
    )
    models = {model: ModelConfig(max_model_len=longest) for one in agents for model in one.models}
    base = msgspec.structs.replace(
        Config(),
        models=models,
        slo_classes=scenario.slo_classes,
        default_slo_class=next(iter(scenario.slo_classes)),
        solver=msgspec.structs.replace(scenario.solver, backend="search"),
        agents=agents,
    )
    return fleet.temporary_config(folder, base=base)


async def _served(
    scenario: Scenario, requests: Sequence[WorkloadRequest], folder: Path
) -> replay.Report:
    config = service_config(scenario, folder)
    url = f"http://{config.gateway.http_listen}"
    target = replay.Target(
        url=url,
        grpc_address=config.gateway.grpc_listen,
        transport="grpc",
        metrics_urls=replay.metrics_urls(config, url),
    )
    async with fleet.running(config, folder):
        report, _ = await replay.measured(
            requests, target, slos=replay.slos_of(config), bodies=load.Bodies()
        )
    return report
