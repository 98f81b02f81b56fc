"""Reads the answers of endpoints that generate nothing: one JSON object, passed on as it came.

Its numbers are not read, so that none is lost or written in another way; looked at is only whether it is an answer, and how
many tokens it says that it took. Pure.
"""

from __future__ import annotations

import msgspec

from agents.engines.chunk_fields import usage_of
from agents.engines.faults import EngineError, said_in, unsaid
from agents.engines.lenient_json import NO_JSON, Unreadable, encode, read
from qlm_core.endpoint import Endpoint
from qlm_core.executor import JobDone, JobLost, JobOutput, JobRefused
from qlm_core.messages import Payload

# Reported where an answer cannot be read: it came from a server behind us.
_BAD_GATEWAY = 502
_shallow = msgspec.json.Decoder(dict[str, msgspec.Raw])


class MeasuredReader:
    """Reads the answer to one job.

    Attributes:
        whole: as every answer of its kind.
        begun, over: whether the answer has come.
    """

    def __init__(self, job: Payload) -> None:
        self.whole = True
        self.over = False
        self._job = job
        self._prompt_tokens = 0

    @property
    def begun(self) -> bool:
        """Whether anything has come: it comes at once."""
        return self.over

    def opening(self) -> list[JobOutput]:
        """What is sent ahead: nothing."""
        return []

    def take(self, data: bytes) -> list[JobOutput]:
        """An event of a stream, which no such answer is. Raises Unreadable."""
        raise Unreadable(f"a stream of {len(data)} bytes, though it was not asked for one")

    def take_whole(self, data: bytes) -> list[JobOutput]:
        """The answer. Raises Unreadable, EngineError."""
        data, fields = _fields(data)
        if "error" in fields or bytes(fields.get("object", b"")) == b'"error"':
            said = said_in(read(data))
            if said is not None:
                raise EngineError(said)
        name = "results" if self._job.endpoint is Endpoint.RERANK else "data"
        if not bytes(fields.get(name, b"")).lstrip().startswith(b"["):
            raise Unreadable(f"an answer without {name}")
        self._prompt_tokens = _counted(fields)
        self.over = True
        job = self._job
        return [JobOutput(job.id, job.attempt, data, 0, plain=False, whole=True)]

    def end(self) -> JobDone | JobLost:
        """The answer has ended, one way or the other."""
        job = self._job
        if not self.over:
            return JobLost(job.id, job.attempt, "the answer did not come", answered=True)
        return JobDone(
            id=job.id,
            attempt=job.attempt,
            finish_reason="stop",
            prompt_tokens=self._prompt_tokens,
            output_tokens=0,
        )

    def failed(self, error: Exception) -> JobDone | JobLost | JobRefused:
        """What becomes of the job whose answer cannot be read, or whose connection broke."""
        if self.over:
            return self.end()
        job = self._job
        if isinstance(error, Unreadable):
            words = f"the engine's answer cannot be read: {error}"
            return JobRefused(job.id, job.attempt, _BAD_GATEWAY, words)
        return JobLost(job.id, job.attempt, unsaid(error), answered=True)


def _fields(data: bytes) -> tuple[bytes, dict[str, msgspec.Raw]]:
    """An answer as strict JSON, and its fields: as it is where it is that. Raises Unreadable."""
    try:
        return data, _shallow.decode(data)
    except NO_JSON:
        repaired = read(data)
    if not isinstance(repaired, dict):
        raise Unreadable("an answer that is no JSON object")
    data = encode(repaired)
    return data, _shallow.decode(data)


def _counted(fields: dict[str, msgspec.Raw]) -> int:
    """The tokens that the engine says it took, 0 where it says nothing."""
    usage = usage_of(read(bytes(fields["usage"]))) if "usage" in fields else None
    counts: dict[str, int] = usage or {}
    return counts.get("prompt_tokens", counts.get("total_tokens", 0))
