"""One reader of engine answers: whatever an engine sends becomes job events, or the failure of one job.

The reader is total. It takes the events of one answer and gives out chunks that are strict JSON of OpenAI's shape: fields
that QLM works with have their types, all others pass as they came. An answer is over exactly when each choice that was
asked for has a finish reason, whatever follows; without that it was lost. Tokens leave together with their text: what
has been counted, or has an id, can be read by the client, so a continued attempt may begin after it. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from agents.engines.chunk_fields import (
    are_ids,
    cached_tokens_of,
    chat_logprobs,
    content_of,
    empty,
    ids_of,
    is_text_alone,
    move_offsets,
    only_choice,
    usage_of,
    without_role,
)
from agents.engines.faults import EngineError, Said, said_in, unsaid
from agents.engines.held_text import HeldText, Piece
from agents.engines.lenient_json import Unreadable, encode, read, whole_number
from qlm_core.executor import JobDone, JobLost, JobOutput, JobRefused, JobTurnedAway
from qlm_core.messages import Payload, TokenIds
from qlm_core.resume import ResumedBy

Json = dict[str, Any]
End = JobDone | JobRefused | JobLost | JobTurnedAway

# Reported where an answer cannot be read: it came from a server behind us.
_BAD_GATEWAY = 502
# Finish reasons that say that it was not finished: by whom, as a status. The engine gave the job up by itself, or it failed.
_BROKEN_OFF = {"abort": 502, "error": 500}
# Written by servers that mean none.
_NO_REASON = ("null", "none")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How the answer to a job is to be read, from the job and from what its engine was asked.

    Attributes:
        choices: how many choices the answer has (n times prompts).
        exact: the engine tells token ids.
        held_chars: for stop strings it may hold back the text of so many characters.
        keeps_ids: the client wants token ids as well.
        keeps_usage: the client wants the running count in each chunk.
        as_chat: a completion answers a chat.
        resumed_by: from what the job goes on.
        position: output tokens before the first one of this answer.
        repeated_tokens: tokens at the beginning that were counted before and had no text yet.
        offset_chars: what is added to text offsets of log-probabilities.
        top_logprobs: how many alternatives a chat wants that a completion answers.
        shape: what a whole answer of this engine has beside output, sent ahead where the client waits for one.
        fingerprint: the engine's `system_fingerprint`, which it puts on the last chunk of a stream without usage.
        whole: the answer comes in one piece.
    """

    choices: int = 1
    exact: bool = False
    held_chars: int = 0
    keeps_ids: bool = False
    keeps_usage: bool = False
    as_chat: bool = False
    resumed_by: ResumedBy = ResumedBy.NOTHING
    position: int = 0
    repeated_tokens: int = 0
    offset_chars: int = 0
    top_logprobs: int = 0
    shape: bytes = b""
    fingerprint: str = ""
    whole: bool = False


class Reader:
    """Reads the answer to one job.

    Attributes:
        begun: whether output has come.
        whole: whether the answer comes in one piece.
    """

    def __init__(self, job: Payload, reading: Reading) -> None:
        self.begun = False
        self.whole = reading.whole
        self._job = job
        self._reading = reading
        self._goes_straight = reading.choices == 1 and reading.resumed_by is ResumedBy.NOTHING
        self._finished: dict[int, str] = {}
        self._counted: dict[int, int] = {}
        self._held = HeldText(reading.held_chars)
        self._position = reading.position - reading.repeated_tokens
        self._repeated = reading.repeated_tokens
        self._prompt_tokens = 0
        self._output_tokens = 0
        # Ids of the prompt: none are wanted where the gateway has them, since it gave them to us.
        self._wants_prompt = reading.exact and reading.resumed_by is not ResumedBy.IDS
        self._prompt_ids: tuple[int, ...] = ()
        self._closing: Json = {}
        self._latest_usage: Json | None = None

    @property
    def over(self) -> bool:
        """Whether every choice has been finished."""
        return len(self._finished) >= self._reading.choices

    # ------------------------------------------------------------------- events in, outputs out

    def opening(self) -> list[JobOutput]:
        """What is sent ahead of all output."""
        shape = self._reading.shape
        return [JobOutput(self._job.id, self._job.attempt, shape, 0)] if shape else []

    def take(self, data: bytes) -> list[JobOutput]:
        """One event of a stream, or a whole answer. Raises Unreadable, EngineError."""
        event = read(data)
        if event is None:
            return []
        if not isinstance(event, dict):
            raise Unreadable("an event that is no JSON object")
        if self.over:
            self._note_closing(event)
            return []
        if self._goes_straight and (output := self._usual(event)) is not None:
            return [output]
        said = said_in(event)
        if said is not None:
            raise EngineError(said)
        usage = usage_of(event.pop("usage", None))
        choices = event.pop("choices", None)
        if not choices:
            self._note_counts(usage)
            if usage:
                self._closing = event | {"usage": usage}
            return []
        if not isinstance(choices, list):
            raise Unreadable("choices that are no list")
        return self._outputs(event, choices, usage)

    def take_whole(self, data: bytes) -> list[JobOutput]:
        """An answer in one piece. Raises Unreadable, EngineError."""
        events = whole_as_chunk(data, chat=self._job.chat)
        return [output for event in events for output in self.take(event)]

    def end(self) -> End:
        """The answer has ended, one way or the other."""
        job, reading = self._job, self._reading
        if not self.over:
            missing = reading.choices - len(self._finished)
            of = f"{missing} of {reading.choices} choices" if reading.choices > 1 else "the answer"
            return JobLost(job.id, job.attempt, f"{of} did not come to an end", answered=True)
        if not self._closing and self._latest_usage is not None and reading.choices == 1:
            # Some servers count with the last output, and say nothing after it.
            self._note_counts(self._latest_usage)
            self._closing = {"usage": self._latest_usage}
        counted = self._output_tokens or sum(self._counted.values())
        return JobDone(
            id=job.id,
            attempt=job.attempt,
            finish_reason=self._finished[min(self._finished)],
            prompt_tokens=self._prompt_tokens + reading.repeated_tokens,
            output_tokens=max(0, counted - reading.repeated_tokens),
            closing=encode(self._closing) if self._closing else b"",
            resumed_by=reading.resumed_by,
            cached_tokens=cached_tokens_of(self._closing.get("usage")),
        )

    def failed(self, error: Exception) -> End:
        """What becomes of the job whose answer cannot be read, or whose connection broke: over is over."""
        if self.over:
            return self.end()
        if isinstance(error, Unreadable):
            words = f"the engine's answer cannot be read: {error}"
            return JobRefused(self._job.id, self._job.attempt, _BAD_GATEWAY, words)
        return JobLost(self._job.id, self._job.attempt, unsaid(error), answered=True)

    # ------------------------------------------------------------------- one event

    def _usual(self, event: Json) -> JobOutput | None:
        """A chunk of the usual kind by a short way, since there is one for each token; None for any other kind.

        That is text, of the only choice, which goes on, and whose tokens and text are complete.
        """
        job, reading = self._job, self._reading
        choice = only_choice(event)
        if choice is None or not is_text_alone(choice, chat=job.chat):
            return None
        if not self._held.is_empty:
            return None
        ids: list[int] = []
        if reading.exact:
            ids = ids_of(choice)
            if not ids or event.get("prompt_token_ids") or choice.get("prompt_token_ids"):
                return None
        usage = usage_of(event.get("usage"))
        fresh = self._count(0, ids, usage, carries=True)
        if usage is not None:
            self._prompt_tokens = usage.get("prompt_tokens", self._prompt_tokens)
        if not reading.keeps_usage or usage is None:
            event.pop("usage", None)
        if reading.exact and not reading.keeps_ids:
            choice["token_ids"] = None
        self.begun = True
        event.pop("id", None)
        told_ids = self._told(ids) if reading.exact else None
        return JobOutput(job.id, job.attempt, encode(event), fresh, True, told_ids)

    def _outputs(self, event: Json, choices: list[Any], usage: Json | None) -> list[JobOutput]:
        reading = self._reading
        self._take_prompt_ids(event, choices)
        if usage is not None:
            self._latest_usage = usage
            self._prompt_tokens = usage.get("prompt_tokens", self._prompt_tokens)
        kept: list[Json] = []
        ids: list[int] = []
        tokens, plain, finished = 0, True, False
        for choice in choices:
            piece = self._piece(choice, usage)
            if piece is not None and reading.choices == 1 and not self.whole:
                piece = self._held.add(piece)
            if piece is None:
                continue
            plain &= piece.plain
            finished |= piece.finished
            ids += piece.ids
            tokens += piece.tokens
            kept.append(self._presented(piece))
        if not kept:
            return []
        if self.whole and usage is not None:
            tokens = usage.get("completion_tokens", tokens)
        event.pop("id", None)
        if reading.keeps_usage and usage is not None:
            event["usage"] = self._running(usage)
        if finished and reading.fingerprint:
            event.setdefault("system_fingerprint", reading.fingerprint)
        event["choices"] = kept
        told = self._told(ids) if reading.exact else None
        fresh = self._fresh(tokens)
        id, attempt = self._job.id, self._job.attempt
        return [JobOutput(id, attempt, encode(event), fresh, plain, told, self.whole)]

    def _piece(self, choice: Any, usage: Json | None) -> Piece | None:
        """One choice of an event; None for one that has nothing to say. Raises Unreadable."""
        if choice is None:
            return None
        if not isinstance(choice, dict):
            raise Unreadable("a choice that is no JSON object")
        index = self._index(choice)
        if index in self._finished:
            return None
        finish = choice.get("finish_reason")
        if finish is not None and not isinstance(finish, str):
            raise Unreadable("a finish reason that is no text")
        if finish in _BROKEN_OFF:
            raise EngineError(Said(_BROKEN_OFF[finish], f"the engine ended it with {finish!r}"))
        if finish in _NO_REASON:
            finish = choice["finish_reason"] = None
        if self._reading.resumed_by is not ResumedBy.NOTHING and not without_role(choice):
            return None
        text, plain, carries = content_of(choice, chat=self._job.chat and not self._reading.as_chat)
        ids = ids_of(choice)
        tokens = self._count(index, ids, usage, carries=carries)
        self.begun = self.begun or carries or tokens > 0
        if finish:
            self._finished[index] = finish
        return Piece(
            index=index,
            choice=choice,
            text=text,
            plain=plain,
            tokens=tokens,
            ids=ids,
            finished=bool(finish),
        )

    def _index(self, choice: Json) -> int:
        index = choice.get("index")
        if index is None or isinstance(index, bool):
            index = 0
        elif isinstance(index, float) and index.is_integer():
            index = int(index)
        index = whole_number(index)
        if not isinstance(index, int) or not 0 <= index < self._reading.choices:
            raise Unreadable(f"a choice beyond the {self._reading.choices} that were asked for")
        choice["index"] = index
        return index

    def _count(self, index: int, ids: list[int], usage: Json | None, *, carries: bool) -> int:
        """Tokens since the last count of a choice, since running counts are of one choice each.

        Where the server does not count as it goes, what carries output counts as a token.
        """
        before = self._counted.get(index, 0)
        if ids:
            now = before + len(ids)
        elif usage is not None and usage.get("completion_tokens") and not self.whole:
            # Servers that count only at the end say 0 until then.
            now = max(before, usage["completion_tokens"])
        else:
            now = before + carries
        self._counted[index] = now
        return now - before

    def _presented(self, piece: Piece) -> Json:
        """The choice as the client gets it."""
        choice, reading = piece.choice, self._reading
        if reading.exact:
            # The client gets the ids that it asked for; else it finds the field as empty as without ours.
            if not reading.keeps_ids:
                empty(choice, "token_ids")
            if not (reading.keeps_ids and self._wants_prompt):
                empty(choice, "prompt_token_ids")
        logprobs = choice.get("logprobs")
        if reading.as_chat:
            choice["delta"] = {"content": choice.pop("text", "")}
            if isinstance(logprobs, dict):
                choice["logprobs"] = chat_logprobs(logprobs, reading.top_logprobs)
        elif reading.offset_chars and isinstance(logprobs, dict):
            move_offsets(logprobs, reading.offset_chars)
        return choice

    def _take_prompt_ids(self, event: Json, choices: list[Any]) -> None:
        """Note the ids of the prompt, which come once."""
        reading = self._reading
        if not reading.exact:
            return
        ids = event.get("prompt_token_ids")
        if ids is None and isinstance(choices[0], dict):
            ids = choices[0].get("prompt_token_ids")
        if not (reading.keeps_ids and self._wants_prompt):
            empty(event, "prompt_token_ids")
        if self._wants_prompt and isinstance(ids, list) and are_ids(ids):
            self._prompt_ids = tuple(ids)

    def _told(self, ids: list[int]) -> TokenIds | None:
        """The ids that go with a chunk."""
        prompt, self._prompt_ids = self._prompt_ids, ()
        if not (prompt or ids):
            return None
        told = TokenIds(self._position, tuple(ids), prompt)
        self._position += len(ids)
        return told

    def _fresh(self, tokens: int) -> int:
        """Tokens without those that were counted in an earlier attempt."""
        again = min(tokens, self._repeated)
        self._repeated -= again
        return tokens - again

    # ------------------------------------------------------------------- counts

    def _note_counts(self, usage: Json | None) -> None:
        if usage is not None:
            self._prompt_tokens = usage.get("prompt_tokens", self._prompt_tokens)
            self._output_tokens = usage.get("completion_tokens", self._output_tokens)

    def _note_closing(self, event: Json) -> None:
        """What follows the last finish reason matters only for what it counts."""
        usage = usage_of(event.pop("usage", None))
        choices = event.pop("choices", None)
        if usage is None or choices or self._closing:
            return
        self._note_counts(usage)
        event.pop("error", None)
        self._closing = event | {"usage": usage}

    def _running(self, usage: Json) -> Json:
        """A running count as of the whole request, not of this attempt."""
        before = self._reading.position - self._reading.repeated_tokens
        if not before or "prompt_tokens" not in usage:
            return usage
        return usage | {
            "prompt_tokens": usage["prompt_tokens"] - before,
            "completion_tokens": usage.get("completion_tokens", 0) + before,
        }


def whole_as_chunk(data: bytes, *, chat: bool) -> tuple[bytes, bytes]:
    """A whole answer as the two events of a stream: its output, and its usage. Raises Unreadable, EngineError."""
    answer = read(data)
    if not isinstance(answer, dict):
        raise Unreadable("an answer that is no JSON object")
    said = said_in(answer)
    if said is not None:
        raise EngineError(said)
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices:
        raise Unreadable("an answer without choices")
    for choice in choices:
        if isinstance(choice, dict) and chat:
            choice["delta"] = choice.pop("message", None) or {}
    usage = answer.get("usage")
    return encode(answer), encode({"choices": [], "usage": usage})
