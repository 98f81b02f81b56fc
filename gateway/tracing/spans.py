"""The spans of open requests, made from the facts that the ledger has for the solver.

A request is one span from its arrival to its end, below the span that its client named. In it lie, one after the other, the times
in the queue and the attempts; an engine that traces puts its own span below the attempt, whose context it gets with the payload.
Names follow OpenTelemetry's conventions for generative AI; what is of QLM alone begins with `qlm.`. Prompts and outputs are in
no span.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from gateway.live import Live
from qlm_core.endpoint import Endpoint
from qlm_core.messages import Arrived, Ended, FirstToken, GatewayFact, Pulled, Returned
from qlm_core.model import Phase, RequestId, RequestMeta

_OPERATIONS = {
    Endpoint.CHAT_COMPLETIONS: "chat",
    Endpoint.COMPLETIONS: "text_completion",
    Endpoint.EMBEDDINGS: "embeddings",
    Endpoint.SCORE: "score",
    Endpoint.RERANK: "rerank",
}
_PROVIDER = "qlm"
_PROPAGATOR = TraceContextTextMapPropagator()
_NANOSECONDS = 1e9

Headers = tuple[tuple[str, str], ...]


@dataclass(slots=True)
class _Trace:
    """What is open of one request.

    Attributes:
        whole: the request.
        part: its time in the queue, or its attempt.
        running: whether the part is an attempt.
        evictions: so far.
    """

    whole: Span
    within: Context
    part: Span
    running: bool = False
    evictions: int = 0


class Spans:
    """Makes the spans of one gateway's requests.

    Args:
        now_s: the ledger's clock.
        live: of an open request.
        evictions: of an open request, how often it gave way.
    """

    def __init__(
        self,
        tracer: Tracer,
        *,
        now_s: Callable[[], float],
        live: Callable[[RequestId], Live | None],
        evictions: Callable[[RequestId], int],
    ) -> None:
        self._tracer = tracer
        self._now_s = now_s
        self._live = live
        self._evictions = evictions
        self._open: dict[RequestId, _Trace] = {}

    def told(self, fact: GatewayFact) -> None:
        """Take a fact. Those that a solver is told again change nothing."""
        match fact:
            case Arrived(request):
                if request.id not in self._open:
                    self._begin(request)
            case Pulled(id, agent):
                trace = self._open.get(id)
                if trace is not None:
                    self._attempt(trace)
                    trace.part.set_attribute("qlm.agent", agent)
            case FirstToken(id, ttft_s):
                trace = self._open.get(id)
                if trace is not None:
                    trace.whole.set_attribute("gen_ai.response.time_to_first_chunk", ttft_s)
                    trace.part.add_event("first token")
            case Returned(id, produced_tokens):
                trace = self._open.get(id)
                if trace is not None:
                    self._returned(id, trace, produced_tokens)
            case Ended():
                trace = self._open.pop(fact.id, None)
                if trace is not None:
                    _end(trace, fact)

    def close(self) -> None:
        """End what is open: the gateway stops, and durable requests go on in the next one's spans."""
        for trace in self._open.values():
            trace.part.end()
            trace.whole.set_attribute("qlm.phase", "open")
            trace.whole.end()
        self._open.clear()

    def _begin(self, request: RequestMeta) -> None:
        live = self._live(request.id)
        if live is None:
            return
        endpoint = live.request.endpoint
        operation = _OPERATIONS[endpoint]
        slo = request.slo
        # The ledger's clock to the wall's.
        started_ns = time.time_ns() - int((self._now_s() - request.arrival_s) * _NANOSECONDS)
        attributes: dict[str, str | int | float | bool] = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": _PROVIDER,
            "gen_ai.request.model": request.model,
            "gen_ai.response.id": request.id,
            "http.route": endpoint.path,
            "qlm.slo_class": request.slo_class,
            "qlm.slo.ttft_s": slo.ttft_s,
            "qlm.durable": live.durable,
        }
        if endpoint.generates:
            attributes["gen_ai.request.max_tokens"] = request.max_output_tokens
        whole = self._tracer.start_span(
            f"{operation} {request.model}",
            context=_PROPAGATOR.extract(dict(live.request.trace)),
            kind=SpanKind.SERVER,
            attributes=attributes,
            start_time=started_ns,
        )
        within = set_span_in_context(whole)
        part = self._tracer.start_span("queue", context=within, start_time=started_ns)
        trace = self._open[request.id] = _Trace(whole, within, part)

        def headers(attempt: int) -> Headers:
            self._attempt(trace)
            trace.part.set_attribute("qlm.attempt", attempt)
            carrier: dict[str, str] = {}
            _PROPAGATOR.inject(carrier, set_span_in_context(trace.part))
            return tuple(carrier.items())

        live.engine_trace = headers

    def _attempt(self, trace: _Trace) -> None:
        """The time in the queue is over, unless it was before."""
        if trace.running:
            return
        trace.part.end()
        trace.running = True
        trace.part = self._tracer.start_span("attempt", context=trace.within, kind=SpanKind.CLIENT)

    def _returned(self, id: RequestId, trace: _Trace, produced_tokens: int) -> None:
        evictions = self._evictions(id)
        evicted = evictions > trace.evictions
        trace.evictions = evictions
        trace.part.set_attribute("qlm.outcome", "evicted" if evicted else "lost")
        trace.part.set_attribute("qlm.output_tokens", produced_tokens)
        if not evicted:
            trace.part.set_status(Status(StatusCode.ERROR, "the attempt was lost"))
        trace.part.end()
        trace.running = False
        trace.part = self._tracer.start_span("queue", context=trace.within)


def _end(trace: _Trace, fact: Ended) -> None:
    if trace.running:
        trace.part.set_attribute("qlm.outcome", fact.phase.value)
    trace.part.end()
    whole = trace.whole
    whole.set_attribute("qlm.phase", fact.phase.value)
    whole.set_attribute("gen_ai.usage.input_tokens", fact.prompt_tokens)
    whole.set_attribute("gen_ai.usage.output_tokens", fact.output_tokens)
    if trace.evictions:
        whole.set_attribute("qlm.evictions", trace.evictions)
    if fact.phase in (Phase.FAILED, Phase.SHED):
        whole.set_attribute("error.type", fact.phase.value)
        whole.set_status(Status(StatusCode.ERROR, fact.phase.value))
    whole.end()
