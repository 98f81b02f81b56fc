"""One workload at another rate or over another span, each stream in proportion.

Arrivals of a seed keep their pattern and each request its lengths, since gaps are drawn in units of the rate, so what changes
between two rates is the rate.
"""

from __future__ import annotations

import msgspec

from qlm_core.sim.scenario import StreamConfig, WorkloadConfig


def at_rate(work: WorkloadConfig, rate: float, *, stretch: float = 1.0) -> WorkloadConfig:
    """The workload at `rate` times its rates, over `stretch` times its span; counts of requests follow."""
    return msgspec.structs.replace(
        work,
        requests=_count(work.requests, rate * stretch),
        interactive_rps=_times(work.interactive_rps, rate),
        batch_1_rps=_times(work.batch_1_rps, rate),
        batch_2_rps=_times(work.batch_2_rps, rate),
        mega_rps=_times(work.mega_rps, rate),
        streams=tuple(_stream(one, rate, stretch) for one in work.streams),
    )


def _stream(stream: StreamConfig, rate: float, stretch: float) -> StreamConfig:
    return msgspec.structs.replace(
        stream,
        rate_rps=stream.rate_rps * rate,
        requests=_count(stream.requests, rate * stretch),
        start_s=stream.start_s * stretch,
        until_s=_times(stream.until_s, stretch),
    )


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _count(requests: int | None, factor: float) -> int | None:
    return None if requests is None else max(1, round(requests * factor))
