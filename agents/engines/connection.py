"""The request path to one OpenAI-compatible server: jobs out, their answers back.

What to ask is `requests`' business, what an answer means `reading`'s; here are the sockets. A job is aborted by closing its
connection. Each attempt has a request id of its own at the server, which may not have let go of an earlier one yet. A
server that falls silent in the middle of an answer loses the job after a limit.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import aiohttp
import msgspec

from agents.engines.base import Listener
from agents.engines.calls import Calls
from agents.engines.events import DONE, Event, Events
from agents.engines.faults import (
    EngineError,
    Said,
    fault_of,
    is_about_access,
    rest_of,
    said_by,
    said_in,
)
from agents.engines.lenient_json import NO_JSON, Unreadable, read
from agents.engines.measured import MeasuredReader
from agents.engines.reading import End, Reader
from agents.engines.requests import (
    Abilities,
    CannotContinue,
    NothingLeft,
    Prepared,
    asked_whole,
    prepare,
)
from qlm_core.config import EngineConfig
from qlm_core.errors import kind_and_place
from qlm_core.executor import JobDone, JobLost, JobOutput, JobRefused
from qlm_core.messages import Payload
from qlm_core.model import ModelName, RequestId
from qlm_core.resume import Resume, ResumedBy, exact_from_ids, resume_of, single_prompt

log = logging.getLogger("qlm.engine")

_ERROR_BYTES_MAX = 65_536
# What a server still has to say after an answer is over must come within this time.
_CLOSING_S = 1.0
# An answer that is asked for whole is silent until it is there: so many times as long as a stream before its first token.
_WHOLE_SILENCES = 10.0


_Parts = AsyncIterator[tuple[bytes, bool]]
_Reader = Reader | MeasuredReader


_body = msgspec.json.Decoder(dict[str, Any])
# Whether a server that has dropped a job still answers, it has so long to show.
_ALIVE_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a server may be silent before a job on it is given up; 0 for as long as it likes.

    Attributes:
        first_s: before the first output.
        next_s: between two outputs.
    """

    first_s: float = 0.0
    next_s: float = 0.0


def patience_of(engine: EngineConfig) -> Patience:
    """What the configuration says of it."""
    return Patience(first_s=engine.silence_first_s_max, next_s=engine.silence_s_max)


class Connection(Calls):
    """The request path to one server: submits jobs, streams their output, aborts them.

    Args:
        base_url: scheme, host and port, without /v1.
        served: the server's name for each of our models.
        event_bytes_max: longest event of a stream, and longest whole answer.

    Attributes:
        able: what the server can do; its owner sets it as that becomes known.
    """

    def __init__(
        self,
        base_url: str,
        *,
        served: dict[ModelName, str],
        api_key: str = "",
        connect_timeout_s: float = 5.0,
        patience: Patience | None = None,
        event_bytes_max: int = 16_777_216,
        able: Abilities | None = None,
    ) -> None:
        super().__init__(base_url, api_key=api_key, connect_timeout_s=connect_timeout_s)
        self.able = able or Abilities()
        self._served = served
        self._patience = patience or Patience()
        self._event_bytes_max = event_bytes_max
        self._listener: Listener | None = None
        self._tasks: dict[RequestId, tuple[int, asyncio.Task[None]]] = {}
        self._ended: dict[asyncio.Task[None], None] = {}

    def open(self, listener: Listener) -> None:
        """Be ready to take jobs."""
        self._listener = listener
        self.connect()

    async def close(self) -> None:
        """Drop all jobs without a word and hang up."""
        self._drop_all()
        if self._ended:
            await asyncio.wait(list(self._ended))
        await self.hang_up()

    def submit(self, job: Payload, priority: int | None = None) -> None:
        """Start a job, with a priority if the server is to hear of one."""
        task = asyncio.create_task(self._run(job, priority))
        self._tasks[job.id] = (job.attempt, task)

    def abort(self, id: RequestId, attempt: int) -> None:
        """Stop a job; unknown ones are ignored."""
        known = self._tasks.get(id)
        if known is not None and known[0] == attempt:
            del self._tasks[id]
            self._end(known[1])

    def lose_all(self) -> None:
        """The server is gone: every job on it is lost."""
        lost = [JobLost(id, attempt) for id, (attempt, _) in self._tasks.items()]
        self._drop_all()
        for event in lost:
            self._tell(event)

    async def probe(self, model: ModelName, *, timeout_s: float) -> str:
        """Have the server produce one token. Returns what is wrong, "" if nothing."""
        return await self.try_out(self._served[model], timeout_s=timeout_s)

    async def learn_shapes(self, model: ModelName, *, timeout_s: float) -> None:
        """Find out what the server's whole answers look like."""
        shapes = await self.shapes(self._served[model], timeout_s=timeout_s)
        fingerprint = next((one.fingerprint for one in shapes.values() if one.fingerprint), "")
        parses = any(one.reasons for one in shapes.values())
        self.able = replace(self.able, shapes=shapes, fingerprint=fingerprint, parses_chats=parses)

    def evictable(self, job: Payload) -> bool:
        """Whether a job could go on elsewhere as well as this server's answers allow.

        Where they tell token ids that means: as if nothing had happened.
        """
        try:
            body = _body.decode(job.body)
        except NO_JSON:
            return False  # it ends at the engine anyway
        if not body.get("stream") and asked_whole(body, self.able, job.endpoint):
            return False
        if self.able.ids:
            return exact_from_ids(body, job.endpoint)
        if not job.chat and not isinstance(single_prompt(body.get("prompt")), str):
            return False  # its text cannot go behind ids, for who knows how to divide it
        return resume_of(body, job.endpoint) is Resume.FROM_TEXT

    # ------------------------------------------------------------------- one job

    async def _run(self, job: Payload, priority: int | None) -> None:
        event: End = JobLost(job.id, job.attempt, "the agent failed")
        try:
            event = await self._answer(job, priority)
        except (OSError, TimeoutError, aiohttp.ClientError) as error:
            words = f"no connection to the engine ({type(error).__name__})"
            event = JobLost(job.id, job.attempt, words)
        except Exception as error:  # whatever went wrong, a job ends
            log.error("job lost", extra={"id": job.id, "reason": kind_and_place(error)})
        if isinstance(event, JobLost) and not event.answered and await self.answers(_ALIVE_S):
            # A server that is there for others did not want this one.
            event = replace(event, answered=True)
        known = self._tasks.get(job.id)
        if known is not None and known[0] == job.attempt:
            del self._tasks[job.id]
            self._tell(event)

    async def _answer(self, job: Payload, priority: int | None) -> End:
        """Ask the server, and again where it turns out to lack what was taken for granted."""
        while True:
            able = self.able
            try:
                served = self._served[job.model]
                prepared = await prepare(job, served, self, able, priority=priority)
            except NO_JSON as error:
                return JobRefused(job.id, job.attempt, 400, f"body: {error}")
            except NothingLeft:
                return JobDone(job.id, job.attempt, "length", 0, 0, resumed_by=ResumedBy.IDS)
            except CannotContinue as error:
                log.warning("job cannot go on here", extra={"id": job.id, "reason": str(error)})
                return JobLost(job.id, job.attempt, str(error), answered=True)
            event = await self._ask(job, prepared)
            if not isinstance(event, JobRefused):
                return event
            lacking = able.without(event.error, asked=job.body)
            if lacking is None:
                return event
            if self.able is able:
                log.warning("engine lacks what it was taken for", extra={"id": job.id})
                self.able = lacking

    async def _ask(self, job: Payload, prepared: Prepared) -> End:
        headers = {
            **dict(job.headers),
            "Content-Type": "application/json",
            "X-Request-Id": f"{job.id}-{job.attempt}",
        }
        reader: _Reader = MeasuredReader(job)
        if job.endpoint.generates:
            reader = Reader(job, prepared.reading)
        first_s = self._patience.first_s * (_WHOLE_SILENCES if prepared.reading.whole else 1.0)
        try:
            async with asyncio.timeout(first_s or None) as limit:
                async with self.http.post(
                    self.base_url + prepared.path,
                    data=prepared.body,
                    headers=headers,
                    allow_redirects=False,
                ) as response:
                    return await self._read(job, reader, response, limit)
        except TimeoutError:
            if not limit.expired():
                raise
            if reader.over:
                return reader.end()
            log.warning("engine is silent", extra={"id": job.id})
            return JobLost(job.id, job.attempt, "the engine fell silent", answered=True)

    async def _read(
        self,
        job: Payload,
        reader: _Reader,
        response: aiohttp.ClientResponse,
        limit: asyncio.Timeout,
    ) -> End:
        """The answer, whatever it is."""
        rest_s = rest_of(response.headers.get("Retry-After"))
        if response.status != 200:
            answer = await response.content.read(_ERROR_BYTES_MAX)
            return self._fault(job, said_by(response.status, answer), rest_s)
        try:
            await self._take_in(reader, response, limit)
        except EngineError as error:
            return self._fault(job, error.said, rest_s)
        except Unreadable as error:
            log.warning("unreadable answer", extra={"id": job.id, "reason": str(error)})
            return reader.failed(error)
        except (OSError, aiohttp.ClientError) as error:
            return reader.failed(error)
        return reader.end()

    async def _take_in(
        self,
        reader: _Reader,
        response: aiohttp.ClientResponse,
        limit: asyncio.Timeout,
    ) -> None:
        """An answer with status 200: whole or streamed, as it shows. Not every server does as it is asked, or as it says."""
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise Unreadable("it is compressed, which it was asked not to be")
        parts = response.content.iter_chunks()
        head = b""
        async for data, _ in parts:
            head += data
            if head.strip():
                break
        reader.whole = head.lstrip().startswith(b"{")
        if reader.whole:
            await self._whole(reader, head, parts)
        else:
            await self._stream(reader, head, parts, limit)

    async def _whole(self, reader: _Reader, head: bytes, parts: _Parts) -> None:
        """An answer in one piece."""
        pieces, size = [head], len(head)
        async for data, _ in parts:
            pieces.append(data)
            size += len(data)
            if size > self._event_bytes_max:
                raise Unreadable(f"an answer of more than {self._event_bytes_max} bytes")
        self._pass_on(reader.take_whole(b"".join(pieces)))

    async def _stream(
        self, reader: _Reader, head: bytes, parts: _Parts, limit: asyncio.Timeout
    ) -> None:
        """Pass a stream on, event by event, until the server ends it or has nothing more to say."""
        loop = asyncio.get_running_loop()
        self._pass_on(reader.opening())
        heard_s, seen = -inf, False
        async for event in self._events(head, parts):
            if event.data == DONE:
                return
            seen = True
            self._take(reader, event.data, error=event.error)
            heard_s = self._be_patient(reader, limit, heard_s, loop.time())
        if head and not seen:
            raise Unreadable("no server-sent events, though it was asked for a stream")

    async def _events(self, head: bytes, parts: _Parts) -> AsyncIterator[Event]:
        events = Events(self._event_bytes_max)
        for event in events.feed(head):
            yield event
        async for data, _ in parts:
            for event in events.feed(data):
                yield event
        for event in events.finish():
            yield event

    def _take(self, reader: _Reader, data: bytes, *, error: bool) -> None:
        if error and not reader.over:
            said = read(data)
            said = said if isinstance(said, dict) else {"message": str(said)}
            raise EngineError(said_in(said) or said_in({"error": said}) or Said(500, "an error"))
        self._pass_on(reader.take(data))

    def _be_patient(
        self, reader: _Reader, limit: asyncio.Timeout, heard_s: float, now_s: float
    ) -> float:
        """Move the limit on silence on; returns the time that it counts from.

        That may be a little in the past: setting a timer for each token costs more than the token.
        """
        next_s = self._patience.next_s
        if reader.over:
            limit.reschedule(now_s + _CLOSING_S)
        elif not reader.begun or now_s < heard_s + next_s / 8:
            return heard_s
        else:
            limit.reschedule(now_s + next_s if next_s else None)
        return now_s

    def _fault(self, job: Payload, said: Said, rest_s: float) -> End:
        """What an error means, and a word of it in the log; its own words may quote a prompt."""
        event = fault_of(job, said, rest_s=rest_s)
        extra = {"id": job.id, "status": said.status}
        if not isinstance(event, JobLost):
            log.info("engine refused", extra=extra)
        elif is_about_access(said.status):
            log.error("engine denies access", extra=extra)
        else:
            log.warning("engine error", extra=extra)
        return event

    # ------------------------------------------------------------------- bookkeeping

    def _pass_on(self, outputs: list[JobOutput]) -> None:
        for output in outputs:
            self._tell(output)

    def _tell(self, event: JobOutput | End) -> None:
        if self._listener is not None:
            self._listener(event)

    def _drop_all(self) -> None:
        tasks = [task for _, task in self._tasks.values()]
        self._tasks.clear()
        for task in tasks:
            self._end(task)

    def _end(self, task: asyncio.Task[None]) -> None:
        """Cancel a task, and keep it referenced until it has closed its connection."""
        if task.cancel():
            self._ended[task] = None
            task.add_done_callback(lambda done: self._ended.pop(done, None))
