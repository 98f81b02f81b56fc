"""Which requests can be continued after part of their output is out, from what, and which of them exactly.

A continued attempt gets the prompt and what was produced: as token ids where the engine tells and takes them, so that a
greedy output goes on as if nothing had happened; else as text, which the engine divides into tokens anew. Neither
rebuilds the state of a grammar, further choices or an echoed prompt. Log-probabilities need ids, since the text does
not say how it was divided. The gateway decides by this what a lost attempt means; an agent leaves alone what it could
not continue exactly when it evicts.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

from qlm_core.endpoint import Endpoint


class Resume(Enum):
    """From what a request can be continued."""

    NEVER = "never"
    FROM_IDS = "from token ids"
    FROM_TEXT = "from token ids or text"


class ResumedBy(Enum):
    """From what an attempt was continued; NOTHING for one from the beginning."""

    NOTHING = ""
    IDS = "token ids"
    TEXT = "text"


# Fields that tie the output to state inside the engine, or add output that is not text.
_TIED = (
    "guided_choice",
    "guided_grammar",
    "guided_json",
    "guided_regex",
    "prompt_embeds",
    "prompt_logprobs",
    "structured_outputs",
    "suffix",
    "use_beam_search",
)
# Fields by which an engine looks at the output of this attempt alone: from the seam on it would count anew.
_COUNTED = (
    "frequency_penalty",
    "presence_penalty",
    "repetition_detection",
    "thinking_token_budget",
    "logits_processors",
    "bad_words",
    "vllm_xargs",
    "kv_transfer_params",
)


def resume_of(body: Mapping[str, Any], endpoint: Endpoint) -> Resume:
    """From what a request with this body can go on elsewhere.

    Tools are allowed here: the answer may well be text. Once a tool call or reasoning has begun the request cannot be
    continued any more, which only whoever sees the output can tell.
    """
    if not endpoint.generates:
        return Resume.NEVER
    chat = endpoint.chat
    if _above_one(body.get("n")) or _above_one(body.get("best_of")) or body.get("echo"):
        return Resume.NEVER
    if any(body.get(field) for field in _TIED):
        return Resume.NEVER
    if chat and body.get("continue_final_message") and not _ends_in_text(body.get("messages")):
        return Resume.NEVER
    if not chat and single_prompt(body.get("prompt")) is None:
        return Resume.NEVER
    shape = body.get("response_format")
    if isinstance(shape, Mapping) and shape.get("type", "text") != "text":
        return Resume.NEVER
    # Of a completion, 0 asks for the chosen token's own log-probability.
    logprobs = bool(body.get("logprobs")) if chat else body.get("logprobs") is not None
    if logprobs or body.get("return_token_ids") or body.get("truncate_prompt_tokens"):
        return Resume.FROM_IDS
    return Resume.FROM_TEXT


def exact_from_ids(body: Mapping[str, Any], endpoint: Endpoint) -> bool:
    """Whether token ids continue a request as if it had not been interrupted, where its output so far is text.

    Of sampled output that means: by the same distribution. Who names a seed wants more, but an engine draws anew from
    the seed on. For chats it takes plain text, since ids go on past the template, the tools and the pictures of a chat;
    alternatives to the chosen tokens are lost when chats go on so.
    """
    if resume_of(body, endpoint) is Resume.NEVER or any(body.get(field) for field in _COUNTED):
        return False
    if body.get("seed") is not None and body.get("temperature") != 0:
        return False
    return not endpoint.chat or (plain_chat(body) and not body.get("top_logprobs"))


def plain_chat(body: Mapping[str, Any]) -> bool:
    """Whether a chat is text in and text out, so that a completion from its ids can continue it."""
    if body.get("tools") and body.get("tool_choice") != "none":
        return False
    messages = body.get("messages")
    return isinstance(messages, list) and all(map(_is_text, messages))


def single_prompt(prompt: object) -> str | list[int] | None:
    """The prompt of a completion that has one, alone or in a list; None for several or something else."""
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list) and prompt and all(type(part) is int for part in prompt):
        return prompt
    return None


def _is_text(message: object) -> bool:
    if not isinstance(message, Mapping):
        return False
    content = message.get("content")
    if isinstance(content, list):
        return all(isinstance(part, Mapping) and part.get("type") == "text" for part in content)
    return content is None or isinstance(content, str)


def _ends_in_text(messages: object) -> bool:
    """Whether the last message is plain text, to which more can be added."""
    last = messages[-1] if isinstance(messages, list) and messages else None
    return isinstance(last, Mapping) and isinstance(last.get("content"), str)


def _above_one(value: object) -> bool:
    return isinstance(value, int) and value > 1
