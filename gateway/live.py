"""An open request as its client sees it: the body, the output so far, and who follows it.

The ledger knows where the request stands; this holds what the ledger never sees. Output is kept as the raw chunks that
came and folded together only when somebody needs the whole (a continued attempt, a late follower, the final answer)
or when the raw form grows large.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple, Protocol

from gateway.budget import Budget
from gateway.shapes import Folded, answer_of, framer_of
from gateway.store import StoredEnd, StoredRequest
from gateway.trail import Trail
from qlm_core.errors import Unavailable
from qlm_core.ledger import EndRecord
from qlm_core.messages import Chunk, Payload
from qlm_core.model import Estimate, Phase

FOLD_BYTES = 65_536
# A client for which less waits is not one that lags, and neither is one that has taken something this lately: after a
# pause of an agent much may come at once.
LAG_BYTES = 65_536
LAG_S = 1.0


class Output(NamedTuple):
    """A framed chunk on its way to a client, and the output tokens in it."""

    data: bytes
    tokens: int


class Backlog(NamedTuple):
    """What may wait for clients that read slowly.

    Attributes:
        chunks_max: for one client, before they are merged.
        bytes_max: for one client.
        unread: counts the bytes for all of them.
    """

    chunks_max: int
    bytes_max: int
    unread: Budget


class Follower:
    """One client's place in the output of a request: what came since it last looked.

    However far a client lags, only so many chunks wait for it; more are merged into one. Where that takes too many bytes, or
    those of all clients do and this one lags, it is left: what it has not taken is dropped, and nothing more comes.

    Args:
        so_far: what there was before, which is beside its own limit.

    Attributes:
        overrun: whether it was left.
    """

    __slots__ = (
        "_backlog",
        "_bytes",
        "_bytes_max",
        "_closed",
        "_merge",
        "_outputs",
        "_since_s",
        "_waiter",
        "overrun",
    )

    def __init__(
        self,
        merge: Callable[[list[Output]], Output],
        backlog: Backlog,
        so_far: Output | None = None,
    ) -> None:
        self._merge = merge
        self._backlog = backlog
        self._bytes_max = backlog.bytes_max
        self._outputs: list[Output] = []
        self._bytes = 0
        self._since_s = asyncio.get_running_loop().time()
        self._closed = self.overrun = False
        self._waiter: asyncio.Future[None] | None = None
        if so_far is not None:
            self._bytes_max += len(so_far.data)
            self._set([so_far])

    def __len__(self) -> int:
        return len(self._outputs)

    def put(self, output: Output) -> None:
        """Add a chunk. Raises BadChunkError when there is a backlog that cannot be merged."""
        if self.overrun:
            return
        if not self._outputs:
            self._since_s = asyncio.get_running_loop().time()
        self._outputs.append(output)
        self._count(len(output.data))
        if self._lags():
            self._set([self._merge(self._outputs)])
            # Merged again and again, what is nearly too much would cost more than it is worth.
            self.overrun = self._bytes > self._bytes_max // 2 or self._backlog.unread.over
            if self.overrun:
                self.drop()
        elif len(self._outputs) > self._backlog.chunks_max:
            self._set([self._merge(self._outputs)])
        self._wake()

    def close(self) -> None:
        """Nothing more comes."""
        self._closed = True
        self._wake()

    def drop(self) -> None:
        """Nobody takes what there is."""
        self._set([])
        self.close()

    async def take(self) -> list[Output]:
        """All that came, as soon as there is something; [] after the last."""
        while not self._outputs and not self._closed:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        outputs = self._outputs
        self._set([])
        return outputs

    def _lags(self) -> bool:
        """Whether its client takes less than comes, by more than there is room for."""
        too_much = self._backlog.unread.over and self._bytes > LAG_BYTES
        if not too_much and self._bytes <= self._bytes_max:
            return False
        return asyncio.get_running_loop().time() - self._since_s >= LAG_S

    def _set(self, outputs: list[Output]) -> None:
        self._outputs = outputs
        self._count(sum(len(output.data) for output in outputs) - self._bytes)

    def _count(self, more: int) -> None:
        self._bytes += more
        self._backlog.unread.take(more)

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


class Origin(Protocol):
    """What a durable request is a part of that keeps its end, as a batch does of its lines."""

    def taken(self) -> None:
        """An agent holds the request."""

    async def keep_end(self, end: StoredEnd) -> StoredEnd:
        """Store how it ended, however long that takes; returns what is stored of it."""


class Live:
    """One open request.

    Attributes:
        origin: who keeps its end; None for the store itself, or for nobody if it is not durable.
        ended: resolves with the terminal record once that is as durable as the request.
        record: the terminal record, from the moment that the ledger made it.
        estimated: resolves with the first estimate; created by whoever waits for it.
        engine_trace: headers of a trace for the engine that runs an attempt; None: those of the client's trace.
    """

    __slots__ = (
        "_answer",
        "_backlog",
        "_folded_bytes",
        "_followers",
        "_framer",
        "_raw",
        "_raw_bytes",
        "_trail",
        "durable",
        "ended",
        "engine_trace",
        "estimate",
        "estimated",
        "origin",
        "record",
        "request",
    )

    def __init__(
        self,
        request: StoredRequest,
        *,
        durable: bool,
        running_usage: bool,
        backlog: Backlog,
        origin: Origin | None = None,
    ) -> None:
        self.request = request
        self.durable = durable
        self.origin = origin
        self.ended: asyncio.Future[EndRecord] = asyncio.get_running_loop().create_future()
        self.record: EndRecord | None = None
        self.estimate: Estimate | None = None
        self.estimated: asyncio.Future[None] | None = None
        self.engine_trace: Callable[[int], tuple[tuple[str, str], ...]] | None = None
        self._framer = framer_of(request, running_usage=running_usage)
        self._followers: list[Follower] = []
        self._answer = self._new_answer()
        self._raw: list[bytes] = []
        self._raw_bytes = self._folded_bytes = 0
        self._trail = Trail()
        self._backlog = backlog

    # ---------------------------------------------------------------- output

    def add(self, chunk: Chunk) -> None:
        """Keep a chunk and pass it on. Raises BadChunkError."""
        if chunk.ids is not None:
            self._trail.add(chunk.ids)
        data = chunk.data
        if chunk.whole:
            self._fold()
            self._answer.fold(data, whole=True)
        framed = self._framer.frame(data) if self._followers and self._shows else b""
        if not chunk.whole:
            self._raw.append(data)
            self._raw_bytes += len(data)
        if chunk.whole or self._raw_bytes > FOLD_BYTES:
            self._fold()
            self._folded_bytes = len(self._answer.chunk())
        if framed:
            for follower in self._followers:
                follower.put(Output(framed, chunk.tokens))

    def payload(self, attempt: int, produced_tokens: int) -> Payload:
        """What an agent gets that is to run the request, or to go on with it. Raises BadChunkError."""
        request = self.request
        trace = request.trace if self.engine_trace is None else self.engine_trace(attempt)
        if not produced_tokens:
            return Payload(
                id=request.id,
                attempt=attempt,
                model=request.model,
                endpoint=request.endpoint,
                body=request.body,
                headers=trace,
            )
        self._fold()
        return Payload(
            id=request.id,
            attempt=attempt,
            model=request.model,
            endpoint=request.endpoint,
            body=request.body,
            resume_text=self._answer.text,
            produced_tokens=produced_tokens,
            resume_ids=self._trail.upto(produced_tokens),
            text_offset_chars=self._answer.text_offset_chars,
            headers=trace,
        )

    def drop_output(self) -> None:
        """Forget the output so far."""
        self._raw = []
        self._raw_bytes = self._folded_bytes = 0
        self._answer = self._new_answer()
        self._trail.clear()

    @property
    def output_bytes(self) -> int:
        """Roughly what the output so far takes in memory."""
        return self._folded_bytes + self._raw_bytes

    # ---------------------------------------------------------------- followers

    def follow(self) -> Follower:
        """A place in all output from the beginning; closed after the last."""
        self._fold()
        chunk = self._answer.chunk() if self._shows else b""
        # Their tokens were counted when they came; a late follower learns the sum at the end.
        so_far = Output(self._framer.frame(chunk), 0) if chunk else None
        follower = Follower(self.merge, self._backlog, so_far)
        self._followers.append(follower)
        return follower

    def unfollow(self, follower: Follower) -> None:
        """Stop writing to a follower."""
        follower.drop()
        if follower in self._followers:
            self._followers.remove(follower)

    def merge(self, outputs: list[Output]) -> Output:
        """Several chunks as one."""
        if len(outputs) == 1:
            return outputs[0]
        answer = self._new_answer()
        for output in outputs:
            answer.fold(output.data)
        tokens = sum(output.tokens for output in outputs)
        return Output(self._framer.frame(answer.chunk()), tokens)

    # ---------------------------------------------------------------- the end

    def finish_output(self, record: EndRecord) -> None:
        """Complete the output, and the stream of whoever follows it."""
        self._fold()
        last = self._answer.finish(record.reason)
        if last:
            self._answer.fold(last)
            for follower in self._followers:
                follower.put(Output(self._framer.frame(last), 0))

    def response(self, record: EndRecord) -> bytes:
        """The answer as an OpenAI response object."""
        self._fold()
        return self._answer.response(
            id=self.request.id,
            created=self.request.created,
            model=self.request.model,
            service_tier=self.request.service_tier,
            record=record,
        )

    def usage_chunk(self, record: EndRecord) -> bytes:
        """The chunk that reports token usage."""
        return self._framer.usage(record)

    def close(self, record: EndRecord) -> None:
        """Tell everyone that it is over."""
        for follower in self._followers:
            follower.close()
        if not self.ended.done():
            self.ended.set_result(record)

    def abandon(self, reason: str) -> None:
        """Tell everyone that this gateway will not see the end of it."""
        for follower in self._followers:
            follower.close()
        if not self.ended.done():
            self.ended.set_exception(Unavailable(reason))
            self.ended.exception()  # nobody need be waiting for it

    def keeps(self, record: EndRecord) -> bool:
        """Whether this end is stored although the request is not: its client may ask for the answer again."""
        return self.request.kept and record.phase is Phase.FINISHED

    def _new_answer(self) -> Folded:
        return answer_of(self.request.endpoint, in_turns=bool(self.request.asked))

    @property
    def _shows(self) -> bool:
        """Whether output is shown as it comes: what can only be begun anew is shown once it is over."""
        return self.request.endpoint.generates or self.record is not None

    def _fold(self) -> None:
        raw, self._raw, self._raw_bytes = self._raw, [], 0
        for data in raw:
            self._answer.fold(data)
