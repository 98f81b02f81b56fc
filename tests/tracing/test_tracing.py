"""Traces: of one request a span with its times in the queue and its attempts, below the client's and above the engine's."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from gateway.tracing import exporting
from qlm_core import messages as m
from qlm_core.config import Config
from qlm_core.errors import ConfigError, QlmError
from qlm_core.messages import ReturnReason
from tests.gateway.peers import Fleet, config, fleet, running, soon

pytest.importorskip("opentelemetry.sdk", reason="OpenTelemetry is not installed")

from opentelemetry.sdk.trace.export.in_memory_span_exporter import (
    InMemorySpanExporter,
)
from opentelemetry.trace import StatusCode

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{CALLER}-01"
BODY = {"model": "tiny", "prompt": "canary-prompt", "max_tokens": 8}
Span = Any


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    made = InMemorySpanExporter()
    monkeypatch.setattr(exporting, "make_exporter", lambda config: made)
    return made


@contextlib.asynccontextmanager
async def traced(**tracing: Any) -> AsyncIterator[Fleet]:
    section = {"endpoint": "http://127.0.0.1:4317"} | tracing
    async with fleet(tracing=section) as it:
        yield it


async def ask(it: Fleet, **headers: str) -> int:
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{it.url}/v1/completions", json=BODY, headers=headers) as answer,
    ):
        await answer.read()
        return answer.status


def by_name(exporter: InMemorySpanExporter) -> dict[str, list[Span]]:
    found: dict[str, list[Span]] = {}
    for span in sorted(exporter.get_finished_spans(), key=lambda span: span.start_time):
        found.setdefault(span.name, []).append(span)
    return found


def hex_of(span: Span) -> tuple[str, str]:
    return f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}"


async def test_a_request_is_a_span_below_its_client_with_queue_and_attempt_in_it(
    exporter: InMemorySpanExporter,
) -> None:
    async with traced() as it:
        it.agent.answer("a", "b")
        assert await ask(it, traceparent=PARENT, tracestate="congo=t61") == 200
        payload = await it.agent.payload()
    spans = by_name(exporter)
    [whole], [queue], [attempt] = spans["text_completion tiny"], spans["queue"], spans["attempt"]
    assert f"{whole.parent.span_id:016x}" == CALLER
    assert {hex_of(span)[0] for span in (whole, queue, attempt)} == {TRACE}
    assert queue.parent.span_id == attempt.parent.span_id == whole.context.span_id
    assert whole.start_time == queue.start_time
    assert queue.end_time <= attempt.start_time <= attempt.end_time <= whole.end_time
    # And the engine is below the attempt.
    assert dict(payload.headers) == {
        "traceparent": f"00-{TRACE}-{hex_of(attempt)[1]}-01",
        "tracestate": "congo=t61",
    }
    told = dict(whole.attributes)
    assert told["gen_ai.operation.name"] == "text_completion"
    assert told["gen_ai.provider.name"] == "qlm"
    assert told["gen_ai.request.model"] == "tiny"
    assert told["gen_ai.request.max_tokens"] == 8
    assert told["gen_ai.response.id"] == payload.id
    assert told["gen_ai.usage.input_tokens"] == 7
    assert told["gen_ai.usage.output_tokens"] == 2
    assert told["gen_ai.response.time_to_first_chunk"] > 0
    assert (told["qlm.slo_class"], told["qlm.phase"]) == ("interactive", "finished")
    assert attempt.attributes["qlm.agent"] == "agent-0"
    assert attempt.attributes["qlm.outcome"] == "finished"
    assert [event.name for event in attempt.events] == ["first token"]
    assert whole.status.status_code is StatusCode.UNSET
    assert not any("canary" in span.to_json() for span in exporter.get_finished_spans())


async def test_each_attempt_is_a_span_and_says_how_it_went(exporter: InMemorySpanExporter) -> None:
    async with traced() as it:
        reasons = [ReturnReason.EVICTED, ReturnReason.ENGINE_LOST]

        def on_payload(payload: m.Payload) -> None:
            if reasons:
                it.agent.send(m.AttemptReturned(payload.id, payload.attempt, reasons.pop(0)))
                it.agent.pull(payload.id)
            else:
                it.agent.say(payload, "x", finish="stop")

        it.agent.on_payload = on_payload
        assert await ask(it) == 200
        parents = [dict(payload.headers)["traceparent"] for payload in it.agent.payloads]
    spans = by_name(exporter)
    [whole] = spans["text_completion tiny"]
    assert whole.parent is None
    assert [span.attributes["qlm.outcome"] for span in spans["attempt"]] == [
        "evicted",
        "lost",
        "finished",
    ]
    codes = [span.status.status_code for span in spans["attempt"]]
    assert codes == [StatusCode.UNSET, StatusCode.ERROR, StatusCode.UNSET]
    assert len(spans["queue"]) == 3
    assert [parent.split("-")[2] for parent in parents] == [
        hex_of(span)[1] for span in spans["attempt"]
    ]
    assert whole.attributes["qlm.evictions"] == 1


async def test_what_a_client_does_not_take_is_passed_on_and_not_recorded(
    exporter: InMemorySpanExporter,
) -> None:
    async with traced(sample_ratio=1.0) as it:
        it.agent.answer("a")
        assert await ask(it, traceparent=PARENT.removesuffix("01") + "00") == 200
        headers = dict((await it.agent.payload()).headers)
    assert headers["traceparent"].startswith(f"00-{TRACE}-")
    assert headers["traceparent"].endswith("-00")
    assert exporter.get_finished_spans() == ()


async def test_the_ratio_is_of_traces_that_begin_here(exporter: InMemorySpanExporter) -> None:
    async with traced(sample_ratio=0.0) as it:
        it.agent.answer("a")
        assert await ask(it) == 200
        assert await ask(it, traceparent=PARENT) == 200
    assert len(by_name(exporter)["attempt"]) == 1


async def test_failures_are_errors_and_what_is_open_at_the_end_is_closed(
    exporter: InMemorySpanExporter,
) -> None:
    async with traced() as it:
        it.agent.on_payload = lambda payload: it.agent.send(
            m.AttemptEnded(payload.id, payload.attempt, "error", error="boom", error_status=400)
        )
        assert await ask(it) == 400
        it.agent.on_payload = lambda payload: None
        headers = {"x-qlm-async": "1"}
        assert await ask(it, **headers) == 202
        await it.agent.payload(1)
        await soon(lambda: it.solver.heard(m.Pulled))
    failed, left = by_name(exporter)["text_completion tiny"]
    assert failed.status.status_code is StatusCode.ERROR
    assert failed.attributes["error.type"] == "failed"
    assert left.attributes["qlm.phase"] == "open"
    assert len(exporter.get_finished_spans()) == 6


async def test_a_new_solver_makes_no_new_spans(exporter: InMemorySpanExporter) -> None:
    async with traced() as it:
        it.agent.on_payload = lambda payload: None
        asked = asyncio.create_task(ask(it))
        payload = await it.agent.payload()
        tracing = it.gateway.tracing
        assert tracing is not None
        # As at a session's beginning: everything again.
        for fact in [*it.solver.heard(m.Arrived), *it.solver.heard(m.Pulled)]:
            tracing.told(fact)
        it.agent.say(payload, "x", finish="stop")
        assert await asked == 200
    assert len(exporter.get_finished_spans()) == 3


async def test_spans_reach_a_collector() -> None:
    from tests.tracing.collector import collecting

    async with collecting() as (collector, endpoint), traced(endpoint=endpoint) as it:
        it.agent.answer("a")
        assert await ask(it, traceparent=PARENT) == 200
    assert sorted(span.name for span in collector.spans) == [
        "attempt",
        "queue",
        "text_completion tiny",
    ]
    assert {span.trace_id.hex() for span in collector.spans} == {TRACE}
    assert collector.services == {"qlm-gateway"}


async def test_without_an_endpoint_there_are_none_and_the_clients_trace_goes_on() -> None:
    async with fleet() as it:
        assert it.gateway.tracing is None
        it.agent.answer("a")
        assert await ask(it, traceparent=PARENT) == 200
        assert dict((await it.agent.payload()).headers) == {"traceparent": PARENT}


async def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(QlmError, match=r"qlm-serving\[otel\]"):
        async with running(config(tracing={"endpoint": "http://127.0.0.1:4317"})):
            pass


@pytest.mark.parametrize(
    "section",
    [{"endpoint": "127.0.0.1:4317"}, {"endpoint": "ftp://x"}, {"sample_ratio": 1.5}],
)
def test_a_collector_is_named_as_it_is_reached(section: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"gateway\.tracing\."):
        Config.from_mapping({"gateway": {"tracing": section}})
