"""An agent's Prometheus metrics, read from its driver when somebody asks (docs/metrics.md)."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from agents.driver import Driver
from protos.doors import Rejections
from qlm_core.executor import ExecutorState
from qlm_core.messages import ReturnReason


class AgentCollector(Collector):
    """Turns the state of a driver into metrics at scrape time, so that keeping them costs nothing."""

    def __init__(self, driver: Driver, rejections: Rejections) -> None:
        self._driver = driver
        self._rejections = rejections

    def collect(self) -> Iterator[Metric]:
        """All metrics of the agent."""
        executor, counts = self._driver.executor, self._driver.counts
        batch = executor.batch
        in_flight = GaugeMetricFamily(
            "qlm_agent_requests", "Requests in flight at the agent.", labels=["state"]
        )
        in_flight.add_metric(["pulling"], len(batch.pulling))
        in_flight.add_metric(["held"], len(batch.held))
        in_flight.add_metric(["running"], len(batch.running))
        yield in_flight
        yield _gauge("qlm_agent_window_requests", "References in the window.", len(executor.window))
        yield _gauge("qlm_agent_kv_free_tokens", "KV tokens not charged.", batch.free_tokens)
        state = GaugeMetricFamily("qlm_agent_state", "1 for the current state.", labels=["state"])
        for one in ExecutorState:
            state.add_metric([one.value], float(executor.state is one))
        yield state
        yield _counter("qlm_agent_pulled", "Requests pulled.", counts.pulled)
        yield _counter("qlm_agent_finished", "Attempts finished.", counts.finished)
        yield _counter("qlm_agent_refused", "Requests the engine refused.", counts.refused)
        returned = CounterMetricFamily(
            "qlm_agent_returned", "Attempts returned before their end.", labels=["reason"]
        )
        for reason in ReturnReason:
            returned.add_metric([reason.value], counts.returned[reason])
        yield returned
        yield _counter("qlm_agent_output_tokens", "Output tokens.", counts.output_tokens)
        yield _counter("qlm_agent_chunks", "Output chunks.", counts.chunks)
        yield _counter("qlm_agent_swaps", "Model swaps begun.", counts.swaps)
        yield _counter("qlm_agent_swaps_failed", "Model swaps that failed.", counts.swaps_failed)
        rejected = CounterMetricFamily(
            "qlm_peers_rejected", "Peers turned away at a door.", labels=["door", "reason"]
        )
        for labels, count in self._rejections.counts.items():
            rejected.add_metric(list(labels), count)
        yield rejected
        yield _counter(
            "qlm_agent_engine_losses", "Times the engine went down.", counts.engine_losses
        )


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=value)


def _counter(name: str, text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(name, text, value=value)
