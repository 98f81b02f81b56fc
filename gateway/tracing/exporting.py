"""Where spans go: to a collector over OTLP, in batches, without anybody waiting for it; what it does not take is dropped.

OpenTelemetry's own environment variables say what is not in the configuration: headers, certificates, resource attributes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from qlm_core.config import GatewayConfig
from qlm_core.errors import QlmError
from qlm_core.messages import GatewayFact
from qlm_core.model import RequestId

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

    from gateway.live import Live

_SERVICE = "qlm-gateway"
_EXPORT_S_MAX = 5.0


class Tracing:
    """The traces of one gateway.

    Args:
        now_s, live, evictions: as of `Spans`.

    Raises:
        QlmError: OpenTelemetry is not installed.
    """

    def __init__(
        self,
        config: GatewayConfig,
        *,
        now_s: Callable[[], float],
        live: Callable[[RequestId], Live | None],
        evictions: Callable[[RequestId], int],
    ) -> None:
        try:
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

            from gateway.tracing.spans import Spans

            exporter = make_exporter(config)
        except ModuleNotFoundError as error:
            raise QlmError(
                f"gateway.tracing.endpoint: {error}. Install OpenTelemetry: pip install 'qlm-serving[otel]'."
            ) from None
        named = {"service.name": _SERVICE, "service.instance.id": config.id}
        self._provider = TracerProvider(
            # Who calls has decided whether the trace is taken; else the ratio does.
            sampler=ParentBased(TraceIdRatioBased(config.tracing.sample_ratio)),
            resource=Resource.create(named),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        tracer = self._provider.get_tracer("qlm.gateway")
        self._spans = Spans(tracer, now_s=now_s, live=live, evictions=evictions)

    def told(self, fact: GatewayFact) -> None:
        """As `Spans.told`."""
        self._spans.told(fact)

    async def close(self) -> None:
        """Send what is left, for as long as one batch may take."""
        self._spans.close()
        await asyncio.to_thread(self._provider.shutdown)


def make_exporter(config: GatewayConfig) -> SpanExporter:
    """To the configured collector. Raises ModuleNotFoundError without OpenTelemetry's exporter."""
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    endpoint = config.tracing.endpoint
    return OTLPSpanExporter(
        endpoint=endpoint, insecure=endpoint.startswith("http://"), timeout=_EXPORT_S_MAX
    )
