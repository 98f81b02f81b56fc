"""The body of a job as an OpenAI-compatible server gets it, and how its answer is to be read.

Jobs stream whatever their clients asked for, but for what a server gives only whole. What a client said and QLM does not
know passes as it is. A continued job goes on from the token ids of its prompt and output where the server tells and takes
ids: as a completion, also for a chat, whose template was applied in the first attempt. Elsewhere it goes on from its
text: a completion gets it behind its prompt; a chat as the assistant's unfinished last message, or at the end of the one
that its client began. Limits on output shrink by what has been produced.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import msgspec

from agents.engines.reading import Reading
from agents.engines.shapes import Shape
from qlm_core.endpoint import Endpoint
from qlm_core.messages import Payload
from qlm_core.resume import Resume, ResumedBy, plain_chat, resume_of, single_prompt
from qlm_core.tokens import COMPLETION_DEFAULT_LIMIT, completion_prompts

COMPLETIONS, CHATS = Endpoint.COMPLETIONS.path, Endpoint.CHAT_COMPLETIONS.path

_Body = dict[str, msgspec.Raw]
_body = msgspec.json.Decoder(_Body)
_any = msgspec.json.Decoder()
_messages = msgspec.json.Decoder(list[msgspec.Raw])
_message = msgspec.json.Decoder(_Body)
_text = msgspec.json.Decoder(str)
_encode = msgspec.json.Encoder().encode

_TRUE, _FALSE = msgspec.Raw(b"true"), msgspec.Raw(b"false")
_LIMITS = ("max_tokens", "max_completion_tokens")
# What servers answer only whole, or more fully so. Options of a stream that is not wanted are theirs to refuse.
_WHOLE_ONLY = ("prompt_logprobs", "use_beam_search", "kv_transfer_params", "stream_options")
# Of a chat, what a completion from its ids has no use for: it went into the prompt, or is said in another way there.
_OF_CHATS_ALONE = (
    "add_generation_prompt",
    "chat_template",
    "chat_template_kwargs",
    "continue_final_message",
    "documents",
    "logprobs",
    "max_completion_tokens",
    "messages",
    "parallel_tool_calls",
    "reasoning_effort",
    "response_format",
    "tool_choice",
    "tools",
    "top_logprobs",
)
# Fields that say how a prompt becomes ids.
_OF_PROMPTS = (
    "add_special_tokens",
    "truncate_prompt_tokens",
    "truncation_side",
    "return_prompt_text",
)
# vLLM refuses to give more than this; a client may ask for any number.
_CHOICES_MAX = 16_384
# A character takes four bytes at most, and tokens may be single bytes.
_BROKEN_TOKENS_MAX = 16
_TAIL_TOKENS = 32


class CannotContinue(Exception):
    """This server cannot go on with the job; another one may, and its client is not to blame."""


class NothingLeft(Exception):
    """The context was full when the attempt before was broken off: nothing is missing of the answer but its finish reason."""


class Helper(Protocol):
    """What a server does with tokens beside generating them."""

    async def tokenize(self, served: str, text: str) -> list[int]:
        """The ids of a text. Raises CannotContinue."""

    async def detokenize(self, served: str, ids: list[int]) -> str | None:
        """The text of ids; None where the server does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Abilities:
    """What a server can do beyond OpenAI's interface.

    Attributes:
        ids: it tells the token ids of prompt and output, and takes prompts of ids.
        parses_chats: it divides the output of chats into reasoning and content.
        options: it takes `stream_options`.
        running_counts: it counts tokens as it streams, or does not mind being asked to.
        shapes: by endpoint, what its whole answers have beside output, as far as it is known.
        fingerprint: its `system_fingerprint`, "" while not known.
        context_tokens: prompt and output together, 0 while not known.
        output_tokens_max: its own limit on output where the client names none, 0 for the context alone.
    """

    ids: bool = False
    parses_chats: bool = False
    options: bool = True
    running_counts: bool = True
    shapes: Mapping[str, Shape] = field(default_factory=dict)
    fingerprint: str = ""
    context_tokens: int = 0
    output_tokens_max: int = 0

    def without(self, refusal: str, *, asked: bytes) -> Abilities | None:
        """What is left if a server refuses what QLM added to a request; None if it refuses something of the client's.

        Args:
            refusal: the server's words.
            asked: the client's body.
        """
        for name, lacking in (
            ("return_token_ids", replace(self, ids=False)),
            ("continuous_usage_stats", replace(self, running_counts=False)),
            ("stream_options", replace(self, options=False)),
        ):
            if name in refusal and name.encode() not in asked and lacking != self:
                return lacking
        return None

    def shape(self, path: str, choices: int) -> bytes:
        """What an answer of so many choices has beside output, as a chunk; empty where that is not known."""
        shape = self.shapes.get(path)
        return shape.chunk(choices) if shape is not None and choices <= _CHOICES_MAX else b""


@dataclass(frozen=True, slots=True)
class Prepared:
    """Where to post a job, what, and how to read the answer."""

    path: str
    body: bytes
    reading: Reading


def asked_whole(body: Mapping[str, Any], able: Abilities, endpoint: Endpoint) -> bool:
    """Whether a request of a client that does not want a stream is not streamed either.

    Servers do not put whole answers together from the parts that they stream: what they parse (tool calls, reasoning) comes out
    differently, and some things come only whole. Nothing is lost by it where no other attempt could go on in the middle. Plain
    text is the same either way, and streams, so that it can be continued and its progress is seen.
    """
    if any(_asks(body.get(name)) for name in _WHOLE_ONLY):
        return True
    if resume_of(body, endpoint) is Resume.NEVER:
        return True
    return endpoint.chat and (able.parses_chats or not plain_chat(body))


async def prepare(
    job: Payload,
    served: str,
    helper: Helper,
    able: Abilities,
    *,
    priority: int | None = None,
) -> Prepared:
    """The request for a job.

    Args:
        served: the server's name for the model.
        priority: vLLM's, lower first; without one the server hears of none but the client's.

    Raises:
        msgspec.MsgspecError, ValueError: the body is not what the endpoint takes.
        CannotContinue: the server lacks what it takes to go on with the job.
        NothingLeft: there is no room for more output.
    """
    body = _body.decode(job.body)
    body.pop("qlm_sim", None)
    if priority is not None:
        body["priority"] = msgspec.Raw(_encode(priority))
    body["model"] = msgspec.Raw(_encode(served))
    if job.produced_tokens:
        return await _continued(body, job, served, helper, able)
    path = job.endpoint.path
    if not job.endpoint.generates:
        return Prepared(path, _encode(body), Reading(whole=True))
    reading = _reading(body, job, able)
    if not _flag(body, "stream"):
        if asked_whole(_fields(body), able, job.endpoint):
            return Prepared(path, _encode(body), Reading(choices=reading.choices, whole=True))
        reading = replace(reading, shape=able.shape(path, reading.choices))
    _stream(body, able)
    if reading.exact:
        body["return_token_ids"] = _TRUE
    return Prepared(path, _encode(body), reading)


async def _continued(
    body: _Body, job: Payload, served: str, helper: Helper, able: Abilities
) -> Prepared:
    if job.resume_ids and able.ids and (not job.chat or _completes(body, able)):
        return await _continued_from_ids(body, job, served, helper, able)
    if resume_of(_fields(body), job.endpoint) is not Resume.FROM_TEXT:
        raise CannotContinue(
            "the server tells no token ids, without which this output cannot go on"
        )
    reading = replace(
        _reading(body, job, able), resumed_by=ResumedBy.TEXT, position=job.produced_tokens
    )
    _reduce_limits(body, job, job.produced_tokens)
    if job.chat:
        _continue_chat(body, job.resume_text)
    else:
        await _continue_prompt(body, job.resume_text, served, helper)
    _stream(body, able)
    if reading.exact:
        body["return_token_ids"] = _TRUE
    return Prepared(job.endpoint.path, _encode(body), reading)


async def _continued_from_ids(
    body: _Body, job: Payload, served: str, helper: Helper, able: Abilities
) -> Prepared:
    ids = list(job.resume_ids)
    if 0 < able.context_tokens <= len(ids):
        raise NothingLeft
    most = min(_BROKEN_TOKENS_MAX, job.produced_tokens)
    again = await _broken_end(ids, served, helper, most=most)
    del ids[len(ids) - again :]
    top = _number(body, "top_logprobs") or 0
    reading = replace(
        _reading(body, job, able),
        as_chat=job.chat,
        resumed_by=ResumedBy.IDS,
        position=job.produced_tokens,
        repeated_tokens=again,
        offset_chars=job.text_offset_chars,
        top_logprobs=top,
    )
    _reduce_limits(body, job, job.produced_tokens - again)
    if job.chat:
        limit = next((body[name] for name in reversed(_LIMITS) if _flag(body, name)), None)
        if limit is None:
            limit = msgspec.Raw(_encode(_room(len(ids), job.produced_tokens - again, able)))
        wants_logprobs = _flag(body, "logprobs")
        for name in _OF_CHATS_ALONE:
            body.pop(name, None)
        body["max_tokens"] = limit
        if wants_logprobs:
            body["logprobs"] = msgspec.Raw(_encode(top))
    for name in _OF_PROMPTS:
        body.pop(name, None)
    body["prompt"] = msgspec.Raw(_encode(ids))
    _stream(body, able)
    body["return_token_ids"] = _TRUE
    return Prepared(COMPLETIONS, _encode(body), reading)


def _completes(body: _Body, able: Abilities) -> bool:
    """Whether a completion can continue a chat, which must name a limit where the chat need not."""
    limited = any(_flag(body, name) for name in _LIMITS)
    return (limited or able.context_tokens > 0) and plain_chat(_fields(body))


def _room(ids: int, produced_tokens: int, able: Abilities) -> int:
    """The limit that a server sets itself to a chat without one, for what is left of it."""
    room = able.context_tokens - ids
    if able.output_tokens_max:
        room = min(room, able.output_tokens_max - produced_tokens)
    return max(1, room)


async def _broken_end(ids: list[int], served: str, helper: Helper, *, most: int) -> int:
    """How many tokens at the end stand for part of a character only.

    From there an engine would not know where the text of the next token begins. They had no text yet, so they are produced
    again.
    """
    for dropped in range(most):
        end = len(ids) - dropped
        text = await helper.detokenize(served, ids[max(0, end - _TAIL_TOKENS) : end])
        if text is None or not text.endswith("\ufffd"):
            return dropped
    return most


# --------------------------------------------------------------------------- how to read


def _reading(body: _Body, job: Payload, able: Abilities) -> Reading:
    """What the body says of the answer."""
    choices = _choices(body, job)
    exact = able.ids and choices == 1 and not _flag(body, "echo")
    streamed = _flag(body, "stream")
    options = _any.decode(body["stream_options"]) if "stream_options" in body else None
    wants = options if streamed and isinstance(options, dict) else {}
    return Reading(
        choices=choices,
        exact=exact,
        held_chars=_held_chars(body) if choices == 1 else 0,
        keeps_ids=_flag(body, "return_token_ids"),
        keeps_usage=bool(wants.get("include_usage") and wants.get("continuous_usage_stats")),
        fingerprint=able.fingerprint if streamed and not wants.get("include_usage") else "",
    )


def _choices(body: _Body, job: Payload) -> int:
    """Choices that the answer will have: n for each prompt."""
    many = _number(body, "n") or 1
    if job.chat or "prompt" not in body:
        return many
    return many * len(completion_prompts(_any.decode(body["prompt"])))


def _held_chars(body: _Body) -> int:
    """Characters that a server may hold back because a stop string may begin in them. vLLM always does."""
    if _flag(body, "include_stop_str_in_output") or "stop" not in body:
        return 0
    stop = _any.decode(body["stop"])
    stops = [stop] if isinstance(stop, str) else stop if isinstance(stop, list) else []
    return max((len(one) - 1 for one in stops if isinstance(one, str) and one), default=0)


def _stream(body: _Body, able: Abilities) -> None:
    """Ask for a stream that is counted, keeping what else the client said about it, mistakes included."""
    options = _any.decode(body["stream_options"]) if "stream_options" in body else None
    body["stream"] = _TRUE
    if not able.options or (options is not None and not isinstance(options, dict)):
        return
    asked: dict[str, Any] = dict(options or {})
    counted = ("include_usage", "continuous_usage_stats")[: 1 + able.running_counts]
    for name in counted:
        if isinstance(asked.get(name), bool | None):
            asked[name] = True
    body["stream_options"] = msgspec.Raw(_encode(asked))


# --------------------------------------------------------------------------- what is left of a job


def _reduce_limits(body: _Body, job: Payload, produced_tokens: int) -> None:
    if not job.chat and "max_tokens" not in body:
        body["max_tokens"] = msgspec.Raw(_encode(COMPLETION_DEFAULT_LIMIT))
    for name in _LIMITS:
        limit = _number(body, name)
        if limit is not None:
            body[name] = msgspec.Raw(_encode(max(1, limit - produced_tokens)))
    least = _number(body, "min_tokens")
    if least is not None:
        body["min_tokens"] = msgspec.Raw(_encode(max(0, least - produced_tokens)))


def _continue_chat(body: _Body, text: str) -> None:
    messages = _messages.decode(body["messages"]) if "messages" in body else []
    if messages and _flag(body, "continue_final_message"):
        begun = _message.decode(messages.pop())
        begun["content"] = msgspec.Raw(_encode(_text.decode(begun["content"]) + text))
        messages.append(msgspec.Raw(_encode(begun)))
    else:
        messages.append(msgspec.Raw(_encode({"role": "assistant", "content": text})))
    body["messages"] = msgspec.Raw(_encode(messages))
    body["continue_final_message"] = _TRUE
    body["add_generation_prompt"] = _FALSE


async def _continue_prompt(body: _Body, text: str, served: str, helper: Helper) -> None:
    prompt = single_prompt(_any.decode(body["prompt"]) if "prompt" in body else "")
    if prompt is None:
        raise CannotContinue("several prompts cannot be continued at once")
    if isinstance(prompt, str):
        body["prompt"] = msgspec.Raw(_encode(prompt + text))
    else:
        body["prompt"] = msgspec.Raw(_encode(prompt + await helper.tokenize(served, text)))


# --------------------------------------------------------------------------- fields


def _flag(body: _Body, name: str) -> bool:
    """Whether the client said anything but no: 0 may ask for something, as in `logprobs`."""
    return name in body and _asks(_any.decode(body[name]))


def _asks(value: object) -> bool:
    return value is not None and value is not False


def _number(body: _Body, name: str) -> int | None:
    value = _any.decode(body[name]) if name in body else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _fields(body: _Body) -> dict[str, Any]:
    return {name: _any.decode(value) for name, value in body.items()}
