"""What a job asks of the simulated engine, and the chunks that it gets.

A job has a choice for each of its prompts, n times. The text of a token follows from the choice's name and the token's
index alone, so where a stop string ends it is known from the start. What cannot be honoured is refused by the name of
its field; nothing that changes an answer is dropped in silence. Everything here is pure.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import msgspec

from agents.engines.sim_measures import measure
from qlm_core.errors import ContextExceeded, InvalidRequest
from qlm_core.messages import Payload
from qlm_core.model import RequestId
from qlm_core.tokens import (
    completion_prompts,
    is_token_ids,
    measured_tokens,
    output_limit,
    prompt_tokens,
)

# Log-normal output lengths: the median and spread of a conversation trace (Azure LLM inference trace 2023).
_MEDIAN_OUTPUT_TOKENS = 130.0
_OUTPUT_SIGMA = 0.9
_CHOICES_MAX = 1024

# Fields that would have to change the answer and cannot, with the reason. A falsy value asks for nothing.
_CANNOT = {
    "suffix": "the text has no end that it could lead to",
    "use_beam_search": "there is one beam only",
    "return_token_ids": "tokens have no ids",
    "return_tokens_as_token_ids": "tokens have no ids",
    "prompt_embeds": "there is no model that could read them",
    "guided_choice": "the text follows no grammar",
    "guided_grammar": "the text follows no grammar",
    "guided_json": "the text follows no grammar",
    "guided_regex": "the text follows no grammar",
    "structured_outputs": "the text follows no grammar",
    "allowed_token_ids": "tokens have no ids",
    "bad_words": "the words are always the same",
    "audio": "the answer is text",
}

# Most requests have none of these, and are in a hurry.
_LOOKED_AT = frozenset(_CANNOT) | {
    "prompt_logprobs",
    "response_format",
    "tool_choice",
    "function_call",
    "modalities",
    "best_of",
    "echo",
    "stop",
}

_encode = msgspec.json.Encoder().encode
_body = msgspec.json.Decoder(dict[str, Any])


def token_text(id: str, index: int) -> str:
    """The text of the token at `index` of a request's output, from 0."""
    return f"{_stem(id)}{index}"


def _stem(id: str) -> str:
    return f" {crc32(id.encode()) & 0xFFFF:04x}."


def choice_name(id: str, index: int) -> str:
    """What the text of a request's choice follows from: the first is the request's own."""
    return f"{id}#{index}" if index else id


def sampled_output_tokens(id: str, seed: int) -> int:
    """The output length of a request that says nothing about it."""
    draw = random.Random(f"{seed}/{id}").lognormvariate(0.0, _OUTPUT_SIGMA)
    return max(1, round(_MEDIAN_OUTPUT_TOKENS * draw))


@dataclass(slots=True, eq=False)
class Choice:
    """One sequence of a job: its output in all (earlier attempts included), and how much of it is out.

    Attributes:
        name: what its text follows from, and its id in the batch.
        stem: what all its tokens begin with, once it is known.
        prefix: the echoed prompt, until it is out.
        pieces: the text of every token where a stop string cuts it; None where nothing does.
        top: log-probabilities: how many alternatives to show for each token; None for no log-probabilities.
        emitted: tokens of this attempt that are out.
        over: whether its last chunk is out.
    """

    job: Job
    index: int
    name: str
    prompt_tokens: int
    total_tokens: int
    finish_reason: str
    stem: str = ""
    prefix: str = ""
    pieces: tuple[str, ...] | None = None
    top: int | None = None
    emitted: int = 0
    offset: int = 0
    over: bool = False

    def chunk(self, produced: int) -> tuple[bytes, int] | None:
        """The chunk with what this attempt has produced and not yet sent, and its tokens; None for nothing."""
        if self.job.answer:
            # What is measured is told at once, when all of it is.
            self.over = True
            return None
        earlier = self.job.earlier_tokens
        produced = min(produced, self.total_tokens - earlier)
        fresh = produced - self.emitted
        last = earlier + produced >= self.total_tokens
        if self.over or (fresh <= 0 and not last):
            return None
        first = earlier + self.emitted
        self.emitted, self.over = produced, last
        reason = f'"{self.finish_reason}"' if last else "null"
        if self.pieces is None and self.top is None and not self.prefix:
            # The text is ASCII without quotes or backslashes, so it is its own JSON.
            stem = self.stem or self._named()
            if fresh == 1:
                said, more = f'"{stem}{first}"', ""
            else:
                said, more = f'"{"".join(self._tokens(first, fresh))}"', ""
        else:
            said, more = self._odd(first, fresh)
        if self.job.chat:
            role = '"role":"assistant",' if first == 0 else ""
            body = f'"delta":{{{role}"content":{said}}}'
        else:
            body = f'"text":{said}'
        data = f'{{"choices":[{{"index":{self.index},{body}{more},"finish_reason":{reason}}}]}}'
        return data.encode(), fresh

    def _odd(self, first: int, fresh: int) -> tuple[str, str]:
        """Text and log-probabilities as JSON, where they are more than tokens in a row."""
        if self.pieces is None:
            tokens = self._tokens(first, fresh)
        else:
            tokens = list(self.pieces[first : first + fresh])
        text, self.prefix = self.prefix + "".join(tokens), ""
        more = "" if self.top is None else f',"logprobs":{_encode(self._logprobs(tokens)).decode()}'
        self.offset += len(text)
        return _encode(text).decode(), more

    def _tokens(self, first: int, count: int) -> list[str]:
        stem = self.stem or self._named()
        return [f"{stem}{index}" for index in range(first, first + count)]

    def _named(self) -> str:
        self.stem = _stem(self.name)
        return self.stem

    def _logprobs(self, tokens: list[str]) -> dict[str, Any]:
        """Every token is certain: its log-probability is 0, and it has no alternative but itself."""
        shown = bool(self.top)
        if self.job.chat:
            content = []
            for token in tokens:
                it = {"token": token, "logprob": 0.0, "bytes": list(token.encode())}
                content.append(it | {"top_logprobs": [it] if shown else []})
            return {"content": content}
        offsets, at = [], self.offset
        for token in tokens:
            offsets.append(at)
            at += len(token)
        return {
            "tokens": tokens,
            "token_logprobs": [0.0] * len(tokens),
            "top_logprobs": [{token: 0.0} for token in tokens] if shown else None,
            "text_offset": offsets,
        }


@dataclass(slots=True, eq=False)
class Job:
    """A job and its choices; `earlier_tokens` were produced by earlier attempts.

    Attributes:
        answer: of one that generates nothing, what it is told once all its choices are over.
    """

    id: RequestId
    attempt: int
    chat: bool
    earlier_tokens: int
    prompt_tokens: int = 0
    choices: tuple[Choice, ...] = ()
    answer: bytes = b""


def make_job(payload: Payload, *, model_len: int, seed: int) -> Job:
    """Read a payload.

    Raises:
        msgspec.MsgspecError: its body is no JSON object.
        InvalidRequest: naming the field that cannot be honoured.
    """
    body = _body.decode(payload.body)
    if not payload.endpoint.generates:
        return _measuring(payload, body, model_len)
    _check(body, chat=payload.chat)
    job = Job(payload.id, payload.attempt, payload.chat, payload.produced_tokens)
    prompts = _prompts(body, chat=payload.chat, model_len=model_len)
    n = _count(body, "n", 1, most=_CHOICES_MAX // len(prompts)) or 1
    choices: list[Choice] = []
    for text, tokens in prompts:
        job.prompt_tokens += tokens
        for _ in range(n):
            choices.append(_choice(job, len(choices), text, tokens, body, model_len, seed))
    job.choices = tuple(choices)
    return job


def _measuring(payload: Payload, body: dict[str, Any], model_len: int) -> Job:
    """A job that computes prompts and no more: a choice for each, over with it."""
    counts = measured_tokens(body, payload.endpoint)
    if len(counts) > _CHOICES_MAX:
        field = payload.endpoint.prompt_field
        raise InvalidRequest(field, f"more than {_CHOICES_MAX} texts", "Send fewer at once.")
    cut = _count(body, "truncate_prompt_tokens", -1)
    if cut is not None:
        most = model_len if cut < 0 else cut
        counts = [max(1, min(tokens, most)) for tokens in counts]
    if max(counts) > model_len:
        field = payload.endpoint.prompt_field
        raise ContextExceeded(field, model_len, f"about {max(counts)} tokens in one text")
    job = Job(payload.id, payload.attempt, False, 0, prompt_tokens=sum(counts))
    job.answer = measure(body, payload.endpoint, model=payload.model, prompt_tokens=sum(counts))
    job.choices = tuple(
        Choice(job, index, choice_name(job.id, index), tokens, 1, "stop")
        for index, tokens in enumerate(counts)
    )
    return job


def _choice(
    job: Job, index: int, text: str, tokens: int, body: dict[str, Any], model_len: int, seed: int
) -> Choice:
    name = choice_name(job.id, index)
    limit = output_limit(body, chat=job.chat)
    room = max(1, model_len - tokens)
    # Nothing at all is possible for who wants the echo of the prompt alone.
    most = room if limit is None else min(limit, room)
    natural = _natural(body, name, most, seed)
    made = Choice(
        job=job,
        index=index,
        name=name,
        prompt_tokens=tokens,
        total_tokens=min(natural, most),
        finish_reason="length" if natural >= most else "stop",
        prefix=text if body.get("echo") else "",
        top=_top(body, chat=job.chat),
    )
    stops = body.get("stop")
    if stops:
        _stop(made, [stops] if isinstance(stops, str) else stops, body)
    if most:
        made.total_tokens = max(made.total_tokens, job.earlier_tokens + 1)
    return made


def _natural(body: dict[str, Any], name: str, most: int, seed: int) -> int:
    """How much it would produce without a limit."""
    wish = body.get("qlm_sim")
    if isinstance(wish, dict) and isinstance(wish.get("output_tokens"), int):
        natural: int = max(1, wish["output_tokens"])
    elif body.get("ignore_eos"):
        natural = most
    else:
        natural = sampled_output_tokens(name, seed)
    return max(natural, _count(body, "min_tokens", 0) or 0)


def _stop(choice: Choice, stops: list[str], body: dict[str, Any]) -> None:
    """End a choice at the first stop string in its output, if there is one."""
    pieces = [token_text(choice.name, index) for index in range(choice.total_tokens)]
    text = "".join(pieces)
    # It stops where a stop string is complete: of several, the one that ends first.
    start = sum(map(len, pieces[: _count(body, "min_tokens", 0) or 0]))
    found = [(at + len(stop), at) for stop in stops if (at := text.find(stop, start)) >= 0]
    if not found:
        return
    end, at = min(found)
    kept = end if body.get("include_stop_str_in_output") else at
    cut: list[str] = []
    size = 0
    for piece in pieces:
        if size >= end:
            break
        cut.append(piece[: max(0, kept - size)])
        size += len(piece)
    choice.pieces = tuple(cut)
    choice.total_tokens = len(cut)
    choice.finish_reason = "stop"


# --------------------------------------------------------------------------- fields of the body


def _prompts(body: dict[str, Any], *, chat: bool, model_len: int) -> list[tuple[str, int]]:
    """Text and tokens of each prompt; token ids have no text."""
    field = "messages" if chat else "prompt"
    parts = [body] if chat else completion_prompts(body.get("prompt"))
    if len(parts) > _CHOICES_MAX:
        raise InvalidRequest(field, f"more than {_CHOICES_MAX} prompts", "Send fewer at once.")
    cut = _count(body, "truncate_prompt_tokens", -1)
    prompts = []
    for index, part in enumerate(parts):
        where = field if len(parts) == 1 else f"{field}[{index}]"
        text = part if isinstance(part, str) else ""
        if not (chat or isinstance(part, str) or is_token_ids(part)):
            raise InvalidRequest(where, "neither text nor token ids", "Give a prompt.")
        if body.get("echo") and not isinstance(part, str):
            raise InvalidRequest("echo", "token ids have no text here", "Send text or no echo.")
        tokens = prompt_tokens(body if chat else {"prompt": part}, chat=chat)
        if cut is not None:
            tokens = max(1, min(tokens, model_len - 1 if cut < 0 else cut))
        if tokens >= model_len:
            raise ContextExceeded(where, model_len, f"about {tokens} tokens")
        prompts.append((text, tokens))
    if not prompts:
        raise InvalidRequest("prompt", "empty", "Give a prompt.")
    return prompts


def _check(body: dict[str, Any], *, chat: bool) -> None:
    """Raise InvalidRequest for what would have to change the answer and cannot."""
    if output_limit(body, chat=chat) == 0 and not body.get("echo"):
        raise InvalidRequest("max_tokens", "must be at least 1 without echo", "Raise it.")
    if body.keys().isdisjoint(_LOOKED_AT):
        return
    for field, reason in _CANNOT.items():
        if body.get(field):
            raise _cannot(field, reason)
    if body.get("prompt_logprobs") is not None:
        raise _cannot("prompt_logprobs", "prompts have no log-probabilities")
    shape = body.get("response_format")
    if shape is not None and not (isinstance(shape, Mapping) and shape.get("type") == "text"):
        raise _cannot("response_format", "the text follows no grammar")
    for field in ("tool_choice", "function_call"):
        if body.get(field) not in (None, "none", "auto"):
            raise _cannot(field, "no tool is ever called")
    if (body.get("modalities") or ["text"]) != ["text"]:
        raise _cannot("modalities", "the answer is text")
    best = _count(body, "best_of", 1)
    if best is not None and best != (_count(body, "n", 1) or 1):
        raise _cannot("best_of", "all choices are equally good, so it must be the same as n")
    if chat and body.get("echo"):
        raise _cannot("echo", "chats are not echoed")
    if body.get("echo") and (
        _top(body, chat=False) is not None or body.get("truncate_prompt_tokens")
    ):
        field = "logprobs" if body.get("logprobs") is not None else "truncate_prompt_tokens"
        raise _cannot(
            field, "a prompt that is echoed is given as it came, without log-probabilities"
        )
    stops = body.get("stop")
    listed = [stops] if isinstance(stops, str) else stops
    if listed is not None and not (
        isinstance(listed, list) and all(isinstance(stop, str) and stop for stop in listed)
    ):
        raise InvalidRequest(
            "stop", "must be text, or a list of texts that are not empty", "Correct it."
        )


def _top(body: dict[str, Any], *, chat: bool) -> int | None:
    """How many alternatives to show for each token; None for no log-probabilities."""
    if not chat:
        return _count(body, "logprobs", 0)
    top = _count(body, "top_logprobs", 0)
    wanted = body.get("logprobs")
    if wanted not in (None, True, False):
        raise InvalidRequest("logprobs", "must be true or false", "Correct it.")
    if top and not wanted:
        raise InvalidRequest("top_logprobs", "given without logprobs", "Set logprobs to true.")
    return (top or 0) if wanted else None


def _count(body: dict[str, Any], field: str, least: int, *, most: int = 2**31) -> int | None:
    value = body.get(field)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise InvalidRequest(
            field,
            f"must be a whole number from {least} to {most}, not {value!r:.40}",
            "Correct it.",
        )
    return value


def _cannot(field: str, reason: str) -> InvalidRequest:
    return InvalidRequest(
        field,
        f"the simulated engine cannot honour it: {reason}",
        "Leave it out, or use a real engine.",
    )
