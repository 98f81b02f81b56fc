"""The body of a job as an OpenAI-compatible server gets it: always streaming, counted, and continued where needed.

A continued completion gets the prompt and the text produced so far; a continued chat gets that text as the
assistant's unfinished last message, or at the end of the one that its client began. Limits on output shrink by what has
been produced.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import msgspec

from qlm_core.messages import Payload
from qlm_core.tokens import COMPLETION_DEFAULT_LIMIT

Tokenize = Callable[[str, str], Awaitable[list[int]]]

_Body = dict[str, msgspec.Raw]
_body = msgspec.json.Decoder(_Body)
_prompt = msgspec.json.Decoder(str | list[int])
_messages = msgspec.json.Decoder(list[msgspec.Raw])
_message = msgspec.json.Decoder(_Body)
_text = msgspec.json.Decoder(str)
_number = msgspec.json.Decoder(int | None)
_encode = msgspec.json.Encoder().encode

_STREAM = msgspec.Raw(b"true")
# The running count is vLLM's; other servers ignore it.
_STREAM_OPTIONS = msgspec.Raw(b'{"include_usage":true,"continuous_usage_stats":true}')
_LIMITS = ("max_tokens", "max_completion_tokens")


class CannotContinue(Exception):
    """This server cannot go on with the job; another one may, and its client is not to blame."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """Where to post a job, and what."""

    path: str
    body: bytes


async def prepare(
    job: Payload, served: str, tokenize: Tokenize, *, priority: int | None = None
) -> Prepared:
    """The request for a job.

    Args:
        served: the server's name for the model.
        tokenize: (model, text) to token ids; needed to continue a prompt given as token ids.
        priority: vLLM's, lower first; without one the server hears of none.

    Raises:
        msgspec.MsgspecError: the body is not what the endpoint takes.
        CannotContinue: as `tokenize` does.
    """
    body = _body.decode(job.body)
    body.pop("qlm_sim", None)
    body.pop("priority", None)
    if priority is not None:
        body["priority"] = msgspec.Raw(_encode(priority))
    body["model"] = msgspec.Raw(_encode(served))
    body["stream"] = _STREAM
    body["stream_options"] = _STREAM_OPTIONS
    if job.produced_tokens:
        _reduce_limits(body, job)
        if job.chat:
            _continue_chat(body, job.resume_text)
        else:
            await _continue_prompt(body, job.resume_text, served, tokenize)
    path = "/v1/chat/completions" if job.chat else "/v1/completions"
    return Prepared(path, _encode(body))


def _reduce_limits(body: _Body, job: Payload) -> None:
    if not job.chat and "max_tokens" not in body:
        body["max_tokens"] = msgspec.Raw(_encode(COMPLETION_DEFAULT_LIMIT))
    for field in _LIMITS:
        limit = _number.decode(body[field]) if field in body else None
        if limit is not None:
            body[field] = msgspec.Raw(_encode(max(1, limit - job.produced_tokens)))
    least = _number.decode(body["min_tokens"]) if "min_tokens" in body else None
    if least is not None:
        body["min_tokens"] = msgspec.Raw(_encode(max(0, least - job.produced_tokens)))


def _continue_chat(body: _Body, text: str) -> None:
    messages = _messages.decode(body["messages"]) if "messages" in body else []
    if messages and _true(body.get("continue_final_message")):
        begun = _message.decode(messages.pop())
        begun["content"] = msgspec.Raw(_encode(_text.decode(begun["content"]) + text))
        messages.append(msgspec.Raw(_encode(begun)))
    else:
        messages.append(msgspec.Raw(_encode({"role": "assistant", "content": text})))
    body["messages"] = msgspec.Raw(_encode(messages))
    body["continue_final_message"] = msgspec.Raw(b"true")
    body["add_generation_prompt"] = msgspec.Raw(b"false")


async def _continue_prompt(body: _Body, text: str, served: str, tokenize: Tokenize) -> None:
    prompt = _prompt.decode(body["prompt"]) if "prompt" in body else ""
    if isinstance(prompt, str):
        body["prompt"] = msgspec.Raw(_encode(prompt + text))
    else:
        body["prompt"] = msgspec.Raw(_encode(prompt + await tokenize(served, text)))


def _true(flag: msgspec.Raw | None) -> bool:
    return flag is not None and bool(msgspec.json.decode(flag))
