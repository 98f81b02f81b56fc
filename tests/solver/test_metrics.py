"""What the solver publishes of batches."""

from __future__ import annotations

import time

from msgspec.structs import replace
from prometheus_client import CollectorRegistry

from protos.doors import Rejections
from qlm_core.config import Config, SolverConfig
from qlm_core.manager import Manager
from qlm_core.messages import Pulled
from qlm_core.model import AgentId
from solver.driver import Driver
from solver.metrics import ManagerCollector
from solver.planning import PlanningCounts
from tests.manager.conftest import CLASSES, Bench
from tests.manager.lines import bulk, look, release, run_line
from tests.solver.test_sessions import InlinePlanner


def registry_of(bench: Bench) -> CollectorRegistry:
    driver = Driver(Config(), InlinePlanner(), clock=time.monotonic)
    driver.manager = bench.manager
    registry = CollectorRegistry()
    registry.register(ManagerCollector(driver, PlanningCounts(), Rejections()))
    return registry


async def test_batches_are_counted_by_where_their_lines_stand() -> None:
    solver = replace_limit(2)
    bench = Bench(Manager(solver, CLASSES, now_s=0.0))
    bench.gateway()
    a = bench.agent("a", "m")
    told = bulk(bench, 1_000)
    bench.fact(told)
    first, *_ = release(bench, told, 30)
    bench.fact(Pulled(first, AgentId(a)))
    bench.fact(bulk(bench, 50_000, batch="late", window_s=60.0, tenant="other"))
    bench.fact(bulk(bench, 10, batch="beyond"))
    look(bench)
    registry = registry_of(bench)

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, labels)

    assert value("qlm_batches") == 2
    assert value("qlm_bulk_lines", model="m", state="unreleased") == 50_970
    assert value("qlm_bulk_lines", model="m", state="waiting") == 29
    assert value("qlm_bulk_lines", model="m", state="held") == 1
    assert value("qlm_batches_infeasible") == 1
    assert value("qlm_batches_not_planned_total") == 1
    # Lines that are no requests yet are no waiting requests.
    assert value("qlm_waiting_requests", model="m", slo_class="batch-2") == 29


async def test_finish_times_that_held_are_counted_by_how_much_was_done() -> None:
    bench = Bench(Manager(Config().solver, CLASSES, now_s=0.0))
    bench.gateway()
    a = bench.agent("a", "m")
    told = bulk(bench, 5)
    bench.fact(told)
    look(bench)
    for id in release(bench, told, 5):
        run_line(bench, id, a)
    look(bench)
    registry = registry_of(bench)
    labels = {"done": "0.00", "estimate": "p90"}
    assert registry.get_sample_value("qlm_finish_estimate_coverage_ratio", labels) == 1.0


def replace_limit(batches: int) -> SolverConfig:
    return replace(Config().solver, limits=replace(Config().solver.limits, batches_max=batches))
