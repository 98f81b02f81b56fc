"""A trace through real processes: from the client over gateway and agent to the server that runs the model."""

from __future__ import annotations

from pathlib import Path

import aiohttp
import pytest

from qlm import fleet
from tests.agents.fake_vllm import FakeServer
from tests.agents.harness import serving

pytest.importorskip("opentelemetry.sdk", reason="OpenTelemetry is not installed")

pytestmark = pytest.mark.processes
MODEL = "mistral-7b"
TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


async def test_the_engine_is_told_the_attempt_that_the_collector_is_told(tmp_path: Path) -> None:
    from tests.tracing.collector import collecting

    server = FakeServer(MODEL)
    runner, port = await serving(server)
    async with collecting() as (collector, endpoint):
        engine = f"{{kind: openai, openai: {{base_url: 'http://127.0.0.1:{port}'}}}}"
        overrides = [
            f"agents=[{{name: one, gpu: a100, models: [{MODEL}], engine: {engine}}}]",
            f"gateway.tracing.endpoint={endpoint}",
        ]
        config = fleet.temporary_config(tmp_path, overrides)
        async with fleet.running(config, tmp_path) as running, aiohttp.ClientSession() as session:
            body = {"model": MODEL, "prompt": "a trace", "max_tokens": 3, "stream": True}
            headers = {"traceparent": f"00-{TRACE}-{CALLER}-01", "tracestate": "congo=t61"}
            url = f"{running.url}/v1/completions"
            async with session.post(url, json=body, headers=headers) as answer:
                assert (await answer.read()).endswith(b"data: [DONE]\n\n")
        # What was left was sent as the gateway stopped.
        spans = {span.name: span for span in collector.spans}
    await runner.cleanup()
    told = [one for one in server.headers if TRACE in one.get("traceparent", "")]
    attempt = spans["attempt"]
    assert [one["traceparent"] for one in told] == [f"00-{TRACE}-{attempt.span_id.hex()}-01"]
    assert told[0]["tracestate"] == "congo=t61"
    whole = spans[f"text_completion {MODEL}"]
    assert attempt.parent_span_id == whole.span_id
    assert whole.parent_span_id.hex() == CALLER
