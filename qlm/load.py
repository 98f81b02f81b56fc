"""Sends a workload to a gateway at its own pace and notes what became of each request.

The pace is that of the workload, whatever the answers (an open loop): a slow fleet is not spared by slow arrivals.
How a request travels is a `Transport`'s business (`qlm.load_http`, `qlm.load_grpc`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol

import msgspec

from qlm.report import Fate, Outcome
from qlm_core.sim.workload import WorkloadRequest, fitted

BYTES_PER_TOKEN = 4
# Prompts are windows into one text; its length is prime to the step between two prompts.
_TEXT = " ".join(f"{(i * 7919) % 997:03d}" for i in range(40_009))
_STEP = 4 * 257


@dataclass(frozen=True, slots=True, kw_only=True)
class Shot:
    """A request on its way: its number in the run, what it asks and the body that asks it."""

    number: int
    request: WorkloadRequest
    body: bytes


class Transport(Protocol):
    """One way to reach a gateway."""

    async def __aenter__(self) -> Transport:
        """Connect."""

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Disconnect."""

    async def send(self, shot: Shot, outcome: Outcome) -> None:
        """Send one request and fill in its outcome; never raises for what may happen to it."""


@dataclass(slots=True)
class Counts:
    """A run so far."""

    sent: int = 0
    in_flight: int = 0
    fates: dict[Fate, int] = field(default_factory=lambda: dict.fromkeys(Fate, 0))
    output_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Bodies:
    """How workload requests become OpenAI completion bodies.

    Attributes:
        exact_lengths: make the engine produce the exact number of tokens by `max_tokens` and `ignore_eos`, as real
            engines understand it. Without it the true length travels in `qlm_sim`, which only the sim engine
            reads, and `max_tokens` is a limit as clients set it, so that planning cannot know lengths beforehand.
        model_len: for each model the most tokens of prompt and output together; longer requests are cut.
    """

    exact_lengths: bool = False
    model_len: dict[str, int] = field(default_factory=dict)

    def fitted(self, request: WorkloadRequest) -> WorkloadRequest:
        """The request, cut to what its model can hold."""
        room = self.model_len.get(request.model)
        return request if room is None else fitted(request, room)

    def body(self, number: int, request: WorkloadRequest) -> bytes:
        """The body of a streaming completion request, as JSON."""
        stream = {"stream": True, "stream_options": {"include_usage": True}}
        return msgspec.json.encode(self.fields(number, request) | stream)

    def fields(self, number: int, request: WorkloadRequest) -> dict[str, object]:
        """The body of a completion request that is answered whole."""
        fields: dict[str, object] = {
            "model": request.model,
            "prompt": prompt_text(number, request.prompt_tokens),
        }
        if self.exact_lengths:
            fields["max_tokens"] = request.output_tokens
            fields["ignore_eos"] = True
        else:
            fields["max_tokens"] = request.max_tokens
            fields["qlm_sim"] = {"output_tokens": request.output_tokens}
        return fields


def prompt_text(number: int, tokens: int) -> str:
    """Text of about `tokens` tokens; two numbers have no common beginning."""
    size = tokens * BYTES_PER_TOKEN
    start = (number * _STEP) % len(_TEXT)
    text = f"{number:07d} " + _TEXT[start : start + size]
    while len(text) < size:
        text += _TEXT[: size - len(text)]
    return text[:size]


async def run(
    requests: Iterable[WorkloadRequest],
    transport: Transport,
    *,
    bodies: Bodies,
    counts: Counts,
    time_scale: float = 1.0,
    concurrency_limit: int = 10_000,
    stop: asyncio.Event | None = None,
) -> tuple[list[Outcome], float]:
    """Send all requests, wait for all answers; returns outcomes in order of arrival, and seconds.

    With `time_scale` the service's clock runs that many times as fast as ours: requests are sent accordingly, and
    all times returned are on the service's clock. Once `stop` is set nothing more is sent or waited for: what has ended
    has an outcome, and `counts.in_flight` tells how much has not.
    """
    stop = stop or asyncio.Event()
    started_s = asyncio.get_running_loop().time()
    ended: dict[int, Outcome] = {}
    sending = asyncio.create_task(
        _send_all(requests, transport, bodies, counts, time_scale, concurrency_limit, ended)
    )
    watch = asyncio.create_task(_cancel_when(stop, sending))
    try:
        await sending
    except asyncio.CancelledError:
        if not stop.is_set():
            raise
    finally:
        watch.cancel()
    elapsed_s = asyncio.get_running_loop().time() - started_s
    outcomes = [ended[number] for number in sorted(ended)]
    for outcome in outcomes:
        outcome.stretch(time_scale)
    return outcomes, elapsed_s * time_scale


async def _cancel_when(stop: asyncio.Event, work: asyncio.Task[None]) -> None:
    await stop.wait()
    work.cancel()


async def _send_all(
    requests: Iterable[WorkloadRequest],
    transport: Transport,
    bodies: Bodies,
    counts: Counts,
    time_scale: float,
    concurrency_limit: int,
    ended: dict[int, Outcome],
) -> None:
    """Send and wait; what ends is noted in `ended` by its number."""
    loop = asyncio.get_running_loop()
    started_s = loop.time()
    room = asyncio.Semaphore(concurrency_limit)

    async def one(shot: Shot, outcome: Outcome) -> None:
        try:
            await transport.send(shot, outcome)
        finally:
            room.release()
        ended[shot.number] = outcome
        counts.in_flight -= 1
        counts.fates[outcome.fate] += 1
        counts.output_tokens += outcome.output_tokens

    async with asyncio.TaskGroup() as tasks:
        for number, given in enumerate(requests):
            request = bodies.fitted(given)
            shot = Shot(number=number, request=request, body=bodies.body(number, request))
            delay_s = started_s + request.arrival_s / time_scale - loop.time()
            if delay_s > 0:
                await asyncio.sleep(delay_s)
            await room.acquire()
            outcome = Outcome(
                model=request.model,
                slo_class=request.slo_class,
                sent_s=(loop.time() - started_s) * time_scale,
            )
            counts.sent += 1
            counts.in_flight += 1
            tasks.create_task(one(shot, outcome))
