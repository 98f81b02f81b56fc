"""The request path to one OpenAI-compatible server: jobs out, their streams back.

Every job streams, whatever its client asked for; chunk objects pass on as they come, without `id` and usage. A job is
over only when the server has named a finish reason: a server that crashes may well end its stream with `[DONE]`. A
job is aborted by closing its connection.
"""

from __future__ import annotations

import asyncio
import logging
import traceback

import aiohttp
import msgspec

from agents.engines.base import Listener
from agents.engines.requests import CannotContinue, prepare
from qlm_core.executor import JobDone, JobLost, JobOutput, JobRefused
from qlm_core.messages import Payload
from qlm_core.model import ModelName, RequestId

log = logging.getLogger("qlm.engine")

# Statuses at which the same request may well succeed later or elsewhere; a 401 is about our key, not its client's.
_RETRIED = (401, 408, 409, 425, 429)
_ERROR_CHARS_MAX = 2000
_EVENT_BYTES_MAX = 4_194_304


class _Choice(msgspec.Struct):
    index: int = 0
    finish_reason: str | None = None


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _PromptDetails | None = None


class _Tokens(msgspec.Struct):
    tokens: list[int]


_Parts = dict[str, msgspec.Raw]
_parts = msgspec.json.Decoder(_Parts)
_choices = msgspec.json.Decoder(list[_Choice])
_usage = msgspec.json.Decoder(_Usage | None)
_tokens = msgspec.json.Decoder(_Tokens)
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
        # Streams pass on as they come, so they must come as they are.
        self._headers = {"Accept-Encoding": "identity"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
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
        event: JobDone | JobRefused | JobLost = JobLost(job.id, job.attempt)
        try:
            event = await self._stream(job, priority)
        except (OSError, TimeoutError, aiohttp.ClientError) as error:
            log.warning("job lost", extra={"id": job.id, "reason": repr(error)})
        except CannotContinue as error:
            log.warning("job lost", extra={"id": job.id, "reason": str(error)})
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            log.warning("job lost", extra={"id": job.id, "reason": f"unreadable chunk: {error}"})
        except Exception as error:  # whatever went wrong, a job ends
            log.error("job lost", extra={"id": job.id, "reason": _kind_and_place(error)})
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
        try:
            tokens = _tokens.decode(answer).tokens if status == 200 else []
        except (msgspec.MsgspecError, UnicodeDecodeError):
            tokens = []
        # Of text there is always a token; servers with another /tokenize than vLLM's may find no text.
        if text and not tokens:
            raise CannotContinue(
                f"the server does not tokenize as vLLM does (HTTP {status} at /tokenize), so a "
                "prompt of token ids cannot be continued there"
            )
        return tokens

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
        self._cached_tokens: int | None = None
        # Tokens of each choice so far, and of all of them in the server's last word.
        self._counted: dict[int, int] = {}
        self._output_tokens = 0

    def take(self, event: bytes) -> JobOutput | None:
        """One chunk object; None if there is nothing to pass on."""
        parts = _parts.decode(event)
        if "error" in parts:
            log.warning("engine error in a stream", extra={"id": self._job.id})
            self.broken = True
            return None
        raw = parts.pop("usage", None)
        usage: _Usage | None = _usage.decode(raw) if raw is not None else None
        if usage is not None:
            self._prompt_tokens = usage.prompt_tokens
            if usage.prompt_tokens_details is not None:
                self._cached_tokens = usage.prompt_tokens_details.cached_tokens
        choices = _choices.decode(parts["choices"]) if "choices" in parts else []
        if not choices:
            if usage is not None:
                self._output_tokens = usage.completion_tokens
            return None
        for choice in choices:
            if choice.finish_reason is not None:
                self._finish_reason = choice.finish_reason
        fresh = self._count(choices[0].index, usage)
        if self._resumed and not fresh and not self._finish_reason and b'"role"' in event:
            return None
        parts.pop("id", None)
        return JobOutput(self._job.id, self._job.attempt, _encode(parts), fresh)

    def _count(self, choice: int, usage: _Usage | None) -> int:
        """Tokens since the last count of a choice, since running counts are of one choice each.

        Where the server does not count as it goes, a chunk counts as a token.
        """
        before = self._counted.get(choice, 0)
        self._counted[choice] = before + 1 if usage is None else usage.completion_tokens
        return max(0, self._counted[choice] - before)

    def end(self) -> JobDone | JobLost:
        """The stream is over."""
        job = self._job
        if not self._finish_reason or self._finish_reason in ("abort", "error"):
            return JobLost(job.id, job.attempt)
        output = self._output_tokens or sum(self._counted.values())
        return JobDone(
            *(job.id, job.attempt, self._finish_reason, self._prompt_tokens, output),
            cached_tokens=self._cached_tokens,
        )


def _refusal(job: Payload, status: int, answer: bytes) -> JobRefused | JobLost:
    """What an HTTP error means: a client's fault is final, a server's is not."""
    text = _error_text(answer)
    if 400 <= status < 500 and status not in _RETRIED:
        return JobRefused(job.id, job.attempt, status, text)
    log.warning("engine refused", extra={"id": job.id, "status": status})
    return JobLost(job.id, job.attempt)


def _kind_and_place(error: Exception) -> str:
    """What an unexpected error is and where it came from; its message is left out, for it may quote a prompt."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__} in " + " > ".join(f"{f.name}:{f.lineno}" for f in frames)


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
