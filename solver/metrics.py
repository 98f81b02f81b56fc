"""The solver's Prometheus metrics, read from the Manager when somebody asks (docs/metrics.md)."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from protos.doors import Rejections
from qlm_core.manager.advice import advice
from qlm_core.manager.finishes import STAGES
from solver.driver import Driver
from solver.planning import PlanningCounts


class ManagerCollector(Collector):
    """Turns the Manager's state into metrics at scrape time, so that keeping them costs nothing."""

    def __init__(self, driver: Driver, planning: PlanningCounts, rejections: Rejections):
        self._driver = driver
        self._planning = planning
        self._rejections = rejections

    def collect(self) -> Iterator[Metric]:
        """All metrics of the solver."""
        yield from self._queues()
        yield from self._plan()
        yield from self._estimates()
        yield from self._batches()
        yield from self._backends()
        rejected = CounterMetricFamily(
            "qlm_peers_rejected", "Peers turned away at a door.", labels=["door", "reason"]
        )
        for labels, count in self._rejections.counts.items():
            rejected.add_metric(list(labels), count)
        yield rejected

    def _queues(self) -> Iterator[Metric]:
        manager = self._driver.manager
        waiting = GaugeMetricFamily(
            "qlm_waiting_requests", "Requests in virtual queues.", labels=["model", "slo_class"]
        )
        oldest = GaugeMetricFamily(
            "qlm_starvation_max_age_seconds",
            "Age of the oldest waiting request.",
            labels=["slo_class"],
        )
        counts: dict[tuple[str, str], int] = {}
        ages: dict[str, float] = {}
        now_s = self._driver.now_s()
        for group in manager.groups.values():
            key = (group.key.model, group.key.slo_class)
            counts[key] = counts.get(key, 0) + group.released
            first = group.first()
            if first is not None:
                age_s = now_s - first.arrival_s
                ages[key[1]] = max(ages.get(key[1], 0.0), age_s)
        for labels, count in counts.items():
            waiting.add_metric(list(labels), count)
        for slo_class, age_s in ages.items():
            oldest.add_metric([slo_class], age_s)
        yield waiting
        yield oldest
        yield GaugeMetricFamily("qlm_groups", "Request groups.", value=len(manager.groups))
        yield GaugeMetricFamily("qlm_agents", "Agents with a lease.", value=len(manager.agents))
        yield GaugeMetricFamily("qlm_epoch", "Epoch of the plan in force.", value=manager.epoch)
        facts = CounterMetricFamily(
            "qlm_manager_facts", "Facts the Manager has taken in.", labels=["fact"]
        )
        for fact, count in manager.counts.items():
            facts.add_metric([fact], count)
        yield facts

    def _plan(self) -> Iterator[Metric]:
        planner = self._driver.manager.planner
        yield CounterMetricFamily("qlm_plan_repairs", "Plans repaired.", value=planner.repairs)
        yield CounterMetricFamily("qlm_plan_adoptions", "Plans adopted.", value=planner.adopted)
        yield CounterMetricFamily(
            "qlm_plan_moved_groups", "Groups that changed queue.", value=planner.moved
        )
        plan, now_s = planner.in_force, self._driver.now_s()
        yield _known(
            "qlm_plan_objective",
            "Objective of the plan in force.",
            None if plan is None else plan.objective,
        )
        yield _known(
            "qlm_plan_late_weight",
            "Weighted requests planned late.",
            None if plan is None else plan.late_weight,
        )
        yield _known(
            "qlm_plan_gap_ratio",
            "(objective - bound) / objective.",
            None if plan is None else plan.gap,
        )
        bound_at_s = None if plan is None or plan.gap is None else plan.bound_at_s
        yield _known(
            "qlm_plan_bound_age_seconds",
            "Age of the bound.",
            None if bound_at_s is None else now_s - bound_at_s,
        )
        yield from self._capacity()

    def _capacity(self) -> Iterator[Metric]:
        cost = GaugeMetricFamily(
            "qlm_capacity_value",
            "Objective that one more instance of this GPU would save at most, from the duals.",
            labels=["gpu"],
        )
        late = GaugeMetricFamily(
            "qlm_capacity_late_weight",
            "The same in weighted late requests.",
            labels=["gpu"],
        )
        present = GaugeMetricFamily(
            "qlm_instances", "Instances that may be planned on.", labels=["gpu"]
        )
        busy = GaugeMetricFamily(
            "qlm_instances_busy", "How many of them their work would fill.", labels=["gpu"]
        )
        needed = GaugeMetricFamily(
            "qlm_instances_needed",
            "Instances that keep targets, the other GPUs as they are, for autoscalers.",
            labels=["gpu"],
        )
        for one in advice(self._driver.manager, now_s=self._driver.now_s()):
            cost.add_metric([one.gpu], one.saves_cost)
            late.add_metric([one.gpu], one.saves_late_weight)
            present.add_metric([one.gpu], one.instances)
            busy.add_metric([one.gpu], one.busy)
            needed.add_metric([one.gpu], one.needed)
        yield from (cost, late, present, busy, needed)

    def _estimates(self) -> Iterator[Metric]:
        estimators = self._driver.manager.estimators
        coverage = GaugeMetricFamily(
            "qlm_wait_estimate_coverage_ratio",
            "Share of realised waits within the estimated quantile.",
            labels=["model", "estimate"],
        )
        for model, known in estimators.calibrations.items():
            for estimate, share in zip(("p50", "p90", "p99"), known.coverage, strict=True):
                coverage.add_metric([model, estimate], share)
        yield coverage
        speed = GaugeMetricFamily(
            "qlm_engine_speed_ratio", "Real over profiled speed.", labels=["gpu", "model"]
        )
        for labels, factor in estimators.speeds.items():
            speed.add_metric(list(labels), factor)
        yield speed

    def _batches(self) -> Iterator[Metric]:
        manager = self._driver.manager
        batches = manager.bulks.by_batch()
        yield GaugeMetricFamily("qlm_batches", "Batches that are not over.", value=len(batches))
        lines = GaugeMetricFamily(
            "qlm_bulk_lines", "Lines of batches, by where they stand.", labels=["model", "state"]
        )
        late = 0
        counts: dict[tuple[str, str], int] = {}
        for bulk in manager.bulks:
            states = {"unreleased": bulk.unreleased, "waiting": bulk.at_hand, "held": bulk.held}
            for state, count in states.items():
                key = (bulk.key.model, state)
                counts[key] = counts.get(key, 0) + count
        for batch in batches:
            said = manager.finishes.of(batch)
            late += said is not None and not said.feasible
        for labels, count in counts.items():
            lines.add_metric(list(labels), count)
        yield lines
        yield GaugeMetricFamily(
            "qlm_batches_infeasible", "Batches that will not be done in their window.", value=late
        )
        yield CounterMetricFamily(
            "qlm_batches_not_planned",
            "Batches told beyond solver.limits.batches_max.",
            value=manager.bulks.refused,
        )
        coverage = GaugeMetricFamily(
            "qlm_finish_estimate_coverage_ratio",
            "Share of batches that ended within the estimated quantile, by how much was done.",
            labels=["done", "estimate"],
        )
        for most, record in zip(STAGES, manager.finishes.records, strict=True):
            for estimate, count in zip(("p50", "p90"), record.covered, strict=True):
                share = count / max(1, record.observed)
                coverage.add_metric([f"{most:.2f}", estimate], share)
        yield coverage

    def _backends(self) -> Iterator[Metric]:
        solves = CounterMetricFamily(
            "qlm_solves", "Solves by backend and how they ended.", labels=["backend", "status"]
        )
        for (backend, status), count in self._planning.solves.items():
            solves.add_metric([backend, status], count)
        yield solves
        seconds = CounterMetricFamily(
            "qlm_solver_seconds", "Seconds spent in solves.", labels=["backend"]
        )
        for backend, total_s in self._planning.seconds.items():
            seconds.add_metric([backend], total_s)
        yield seconds
        steps = CounterMetricFamily(
            "qlm_backend_step_downs",
            "Falls from one backend to the next.",
            labels=["backend", "status"],
        )
        for (backend, status), count in self._planning.step_downs.items():
            steps.add_metric([backend, status], count)
        yield steps


def _known(name: str, text: str, value: float | None) -> Metric:
    """A gauge, without a value where nobody knows it: what is asked for exists all the same."""
    family = GaugeMetricFamily(name, text)
    if value is not None:
        family.add_metric([], value)
    return family
