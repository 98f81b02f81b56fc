"""A stand-in for one vLLM on an A100: completions at a profile's pace, 32 slots, a queue, and no preemption for slots.

Time is that of `ContinuousBatch` with the shipped profile, run in real time as the sim engine runs it. As in vLLM, `priority`
orders the waiting queue, a request that comes back finds its prefix in the cache, and a closed connection frees its slot a while
later. A prompt's first word names the request; every word is a token. Run as `python -m benchmarks.slots_server`; it
prints its address and serves until its standard input ends. `GET /stats` tells what was aborted since it was asked last.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import uvloop

from benchmarks.loopback import STREAM_HEAD, Connection, serve
from qlm_core.profile import EngineProfile
from qlm_core.profile_catalog import find_profile
from qlm_core.sim.batch import ContinuousBatch, OutcomeKind

MODEL, GPU = "mistral-7b", "a100"
SLOTS = 32
_STREAM_INTERVAL_S = 0.05
"""Tokens within this time share a chunk, but for the first: 32 streams would cost more than what is to be measured."""


class _Ask(msgspec.Struct):
    prompt: str
    max_tokens: int = 16
    priority: int = 0


class Stats(msgspec.Struct):
    """What happened here.

    first_ms: by name, from a request's coming to its first token, for those that came once.
    aborted: requests whose connection was closed while they ran.
    freed_ms: from then until the slot was free.
    resumed_tokens: prompt tokens of requests that came back, what they had produced before included.
    recomputed_tokens: those of them that were not in the cache any more.
    """

    first_ms: dict[str, float] = msgspec.field(default_factory=dict)
    aborted: int = 0
    freed_ms: list[float] = msgspec.field(default_factory=list)
    resumed_tokens: int = 0
    recomputed_tokens: int = 0


_ask = msgspec.json.Decoder(_Ask)


@dataclass(slots=True, eq=False)
class _Stream:
    """A request on the engine: where its tokens go, when it came, and how many are out."""

    connection: _Connection | None
    came_s: float
    sent: int = 0


class _Engine(ContinuousBatch):
    """Counts the tokens that it computes again for requests that have come back."""

    def __init__(self, profile: EngineProfile) -> None:
        super().__init__(profile, policy="priority")
        self.again: dict[str, None] = {}
        self.recomputed_tokens = 0

    def _cached(self, request: Any) -> tuple[int, int]:
        computed, kept = super()._cached(request)
        if request.id in self.again:
            del self.again[request.id]
            self.recomputed_tokens += request.prompt - computed
        return computed, kept


class _Server:
    """The engine in real time, and the streams that it feeds."""

    def __init__(self, abort_s: float) -> None:
        profile = replace(find_profile(MODEL, GPU), max_num_seqs=SLOTS)
        self.stats = Stats()
        self._batch = _Engine(profile)
        self._batch.advance(time.monotonic())
        self._streams: dict[str, _Stream] = {}
        self._known: dict[str, None] = {}
        self._again: dict[str, None] = {}
        self._abort_s = abort_s
        self._timer: asyncio.TimerHandle | None = None
        self._flushed_s = 0.0

    def take_stats(self) -> Stats:
        """What was counted since this was asked last."""
        stats, self.stats = self.stats, Stats()
        stats.recomputed_tokens = self._batch.recomputed_tokens
        self._batch.recomputed_tokens = 0
        self._known.clear()
        self._again.clear()
        return stats

    def begin(self, connection: _Connection, ask: _Ask) -> str:
        """Take a request; returns its name."""
        words = ask.prompt.split()
        name = words[0]
        self._free(name)
        connection.write(STREAM_HEAD)
        self._streams[name] = _Stream(connection, time.monotonic())
        if name in self._known:
            self._again[name] = None
            self.stats.resumed_tokens += len(words)
            self._batch.again[name] = None
        self._batch.add(
            name,
            prompt_tokens=len(words),
            output_tokens=ask.max_tokens,
            now_s=time.monotonic(),
            priority=ask.priority,
        )
        self._known[name] = None
        self._schedule()
        return name

    def hung_up(self, name: str) -> None:
        """A client has closed its connection; the engine hears of it in a while."""
        stream = self._streams.get(name)
        if stream is None:
            return
        stream.connection = None
        self.stats.aborted += 1
        loop = asyncio.get_running_loop()
        loop.call_later(self._abort_s, self._free, name, time.monotonic())

    def _free(self, name: str, since_s: float | None = None) -> None:
        """Take a request off the engine that nobody listens to."""
        stream = self._streams.get(name)
        if stream is None or stream.connection is not None:
            return
        del self._streams[name]
        now_s = time.monotonic()
        self._run(now_s)
        if name in self._batch:
            self._batch.abort(name, now_s=now_s)
            if since_s is not None:
                free_s = max(now_s, self._batch.next_iteration_s or 0.0)
                self.stats.freed_ms.append((free_s - since_s) * 1e3)
        self._schedule()

    def _run(self, now_s: float) -> None:
        """Send what the engine has produced up to now."""
        for outcome in self._batch.advance(now_s):
            stream = self._streams.get(outcome.request_id)
            if stream is None or outcome.kind is OutcomeKind.PREEMPTED:
                continue
            stream_ends = outcome.kind is OutcomeKind.FINISHED
            if stream_ends:
                del self._streams[outcome.request_id]
            if not stream.sent and outcome.request_id not in self._again:
                self.stats.first_ms[outcome.request_id] = (now_s - stream.came_s) * 1e3
            self._send(stream, outcome.output_tokens, last=stream_ends)
        if now_s - self._flushed_s >= _STREAM_INTERVAL_S:
            self._flushed_s = now_s
            for name, produced in list(self._batch.progress()):
                if produced and name in self._streams:
                    self._send(self._streams[name], produced, last=False)

    def _send(self, stream: _Stream, produced: int, *, last: bool) -> None:
        if stream.connection is None or (produced <= stream.sent and not last):
            return
        text = " token" * (produced - stream.sent)
        stream.sent = produced
        reason = '"length"' if last else "null"
        event = (
            '{"id":"cmpl-0","object":"text_completion","created":1700000000,"model":"mistral-7b",'
            f'"choices":[{{"index":0,"text":"{text}","logprobs":null,"finish_reason":{reason}}}],'
            f'"usage":{{"prompt_tokens":1,"total_tokens":1,"completion_tokens":{produced}}}}}'
        )
        stream.connection.send(f"data: {event}\n\n" + ("data: [DONE]\n\n" if last else ""), last)

    def _schedule(self) -> None:
        """Run again when the batch changes, or when there is something to send."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due_s = self._batch.next_event_s
        if due_s is None:
            return
        flush_s = max(self._flushed_s + _STREAM_INTERVAL_S, self._batch.next_iteration_s or 0.0)
        delay_s = max(0.0, min(due_s, flush_s) - time.monotonic())
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._run(time.monotonic())
        self._schedule()


class _Connection(Connection):
    def __init__(self, server: _Server) -> None:
        super().__init__()
        self._server = server
        self._name: str | None = None

    def connection_lost(self, _: Exception | None) -> None:
        if self._name is not None:
            self._server.hung_up(self._name)

    def asked(self, body: bytes) -> None:
        self._name = self._server.begin(self, _ask.decode(body))

    def answer_to_get(self, url: bytes) -> bytes:
        return msgspec.json.encode(self._server.take_stats()) if url == b"/stats" else b""

    def send(self, text: str, last: bool) -> None:
        """Write a chunk, and the end of the stream with the last."""
        if last:
            self._name = None
        self.write(f"{len(text):x}\r\n{text}\r\n{'0' if last else ''}".encode())
        if last:
            self.write(b"\r\n\r\n")


async def _serve(abort_s: float) -> None:
    server = _Server(abort_s)
    await serve(lambda: _Connection(server))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--abort-s", type=float, default=0.01, help="until a hang-up is noticed")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(parser.parse_args().abort_s))
