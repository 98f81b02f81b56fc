"""What a gateway publishes for Prometheus. docs/metrics.md describes each.

Labels come from the configuration alone (models, SLO classes, phases), so their number is bounded; what is not in it
counts as "other", explicit targets as "explicit". Values that something else already keeps are read when scraped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from protos.doors import Rejections
from qlm_core.config import Config
from qlm_core.config_doors import EXPLICIT
from qlm_core.ledger import EndRecord
from qlm_core.model import Phase

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OTHER = "other"

_WAIT_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 900, 3600, 14400)
_TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2.5)
_ERROR_BUCKETS = (-600, -60, -20, -10, -5, -2, -1, -0.5, 0, 0.5, 1, 2, 5, 10, 20, 60, 600)

# Name, meaning and value; with a label, its name and the value of each.
Gauge = tuple[str, str, float | tuple[str, dict[str, float]]]
Gauges = Callable[[], Iterable[Gauge]]


class Metrics:
    """The metrics of one gateway, in a registry of its own."""

    def __init__(self, config: Config, gauges: Gauges, rejections: Rejections) -> None:
        self.registry = CollectorRegistry()
        self._models = config.models
        self._classes = config.slo_classes
        by_class = ("model", "slo_class")
        registry = self.registry
        self._requests = Counter(
            "qlm_requests", "Requests ended, by how.", (*by_class, "outcome"), registry=registry
        )
        self._attained = Counter(
            "qlm_slo_attained", "Requests that met every target.", by_class, registry=registry
        )
        self._queue = Histogram(
            "qlm_request_queue_seconds",
            "Arrival to the first grant.",
            by_class,
            buckets=_WAIT_BUCKETS,
            registry=registry,
        )
        self._ttft = Histogram(
            "qlm_request_ttft_seconds",
            "Arrival to the first token.",
            by_class,
            buckets=_WAIT_BUCKETS,
            registry=registry,
        )
        self._tpot = Histogram(
            "qlm_request_tpot_seconds",
            "Time per output token after the first.",
            by_class,
            buckets=_TOKEN_BUCKETS,
            registry=registry,
        )
        self._pause = Histogram(
            "qlm_request_pause_seconds",
            "The longest time between two output tokens of a request.",
            by_class,
            buckets=_WAIT_BUCKETS,
            registry=registry,
        )
        self._e2e = Histogram(
            "qlm_request_e2e_seconds",
            "Arrival to the end, finished requests.",
            by_class,
            buckets=_WAIT_BUCKETS,
            registry=registry,
        )
        self._estimate_error = Histogram(
            "qlm_wait_estimate_error_seconds",
            "Realised time to first token less the mean estimated at arrival.",
            by_class,
            buckets=_ERROR_BUCKETS,
            registry=registry,
        )
        self._tokens = Counter(
            "qlm_tokens", "Tokens of finished requests.", ("model", "kind"), registry=registry
        )
        self._evictions = Counter(
            "qlm_request_evictions", "Evictions of ended requests.", by_class, registry=registry
        )
        self._shed = Counter(
            "qlm_requests_shed",
            "Accepted requests that were dropped, by why.",
            ("slo_class", "reason"),
            registry=registry,
        )
        self._refused = Counter(
            "qlm_requests_refused", "Requests not accepted, by code.", ("code",), registry=registry
        )
        self._batches = Counter(
            "qlm_batches", "Batches ended, by how.", ("status",), registry=registry
        )
        self._webhook_tries = Counter(
            "qlm_webhook_tries",
            "Tries to tell a webhook of an event, by how they went.",
            ("webhook", "outcome"),
            registry=registry,
        )
        self._webhook_dropped = Counter(
            "qlm_webhook_dropped",
            "Events that a webhook will not be told of, by why.",
            ("webhook", "reason"),
            registry=registry,
        )
        self._by_labels: dict[tuple[str, str], _Series] = {}
        # Who else is told of ends, with the class as it is counted here.
        self.watching: list[Callable[[str, EndRecord], None]] = []
        registry.register(_Read(gauges))
        registry.register(_Rejected(rejections))

    def ended(self, model: str, slo_class: str, record: EndRecord) -> None:
        """Count one terminal record."""
        labels = self._labels(model, slo_class)
        for watch in self.watching:
            watch(labels[1], record)
        known = self._by_labels.get(labels)
        if known is None:
            known = self._by_labels[labels] = self._series(labels)
        known.outcomes[record.phase].inc()
        if record.phase is Phase.SHED:
            self._shed.labels(labels[1], record.reason).inc()
        if record.attained:
            known.attained.inc()
        if record.queue_s is not None:
            known.queue.observe(record.queue_s)
        if record.ttft_s is not None:
            known.ttft.observe(record.ttft_s)
            if record.estimate is not None:
                known.estimate_error.observe(record.ttft_s - record.estimate.mean_s)
        if record.tpot_s is not None:
            known.tpot.observe(record.tpot_s)
        if record.pause_s is not None:
            known.pause.observe(record.pause_s)
        if record.evictions:
            known.evictions.inc(record.evictions)
        if record.phase is Phase.FINISHED:
            known.e2e.observe(record.e2e_s)
            known.prompt_tokens.inc(record.prompt_tokens)
            known.output_tokens.inc(record.output_tokens)

    def refused(self, code: str) -> None:
        """Count a request that was not accepted; `code` is one of our own error codes."""
        self._refused.labels(code).inc()

    def batch_ended(self, status: str) -> None:
        """Count a batch that is over; `status` is its last."""
        self._batches.labels(status).inc()

    def webhook_tried(self, webhook: str, outcome: str) -> None:
        """Count a try to tell a webhook."""
        self._webhook_tries.labels(webhook, outcome).inc()

    def webhook_dropped(self, webhook: str, reason: str) -> None:
        """Count an event that a webhook will not be told of."""
        self._webhook_dropped.labels(webhook, reason).inc()

    def render(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self.registry)

    def _series(self, labels: tuple[str, str]) -> _Series:
        return _Series(
            outcomes={
                phase: self._requests.labels(*labels, phase.value)
                for phase in Phase
                if phase.terminal
            },
            attained=self._attained.labels(*labels),
            queue=self._queue.labels(*labels),
            ttft=self._ttft.labels(*labels),
            tpot=self._tpot.labels(*labels),
            pause=self._pause.labels(*labels),
            e2e=self._e2e.labels(*labels),
            estimate_error=self._estimate_error.labels(*labels),
            evictions=self._evictions.labels(*labels),
            prompt_tokens=self._tokens.labels(labels[0], "prompt"),
            output_tokens=self._tokens.labels(labels[0], "output"),
        )

    def _labels(self, model: str, slo_class: str) -> tuple[str, str]:
        known_class = slo_class if slo_class in self._classes else EXPLICIT
        return (model if model in self._models else OTHER), known_class


@dataclass(frozen=True, slots=True, kw_only=True)
class _Series:
    """What one model and class count into; looking it up by labels each time costs more than counting."""

    outcomes: dict[Phase, Counter]
    attained: Counter
    queue: Histogram
    ttft: Histogram
    tpot: Histogram
    pause: Histogram
    e2e: Histogram
    estimate_error: Histogram
    evictions: Counter
    prompt_tokens: Counter
    output_tokens: Counter


class _Read:
    """Gauges whose values live elsewhere."""

    def __init__(self, gauges: Gauges) -> None:
        self._gauges = gauges

    def collect(self) -> Iterator[Metric]:
        for name, text, value in self._gauges():
            if isinstance(value, tuple):
                family = GaugeMetricFamily(name, text, labels=value[:1])
                for label, number in value[1].items():
                    family.add_metric((label,), number)
            else:
                family = GaugeMetricFamily(name, text, value=value)
            yield family


class _Rejected:
    """Whom the doors turned away."""

    def __init__(self, rejections: Rejections) -> None:
        self._rejections = rejections

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(
            "qlm_peers_rejected", "Peers turned away at a door.", labels=("door", "reason")
        )
        for labels, count in self._rejections.counts.items():
            family.add_metric(labels, count)
        yield family
