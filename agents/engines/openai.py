"""An engine that is a running OpenAI-compatible server, spoken to over HTTP.

Every job streams, whatever its client asked for; chunk objects pass on as they come, without `id` and usage. A job is
over only when the server has named a finish reason: a server that crashes may well end its stream with `[DONE]`. A
job is aborted by closing its connection.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

import aiohttp
import msgspec

from agents.engines.base import Listener
from agents.engines.requests import prepare
from qlm_core.config import AgentConfig, Config
from qlm_core.errors import QlmError
from qlm_core.executor import (
    EngineDown,
    EngineReady,
    JobDone,
    JobLost,
    JobOutput,
    JobRefused,
)
from qlm_core.messages import Payload
from qlm_core.model import ModelName, ModelTier, RequestId
from qlm_core.profile import EngineProfile, IterationTime
from qlm_core.profile_catalog import find_profile

log = logging.getLogger("qlm.engine")

# Statuses at which the same request may well succeed later or elsewhere.
_RETRIED = (408, 409, 425, 429)
_PROBE_S = 1.0
# Probes in a row that fail before a server counts as down.
_PROBES_LOST = 3
_ERROR_CHARS_MAX = 2000
_EVENT_BYTES_MAX = 4_194_304


class _Choice(msgspec.Struct):
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


_Parts = dict[str, msgspec.Raw]
_parts = msgspec.json.Decoder(_Parts)
_choices = msgspec.json.Decoder(list[_Choice])
_usage = msgspec.json.Decoder(_Usage | None)
_encode = msgspec.json.Encoder().encode


class Connection:
    """The request path to one server: submits jobs, streams their output, aborts them.

    Args:
        base_url: scheme, host and port, without /v1.
        served: the server's name for each of our models.
    """

    def __init__(
        self,
        base_url: str,
        *,
        served: dict[ModelName, str],
        api_key: str = "",
        connect_timeout_s: float = 5.0,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self._served = served
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._connect_timeout_s = connect_timeout_s
        self._http: aiohttp.ClientSession | None = None
        self._listener: Listener | None = None
        self._tasks: dict[RequestId, tuple[int, asyncio.Task[None]]] = {}
        self._ended: dict[asyncio.Task[None], None] = {}

    def open(self, listener: Listener) -> None:
        """Be ready to take jobs."""
        self._listener = listener
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._connect_timeout_s),
            headers=self._headers,
            auto_decompress=False,
        )

    async def close(self) -> None:
        """Drop all jobs without a word and hang up."""
        self._drop_all()
        if self._ended:
            await asyncio.wait(list(self._ended))
        if self._http is not None:
            await self._http.close()

    @property
    def jobs(self) -> int:
        """Jobs on the server."""
        return len(self._tasks)

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

    async def get(self, path: str, *, timeout_s: float) -> tuple[int, bytes]:
        """GET a path of the server. Raises OSError, asyncio.TimeoutError or aiohttp.ClientError."""
        return await self._call("GET", path, None, timeout_s)

    async def post(self, path: str, body: object, *, timeout_s: float) -> tuple[int, bytes]:
        """POST JSON to a path of the server; raises as `get`."""
        return await self._call("POST", path, _encode(body), timeout_s)

    async def probe(self, model: ModelName, *, timeout_s: float) -> str:
        """Have the server produce one token. Returns what is wrong, "" if nothing."""
        body = {"model": self._served[model], "prompt": "a", "max_tokens": 1, "temperature": 0}
        try:
            status, answer = await self.post("/v1/completions", body, timeout_s=timeout_s)
        except (OSError, TimeoutError, aiohttp.ClientError) as error:
            return f"no answer: {error!r}"
        return "" if status == 200 else f"HTTP {status}: {_error_text(answer)}"

    # ------------------------------------------------------------------- one job

    async def _call(
        self, method: str, path: str, body: bytes | None, timeout_s: float
    ) -> tuple[int, bytes]:
        assert self._http is not None, "not open"
        async with self._http.request(
            method,
            self.base_url + path,
            data=body,
            headers={"Content-Type": "application/json"},
            timeout=aiohttp.ClientTimeout(total=timeout_s),
        ) as response:
            return response.status, await response.read()

    async def _run(self, job: Payload, priority: int | None) -> None:
        try:
            event: JobDone | JobRefused | JobLost = await self._stream(job, priority)
        except (OSError, TimeoutError, aiohttp.ClientError) as error:
            log.warning("job lost", extra={"id": job.id, "reason": repr(error)})
            event = JobLost(job.id, job.attempt)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            log.warning("job lost", extra={"id": job.id, "reason": f"unreadable chunk: {error}"})
            event = JobLost(job.id, job.attempt)
        known = self._tasks.get(job.id)
        if known is not None and known[0] == job.attempt:
            del self._tasks[job.id]
            self._tell(event)

    async def _stream(self, job: Payload, priority: int | None) -> JobDone | JobRefused | JobLost:
        assert self._http is not None, "not open"
        try:
            served = self._served[job.model]
            prepared = await prepare(job, served, self._tokenize, priority=priority)
        except (msgspec.MsgspecError, ValueError) as error:
            return JobRefused(job.id, job.attempt, 400, f"body: {error}")
        async with self._http.post(
            self.base_url + prepared.path,
            data=prepared.body,
            headers={"Content-Type": "application/json", "X-Request-Id": job.id},
        ) as response:
            if response.status != 200:
                answer = await response.content.read(65_536)
                return _refusal(job, response.status, answer)
            return await self._relay(job, response.content)

    async def _relay(self, job: Payload, content: aiohttp.StreamReader) -> JobDone | JobLost:
        """Pass the stream on, event by event; the end is an end only with a finish reason."""
        relay = _Relay(job)
        rest = b""
        async for data, _ in content.iter_chunks():
            *lines, rest = (rest + data).split(b"\n")
            if len(rest) > _EVENT_BYTES_MAX:
                log.warning("endless event in a stream", extra={"id": job.id})
                return JobLost(job.id, job.attempt)
            for line in lines:
                if not line.startswith(b"data:"):
                    continue
                event = line[5:].strip()
                if event == b"[DONE]":
                    return relay.end()
                output = relay.take(event)
                if relay.broken:
                    return JobLost(job.id, job.attempt)
                if output is not None:
                    self._tell(output)
        return relay.end()

    async def _tokenize(self, model: str, text: str) -> list[int]:
        body = {"model": model, "prompt": text, "add_special_tokens": False}
        status, answer = await self.post("/tokenize", body, timeout_s=10.0)
        if status != 200:
            raise ValueError(f"the server cannot tokenize ({status}), so token ids cannot go on")
        tokens = msgspec.json.decode(answer).get("tokens")
        return [int(token) for token in tokens]

    # ------------------------------------------------------------------- bookkeeping

    def _tell(self, event: JobOutput | JobDone | JobRefused | JobLost) -> None:
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


class _Relay:
    """Turns the events of one stream into job events."""

    def __init__(self, job: Payload) -> None:
        self.broken = False
        self._job = job
        self._resumed = job.produced_tokens > 0
        self._finish_reason = ""
        self._prompt_tokens = 0
        self._output_tokens = 0

    def take(self, event: bytes) -> JobOutput | None:
        """One chunk object; None if there is nothing to pass on."""
        parts = _parts.decode(event)
        if "error" in parts:
            log.warning("engine error in a stream", extra={"id": self._job.id})
            self.broken = True
            return None
        fresh = self._count(parts.pop("usage", None))
        choices = _choices.decode(parts["choices"]) if "choices" in parts else []
        if not choices:
            return None
        for choice in choices:
            if choice.finish_reason is not None:
                self._finish_reason = choice.finish_reason
        if fresh is None:
            fresh = 1
            self._output_tokens += 1
        if self._resumed and not fresh and not self._finish_reason and b'"role"' in event:
            return None
        parts.pop("id", None)
        return JobOutput(self._job.id, self._job.attempt, _encode(parts), fresh)

    def _count(self, raw: msgspec.Raw | None) -> int | None:
        """Tokens since the last count; None where the server does not count as it goes."""
        usage: _Usage | None = _usage.decode(raw) if raw is not None else None
        if usage is None:
            return None
        fresh: int = max(0, usage.completion_tokens - self._output_tokens)
        self._output_tokens = usage.completion_tokens
        self._prompt_tokens = usage.prompt_tokens
        return fresh

    def end(self) -> JobDone | JobLost:
        """The stream is over."""
        job = self._job
        if not self._finish_reason or self._finish_reason in ("abort", "error"):
            return JobLost(job.id, job.attempt)
        reason, prompt = self._finish_reason, self._prompt_tokens
        return JobDone(job.id, job.attempt, reason, prompt, self._output_tokens)


def _refusal(job: Payload, status: int, answer: bytes) -> JobRefused | JobLost:
    """What an HTTP error means: a client's fault is final, a server's is not."""
    text = _error_text(answer)
    if 400 <= status < 500 and status not in _RETRIED:
        return JobRefused(job.id, job.attempt, status, text)
    log.warning("engine refused", extra={"id": job.id, "status": status})
    return JobLost(job.id, job.attempt)


def _error_text(answer: bytes) -> str:
    """The message of an OpenAI error body, or the body itself."""
    try:
        body = msgspec.json.decode(answer)
    except (msgspec.DecodeError, UnicodeDecodeError):
        body = None
    if isinstance(body, dict):
        error = body.get("error", body)
        message = error.get("message") if isinstance(error, dict) else error
        if isinstance(message, str):
            return message[:_ERROR_CHARS_MAX]
    return answer.decode("utf-8", "replace")[:_ERROR_CHARS_MAX]


def assumed_profile(
    model: str, gpu: str, *, max_num_seqs: int, kv_cache_tokens: int
) -> EngineProfile:
    """The catalogue's profile if there is one, else a plain 20 ms an iteration, with the given capacity."""
    try:
        known = find_profile(model, gpu)
    except QlmError:
        known = EngineProfile(
            model=model,
            gpu=gpu,
            iteration=IterationTime(
                base_ms=20.0, per_token_ms=0.05, per_sequence_ms=0.1, per_context_token_ms=0.0
            ),
            kv_cache_tokens=kv_cache_tokens,
            max_num_batched_tokens=max(2048, max_num_seqs),
            source="assumed; corrected online",
        )
    return replace(
        known,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max(known.max_num_batched_tokens, max_num_seqs),
        kv_cache_tokens=max(kv_cache_tokens, known.block_tokens),
    )


class OpenAIEngine:
    """A server that somebody else runs, with one model of ours (the first that the agent names)."""

    def __init__(self, config: Config, agent: AgentConfig) -> None:
        section = agent.engine.openai
        if len(agent.models) != 1:
            raise QlmError(
                f"agents.{agent.name}.models: an openai engine serves one model, not "
                f"{len(agent.models)}. Give each server an agent of its own."
            )
        self._model = ModelName(agent.models[0])
        self._health_path = section.health_path
        self._timeout_s = section.connect_timeout_s
        self._where = f"agents.{agent.name}.engine.openai.base_url"
        self._connection = Connection(
            section.base_url,
            served={self._model: config.models[self._model].path or self._model},
            api_key=section.api_key,
            connect_timeout_s=section.connect_timeout_s,
        )
        self._profile = assumed_profile(
            self._model,
            agent.gpu,
            max_num_seqs=section.max_num_seqs,
            kv_cache_tokens=section.kv_cache_tokens,
        )
        self._listener: Listener | None = None
        self._watch: asyncio.Task[None] | None = None

    @property
    def profiles(self) -> tuple[EngineProfile, ...]:
        """One profile, with the configured capacity."""
        return (self._profile,)

    async def start(self, listener: Listener) -> None:
        """Check that the server answers. Raises QlmError if it does not."""
        self._listener = listener
        self._connection.open(listener)
        problem = await self._problem()
        if problem:
            await self._connection.close()
            raise QlmError(
                f"{self._where}: no server answers at {self._connection.base_url} ({problem}). "
                "Start it first, or correct the address."
            )
        self._ready()
        self._watch = asyncio.create_task(self._keep_watch())

    async def stop(self) -> None:
        """Hang up; the server stays as it is."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait([self._watch])
        await self._connection.close()

    def submit(self, job: Payload, priority: int = 0) -> None:  # noqa: ARG002
        """Run a job. Its priority is kept back: not every server has a use for it, and some refuse it."""
        self._connection.submit(job)

    def abort(self, id: RequestId, attempt: int) -> None:
        """Close a job's connection, which frees it at the server."""
        self._connection.abort(id, attempt)

    def swap(self, model: ModelName) -> None:
        """There is one model only, so it is awake already."""
        assert model == self._model
        self._ready()

    def warm(self, models: tuple[ModelName, ...]) -> None:
        """There is nothing to warm."""

    def kv_used_tokens(self) -> int:
        """Unknown; the agent's own count is used."""
        return 0

    def _ready(self) -> None:
        assert self._listener is not None
        self._listener(EngineReady(self._model, ((self._model, ModelTier.AWAKE),)))

    async def _problem(self) -> str:
        try:
            status, _ = await self._connection.get(self._health_path, timeout_s=self._timeout_s)
        except (OSError, TimeoutError, aiohttp.ClientError) as error:
            return repr(error)
        return "" if status < 400 else f"HTTP {status}"

    async def _keep_watch(self) -> None:
        """Tell when the server goes away and when it is back."""
        assert self._listener is not None
        up, lost = True, 0
        while True:
            await asyncio.sleep(_PROBE_S)
            problem = await self._problem()
            lost = lost + 1 if problem else 0
            if up and lost >= _PROBES_LOST:
                up = False
                self._connection.lose_all()
                self._listener(EngineDown(problem))
            elif not up and not problem:
                up = True
                self._ready()
